import os
import shutil
import stat
from pathlib import Path

import pytest
import torch

from app.__main__ import main
from app.engine.model import loading
from app.engine.profiles import ModelSpec
from bench.gpu_smoke import QWQ_SHAPE, TINY_SHAPE
from bench.loading_memory import load_and_tell, measured, own_bytes, write_shards
from tests.engine.tiny import save_tiny, with_plain_kernels

SPEC = ModelSpec("tiny", "tiny", "Tiny", "")


def silent(*_: object) -> None:
    pass


def logits_of(spec: ModelSpec, folder: Path) -> torch.Tensor:
    model = loading.load_model(spec, str(folder), loading.load_config(str(folder)), silent)
    assert type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    with_plain_kernels(model)
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([[1, 2, 3]])).logits
    return logits


def test_what_is_written_is_what_is_made_of_the_same_weights_while_loading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, quantized = save_tiny(tmp_path / "whole"), tmp_path / "new" / "quantized"
    assert main(["quantize", str(quantized), "--model", str(whole)]) == 0
    assert f"PONDER_MODEL={quantized}" in capsys.readouterr().out
    on_the_way = logits_of(ModelSpec("tiny", "tiny", "Tiny", "", is_four_bit=True), whole)
    torch.testing.assert_close(logits_of(SPEC, quantized), on_the_way)
    tokenizers = [loading.load_tokenizer(str(folder)) for folder in (whole, quantized)]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    assert stat.S_IMODE(quantized.stat().st_mode) == 0o755
    assert os.listdir(tmp_path / "new") == ["quantized"]


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = save_tiny(tmp_path / "whole")
    assert main(["quantize", str(target), "--model", str(target)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (target / "model.safetensors").exists()


@pytest.mark.parametrize("model", ["auto", "demo"])
def test_models_that_are_not_for_this_are_refused(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(tmp_path / "new"), "--model", model]) == 2
    assert "name qwq-32b or qwq-32b-preview" in capsys.readouterr().err


def test_what_is_in_four_bits_already_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, quantized = save_tiny(tmp_path / "whole"), tmp_path / "quantized"
    assert main(["quantize", str(quantized), "--model", str(whole)]) == 0
    assert main(["quantize", str(tmp_path / "again"), "--model", str(quantized)]) == 2
    assert "is quantized already" in capsys.readouterr().err


def test_too_small_a_disk_is_said_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = save_tiny(tmp_path / "whole")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2 << 30, 2 << 30, 1000))  # type: ignore[attr-defined]
    monkeypatch.setattr(loading, "load_model", None)
    assert main(["quantize", str(tmp_path / "deep" / "new"), "--model", str(whole)]) == 2
    said = capsys.readouterr().err
    assert f"are free in {tmp_path}" in said
    assert "on another disk" in said


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("I/O error: (os error 28)")])
def test_a_disk_that_gets_full_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    from transformers import PreTrainedModel

    def full(_: PreTrainedModel, folder: Path, **__: object) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    whole = save_tiny(tmp_path / "whole")
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    assert main(["quantize", str(tmp_path / "new"), "--model", str(whole)]) == 2
    assert "could not be written" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["whole"]


def test_shards_are_loaded_in_four_bits_and_ram_is_watched_meanwhile(tmp_path: Path) -> None:
    files = write_shards(tmp_path / "model", TINY_SHAPE, 3)
    assert len(files) == 4
    found = load_and_tell(tmp_path / "model")
    assert 0 < found["model_bytes_in_ram"] < 2 * sum(file.stat().st_size for file in files)
    before = own_bytes()
    taken = b"x" * (64 << 20)
    assert own_bytes() - before > len(taken) * 0.9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="on a CPU copies of the matrices are in RAM too")
def test_quantizing_four_layers_of_qwq_takes_less_ram_than_one_shard_has(tmp_path: Path) -> None:
    files = write_shards(tmp_path / "model", QWQ_SHAPE | {"vocab_size": 1024}, 4)
    shard = max(file.stat().st_size for file in files)
    assert sum(file.stat().st_size for file in files) > 3.9 * shard
    assert measured(tmp_path / "model")["peak_bytes"] < shard

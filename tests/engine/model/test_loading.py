import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from app.engine.base import ReasoningFormat
from app.engine.host import hosting
from app.engine.model import demo, loading
from app.engine.model.prompts import PromptEncoder
from app.engine.profiles import DEMO, QWQ, QWQ_PREVIEW, spec_for
from app.errors import ModelUnavailable
from tests.engine.qwen import DATA, qwen_encoder, qwen_tokenizer
from tests.engine.tiny import save_tiny, tiny_in_four_bits, tiny_model, tiny_tokenizer

ROOMY = SimpleNamespace(max_position_embeddings=131_072)
TINY_SPEC = spec_for("some/model", 0)


def silent(_: str, __: float | None) -> None:
    pass


def test_auto_is_qwq_where_the_gpu_has_room_and_the_demo_else() -> None:
    assert spec_for("auto", 22.0) is QWQ
    assert spec_for("auto", 12.0) is DEMO
    assert spec_for("qwq-32b-preview", 0.0) is QWQ_PREVIEW


@pytest.mark.parametrize(
    ("source", "like", "is_four_bit"),
    [("Qwen/QwQ-32B", QWQ, True), ("unsloth/QwQ-32B-bnb-4bit", QWQ, True), ("Qwen/QwQ-32B-Preview", QWQ_PREVIEW, True)],
)
def test_other_copies_of_qwq_are_driven_like_it(source: str, like: object, is_four_bit: bool) -> None:
    spec = spec_for(source, 0)
    assert spec.reasoning is like.reasoning  # type: ignore[attr-defined]
    assert (spec.source, spec.is_four_bit) == (source, is_four_bit)


@pytest.mark.parametrize("name", ["qwq-32b", "qwq-32b-preview"])
@pytest.mark.parametrize("is_template_in_a_file", [True, False])
def test_a_folder_of_any_name_with_qwqs_files_is_driven_like_it(
    tmp_path: Path, name: str, is_template_in_a_file: bool
) -> None:
    folder = tmp_path / "3f9a27c1"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "qwen2", "hidden_size": 5120, "num_hidden_layers": 64})
    )
    template = (DATA / f"{name}.jinja").read_text()
    if is_template_in_a_file:
        (folder / "chat_template.jinja").write_text(template)
    else:
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    spec, like = spec_for(str(folder), 0), {"qwq-32b": QWQ, "qwq-32b-preview": QWQ_PREVIEW}[name]
    assert (spec.reasoning, spec.system_prompt) == (like.reasoning, like.system_prompt)
    assert (spec.title, spec.source, spec.is_four_bit) == (like.title, str(folder), True)


def test_a_folder_of_another_shape_is_no_qwq(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    (folder / "chat_template.jinja").write_text((DATA / "qwq-32b.jinja").read_text())
    assert spec_for(str(folder), 0).reasoning is None
    (folder / "config.json").write_text("{")
    assert spec_for(str(folder), 0).reasoning is None


def test_qwqs_profile_has_every_field_of_its_card() -> None:
    profile = loading.profile_of(QWQ, qwen_tokenizer("qwq-32b"), qwen_encoder("qwq-32b"), ROOMY, 32_768)  # type: ignore[arg-type]
    sampling = profile.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 0.95, 40)
    assert (sampling.min_p, sampling.repetition_penalty) == (0.0, 1.0)
    assert profile.reasoning.close_id == 151_668
    assert profile.stop_ids == (151_643, 151_645)
    assert profile.context_window == 32_768
    assert profile.budgets == {"quick": 0, "normal": 8192, "deep": 24_576}


def test_qwqs_closing_words_end_the_reasoning_in_tokens() -> None:
    ids = qwen_encoder("qwq-32b").encode(QWQ.reasoning.closing)  # type: ignore[union-attr]
    assert ids.count(151_668) == 1
    assert qwen_tokenizer("qwq-32b").decode(ids).startswith("\n\nConsidering the limited time by the user")


def test_a_tokenizer_without_the_close_token_is_refused_for_qwq() -> None:
    name = "qwq-32b-preview"
    with pytest.raises(ModelUnavailable, match="as one token"):
        loading.profile_of(QWQ, qwen_tokenizer(name), qwen_encoder(name), ROOMY, 32_768)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        ("{{ m.content }}<think>\n", "close_token"),
        ("{{ m.content }}<think>\n\n</think>\n", "tags"),
        ("{{ m.content }}<|im_start|>assistant\n", "tags"),
    ],
)
def test_the_format_of_an_unknown_model_is_found_in_its_template(template: str, kind: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}" + template + "{% endfor %}"
    profile = loading.profile_of(TINY_SPEC, tokenizer, PromptEncoder(tokenizer), ROOMY, 4096)  # type: ignore[arg-type]
    assert profile.reasoning.kind == kind


def test_the_window_is_the_models_own_and_holds_the_budgets() -> None:
    tokenizer = tiny_tokenizer()
    small = SimpleNamespace(max_position_embeddings=1000)
    profile = loading.profile_of(TINY_SPEC, tokenizer, PromptEncoder(tokenizer), small, 32_768)  # type: ignore[arg-type]
    assert profile.context_window == 1000
    assert max(profile.budgets.values()) == 750
    assert profile.answer_reserve == 250


def test_a_tokenizer_without_a_chat_template_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ModelUnavailable, match="chat template"):
        PromptEncoder(tokenizer)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_qwq_without_a_gpu_says_what_it_needs_and_what_to_do() -> None:
    with pytest.raises(ModelUnavailable, match="needs a CUDA GPU with 21 GiB") as refused:
        loading.load_model(QWQ, "Qwen/QwQ-32B", ROOMY, silent)  # type: ignore[arg-type]
    assert "PONDER_MODEL=demo" in str(refused.value.details["remedy"])


TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
    "http://www.nvidia.com/Download/index.aspx"
)
UNSUPPORTED = "Unexpected error from cudaGetDeviceCount(). Error 803: unsupported display driver\nCUDA kernel errors"


def without_gpu(monkeypatch: pytest.MonkeyPatch, said: str | None) -> None:
    """A torch for CUDA 12.8 that warns as it is asked for a GPU, and raises `said` as it is started."""

    def asked() -> bool:
        warnings.warn(f"CUDA initialization: {said} (Triggered internally at CUDAFunctions.cpp:109.)", stacklevel=2)
        return False

    def start() -> None:
        if said is not None:
            raise RuntimeError(said)

    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", asked)
    monkeypatch.setattr(torch.cuda, "init", start)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("said", "why", "remedy"),
    [
        (TOO_OLD, "driver is too old: it is for CUDA 11.4, and torch here is for CUDA 12.8.", "shows CUDA 12.8 or"),
        (NO_DRIVER, "there is no NVIDIA driver on this machine.", "docker run --gpus all"),
        ("No CUDA GPUs are available", "the NVIDIA driver is there and finds no GPU.", "nvidia-smi"),
        (UNSUPPORTED, "cudaGetDeviceCount(). Error 803: unsupported display driver).", "nvidia-smi"),
        (None, "torch finds none on this machine.", "nvidia-smi"),
    ],
)
def test_why_there_is_no_gpu_is_one_sentence_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, said: str | None, why: str, remedy: str
) -> None:
    without_gpu(monkeypatch, said)
    assert loading.free_gpu_gib() == 0.0
    with pytest.raises(ModelUnavailable) as refused:
        loading.require_room(QWQ)
    assert refused.value.message.endswith(why)
    assert "\n" not in refused.value.message
    assert remedy in str(refused.value.details["remedy"])
    assert "PONDER_MODEL=demo" in str(refused.value.details["remedy"])


def test_a_hidden_gpu_is_said_with_the_variable_that_hides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch, "No CUDA GPUs are available")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert loading.why_no_gpu()[0] == "CUDA_VISIBLE_DEVICES=-1 hides every GPU"


def test_a_torch_without_cuda_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch, "Torch not compiled with CUDA enabled")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert loading.why_no_gpu()[0] == "torch is installed without CUDA here"


@pytest.mark.parametrize("error", ["No compatible CUDA binary found at libbitsandbytes_cuda140.so", None])
def test_bitsandbytes_without_its_cuda_library_is_refused_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, error: str | None
) -> None:
    from bitsandbytes import cextension

    lib = SimpleNamespace() if error is None else cextension.ErrorHandlerMockBNBNativeLibrary(error)
    monkeypatch.setattr(cextension, "lib", lib)
    monkeypatch.setattr(torch.version, "cuda", "14.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ModelUnavailable, match=r"its library for CUDA 14\.0, which torch here is for") as refused:
        loading.load_model(replace(TINY_SPEC, is_four_bit=True), "some/model", ROOMY, silent)  # type: ignore[arg-type]
    assert (error or "for.") in refused.value.message
    assert "pip install -U bitsandbytes" in str(refused.value.details["remedy"])


def test_too_little_gpu_memory_is_said_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (8 * 2**30, 24 * 2**30))
    with pytest.raises(ModelUnavailable, match=r"needs 21 GiB of free GPU memory and 8\.0 GiB are free"):
        loading.load_model(QWQ, "Qwen/QwQ-32B", ROOMY, silent)  # type: ignore[arg-type]


def test_weights_larger_than_the_gpu_are_said_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny(tmp_path / "model")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000, 24 * 2**30))
    config = loading.load_config(str(folder))
    config.dtype = torch.bfloat16
    with pytest.raises(ModelUnavailable, match=r"need 0\.0 GiB of GPU memory and 0\.0 GiB are free"):
        loading.load_model(TINY_SPEC, str(folder), config, silent)


def test_a_tokenizer_of_another_model_is_refused_with_both_numbers(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    config = loading.load_config(str(folder))
    loading.require_same_vocabulary(str(folder), tiny_tokenizer(), config)
    with pytest.raises(ModelUnavailable, match=r"another model than its config\.json: they have 151,643 tokens"):
        loading.require_same_vocabulary(str(folder), qwen_tokenizer("qwq-32b"), config)


def test_a_damaged_chat_template_is_named(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text()[:-10])
    with pytest.raises(ModelUnavailable, match=r"chat template of .*chat_template\.jinja.* cannot be used: Template"):
        PromptEncoder(loading.load_tokenizer(str(folder)))
    template.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 2\n")
    with pytest.raises(ModelUnavailable, match="git-lfs pointer"):
        loading.load_tokenizer(str(folder))


@pytest.mark.parametrize(
    ("error", "said", "to_do"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), "memory is full", "nvidia-smi"),
        (RuntimeError("CUDA error: no kernel image is available\nmore"), "no kernel image is available.", "of its age"),
        (KeyError(), "could not be loaded (KeyError: KeyError)", "PONDER_MODEL"),
    ],
)
def test_what_nobody_foresaw_is_a_sentence_with_a_remedy_too(error: Exception, said: str, to_do: str) -> None:
    told = hosting.explained(error)
    assert said in told.message
    assert "more" not in told.message
    assert to_do in str(told.details["remedy"])


def test_a_download_is_told_in_bytes_and_nothing_else_of_the_hubs_bars() -> None:
    told: list[tuple[str, float | None]] = []
    with loading._Progress(lambda *step: told.append(step)) as bar:
        for desc, unit in (("Fetching 17 files", "it"), ("Downloading bytes", "B"), ("Reconstructing", "B")):
            with bar(desc=desc, unit=unit, total=0) as one:
                one.total += 200
                one.update(50)
    assert told == [("Downloading the model", 0.25)]


def test_a_folder_is_loaded_with_progress(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "model"))
    told: list[tuple[str, float | None]] = []
    model = loading.load_model(TINY_SPEC, folder, loading.load_config(folder), lambda *step: told.append(step))
    assert model.dtype == torch.float32
    assert told[0] == ("Loading weights", 0.0)
    assert told[-1] == ("Loading weights", 1.0)


def test_a_checkpoint_saved_in_four_bits_is_loaded_in_four_bits(tmp_path: Path) -> None:
    quantized = tmp_path / "quantized"
    tiny_in_four_bits(save_tiny(tmp_path / "whole")).save_pretrained(quantized)
    tiny_tokenizer().save_pretrained(quantized)
    config = loading.load_config(str(quantized))
    loaded = loading.load_model(TINY_SPEC, str(quantized), config, silent)
    kind = type(loaded.model.layers[0].mlp.up_proj).__name__
    assert kind == "Linear4bit"
    assert loaded.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert torch.isfinite(loaded(torch.tensor([[1, 2, 3]])).logits).all()


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def overwritten(file: Path) -> None:
    file.write_text("<html>Not Found</html>")


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def listed(file: Path) -> None:
    file.write_text("[]")


@pytest.mark.parametrize("damage", [cut_off, overwritten, emptied])
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = save_tiny(tmp_path / "model")
    damage(folder / "model.safetensors")
    with pytest.raises(ModelUnavailable, match=r"model/model\.safetensors"):
        loading.load_tokenizer(str(folder))


@pytest.mark.parametrize("damage", [cut_off, overwritten, emptied, listed])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_a_damaged_json_file_is_named(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    folder = save_tiny(tmp_path / "model", max_shard_size="20KB")
    damage(folder / name)
    with pytest.raises(ModelUnavailable, match=f"The file .*model/{name} (is no JSON, or is cut|holds no JSON object)"):
        loading.load_tokenizer(str(folder))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer_is_said_with_the_command_that_fetches_the_file(tmp_path: Path, name: str) -> None:
    folder = save_tiny(tmp_path / "model")
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3945441440\n")
    with pytest.raises(ModelUnavailable, match=f"model/{name} is a git-lfs pointer") as refused:
        loading.load_tokenizer(str(folder))
    assert "git lfs pull" in str(refused.value.details["remedy"])


def sharded(folder: Path) -> list[Path]:
    """The files of a tiny model in several shards, in their order."""
    save_tiny(folder, max_shard_size="20KB")
    return sorted(folder.glob("model-*.safetensors"))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    lost = sharded(tmp_path / "model")[1]
    lost.unlink()
    with pytest.raises(ModelUnavailable, match=f"{lost.name} is missing"):
        loading.load_tokenizer(str(tmp_path / "model"))


def test_a_shard_that_is_cut_off_is_named(tmp_path: Path) -> None:
    short = sharded(tmp_path / "model")[2]
    cut_off(short)
    with pytest.raises(ModelUnavailable, match=f"{short.name} is cut off"):
        loading.load_tokenizer(str(tmp_path / "model"))


def test_shards_without_their_index_ask_for_it(tmp_path: Path) -> None:
    sharded(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelUnavailable, match=r"no model\.safetensors\.index\.json, which says what is in it"):
        loading.load_tokenizer(str(tmp_path / "model"))


@pytest.mark.parametrize("outside", ["../other/model.safetensors", "/etc/passwd"])
def test_an_index_that_names_files_outside_of_its_folder_is_refused(tmp_path: Path, outside: str) -> None:
    sharded(tmp_path / "model")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": outside}}))
    with pytest.raises(ModelUnavailable, match=f"names {outside}, which is outside of its folder"):
        loading.load_tokenizer(str(tmp_path / "model"))


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": {"lm_head.weight": 1}}])
def test_an_index_without_its_map_is_named(tmp_path: Path, index: dict[str, object]) -> None:
    sharded(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelUnavailable, match=r"index\.json does not say which file has which tensor"):
        loading.load_tokenizer(str(tmp_path / "model"))


def test_shards_may_be_links_as_in_the_hubs_cache(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    for number, shard in enumerate(sharded(tmp_path / "model")):
        shard.rename(tmp_path / "blobs" / str(number))
        shard.symlink_to(Path("..") / "blobs" / str(number))
    folder = str(tmp_path / "model")
    assert loading.load_model(TINY_SPEC, folder, loading.load_config(folder), silent).dtype == torch.float32


def test_weights_as_a_pickle_are_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match=r"as pytorch_model\.bin only, a pickle"):
        loading.load_tokenizer(str(folder))


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable, match="has no weights"):
        loading.load_tokenizer(str(folder))


# The files are whole and not of one model: transformers makes up what is missing, and warns


def rewritten(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def load(folder: Path, *, is_four_bit: bool = False) -> object:
    spec = replace(TINY_SPEC, is_four_bit=is_four_bit)
    return loading.load_model(spec, str(folder), loading.load_config(str(folder)), silent)


FOUR_BIT = pytest.mark.parametrize("is_four_bit", [True, False])
UP = "model.layers.1.mlp.up_proj.weight"


@FOUR_BIT
@pytest.mark.parametrize("name", [UP, "model.layers.1.input_layernorm.weight"])
def test_a_shard_of_another_model_is_named_with_its_tensor(tmp_path: Path, name: str, is_four_bit: bool) -> None:
    shards = sharded(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    shard = next(file for file in shards if file.name == index["weight_map"][name])
    rewritten(shard, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))
    with pytest.raises(ModelUnavailable, match=f"{shard.name} is of another model .* {name} has the shape"):
        load(tmp_path / "model", is_four_bit=is_four_bit)


@FOUR_BIT
@pytest.mark.parametrize("name", [UP, "lm_head.weight"])
def test_a_missing_tensor_is_refused_by_its_name(tmp_path: Path, name: str, is_four_bit: bool) -> None:
    folder = save_tiny(tmp_path / "model")
    rewritten(folder / "model.safetensors", lambda tensors: tensors.pop(name))
    with pytest.raises(ModelUnavailable, match=f"lacks the tensor {name}, so"):
        load(folder, is_four_bit=is_four_bit)


def test_a_tensor_that_a_shard_lacks_is_said_with_the_shard(tmp_path: Path) -> None:
    shard = sharded(tmp_path / "model")[-1]
    lost = min(load_file(shard))
    rewritten(shard, lambda tensors: tensors.pop(lost))
    with pytest.raises(ModelUnavailable, match=f"{shard.name}, where the index has it, lacks the tensor {lost}"):
        load(tmp_path / "model")


def test_missing_tensors_are_also_found_among_foreign_ones(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    rewritten(folder / "model.safetensors", lambda tensors: tensors.update({"transformer.up": tensors.pop(UP)}))
    with pytest.raises(ModelUnavailable, match=f"lacks the tensor {UP}, so"):
        load(folder)


def test_what_is_found_only_while_loading_is_told_too() -> None:
    told = {"mismatched_keys": {(UP, torch.Size([63, 32]), torch.Size([64, 32]))}, "missing_keys": set()}
    with pytest.raises(ModelUnavailable, match=rf"some/model are of another model .* {UP} has the shape \(63, 32\)"):
        loading._require_complete("some/model", told)


def test_an_output_head_that_is_tied_to_the_embeddings_is_not_missed(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    rewritten(folder / "model.safetensors", lambda tensors: tensors.pop("lm_head.weight"))
    load(folder)


def test_a_folder_that_is_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"no config\.json"):
        loading.load_tokenizer(str(tmp_path))


def test_a_hub_id_that_cannot_be_reached_names_it_and_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailable, match="nobody/nothing") as refused:
        loading.load_config("nobody/nothing")
    assert "a folder with the model works without network" in str(refused.value.details["remedy"])


# The demo model's conversion, with a tiny model in place of the 500 MB one


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Conversions that were made; each writes the tiny model."""
    gguf = tmp_path / "package" / "tiny.gguf"
    gguf.parent.mkdir()
    gguf.write_bytes(b"gguf")
    made: list[int] = []

    def convert(_: Path, folder: Path) -> None:
        made.append(1)
        tiny_model().save_pretrained(folder)

    monkeypatch.setattr(demo, "_packaged_gguf", lambda: gguf)
    monkeypatch.setattr(demo, "_write", convert)
    return made


def test_the_demo_model_is_converted_once(tmp_path: Path, packaged: list[int]) -> None:
    told: list[str] = []
    folder = demo.demo_folder(tmp_path / "cache", told.append)
    assert folder is not None
    assert load_file(folder / "model.safetensors")
    assert demo.demo_folder(tmp_path / "cache", told.append) == folder
    assert len(packaged) == len(told) == 1


def test_a_damaged_conversion_is_made_again(tmp_path: Path, packaged: list[int]) -> None:
    folder = demo.demo_folder(tmp_path / "cache", lambda _: None)
    assert folder is not None
    cut_off(folder / "model.safetensors")
    (tmp_path / "cache" / "demo-making-left").mkdir()
    demo.demo_folder(tmp_path / "cache", lambda _: None)
    assert len(packaged) == 2
    assert json.loads((folder / "converted.json").read_text())["version"] == demo.CONVERTER_VERSION
    assert list((tmp_path / "cache").glob("demo-making-*")) == []


def test_a_full_disk_at_the_conversion_is_said_with_a_way_out_and_leaves_nothing(
    tmp_path: Path, packaged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(_: Path, folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(demo, "_write", fill)
    with pytest.raises(ModelUnavailable, match="No space left on device") as refused:
        demo.demo_folder(tmp_path / "cache", lambda _: None)
    assert "PONDER_CACHE_DIR" in str(refused.value.details["remedy"])
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["demo.lock"]
    assert packaged == []


@pytest.mark.parametrize("error", [SafetensorError, Exception])
def test_a_full_disk_is_known_from_the_libraries_own_errors_too(
    tmp_path: Path, packaged: list[int], monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fill(*_: Path) -> None:
        raise error("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(demo, "_write", fill)
    with pytest.raises(ModelUnavailable, match=r"could not be written to .*cache: .*No space left") as refused:
        demo.demo_folder(tmp_path / "cache", lambda _: None)
    assert "PONDER_CACHE_DIR" in str(refused.value.details["remedy"])
    assert packaged == []


def test_a_damaged_package_is_named_with_a_way_out(
    tmp_path: Path, packaged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stumble(*_: Path) -> None:
        raise ValueError("GGUF magic invalid")

    monkeypatch.setattr(demo, "_write", stumble)
    with pytest.raises(ModelUnavailable, match=r"tiny\.gguf could not be read .* magic invalid") as refused:
        demo.demo_folder(tmp_path / "cache", lambda _: None)
    assert "--force-reinstall" in str(refused.value.details["remedy"])
    assert packaged == []


def test_without_the_package_the_demo_comes_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_PACKAGE", "no_such_package")
    assert demo.demo_folder(tmp_path / "cache", lambda _: None) is None
    assert DEMO.source == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert isinstance(DEMO.reasoning, ReasoningFormat)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)

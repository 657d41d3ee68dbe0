"""From a model's name to a model in memory: tokenizer first, then weights, with progress and errors to act on."""

import copy
import logging
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from tqdm.std import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from app.engine.base import ModelProfile, ReasoningFormat
from app.engine.model.checkpoint_files import check_folder, lacking, require_tensors, weight_files
from app.engine.model.prompts import PromptEncoder
from app.engine.profiles import CLOSE_TOKEN, TAGS, ModelSpec
from app.errors import ModelUnavailable, first_line

# What is being done, and how far it is, 0 to 1
Tell = Callable[[str, float | None], None]
_NONE = ReasoningFormat(kind="none")
_BITS_OF_NF4 = 4.127  # with double quantization: 4 + 8 / 64 + 32 / (64 * 256)
_log = logging.getLogger(__name__)
_left_gpu_for: list[str] = []


def leave_gpu(why: str) -> None:
    """From now on this process goes without a GPU; `why` is half a sentence about the one that is there."""
    _log.warning("no GPU is used from here on: %s", why)
    _left_gpu_for.append(why)


def has_gpu() -> bool:
    """Torch can use a CUDA GPU here. What it warns of the first time it is asked, `why_no_gpu` says in a sentence."""
    if _left_gpu_for:
        return False
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "CUDA initialization")
        return torch.cuda.is_available()


def why_no_gpu() -> tuple[str, str]:
    """What torch lacks for a CUDA GPU, as half a sentence, and what to do about it."""
    if _left_gpu_for:
        return _left_gpu_for[-1], "nvidia-smi lists the programs that use it."
    built_for = torch.version.cuda
    if built_for is None and torch.version.hip is None:
        return "torch is installed without CUDA here", "Install a torch with CUDA as https://pytorch.org says."
    try:
        torch.cuda.init()
    except Exception as error:
        said = first_line(error)
    else:
        said = ""
    if old := re.search(r"too old \(found version (\d+)\)", said):
        known = f"{int(old[1]) // 1000}.{int(old[1]) % 1000 // 10}"
        return (
            f"the NVIDIA driver is too old: it is for CUDA {known}, and torch here is for CUDA {built_for}",
            f"Update the driver until nvidia-smi shows CUDA {built_for} or newer, or install a torch for CUDA {known} "
            "or older as https://pytorch.org says.",
        )
    if "no NVIDIA driver" in said:
        return (
            "there is no NVIDIA driver on this machine",
            "Install the driver; in a container also start it with docker run --gpus all.",
        )
    if "No CUDA GPUs" in said:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None:
            return f"CUDA_VISIBLE_DEVICES={hidden} hides every GPU", "Unset CUDA_VISIBLE_DEVICES, or set it to 0."
        return "the NVIDIA driver is there and finds no GPU", "Check with nvidia-smi that the GPU is seen."
    return f"torch finds none on this machine{f' ({said})' if said else ''}", "Check the driver with nvidia-smi."


def free_gpu_gib() -> float:
    """Free memory of the first CUDA GPU, 0 where there is none."""
    return torch.cuda.mem_get_info()[0] / 2**30 if has_gpu() else 0.0


def bytes_in_four_bits(model: PreTrainedModel) -> int:
    """What a model on the meta device takes once its linear layers are in NF4, but for the output head."""
    head = model.get_output_embeddings()
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    )
    every = sum(parameter.numel() for parameter in model.parameters())
    return int(linear * _BITS_OF_NF4 / 8) + 2 * (every - linear)


def used_gpu_gib() -> tuple[float, float]:
    """Used and whole memory of the first CUDA GPU, by all programs; zeros where there is none."""
    if not has_gpu():
        return 0.0, 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**30, total / 2**30


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub id.

    Raises:
        ModelUnavailable: it is not there, or broken.
    """
    with _explained(source):
        check_folder(source)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    return tokenizer


def load_config(source: str) -> PretrainedConfig:
    """The configuration of a folder or Hub id.

    Raises:
        ModelUnavailable: it is not there, or broken.
    """
    with _explained(source):
        config: PretrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=False)
    return config


def require_same_vocabulary(source: str, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """The model knows every token that ordinary text can become.

    Raises:
        ModelUnavailable: it does not.
    """
    knows, has = int(config.get_text_config().vocab_size), int(tokenizer.vocab_size)
    if has > knows:
        raise ModelUnavailable(
            f"The tokenizer files of {source} are of another model than its config.json: they have {has:,} tokens, and "
            f"the model knows {knows:,}.",
            remedy="Put the files of one model into a folder of their own.",
        )


def profile_of(
    spec: ModelSpec,
    tokenizer: PreTrainedTokenizerBase,
    encoder: PromptEncoder,
    config: PretrainedConfig,
    max_context_tokens: int,
) -> ModelProfile:
    """What only the loaded tokenizer and configuration can tell, joined with what is known of the model.

    Raises:
        ModelUnavailable: the tokenizer does not fit what the model's reasoning needs.
    """
    window = min(int(getattr(config, "max_position_embeddings", 0) or max_context_tokens), max_context_tokens)
    how = _resolved(spec, tokenizer, encoder)
    return ModelProfile(
        name=spec.name,
        title=spec.title,
        about=spec.about,
        is_demo=spec.is_demo,
        context_window=window,
        reasoning=how,
        sampling=spec.sampling,
        answer_sampling=spec.answer_sampling,
        stop_ids=_stop_ids(tokenizer),
        budgets={effort: min(tokens, window * 3 // 4) for effort, tokens in spec.budgets},
        answer_reserve=min(spec.answer_reserve, window // 4),
        system_prompt=spec.system_prompt,
        longest_answer=spec.longest_answer,
    )


def load_model(spec: ModelSpec, source: str, config: PretrainedConfig, tell: Tell) -> PreTrainedModel:
    """The model on its device: 4 bits on a CUDA GPU where the spec says so, bf16 there otherwise, float32 on a CPU.

    Raises:
        ModelUnavailable: no room, no GPU, no file, a broken file; with what to do.
    """
    is_saved_in_four_bit = getattr(config, "quantization_config", None) is not None
    require_room(spec)
    on_gpu = has_gpu()
    options: dict[str, Any] = {
        "dtype": torch.bfloat16 if on_gpu else torch.float32,
        "trust_remote_code": False,
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # what does not fit is told better by `_require_complete`
    }
    if on_gpu:
        options["device_map"] = {"": 0}
    if spec.is_four_bit and not is_saved_in_four_bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    if spec.is_four_bit or is_saved_in_four_bit:
        _require_bitsandbytes(on_gpu=on_gpu)
    tell("Loading weights", 0.0)
    if on_gpu and "quantization_config" not in options:
        _require_fit(source, config)
    with _explained(source), _Progress(tell) as bar:
        _require_one_model(source, config)
        options["tqdm_class"] = bar  # for what comes from the Hub; the rest goes through the hook
        loaded: Any = AutoModelForCausalLM.from_pretrained(source, **options)
        model: PreTrainedModel = loaded[0]
        _require_complete(source, loaded[1])
    model.eval()
    return model


def empty_model(config: PretrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model without its weights: names and shapes alone. `config` stays as it is."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=dtype, trust_remote_code=False
        )
    return model


def decoder_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The model's decoder layers, by the name that transformers' causal models share; else the model as one."""
    layers = getattr(model.base_model, "layers", None)
    return list(layers) if layers is not None else [model]


def _resolved(spec: ModelSpec, tokenizer: PreTrainedTokenizerBase, encoder: PromptEncoder) -> ReasoningFormat:
    """The reasoning format with its token id; found out from the template where the spec does not say."""
    close_ids = encoder.encode("</think>")
    is_one_token = len(close_ids) == 1 and close_ids[0] != tokenizer.unk_token_id
    opens_inside = "<think>" in encoder.generation_prompt().rpartition("</think>")[2]
    if spec.reasoning is None:
        if opens_inside and is_one_token:
            return replace(CLOSE_TOKEN, close_id=close_ids[0])
        return TAGS if is_one_token else _NONE
    if spec.reasoning.kind != "close_token":
        return spec.reasoning
    if not is_one_token:
        raise ModelUnavailable(
            f"The tokenizer of {spec.source} does not have </think> as one token, so its reasoning cannot be told from "
            "its answer.",
            remedy="Use the tokenizer files of Qwen/QwQ-32B.",
        )
    if not opens_inside:
        raise ModelUnavailable(
            f"The chat template of {spec.source} does not open the reasoning with <think>.",
            remedy="Use the tokenizer files of Qwen/QwQ-32B.",
        )
    return replace(spec.reasoning, close_id=close_ids[0])


def _stop_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What ends a completion: the tokenizer's own end, and the ends of turn of the common templates."""
    known = tokenizer.get_added_vocab()
    names = {tokenizer.eos_token, "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end|>"}
    return tuple(sorted({known[name] for name in names if name in known}))


def require_gpu(spec: ModelSpec) -> None:
    """There is a GPU, where this model needs one.

    Raises:
        ModelUnavailable: there is none; says why, and what the model needs.
    """
    if spec.least_gpu_gib > 0 and not has_gpu():
        why, remedy = why_no_gpu()
        raise ModelUnavailable(
            f"{spec.title} needs a CUDA GPU with {spec.least_gpu_gib:g} GiB of free memory, and {why}.",
            remedy=f"{remedy} PONDER_MODEL=demo runs the small stand-in on any computer.",
        )


def require_room(spec: ModelSpec) -> None:
    """There is a GPU with room for this model, where it needs one.

    Raises:
        ModelUnavailable: there is not; says what it needs and what there is.
    """
    if spec.least_gpu_gib == 0:
        return
    require_gpu(spec)
    free = free_gpu_gib()
    if free < spec.least_gpu_gib:
        raise ModelUnavailable(
            f"{spec.title} needs {spec.least_gpu_gib:g} GiB of free GPU memory and {free:.1f} GiB are free.",
            remedy="End other programs on the GPU (nvidia-smi lists them), or set PONDER_MODEL=demo.",
        )
    _log.info("%.1f GiB of GPU memory are free", free)


def _require_fit(source: str, config: PretrainedConfig) -> None:
    """A folder whose weights stay as they are saved, in 16 or 4 bits, is no larger than the GPU's free memory."""
    if getattr(config, "dtype", None) not in (torch.bfloat16, torch.float16):
        return
    folder = Path(source)
    files = weight_files(folder) if folder.is_dir() else []
    needed = sum(file.stat().st_size for file in files) / 2**30
    free = free_gpu_gib()
    if needed > free:
        raise ModelUnavailable(
            f"The weights in {source} need {needed:.1f} GiB of GPU memory and {free:.1f} GiB are free.",
            remedy="End other programs on the GPU (nvidia-smi lists them), or choose a smaller model.",
        )


def _require_one_model(source: str, config: PretrainedConfig) -> None:
    """A folder's tensors are those of its config.json, before minutes are spent on reading them."""
    folder = Path(source)
    how = getattr(config, "quantization_config", None)
    if not folder.is_dir() or (how is not None and not _is_in_four_bit(how)):
        return  # other quantizations have shapes of their own
    model = empty_model(config)
    needed = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    ignored = "|".join(model._keys_to_ignore_on_load_missing or []) or r"\Z."
    may_lack = {name for name in needed if re.search(ignored, name)} | set(model.all_tied_weights_keys)
    require_tensors(folder, needed, may_lack)


def _is_in_four_bit(how: Any) -> bool:
    return bool(how.get("load_in_4bit") if isinstance(how, dict) else getattr(how, "load_in_4bit", False))


def _require_complete(source: str, told: dict[str, Any]) -> None:
    """transformers has found every tensor and had to make up none, which it only warns of."""
    if told["mismatched_keys"]:
        name, has, needs = min(told["mismatched_keys"])
        raise ModelUnavailable(
            f"The weights of {source} are of another model than its config.json: the tensor {name} has the shape "
            f"{tuple(has)} and {tuple(needs)} is needed.",
            remedy="Put the files of one model into a folder of their own.",
        )
    if told["missing_keys"]:
        raise lacking(source, told["missing_keys"])


def _require_bitsandbytes(*, on_gpu: bool) -> None:
    try:
        import bitsandbytes
        from bitsandbytes import cextension
    except Exception as error:
        raise ModelUnavailable(
            f"4-bit models need bitsandbytes, and it cannot be loaded here: {error}.",
            remedy="Run pip install -r requirements.txt; on a GPU check that the driver is new enough for torch.",
        ) from error
    if on_gpu and not getattr(cextension.lib, "compiled_with_cuda", False):
        # It says so itself only at the first layer, in forty lines
        said = str(getattr(cextension.lib, "error_msg", "")).strip().split("\n")[0][:300]
        raise ModelUnavailable(
            f"4-bit models need bitsandbytes with CUDA, and version {bitsandbytes.__version__} could not load its "
            f"library for CUDA {torch.version.cuda}, which torch here is for{f': {said}' if said else ''}.",
            remedy=(
                "Run pip install -U bitsandbytes, or install a torch for a CUDA version that python -m bitsandbytes "
                "lists."
            ),
        )


class _Progress:
    """While it lasts, the libraries' own progress bars are told on, and a bar shows in a terminal as before."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def __enter__(self) -> type[tqdm]:
        tell = self._tell

        class Told(tqdm):  # type: ignore[misc]
            def update(self, n: float | None = 1) -> Any:
                shown = super().update(n)
                self._tell_on(self.n)
                return shown

            def __iter__(self) -> Any:
                # The bar itself counts only as often as it draws
                for done, item in enumerate(super().__iter__(), 1):
                    yield item
                    self._tell_on(done)

            def _tell_on(self, done: float) -> None:
                stage = str(self.desc or "Loading").rstrip(": ")
                # Of the Hub's three bars the one that counts bytes on the disk is told on
                if self.total and not stage.startswith(("Fetching", "Downloading bytes", "Download complete")):
                    tell("Downloading the model" if self.unit == "B" else stage, min(1.0, done / self.total))

        self._before = transformers_logging.set_tqdm_hook(lambda _, args, kwargs: Told(*args, **kwargs))
        return Told

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_tqdm_hook(self._before)


class _explained:
    """Turns what the libraries raise into a sentence with a remedy."""

    def __init__(self, source: str) -> None:
        self._source = source

    def __enter__(self) -> None:
        return

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            used, whole = used_gpu_gib()
            raise ModelUnavailable(
                f"{self._source} does not fit the GPU's memory ({used:.1f} of {whole:.1f} GiB were in use).",
                remedy="End other programs on the GPU (nvidia-smi lists them), or choose a smaller model.",
            ) from error
        if isinstance(error, HfHubHTTPError | OSError):
            raise ModelUnavailable(
                f"{self._source} could not be read: {first_line(error)}",
                remedy=(
                    "For a Hub id, check the name, the network and, for gated models, HF_TOKEN; a folder with the "
                    "model works without network (PONDER_MODEL=/path/to/folder)."
                ),
            ) from error
        if isinstance(error, SafetensorError | RuntimeError | ValueError | KeyError):
            raise ModelUnavailable(
                f"{self._source} cannot be loaded: {first_line(error)}",
                remedy="Check that its files belong together and are whole.",
            ) from error

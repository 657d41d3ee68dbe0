"""Tiny random models that a CPU runs in milliseconds, with a real byte-level tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import BitsAndBytesConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from app.engine.model import loading

if TYPE_CHECKING:
    # The benches use this file too, and need no pytest
    import pytest

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the control tokens of Qwen."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({character: number for number, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")])
    backend.add_tokens([AddedToken(token, special=False) for token in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", chat_template=CHAT_TEMPLATE)


def tiny_model(layers: int = 2) -> Qwen2ForCausalLM:
    """A random Qwen2 of a few thousand weights, the same each time."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=257,
        pad_token_id=257,
        initializer_range=0.5,
    )
    return Qwen2ForCausalLM(config).eval()


def tiny_in_four_bits(folder: Path) -> Qwen2ForCausalLM:
    """The tiny model out of its folder in NF4, in 32 bits where it computes."""
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model: Qwen2ForCausalLM = Qwen2ForCausalLM.from_pretrained(folder, quantization_config=how, device_map={"": "cpu"})
    return model


def with_plain_kernels(model: torch.nn.Module) -> None:
    """A model in 4 bits computes the same on every CPU.

    Where a CPU has AVX512-BF16, bitsandbytes packs the weights anew, in blocks that tiny layers are too small for.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def save_tiny(folder: Path, **options: object) -> Path:
    """A folder with the tiny model and its tokenizer."""
    tiny_model().save_pretrained(folder, **options)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def pretend_gpu(monkeypatch: "pytest.MonkeyPatch", free_gib: float, gib: float = 23.6) -> None:
    """As if there were a GPU with so much memory."""
    monkeypatch.setattr(loading, "_left_gpu_for", [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda _: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free_gib * 2**30), int(gib * 2**30)))

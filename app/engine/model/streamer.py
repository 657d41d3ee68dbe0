"""Tokens to text, one at a time: the seam between `generate` and whoever reads.

The stock TextIteratorStreamer decodes its whole line again at every token and gives nothing out before a space; this
one decodes each token once and gives it out at once.
"""

from collections.abc import Iterator

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase, TextIteratorStreamer

# A character of UTF-8 has at most four bytes, and no token less than one
_MOST_PENDING = 4


class TokenStreamer(TextIteratorStreamer):
    """A TextIteratorStreamer whose items are (token id, text).

    The text is what became whole characters with this token: "" while bytes are missing, and for special tokens.
    Bytes that never become a character are given out as replacement characters, and what follows them is whole; such
    bytes at the very end are left out. `put` is called by `generate`, with the prompt first; iterate from another
    thread.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, timeout: float | None = None) -> None:
        super().__init__(tokenizer, skip_prompt=True, timeout=timeout)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise TypeError("streaming needs a tokenizer of the tokenizers library")
        self._backend = backend
        self._stream = DecodeStream(skip_special_tokens=True)
        self._pending: list[int] = []

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt (once), then one token a call; `value` has shape (1, tokens) or (tokens,)."""
        if value.ndim > 1:
            if value.shape[0] != 1:
                raise ValueError("TokenStreamer takes one sequence")
            value = value[0]
        if self.skip_prompt and self.next_tokens_are_prompt:
            self.next_tokens_are_prompt = False
            return
        for token_id in value.tolist():
            self.text_queue.put((token_id, self._text_of(token_id)), timeout=self.timeout)

    def end(self) -> None:
        """No more tokens will come."""
        self.next_tokens_are_prompt = True
        self._start_anew()
        self.text_queue.put(self.stop_signal, timeout=self.timeout)

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return self

    def _text_of(self, token_id: int) -> str:
        self._pending.append(token_id)
        text: str | None = None
        is_broken = len(self._pending) > _MOST_PENDING
        try:
            text = self._stream.step(self._backend, token_id)
        except Exception:  # the library raises its bare Exception for bytes that fit no character
            is_broken = True
        if text is not None:
            self._pending.clear()
            return text
        if not is_broken:
            return ""
        # What waits longest is given up; a whole character may stand behind it
        first, *rest = self._pending
        self._start_anew()
        return self._backend.decode([first], skip_special_tokens=True) + "".join(map(self._text_of, rest))

    def _start_anew(self) -> None:
        self._stream = DecodeStream(skip_special_tokens=True)
        self._pending.clear()

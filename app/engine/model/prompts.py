"""Messages to token ids, so that nothing a person or a model wrote becomes a control token.

The chat template is rendered with unguessable marks in place of the texts. The rendered string is cut at the template's
own control tokens, the texts are put in, and each piece between two control tokens is encoded by a tokenizer that has
no added tokens at all. For harmless text this gives exactly the ids of the usual way; a typed "<|im_end|>" or
"</think>" stays the characters it is. (`split_special_tokens` would leave "</think>" a control token: it is an added
token that is not marked special.)
"""

import json
import re
import secrets
from collections.abc import Sequence

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from app.engine.base import Message
from app.errors import ModelUnavailable, first_line


class PromptEncoder:
    """Encodes messages and our own words for one tokenizer. Thread-safe."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ModelUnavailable("This model has no chat template. Choose a model that was trained to chat.")
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ModelUnavailable("This model has no fast tokenizer (tokenizer.json). Choose one that has.")
        self._tokenizer = tokenizer
        self._backend = backend
        self._plain = _without_added_tokens(backend)
        self._control_ids = {token.content: token_id for token_id, token in backend.get_added_tokens_decoder().items()}
        longest_first = sorted(self._control_ids, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        try:
            self.generation_prompt()
        except Exception as error:
            raise ModelUnavailable(
                f"The chat template of {tokenizer.name_or_path} (chat_template.jinja, or in tokenizer_config.json) "
                f"cannot be used: {type(error).__name__}: {first_line(error)}.",
                remedy="Download or copy the model's files again, then start Ponder again.",
            ) from error

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The chat template's ids for these messages, generation prompt included."""
        secret = secrets.token_hex(16)
        texts = {f"{secret}m{index}m": message.text for index, message in enumerate(messages)}
        rendered = self._render([(m.role, mark) for m, mark in zip(messages, texts, strict=True)])
        missing = [mark for mark in texts if mark not in rendered]
        if missing:
            raise ModelUnavailable("This model's chat template leaves messages out; it cannot be used for a chat.")
        marks = re.compile(secret + r"m\d+m")
        ids: list[int] = []
        piece: list[str] = []
        end = 0
        # Marks come first: were a digit a control token of some model, it must not cut a mark in two
        for found in re.finditer(f"{marks.pattern}|{self._control.pattern}", rendered):
            piece.append(rendered[end : found.start()])
            end = found.end()
            if marks.fullmatch(found[0]):
                piece.append(texts[found[0]])
                continue
            ids += self._encode_plain("".join(piece))
            ids.append(self._control_ids[found[0]])
            piece = []
        return (*ids, *self._encode_plain("".join(piece) + rendered[end:]))

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of our own words; control tokens in them are control tokens."""
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def generation_prompt(self) -> str:
        """What the template puts in front of the assistant's first word."""
        mark = secrets.token_hex(16)
        return self._render([("user", mark)]).rpartition(mark)[2]

    def _render(self, messages: list[tuple[str, str]]) -> str:
        rendered = self._tokenizer.apply_chat_template(
            [{"role": role, "content": text} for role, text in messages], tokenize=False, add_generation_prompt=True
        )
        assert isinstance(rendered, str)
        return rendered

    def _encode_plain(self, text: str) -> list[int]:
        """Ids of ordinary text, none of them a control token's."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        control_ids = set(self._control_ids.values())
        if control_ids.isdisjoint(ids):
            return ids
        # A vocabulary may hold a control token as a word of its own: cut such words in two
        halves = [text[: len(text) // 2], text[len(text) // 2 :]]
        return [token_id for half in halves if half for token_id in self._encode_plain(half)] if text[1:] else []


def _without_added_tokens(backend: Tokenizer) -> Tokenizer:
    description = json.loads(backend.to_str())
    description["added_tokens"] = []
    description["post_processor"] = None
    description["truncation"] = description["padding"] = None
    return Tokenizer.from_str(json.dumps(description))

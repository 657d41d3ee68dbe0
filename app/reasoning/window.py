"""Fit a conversation into the context window: the oldest turns go first, the question never does."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from app.engine.base import Message, ModelProfile
from app.errors import PromptTooLong

_LEAST_THINKING = 2048
_CHARS_PER_TOKEN = 4.0
_GUESSES = 6
_BYTES_PER_TOKEN = 4
# Texts have three to five bytes a token; ten only where the same character is repeated
_MOST_BYTES_PER_TOKEN = 10


class _Prompts(Protocol):
    async def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """The prompt's token ids, and how many of the oldest turns were left out to make it fit."""

    ids: tuple[int, ...]
    turns_left_out: int


def room_to_write(profile: ModelProfile) -> int:
    """Tokens of the window that a prompt must leave free: the answer's reserve and some reasoning."""
    thinking = min(profile.budgets.get("normal", 0), _LEAST_THINKING)
    return min(profile.context_window // 2, profile.answer_reserve + thinking)


async def fit(
    engine: _Prompts, profile: ModelProfile, system: str, messages: Sequence[Message], *, spare_tokens: int = 0
) -> FittedPrompt:
    """The longest end of the conversation that leaves room to write.

    `messages` end with the person's question. A turn is a question with its answers. `spare_tokens` are kept free on
    top, for looking ahead.

    Raises:
        PromptTooLong: the last message alone does not fit; `tokens` and `limit_tokens` are in its details.
        ModelUnavailable: the tokenizer is not there.
    """
    limit = profile.context_window - room_to_write(profile) - spare_tokens
    starts = [index for index, message in enumerate(messages) if message.role == "user"]
    head = [Message("system", system)] if system else []
    chars = _chars_from(starts, messages)

    async def ids_from(turn: int) -> tuple[int, ...]:
        return await engine.prompt([*head, *messages[starts[turn] :]])

    low, high = 0, len(starts) - 1
    best: FittedPrompt | None = None
    chars_per_token, tries = _CHARS_PER_TOKEN, 0
    while low <= high:
        # Where it will fit is guessed by the characters, as encoding what is far too long takes long
        guess = next((turn for turn in range(low, high) if chars[turn] <= limit * chars_per_token), high)
        turn = guess if tries < _GUESSES else (low + high) // 2
        ids = await ids_from(turn)
        if len(ids) <= limit:
            best, high = FittedPrompt(ids, turn), turn - 1
        else:
            low = turn + 1
        chars_per_token, tries = chars[turn] / max(1, len(ids)), tries + 1
    if best is not None:
        return best
    if spare_tokens:
        return FittedPrompt(await ids_from(len(starts) - 1), len(starts) - 1)
    raise _too_long(len(await engine.prompt([*head, messages[-1]])), limit)


def refuse_hopeless(text: str, profile: ModelProfile) -> None:
    """Refuse a text that is too long whatever its tokens are, without counting them.

    Raises:
        PromptTooLong: it has more bytes than the window's tokens could hold.
    """
    size, limit = len(text.encode()), profile.context_window - room_to_write(profile)
    if size > limit * _MOST_BYTES_PER_TOKEN:
        raise _too_long(size // _BYTES_PER_TOKEN, limit)


def _too_long(tokens: int, limit: int) -> PromptTooLong:
    return PromptTooLong(
        f"Your message has {tokens:,} tokens and this model takes at most {limit:,}, so that it has room to think and "
        "answer. Shorten it, or split it over several messages.",
        tokens=tokens,
        limit_tokens=limit,
    )


def _chars_from(starts: Sequence[int], messages: Sequence[Message]) -> list[int]:
    """How many characters each turn has together with all behind it."""
    behind = list(itertools.accumulate((len(message.text) for message in reversed(messages)), initial=0))
    return [behind[len(messages) - start] for start in starts]

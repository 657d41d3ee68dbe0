"""What an engine is: the nouns that cross its border and the Protocol that every engine keeps.

Imports neither torch nor transformers, so that everyone may import it. Knows nothing of runs, people or channels:
an engine turns token ids into token ids and their text.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Role = Literal["system", "user", "assistant"]
Effort = Literal["quick", "normal", "deep"]
FinishReason = Literal["stop", "length", "cancelled", "failed"]
EngineState = Literal["starting", "loading", "ready", "failed"]
ReasoningKind = Literal["close_token", "headings", "two_phase", "tags", "none"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn's text by one role; an assistant's carries its answer only, never its reasoning."""

    role: Role
    text: str


# Below it sampling takes the likeliest token: logits divided by less overflow
LEAST_TEMPERATURE = 1e-4


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. Every field is explicit; nothing is inherited from a checkpoint."""

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How a model marks its reasoning, and the words with which we steer it.

    kind:
        close_token  the prompt ends inside the reasoning; one token id (`close_id`) ends it (QwQ-32B)
        headings     no tags; the answer begins at the last "Final Answer" heading (QwQ-32B-Preview)
        two_phase    no trained reasoning; we ask for notes, then force the answer (the demo model)
        tags         `open_tag` … `close_tag` somewhere in the text (other models, remote engines)
        none         everything is the answer

    `opening` is put after the generation prompt when there shall be reasoning, `skipping` when there shall be none,
    `closing` is put behind reasoning that has to end: it holds the words shown as ours and whatever opens the answer.
    `closing_words` is the visible part of `closing`. All of these are our own text: their control tokens count.
    """

    kind: ReasoningKind
    close_id: int | None = None
    open_tag: str = "<think>"
    close_tag: str = "</think>"
    opening: str = ""
    skipping: str = ""
    closing: str = ""
    closing_words: str = ""


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """What the rest of Ponder must know of the model that is loaded.

    `context_window`, `budgets` (reasoning tokens by effort) and `answer_reserve` count tokens. `stop_ids` end a
    completion. `slots` is how many requests the engine writes at the same time. `system_prompt` is used where the
    person sets none; empty for none. `longest_answer` cuts an answer after that many tokens; 0 for the window's end.
    """

    name: str
    title: str
    about: str
    is_demo: bool
    context_window: int
    reasoning: ReasoningFormat
    sampling: Sampling
    answer_sampling: Sampling
    stop_ids: tuple[int, ...]
    budgets: dict[Effort, int]
    answer_reserve: int
    slots: int = 1
    system_prompt: str = ""
    longest_answer: int = 0


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What the engine is doing, for people: `stage` is a phrase ("Loading weights"), `progress` runs 0 to 1.

    When `state` is "failed", `problem` says what is wrong and `remedy` what to do, each a sentence. `way` says, for
    whoever runs the server, how steps are taken, and which quicker ways were given up. `is_trying` while the engine for
    many is tried out, which may end its process.
    """

    state: EngineState
    stage: str = ""
    progress: float | None = None
    problem: str = ""
    remedy: str = ""
    way: str = ""
    is_trying: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One completion to write: after `prompt` (token ids), until a stop id or `max_new_tokens`."""

    id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    stop_ids: tuple[int, ...]
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Delta:
    """Tokens that were written, in order. `texts[i]` is what became whole characters with `token_ids[i]`.

    A text is empty while a character is still missing bytes, and for stop ids and special tokens. `logprobs[i]` is the
    natural logarithm of the probability that the model itself gave to `token_ids[i]`, before temperature and cuts; an
    engine that does not know them leaves them out.
    """

    request_id: str
    token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written; `cached_tokens` of the prompt needed no reading (they were in the KV cache)."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of every request that was added; `problem` is a sentence for people when it failed."""

    request_id: str
    reason: FinishReason
    usage: Usage = field(default_factory=Usage)
    problem: str = ""


EngineEvent = Delta | Finished | EngineStatus


class Engine(Protocol):
    """A language model that writes. One task reads `events`; everyone may call the rest, from one event loop."""

    @property
    def status(self) -> EngineStatus:
        """What the engine is doing now; every change of it is also an event."""

    @property
    def profile(self) -> ModelProfile | None:
        """The loaded model; known once its tokenizer is, some time before `status` says ready."""

    async def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The chat template's token ids, generation prompt included; nothing people wrote becomes a control token.

        Raises:
            ModelUnavailable: the tokenizer is not there (yet).
        """

    async def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of our own words, control tokens included. Never for what a person or a model wrote.

        Raises:
            ModelUnavailable: the tokenizer is not there (yet).
        """

    def add(self, request: Request) -> None:
        """Write this completion; its events end with one `Finished`, whatever happens to the engine."""

    def cancel(self, request_id: str) -> None:
        """End it soon (reason "cancelled"); unknown and finished ids are ignored."""

    def events(self) -> AsyncIterator[Sequence[EngineEvent]]:
        """Everything that happens, in batches 30 to 50 ms apart, until `close`. Has one reader."""

    async def start(self) -> None:
        """Begin loading; returns at once."""

    async def close(self) -> None:
        """End everything; running requests finish as cancelled."""

"""The course of one run: which completions are opened, when the reasoning is closed, and what the reader is told.

Pure: it is told what the engine wrote and answers with what to do next; it opens nothing itself. All of its control is
close-and-continue on token ids: the next completion's prompt is the last one's, plus every token that was kept, plus
our own closing words. So no run ends without an answer because it reasoned too long.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from app.engine.base import Delta, Finished, ModelProfile, ReasoningFormat, Sampling
from app.reasoning.splitter import Resplit, Splitter, WholeAnswer, Written, splitter_for

NoteKind = Literal[
    "opening",
    "budget",
    "answer_now",
    "context_end",
    "no_answer",
    "unmarked",
    "answer_cut",
    "turns_left_out",
    "stopped",
]


@dataclass(frozen=True, slots=True)
class Note:
    """Something Ponder did to the run, as a sentence; `at_token` counts the tokens written before it."""

    kind: NoteKind
    text: str
    at_token: int


@dataclass(frozen=True, slots=True)
class Completion:
    """What the engine shall write next."""

    prompt: tuple[int, ...]
    sampling: Sampling
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Step:
    """What follows from the last thing that happened.

    `written` goes to the reader, `notes` too; `completion`, where set, replaces whatever is being written now; a run
    `is_over` when there is nothing more to come, and has failed if there is a `problem`.
    """

    written: tuple[Written, ...] = ()
    notes: tuple[Note, ...] = ()
    completion: Completion | None = None
    is_over: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Phrases:
    """Our own words as token ids; `heading` asks for the answer where the reasoning is closed but none followed."""

    opening: tuple[int, ...] = ()
    skipping: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()
    heading: tuple[int, ...] = ()


_MOST_EMPTY = 2
_TOKENS_OF_A_CHARACTER = 4
_NOTHING_WRITTEN = "The model stopped twice without writing anything. What it wrote before is kept; try again."
HEADING = "**Final Answer:** "


class _Encodes(Protocol):
    async def encode(self, text: str) -> tuple[int, ...]: ...


async def encode_phrases(engine: _Encodes, how: ReasoningFormat) -> Phrases:
    """The phrases of a model's format; they are ours, so their control tokens count."""

    async def ids(text: str) -> tuple[int, ...]:
        return await engine.encode(text) if text else ()

    return Phrases(await ids(how.opening), await ids(how.skipping), await ids(how.closing), await ids(HEADING))


@dataclass(slots=True)
class _Counts:
    reasoning: int = 0
    answer: int = 0

    @property
    def all(self) -> int:
        return self.reasoning + self.answer


@dataclass(slots=True)
class Course:
    """One run's way from prompt to answer.

    `prompt` is the chat template's ids; `thinking_tokens` the budget asked for, 0 for no reasoning. Call `begin` once,
    then `read` with every delta and `finished` with every end of the completion that is open.
    """

    profile: ModelProfile
    phrases: Phrases
    prompt: tuple[int, ...]
    thinking_tokens: int
    sampling: Sampling
    answer_sampling: Sampling
    counts: _Counts = field(default_factory=_Counts)
    budget: int = field(init=False)
    _splitter: Splitter = field(init=False)
    _ids: list[int] = field(default_factory=list)
    _is_window_short: bool = field(init=False)
    _closes: NoteKind | None = None
    _patience: int = 0
    _textless: int = 0
    _is_answer_asked: bool = False
    _counted: int = 0
    _empty_completions: int = 0
    _has_answer: bool = False

    def __post_init__(self) -> None:
        reserve = min(self.profile.answer_reserve, self._room // 2)
        most = max(0, self._room - reserve - len(self.phrases.closing) - len(self.phrases.opening))
        self.budget = min(self.thinking_tokens, most)
        self._is_window_short = most < self.thinking_tokens
        self._splitter = splitter_for(self.profile.reasoning, is_reasoning=self.is_reasoning_wanted)

    @property
    def is_reasoning_wanted(self) -> bool:
        return self.budget > 0 and self.profile.reasoning.kind != "none"

    @property
    def is_thinking(self) -> bool:
        return not self._splitter.is_answering

    @property
    def _room(self) -> int:
        """Tokens of the context window that are still free."""
        return max(0, self.profile.context_window - len(self.prompt) - len(self._ids))

    def begin(self) -> Step:
        """The first completion; where the model is given its first words, those too."""
        how = self.profile.reasoning
        if not self.is_reasoning_wanted:
            self._ids += self.phrases.skipping
            return Step(completion=self._open(self.answer_sampling))
        self._ids += self.phrases.opening
        written = self._splitter.feed((-1,), (how.opening,)) if how.opening else []
        opened = f"Ponder began the reasoning with “{' '.join(how.opening.split())}”"
        notes = (self._note("opening", opened),) if how.opening else ()
        if how.kind == "two_phase":
            return self._step(written, notes, self._open(self.sampling, self.budget))
        return self._step(written, notes, self._open(self.sampling))

    def read(self, delta: Delta) -> Step:
        """The engine wrote; closes the reasoning where its time is up. Tokens behind the close are dropped."""
        written: list[Written] = []
        for token_id, text in zip(delta.token_ids, delta.texts, strict=True):
            if token_id in self.profile.stop_ids:
                continue
            was_thinking = self.is_thinking
            self._ids.append(token_id)
            written += self._splitter.feed((token_id,), (text,))
            if was_thinking:
                self.counts.reasoning += 1
                if self.is_thinking and self._is_time_to_close(text):
                    return self._close(written)
            else:
                self.counts.answer += 1
                if self.counts.answer == self.profile.longest_answer:
                    return self._cut_answer(written)
        return self._step(written)

    def finished(self, event: Finished) -> Step:
        """The open completion ended by itself: go on to the answer if there is none yet.

        Two in a row without a token end the run: an engine that gives nothing would be asked for ever.
        """
        self._empty_completions = 0 if self.counts.all > self._counted else self._empty_completions + 1
        self._counted = self.counts.all
        if self._empty_completions == _MOST_EMPTY:
            return Step(tuple(self._splitter.finish()), is_over=True, problem=_NOTHING_WRITTEN)
        if self.is_thinking and self.profile.reasoning.kind == "two_phase":
            self._closes = self._closes or ("budget" if event.reason == "length" else None)
            return self._close([])
        if self.is_thinking and self.profile.reasoning.kind in ("close_token", "tags"):
            self._closes = "context_end" if event.reason == "length" else "no_answer"
            return self._close([])
        if self.is_thinking and event.reason == "length":
            self._closes = "context_end"
            return self._close([])
        if event.reason == "length" and self._room > 0:
            return Step(completion=self._open(self.answer_sampling))
        return self._end(event)

    def answer_now(self, *, patience: int = 24) -> None:
        """Close the reasoning soon: at the next line end, or after `patience` tokens."""
        if self.is_thinking and self._closes is None:
            self._closes, self._patience = "answer_now", patience

    def stop(self) -> Step:
        """The person had enough; what was held back is given out."""
        return self._step(self._splitter.finish(), (self._note("stopped", "You stopped this answer."),), is_over=True)

    def break_off(self) -> Step:
        """The engine failed; what was held back is given out."""
        return self._step(self._splitter.finish(), is_over=True)

    def _is_time_to_close(self, text: str) -> bool:
        self._textless = 0 if text else self._textless + 1
        if self._closes is None and self.counts.reasoning >= self.budget:
            self._closes = "context_end" if self._is_window_short else "budget"
            # The window's end allows no waiting for the end of the line
            self._patience = 0 if self._is_window_short else max(8, self.budget // 10)
        if self._closes is None:
            return False
        self._patience -= 1
        # Special tokens have no text either, however many come
        is_character_whole = text != "" or self._textless >= _TOKENS_OF_A_CHARACTER
        return is_character_whole and ("\n" in text or self._patience < 0)

    def _close(self, written: list[Written]) -> Step:
        """End the reasoning with our closing words and have the answer written behind them."""
        notes = (self._note(self._closes, self._closing_sentence(self._closes)),) if self._closes else ()
        self._closes = None
        self._ids += self.phrases.closing
        written = written + self._splitter.close(self.profile.reasoning.closing)
        return self._step(written, notes, self._open(self.answer_sampling))

    def _cut_answer(self, written: list[Written]) -> Step:
        note = self._note("answer_cut", f"The answer was cut after {self.counts.answer:,} tokens, this model's limit.")
        return self._step(written + self._splitter.finish(), (note,), is_over=True)

    def _end(self, event: Finished) -> Step:
        written = self._splitter.finish()
        self._watch(written)
        if not self._has_answer and not self._is_answer_asked and self._room > len(self.phrases.heading):
            self._is_answer_asked = True
            self._splitter = WholeAnswer()
            self._ids += self.phrases.heading
            note = self._note("no_answer", "The model ended without an answer, so Ponder asked for one.")
            return self._step(written, (note,), self._open(self.answer_sampling))
        notes = []
        if self._splitter.is_unmarked and self.is_reasoning_wanted:
            unmarked = "The model did not mark where its reasoning ends, so all of it is shown as the answer."
            notes.append(self._note("unmarked", unmarked))
        if event.reason == "length":
            notes.append(self._note("answer_cut", "The answer was cut: the model's context window is full."))
        return self._step(written, tuple(notes), is_over=True)

    def _open(self, sampling: Sampling, max_new_tokens: int | None = None) -> Completion:
        room = max(1, self._room)
        return Completion((*self.prompt, *self._ids), sampling, min(room, max_new_tokens or room))

    def _step(
        self,
        written: list[Written],
        notes: tuple[Note, ...] = (),
        completion: Completion | None = None,
        *,
        is_over: bool = False,
    ) -> Step:
        self._watch(written)
        return Step(tuple(written), notes, completion, is_over)

    def _watch(self, written: Sequence[Written]) -> None:
        """Remember whether the answer has a visible character."""
        for one in written:
            if isinstance(one, Resplit):
                self._has_answer = any(piece.channel == "answer" and piece.text.strip() for piece in one.pieces)
            elif one.channel == "answer" and one.text.strip():
                self._has_answer = True

    def _note(self, kind: NoteKind, text: str) -> Note:
        return Note(kind, text, self.counts.all)

    def _closing_sentence(self, kind: NoteKind) -> str:
        after = f"after {self.counts.reasoning:,} tokens"
        words = self.profile.reasoning.closing_words
        ours = f" Ponder wrote “{words}”" if words else ""
        return {
            "budget": f"Reasoning reached its budget {after}.{ours}",
            "answer_now": f"You asked for the answer {after}.{ours}",
            "context_end": f"Reasoning reached the end of the context window {after}.{ours}",
        }.get(kind, f"The model stopped reasoning without an answer {after}.{ours}")


def with_choices(sampling: Sampling, **choices: float | int | None) -> Sampling:
    """`sampling` with what a person chose on top; None leaves a field as it is."""
    chosen: dict[str, Any] = {name: value for name, value in choices.items() if value is not None}
    return replace(sampling, **chosen)

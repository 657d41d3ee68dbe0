"""One run that is going on: reads what the engine writes, follows its course, fills its log and its transcript."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from app.engine.base import Delta, Engine, Finished, Message, ModelProfile, Request, Usage
from app.errors import EngineFailed, ModelUnavailable, PonderError
from app.history.states import FINAL_STATES, FinalState, RunState
from app.history.storable import storable
from app.history.store import Ending, Written
from app.reasoning.course import Course, Note, Step, encode_phrases, with_choices
from app.reasoning.window import FittedPrompt, fit
from app.render import RENDERER_VERSION
from app.runs.events import done_content, snapshot_content
from app.runs.log import RunLog
from app.runs.transcript import Transcript

Order = Literal["stop", "answer_now"]
_SORRY = "Something went wrong while answering. The text so far is kept; try again."
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """What a person chose for one run; None leaves the model's own advice."""

    effort: Literal["quick", "normal", "deep"] = "normal"
    thinking_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    system_prompt: str | None = None


@dataclass(slots=True)
class _Clock:
    """When things happened, in seconds of the monotonic clock."""

    started: float | None = None
    first_token: float | None = None
    answered: float | None = None
    ended: float | None = None

    def since_start(self, moment: float | None) -> float:
        """Seconds from the run's start to `moment`, or to now."""
        if self.started is None:
            return 0.0
        return round((moment if moment is not None else self.ended or time.monotonic()) - self.started, 2)


@dataclass(slots=True)
class LiveRun:
    """A run in memory. The service queues it and calls `answer` once; anyone may give it an order."""

    id: str
    owner_id: str
    conversation_id: str
    answer_id: str
    messages: Sequence[Message]
    options: Options
    fitted: FittedPrompt | None = None
    address: str = ""
    is_answer_wanted: bool = False
    state: RunState = "queued"
    place: int = -1
    stage: str = ""
    model: str = ""
    log: RunLog = field(default_factory=RunLog)
    transcript: Transcript = field(init=False)
    inbox: asyncio.Queue[Delta | Finished | Order | PonderError] = field(default_factory=asyncio.Queue)
    notes: list[dict[str, Any]] = field(default_factory=list)
    error: PonderError | None = None
    request_id: str = ""
    saved_event: int = 0
    _is_stopped: asyncio.Event = field(default_factory=asyncio.Event)
    _is_unread: bool = False
    _completions: int = 0
    _course: Course | None = None
    _cached_tokens: int = 0
    _clock: _Clock = field(default_factory=_Clock)

    def __post_init__(self) -> None:
        self.transcript = Transcript(self.log)

    # Going on

    async def answer(self, engine: Engine, profile: ModelProfile) -> None:
        """Write the answer; ends in one of the final states, whatever happens."""
        self._clock.started = time.monotonic()
        self.model = profile.name
        self.wait(0, "running", "")
        try:
            course = await self._planned(engine, profile)
            if course is None:
                self._end("stopped")
                return
            self._follow(course.begin(), engine)
            if self.is_answer_wanted:
                course.answer_now(patience=0)
            while self.state == "running":
                self._meet(await self.inbox.get(), course, engine)
        except asyncio.CancelledError:
            self._break_off("interrupted", engine)
            raise
        except PonderError as error:
            self.error = error
            self._break_off("failed", engine)
        except Exception:
            _log.exception("run %s failed", self.id)
            self.error = EngineFailed(_SORRY)
            self._break_off("failed", engine)

    def give(self, order: Order) -> None:
        """Have an order obeyed, also while the engine does not answer."""
        if order == "stop":
            self._is_stopped.set()
        self.inbox.put_nowait(order)

    def wait(self, place: int, state: RunState, stage: str) -> None:
        """Where the run stands; logged when it changed. One that is over stands nowhere any more."""
        if self.state not in FINAL_STATES and (place, state, stage) != (self.place, self.state, self.stage):
            self.place, self.state, self.stage = place, state, stage
            self.log.write("state", {"state": state, "place": place, "stage": stage})

    def fail(self, error: PonderError) -> None:
        """End it with what is written so far."""
        self.error = error
        self._end("failed")

    def end_unstarted(self, state: FinalState) -> None:
        """End a run that is still waiting, or was never begun."""
        self._end(state)

    def break_off_soon(self, error: PonderError) -> None:
        """End it with an error at the next turn of its task; nothing where it is over."""
        self.inbox.put_nowait(error)

    def lose_text(self) -> None:
        """Its text can be kept nowhere: what was saved before stays, and readers are told."""
        self.error = EngineFailed("What the model wrote could not be saved, so the answer ends here.")
        self.state = "failed"

    def show(self) -> None:
        """Show readers the open pieces and the figures as they are now."""
        if self.state != "running" or not self.log.has_readers:
            return
        try:
            self.transcript.show_tails()
            self.log.pass_on("progress", "progress", self.progress())
        except Exception:
            _log.exception("run %s could not be shown", self.id)
            self.break_off_soon(EngineFailed(_SORRY))

    # What it has come to

    def progress(self) -> dict[str, Any]:
        """The figures of the moment."""
        course = self._course
        return {
            "reasoning_tokens": course.counts.reasoning if course else 0,
            "answer_tokens": course.counts.answer if course else 0,
            "thinking_budget": course.budget if course else 0,
            "tokens_per_s": self._tokens_per_s(),
            "thinking_s": self._clock.since_start(self._clock.answered),
            "elapsed_s": self._clock.since_start(None),
            "thinking": course is None or course.is_thinking,
        }

    def snapshot(self) -> dict[str, Any]:
        """Everything that the events so far have built."""
        channels = self.transcript.channels
        return snapshot_content(
            state=self.state,
            place=self.place,
            stage=self.stage,
            notes=self.notes,
            progress=self.progress() if self.state == "running" else None,
            reasoning=channels["reasoning"].blocks,
            answer=channels["answer"].blocks,
        )

    def written(self) -> Written:
        """What goes into the database now."""
        counts = self._course.counts if self._course else None
        return Written(
            text=self.transcript.channels["answer"].text,
            reasoning=self.transcript.channels["reasoning"].text,
            notes=list(self.notes),
            usage={
                "prompt_tokens": len(self._course.prompt) if self._course else 0,
                "cached_tokens": self._cached_tokens,
                "reasoning_tokens": counts.reasoning if counts else 0,
                "answer_tokens": counts.answer if counts else 0,
            },
            timing={
                "thinking_s": self._clock.since_start(self._clock.answered),
                "first_token_s": self._clock.since_start(self._clock.first_token) if self._clock.first_token else 0.0,
                "total_s": self._clock.since_start(None),
                "tokens_per_s": self._tokens_per_s(),
            },
            last_event=self.log.last_seq,
        )

    def ending(self) -> Ending:
        """How it ended, for the database.

        Raises:
            RuntimeError: it has not ended.
        """
        if self.state not in FINAL_STATES:
            raise RuntimeError(f"run {self.id} is {self.state}")
        return Ending(
            state=self.state,
            html=self.transcript.channels["answer"].html,
            reasoning_html=self.transcript.channels["reasoning"].html,
            renderer_version=RENDERER_VERSION,
            error_code=self.error.code if self.error else "",
            error_message=storable(self.error.message) if self.error else "",
            is_unread=self._is_unread,
        )

    def say_done(self) -> None:
        """Tell readers that it is over, and let them go."""
        try:
            written, error = self.written(), self.error
            done = done_content(
                state=self.state,
                answer_id=self.answer_id,
                error=(error.code, storable(error.message)) if error else None,
                usage=written.usage,
                timing=written.timing,
                notes=written.notes,
            )
            self.log.write("done", done)
        finally:
            self.log.close()

    # Inside

    async def _planned(self, engine: Engine, profile: ModelProfile) -> Course | None:
        """The course, or None where the run is stopped before it has one: the engine may take its time."""
        planning = asyncio.create_task(self._plan(engine, profile))
        stopping = asyncio.create_task(self._is_stopped.wait())
        try:
            await asyncio.wait({planning, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return planning.result() if planning.done() else None
        finally:
            planning.cancel()
            stopping.cancel()

    async def _plan(self, engine: Engine, profile: ModelProfile) -> Course:
        system = self.options.system_prompt if self.options.system_prompt is not None else profile.system_prompt
        fitted = self.fitted or await fit(engine, profile, system, self.messages)
        thinking = self.options.thinking_tokens
        chosen = asdict(self.options)
        choices = {name: chosen[name] for name in ("temperature", "top_p", "top_k", "min_p", "seed")}
        self._course = Course(
            profile=profile,
            phrases=await encode_phrases(engine, profile.reasoning),
            prompt=fitted.ids,
            thinking_tokens=thinking if thinking is not None else profile.budgets.get(self.options.effort, 0),
            sampling=with_choices(profile.sampling, **choices),
            answer_sampling=with_choices(profile.answer_sampling, **choices),
        )
        if fitted.turns_left_out:
            turns = "turn was" if fitted.turns_left_out == 1 else f"{fitted.turns_left_out} turns were"
            self._note(Note("turns_left_out", f"The oldest {turns} left out: the context window is full.", 0))
        return self._course

    def _meet(self, event: Delta | Finished | Order | PonderError, course: Course, engine: Engine) -> None:
        if isinstance(event, PonderError):
            raise event
        if event == "stop":
            self._follow(course.stop(), engine, final="stopped")
        elif event == "answer_now":
            course.answer_now()
        elif isinstance(event, Delta | Finished) and event.request_id != self.request_id:
            return  # tokens that the engine wrote after it was told to stop
        elif isinstance(event, Delta):
            if self._clock.first_token is None:
                self._clock.first_token = time.monotonic()
            self._follow(course.read(event), engine)
        elif isinstance(event, Finished):
            self._finish_completion(event, course, engine)

    def _finish_completion(self, event: Finished, course: Course, engine: Engine) -> None:
        self._count(event.usage)
        if event.reason == "failed":
            self._follow(course.break_off(), engine, final=None)
            self.fail(EngineFailed(event.problem or "The model stopped in the middle. The text so far is kept."))
        elif event.reason == "cancelled":
            # Nobody here asked for it: the engine is closing
            self._follow(course.break_off(), engine, final="interrupted")
        else:
            self._follow(course.finished(event), engine)

    def _count(self, usage: Usage) -> None:
        self._cached_tokens = max(self._cached_tokens, usage.cached_tokens)

    def _follow(self, step: Step, engine: Engine, final: FinalState | None = "done") -> None:
        """Do what the course says."""
        self.transcript.write(step.written)
        if step.is_over:
            self.transcript.finish()  # so that notes come behind the last block
        if self._clock.answered is None and self._course is not None and not self._course.is_thinking:
            self._clock.answered = time.monotonic()
            self.transcript.close_reasoning()
        for note in step.notes:
            self._note(note)
        if step.completion is not None:
            engine.cancel(self.request_id)
            self._completions += 1
            self.request_id = f"{self.id}.{self._completions}"
            engine.add(
                Request(
                    id=self.request_id,
                    prompt=step.completion.prompt,
                    sampling=step.completion.sampling,
                    stop_ids=self._course.profile.stop_ids if self._course else (),
                    max_new_tokens=step.completion.max_new_tokens,
                )
            )
        if step.problem:
            raise EngineFailed(step.problem)
        if step.is_over and final is not None:
            self._cancel(engine)
            self._end(final)

    def _note(self, note: Note) -> None:
        self.notes.append(asdict(note))
        self.log.write("note", asdict(note))

    def _break_off(self, state: FinalState, engine: Engine) -> None:
        self._cancel(engine)
        if self.state in FINAL_STATES:
            return
        try:
            if self._course is not None:
                self.transcript.write(self._course.break_off().written)
        except Exception:
            _log.exception("what run %s held back is lost", self.id)
        self._end(state)

    def _cancel(self, engine: Engine) -> None:
        """Have the engine write no more, whatever it says to that."""
        try:
            engine.cancel(self.request_id)
        except Exception:
            _log.exception("run %s could not be cancelled", self.id)

    def _end(self, state: FinalState) -> None:
        """The state comes first: nothing that fails behind it leaves the run open."""
        if self.state in FINAL_STATES:
            return
        self._clock.ended = time.monotonic()
        self.state = state
        # Now: by the time that a database takes the end, whoever read it has gone
        self._is_unread = state != "stopped" and not self.log.has_readers
        try:
            self.transcript.finish()
        except Exception:
            _log.exception("the last piece of run %s could not be drawn", self.id)

    def _tokens_per_s(self) -> float:
        if self._course is None or self._clock.first_token is None:
            return 0.0
        seconds = (self._clock.ended or time.monotonic()) - self._clock.first_token
        return round(max(0, self._course.counts.all - 1) / seconds, 1) if seconds > 0.05 else 0.0


def run_of(request_id: str) -> str:
    """The id of the run that added this request to the engine."""
    return request_id.partition(".")[0]


def unavailable(problem: str, remedy: str) -> ModelUnavailable:
    """The model cannot answer; what is wrong and what to do about it."""
    return ModelUnavailable(" ".join(part for part in (problem, remedy) if part) or "The model is not available.")

"""Check a model on this machine: load it as the server does, ask one question, report what came of it.

For whoever has the card: it runs the real weights through the real engine process, course and splitter.
"""

import asyncio
import os
import sys
import time
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from app.config import read_settings
from app.engine.base import Delta, EngineStatus, Finished, Message, ModelProfile, Request
from app.engine.process import EngineProcess
from app.errors import PonderError
from app.reasoning.course import Course, Step, encode_phrases
from app.reasoning.splitter import Resplit
from app.reasoning.window import fit


@dataclass
class Report:
    """What one question came to."""

    load_s: float = 0.0
    first_token_s: float = 0.0
    write_s: float = 0.0
    texts: dict[str, str] = field(default_factory=lambda: {"reasoning": "", "answer": "", "marker": ""})
    notes: list[str] = field(default_factory=list)
    memory: str = ""
    course: Course | None = None
    completions: int = 0

    @property
    def request_id(self) -> str:
        return f"check.{self.completions}"

    def take(self, step: Step) -> None:
        """Add what was written."""
        for one in step.written:
            if isinstance(one, Resplit):
                self.texts = dict.fromkeys(self.texts, "")
            for piece in one.pieces if isinstance(one, Resplit) else (one,):
                self.texts[piece.channel] += piece.text
        self.notes += [note.text for note in step.notes]


def run_check(model: str | None, question: str, thinking_tokens: int | None) -> int:
    """Load, ask, print the report; 0 if there is an answer."""
    try:
        return asyncio.run(_check(model, question, thinking_tokens))
    except PonderError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2


async def _check(model: str | None, question: str, thinking_tokens: int | None) -> int:
    engine = EngineProcess(read_settings(model=model))
    report = Report()
    started = time.monotonic()
    await engine.start()
    try:
        async for batch in engine.events():
            for event in batch:
                if isinstance(event, EngineStatus):
                    if event.state == "failed":
                        print(f"The model cannot be used. {event.problem} {event.remedy}")
                        return 1
                    if event.state == "ready" and report.course is None:
                        report.load_s = time.monotonic() - started
                        await _ask(engine, report, question, thinking_tokens)
                elif await _goes_on(engine, report, event):
                    continue
                else:
                    report.memory = _memory(engine.pid)
                    return _print(report, engine.profile)
    finally:
        await engine.close()
    return 1


async def _ask(engine: EngineProcess, report: Report, question: str, thinking_tokens: int | None) -> None:
    profile = engine.profile
    assert profile is not None
    fitted = await fit(engine, profile, profile.system_prompt, [Message("user", question)])
    thinking = profile.budgets["normal"] if thinking_tokens is None else thinking_tokens
    phrases = await encode_phrases(engine, profile.reasoning)
    course = Course(profile, phrases, fitted.ids, thinking, profile.sampling, profile.answer_sampling)
    report.course = course
    report.write_s = -time.monotonic()
    _open(engine, report, course.begin())


async def _goes_on(engine: EngineProcess, report: Report, event: Delta | Finished) -> bool:
    course = report.course
    if course is None or event.request_id != report.request_id:
        return True
    if isinstance(event, Delta):
        report.first_token_s = report.first_token_s or report.write_s + time.monotonic()
        step = course.read(event)
    elif event.reason == "failed":
        report.notes.append(event.problem)
        return False
    else:
        step = course.finished(event)
    _open(engine, report, step)
    if step.is_over:
        report.write_s += time.monotonic()
    return not step.is_over


def _open(engine: EngineProcess, report: Report, step: Step) -> None:
    report.take(step)
    if step.completion is not None and report.course is not None:
        engine.cancel(report.request_id)
        report.completions += 1
        ids, sampling, most = step.completion.prompt, step.completion.sampling, step.completion.max_new_tokens
        engine.add(Request(report.request_id, ids, sampling, report.course.profile.stop_ids, most))


def _memory(pid: int | None) -> str:
    if pid is None:
        return "unknown"
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    ram = f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB of RAM"
    from app.engine.model.loading import used_gpu_gib

    used, total = used_gpu_gib()
    return f"{ram}, {used:.1f} of {total:.1f} GiB on the GPU in use" if total else ram


def _scripts(text: str) -> str:
    """Which writing systems the letters are of, in percent."""
    names = Counter(unicodedata.name(letter, "?").split()[0] for letter in text if letter.isalpha())
    letters = sum(names.values())
    return ", ".join(f"{name.lower()} {100 * n / letters:.0f} %" for name, n in names.most_common(3)) or "none"


def _print(report: Report, profile: ModelProfile | None) -> int:
    course = report.course
    assert course is not None
    assert profile is not None
    tokens, seconds = course.counts.all, report.write_s - report.first_token_s
    has_answer = bool(report.texts["answer"].strip())
    print(f"\n--- reasoning ---\n{report.texts['reasoning']}\n--- answer ---\n{report.texts['answer']}\n---")
    for name, figure in (
        ("model", f"{profile.title} ({profile.reasoning.kind}, window {profile.context_window:,})"),
        ("split", f"{course.counts.reasoning:,} reasoning + {course.counts.answer:,} answer tokens"),
        ("letters", _scripts(report.texts["reasoning"] + report.texts["answer"])),
        ("loaded in", f"{report.load_s:.1f} s"),
        ("first token", f"{report.first_token_s:.2f} s"),
        ("speed", f"{tokens / seconds:.1f} tokens/s" if seconds > 0 else "too short to tell"),
        ("memory", report.memory),
        ("notes", "; ".join(note for note in report.notes) or "none"),
        ("verdict", "there is an answer" if has_answer else "there is NO answer"),
    ):
        print(f"{name:>12}: {figure}")
    return 0 if has_answer else 1

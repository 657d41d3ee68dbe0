"""The events that stand for a whole run: its snapshot and its end, whether it is live or stored."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.history.states import RunState
from app.history.store import Run, StoredMessage
from app.runs.log import Event
from app.runs.shown import answer_html, reasoning_html


def done_content(
    *,
    state: RunState,
    answer_id: str,
    error: tuple[str, str] | None,
    usage: Mapping[str, Any],
    timing: Mapping[str, Any],
    notes: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What readers are told at a run's end; `error` is a code and a message."""
    return {
        "state": state,
        "answer_id": answer_id,
        "error": {"code": error[0], "message": error[1]} if error else None,
        "usage": usage,
        "timing": timing,
        "notes": notes,
    }


def snapshot_content(
    *,
    state: RunState,
    place: int,
    stage: str,
    notes: Sequence[Mapping[str, Any]],
    progress: Mapping[str, Any] | None,
    reasoning: Sequence[str],
    answer: Sequence[str],
) -> dict[str, Any]:
    """What all events of a run so far have built; `reasoning` and `answer` are blocks of HTML."""
    return {
        "state": state,
        "place": place,
        "stage": stage,
        "notes": notes,
        "progress": progress,
        "reasoning": {"blocks": list(reasoning)},
        "answer": {"blocks": list(answer)},
    }


def stored_replay(run: Run, message: StoredMessage | None) -> list[Event]:
    """The events of a run that is over, from the database; without `message` only its end."""
    error = (run.error_code, run.error_message) if run.error_code else None
    done = done_content(
        state=run.state, answer_id=run.answer_id, error=error, usage=run.usage, timing=run.timing, notes=run.notes
    )
    ending = [Event("done", done, run.last_event + 1)]
    if message is None:
        return ending
    snapshot = snapshot_content(
        state=run.state,
        place=0,
        stage="",
        notes=run.notes,
        progress=None,
        reasoning=[reasoning_html(message)],
        answer=[answer_html(message)],
    )
    return [Event("snapshot", snapshot, run.last_event), *ending]

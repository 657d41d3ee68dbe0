"""Runs: their state, their orders, their event stream."""

import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from app.errors import NotFound, StorageFailed
from app.history.store import Run
from app.routes.access import Person, Serving, SomeCaller
from app.runs.live import Order
from app.runs.log import Event

router = APIRouter(prefix="/api/runs")
_RETRY_MS = 1000
_CHECK_EVERY_S = 4.0


@router.get("/{run_id}")
async def get_run(run_id: str, person_id: Person, serving: Serving) -> dict[str, Any]:
    """A run's state and counts."""
    run, place = serving.runs.run(person_id, run_id)
    return run_json(run, place)


@router.post("/{run_id}/stop", status_code=202)
async def stop(run_id: str, person_id: Person, serving: Serving) -> dict[str, Any]:
    """End it; what was written is kept."""
    return await _order(run_id, person_id, serving, "stop")


@router.post("/{run_id}/answer-now", status_code=202)
async def answer_now(run_id: str, person_id: Person, serving: Serving) -> dict[str, Any]:
    """Close the reasoning and have the answer written from it."""
    return await _order(run_id, person_id, serving, "answer_now")


@router.get("/{run_id}/events")
async def events(
    run_id: str,
    caller: SomeCaller,
    serving: Serving,
    last_event_id: Annotated[str | None, Header()] = None,
    after: Annotated[int, Query(ge=0)] = 0,
) -> StreamingResponse:
    """The run as server-sent events, behind `Last-Event-ID` or `after`."""
    serving.runs.run(caller.person_id, run_id)
    if last_event_id is not None and re.fullmatch("[0-9]{1,18}", last_event_id):
        after = int(last_event_id)
    batches = serving.runs.follow(caller.person_id, run_id, after)
    return StreamingResponse(
        _stream(batches, lambda: serving.sessions.is_open(caller.session_id)),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"},
    )


def run_json(run: Run, place: int = 0) -> dict[str, Any]:
    """A run as the API shows it."""
    return {
        "id": run.id,
        "state": run.state,
        "place": place,
        "error": {"code": run.error_code, "message": run.error_message} if run.error_code else None,
        "model": run.model,
        "effort": run.effort,
        "notes": run.notes,
        "usage": run.usage,
        "timing": run.timing,
    }


async def _order(run_id: str, person_id: str, serving: Serving, order: Order) -> dict[str, Any]:
    await serving.runs.order(person_id, run_id, order)
    try:
        run, place = serving.runs.run(person_id, run_id)
    except (StorageFailed, NotFound):
        # The order was taken all the same: the run is known in memory, where its chat was just deleted too
        state = serving.runs.live_state(run_id)
        if state is None:
            raise
        return {"id": run_id, "state": state, "place": 0}
    return run_json(run, place)


async def _stream(batches: AsyncIterator[list[Event]], is_allowed: Callable[[], bool]) -> AsyncIterator[bytes]:
    """The events, until the run or the session is over; the stream would outlive the check its request began with."""
    yield b"retry: %d\n\n" % _RETRY_MS
    checked = time.monotonic()
    async for batch in batches:
        if time.monotonic() - checked > _CHECK_EVERY_S:
            checked = time.monotonic()
            if not is_allowed():
                return
        yield b"".join(map(_sse, batch)) if batch else b": still here\n\n"


def _sse(event: Event) -> bytes:
    seq = b"id: %d\n" % event.seq if event.seq is not None else b""
    return b"%sevent: %s\ndata: %s\n\n" % (seq, event.name.encode(), orjson.dumps(event.content))

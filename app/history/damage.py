"""Rows in which something is not what Ponder writes: a disk did it, or a hand in the database.

The columns give markers in place of what cannot be read, so that one bad row keeps nobody from the others; whoever
makes something of a row looks for them. The log names each row once, and never what is in it.
"""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import orjson

from app.history.states import FINAL_STATES, OPEN_STATES

DAMAGED_MOMENT = datetime(1970, 1, 1, tzinfo=UTC)
_EFFORT = re.compile(r"[a-z]{0,16}")
_CODE = re.compile(r"[a-z_]{0,64}")
_NOTE = {
    "kind": "damaged",
    "text": "Some of what was kept about this answer is damaged in the server's database and is not shown.",
    "at_token": 0,
}
_log = logging.getLogger(__name__)


class DamagedObject(dict[str, Any]):
    """Stands for a JSON object that cannot be read."""


class DamagedList(list[Any]):
    """Stands for a JSON list that cannot be read."""


class RunRow(Protocol):
    """What is looked at of a run."""

    id: str
    state: str
    effort: str
    options: dict[str, Any]
    notes: list[dict[str, Any]]
    usage: dict[str, Any]
    timing: dict[str, Any]
    error_code: str
    last_event: int


class Placed(Protocol):
    """What hangs in a conversation's tree; a frozen dataclass."""

    @property
    def id(self) -> str: ...
    @property
    def parent_id(self) -> str | None: ...
    @property
    def role(self) -> str: ...


_AnyPlaced = TypeVar("_AnyPlaced", bound=Placed)


def loads(stored: str | bytes) -> Any:
    """JSON out of a column; None if it is none, or has half of a pair of surrogates, or a number that is none."""
    try:
        return orjson.loads(stored)
    except ValueError:
        return None


@lru_cache(maxsize=10_000)
def report(table: str, row_id: str) -> None:
    """Have the log name a row, the first time that it is met."""
    _log.error("the row %s of %s is damaged: what can be read of it is shown", row_id, table)


def known_role(role: str, *, is_answer: bool) -> str:
    """The role of a message, or where it has none that there is, the one that the rest of its row speaks for."""
    return role if role in ("user", "assistant") else "assistant" if is_answer else "user"


def readable_run(row: RunRow) -> dict[str, Any]:
    """The fields of a run that can be shown; a note says so where some cannot."""
    found: dict[str, Any] = {
        "state": row.state if row.state in (*OPEN_STATES, *FINAL_STATES) else "interrupted",
        "effort": row.effort if _EFFORT.fullmatch(row.effort) else "",
        "error_code": row.error_code if _CODE.fullmatch(row.error_code) else "failed",
        "options": row.options,
        "notes": [note for note in row.notes if _is_note(note)],
        "usage": figures(row.usage),
        "timing": figures(row.timing),
        "last_event": row.last_event if isinstance(row.last_event, int) else 0,
    }
    stored = (row.options, row.notes, row.usage, row.timing)
    is_marked = any(isinstance(value, DamagedObject | DamagedList) for value in stored)
    if not is_marked and all(value == getattr(row, name) for name, value in found.items()):
        return found
    report("runs", row.id)
    return found | {"notes": [*found["notes"], _NOTE]}


def figures(stored: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that are numbers."""
    return {name: value for name, value in stored.items() if _is_figure(value)}


def with_parents_before(messages: Sequence[_AnyPlaced]) -> list[_AnyPlaced]:
    """The messages as a tree, each behind its parent, whatever went in.

    One whose parent is missing, comes later or is itself hangs on the last of the other role before it.
    """
    known: set[str] = set()
    newest: dict[str, str] = {}
    found: list[_AnyPlaced] = []
    for message in messages:
        if message.parent_id is not None and message.parent_id not in known:
            report("messages", message.id)
            other = "user" if message.role == "assistant" else "assistant"
            message = replace(message, parent_id=newest.get(other))  # type: ignore[type-var]
        known.add(message.id)
        newest[message.role] = message.id
        found.append(message)
    return found


def _is_note(note: Any) -> bool:
    return (
        isinstance(note, dict)
        and isinstance(note.get("kind"), str)
        and isinstance(note.get("text"), str)
        and isinstance(note.get("at_token"), int)
    )


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0

"""A foreign tree of turns made one of ours: questions and answers in turn, every question with an answer.

What is neither is left out, and what hung on it hangs on what is above. Turns of one role in a row become one message
(an answer that came in pieces; a question that was asked again before an answer came). A question without an answer
gets an empty one that was interrupted, so that it can be asked again. An answer at a root gets the question "…".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from app.errors import BadImport
from app.history.portable.shape import (
    MOST_MESSAGES,
    MOST_TEXT_BYTES,
    TITLE_CHARS,
    FileConversation,
    FileMessage,
    FileRun,
    LeftOut,
)
from app.history.tree import title_from

_NO_QUESTION = "…"
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_THOUGHT_S = 7 * 24 * 3600.0
_MOST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Turn:
    """A node of a foreign tree. `left_out` names why it is not taken over; "" takes it, if it has any text."""

    key: str
    parent: str | None
    role: str
    text: str = ""
    reasoning: str = ""
    created_at: datetime | None = None
    model: str = ""
    thinking_s: float = 0.0
    left_out: str = ""


def joined(
    where: str,
    turns: Sequence[Turn],
    *,
    leaf: str | None,
    title: str,
    created_at: datetime | None,
    updated_at: datetime | None,
    is_pinned: bool,
    is_archived: bool,
    left_out: LeftOut,
) -> FileConversation:
    """A conversation of ours out of a foreign one's turns, siblings in their order; counts what is left out.

    Raises:
        BadImport: the tree is none, or too large.
    """
    if len(turns) > MOST_MESSAGES:
        raise BadImport(f"{where} has more than {MOST_MESSAGES:,} messages.")
    tree = _Tree(where, turns, left_out)
    times = [turn.created_at for turn in turns if turn.created_at]
    created_at = created_at or min(times, default=None) or updated_at or datetime.now(UTC)
    updated_at = max(created_at, updated_at or max(times, default=created_at))
    messages = tree.messages(created_at)
    title = " ".join(clean(title).split())
    if not title:
        title = next((title_from(message.text) for message in messages if message.role == "user"), "")
    return FileConversation(
        title=title if len(title) <= TITLE_CHARS else title[: TITLE_CHARS - 1] + "…",
        created_at=created_at,
        updated_at=updated_at,
        leaf=tree.leaf(leaf),
        messages=messages,
        is_pinned=is_pinned,
        is_archived=is_archived,
    )


# Turns of one role in a row, the last one first
_Chain = tuple[Turn, "_Chain | None"]


class _Tree:
    def __init__(self, where: str, turns: Sequence[Turn], left_out: LeftOut) -> None:
        self._where = where
        self._found: list[FileMessage] = []
        self._place: dict[str, int] = {}
        self._cost = self._bytes = 0
        self._above, self._children = _kept(where, turns, left_out)

    def messages(self, moment: datetime) -> list[FileMessage]:
        """All messages, parents first; `moment` stands for times that are not known.

        Raises:
            BadImport: more of them, or more text, than is taken.
        """
        stack: list[tuple[Turn, int | None, _Chain | None]] = []
        for root in reversed(self._children.get(None, [])):
            stack.append((root, None, None))
        while stack:
            turn, parent, before = stack.pop()
            if parent is None and turn.role == "assistant":
                parent = self._add(FileMessage("user", None, _NO_QUESTION, turn.created_at or moment))
            chain: _Chain = (turn, before)
            same = [child for child in self._children.get(turn.key, []) if child.role == turn.role]
            other = [child for child in self._children.get(turn.key, []) if child.role != turn.role]
            at = self._add_joined(chain, parent, moment) if other or not same else None
            if at is not None and turn.role == "user" and not other:
                asked_at = self._found[at].created_at
                self._add(FileMessage("assistant", at, "", asked_at, run=FileRun(state="interrupted")))
            stack += [(child, at, None) for child in reversed(other)]
            stack += [(child, parent, chain) for child in reversed(same)]
        return self._found

    def leaf(self, key: str | None) -> int | None:
        """The end of the branch through the turn `key`, or the newest of all."""
        while key is not None and key not in self._place:
            key = self._above.get(key)
        newest_child = {message.parent: place for place, message in enumerate(self._found)}
        at = self._place[key] if key is not None else newest_child.get(None)
        while at in newest_child:
            at = newest_child[at]
        return at

    def _add_joined(self, chain: _Chain, parent: int | None, moment: datetime) -> int:
        turns: list[Turn] = []
        link: _Chain | None = chain
        while link is not None:
            turns.append(link[0])
            link = link[1]
        turns.reverse()
        self._cost += len(turns)
        for turn in turns:
            self._place.setdefault(turn.key, len(self._found))
        role, created_at = turns[0].role, next((turn.created_at for turn in turns if turn.created_at), moment)
        text, reasoning = (_together(getattr(turn, name) for turn in turns) for name in ("text", "reasoning"))
        if role == "user":
            return self._add(FileMessage(role, parent, text, created_at))
        thinking_s = min(sum(turn.thinking_s for turn in turns), _LONGEST_THOUGHT_S)
        run = FileRun(
            model=next((turn.model for turn in reversed(turns) if turn.model), "")[:200],
            timing={"thinking_s": thinking_s} if thinking_s else {},
        )
        return self._add(FileMessage(role, parent, text, created_at, reasoning=reasoning, run=run))

    def _add(self, message: FileMessage) -> int:
        sizes = [len(text.encode()) for text in (message.text, message.reasoning)]
        self._bytes += sum(sizes)
        if len(self._found) >= MOST_MESSAGES:
            raise BadImport(f"{self._where} has more than {MOST_MESSAGES:,} messages.")
        if max(sizes) > MOST_TEXT_BYTES or self._bytes > _MOST_BYTES or self._cost > 4 * MOST_MESSAGES:
            raise BadImport(f"{self._where} has messages that are too long to be joined.")
        self._found.append(message)
        return len(self._found) - 1


def _kept(
    where: str, turns: Sequence[Turn], left_out: LeftOut
) -> tuple[dict[str, str | None], dict[str | None, list[Turn]]]:
    """For every turn its nearest one above that is taken over, and the tree of those alone.

    Raises:
        BadImport: turns hang on each other in a circle, or two have one id.
    """
    by_key = {turn.key: turn for turn in turns}
    if len(by_key) < len(turns):
        raise BadImport(f"{where} has two messages with the same id.")
    children: dict[str | None, list[Turn]] = {}
    for turn in turns:
        children.setdefault(turn.parent if turn.parent in by_key else None, []).append(turn)
    above: dict[str, str | None] = {}
    kept: dict[str | None, list[Turn]] = {}
    stack: list[tuple[Turn, str | None]] = [(turn, None) for turn in reversed(children.get(None, []))]
    while stack:
        turn, nearest = stack.pop()
        above[turn.key] = nearest
        if turn.left_out:
            left_out.add(turn.left_out)
        elif turn.text or turn.reasoning or turn.thinking_s:
            kept.setdefault(nearest, []).append(turn)
            nearest = turn.key
        stack += [(child, nearest) for child in reversed(children.get(turn.key, []))]
    if len(above) < len(turns):
        raise BadImport(f"{where}: its messages hang on each other in a circle.")
    return above, kept


def _together(texts: Iterable[str]) -> str:
    return "\n\n".join(text for text in texts if text)


# What foreign files say


def clean(said: Any) -> str:
    """A text; what is no text in it is marked as such, and what is none at all is empty."""
    return said.replace("\x00", "\N{REPLACEMENT CHARACTER}") if isinstance(said, str) else ""


def time_of(said: Any) -> datetime | None:
    """A time in seconds (or milli-, micro-, nanoseconds) of the epoch, or in ISO 8601; None for what makes no sense."""
    try:
        if isinstance(said, str):
            found = datetime.fromisoformat(said)
            found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
        elif isinstance(said, int | float) and not isinstance(said, bool) and 0 < said < 1e20:
            seconds = float(said)
            while seconds > 1e11:
                seconds /= 1000
            found = datetime.fromtimestamp(seconds, UTC)
        else:
            return None
    except (ValueError, OverflowError, OSError):
        return None
    return found if _EARLIEST <= found <= datetime.now(UTC) + timedelta(days=1) else None


def seconds_of(said: Any) -> float:
    """A duration in seconds; 0.0 for what makes no sense."""
    if isinstance(said, str) and said.isascii() and said.isdigit() and len(said) < 9:
        said = int(said)
    if isinstance(said, int | float) and not isinstance(said, bool) and 0 <= said <= _LONGEST_THOUGHT_S:
        return float(said)
    return 0.0

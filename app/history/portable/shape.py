"""What a conversation is in a file: its messages are numbered by their place, parents first."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from app.history.states import FinalState

MOST_MESSAGES = 10_000
MOST_TEXT_BYTES = 4 * 1024 * 1024
TITLE_CHARS = 200


@dataclass(frozen=True, slots=True)
class FileRun:
    """How an answer came about; never one that goes on."""

    state: FinalState = "done"
    model: str = ""
    effort: str = ""
    notes: list[dict[str, Any]] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, Any] = field(default_factory=dict)
    error_code: str = ""
    error_message: str = ""


@dataclass(frozen=True, slots=True)
class FileMessage:
    """A question (`user`) or an answer (`assistant`); `parent` is an index into the conversation's messages."""

    role: str
    parent: int | None
    text: str
    created_at: datetime
    reasoning: str = ""
    run: FileRun | None = None


@dataclass(frozen=True, slots=True)
class FileConversation:
    """A conversation without anything of a database; `leaf` is the index of the end of the shown branch.

    `is_in_order` says that the file's own order counts, and not the times.
    """

    title: str
    created_at: datetime
    updated_at: datetime
    leaf: int | None
    messages: list[FileMessage]
    is_pinned: bool = False
    is_archived: bool = False
    is_in_order: bool = False


@dataclass(slots=True)
class LeftOut:
    """What foreign files have and we do not take over, by kind."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, number: int = 1) -> None:
        """Count something that was left out."""
        self.counts[kind] = self.counts.get(kind, 0) + number

"""What crosses the socket between the app and the engine process: one JSON object a line.

Knows the frames and how they are written; opens no sockets and keeps no state.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from app.engine.base import Delta, EngineStatus, Finished, Message, ModelProfile, Request

# How the engine process ends by itself, for its parent to tell
EXIT_GPU_LOST = 70
EXIT_HUNG = 71
EXIT_BROKEN = 72
# A prompt of 256 KiB of text, escaped, with its history
MOST_LINE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Prompt:
    """App: the ids of these messages, please."""

    call: int
    messages: tuple[Message, ...]
    kind: Literal["prompt"] = "prompt"


@dataclass(frozen=True, slots=True)
class Encode:
    """App: the ids of these words of ours, please."""

    call: int
    text: str
    kind: Literal["encode"] = "encode"


@dataclass(frozen=True, slots=True)
class Ids:
    """Engine: the ids a call asked for; or why not, in `problem`."""

    call: int
    ids: tuple[int, ...] = ()
    problem: str = ""
    kind: Literal["ids"] = "ids"


@dataclass(frozen=True, slots=True)
class Add:
    """App: write this."""

    request: Request
    kind: Literal["add"] = "add"


@dataclass(frozen=True, slots=True)
class Cancel:
    """App: stop writing this."""

    request_id: str
    kind: Literal["cancel"] = "cancel"


@dataclass(frozen=True, slots=True)
class Status:
    """Engine: what it is doing, and the model's profile once that is known."""

    status: EngineStatus
    profile: ModelProfile | None = None
    kind: Literal["status"] = "status"


@dataclass(frozen=True, slots=True)
class Written:
    """Engine: what was written since the last frame; also sent empty, as a sign of life."""

    deltas: tuple[Delta, ...] = ()
    finished: tuple[Finished, ...] = ()
    kind: Literal["written"] = field(default="written")


Frame = Annotated[
    Prompt | Encode | Ids | Add | Cancel | Status | Written,
    Field(discriminator="kind"),
]
_frames: TypeAdapter[Frame] = TypeAdapter(Frame)


def to_line(frame: Frame) -> bytes:
    """One frame as a line."""
    return _frames.dump_json(frame) + b"\n"


def from_line(line: bytes) -> Frame:
    """The frame of one line; raises pydantic's ValidationError for anything else."""
    return _frames.validate_json(line)

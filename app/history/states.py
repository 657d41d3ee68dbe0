"""The states of a run, in one place."""

from typing import Final, Literal, get_args

OpenState = Literal["queued", "running"]
FinalState = Literal["done", "stopped", "failed", "interrupted"]
RunState = OpenState | FinalState

OPEN_STATES: Final[tuple[OpenState, ...]] = get_args(OpenState)
FINAL_STATES: Final[tuple[FinalState, ...]] = get_args(FinalState)


def is_open(state: str) -> bool:
    """Whether more will come of a run in this state."""
    return state in OPEN_STATES

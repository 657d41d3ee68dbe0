"""The states of a run, in one place."""

from typing import Final, Literal, get_args

OpenState = Literal["queued", "running"]
FinalState = Literal["done", "stopped", "failed", "interrupted"]
RunState = OpenState | FinalState

OPEN_STATES: Final[tuple[OpenState, ...]] = get_args(OpenState)
FINAL_STATES: Final[tuple[FinalState, ...]] = get_args(FinalState)


def open_sql(table: str = "") -> str:
    """That a run is open, in SQL; the partial indexes of open runs say it in the same words, or they are not used."""
    column = f"{table}.state" if table else "state"
    return f"{column} IN ({', '.join(map(repr, OPEN_STATES))})"

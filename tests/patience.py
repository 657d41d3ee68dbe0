"""How the tests wait: for what is to come, and so long that a busy machine only makes them slower."""

import time
from collections.abc import Callable

# No test should come near it: it ends one that waits for what never comes
PATIENCE_S = 120.0


def until(is_so: Callable[[], object]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)

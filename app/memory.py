"""Memory that a flood took goes back to the system: glibc keeps what was freed, in as many places as it saw threads."""

import asyncio
import ctypes

_EVERY_S = 30.0
# From malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE_BYTES = 256 * 1024
_ARENAS = 2


def keep_small() -> bool:
    """Have large pieces mapped one by one, so that each goes back when it is freed; False where this is not glibc.

    Left to itself glibc raises that size with what it sees, up to 32 MiB: after the first large body all that follow
    lie among small things, and stay.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    given = ((_M_MMAP_THRESHOLD, _LARGE_BYTES), (_M_TRIM_THRESHOLD, _LARGE_BYTES), (_M_ARENA_MAX, _ARENAS))
    done = [mallopt(name, value) for name, value in given]
    return all(done)


async def give_back() -> None:
    """Every half minute give the system whole pages that are free between others; for as long as the server lives."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    while True:
        await asyncio.sleep(_EVERY_S)
        await asyncio.to_thread(trim, 0)

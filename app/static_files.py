"""Where the page's own scripts, styles and pictures lie, and the addresses under which a browser may keep them."""

import functools
import hashlib
from pathlib import Path

STATIC = Path(__file__).parents[1] / "static"
PREFIX = "/ponder"


@functools.cache
def digest() -> str:
    """Of all the files, as they were when it was first asked for."""
    found = hashlib.sha256()
    for path in sorted(STATIC.rglob("*")):
        if path.is_file():
            found.update(path.relative_to(STATIC).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:12]


def address(name: str) -> str:
    """Where the page finds a file: with the digest before it, which the modules that it imports inherit."""
    return f"{PREFIX}/{digest()}/{name}"

"""Where the page's own scripts, styles and pictures lie, and the addresses under which a browser may keep them."""

import functools
import hashlib
import posixpath
import re
from pathlib import Path

STATIC = Path(__file__).parents[1] / "static"
PREFIX = "/ponder"
_IMPORT = re.compile(r"""^\s*(?:import|export)\b[^;"']*?["'](\.{1,2}/[^"']+)["']""", re.MULTILINE)


@functools.cache
def digest() -> str:
    """Of all the files, as they were when it was first asked for."""
    found = hashlib.sha256()
    for path in sorted(STATIC.rglob("*")):
        if path.is_file():
            found.update(path.relative_to(STATIC).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:12]


@functools.cache
def modules_of(name: str) -> tuple[str, ...]:
    """The modules that a script imports, and those that they do, in the order in which they are met."""
    found: dict[str, None] = {}
    waiting = [name]
    while waiting:
        at = waiting.pop(0)
        for path in _IMPORT.findall((STATIC / at).read_text()):
            imported = posixpath.normpath(posixpath.join(posixpath.dirname(at), path))
            if imported not in found:
                found[imported] = None
                waiting.append(imported)
    return tuple(found)


def address(name: str) -> str:
    """Where the page finds a file: with the digest before it, which the modules that it imports inherit."""
    return f"{PREFIX}/{digest()}/{name}"

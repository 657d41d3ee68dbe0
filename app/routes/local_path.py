"""Where to go after signing in: a place on our own page, whatever was asked for."""

import re

_OWN_PLACE = re.compile(r"/(?:#/(?:c/[0-9a-f]{32}|settings|admin)?)?", re.ASCII)


def local_path(asked: str) -> str:
    """`asked` if it is one of the page's own addresses, else the page."""
    return asked if _OWN_PLACE.fullmatch(asked) else "/"

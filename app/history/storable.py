"""Text as every database takes it: PostgreSQL refuses a NUL, and no UTF-8 holds half of a surrogate pair."""

import re

_REFUSED = re.compile("[\x00\ud800-\udfff]")


def storable(text: str) -> str:
    """`text` with a replacement character for each one that cannot be stored."""
    return _REFUSED.sub("\N{REPLACEMENT CHARACTER}", text)

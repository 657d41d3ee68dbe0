"""Trees of folders that models draw with bars and dashes, without a fence around them."""

import re

_BRANCH = re.compile(
    r"[ \t]*(?:[|\u2502][ \t]*)*(?:[|\u2502+`][-\u2500]{2,}|[\u251c\u2514\u2570][-\u2500]{1,3})[ \t]*[^\s|:\-]"
)
_BARS = re.compile(r"[ \t]*[|\u2502][ \t|\u2502]*$")
_ROOT = re.compile(r"[^\s|]\S*/?$|\S+ ?/$")
_FEWEST = 2


def split_tree(text: str) -> tuple[str, str, str]:
    """The text before the first tree, the tree, and the text behind it; all is before where there is none."""
    if not any(mark in text for mark in ("|--", "|\u2500", "+--", "`--", "\u251c", "\u2514", "\u2570", "\u2502--")):
        return text, "", ""
    lines = text.split("\n")
    start = next((i for i, line in enumerate(lines) if _BRANCH.match(line)), len(lines))
    end = start
    while end < len(lines) and (_BRANCH.match(lines[end]) or _BARS.match(lines[end])):
        end += 1
    if sum(bool(_BRANCH.match(line)) for line in lines[start:end]) < _FEWEST:
        return text, "", ""
    if start and _ROOT.match(lines[start - 1].strip()):
        start -= 1
    return "\n".join(lines[:start]), "\n".join(lines[start:end]) + "\n", "\n".join(lines[end:])

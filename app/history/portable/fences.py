"""Fences around text in Markdown that the text cannot close."""

import re


def fenced(text: str, language: str = "") -> str:
    """A code block that holds `text` exactly, whatever stands in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def closed(text: str) -> str:
    """Markdown whose last code block is closed, as one that broke off may not be."""
    opened = ""
    for line in text.split("\n"):
        found = re.match(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})", line)
        if found is None:
            continue
        if not opened:
            opened = found[1]
        elif found[1].startswith(opened) and not line.strip().strip(opened[0]):
            opened = ""
    return f"{text}\n{opened}" if opened else text

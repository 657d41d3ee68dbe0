r"""A sentence in a box (`\boxed{\text{The farmer takes the goat first.}}`) as text that can wrap; MathML cannot.

Models put whole sentences into the box of their final answer. What is a formula stays one.
"""

import re
from collections.abc import Callable
from html import escape

_BOX = re.compile(r"\s*\\(?:boxed|fbox)\s*\{")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mbox)\s*\{")
_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ ,;:'\u2019-]+[^\W\d_]+)+|[\u3400-\u9fff]{4,}")
_INNER = re.compile(r"\$([^$]+)\$|\\\((.+?)\\\)")
_NOT_PROSE = re.compile(r"\\[a-zA-Z(]|[\^_&=]")
_ROWS = re.compile(r"\\begin|\\\\|&")
_LEAST_CHARS = 24


def boxed_sentence(latex: str, draw: Callable[[str], str]) -> str | None:
    """HTML for a box that holds a sentence, None for any other formula; `draw` draws a formula inside of it."""
    opening = _BOX.match(latex)
    if opening is None:
        return None
    end = _closing(latex, opening.end())
    if end is None or latex[end + 1 :].strip(" \n\t.,;"):
        return None
    inner, stop = latex[opening.end() : end].strip(), latex[end + 1 :].strip()
    if len(inner) < _LEAST_CHARS:
        return None
    parts = _parts(inner)
    if any(not is_text and _ROWS.search(part) for is_text, part in parts):
        return None
    if not any(is_text and _WORDS.search(part) for is_text, part in parts):
        return None
    drawn = "".join(_text(part, draw) if is_text else draw(part) for is_text, part in parts if part.strip())
    return f'<span class="boxed">{drawn}</span>{escape(stop, quote=False)}'


def _parts(inner: str) -> list[tuple[bool, str]]:
    """Texts (True) and formulas (False), in order."""
    if not _NOT_PROSE.search(_INNER.sub("", inner)):
        return [(True, inner)]
    parts: list[tuple[bool, str]] = []
    at = 0
    while found := _TEXT.search(inner, at):
        end = _closing(inner, found.end())
        if end is None:
            break
        parts += [(False, inner[at : found.start()]), (True, inner[found.end() : end])]
        at = end + 1
    return [*parts, (False, inner[at:])]


def _text(part: str, draw: Callable[[str], str]) -> str:
    drawn, at = "", 0
    for found in _INNER.finditer(part):
        drawn += _escaped(part[at : found.start()]) + draw(found[1] or found[2])
        at = found.end()
    return drawn + _escaped(part[at:])


def _escaped(text: str) -> str:
    plain = re.sub(r"\\([%$#&_{}])", r"\1", text).replace("\\ ", " ").replace("~", " ")
    return escape(plain, quote=False)


def _closing(text: str, start: int) -> int | None:
    depth = 1
    for found in _BRACES.finditer(text, start):
        depth += (found[0] == "{") - (found[0] == "}")
        if depth == 0:
            return found.start()
    return None

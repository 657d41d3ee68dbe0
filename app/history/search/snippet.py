"""The line around a hit, with the place of every word in it. Works on the original text: folding changes lengths."""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from app.history.search.terms import Needle, fold, pieces, words

_CHARS = 160
_BEFORE = 40
_WINDOW = 600
# Longer than a term, so that none is cut by both of two neighbours
_OVERLAP = 100
# A better place than the first is looked for so far
_LOOKED_AT = 100_000


@dataclass(frozen=True, slots=True)
class Snippet:
    """`marks` are pairs of offsets into `text`, in UTF-16 units; `words` is how many of the wanted are there."""

    text: str
    marks: tuple[tuple[int, int], ...]
    words: int


@dataclass(frozen=True, slots=True)
class _Match:
    start: int
    end: int
    needle: int


def has_runs(texts: Iterable[str], wanted: list[Needle]) -> bool:
    """Whether each word of a script without spaces is in one of the texts; terms promise its pairs alone."""
    runs = [needle.text for needle in wanted if needle.is_joined and len(needle.text) > 2]
    if not runs:
        return True
    folded = [fold(text) for text in texts]
    return all(any(run in text for text in folded) for run in runs)


def snippet(text: str, wanted: list[Needle]) -> Snippet:
    """About 160 characters around the place with the most of the words; the text's beginning if there is none."""
    window = _best_window(text, wanted)
    matches = list(_matches(text, window, wanted)) if window is not None else []
    first, count = 0, 0
    for match in matches:
        near = {other.needle for other in matches if 0 <= other.start - match.start <= _CHARS - _BEFORE}
        if len(near) > count:
            first, count = match.start, len(near)
    start, end = _line(text, first)
    shown = "".join(" " if char.isspace() else char for char in text[start:end])
    opening = "… " if text[:start].strip() else ""
    closing = " …" if text[end:].strip() else ""
    marks: list[tuple[int, int]] = []
    done = start
    for match in matches:
        # One character can be two words: a quarter is a 1 and a 4
        if done <= match.start < end:
            done = min(match.end, end)
            first_unit, last_unit = (_utf16_units(opening + shown[: at - start]) for at in (match.start, done))
            marks.append((first_unit, last_unit))
    return Snippet(opening + shown + closing, tuple(marks), count)


def _best_window(text: str, wanted: list[Needle]) -> slice | None:
    best, most = None, 0
    for start in range(0, max(1, len(text) - _OVERLAP), _WINDOW - _OVERLAP):
        if most and start > _LOOKED_AT:
            break
        window = _whole_words(text, start, start + _WINDOW)
        folded = fold(text[window])
        if sum(needle.text in folded for needle in wanted) <= most:
            continue
        found = words(folded)
        count = sum(any(needle.places(word) for word in found) for needle in wanted)
        if count > most:
            best, most = window, count
        if most == len(wanted):
            break
    return best


def _whole_words(text: str, start: int, end: int) -> slice:
    """The window with the whole of its last word, and without what is cut off at its start: the one before has that."""
    if start > 0 and not text[start - 1].isspace():
        start = _space(text, start, start + _OVERLAP // 2) or start
    if end < len(text):
        end = _space(text, end, end + _OVERLAP // 2) or end
    return slice(start, end)


def _space(text: str, start: int, end: int) -> int | None:
    return next((at for at in range(start, min(end, len(text))) if text[at].isspace()), None)


def _matches(text: str, window: slice, wanted: list[Needle]) -> Iterator[_Match]:
    for piece in pieces(text[window]):
        places = sorted(
            (start, start + length, number)
            for number, needle in enumerate(wanted)
            for start, length in needle.places(piece.text)
        )
        end = 0
        for first, last, number in places:
            if first >= end:
                end = last
                yield _Match(window.start + piece.starts[first], window.start + piece.ends[last - 1], number)


def _line(text: str, first: int) -> tuple[int, int]:
    """From a little before `first`, at the border of a word if there is one near."""
    start = max(0, first - _BEFORE)
    if start > 0:
        start = _space(text, start, first) or start
    while start < first and (text[start].isspace() or unicodedata.category(text[start])[0] == "M"):
        start += 1
    end = min(start + _CHARS, len(text))
    if end < len(text):
        spaces = (at for at in range(end, end - _BEFORE, -1) if text[at].isspace())
        end = next(spaces, end)
    return start, end


def _utf16_units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2

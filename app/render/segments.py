"""Cuts a growing text into segments that are drawn one by one. Knows lines and blocks; draws nothing.

A segment is settled by the lines it holds and never by what follows, so that any cutting of the text gives the same
segments. None grows beyond `MAX_SEGMENT_CHARS` (an open formula: `MAX_FORMULA_CHARS`): it is closed at a line, or
inside a giant line at a character, and continued. What a continuation has to reopen (list items with their numbers, a
fence, a table's head) is written before its first line.
"""

import re
from copy import copy
from dataclasses import dataclass
from typing import Literal

from app.render.formulas import DISPLAY_ENVIRONMENTS, MAX_FORMULA_CHARS

MAX_SEGMENT_CHARS = 4096
_LONG_LIST_CHARS = 1536  # from here on a list is cut at its next item: what is open is drawn again and again
_MAX_HEAD_CHARS = 1024
_MAX_ITEM_DEPTH = 10

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})[ \t]*(.*)$")
_HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]|$)")
_RULE = re.compile(r" {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$")
_QUOTE = re.compile(r" {0,3}>")
_QUOTE_MARKS = re.compile(r"(?: {0,3}>)+ ?")
_ITEM = re.compile(r" {0,3}(?:[-*+]|\d{1,9}[.)])(?:[ \t]|$)")
_INTERRUPTING_ITEM = re.compile(r" {0,3}(?:[-*+]|1[.)])[ \t]+\S")
_MARKER = re.compile(r"([-*+]|\d{1,9}[.)])(?:( +)(?=\S)| *$)")
_HEAD_RULE = re.compile(r"[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$")
_DISPLAY_OPENER = re.compile(r"[ \t]*(?:\\\[|\$\$|\\begin\{)")
_FORMULA_MARK = re.compile(r"\\\\|\\\[|\\\]|\$\$|\\(?:begin|end)\{[a-zA-Z]+\*?\}|\\[`$]|`+")
_PROSE = re.compile(r"(?=[^\\&=^_{}]*$).*(?:(?:[A-Za-z]{2,}[ ,;:.]+){4}|[\u4e00-\u9fff]{4})")
_SPAN = re.compile(r"(`+)[^`]+\1|\\\((?:[^\\]|\\[^(])*?(?:\\\)|\Z)|\$[^$\n]+\$")
_BREAK = re.compile(r"[\s。，；！？、]")
_LOOKS_STRUCTURAL = re.compile(r"[ \t]*(?:(\d{1,9})([.)])|([-+*#>=~`|_:]))")

Kind = Literal["", "paragraph", "code", "indented", "list", "quote"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of Markdown, or (`is_code`) what stands inside a fence.

    `numbers` are the numbers of the items that its first line opens, outermost first; of these items `reopened` were
    open before and show no marker.
    """

    text: str
    is_code: bool = False
    language: str = ""
    is_continued: bool = False
    numbers: tuple[int, ...] = ()
    reopened: int = 0


@dataclass(frozen=True, slots=True)
class _Item:
    """An open list item: columns of its marker and of its content."""

    column: int
    offset: int
    marker: str
    number: int
    written: int = 0

    @property
    def sort(self) -> str:
        return self.marker[-1]


@dataclass(frozen=True, slots=True)
class _Fence:
    marks: str
    opening: str

    def is_closed_by(self, line: str) -> bool:
        stripped = line.strip(" \t")
        return len(stripped) >= len(self.marks) and not stripped.strip(self.marks[0])


def open_formula(line: str, closer: str | None) -> str | None:
    """What closes the display formula that is open behind `line`, if one is; `closer` is the state before it."""
    if "\\" not in line and "$$" not in line:
        return closer
    code = ""
    for found in _FORMULA_MARK.finditer(line):
        mark = found[0]
        if code:
            code = "" if mark == code else code
        elif closer:
            closer = None if mark == closer else closer
        elif mark[0] == "`":
            code = mark if line.find(mark, found.end()) >= 0 else ""
        elif mark == "\\[":
            closer = "\\]"
        elif mark == "$$":
            closer = "$$"
        elif mark.startswith("\\begin") and mark[7:-1] in DISPLAY_ENVIRONMENTS:
            closer = "\\end" + mark[6:]
    return closer


def begins_formula(line: str) -> bool:
    """A display formula opens at the start of this line."""
    return _DISPLAY_OPENER.match(line) is not None


def cannot_be_formula(line: str, *, is_after_blank: bool) -> bool:
    """The formula that was open before this line was never closed."""
    if _FENCE.match(line) or _HEADING.match(line) or line.lstrip(" ").startswith("\\["):
        return True
    if not is_after_blank:
        return False
    return bool(_ITEM.match(line) or _QUOTE.match(line) or _RULE.match(line) or _PROSE.match(line))


class Segmenter:
    """Feed it pieces of a text; it gives back the segments that closed."""

    def __init__(self) -> None:
        self._line = ""
        self._is_after_return = False
        self._is_inside_line = False
        self._closed: list[Segment] = []
        self._begin("")

    @property
    def open_chars(self) -> int:
        """How much text is not in a closed segment yet."""
        return self._size + len(self._line)

    def feed(self, text: str) -> list[Segment]:
        """Take the next piece of the text."""
        text = self._normalized(text)
        text = self._line + text
        start = 0
        while True:
            end = text.find("\n", start, start + MAX_SEGMENT_CHARS + 1)
            if end >= 0:
                self._take(text[start:end])
                self._is_inside_line = False
                start = end + 1
            elif len(text) - start > MAX_SEGMENT_CHARS:
                end = start + _place_to_cut(text[start : start + MAX_SEGMENT_CHARS])
                self._take(text[start:end])
                self._continue_line()
                start = end
            else:
                break
        self._line = text[start:]
        return self._taken()

    def finish(self) -> list[Segment]:
        """Close whatever is open; the text is over."""
        if self._line:
            self._take(self._line)
            self._line = ""
        self._close()
        return self._taken()

    def rest(self) -> list[Segment]:
        """The segments `finish` would close, without closing anything."""
        other = copy(self)
        other._closed = []
        other._lines = self._lines.copy()
        other._items = self._items.copy()
        return other.finish()

    def _taken(self) -> list[Segment]:
        closed, self._closed = self._closed, []
        return closed

    def _normalized(self, text: str) -> str:
        if self._is_after_return and text.startswith("\n"):
            text = text[1:]
            self._is_after_return = False
        if text:
            self._is_after_return = text.endswith("\r")
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        return _UNPRINTABLE.sub("\ufffd", text)

    # Where a segment begins and ends

    def _begin(self, kind: Kind) -> None:
        self._kind: Kind = kind
        self._lines: list[str] = []
        self._size = 0
        self._is_continued = False
        self._numbers: tuple[int, ...] = ()
        self._reopened = 0
        self._closer: str | None = None
        self._may_hold_blanks = False
        self._is_after_blank = False
        self._fence: _Fence | None = None
        self._head: tuple[str, str] | None = None
        self._items: list[_Item] = []

    def _add(self, line: str) -> None:
        self._lines.append(line)
        self._size += len(line) + 1

    def _close(self) -> None:
        self._emit()
        self._begin("")

    def _emit(self) -> None:
        """Close the segment but keep what its continuation has to know."""
        if self._kind == "code" and self._fence is not None:
            if self._lines or not self._is_continued:
                language = self._fence.opening.strip(" \t`~").split(" ")[0]
                text = "\n".join(self._lines) + "\n" if self._lines else ""
                self._closed.append(Segment(text, True, language, self._is_continued))
        elif self._lines:
            text = "\n".join(self._lines)
            self._closed.append(
                Segment(text, False, "", self._is_continued, self._numbers, self._reopened)
                if text.strip()
                else Segment("")
            )
        self._lines = []
        self._size = 0
        self._is_continued = True
        self._numbers = ()
        self._reopened = 0

    def _continue_line(self) -> None:
        """What follows is still the same line of text."""
        self._is_inside_line = True
        if self._kind in ("paragraph", "indented"):
            self._close()

    # One line

    def _take(self, line: str) -> None:
        if self._kind == "code":
            self._take_code(line)
        elif self._kind == "paragraph":
            self._take_in_paragraph(line)
        elif self._kind == "list":
            self._take_in_list(line)
        elif self._kind == "quote":
            self._take_in_quote(line)
        elif self._kind == "indented":
            self._take_indented(line)
        else:
            self._take_first(line)

    def _take_first(self, line: str) -> None:
        if not line.strip(" \t"):
            return
        if self._is_inside_line:
            line = _LOOKS_STRUCTURAL.sub(_made_plain, line, count=1)
        if fence := _FENCE.match(line):
            self._begin("code")
            self._fence = _Fence(fence[1], line)
        elif _HEADING.match(line) or _RULE.match(line):
            self._begin("paragraph")
            self._add(line)
            self._close()
        elif _ITEM.match(line):
            self._begin("list")
            self._add_in_list(line)
        elif _QUOTE.match(line):
            self._begin("quote")
            self._take_in_quote(line)
        elif line.expandtabs(4).startswith("    ") and not begins_formula(line):
            self._begin("indented")
            self._add(line)
        else:
            self._begin("paragraph")
            self._add_to_paragraph(line)

    def _again(self, line: str) -> None:
        self._close()
        self._take_first(line)

    def _take_code(self, line: str) -> None:
        assert self._fence is not None
        if self._fence.is_closed_by(line) and len(line) - len(line.lstrip(" ")) < 4:
            self._close()
            return
        indent = len(self._fence.opening) - len(self._fence.opening.lstrip(" "))
        if self._size + len(line) > MAX_SEGMENT_CHARS and self._lines:
            self._emit()
        self._add(line[min(indent, len(line) - len(line.lstrip(" "))) :])

    def _take_indented(self, line: str) -> None:
        is_outside = bool(line.strip(" \t")) and not line.expandtabs(4).startswith("    ")
        if is_outside or self._size + len(line) > MAX_SEGMENT_CHARS:
            self._again(line)
        else:
            self._add(line)

    # Paragraphs, with tables and display formulas

    def _take_in_paragraph(self, line: str) -> None:
        is_blank = not line.strip(" \t")
        if is_blank and not (self._closer and self._may_hold_blanks):
            self._close()
        elif not is_blank and self._is_ended_by(line):
            self._again(line)
        elif self._size + len(line) > (MAX_FORMULA_CHARS if self._closer else MAX_SEGMENT_CHARS):
            head = self._head
            self._close()
            if head is None or is_blank:
                self._take_first(line)
            else:
                self._begin("paragraph")
                self._head = head
                for one in (*head, line):
                    self._add(one)
        else:
            self._is_after_blank = is_blank
            self._add_to_paragraph(line)

    def _is_ended_by(self, line: str) -> bool:
        if self._closer:
            return cannot_be_formula(line, is_after_blank=self._is_after_blank)
        return _interrupts(line)

    def _add_to_paragraph(self, line: str) -> None:
        was_open = self._closer
        self._closer = open_formula(line, was_open)
        if self._closer and not was_open:
            self._may_hold_blanks = begins_formula(line)
        if self._lines and self._head is None and "|" in self._lines[-1] and _HEAD_RULE.match(line):
            head = (self._lines[-1], line)
            self._head = head if len(head[0]) + len(head[1]) < _MAX_HEAD_CHARS else None
        self._add(line)

    # Lists

    def _take_in_list(self, line: str) -> None:
        if not line.strip(" \t"):
            self._is_after_blank = True
            if self._size <= MAX_SEGMENT_CHARS:
                self._add(line)
            return
        text = line.expandtabs(4)
        indent = len(text) - len(text.lstrip(" "))
        top = self._items[0]
        if indent >= top.offset or (self._fence is None and self._closer and not self._is_after_blank):
            self._add_in_list(line)
        elif (marker := _ITEM.match(text)) and not _RULE.match(text):
            if marker[0].strip()[-1] == top.sort:
                self._fence = self._closer = None
                self._add_in_list(line, is_next_item=True)
            else:
                self._again(line)
        elif self._is_after_blank or self._fence or _interrupts(text):
            self._again(line)
        else:
            self._add_in_list(line)

    def _add_in_list(self, line: str, *, is_next_item: bool = False) -> None:
        text = line.expandtabs(4)
        new_items, fence = 0, self._fence
        if fence is None:
            new_items = self._place_items(text)
        limit = _LONG_LIST_CHARS if is_next_item else MAX_SEGMENT_CHARS
        if self._size + (0 if is_next_item else len(line)) > limit and self._lines:
            self._emit()
            self._reopen_list(text, new_items)
        else:
            self._add(line)
        content = text.lstrip(" ") if not new_items else text[self._items[-1].offset :]
        if fence is not None:
            self._fence = None if fence.is_closed_by(text) else fence
        elif opening := _FENCE.match(content.lstrip(" ")):
            self._fence = _Fence(opening[1], content[:_MAX_HEAD_CHARS])
        else:
            self._closer = open_formula(content, None if self._is_after_blank else self._closer)
        self._is_after_blank = False

    def _place_items(self, text: str) -> int:
        """Close the items this line is not in, open those it begins; how many it begins."""
        indent = len(text) - len(text.lstrip(" "))
        begins = _MARKER.match(text, indent)
        sibling: _Item | None = None
        if begins or self._is_after_blank:
            while self._items and self._items[-1].offset > indent:
                sibling = self._items.pop()
        column, count = indent, 0
        while len(self._items) < _MAX_ITEM_DEPTH:
            base = self._items[-1].offset if self._items else 0
            found = _MARKER.match(text, column)
            if found is None or column - base > 3 or _RULE.match(text[column:]):
                break
            spaces = len(found[2]) if found[2] and len(found[2]) < 5 else 1
            marker = found[1]
            number = written = int(marker[:-1]) if len(marker) > 1 else 0
            if sibling is not None and sibling.sort == marker[-1]:
                # The model's own number; where it writes the same one again, Markdown counts
                number = sibling.number + 1 if number == sibling.written else number
            offset = column + len(marker) + spaces
            self._items.append(_Item(column, offset, marker, number, written))
            sibling, column, count = None, offset, count + 1
        if not self._items and sibling is not None:
            self._items.append(sibling)
        return count

    def _reopen_list(self, text: str, new_items: int) -> None:
        kept = self._items[: len(self._items) - new_items]
        first = ""
        for item in kept:
            first = (first.ljust(item.column) + item.marker).ljust(item.offset)
        self._numbers = tuple(item.number for item in self._items)
        self._reopened = len(kept)
        if self._fence is not None:
            self._add(first + self._fence.opening.lstrip(" "))
            self._add(text)
            return
        column = len(first)
        rest = text[column:] if not text[:column].strip(" ") else text.lstrip(" ")
        self._add(first + (rest.lstrip(" ") if rest.startswith("    ") and kept else rest))

    # Quotes

    def _take_in_quote(self, line: str) -> None:
        marks = _QUOTE_MARKS.match(line)
        if not line.strip(" \t") or (marks is None and (self._fence or _interrupts(line) or _ITEM.match(line))):
            self._again(line)
            return
        content = line[marks.end() :] if marks else line
        if self._size + len(line) > MAX_SEGMENT_CHARS and self._lines:
            self._emit()
            if self._fence is not None:
                self._add("> " + self._fence.opening)
            elif marks is None:
                line = "> " + line
        self._add(line)
        if self._fence is not None:
            self._fence = None if self._fence.is_closed_by(content) else self._fence
        elif opening := _FENCE.match(content):
            self._fence = _Fence(opening[1], content[:_MAX_HEAD_CHARS])


def _interrupts(line: str) -> bool:
    """This line ends a paragraph without a blank line before it."""
    return bool(
        _FENCE.match(line)
        or _HEADING.match(line)
        or _QUOTE.match(line)
        or _INTERRUPTING_ITEM.match(line)
        or _RULE.match(line)
    )


def _place_to_cut(text: str) -> int:
    """Where to break a line that is longer than a segment: behind a space or a stop, and in no formula or code."""
    spans = [found.span() for found in _SPAN.finditer(text)]
    for found in reversed(list(_BREAK.finditer(text, len(text) // 2))):
        while spans and spans[-1][0] >= found.end():
            spans.pop()
        if not spans or spans[-1][1] <= found.start():
            return found.end()
    return len(text)


def _made_plain(found: re.Match[str]) -> str:
    return f"{found[1]}\\{found[2]}" if found[1] else f"\\{found[3]}"

"""A JSON file read as a stream: one conversation in memory, everything bounded, what stands where in every error."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import ijson

from app.errors import BadImport
from app.history.portable.shape import MOST_TEXT_BYTES

MOST_DEPTH = 20
MOST_CONVERSATIONS = 100_000
_MOST_VALUES = 2_000_000
_MOST_CHARS = 64 * 1024 * 1024
# A character may be written as \u0041; nothing may be longer than the longest text written like that
_MOST_BYTES_OF_A_VALUE = 6 * MOST_TEXT_BYTES + 1024 * 1024
_CHUNK_BYTES = 64 * 1024
_MOST_CHUNK_BYTES = 2 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_SURROGATES = re.compile(
    rb"(?<!\\)(\\++)u(?:[dD][89abAB][0-9a-fA-F]{2}(?P<low>\\u[dD][c-fC-F][0-9a-fA-F]{2})?|[dD][c-fC-F][0-9a-fA-F]{2})"
)
_HIGH = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}")
_ESCAPE_BYTES = 6
_Event = tuple[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the file: an element of the array under `key`, or of the file itself if that is an array (""); or the
    whole value of `key`, then without a `number`. Elements are numbered from 1."""

    key: str
    number: int | None
    value: Any


def parts(file: BinaryIO) -> Iterator[Part]:
    """The pieces of a file in order; of an object's keys, arrays are given element by element.

    Characters that are no Unicode text (lone surrogates) come as NUL.

    Raises:
        BadImport: it is not JSON, or larger or deeper somewhere than is taken.
    """
    source = _Source(file)
    reader = _Reader(source)
    try:
        yield from reader.parts()
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise BadImport(f"{reader.where} cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    said = str(error)
    for sign, reason in (
        ("premature EOF", "the file ends too early. Was it copied completely?"),
        ("trailing garbage", "something follows behind the end of the JSON."),
        ("overflow", "a number is too large."),
        ("UTF8", "the text is not UTF-8."),
        ("utf-8", "the text is not UTF-8."),
    ):
        if sign in said:
            return reason
    return "it is not valid JSON."


class _Source:
    """The file for the parser, which alone would make other characters out of lone surrogates, and hold any size."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._held = b""
        self._is_begun = False
        self.bytes_of_value = 0

    def read(self, size: int) -> bytes:
        """The next bytes, b"" at the end alone; more than `size` in the middle of a long value.

        The parser begins a value anew with every piece of it, so that many small ones would take it minutes.
        """
        while size:
            data = self._file.read(min(max(size, self.bytes_of_value // 4), _MOST_CHUNK_BYTES))
            if not self._is_begun:
                self._is_begun, data = True, data.removeprefix(_BOM)
            self.bytes_of_value += len(data)
            if self.bytes_of_value > _MOST_BYTES_OF_A_VALUE:
                raise BadImport(f"A text in the file is longer than {MOST_TEXT_BYTES // 1024 // 1024} MB.")
            is_end = not data
            data = self._held + data
            cut = len(data) if is_end else _safe_cut(data)
            self._held = data[cut:]
            if cut or is_end:
                return _without_lone_surrogates(data[:cut])
        return b""  # ijson asks for nothing to learn what it will get


def _safe_cut(data: bytes) -> int:
    """How much of `data` can be judged without what follows: no escape, and no pair of them, is cut."""
    at = data.find(b"\\", max(0, len(data) - _ESCAPE_BYTES))
    if at < 0:
        return len(data)
    cut = _escape_start(data, at)
    if _HIGH.fullmatch(data, max(0, cut - _ESCAPE_BYTES), cut):
        cut = _escape_start(data, cut - _ESCAPE_BYTES)
    return cut


def _escape_start(data: bytes, at: int) -> int:
    """Where the escape begins that the backslash at `at` belongs to: backslashes escape each other two by two."""
    run_start = len(data[: at + 1].rstrip(b"\\"))
    run_end = len(data) - len(data[at:].lstrip(b"\\"))
    return run_start + (run_end - run_start - 1) // 2 * 2


def _without_lone_surrogates(data: bytes) -> bytes:
    if b"\\ud" not in data and b"\\uD" not in data:
        return data
    return _SURROGATES.sub(_judged, data)


def _judged(found: re.Match[bytes]) -> bytes:
    slashes, low = found[1], found["low"]
    if len(slashes) % 2 == 0:  # no escape but backslashes, and so `low` has lost its half
        return found[0].removesuffix(low) + b"\\u0000" if low else found[0]
    return found[0] if low else slashes + b"u0000"


class _Reader:
    """Builds values out of the parser's events, counting as it goes."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._events: Iterator[_Event] = ijson.basic_parse(source, use_float=True, buf_size=_CHUNK_BYTES)
        self._values = 0
        self._chars = 0
        self._number = 0

    @property
    def where(self) -> str:
        """The place of what is being read, to begin a sentence with."""
        return f"Conversation {self._number}" if self._number else "The file"

    def parts(self) -> Iterator[Part]:
        event, _ = next(self._events)
        if event == "start_array":
            yield from self._elements("")
        elif event == "start_map":
            yield from self._members()
        else:
            raise BadImport("This is none of the files that can be imported: it holds a single value.")
        for _ in self._events:  # what follows behind the end
            raise BadImport("Something follows behind the end of the JSON.")

    def _members(self) -> Iterator[Part]:
        keys: set[str] = set()
        for event, value in self._events:
            if event == "end_map":
                return
            if value in keys:
                raise BadImport(f"The file has “{value[:40]}” twice.")
            if len(keys) >= 100:
                raise BadImport("This is none of the files that can be imported: it has too many fields.")
            keys.add(value)
            event, inner = next(self._events)
            if event == "start_array":
                yield Part(value, None, [])
                yield from self._elements(value)
            else:
                yield Part(value, None, self._value(event, inner, 1))

    def _elements(self, key: str) -> Iterator[Part]:
        self._number = 1
        for event, value in self._events:
            if event == "end_array":
                self._number = 0
                return
            if self._number > MOST_CONVERSATIONS:
                raise BadImport(f"The file has more than {MOST_CONVERSATIONS:,} conversations.")
            self._values = self._chars = 0
            built = self._value(event, value, 1 if key == "" else 2)
            yield Part(key, self._number, built)
            self._number += 1

    def _value(self, event: str, value: Any, depth: int) -> Any:
        """The value that begins with an event, `depth` containers around it."""
        if event not in ("start_map", "start_array"):
            return self._scalar(event, value)
        root: Any = {} if event == "start_map" else []
        stack: list[tuple[Any, str]] = []
        current, key = root, ""
        source = self._source
        for event, value in self._events:
            source.bytes_of_value = 0
            self._values += 1
            if self._values > _MOST_VALUES:
                raise self._too_large()
            if event == "map_key":
                if value in current:
                    raise BadImport(f"{self.where} has “{value[:40]}” twice in one object.")
                self._count(value)
                key = value
                continue
            if event == "end_map" or event == "end_array":
                if not stack:
                    return root
                current, key = stack.pop()
                continue
            if event == "start_map" or event == "start_array":
                if len(stack) + depth + 2 > MOST_DEPTH:
                    raise BadImport(f"{self.where} is nested deeper than {MOST_DEPTH} levels.")
                made: Any = {} if event == "start_map" else []
            else:
                made = value
                if event == "string":
                    self._count(value)
            if type(current) is dict:
                current[key] = made
            else:
                current.append(made)
            if event == "start_map" or event == "start_array":
                stack.append((current, key))
                current = made
        raise ijson.JSONError("premature EOF")

    def _scalar(self, event: str, value: Any) -> Any:
        self._source.bytes_of_value = 0
        if event == "string":
            self._count(value)
        return value

    def _count(self, text: str) -> None:
        self._chars += len(text)
        if len(text) > MOST_TEXT_BYTES or (len(text) * 4 > MOST_TEXT_BYTES and len(text.encode()) > MOST_TEXT_BYTES):
            raise BadImport(f"{self.where} has a text that is longer than {MOST_TEXT_BYTES // 1024 // 1024} MB.")
        if self._chars > _MOST_CHARS:
            raise self._too_large()

    def _too_large(self) -> BadImport:
        return BadImport(f"{self.where} is too large to be imported.")

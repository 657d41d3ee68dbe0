"""What a text is found by: its words, folded alike for both databases, for what is kept and for what is typed.

A word is a run of letters, digits and the marks that belong to them; "c++" and "c#" are words too. Scripts that write
no spaces (Han, kana, Hangul, Thai and their neighbours) give single characters and overlapping pairs, so that a word
in mid-sentence is found without knowing where it ends. Knows no database.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

# What no word has, so that these terms can never be typed
OWNER = "@"
SHORT = "^"

_TERM_CHARS = 64
# Words are found as they are typed; their first letters stand in the index as terms of their own, as a search for all
# that begins with "a" would otherwise read half of the index
SHORT_CHARS = 2
# A `tsvector` takes 1 MiB
_MOST_BYTES = 500_000
_MOST_FOLDED_CHARS = 20_000

_JOINED = (
    "々〆〇"
    "\u3041-\u30ff\u3105-\u312f\u31a0-\u31ff"  # kana and Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\U0001b000-\U0001b16f\U00020000-\U0003fffd"  # Han
    "\u1100-\u11ff\ua960-\ua97f\uac00-\ud7ff"  # Hangul
    "\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\ua9e0-\ua9ff\uaa60-\uaa7f"  # Thai, Lao, Burmese, Khmer
)
_PIECE = re.compile(f"[{_JOINED}]+|[^ +#{_JOINED}]+(?:[+#]{{1,2}}(?![^ +#{_JOINED}]))?")
_IS_JOINED = re.compile(f"[{_JOINED}]")
_SYLLABLES = re.compile("[\u1100-\u11ff]+")
_UNITS = re.compile("[\u1100-\u11ff]+|.", re.DOTALL)

_FILLERS = "\u115f\u1160\u3164\uffa0"
_STROKES = str.maketrans("øłđħŧı", "oldhti")


@dataclass(frozen=True, slots=True)
class Needle:
    """A word that is looked for. `is_prefix`: there may be more of it; `is_joined`: it may stand inside a run."""

    text: str
    is_prefix: bool
    is_joined: bool

    def terms(self) -> list[str]:
        """The whole terms that an entry must have; none for a longer prefix."""
        if self.is_joined:
            return _pairs(self.text) or [self.text]
        if not self.is_prefix:
            return [self.text]
        return [SHORT + self.text] if len(self.text) <= SHORT_CHARS else []

    def prefix(self) -> str | None:
        """What one of an entry's terms must begin with."""
        return self.text if self.is_prefix and len(self.text) > SHORT_CHARS else None

    def places(self, piece: str) -> list[tuple[int, int]]:
        """Where it is in one of `words`: starts and lengths."""
        if self.is_joined:
            return [(found.start(), len(self.text)) for found in re.finditer(re.escape(self.text), piece)]
        if self.is_prefix:
            is_it = piece.startswith(self.text)
        else:
            is_it = self.text in (piece[:_TERM_CHARS], piece.rstrip("+#")[:_TERM_CHARS])
        return [(0, len(piece))] if is_it else []


@dataclass(frozen=True, slots=True)
class Piece:
    """A word, or a run of a script without spaces, and where it stands in the original text."""

    text: str
    starts: list[int]
    ends: list[int]


def terms(*texts: str) -> list[str]:
    """Every different term of the texts, in the order they come; what is beyond half a megabyte is left out."""
    found: dict[str, None] = {}
    left = _MOST_BYTES
    for text in texts:
        for piece in words(fold(text)):
            for term in _terms_of(piece):
                if term not in found:
                    left -= len(term.encode()) + 1
                    if left < 0:
                        return list(found)
                    found[term] = None
    return list(found)


def needles(query: str) -> list[Needle]:
    """The words of what somebody typed, each once, the last as far as it is typed."""
    pieces = [(piece, bool(_IS_JOINED.match(piece))) for piece in _PIECE.findall(fold(query))]
    found = [
        Needle(
            piece if is_joined else piece[:_TERM_CHARS],
            is_prefix=number == len(pieces) and not is_joined,
            is_joined=is_joined,
        )
        for number, (piece, is_joined) in enumerate(pieces, 1)
    ]
    return list(dict.fromkeys(found))


def fold(text: str) -> str:
    """The text without case, accents and forms; everything that is in no word becomes spaces."""
    return _SYLLABLES.sub(_composed, text).translate(_FOLDED)


def words(folded: str) -> list[str]:
    """The different words of a folded text, and its runs of scripts without spaces."""
    return list(dict.fromkeys(_PIECE.findall(folded)))


def pieces(text: str) -> Iterator[Piece]:
    """The words of a text with the place of each of their characters; slower than `terms` by far."""
    folded: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for unit in _UNITS.finditer(text):
        char = unit[0]
        part = _FOLDED[ord(char)] if len(char) == 1 else fold(char)
        if part:
            folded.append(part)
            starts += [unit.start()] * len(part)
            ends += [unit.end()] * len(part)
        elif ends:
            # An accent of its own belongs to the letter before it
            ends[-1] = unit.end()
    for found in _PIECE.finditer("".join(folded)):
        place = slice(found.start(), found.end())
        yield Piece(found[0], starts[place], ends[place])


def _terms_of(piece: str) -> Iterator[str]:
    if _IS_JOINED.match(piece):
        yield from dict.fromkeys(piece)
        yield from _pairs(piece)
        return
    for word in dict.fromkeys((piece, piece.rstrip("+#"))):
        yield word[:_TERM_CHARS]
        for chars in range(1, min(SHORT_CHARS, len(word)) + 1):
            yield SHORT + word[:chars]


def _pairs(run: str) -> list[str]:
    return list(dict.fromkeys(first + second for first, second in pairwise(run)))


def _composed(found: re.Match[str]) -> str:
    return unicodedata.normalize("NFC", found[0])


class _Folding(dict[int, str]):
    """How each character is folded, worked out when it is first met."""

    def __missing__(self, code: int) -> str:
        folded = "".join(map(_folded, _decomposed(chr(code))))
        if len(self) >= _MOST_FOLDED_CHARS:
            self.clear()  # nobody's text may make it slow for the others
        self[code] = folded
        return folded


_FOLDED = _Folding()


def _decomposed(char: str) -> str:
    # One character at a time: a whole text with thousands of accents on one letter takes hours to put in order
    if "\uac00" <= char <= "\ud7a3":
        return char
    return unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold()).translate(_STROKES)


def _folded(char: str) -> str:
    category = unicodedata.category(char)
    if char in "+#" or (category[0] in "LN" and char not in _FILLERS):
        return char
    if category in ("Cf", "Me") and char != "\u200b":
        return ""
    if category[0] == "M":
        return "" if _is_accent(char) else char
    return " "


def _is_accent(char: str) -> bool:
    """Whether words are the same without it: accents, Hebrew and Arabic points, variation selectors."""
    order = unicodedata.combining(char)
    return (
        order == 1
        or 10 <= order <= 35
        or order >= 200
        or char in "\u034f\u180b\u180c\u180d\u180f"
        or ("\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef")
    )

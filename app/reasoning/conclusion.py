r"""Where the answer begins in a finished text that marks no border: at its last box, or at its closing words.

For models that think aloud and end with a sentence ("So, the answer is ...", "Therefore, option 2 is correct."). Pure
functions over the whole text, asked once, when the text is over. A text that shows no sign of thinking aloud (an essay,
a direct answer) has no border, whatever its last paragraph says.

Source: 643 outputs of QwQ-32B-Preview on family puzzles and riddles; `python -m bench.traces` prints what it finds.
"""

import re

FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
_LAST_PARAGRAPHS = 4
_FEW_SIGNS = 2

_STRONG_SIGN = re.compile(
    r"\b(?:hmm+|wait(?:,|\.\.|…|\s+(?:no|a (?:minute|second|moment))\b|\s*[-–—!])"
    r"|let me (?!know\b)|let's (?:see|tackle|think|double)|double-check|i need to|i'm (?:not sure|trying|going to))"
    r"|让我|等等|等一下|嗯|不对|我需要",
    re.IGNORECASE,
)
_WEAK_SIGN = re.compile(
    r"\b(?:alternatively,|wait\b|let's (?:break|list|try|check|verify|map|start|go through|figure|consider)"
    r"|i think|i should|but (?:is|are|what|how|why)\b|maybe|perhaps)"
    r"|我们来看|换个思路|也许|可能",
    re.IGNORECASE,
)
_CLOSING_SENTENCE = re.compile(
    r"""\W{0,3}(?:
        (?:so|thus|therefore|hence|accordingly|consequently|overall|ultimately|finally|yes|in\ (?:conclusion|summary)
        |in\ short|to\ (?:conclude|sum\ up)|given\ (?:that|this|all)|based\ on|i\ (?:think|believe|conclude|would|will)
        |i'll|that\ (?:makes|means))\b
        |综上|因此|所以|总之|由此可见
    )
    (?=[\s\S]*?(?:answers?|conclu(?:de|sion)|solutions?|options?|choices?|relationships?|results?|correct
        |答案|结论|选项|结果))""",
    re.IGNORECASE | re.VERBOSE,
)
_LABEL = re.compile(
    r"""(?:\*\*|__|\#{1,6}\s*)?\s*(?:the\s+)?(?:(?:final|correct|right|best)\s+)?
    (?:answer|conclusion|solution|result|最终答案|答案|结论)\s*(?:\*\*|__)?\s*
    (?:[:：]|is\b|should\ be\b|would\ be\b|must\ be\b|是|为|$)""",
    re.IGNORECASE | re.VERBOSE,
)
_TAG = re.compile(r"<\s*(?:final[ _]?)?answer\s*>", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n")
_FENCED = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*\n(?:[\s\S]*?\n)?(?: {0,3}\1[`~]*[ \t]*$|\Z)", re.MULTILINE)


def last_box_at(text: str) -> int | None:
    r"""Where the last paragraph with a `\boxed{` begins, or the line that leads to it; a box in code is none."""
    pieces = _paragraphs(text)
    for index in range(len(pieces) - 1, -1, -1):
        if "\\boxed{" in _FENCED.sub("", pieces[index][1]):
            return pieces[_lead_in(pieces, index)][0]
    return None


def conclusion_at(text: str) -> int | None:
    """Where the closing words of a text that thinks aloud begin; None where it does not, or has none.

    Never 0: something is always left to be the reasoning.
    """
    if not _thinks_aloud(text):
        return None
    pieces = _paragraphs(text)
    first = max(len(pieces) - _LAST_PARAGRAPHS, 1)
    closing = next((i for i in range(len(pieces) - 1, first - 1, -1) if _closes(pieces[i][1])), None)
    if closing is None:
        return _closing_sentence_at(*pieces[-1]) if pieces else None
    closing = _lead_in(pieces, closing)
    while closing > first and _closes(pieces[closing - 1][1]):
        closing -= 1
    return pieces[closing][0] or None


def _thinks_aloud(text: str) -> bool:
    """A phrase that nobody writes in an essay, or several that few do."""
    signs = {found[0].lower() for found in _WEAK_SIGN.finditer(text)}
    return len(signs) >= _FEW_SIGNS or _STRONG_SIGN.search(text) is not None


def _closes(paragraph: str) -> bool:
    words = paragraph.strip()
    return bool(_TAG.search(words) or _LABEL.match(words) or _CLOSING_SENTENCE.match(words))


def _closing_sentence_at(start: int, paragraph: str) -> int | None:
    """Where one of the last sentences of a text's last paragraph begins that closes it."""
    cuts = [0, *(found.end() for found in _SENTENCE_END.finditer(paragraph))]
    for cut in reversed(cuts[-_LAST_PARAGRAPHS:]):
        if start + cut and _closes(paragraph[cut:]):
            return start + cut
    return None


def _lead_in(pieces: list[tuple[int, str]], index: int) -> int:
    """The paragraph before where it ends in a colon ("So, the answer is:"), but for the text's first one."""
    leads = index > 1 and pieces[index - 1][1].rstrip().rstrip("*_").endswith((":", "："))
    return index - 1 if leads else index


def _paragraphs(text: str) -> list[tuple[int, str]]:
    """The paragraphs of a text with where each begins; a fenced piece of code is part of one."""
    found: list[tuple[int, str]] = []
    fence, start, position, is_between = "", 0, 0, True
    for line in text.splitlines(keepends=True):
        mark = FENCE.match(line)
        if mark:
            fence = mark[1] if not fence else ("" if mark[1].startswith(fence) else fence)
        if not line.strip() and not fence:
            if not is_between:
                found.append((start, text[start:position]))
            is_between = True
        elif is_between:
            start, is_between = position, False
        position += len(line)
    return found if is_between else [*found, (start, text[start:])]

r"""Tells a formula between single dollars from money. Knows no Markdown.

Tight dollars (`$x$`) are a formula unless they hold an amount and prose ("$5 or 7$"). Dollars with a space on both
inner sides (`$ x $`, as Qwen3 and the makers of QwQ write) are one where what they hold can be nothing else. No dollar
is a formula's end before a digit ("$100-$200", "from $ 5 to $ 10").
"""

import re

_TIGHT = re.compile(r"\$(?![\s$])((?:\\[^\n]|[^\\$`\n])+)(?<!\s)\$(?!\d)")
_SPACED = re.compile(r"\$[ \t]+(?![\s$])((?:\\[^\n]|[^\\$`\n])+?)[ \t]+\$(?![ \t]*\d|\$|\w)")
_TEXT = re.compile(r"\\(?:text|mathrm|operatorname|mbox|textbf|textit)\*?\s*\{[^{}]*\}|\\[a-zA-Z]+")
_AMOUNT = re.compile(r"[-+]?[\d.,]*\d")
_PROSE = re.compile(
    r"\b(?:an?|and|are|at|but|by|can|costs?|each|for|from|has|have|in|is|it|less|more|of|off|on|only|or|per|plus|than"
    r"|the|then|they|this|to|was|were|which|while|with|you|your|bn|million|billion|thousand)\b"
    r"|[^\W\d_]{4,}[ ,]+[^\W\d_]{3,}"
    r"|[\u4e00-\u9fff]",
    re.IGNORECASE,
)
_BEGINS = re.compile(r"[ \t]?(?:\\|[a-zA-Z](?![a-zA-Z]{2})|[({\[|-])|$")
_MATHEMATICAL = re.compile(
    r"\\[a-zA-Z]+|[\^_=<>+*/|!]|\d[a-zA-Z]|(?<![^\W\d_])[a-zA-Z](?![^\W\d_])|[A-Z]{2,4}",
)


def dollar_formula(text: str, start: int, end: int) -> tuple[str, int] | None:
    """The LaTeX of the formula that a `$` at `start` opens, and where it ends; None where it opens none."""
    if start and text[start - 1].isascii() and text[start - 1].isalnum():
        return None  # the currency of US$5
    if found := _TIGHT.match(text, start, end):
        latex = found[1]
        return None if _AMOUNT.match(latex) and _has_prose(latex) else (latex, found.end())
    if found := _SPACED.match(text, start, end):
        latex = found[1]
        return None if _has_prose(latex) or not _MATHEMATICAL.search(latex) else (latex, found.end())
    return None


def begins_dollar_formula(text: str, start: int, end: int) -> bool:
    """Whether the `$` at `start` opens what may become a formula in a text that goes on: no amount, and no prose."""
    if start and text[start - 1].isascii() and text[start - 1].isalnum():
        return False
    rest = text[start + 1 : end]
    return not any(mark in rest for mark in "$\n") and bool(_BEGINS.match(rest)) and not _has_prose(rest)


def _has_prose(latex: str) -> bool:
    return _PROSE.search(_TEXT.sub(" ", latex)) is not None

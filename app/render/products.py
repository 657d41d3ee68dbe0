"""Tells a product written with stars (`2*3*4`, `x**2*exp(x)`) from emphasis inside a word. Knows no Markdown."""

import re

_CJK = "\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef"
_LEFT = re.compile(rf"(?:(\d[\d.,]*|[^\W\d_{_CJK}]\w*'?|_)|[)\]}}|!%\u00b0\u00b2\u00b3\u00b9\u2032\u2070-\u209f'])$")
_RIGHT = re.compile(
    rf"(?:([-+\u2212]?\d[\d.,]*|[^\W\d_{_CJK}]\w*|_)(\(|\[)?|[(\[|\u221a\u2211\u220f\u222b])|\\[a-zA-Z(]"
)
_LONGEST = 40


def is_product(text: str, start: int, end: int) -> bool:
    """Whether the stars in `text[start:end]` stand between two operands.

    An operand is a number, a variable, a call, a bracket or a LaTeX command. Between two words of letters a single star
    is a product too (`rate*time`); two stars are emphasis inside a word (un**believ**able).
    """
    left = _LEFT.search(text, max(0, start - _LONGEST), start)
    right = _RIGHT.match(text, end, min(len(text), end + _LONGEST))
    if left is None or right is None:
        return False
    if end - start == 1:
        return True
    are_words = _is_word(left[1]) and _is_word(right[1]) and not right[2]
    return end - start == 2 and not are_words


def may_close(text: str, start: int, end: int) -> bool:
    """Whether emphasis may end before `text[end:]` without a space: `*n*th`, but not `*4*5`."""
    right = _RIGHT.match(text, end, min(len(text), end + _LONGEST))
    return end - start > 1 or right is None or (_is_word(right[1]) and not right[2])


def _is_word(operand: str | None) -> bool:
    return operand is not None and len(operand) > 1 and operand.isalpha()

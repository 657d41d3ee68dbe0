r"""Small things that models write and CommonMark has not: task lists, footnotes, H~2~O, bare links, breaks in cells.

Rules for markdown-it and changes of its tokens; draws no formula.
"""

import re

from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

_TASK = re.compile(r"\[([ xX])\][ \t]+(?=\S)")
_BREAK = re.compile(r"<br[ \t]*/?>", re.IGNORECASE)
_FOOTNOTE = re.compile(r"\[\^([^\s\[\]^]{1,32})\](:[ \t]+)?")
_SUBSCRIPT = re.compile(r"~([0-9A-Za-z+\-]{1,6})~(?!~)")
_ADDRESS = re.compile(
    r"https?://(?![.\-])[\w.\-]+(?::\d{1,5})?(?:[/?#][^\s<>\"`\\^{|}\[\]\u2018-\u201f\u3000-\u303f\uff00-\uffef]*)?",
    re.IGNORECASE,
)
_SCHEME = re.compile(r"(?<![\w/])https?$", re.IGNORECASE)
_LONGEST_ADDRESS = 2048
_PAIRS = {")": "(", "]": "["}


def footnote(state: StateInline, silent: bool) -> bool:
    """`[^1]` is a raised mark, in the text and in front of the note itself; what follows stays where it was written."""
    if state.src[state.pos] != "[":
        return False
    found = _FOOTNOTE.match(state.src, state.pos, state.posMax)
    if found is None:
        return False
    is_note = bool(found[2]) and not state.src[state.src.rfind("\n", 0, state.pos) + 1 : state.pos].strip()
    if not silent:
        state.push("sup_open", "sup", 1)
        state.push("text", "", 0).content = found[1]
        state.push("sup_close", "sup", -1)
        if is_note:
            state.push("text", "", 0).content = " "
    state.pos = found.end() if is_note else found.end(1) + 1
    return True


def subscript(state: StateInline, silent: bool) -> bool:
    """H~2~O: one tilde on each side of a few letters or digits, behind a letter or a bracket."""
    src, pos = state.src, state.pos
    if (
        src[pos] != "~"
        or not pos
        or not (src[pos - 1].isalpha() or src[pos - 1] in ")]")
        or src[pos + 1 : pos + 2] == "~"
    ):
        return False
    found = _SUBSCRIPT.match(src, pos, state.posMax)
    if found is None:
        return False
    if not silent:
        state.push("sub_open", "sub", 1)
        state.push("text", "", 0).content = found[1]
        state.push("sub_close", "sub", -1)
    state.pos = found.end()
    return True


def bare_link(state: StateInline, silent: bool) -> bool:
    """An address in the text is a link; the stop, the quote or the bracket behind it is none of it."""
    src, pos = state.src, state.pos
    scheme = _SCHEME.search(state.pending) if src[pos] == ":" and not state.linkLevel else None
    if scheme is None:
        return False
    start = pos - len(scheme[0])
    found = _ADDRESS.match(src, start, min(state.posMax, start + _LONGEST_ADDRESS))
    address = _without_punctuation(found[0]) if found else ""
    if len(address) <= len(scheme[0]) + 3:
        return False
    if not silent:
        state.pending = state.pending[: -len(scheme[0])]
        token = state.push("link_open", "a", 1)
        token.attrs = {"href": state.md.normalizeLink(address), "dir": "auto"}
        state.push("text", "", 0).content = address
        state.push("link_close", "a", -1)
    state.pos = start + len(address)
    return True


def _without_punctuation(address: str) -> str:
    while address and (address[-1] in ".,;:!?'*_~" or _closes_too_much(address)):
        address = address[:-1]
    return address


def _closes_too_much(address: str) -> bool:
    opener = _PAIRS.get(address[-1])
    return opener is not None and address.count(address[-1]) > address.count(opener)


def mark_task(item: Token, inline: Token) -> None:
    """`[ ]` and `[x]` at the start of a list item are boxes."""
    children = inline.children or []
    if not children or children[0].type != "text":
        return
    found = _TASK.match(children[0].content)
    if found is None:
        return
    item.attrs["class"] = " ".join(filter(None, (str(item.attrs.get("class", "")), "task")))
    children[0].content = ("\u2610 " if found[1] == " " else "\u2611 ") + children[0].content[found.end() :]


def break_lines(inline: Token) -> None:
    """`<br>` in a table's cell is a line break; there is no other way to write one."""
    made: list[Token] = []
    for child in inline.children or []:
        if child.type != "text" or "<" not in child.content:
            made.append(child)
            continue
        for index, part in enumerate(_BREAK.split(child.content)):
            if index:
                made.append(Token("hardbreak", "br", 0))
            made.append(Token("text", "", 0, content=part))
    inline.children = made

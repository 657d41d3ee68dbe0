r"""Draws one segment: markdown-it with our formulas, links and emphasis, then the allow-list.

What differs from plain CommonMark, and why: HTML is text; images and links are one rule that looks at each bracket once
(markdown-it's own takes quadratic time on brackets); link definitions and underlined headings are off, because a later
line would change what is already on the page; a list item is loose only if it holds several paragraphs itself, so that
a list may be cut anywhere; a single line break is a line break.
"""

import re
from dataclasses import replace
from functools import lru_cache
from html import escape
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.common.utils import isMdAsciiPunct, isPunctChar, isWhiteSpace, unescapeAll
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock, code
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Delimiter
from markdown_it.token import Token

from app.render.begun import without_what_begins
from app.render.clean import cleaned
from app.render.dollars import begins_dollar_formula, dollar_formula
from app.render.extras import bare_link, break_lines, footnote, mark_task, subscript
from app.render.formulas import DISPLAY_ENVIRONMENTS, certain_latex, draws, formula
from app.render.highlight import code_block
from app.render.products import is_product, may_close
from app.render.segments import Segment, begins_formula, cannot_be_formula, open_formula
from app.render.trees import split_tree

_MAX_LEVEL = 20
_IS_OPEN = "is_open"
_HELD_BACK = '<span class="latex-open">\u2026</span>'
_MAX_URL_CHARS = 2048

_DOUBLE_DOLLAR = re.compile(r"\$\$((?:\\.|[^\\$]|\$(?!\$))+)\$\$", re.DOTALL)
_ENVIRONMENT = re.compile(r"\\begin\{([a-zA-Z]+\*?)\}")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_BRACKETS = re.compile(r"\\.|(`+)|[\[\]]", re.DOTALL)
_STOP = re.compile(r"[.,;:](?=[ \t]*(?:\n|$))")
_TARGET = re.compile(
    r"\([ \t\n]*(?:<([^<>\n]*)>|([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*))"
    r"(?:[ \t\n]+(?:\"[^\"\n]*\"|'[^'\n]*'|\([^()\n]*\)))?[ \t\n]*\)"
)
_FULL_WIDTH_END = re.compile(r"\\end\{(?:align|gather|equation|multline|flalign|alignat|eqnarray)\*?\}$|$")
_ADDRESS = re.compile(r"(?:https?://[^\s/?#\\@]|mailto:[^\s\\])[^\s\\]*", re.IGNORECASE)
_HEAD_RULE = re.compile(r"^[ \t>]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)+\|?[ \t]*$", re.MULTILINE)
_PIPED = re.compile(r"(`+)[^`\n]+\1|\\\(.*?\\\)|\$(?![\s$])(?:\\[^\n]|[^\\$`\n])+(?<!\s)\$(?!\d)")
_CJK = re.compile("[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef]")


def draw(segment: Segment, *, is_open: bool = False) -> str:
    """The clean HTML of a segment; "" where there is nothing to see.

    `is_open`: more of it is still being written. A formula or a table that has only begun is held back, as its source
    would flash for a moment.
    """
    if segment.is_code:
        return cleaned(code_block(segment.text, segment.language, is_continued=segment.is_continued))
    text = without_what_begins(segment.text) if is_open else segment.text
    if not text:
        return ""
    before, tree, after = split_tree(text)
    if not tree:
        return _drawn(text, segment, is_open=is_open)
    around = replace(segment, numbers=(), reopened=0)
    drawn = (_drawn(before, segment, is_open=False) if before else "") + cleaned(code_block(tree, ""))
    return drawn + (_drawn(after, around, is_open=is_open) if after else "")


def _drawn(text: str, segment: Segment, *, is_open: bool) -> str:
    parser = _parser()
    tokens = parser.parse(_with_table_pipes_kept(text), {_IS_OPEN: is_open})
    _settle(tokens, segment)
    return cleaned(str(parser.renderer.render(tokens, parser.options, {})))


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": 100})
    parser.enable(["table", "strikethrough"]).disable(
        ["reference", "lheading", "link", "image", "html_block", "html_inline"]
    )
    parser.block.ruler.before("table", "too_deep", _too_deep)
    parser.block.ruler.at("code", _indented_code)
    parser.block.ruler.at("paragraph", _paragraph)
    parser.inline.ruler.before("escape", "formula", _formula)
    parser.inline.ruler.before("autolink", "own_link", _link)
    parser.inline.ruler.at("emphasis", _emphasis)
    parser.inline.ruler.before("own_link", "footnote", footnote)
    parser.inline.ruler.before("strikethrough", "subscript", subscript)
    parser.inline.ruler.before("formula", "bare_link", bare_link)
    for name in ("math_inline", "math_display"):
        parser.add_render_rule(name, _draw_formula)
    for name in ("fence", "code_block"):
        parser.add_render_rule(name, _draw_code)
    parser.add_render_rule("table_open", lambda *_: '<div class="table-wrap"><table dir="auto">\n')
    parser.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return parser


# Blocks


def _too_deep(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Markdown this deep is shown as it was written; markdown-it would drop it."""
    if state.level < _MAX_LEVEL or silent:
        return False
    state.push("paragraph_open", "p", 1)
    token = state.push("inline", "", 0)
    text = Token("text", "", 0, content=state.getLines(start, end, 0, False))
    token.content, token.children = "", [text]
    state.push("paragraph_close", "p", -1)
    state.line = end
    return True


def _line(state: StateBlock, number: int) -> str:
    return state.src[state.bMarks[number] + state.tShift[number] : state.eMarks[number]]


def _indented_code(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    return not begins_formula(_line(state, start)) and code(state, start, end, silent)


def _paragraph(state: StateBlock, start: int, end: int, _silent: bool) -> bool:
    """CommonMark's paragraph, but lines inside a display formula are no lists, quotes or headings."""
    terminators = state.md.block.ruler.getRules("paragraph")
    end = state.lineMax
    parent, state.parentType = state.parentType, "paragraph"
    unclosed: set[str] = set()
    line, closer = start + 1, open_formula(_line(state, start), None)
    while line < end:
        if closer:
            last = None if closer in unclosed else _last_formula_line(state, line, closer)
            if last is not None:
                closer = open_formula(_line(state, last), closer)
                line = last + 1
                continue
            unclosed.add(closer)
            closer = None
            if begins_formula(_line(state, line - 1)):
                while (
                    line < end
                    and not state.isEmpty(line)
                    and not cannot_be_formula(_line(state, line), is_after_blank=False)
                ):
                    line += 1
        if line >= end or state.isEmpty(line):
            break
        is_lazy = state.sCount[line] - state.blkIndent > 3 or state.sCount[line] < 0
        if not is_lazy and any(rule(state, line, end, True) for rule in terminators):
            break
        closer = open_formula(_line(state, line), closer)
        line += 1
    content = state.getLines(start, line, state.blkIndent, False).strip()
    state.line = line
    state.push("paragraph_open", "p", 1).map = [start, line]
    token = state.push("inline", "", 0)
    token.content, token.map, token.children = content, [start, line], []
    state.push("paragraph_close", "p", -1)
    state.parentType = parent
    return True


def _last_formula_line(state: StateBlock, line: int, closer: str) -> int | None:
    may_hold_blanks = begins_formula(_line(state, line - 1))
    is_after_blank = False
    for number in range(line, state.lineMax):
        if state.isEmpty(number):
            if not may_hold_blanks:
                return None
            is_after_blank = True
            continue
        text = _line(state, number)
        if is_after_blank and state.sCount[number] < state.blkIndent:
            return None
        if cannot_be_formula(text, is_after_blank=is_after_blank):
            return None
        if closer in text and open_formula(text, closer) != closer:
            return number
        is_after_blank = False
    return None


def _with_table_pipes_kept(text: str) -> str:
    """Bars inside formulas and code do not split a table's cells."""
    if "|" not in text or not (rule := _HEAD_RULE.search(text)):
        return text
    start = text.rfind("\n", 0, max(rule.start() - 1, 0)) + 1
    end = text.find("\n\n", rule.end())
    end = len(text) if end < 0 else end
    rows = _PIPED.sub(lambda found: found[0].replace("|", "\\|"), text[start:end])
    return text[:start] + rows + text[end:]


# Inline


def _formula(state: StateInline, silent: bool) -> bool:
    src, pos, end = state.src, state.pos, state.posMax
    if src[pos] == "$":
        return _dollars(state, silent)
    if src[pos] != "\\" or pos + 1 >= end:
        return False
    kind = src[pos + 1]
    if kind in ")]":
        if not silent:
            state.pending += src[pos : pos + 2]
        state.pos += 2
        return True
    if kind in "([":
        close = _closing(src, pos + 2, end, ")" if kind == "(" else "]")
        if close < 0:
            return _as_written(state, silent, to_line_end=kind == "(")
        return _push_formula(state, silent, src[pos + 2 : close], close + 2, is_display=kind == "[")
    if kind == "b" and src.startswith("\\boxed{", pos):
        close = _brace_end(src, pos + 7, end)
        if close < 0:
            return _as_written(state, silent, to_line_end=True)
        return _push_formula(state, silent, src[pos:close], close, is_display=_is_alone(src, pos, close))
    if certain := certain_latex(src, pos, end):
        if certain.end is None:
            return _hold_back(state, silent) if state.env.get(_IS_OPEN) else False
        if draws(src[pos : certain.end]):
            return _push_formula(state, silent, src[pos : certain.end], certain.end, is_display=False)
    if kind == "b" and (found := _ENVIRONMENT.match(src, pos, end)) and found[1] in DISPLAY_ENVIRONMENTS:
        close = _environment_end(src, pos, end, found[1])
        if close < 0:
            return _as_written(state, silent, to_line_end=False)
        return _push_formula(state, silent, src[pos:close], close, is_display=True)
    return False


def _dollars(state: StateInline, silent: bool) -> bool:
    src, pos, end = state.src, state.pos, state.posMax
    if src.startswith("$$", pos):
        found = _DOUBLE_DOLLAR.match(src, pos, end)
        if found:
            return _push_formula(state, silent, found[1], found.end(), is_display=True)
        if _is_line_start(src, pos):
            return _as_written(state, silent, to_line_end=False)
        if state.env.get(_IS_OPEN):
            return _hold_back(state, silent)
        if not silent:
            state.pending += "$$"
        state.pos += 2
        return True
    found_formula = dollar_formula(src, pos, end)
    if found_formula is None:
        return state.env.get(_IS_OPEN, False) and begins_dollar_formula(src, pos, end) and _hold_back(state, silent)
    latex, close = found_formula
    return _push_formula(state, silent, latex, close, is_display=False)


def _push_formula(state: StateInline, silent: bool, latex: str, end: int, *, is_display: bool) -> bool:
    source = state.src[state.pos : end]
    if not silent:
        if is_display and (stop := _STOP.match(state.src, end, state.posMax)):
            latex, end = _with_stop(latex.rstrip(), stop[0]), stop.end()
        token = state.push("math_display" if is_display else "math_inline", "", 0)
        token.content, token.markup = latex, source
    state.pos = end
    return True


def _with_stop(latex: str, stop: str) -> str:
    """The full stop behind a display formula belongs into its last line."""
    return _FULL_WIDTH_END.sub(lambda found: stop + found[0], latex, count=1) if latex[-1:] == "}" else latex + stop


def _as_written(state: StateInline, silent: bool, *, to_line_end: bool) -> bool:
    """A formula that has not closed: text up to the end of the line or of the paragraph, whatever stands in it."""
    end = state.src.find("\n", state.pos, state.posMax) if to_line_end else -1
    if end < 0 and state.env.get(_IS_OPEN):
        return _hold_back(state, silent)
    end = state.posMax if end < 0 else end
    if not silent:
        for number, line in enumerate(state.src[state.pos : end].split("\n")):
            if number:
                state.push("softbreak", "br", 0)
            state.pending += line.strip() if number else line
    state.pos = end
    return True


def _hold_back(state: StateInline, silent: bool) -> bool:
    """A formula that is being written: three dots stand for it until it closes."""
    if not silent:
        state.push("html_inline", "", 0).content = _HELD_BACK
    state.pos = state.posMax
    return True


def _closing(src: str, start: int, end: int, bracket: str) -> int:
    r"""Where `\)` or `\]` stands behind `start`, not counting the bracket behind a row's `\\`; -1 without one."""
    mark = "\\" + bracket
    found = src.find(mark, start, end)
    while found >= 0:
        backslashes = 0
        while found - backslashes > start and src[found - backslashes - 1] == "\\":
            backslashes += 1
        if backslashes % 2 == 0:
            return found
        found = src.find(mark, found + 2, end)
    return -1


def _brace_end(src: str, start: int, end: int) -> int:
    depth = 1
    for found in _BRACES.finditer(src, start, end):
        depth += (found[0] == "{") - (found[0] == "}")
        if depth == 0:
            return found.end()
    return -1


def _environment_end(src: str, start: int, end: int, name: str) -> int:
    depth = 0
    for found in re.compile(r"\\(begin|end)\{" + re.escape(name) + r"\}").finditer(src, start, end):
        depth += 1 if found[1] == "begin" else -1
        if depth == 0:
            return found.end()
    return -1


def _is_line_start(src: str, pos: int) -> bool:
    return not src[src.rfind("\n", 0, pos) + 1 : pos].strip()


def _is_alone(src: str, start: int, end: int) -> bool:
    line_end = src.find("\n", end)
    return _is_line_start(src, start) and not src[end : line_end if line_end >= 0 else len(src)].strip(" \t.。")


@lru_cache(maxsize=8)
def _bracket_pairs(src: str) -> dict[int, int]:
    pairs: dict[int, int] = {}
    opened: list[int] = []
    code = ""
    for found in _BRACKETS.finditer(src):
        if found[1]:
            code = "" if code == found[1] else code or (found[1] if src.find(found[1], found.end()) >= 0 else "")
        elif code:
            continue
        elif found[0] == "[":
            opened.append(found.start())
        elif found[0] == "]" and opened:
            pairs[opened.pop()] = found.start()
    return pairs


def _link(state: StateInline, silent: bool) -> bool:
    """A link, or an image as a link: nothing is fetched from elsewhere just because a model wrote it."""
    src, pos = state.src, state.pos
    is_image = src.startswith("![", pos)
    opening = pos + 1 if is_image else pos
    if src[opening : opening + 1] != "[" or state.linkLevel:
        return False
    closing = _bracket_pairs(src).get(opening, -1)
    if closing < 0 or src[closing + 1 : closing + 2] != "(":
        return False
    target = _TARGET.match(src, closing + 1, min(state.posMax, closing + _MAX_URL_CHARS))
    address = unescapeAll(target[1] or target[2] or "") if target else ""
    if target is None or not _ADDRESS.fullmatch(address):
        return False
    if not silent:
        _push_link(state, address, opening + 1, closing, is_image=is_image)
    state.pos = target.end()
    return True


def _push_link(state: StateInline, address: str, start: int, end: int, *, is_image: bool) -> None:
    token = state.push("link_open", "a", 1)
    token.attrs = {"href": state.md.normalizeLink(address), "dir": "auto"}
    whole_end = state.posMax
    state.linkLevel += 1
    state.pos, state.posMax = start, end
    state.md.inline.tokenize(state)
    state.posMax = whole_end
    state.linkLevel -= 1
    if is_image:
        host = state.push("html_inline", "", 0)
        host.content = f' <span class="link-host" dir="auto">({escape(_host(address))})</span>'
    state.push("link_close", "a", -1)


def _host(address: str) -> str:
    try:
        return urlsplit(address).hostname or address[:40]
    except ValueError:
        return address[:40]


def _emphasis(state: StateInline, silent: bool) -> bool:
    """CommonMark's emphasis; beside a formula or Chinese, Japanese or Korean text, `**` acts as in a word.

    Stars between operands (`2*3*4`, `x**2`) are a product or a power: they open nothing, and close only what words
    opened.
    """
    marker = state.src[state.pos]
    if silent or marker not in "*_":
        return False
    start, pos = state.pos, state.pos
    while pos < state.posMax and state.src[pos] == marker:
        pos += 1
    before = state.src[start - 1] if start else " "
    after = state.src[pos] if pos < state.posMax else " "
    is_space_before, is_space_after = isWhiteSpace(ord(before)), isWhiteSpace(ord(after))
    is_stop_before, is_stop_after = _is_stop(before), _is_stop(after)
    opens = not is_space_after and (not is_stop_after or is_space_before or is_stop_before or bool(_CJK.match(before)))
    closes = not is_space_before and (not is_stop_before or is_space_after or is_stop_after or bool(_CJK.match(after)))
    can_open, can_close = opens, closes
    if marker == "_":
        can_open, can_close = opens and (not closes or is_stop_before), closes and (not opens or is_stop_after)
    elif is_product(state.src, start, pos):
        can_open = False
        can_close = closes and may_close(state.src, start, pos) and _is_emphasized(state, ord(marker), pos - start)
    for _ in range(pos - start):
        state.push("text", "", 0).content = marker
        state.delimiters.append(Delimiter(ord(marker), pos - start, len(state.tokens) - 1, -1, can_open, can_close))
    state.pos = pos
    return True


def _is_emphasized(state: StateInline, marker: int, length: int) -> bool:
    """Whether a run of this length is open before here."""
    depth, delimiters = 0, state.delimiters
    at = 0
    while at < len(delimiters):
        one = delimiters[at]
        at += one.length if one.marker == marker else 1
        if one.marker == marker and one.length == length:
            depth += 1 if one.open and not (one.close and depth) else -1 if depth else 0
    return depth > 0


def _is_stop(char: str) -> bool:
    return char not in "$\\" and (isMdAsciiPunct(ord(char)) or isPunctChar(char))


# From tokens to HTML


def _settle(tokens: list[Token], segment: Segment) -> None:
    """Text directions, cell alignment, one kind of list, and the numbers a continued list goes on with."""
    numbers, reopened = list(segment.numbers), segment.reopened
    items: list[list[Token]] = []
    lists: list[_Count] = []
    item: Token | None = None
    is_in_cell = False
    for token in tokens:
        kind = token.type
        if kind == "inline":
            _settle_breaks(token)
            if item is not None:
                mark_task(item, token)
            if is_in_cell:
                break_lines(token)
            item = None
        elif kind == "list_item_open":
            item = token
            items.append([])
            if lists:
                lists[-1].number(token)
            token.attrs["dir"] = "auto"
            if reopened:
                token.attrs["class"] = "cont"
                reopened -= 1
        elif kind == "list_item_close":
            paragraphs = items.pop()
            for one in paragraphs:
                one.hidden = len(paragraphs) < 3
        elif kind in ("paragraph_open", "paragraph_close"):
            if kind == "paragraph_open":
                token.attrs["dir"] = "auto"
            if items:
                items[-1].append(token)
        elif kind in ("blockquote_open", "heading_open", "th_open", "td_open"):
            style = str(token.attrs.pop("style", ""))
            if style:
                token.attrs["class"] = style.removeprefix("text-align:")
            token.attrs["dir"] = "auto"
            if segment.is_continued and kind == "blockquote_open" and token.level == 0:
                token.attrs["class"] = "cont"
            is_in_cell = kind in ("th_open", "td_open")
        elif kind in ("ordered_list_open", "bullet_list_open"):
            if token.map and token.map[0] == 0:
                if numbers and kind == "ordered_list_open":
                    token.attrs["start"] = numbers[0]
                if segment.is_continued:
                    token.attrs["class"] = "cont"
                numbers = numbers[1:]
            lists.append(_Count(token))
        elif kind in ("ordered_list_close", "bullet_list_close"):
            lists.pop()


class _Count:
    """The numbers of a list's items: the model's own, and Markdown's where it writes the same one again."""

    def __init__(self, opening: Token) -> None:
        self._is_ordered = opening.type == "ordered_list_open"
        self._shown = int(opening.attrs.get("start", 1)) - 1
        self._written: int | None = None

    def number(self, item: Token) -> None:
        if not self._is_ordered:
            return
        written = int(item.info) if item.info.isdigit() else 0
        is_first, expected = self._written is None, self._shown + 1
        self._shown = expected if is_first or written == self._written else written
        self._written = written
        if self._shown != expected:
            item.attrs["value"] = self._shown


def _settle_breaks(token: Token) -> None:
    """A display formula is a line of its own already."""
    children = token.children or []
    if not any(child.type == "math_display" for child in children):
        return
    kept: list[Token] = []
    for child in children:
        is_break = child.type in ("softbreak", "hardbreak")
        if is_break and kept and kept[-1].type == "math_display":
            continue
        if child.type == "math_display" and kept and kept[-1].type in ("softbreak", "hardbreak"):
            kept.pop()
        kept.append(child)
    token.children = kept


def _draw_formula(_self: RendererHTML, tokens: list[Token], index: int, _options: Any, _env: Any) -> str:
    token = tokens[index]
    return formula(token.markup, token.content, is_display=token.type == "math_display")


def _draw_code(_self: RendererHTML, tokens: list[Token], index: int, _options: Any, _env: Any) -> str:
    token = tokens[index]
    return code_block(token.content, unescapeAll(token.info).strip().split(" ")[0])

r"""LaTeX to MathML Core. Knows nothing of Markdown; what it cannot draw, it gives back as source.

Formulas are hostile input. The converter recurses on its own machine stack and ends the process on a formula that nests
thousands deep, so length, depth and the number of commands are held before it is called. Definitions (`\def`,
`\newcommand`) are refused. Its inline styles become classes, and its colours attributes: no style and no id ever leaves
this module.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from html import escape

from math_core import LatexError, LatexToMathML

from app.render.boxed import boxed_sentence

MAX_FORMULA_CHARS = 8192
_MAX_DEPTH = 48
_MAX_COMMANDS = 1000

_ENVIRONMENT_NAMES = """
    align align* aligned alignat alignat* alignedat equation equation* eqnarray eqnarray* gather gather* gathered
    flalign flalign* multline multline* split matrix pmatrix bmatrix Bmatrix vmatrix Vmatrix smallmatrix cases
    dcases rcases array subequations
"""
DISPLAY_ENVIRONMENTS = frozenset(_ENVIRONMENT_NAMES.split())

_MACROS = {
    "mbox": r"\text{#1}",
    "textnormal": r"\text{#1}",
    "hbox": r"\text{#1}",
    "overarc": r"\overparen{#1}",
    "arc": r"\overparen{#1}",
    "substack": r"\begin{matrix}#1\end{matrix}",
    "smash": "#1",
    "ensuremath": "#1",
    "llap": "#1",
    "rlap": "#1",
    "pmb": r"\boldsymbol{#1}",
    "bold": r"\mathbf{#1}",
    "qed": r"\square",
    "hfill": r"\quad",
    "R": r"\mathbb{R}",
    "N": r"\mathbb{N}",
    "Z": r"\mathbb{Z}",
    "Q": r"\mathbb{Q}",
    "C": r"\mathbb{C}",
    "abs": r"\left|#1\right|",
    "norm": r"\left\|#1\right\|",
    "dd": r"\mathrm{d}#1",
    "dv": r"\frac{\mathrm{d}#1}{\mathrm{d}#2}",
    "pdv": r"\frac{\partial #1}{\partial #2}",
    "dbinom": r"\binom{#1}{#2}",
    "intertext": r"\\\text{#1}\\",
    "textdegree": r"\degree",
    "cancelto": r"\cancel{#2}^{#1}",
}
_RENAMED = {
    "split": "aligned",
    "alignedat": "aligned",
    "smallmatrix": "matrix",
    "eqnarray": "align*",
    "eqnarray*": "align*",
    "alignat": "align*",
    "alignat*": "align*",
    "flalign": "align*",
    "flalign*": "align*",
    "align": "align*",
    "gather": "gather*",
    "equation": "equation*",
    "multline": "multline*",
}

_DEFINES = re.compile(
    r"\\(?:(?:re|provide)?newcommand|providecommand|renewcommand|[gex]?def|let|global|futurelet)(?![a-zA-Z])"
)
_NESTS = re.compile(r"\\.|[{}]", re.DOTALL)
_CERTAIN = re.compile(
    r"\\([dtc]?frac|[dt]?binom|sqrt)(?![a-zA-Z])(?:(?<=sqrt)\[[^\[\]{}\n]{1,20}\]|(?<=frac)(\d\d)(?!\d))?"
)
_POWER = re.compile(r"[\^_](?:\{|[0-9a-zA-Z])")
_COMMAND = re.compile(r"\\[a-zA-Z]")
_ENVIRONMENT = re.compile(r"\\(begin|end)\{([a-z]+\*?)\}(?:(?<=at\})\{\d+\}|(?<=at\*\})\{\d+\})?")
_ROW_SPACE = re.compile(r"(?<!\\)((?:\\\\)+)\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm|in)\s*\]")
_NUMBERING = re.compile(r"\\(?:nonumber|notag)(?![a-zA-Z])|\\label\s*\{[^{}]*\}")
_TAG = re.compile(r"\\tag\*?\s*\{([^{}]*)\}")
_SIZES = re.compile(
    r"\\(?:tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge|displaylimits|allowbreak"
    r"|begin\{subequations\}|end\{subequations\}|centering|bigskip|medskip|smallskip|noindent)(?![a-zA-Z])"
)
_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_TEXT_FORMULA = re.compile(r"\$([^$]*)\$|\\\((.*?)\\\)")
_REFERENCE = re.compile(r"\\(?:eq)?ref\s*\{([^{}]*)\}")
_COLUMNS = re.compile(r"\\begin\{array\}\s*\{([^{}]*)\}")
_LAST_RULE = re.compile(r'<mtr><mtd style="border-top: 0\.05em \w+ currentcolor;[^"]*"></mtd></mtr></mtable>')
_REPAIRABLE = re.compile(r"\\\\\s*\[|\\(?:begin|nonumber|notag|label|tag|ref|eqref)(?![a-zA-Z])")

_BOX = '<menclose notation="box">'
_ENCLOSED = re.compile(r"<menclose[^>]*>|</menclose>")
_STYLED = re.compile(r'( class="[^"]*")? (style|id|href|voffset|title)="([^"]*)"')
# A space of forty em would widen or cover the page
_TOO_WIDE = re.compile(r'="-?(?:[4-9]\d|\d{3,})(?:\.\d+)?(?:r?em|ex|px|%)')
_CLASS_OF = {
    "width: 100%": "m-full",
    "width: 50%": "m-half",
    "width: 7.5%": "m-edge",
    "text-align: right": "m-right",
    "text-align: left": "m-left",
    "padding-left: 0": "m-l0",
    "padding-right: 0": "m-r0",
    "padding-left:0": "m-l0",
    "padding-right:0": "m-r0",
    "padding-left:1em": "m-l1",
    "padding-right:0.2778em": "m-rthick",
    "padding-left:0.2778em": "m-lthick",
    "padding-left: 0.1em": "m-lthin",
    "padding-right: 0.1em": "m-rthin",
    "padding-top: 0": "m-t0",
    "padding-bottom: 0": "m-b0",
    "padding-top: 0.1667em": "m-tthin",
    "margin-left:-0.16666667em": "m-back",
    "border-left: 0.05em solid currentcolor": "m-bl",
    "border-right: 0.05em solid currentcolor": "m-br",
    "border-top: 0.05em solid currentcolor": "m-bt",
    "border-bottom: 0.05em solid currentcolor": "m-bb",
    "border-left: 0.05em dashed currentcolor": "m-bl m-dash",
    "border-right: 0.05em dashed currentcolor": "m-br m-dash",
    "border-top: 0.05em dashed currentcolor": "m-bt m-dash",
    "border-bottom: 0.05em dashed currentcolor": "m-bb m-dash",
    "math-shift:compact": "m-compact",
}
MATH_CLASSES = frozenset(" ".join(_CLASS_OF.values()).split()) | {
    "m-rule",
    "m-box",
    "menclose-updiagonalstrike",
    "menclose-downdiagonalstrike",
    "menclose-phasorangle",
}
_COLOUR = re.compile(r"color:(#[0-9A-Fa-f]{6})")


@lru_cache(maxsize=1)
def _converter() -> LatexToMathML:
    return LatexToMathML(macros=_MACROS, max_expansions=200, fancy_error=False, allow_unreliable_rendering=True)


def formula(source: str, latex: str, *, is_display: bool) -> str:
    """The MathML of `latex`, or `source` (the formula with its delimiters) as text where it cannot be drawn."""
    if len(latex) <= MAX_FORMULA_CHARS:
        if sentence := boxed_sentence(latex, _inside_a_sentence):
            return sentence
        if drawn := _draw(latex, is_display):
            return f'<span class="math-display">{drawn}</span>' if is_display else drawn
    return _source(source)


def _source(source: str) -> str:
    return f'<code class="latex-source">{escape(source.strip(), quote=False)}</code>'


@dataclass(frozen=True, slots=True)
class CertainLatex:
    """Bare LaTeX in a text; `end` is None where its braces do not close."""

    end: int | None


def certain_latex(text: str, start: int, limit: int) -> CertainLatex | None:
    r"""LaTeX without delimiters that can be nothing else (`\dfrac{1}{2}`, `\sqrt[3]{x}`); None where there is none."""
    found = _CERTAIN.match(text, start, limit)
    if found is None:
        return None
    at = found.end()
    for _ in range(0 if found[2] else 1 if found[1] == "sqrt" else 2):
        if at >= limit or text[at] != "{":
            return CertainLatex(None) if at >= limit else None
        end = _group_end(text, at + 1, limit)
        if end is None:
            return CertainLatex(None)
        at = end
    while power := _POWER.match(text, at, limit):
        end = _group_end(text, power.end(), limit) if power[0].endswith("{") else power.end()
        if end is None:
            return CertainLatex(None)
        at = end
    return CertainLatex(at)


def _group_end(text: str, start: int, limit: int) -> int | None:
    depth = 1
    for found in _NESTS.finditer(text, start, min(limit, start + MAX_FORMULA_CHARS)):
        depth += (found[0] == "{") - (found[0] == "}")
        if depth == 0:
            return found.end()
    return None


def draws(latex: str) -> bool:
    """Whether the converter takes it."""
    return len(latex) <= MAX_FORMULA_CHARS and _draw(latex, False) is not None


def _inside_a_sentence(latex: str) -> str:
    return _draw(latex, False) or _source(latex)


def _draw(latex: str, is_display: bool) -> str | None:
    if not latex.strip() or _is_too_deep(latex) or _DEFINES.search(latex):
        return None
    first = _repaired(latex) if _REPAIRABLE.search(latex) else latex
    drawn = _converted(first, is_display)
    if drawn is None and (second := _reworded(first)) != first:
        drawn = _converted(second, is_display)
    if drawn is None or _TOO_WIDE.search(drawn):
        return None
    if "hline" in latex and (columns := _COLUMNS.search(latex)):
        drawn = _LAST_RULE.sub(_last_rule(columns[1]), drawn)
    return _STYLED.sub(_classed, _with_our_boxes(drawn) if _BOX in drawn else drawn)


def _with_our_boxes(drawn: str) -> str:
    """Boxes are drawn by a class: of the browsers that know the element some would draw them twice."""
    open_ones: list[bool] = []

    def replaced(found: re.Match[str]) -> str:
        if found[0].startswith("</"):
            return "</mrow>" if open_ones and open_ones.pop() else found[0]
        open_ones.append(found[0] == _BOX)
        return '<mrow class="m-box">' if open_ones[-1] else found[0]

    return _ENCLOSED.sub(replaced, drawn)


def _last_rule(columns: str) -> str:
    """The converter draws the rule below an array under its first column only."""
    return (
        f'<mtr><mtd class="m-rule" columnspan="{sum(columns.count(one) for one in "lcr") or 1}"></mtd></mtr></mtable>'
    )


def _converted(latex: str, is_display: bool) -> str | None:
    try:
        return _converter().convert_with_local_state(latex, displaystyle=is_display)
    except LatexError:
        return None


def _is_too_deep(latex: str) -> bool:
    if len(latex) > _MAX_DEPTH and len(_COMMAND.findall(latex)) > _MAX_COMMANDS:
        return True
    if latex.count("{") <= _MAX_DEPTH:
        return False
    depth = 0
    for found in _NESTS.finditer(latex):
        mark = found[0]
        depth += (mark == "{") - (mark == "}")
        if depth > _MAX_DEPTH:
            return True
    return False


def _repaired(latex: str) -> str:
    """What converts but not as meant: a number (1) on every lone equation, row spacing shown as text."""
    latex = _ENVIRONMENT.sub(lambda found: rf"\{found[1]}{{{_RENAMED.get(found[2], found[2])}}}", latex)
    latex = _NUMBERING.sub("", _ROW_SPACE.sub(r"\1", latex))
    return _TAG.sub(r"\\qquad\\text{(\1)}", _REFERENCE.sub(r"\\text{(\1)}", latex))


def _reworded(latex: str) -> str:
    """What models write and the converter does not know."""
    latex = _SIZES.sub("", latex).replace(r"\hspace*", r"\hspace")
    return _TEXT.sub(_opened_text, latex)


def _opened_text(found: re.Match[str]) -> str:
    r"""`\text{if $x$}` is a text, a formula and a text."""
    inner = re.sub(r"(?<!\\)([_#&^])", lambda one: "" if one[1] == "^" else "\\" + one[1], found[1])
    if "$" not in inner and "\\(" not in inner:
        return rf"\text{{{inner}}}"
    return r"\text{" + _TEXT_FORMULA.sub(r"}{\1\2}\\text{", found[1]) + "}"


def _classed(found: re.Match[str]) -> str:
    classes, name, value = found.groups()
    return (classes or "") + (_attributes(value) if name == "style" else "")


@lru_cache(maxsize=512)
def _attributes(style: str) -> str:
    declarations = [one.strip() for one in style.split(";")]
    classes = " ".join(_CLASS_OF[one] for one in declarations if one in _CLASS_OF)
    colour = next((found[1] for one in declarations if (found := _COLOUR.fullmatch(one))), "")
    return (f' class="{classes}"' if classes else "") + (f' mathcolor="{colour}"' if colour else "")

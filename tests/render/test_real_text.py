"""What real outputs showed, in our own words: products, dollars, boxes, lists, trees, and what has only begun."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.render import StreamRenderer, render
from app.render.clean import cleaned
from app.render.markdown import _parser, _settle
from app.render.segments import Segment
from tests.render.test_render import assert_harmless, streamed, visible


@pytest.mark.parametrize(
    "text",
    [
        "2*3*4",
        "x**2*exp(x)",
        "1*2*3*4*5",
        "a*b*c",
        "f(x)*g(x)*h(x)",
        "2*(3+4)*5",
        "rate*time*distance",
        "n!*k!*2",
        "\u03c0*r*r",
        "r\u00b2*h*\u03c0",
        "a[i]*b[j]*c",
        "x**2 + y**2 = z**2",
        "2**3**2",
        "e**(-x)*sin(x)**2",
        "-1*-2*-3",
        "3 *4*5",
        "0.5*m*v**2",
        "3*\\pi*r",
    ],
)
def test_the_stars_of_a_product_stay(text: str) -> None:
    assert visible(render(f"It is {text} here")).strip() == f"It is {text} here"


@pytest.mark.parametrize(
    ("text", "bold"),
    [
        ("\u8fd9\u662f**\u91cd\u70b9**\u5185\u5bb9", "\u91cd\u70b9"),
        ("**2**nd place", "2"),
        ("**x**-axis", "x"),
        ("un**believ**able", "believ"),
        ("**Total: 2*3*4 = 24**", "Total: 2*3*4 = 24"),
        ("**Note:** x**2", "Note:"),
        ("**$1.50**", "$1.50"),
        ("\u8fd9**2**\u4e2a", "2"),
    ],
)
def test_what_is_bold_stays_bold_beside_numbers(text: str, bold: str) -> None:
    assert re.findall("<strong>(.*?)</strong>", render(text)) == [bold]


def test_a_single_letter_may_be_italic_in_front_of_a_word() -> None:
    assert "<em>n</em>th" in render("the *n*th term")
    assert "<em>a*b*c</em>" in render("*a*b*c*")


@pytest.mark.parametrize(
    "text",
    [
        "Let $ x $ be",
        "$ F = ma $",
        "$ \\frac{2}{3} $",
        "($ x + 1 $)",
        "$ 2n = 40 $,",
        "$ D_A $",
        "$a$ and $b$",
        "$3x+2$",
    ],
)
def test_formulas_between_dollars_are_drawn_tight_or_spaced(text: str) -> None:
    assert "<math" in render(text)
    assert "$" not in visible(render(text))


@pytest.mark.parametrize(
    "text",
    [
        "from $ 5 to $ 10",
        "$2bn to $4bn",
        "$100-$200",
        "**$1.50** or **$2**",
        "US$5 and US$6",
        "$AAPL $TSLA",
        "$/PR and so $/session",
        "$5\\,x + $6",
        "it costs $ 5 or $ 10 more",
        "I have $5, you have 7$, fine",
        "$5 = $3 + $2",
        "A $ 100 bill and a $ 50 bill",
        "$1,000 $2,000",
        "$3.50/kg vs $4/kg",
        "$ 5 million is less than 6 $",
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_money_stays_text_for_every_cut(text: str, size: int) -> None:
    html = "".join(streamed(text, list(range(size, len(text), size))))
    assert "<math" not in html
    assert visible(html).count("$") == text.count("$")


def test_a_sentence_in_a_box_is_text_that_wraps_with_its_formulas_drawn() -> None:
    html = render(r"\[\boxed{\text{The goat goes first if } x > 2 \text{ holds, then the wolf.}}\]")
    assert '<span class="boxed">The goat goes first if <math>' in html
    assert "menclose" not in html
    assert "a savings and loan association" in render(r"\boxed{a savings and loan association}")
    assert "m-box" in render(r"\boxed{\frac{1}{2}}")
    assert "menclose" not in render(r"\boxed{\frac{\boxed{1}}{2}}")
    rows = render(r"\boxed{\begin{aligned} &1. \text{ the goat goes over first} \\ &2. \text{ the wolf} \end{aligned}}")
    assert "latex-source" not in rows
    assert_harmless(render(r"\boxed{\text{<b>hostile</b> & long enough to be one sentence}}"))


def test_a_box_in_a_box_ends_somewhere() -> None:
    text = "\\boxed{\\text{two words and more " * 40 + "x" + "}}" * 40
    assert_harmless(render(text))


def test_lists_show_the_numbers_that_the_model_wrote() -> None:
    html = render("1. a\n3. b\n4. c\n9. d")
    assert re.findall(r'<li(?: value="(\d+)")?', html) == ["", "3", "", "9"]
    assert 'value="' not in render("1. a\n1. b\n1. c")
    assert '<ol start="3">' in render("3. a\n4. b")


def test_a_long_list_goes_on_with_the_models_numbers() -> None:
    text = "\n".join(f"{2 * number + 1}. {'word ' * 60}" for number in range(20))
    shown: list[int] = []
    at = 0
    for found in re.finditer(r'<ol(?:[^>]* start="(\d+)")?[^>]*>|<li(?: value="(\d+)")?', render(text)):
        if found[0].startswith("<ol"):
            at = int(re.search(r'start="(\d+)"', found[0])[1]) - 1 if "start" in found[0] else 0  # type: ignore[index]
        else:
            at = int(found[2]) if found[2] else at + 1
            shown.append(at)
    assert shown == [2 * number + 1 for number in range(20)]


def test_tasks_footnotes_subscripts_and_breaks_in_cells_are_drawn() -> None:
    tasks = render("- [ ] one\n- [x] two")
    assert tasks.count('class="task"') == 2
    assert "\u2610 one" in tasks
    assert "\u2611 two" in tasks
    assert "see<sup>1</sup>" in render("see[^1]\n\n[^1]: The note.")
    assert "<sup>1</sup> The note." in render("see[^1]\n\n[^1]: The note.")
    assert "H<sub>2</sub>O" in render("H~2~O")
    assert "<s>gone</s>" in render("~~gone~~")
    assert "~5 to ~7" in render("~5 to ~7")
    assert "x<br>" in render("| a |\n|---|\n| x<br>y |")
    assert "&lt;br&gt;" in render("a <br> b")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("See https://example.org/a_b?x=1&y=2.", "https://example.org/a_b?x=1&amp;y=2"),
        ("(https://example.org/a_(b))", "https://example.org/a_(b)"),
        ("\u89c1 https://example.org/a\uff0c\u540e", "https://example.org/a"),
        ("**https://example.org**", "https://example.org"),
    ],
)
def test_a_bare_address_is_a_link_without_what_stands_behind_it(text: str, address: str) -> None:
    assert f'<a href="{address}"' in render(text)


@pytest.mark.parametrize("text", ["http://", "xhttps://a.b", "`https://a.b`", "javascript://a.b", "https://[x"])
def test_what_is_no_address_is_no_link(text: str) -> None:
    assert "<a " not in render(text)


@pytest.mark.parametrize(
    "tree",
    [
        "src/\n|--- a\n|    |--- b.py\n|--- c",
        "root\n\u251c\u2500\u2500 a\n\u2502   \u2514\u2500\u2500 b\n\u2514\u2500\u2500 c",
        "x/\n+-- a\n|   +-- b\n+-- c",
    ],
)
def test_a_tree_without_a_fence_keeps_its_lines_and_indent(tree: str) -> None:
    html = render(f"{tree}\n\nThen.")
    assert f'<code class="highlight">{tree}\n</code>' in html
    assert "<p" in html
    assert "<table" in render("| a | b |\n|---|---|\n| 1 | 2 |")


def test_bare_latex_is_drawn_where_it_can_be_nothing_else() -> None:
    html = render(r"Answer: \dfrac{1}{2}, \frac12, \sqrt[3]{x}^2 and \binom{n}{k}.")
    assert html.count("<math") == 4
    assert "\\" not in visible(html)
    for text in (r"C:\frac and D:\sqrt", r"\foo{1}", r"`\frac{1}{2}`", r"\frac{1"):
        assert "<math" not in render(text)


@pytest.mark.parametrize(
    "text",
    [
        r"so \(x = \frac{1}{",
        "\\[\nx_i^* + y_j^*\n- z",
        "$$\nx_1 *a* ",
        "so $$ x",
        r"\boxed{\frac{1",
        "\\begin{align*}\na &= b \\\\",
        "and $x + ",
        "and $\\fra",
        "it is \\dfrac{1}{",
        "it is \\fra",
    ],
)
def test_what_has_begun_of_a_formula_is_never_shown_as_source(text: str) -> None:
    stream = StreamRenderer()
    stream.push(text)
    assert not set("\\{}^_&$*") & set(visible(stream.tail()))


@pytest.mark.parametrize(
    "text", ["| a | b", "| a | b |", "| a | b |\n|", "| a | b |\n|--", "| a | b |\n|:--|-", "|a|b|"]
)
def test_the_head_of_a_table_is_never_shown_as_source(text: str) -> None:
    stream = StreamRenderer()
    stream.push(text)
    tail = stream.tail()
    assert "<th" in tail
    assert not set("|-") & set(visible(tail))


def test_an_amount_and_an_absolute_value_are_shown_while_they_are_written() -> None:
    for text in ("it costs $5 and", "|x| < 1"):
        stream = StreamRenderer()
        stream.push(text)
        assert visible(stream.tail()).strip() == text


LINES = st.sampled_from(
    ["word", "two words", "# Head", "- item", "  more", "    deep", "1. one", "2. two", "> quote", "```", "```py",
     "code()", "---", "| a | b |", "|---|---|", "| 1 | 2 |", "", "", "\\[\nx^2\n\\]", "$$\ny\n$$", "**b**",
     "* star", "~~~"]
)  # fmt: skip


def whole(text: str) -> str:
    """The document in one piece: markdown-it decides what is a block."""
    parser = _parser()
    tokens = parser.parse(text, {})
    _settle(tokens, Segment(text))
    return cleaned(str(parser.renderer.render(tokens, parser.options, {})))


@settings(max_examples=600, deadline=None)
@given(st.lists(LINES, max_size=14).map("\n".join))
def test_no_segment_border_differs_from_commonmarks(text: str) -> None:
    assert squeezed(render(text)) == squeezed(whole(text))


def squeezed(html: str) -> str:
    return re.sub(r"\s+", " ", html).replace(" </code>", "</code>")

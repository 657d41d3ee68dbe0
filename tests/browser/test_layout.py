"""Nothing overlaps, breaks or leaves the window, at the widths of phones, tablets and small laptops; and on paper."""

import io
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from pypdf import PdfReader

from tests.browser.conftest import DESKTOP, PHONE, Opens
from tests.browser.test_page import answer, ask
from tests.live import LiveServer
from tests.scripted import CLOSE

pytestmark = pytest.mark.browser

TITLE = "How many ways are there to place eight queens so far"
LONG = " + ".join(f"x_{{{number}}}^2" for number in range(40))
TABLE = """
| number of queens | solutions | fundamental | time in ms |
|---|---|---|---|
| 10 | 724 | 92 | 26 |
| 12 | 14200 | 1787 | 610 |
"""
WIDE = "\n\n".join(
    (f"So \\({LONG}\\) it is.", f"- item \\({LONG}\\)", f"> quote \\({LONG}\\)", f"## Head \\({LONG}\\)", TABLE)
)
_OVERLAPS = """() => {
  const SELECTOR = "#topbar button, #composer textarea, #send, .answer .actions button, .answer-text p, .code .copy";
  const panel = document.querySelector("#reasoning").getBoundingClientRect();
  const hits = [];
  for (const element of document.querySelectorAll(SELECTOR)) {
    const box = element.getBoundingClientRect();
    if (!box.width || !box.height || getComputedStyle(element).visibility === "hidden") continue;
    const isBeside = box.right <= panel.left + 1 || box.left >= panel.right;
    const isUnder = !isBeside && box.bottom > panel.top && box.top < panel.bottom;
    if (isUnder) hits.push(element.className || element.tagName);
  }
  return hits;
}"""


def asked(live_server: LiveServer, opens: Opens, width: int, height: int, written: str) -> Page:
    """A page with one answer."""
    live_server.engine.with_profile(context_window=100_000, budgets={"quick": 0, "normal": 50_000, "deep": 60_000})
    live_server.script(written)
    page = opens(viewport={"width": width, "height": height})
    ask(page, TITLE)
    answer(page)
    return page


def sideways(page: Page, selector: str) -> Any:
    """By how many pixels something scrolls sideways."""
    return page.locator(selector).evaluate("element => element.scrollWidth - element.clientWidth")


@pytest.mark.parametrize(("width", "height"), [(768, 1024), (834, 1112), (1024, 768), (1180, 820)])
def test_with_a_long_title_nothing_of_the_chat_lies_under_the_panel(
    live_server: LiveServer, opens: Opens, width: int, height: int
) -> None:
    page = asked(live_server, opens, width, height, f"Let me see.\n{CLOSE}\n\nIt is so.\n\n```py\nprint(1)\n```")
    if not page.locator("#reasoning").is_visible():
        page.locator(".chip").click()
    expect(page.locator("#reasoning")).to_be_visible()
    page.wait_for_function("document.getAnimations().every(one => one.playState !== 'running')")
    assert page.evaluate(_OVERLAPS) == []
    assert sideways(page, "#thread") == 0
    chat, panel = (page.locator(one).bounding_box() for one in ("#chat", "#reasoning"))
    assert chat is not None
    assert panel is not None
    assert chat["x"] + chat["width"] <= panel["x"] + 1


@pytest.mark.parametrize("size", [PHONE, DESKTOP])
def test_wide_formulas_and_tables_scroll_by_themselves_and_numbers_stay_whole(
    live_server: LiveServer, opens: Opens, size: dict[str, int]
) -> None:
    page = asked(live_server, opens, size["width"], size["height"], f"{WIDE}\n{CLOSE}\n\n{WIDE}")
    assert sideways(page, "#thread") == 0
    assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    if not page.locator("#reasoning").is_visible():
        page.locator(".chip").click()
    expect(page.locator(".reasoning-text td").first).to_be_visible()
    assert sideways(page, ".panel-scroll") == 0
    lines = page.evaluate(
        """() => [...document.querySelectorAll("td")].map(cell => {
             const range = document.createRange(); range.selectNodeContents(cell);
             return new Set([...range.getClientRects()].map(box => Math.round(box.top))).size; })"""
    )
    assert set(lines) == {1}


def test_effort_is_one_group_that_arrow_keys_move_in(opens: Opens) -> None:
    page = opens()
    names = page.locator("#effort input").evaluate_all("inputs => [...new Set(inputs.map(input => input.name))]")
    assert len(names) == 1
    page.locator("#effort input:checked").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#effort input:checked")).to_have_value("deep")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#effort input:checked")).to_have_value("quick")


def test_a_long_chat_is_printed_whole(live_server: LiveServer, opens: Opens) -> None:
    page = opens()
    for number in range(8):
        words = "\n\n".join(f"Paragraph {number}.{line} of the answer." for line in range(12))
        live_server.script(f"Thought{number}.\n{CLOSE}\n\nBegin{number}.\n\n{words}\n\nEnd{number}.")
        ask(page, f"Question{number}?")
        answer(page, number)
    pages = PdfReader(io.BytesIO(page.pdf(format="A4"))).pages
    text = "".join("".join(one.extract_text() for one in pages).split())
    for number in range(8):
        for word in (f"Question{number}?", f"Begin{number}.", f"End{number}."):
            assert word in text, word
    assert len(pages) > 2


def test_nothing_is_red_in_the_console_when_the_page_is_loaded(live_server: LiveServer, opens: Opens) -> None:
    page = opens()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(live_server.url)
    page.wait_for_selector("body.ponder-ready")
    ask(page)
    answer(page)
    assert said == []

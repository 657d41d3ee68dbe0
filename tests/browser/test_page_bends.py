"""What the page does when things go another way than straight: lost answers, lost connections, hurried hands."""

import json
import re
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from app.engine.base import EngineStatus
from app.static_files import address
from tests.browser.conftest import PHONE, Opens
from tests.live import LiveServer
from tests.scripted import CLOSE, HOLD

pytestmark = pytest.mark.browser

BOX = "#question textarea"
LONG = "\n\n".join(f"Paragraph {number} of a long answer." for number in range(60))


def ask(page: Page, text: str = "Why?") -> None:
    page.locator(BOX).fill(text)
    page.locator(BOX).press("Enter")


def settled(page: Page, answers: int = 1) -> None:
    """Wait until all answers are finished."""
    expect(page.locator(".actions:visible")).to_have_count(answers)


def become_hidden(page: Page, is_hidden: bool) -> None:
    page.evaluate(
        """(isHidden) => {
            Object.defineProperty(document, 'hidden', {configurable: true, value: isHidden});
            document.dispatchEvent(new Event('visibilitychange'));
        }""",
        is_hidden,
    )


@pytest.mark.parametrize("is_phone", [False, True])
def test_the_chat_follows_the_answer_and_can_be_scrolled_back(
    live_server: LiveServer, opens: Opens, is_phone: bool
) -> None:
    live_server.script(f"x{CLOSE}{LONG}")
    live_server.engine.with_profile(context_window=32_768, answer_reserve=4096)
    page = opens(viewport=PHONE) if is_phone else opens()
    ask(page)
    settled(page)
    expect(page.get_by_text("Paragraph 59 of")).to_be_in_viewport()
    expect(page.locator(BOX)).to_be_in_viewport()
    page.locator("#thread").hover()
    page.mouse.wheel(0, -100_000)
    expect(page.locator(".question")).to_be_in_viewport()
    pill = page.get_by_role("button", name="Jump to latest")
    box = pill.bounding_box()
    assert box is not None
    assert box["width"] < 200
    pill.click()
    expect(page.get_by_text("Paragraph 59 of")).to_be_in_viewport()


@pytest.mark.parametrize(("scheme", "colour"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(17, 19, 24)")])
def test_our_own_sign_in_our_own_colour_is_shown_while_gradio_starts(
    live_server: LiveServer, chromium: Browser, scheme: Literal["light", "dark"], colour: str
) -> None:
    with chromium.new_context(color_scheme=scheme) as context:
        page = context.new_page()
        page.route("**/assets/**", lambda route: route.abort())
        page.goto(live_server.url, wait_until="domcontentloaded")
        shown = page.evaluate(
            """() => [getComputedStyle(document.body).backgroundColor,
                      getComputedStyle(document.body, '::before').backgroundImage]"""
        )
        assert shown[0] == colour
        assert shown[1].endswith(address("favicon.svg") + '")')
        assert "gradio-app/gradio" not in page.locator("head").inner_html()


def test_a_send_whose_reply_was_lost_and_is_tried_again_is_one_message(live_server: LiveServer, opens: Opens) -> None:
    page = opens()

    def lose_reply(route: Route) -> None:
        route.fetch()
        route.abort()

    page.route("**/messages", lose_reply)
    ask(page, "Once?")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    expect(page.locator(BOX)).to_have_value("Once?")
    page.unroute("**/messages")
    page.locator(BOX).press("Enter")
    settled(page)
    expect(page.locator(".question")).to_have_count(1)
    expect(page.locator(BOX)).to_have_value("")
    assert len(live_server.engine.requests) == 1


def test_a_lost_stream_says_so_and_comes_back_by_itself(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"before{HOLD} after{CLOSE}done")
    page = opens()
    page.route("**/events*", lambda route: route.fulfill(status=503))
    ask(page)
    expect(page.locator(".status")).to_contain_text("The connection is lost")
    page.unroute("**/events*")
    expect(page.locator(".reasoning-text")).to_have_text("before")
    expect(page.locator(".status")).to_have_text("")
    live_server.release()
    settled(page)
    expect(page.locator(".answer-text")).to_have_text("done")
    assert len(live_server.engine.requests) == 1


def test_a_hidden_tab_lets_its_stream_go_and_comes_back_behind_what_it_saw(
    live_server: LiveServer, opens: Opens
) -> None:
    live_server.script(f"one\n\ntwo{HOLD}\n\nthree{CLOSE}done")
    page = opens()
    ask(page)
    expect(page.locator(".reasoning-text .tail")).to_have_text("two")
    become_hidden(page, True)
    live_server.release()
    with page.expect_request(re.compile(r"/events\?after=\d+")):
        become_hidden(page, False)
    settled(page)
    expect(page.locator(".answer-text")).to_have_text("done")
    expect(page.locator(".reasoning-text p")).to_have_text(["one", "two", "three"])


def test_a_double_click_on_send_does_not_stop_the_run(live_server: LiveServer, opens: Opens) -> None:
    page = opens()
    page.locator(BOX).fill("Why?")
    page.get_by_role("button", name="Send").dblclick()
    settled(page)
    expect(page.locator(".answer-text")).to_have_text("Forty-two.")
    assert live_server.engine.cancelled == []


def test_the_enter_that_ends_a_composition_sends_nothing(live_server: LiveServer, opens: Opens) -> None:
    page = opens()
    page.locator(BOX).fill("かんじ")
    for state in ("isComposing: true", "keyCode: 229"):
        page.locator(BOX).evaluate(
            f"(box) => box.dispatchEvent(new KeyboardEvent('keydown', {{key: 'Enter', bubbles: true, {state}}}))"
        )
    expect(page.locator(BOX)).to_have_value("かんじ")
    page.locator(BOX).press("Enter")
    settled(page)
    assert len(live_server.engine.requests) == 1


def test_each_chat_keeps_its_own_draft_and_storage_holds_nothing_of_it(opens: Opens) -> None:
    page = opens()
    ask(page, "a private question")
    settled(page)
    page.locator(BOX).fill("half a private thought")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(BOX)).to_have_value("")
    page.locator(BOX).fill("another draft")
    page.locator("#conversations .open").click()
    expect(page.locator(BOX)).to_have_value("half a private thought")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(BOX)).to_have_value("another draft")
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert all(word not in json.dumps(kept) for word in ("private", "draft", "Forty"))


def test_the_models_problem_is_put_up_once_and_not_at_every_poll(live_server: LiveServer, opens: Opens) -> None:
    live_server.engine.status = EngineStatus("failed", problem="There is no GPU.", remedy="Set PONDER_MODEL=demo.")
    page = opens()
    page.get_by_role("alert").evaluate("(alert) => { alert.dataset.first = 'yes'; }")
    for _ in range(2):
        with page.expect_response("**/api/model"):
            pass
    expect(page.get_by_role("alert")).to_have_attribute("data-first", "yes")
    expect(page.locator(".welcome-model")).to_contain_text("cannot answer")
    live_server.become(EngineStatus("ready"))
    expect(page.get_by_role("alert")).to_have_count(0)


def test_the_list_shows_when_another_chats_run_has_ended(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"a{HOLD}{CLOSE}b")
    page = opens()
    ask(page)
    expect(page.locator(".reasoning-text")).to_have_text("a")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#conversations .pulse")).to_be_visible()
    live_server.release()
    expect(page.locator("#conversations .pulse")).to_have_count(0, timeout=10_000)


def test_quick_answers_leave_the_panel_closed(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"Just{HOLD} so.")
    page = opens()
    page.get_by_text("Quick", exact=True).click()
    ask(page)
    expect(page.locator(".answer-text")).to_have_text("Just")
    expect(page.locator("#reasoning")).to_be_hidden()
    live_server.release()
    settled(page)


def test_the_keyboard_reaches_the_drawer_and_comes_back_from_it(opens: Opens) -> None:
    page = opens(viewport=PHONE)
    menu = page.get_by_role("button", name="Chats")
    expect(menu).to_have_attribute("aria-expanded", "false")
    menu.press("Enter")
    expect(menu).to_have_attribute("aria-expanded", "true")
    expect(page.get_by_role("button", name="New chat")).to_be_focused()
    for _ in range(4):
        page.keyboard.press("Tab")
        assert page.evaluate("!document.querySelector('#chat').contains(document.activeElement)")
    page.keyboard.press("Escape")
    expect(menu).to_be_focused()


def test_closing_the_panel_gives_the_focus_back_to_the_chip(opens: Opens) -> None:
    page = opens()
    ask(page)
    settled(page)
    page.reload()
    chip = page.locator(".chip")
    expect(chip).to_have_attribute("aria-expanded", "false")
    chip.press("Enter")
    expect(chip).to_have_attribute("aria-expanded", "true")
    page.get_by_role("button", name="Close the reasoning panel").press("Enter")
    expect(chip).to_be_focused()


def test_a_chat_that_could_not_be_loaded_can_be_tried_again(opens: Opens) -> None:
    page = opens()
    ask(page)
    settled(page)
    page.get_by_role("button", name="New chat").click()
    page.route("**/api/conversations/*", lambda route: route.abort())
    page.locator("#conversations .open").click()
    expect(page.get_by_role("heading", name="This chat could not be loaded.")).to_be_visible()
    page.unroute("**/api/conversations/*")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".question")).to_have_text("Why?")


def test_the_notice_fits_on_a_phone(opens: Opens) -> None:
    page = opens(viewport=PHONE, is_known=False)
    ask(page)
    box = page.get_by_role("dialog").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]

"""What the page says of itself: while it waits, when something fails, when it is over, and of what it does not know."""

import json
import re

import pytest
from playwright.sync_api import Page, Route, expect

from app.engine.base import EngineStatus
from tests.browser.conftest import Opens
from tests.live import LiveServer
from tests.people import PASSWORD
from tests.scripted import CLOSE, HOLD

pytestmark = pytest.mark.browser

BOX = "#question textarea"
FAILED = EngineStatus("failed", problem="There is no GPU.", remedy="Set PONDER_MODEL=demo.")


def ask(page: Page, text: str = "Why?") -> None:
    page.locator(BOX).fill(text)
    page.locator(BOX).press("Enter")


def settled(page: Page, answers: int = 1) -> None:
    expect(page.locator(".actions:visible")).to_have_count(answers)


def choose_quick(page: Page) -> None:
    page.get_by_text("Quick", exact=True).click()


def test_a_note_stands_behind_all_text_at_once_as_after_a_reload(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"The first paragraph.\n\nThe second, in the middle of{HOLD}")
    page = opens()
    ask(page)
    expect(page.locator(".reasoning-text .tail")).to_contain_text("in the middle of")
    page.get_by_role("button", name="Stop").click()
    note = page.locator(".panel-scroll .note")
    expect(note).to_have_text("You stopped this answer.")
    settled(page)
    scroller = page.locator(".panel-scroll")
    live = scroller.inner_text()
    assert live.endswith("in the middle of\n\nYou stopped this answer.")
    page.reload()
    page.locator(".chip").click()
    expect(scroller).to_have_js_property("innerText", live)


def test_enter_while_an_answer_is_being_written_is_answered_and_the_text_kept(
    live_server: LiveServer, opens: Opens
) -> None:
    live_server.script(f"thinking{HOLD}{CLOSE}done")
    page = opens()
    ask(page)
    expect(page.locator(".reasoning-text")).to_have_text("thinking")
    page.locator(BOX).press("Enter")
    expect(page.locator("#composer .notice")).to_have_text("An answer is still being written. Stop ends it.")
    ask(page, "And then?")
    expect(page.locator("#composer .notice")).to_contain_text("Your text stays here")
    expect(page.locator("#composer [role=status]")).to_contain_text("Your text stays here")
    expect(page.locator(BOX)).to_have_value("And then?")
    live_server.release()
    settled(page)
    expect(page.locator("#composer .notice")).to_have_count(0)
    page.locator(BOX).press("Enter")
    settled(page, 2)
    assert len(live_server.engine.requests) == 2


def test_an_edit_that_is_sent_while_an_answer_is_being_written_is_answered_too(
    live_server: LiveServer, opens: Opens
) -> None:
    live_server.script(f"x{CLOSE}y", f"thinking{HOLD}")
    page = opens()
    ask(page, "first")
    settled(page)
    page.get_by_role("button", name="Edit the question").press("Enter")
    ask(page, "second")
    expect(page.locator(".reasoning-text")).to_have_text("thinking")
    editor = page.get_by_role("textbox", name="Edit the question")
    editor.fill("first, otherwise")
    editor.press("Enter")
    expect(page.locator("#composer .notice")).to_contain_text("still being written")
    expect(editor).to_have_value("first, otherwise")


def test_a_model_that_fails_later_is_seen_and_its_recovery_too(live_server: LiveServer, opens: Opens) -> None:
    page = opens()
    expect(page.locator(".welcome-model")).to_have_text("Scripted model answers.")
    live_server.become(FAILED)
    ask(page)
    expect(page.get_by_role("alert")).to_contain_text("The model cannot answer right now.")
    expect(page.locator(".welcome-model")).to_have_text("Scripted model cannot answer right now.")
    expect(page.locator("#model-card .dot")).to_have_class("dot failed")
    with page.expect_response("**/api/model"):
        page.get_by_role("alert").get_by_role("button", name="Try again").click()
    live_server.become(EngineStatus("ready"))
    expect(page.get_by_role("alert")).to_have_count(0)
    expect(page.locator(".welcome-model")).to_have_text("Scripted model answers.")
    expect(page.locator("#model-card .dot")).to_have_class("dot ready")
    expect(page.locator(BOX)).to_have_value("Why?")


def test_the_model_is_looked_after_as_long_as_the_page_is_open(live_server: LiveServer, opens: Opens) -> None:
    page = opens()
    expect(page.locator("#model-card .dot")).to_have_class("dot ready")
    page.clock.install()
    page.reload()
    expect(page.locator("#model-card .dot")).to_have_class("dot ready")
    for state in (FAILED, EngineStatus("ready"), FAILED):
        live_server.become(state)
        with page.expect_response("**/api/model"):
            page.clock.run_for(20_000)
        expect(page.locator("#model-card .dot")).to_have_class(f"dot {state.state}")


def test_what_to_do_about_a_failed_model_is_for_those_who_run_the_server(live_server: LiveServer, opens: Opens) -> None:
    live_server.engine.status = FAILED
    page = opens()
    expect(page.get_by_role("alert")).to_contain_text("Whoever runs this server")
    expect(page.locator("body")).not_to_contain_text("PONDER_MODEL")
    live_server.services.local.register_now("ada", PASSWORD, is_admin=True)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("Username").fill("ada")
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("dialog").get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("There is no GPU.")
    expect(page.get_by_role("alert")).to_contain_text("Set PONDER_MODEL=demo.")


def test_a_chat_that_could_not_be_loaded_loads_when_the_server_is_back(opens: Opens) -> None:
    page = opens()
    ask(page)
    settled(page)
    page.get_by_role("button", name="New chat", exact=True).click()

    def away(route: Route) -> None:
        route.abort()

    page.route("**/api/**", away)
    page.locator("#conversations .open").click()
    expect(page.get_by_role("heading", name="This chat could not be loaded.")).to_be_visible()
    expect(page.locator("#model-card")).to_have_text("The server cannot be reached.")
    # Nothing was being written
    expect(page.locator("#chat")).not_to_contain_text("Your text is still here")
    expect(page.get_by_role("alert")).to_have_count(0)
    page.unroute("**/api/**")
    expect(page.locator(".question p")).to_have_text("Why?")


def test_that_ones_text_is_still_there_is_said_once_where_there_is_some(opens: Opens) -> None:
    page = opens()
    page.route("**/api/**", lambda route: route.abort())
    ask(page)
    expect(page.get_by_role("alert")).to_have_text(
        "The server cannot be reached. Try again in a moment. Your text is still here."
    )
    expect(page.locator(BOX)).to_have_value("Why?")


def test_a_database_that_is_away_is_said_of_a_chat_without_talk_of_text(opens: Opens) -> None:
    page = opens()
    ask(page)
    settled(page)
    page.get_by_role("button", name="New chat", exact=True).click()
    busy = {"error": {"code": "storage_failed", "message": "The database is busy. Your text is still here."}}
    page.route("**/api/conversations**", lambda route: route.fulfill(status=503, json=busy))
    page.route("**/api/conversations/*", lambda route: route.fulfill(status=503, json=busy))
    page.locator("#conversations .open").click()
    expect(page.get_by_role("heading", name="This chat could not be loaded.")).to_be_visible()
    expect(page.locator("#chat")).not_to_contain_text("still here")
    page.get_by_role("button", name="New chat", exact=True).click()
    ask(page, "And now?")
    expect(page.get_by_role("alert")).to_contain_text("cannot use its database right now.")
    expect(page.get_by_role("alert")).to_contain_text("Your text is still here.")


def test_stored_reasoning_opens_at_its_start_after_a_run_too(live_server: LiveServer, opens: Opens) -> None:
    many = "\n\n".join(f"Paragraph {number}." for number in range(80))
    live_server.script(f"{many}{HOLD}{CLOSE}Done.")
    live_server.engine.with_profile(context_window=32_768, budgets={"normal": 8192})
    page = opens()
    ask(page)
    expect(page.get_by_text("Paragraph 79.")).to_be_in_viewport()
    live_server.release()
    settled(page)
    # It was followed, and stays where it is
    expect(page.get_by_text("Paragraph 79.")).to_be_in_viewport()
    for _ in range(2):
        page.locator(".chip").click()
    expect(page.get_by_text("Paragraph 0.")).to_be_in_viewport()
    expect(page.locator("#reasoning .pill")).to_be_hidden()
    # Closed before it is over
    live_server.script(f"{many}{HOLD}{CLOSE}Done.")
    ask(page, "Again?")
    expect(page.get_by_text("Paragraph 79.")).to_be_in_viewport()
    page.get_by_role("button", name="Close the reasoning panel").click()
    live_server.release()
    settled(page, 2)
    page.locator(".chip").last.click()
    expect(page.get_by_text("Paragraph 0.")).to_be_in_viewport()


def test_jump_to_latest_is_there_where_there_is_something_to_scroll_and_over_no_text(
    live_server: LiveServer, opens: Opens
) -> None:
    long = "\n\n".join(f"Paragraph {number}." for number in range(60))
    live_server.script(f"x{CLOSE}One.", f"x{CLOSE}Two.", f"x{CLOSE}{long}")
    live_server.engine.with_profile(context_window=32_768, answer_reserve=4096)
    page = opens()
    ask(page)
    settled(page)
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".answer-text")).to_have_text("Two.")
    settled(page)
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator(".answer-text")).to_have_text("One.")
    pill = page.locator("#composer .pill")
    expect(pill).to_be_hidden()
    ask(page, "And more?")
    settled(page, 2)
    page.locator("#thread").hover()
    page.mouse.wheel(0, -1500)
    expect(pill).to_be_visible()
    under = """(pill) => {
        const {left, top, width, height} = pill.getBoundingClientRect();
        return document.elementsFromPoint(left + width / 2, top + height / 2).some((one) => one.closest('#thread'));
    }"""
    assert not pill.evaluate(under)


def test_an_open_panel_says_that_a_quick_answer_has_no_reasoning_and_stays(
    live_server: LiveServer, opens: Opens
) -> None:
    live_server.script(f"Hm{HOLD}.{CLOSE}One.", f"Just{HOLD} so.")
    page = opens()
    ask(page)
    expect(page.locator(".reasoning-text")).to_have_text("Hm")
    live_server.release()
    settled(page)
    width = page.locator("#thread").bounding_box()
    choose_quick(page)
    ask(page, "And quickly?")
    expect(page.locator(".answer-text").last).to_have_text("Just")
    expect(page.locator(".panel-scroll")).to_have_text("This answer comes without reasoning.")
    expect(page.locator(".stats")).to_have_text("")
    live_server.release()
    settled(page, 2)
    expect(page.locator(".panel-scroll")).to_have_text("This answer comes without reasoning.")
    assert page.locator("#thread").bounding_box() == width


def test_what_is_not_known_of_an_answer_is_not_said(opens: Opens) -> None:
    page = opens()
    ask(page)
    settled(page)

    def without_figures(route: Route) -> None:
        if route.request.method != "GET":
            route.continue_()
            return
        found = route.fetch().json()
        answers = [message for message in found["messages"] if message["role"] == "assistant"]
        for message, (tokens, thinking_s) in zip(answers, [(None, None), (0, 0.0), (9, 0.2)], strict=True):
            message["reasoning"] = {"tokens": tokens, "thinking_s": thinking_s}
            message["run"] = message["run"] if tokens else None
        route.fulfill(json=found)

    for number in (2, 3):
        ask(page, f"and {number}?")
        settled(page, number)
    page.route(re.compile("/api/conversations/[0-9a-f]+$"), without_figures)
    for language, words in {
        "en": ["Reasoning", "Reasoning", "Thought briefly"],
        "de": ["Gedankengang", "Gedankengang", "Kurz nachgedacht"],
        "zh": ["思考过程", "思考过程", "略加思考"],
    }.items():
        page.evaluate(
            """(language) => fetch('/api/me', {
                method: 'PATCH',
                headers: {'Content-Type': 'application/json'},
                body: JSON.stringify({settings: {language}}),
            })""",
            language,
        )
        page.reload()
        expect(page.locator(".chip")).to_have_text(words)
        page.locator(".chip").nth(1).click()
        expect(page.locator(".reasoning-text")).not_to_have_text("")
        expect(page.locator(".stats")).not_to_have_text(re.compile(r"\d"))


def test_a_language_change_keeps_every_draft_and_the_browser_nothing(opens: Opens) -> None:
    page = opens()
    ask(page, "a question")
    settled(page)
    page.get_by_role("button", name="Edit the question").press("Enter")
    page.get_by_role("textbox", name="Edit the question").fill("a private edit")
    page.locator(BOX).fill("a private thought")
    page.get_by_role("button", name="New chat", exact=True).click()
    page.locator(BOX).fill("another draft")
    page.locator("#conversations .open").click()
    expect(page.get_by_role("textbox", name="Edit the question")).to_have_value("a private edit")
    page.locator("#account").get_by_role("button", name="Settings").click()
    page.get_by_label("Language").select_option("de")
    expect(page.locator("#new-chat")).to_have_text("Neuer Chat")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".question textarea")).to_have_value("a private edit")
    expect(page.locator(BOX)).to_have_value("a private thought")
    page.locator("#new-chat").click()
    expect(page.locator(BOX)).to_have_value("another draft")
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    assert all(word not in json.dumps(kept) for word in ("private", "draft"))


def test_a_temporary_chat_has_its_title_at_once(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"thinking{HOLD}")
    page = opens()
    page.get_by_role("button", name="New temporary chat").click()
    ask(page, "Between us")
    expect(page.get_by_role("heading", level=1)).to_have_text("Between us")
    expect(page).to_have_title(re.compile("Between us"))


def test_an_edit_waits_for_who_comes_back_to_its_chat_and_ends_with_it(opens: Opens) -> None:
    page = opens()
    ask(page, "a question")
    settled(page)
    page.get_by_role("button", name="Edit the question").press("Enter")
    page.get_by_role("textbox", name="Edit the question").fill("another question")
    page.get_by_role("button", name="New chat", exact=True).click()
    expect(page.get_by_role("heading", name="Ask something hard.")).to_be_visible()
    page.locator("#conversations .open").click()
    expect(page.get_by_role("textbox", name="Edit the question")).to_have_value("another question")
    page.get_by_role("button", name="Options of a question").press("Enter")
    page.get_by_role("menuitem", name="Delete").press("Enter")
    expect(page.get_by_role("heading", name="Ask something hard.")).to_be_visible()
    # Nothing is left that closing the page would have to ask about
    page.reload()
    page.wait_for_selector("body.ponder-ready")
    expect(page.locator("#conversations li")).to_have_count(0)

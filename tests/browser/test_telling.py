"""The wish "tell me when it is ready": the tab, the list, notifications, a sound."""

import re

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from app.static_files import address
from tests.browser.conftest import Opens
from tests.live import LiveServer
from tests.scripted import CLOSE, HOLD

pytestmark = pytest.mark.browser

BOX = "#question textarea"
OFFER = "Tell me when it is ready"
# Real notifications, kept where a test can see and press them
KEEP_SHOWN = """() => {
    window.shown = [];
    const Real = window.Notification;
    window.Notification = class extends Real {
        constructor(title, options) { super(title, options); window.shown.push([this, options]); }
    };
}"""
COUNT_TONES = """() => {
    window.tones = 0;
    const start = OscillatorNode.prototype.start;
    OscillatorNode.prototype.start = function (...given) { window.tones += 1; return start.apply(this, given); };
}"""


def ask(page: Page, text: str = "Why?") -> None:
    page.locator(BOX).fill(text)
    page.locator(BOX).press("Enter")


def look_away(page: Page, is_away: bool = True) -> None:
    page.evaluate(
        """(isAway) => {
            Object.defineProperty(document, 'hidden', {configurable: true, value: isAway});
            document.hasFocus = () => !isAway;
            document.dispatchEvent(new Event('visibilitychange'));
            if (!isAway) window.dispatchEvent(new Event('focus'));
        }""",
        is_away,
    )


def icon(page: Page) -> str:
    return str(page.evaluate("new URL(document.querySelector('link[rel=icon][type*=svg]').href).pathname"))


def allow(context: BrowserContext, page: Page) -> None:
    """The browser's own answer to its question, before it asks."""
    context.grant_permissions(["notifications"])
    page.evaluate(KEEP_SHOWN)


def wish(page: Page, **settings: object) -> None:
    """Set it as the settings would."""
    asked = page.evaluate(
        """async (settings) => (await fetch('/api/me', {
            method: 'PATCH', headers: {'Content-Type': 'application/json'}, body: JSON.stringify({settings}),
        })).status""",
        settings,
    )
    assert asked == 200
    page.reload()
    page.wait_for_selector("body.ponder-ready")


def test_the_tab_says_that_it_thinks_and_when_nobody_looked_that_it_is_ready(
    live_server: LiveServer, opens: Opens
) -> None:
    live_server.script(f"thinking{HOLD}{CLOSE}done")
    page = opens()
    ask(page)
    expect(page).to_have_title("Thinking … Why? · Ponder")
    assert icon(page) == address("favicon-thinking.svg")
    look_away(page)
    live_server.release()
    expect(page).to_have_title("✓ Ready: Why?")
    assert icon(page) == address("favicon-ready.svg")
    look_away(page, is_away=False)
    expect(page).to_have_title("Why? · Ponder")
    assert icon(page) == address("favicon.svg")
    expect(page.locator(".answer-text")).to_have_text("done")
    # It is seen now, in the list too
    expect(page.locator("#conversations .unread")).to_have_count(0)
    page.reload()
    expect(page.locator("#conversations li")).to_have_text("Why?")
    expect(page.locator("#conversations .unread")).to_have_count(0)


def test_the_icons_break_no_rule_and_are_there(opens: Opens) -> None:
    page = opens()
    loads = """(path) => new Promise((done) => {
        const image = new Image();
        Object.assign(image, {onload: () => done(true), onerror: () => done(false), src: path});
    })"""
    for name in ("favicon.svg", "favicon-thinking.svg", "favicon-ready.svg"):
        assert page.evaluate(loads, address(name))


def test_an_answer_that_was_watched_is_no_news(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"thinking{HOLD}{CLOSE}done")
    page = opens()
    ask(page)
    expect(page.locator(".reasoning-text")).to_have_text("thinking")
    live_server.release()
    expect(page.locator(".answer-text")).to_have_text("done")
    expect(page).to_have_title("Why? · Ponder")
    expect(page.locator("#conversations .pulse")).to_have_count(0)
    expect(page.locator("#conversations .unread")).to_have_count(0)
    expect(page.locator(".ponder-toast")).to_have_count(0)


def test_a_chat_that_was_answered_while_another_was_open_has_a_mark_until_it_is_seen(
    live_server: LiveServer, opens: Opens
) -> None:
    live_server.script(f"thinking{HOLD}{CLOSE}done")
    page = opens()
    ask(page)
    expect(page.locator(".reasoning-text")).to_have_text("thinking")
    page.get_by_role("button", name="New chat", exact=True).click()
    expect(page.locator("#conversations .pulse")).to_be_visible()
    live_server.release()
    row = page.get_by_role("button", name="Why? new answer", exact=True)
    expect(row).to_be_visible()
    said = page.get_by_role("status").filter(has_text="“Why?” is answered.")
    expect(said).to_be_visible()
    page.reload()
    expect(row).to_be_visible()
    row.click()
    expect(page.locator(".answer-text")).to_have_text("done")
    expect(page.get_by_role("button", name="Why?", exact=True)).to_be_visible()
    expect(row).to_have_count(0)
    page.reload()
    expect(page.locator(".answer-text")).to_have_text("done")
    expect(page.locator("#conversations .unread")).to_have_count(0)


def test_from_what_is_said_of_another_chat_one_goes_there(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"thinking{HOLD}{CLOSE}done")
    page = opens()
    ask(page)
    expect(page.locator(".reasoning-text")).to_have_text("thinking")
    page.get_by_role("button", name="New chat", exact=True).click()
    expect(page.locator("#conversations .pulse")).to_be_visible()
    live_server.release()
    page.locator(".ponder-toast").get_by_role("button", name="Open").click()
    expect(page.locator(".answer-text")).to_have_text("done")


def test_whoever_waits_long_is_offered_to_be_told_and_is(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"thinking{HOLD}{CLOSE}done")
    page = opens()
    page.clock.install()
    page.evaluate(KEEP_SHOWN)
    asked = """() => {
        window.asked = 0;
        const permission = () => (window.asked ? 'granted' : 'default');
        Object.defineProperty(Notification, 'permission', {configurable: true, get: permission});
        Notification.requestPermission = async () => { window.asked += 1; return 'granted'; };
    }"""
    page.evaluate(asked)
    page.context.grant_permissions(["notifications"])
    ask(page)
    expect(page.locator(".reasoning-text")).to_have_text("thinking")
    page.clock.run_for(15_000)
    expect(page.get_by_role("button", name=OFFER)).to_have_count(0)
    page.clock.run_for(6_000)
    assert page.evaluate("window.asked") == 0
    page.get_by_role("button", name=OFFER).press("Enter")
    expect(page.get_by_text("You will be told when it is ready.")).to_be_visible()
    expect(page.locator(BOX)).to_be_focused()
    assert page.evaluate("window.asked") == 1
    look_away(page)
    live_server.release()
    page.wait_for_function("() => window.shown.length === 1")
    assert page.evaluate("window.shown[0][1].body") == "“Why?” is answered."
    look_away(page, is_away=False)
    expect(page.locator(".answer-text")).to_have_text("done")
    assert page.evaluate("window.shown.length") == 1


@pytest.mark.parametrize("answer", ["No, thanks", "denied", "default"])
def test_what_was_declined_is_never_offered_again(live_server: LiveServer, opens: Opens, answer: str) -> None:
    page = opens()
    for number in range(2):
        live_server.script(f"thinking{HOLD}{CLOSE}done")
        page.clock.install()
        page.evaluate(
            """(answer) => {
                Object.defineProperty(Notification, 'permission', {configurable: true, value: 'default'});
                Notification.requestPermission = async () => answer;
            }""",
            answer,
        )
        ask(page, f"Why {number}?")
        expect(page.locator(".reasoning-text")).to_have_text("thinking")
        page.clock.run_for(21_000)
        offer = page.get_by_role("button", name=OFFER)
        if number:
            expect(offer).to_have_count(0)
        elif answer == "No, thanks":
            page.get_by_role("button", name=answer).click()
        else:
            offer.click()
            expect(page.get_by_text("Your browser shows no notifications from here.")).to_be_visible()
        live_server.release()
        expect(page.locator(".actions:visible")).to_have_count(number + 1)
        expect(page.locator(".offer:visible")).to_have_count(0)
        page.reload()
        page.wait_for_selector("body.ponder-ready")


def test_a_notification_of_another_chat_opens_it(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"thinking{HOLD}{CLOSE}done")
    page = opens()
    wish(page, notify="on")
    allow(page.context, page)
    ask(page)
    expect(page.locator(".reasoning-text")).to_have_text("thinking")
    page.get_by_role("button", name="New chat", exact=True).click()
    expect(page.locator("#conversations .pulse")).to_be_visible()
    look_away(page)
    live_server.release()
    page.wait_for_function("() => window.shown.length === 1")
    expect(page).to_have_title("✓ Ready: Why?")
    page.evaluate("window.shown[0][0].dispatchEvent(new Event('click'))")
    look_away(page, is_away=False)
    expect(page.locator(".answer-text")).to_have_text("done")
    expect(page.locator("#conversations .unread")).to_have_count(0)


def test_nothing_is_shown_to_who_has_not_wished_it(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"thinking{HOLD}{CLOSE}done")
    page = opens()
    allow(page.context, page)
    page.evaluate(COUNT_TONES)
    ask(page)
    expect(page.locator(".reasoning-text")).to_have_text("thinking")
    look_away(page)
    live_server.release()
    expect(page).to_have_title("✓ Ready: Why?")
    assert page.evaluate("[window.shown.length, window.tones]") == [0, 0]


def test_two_tabs_tell_once(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"thinking{HOLD}{CLOSE}done")
    page = opens()
    wish(page, notify="on")
    ask(page)
    expect(page.locator(".reasoning-text")).to_have_text("thinking")
    other = page.context.new_page()
    other.goto(page.url.split("#")[0])
    other.wait_for_selector("body.ponder-ready")
    expect(other.locator("#conversations .pulse")).to_be_visible()
    for tab in (page, other):
        allow(page.context, tab)
        look_away(tab)
    live_server.release()
    for tab in (page, other):
        expect(tab).to_have_title("✓ Ready: Why?")
    assert page.evaluate("window.shown.length") + other.evaluate("window.shown.length") == 1


def test_the_settings_turn_notification_and_sound_on_and_off(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"thinking{HOLD}{CLOSE}done")
    page = opens()
    page.evaluate(COUNT_TONES)
    allow(page.context, page)
    page.locator("#account").get_by_role("button", name="Settings").click()
    dialog = page.get_by_role("dialog")
    notify = dialog.get_by_label("Show a notification while I look elsewhere")
    expect(notify).not_to_be_checked()
    with page.expect_response("**/api/me"):
        notify.check()
    expect(notify).to_be_checked()
    with page.expect_response("**/api/me"):
        dialog.get_by_label("Play a short sound").check()
    # So that one knows what it sounds like
    assert page.evaluate("window.tones") == 2
    page.keyboard.press("Escape")
    ask(page)
    expect(page.locator(".reasoning-text")).to_have_text("thinking")
    look_away(page)
    live_server.release()
    page.wait_for_function("() => window.shown.length === 1 && window.tones === 4")
    look_away(page, is_away=False)
    page.reload()
    page.wait_for_selector("body.ponder-ready")
    page.locator("#account").get_by_role("button", name="Settings").click()
    expect(notify).to_be_checked()
    with page.expect_response("**/api/me"):
        notify.uncheck()
    page.reload()
    expect(dialog.get_by_label("Play a short sound")).to_be_checked()
    expect(notify).not_to_be_checked()


def test_a_browser_that_says_no_is_said_in_the_settings(opens: Opens) -> None:
    page = opens()
    page.evaluate("() => void Object.defineProperty(Notification, 'permission', {value: 'denied'})")
    page.locator("#account").get_by_role("button", name="Settings").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_label("Show a notification while I look elsewhere")).to_be_disabled()
    expect(dialog).to_contain_text("Your browser shows no notifications from here.")


def test_a_temporary_chat_tells_too(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"thinking{HOLD}{CLOSE}done")
    page = opens()
    page.get_by_role("button", name="New temporary chat").click()
    ask(page, "Between us")
    expect(page).to_have_title(re.compile("Thinking … Between us"))
    look_away(page)
    live_server.release()
    expect(page).to_have_title("✓ Ready: Between us")

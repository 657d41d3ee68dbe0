"""Where the keyboard is after whatever one does: never at the top of the page."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from tests.browser.conftest import PHONE, Opens
from tests.live import LiveServer
from tests.people import PASSWORD
from tests.scripted import CLOSE, HOLD

pytestmark = pytest.mark.browser

BOX = "#question textarea"
COMPOSER = "Your question"
ANSWER = "Answer"
# What a screen reader would say of it, more or less
WHERE = """() => {
    const at = document.activeElement;
    if (at.getAttribute('role') === 'tabpanel') return 'section';
    const name = at.getAttribute('aria-label') || at.textContent.trim() || at.tagName;
    return document.hasFocus() && at.checkVisibility({visibilityProperty: true}) ? name : `nowhere (${name})`;
}"""

Act = Callable[[Page], object]


def focus_is(page: Page, wanted: str, after: str) -> None:
    """The focus comes there and stays: whatever is still to come is given time to take it away."""
    try:
        page.wait_for_function(f"(wanted) => ({WHERE})() === wanted", arg=wanted)
    except PlaywrightTimeout:
        assert page.evaluate(WHERE) == wanted, after
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(() => requestAnimationFrame(done))))")
    assert page.evaluate(WHERE) == wanted, after


def named(name: str, role: str = "button", number: int = 0) -> Callable[[Page], None]:
    """Go to a control, as by Tab."""
    return lambda page: page.get_by_role(role, name=name, exact=True).nth(number).focus()  # type: ignore[arg-type]


def ask(page: Page, text: str) -> None:
    page.locator(BOX).fill(text)
    page.locator(BOX).press("Enter")


def settled(page: Page, answers: int = 1) -> None:
    expect(page.locator(".actions:visible")).to_have_count(answers)


def walk(page: Page, key: str, *steps: tuple[Act, str] | Act) -> None:
    """Each step goes to a control, presses the key there and says where the focus is then; others only prepare."""
    for number, step in enumerate(steps):
        if not isinstance(step, tuple):
            step(page)
            continue
        go, wanted = step
        go(page)
        at = page.evaluate(WHERE)
        page.keyboard.press(key)
        focus_is(page, wanted, f"step {number}: {key} at {at!r}")


KEYS = pytest.mark.parametrize("key", ["Enter", "Space"])


@KEYS
def test_after_what_is_done_with_an_answer_one_goes_on_writing(live_server: LiveServer, opens: Opens, key: str) -> None:
    live_server.script(
        f"one{HOLD}", f"two{HOLD} more{CLOSE}", "So.", f"three{CLOSE}Three.", f"four{HOLD}{CLOSE}Four."
    )  # fmt: skip
    page = opens()
    walk(
        page,
        key,
        lambda page: ask(page, "first"),
        lambda page: focus_is(page, COMPOSER, "sent"),
        (named("Stop"), COMPOSER),
        lambda page: settled(page),
        (named("Ask again"), COMPOSER),
        (named("Answer now"), COMPOSER),
        lambda _: live_server.release(),
        lambda page: settled(page),
        (named("Ask again"), COMPOSER),
        lambda page: expect(page.locator(".answer-text")).to_have_text("Three."),
        lambda page: settled(page),
        (named("Previous version"), "Previous version"),
        lambda page: expect(page.locator(".answer .branches")).to_have_text("2/3"),
        (named("Previous version"), "Next version"),
        (named("Edit the question"), "Edit the question"),
        lambda page: page.keyboard.press("Escape"),
        lambda page: focus_is(page, "Edit the question", "edit left by Escape"),
        (named("Edit the question"), "Edit the question"),
        (named("Cancel"), "Edit the question"),
        (named("Edit the question"), "Edit the question"),
        (named("Send"), COMPOSER),
    )
    # The run ends while its button has the focus
    page.get_by_role("button", name="Answer now").focus()
    live_server.release()
    focus_is(page, COMPOSER, "the reasoning has ended")


@KEYS
def test_the_panel_gives_the_focus_back(live_server: LiveServer, opens: Opens, key: str) -> None:
    live_server.script(f"x{HOLD}{CLOSE}y")
    page = opens()
    ask(page, "first")
    expect(page.locator(".reasoning-text")).to_have_text("x")
    live_server.release()
    settled(page)
    chip = page.locator(".chip").inner_text()
    walk(
        page,
        key,
        (named("Close the reasoning panel"), COMPOSER),
        (named(chip), chip),
        (named("Close the reasoning panel"), chip),
        (named("Reasoning panel"), "Reasoning panel"),
        (named("Close the reasoning panel"), "Reasoning panel"),
        (named(chip), chip),
        lambda page: page.get_by_role("region", name="Reasoning text").focus(),
        lambda page: page.keyboard.press("Escape"),
        lambda page: focus_is(page, chip, "panel left by Escape"),
    )


@KEYS
def test_after_what_is_done_with_a_chat_one_is_where_it_was_or_at_the_undo(opens: Opens, key: str) -> None:
    page = opens()
    for text in ("one", "two"):
        page.get_by_role("button", name="New chat", exact=True).click()
        ask(page, text)
        settled(page)
    options = "Options of one"
    menu = (named(options), "Rename")
    walk(
        page,
        key,
        menu,
        lambda page: page.keyboard.press("Escape"),
        lambda page: focus_is(page, options, "menu left by Escape"),
        menu,
        lambda page: page.set_viewport_size({"width": 1281, "height": 800}),
        lambda page: focus_is(page, options, "menu closed by another size"),
        menu,
        (named("Pin", "menuitem"), options),
        menu,
        (named("Rename", "menuitem"), "New name of this chat"),
        lambda page: page.keyboard.press("Enter"),
        lambda page: focus_is(page, options, "renamed"),
        menu,
        (named("Rename", "menuitem"), "New name of this chat"),
        lambda page: page.keyboard.press("Escape"),
        lambda page: focus_is(page, options, "not renamed"),
        menu,
        (named("Export …", "menuitem"), "Markdownthe versions that are shown, as text"),
        lambda page: page.keyboard.press("Escape"),
        lambda page: focus_is(page, options, "dialog closed"),
        menu,
        (named("Archive", "menuitem"), "Undo"),
        (named("Undo"), COMPOSER),
        lambda page: expect(page.locator("#conversations li")).to_have_count(2),
        menu,
        (named("Delete", "menuitem"), "Undo"),
        (named("Undo"), COMPOSER),
        lambda page: expect(page.locator("#conversations li")).to_have_count(2),
        # The one that is open
        (named("Options of two"), "Rename"),
        (named("Delete", "menuitem"), "Undo"),
        lambda page: expect(page.get_by_role("heading", name="Ask something hard.")).to_be_visible(),
        lambda page: focus_is(page, "Undo", "the open chat was deleted"),
        (named("Undo"), COMPOSER),
        lambda page: expect(page.locator(".question")).to_have_text("two"),
        (named("Archive"), "Back to the chats"),
        (named("Back to the chats"), "Archive"),
        (named("New temporary chat"), COMPOSER),
        (named("one"), COMPOSER),
        (named("New chat"), COMPOSER),
    )


def test_the_list_is_one_stop_whose_rows_are_walked_by_arrows(opens: Opens) -> None:
    page = opens()
    for text in ("one", "two", "three"):
        page.get_by_role("button", name="New chat", exact=True).click()
        ask(page, text)
        settled(page)
    page.get_by_label("Search chats").focus()
    page.keyboard.press("Tab")
    focus_is(page, "three", "the open chat")
    for press, wanted in (
        ("ArrowDown", "two"),
        ("End", "one"),
        ("ArrowDown", "one"),
        ("ArrowUp", "two"),
        ("Home", "three"),
    ):
        page.keyboard.press(press)
        focus_is(page, wanted, press)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    focus_is(page, "Options of two", "its menu")
    page.keyboard.press("Tab")
    focus_is(page, "Archive", "behind the list")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    focus_is(page, "two", "the row it was left at")


def test_the_composer_has_the_focus_when_the_page_has_been_opened(opens: Opens) -> None:
    page = opens()
    page.keyboard.type("Typed at once")
    expect(page.locator(BOX)).to_have_value("Typed at once")
    assert page.locator(BOX).evaluate("(box) => getComputedStyle(box).boxShadow").startswith("rgba(79, 70, 229")


def test_the_first_stop_leads_to_the_composer(opens: Opens) -> None:
    page = opens()
    stops = "a[href], button, input, textarea, [tabindex]"
    assert page.evaluate("(stops) => document.querySelector(stops).className", stops) == "skip"
    skip = page.get_by_role("link", name="Skip to your question")
    skip.focus()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator(BOX)).to_be_focused()
    assert "question" not in page.url


def test_on_a_phone_no_act_brings_up_the_keyboard(live_server: LiveServer, opens: Opens) -> None:
    live_server.script(f"one{HOLD}", f"two{CLOSE}Two.")
    page = opens(viewport=PHONE)
    assert page.evaluate("document.activeElement === document.body")
    ask(page, "first")
    focus_is(page, ANSWER, "sent")
    page.get_by_role("button", name="Stop").press("Enter")
    focus_is(page, ANSWER, "stopped")
    settled(page)
    page.get_by_role("button", name="Ask again").press("Enter")
    expect(page.locator(".answer-text")).to_have_text("Two.")
    focus_is(page, ANSWER, "asked again")


def test_when_the_undo_goes_the_focus_goes_on(opens: Opens) -> None:
    page = opens()
    ask(page, "one")
    settled(page)
    page.clock.install()
    page.get_by_role("button", name="Options of one").press("Enter")
    page.get_by_role("menuitem", name="Delete").press("Enter")
    focus_is_undo = page.get_by_role("button", name="Undo")
    expect(focus_is_undo).to_be_focused()
    page.clock.run_for(11_000)
    expect(page.locator(BOX)).to_be_focused()


@KEYS
def test_show_more_goes_on_at_what_it_has_shown(opens: Opens, key: str) -> None:
    page = opens()
    page.evaluate(
        """async () => {
            const asked = {method: 'POST', headers: {'Content-Type': 'application/json'}};
            for (let number = 0; number < 52; number += 1)
                await fetch('/api/conversations', {...asked, body: JSON.stringify({title: `chat ${number}`})});
        }"""
    )
    page.reload()
    expect(page.locator("#conversations li")).to_have_count(50)
    page.get_by_role("button", name="Show more").evaluate("(more) => more.focus({preventScroll: true})")
    page.keyboard.press(key)
    focus_is(page, "chat 1", "more was shown")


@KEYS
def test_a_chosen_hit_has_the_focus(live_server: LiveServer, opens: Opens, key: str) -> None:
    live_server.script(f"x{CLOSE}A pangolin.")
    page = opens()
    ask(page, "first")
    settled(page)
    page.get_by_role("button", name="New chat", exact=True).click()
    page.get_by_label("Search chats").fill("pangolin")
    page.locator(".results .open").focus()
    page.keyboard.press(key)
    focus_is(page, ANSWER, "hit chosen")
    page.get_by_role("button", name="Clear the search").focus()
    page.keyboard.press(key)
    focus_is(page, "Search chats", "search cleared")


@KEYS
def test_a_chat_that_is_loaded_after_all_can_be_written_in(opens: Opens, key: str) -> None:
    page = opens()
    ask(page, "first")
    settled(page)
    page.get_by_role("button", name="New chat", exact=True).click()
    page.route("**/api/conversations/*", lambda route: route.fulfill(status=500, json={}))
    page.locator("#conversations .open").click()
    again = page.get_by_role("button", name="Try again")
    again.focus()
    with page.expect_response("**/api/conversations/*"):
        page.keyboard.press(key)
    focus_is(page, "Try again", "it failed once more")
    page.unroute("**/api/conversations/*")
    page.keyboard.press(key)
    focus_is(page, COMPOSER, "it was loaded")


@KEYS
def test_settings_and_signing_in_and_out_never_drop_the_focus(opens: Opens, key: str) -> None:
    page = opens()

    def fill(page: Page) -> None:
        page.get_by_label("Username").fill("ada")
        page.get_by_label("Password", exact=True).fill(PASSWORD)

    def change_password(page: Page) -> None:
        page.get_by_text("Change password", exact=True).first.click()
        page.get_by_label("Current password").fill("wrong password")
        page.get_by_label("New password").fill("another good password")

    walk(
        page,
        key,
        (named("Settings"), "General"),
        (named("Account", "tab"), "Account"),
        (named("Model", "tab"), "Model"),
        (named("Back to the model's advice"), "Back to the model's advice"),
        (named("Close"), "Settings"),
    )
    page.get_by_role("button", name="Sign up").press(key)
    fill(page)
    page.get_by_role("button", name="Create account").press(key)
    page.get_by_role("button", name="I have kept them").press(key)
    focus_is(page, COMPOSER, "signed up")
    walk(
        page,
        key,
        (named("ada: account menu"), "Settings"),
        lambda page: page.keyboard.press("Escape"),
        lambda page: focus_is(page, "ada: account menu", "menu left by Escape"),
        (named("ada: account menu"), "Settings"),
        (named("Settings"), "General"),
        (named("Account", "tab"), "Account"),
        change_password,
        (named("Change password"), "INPUT"),
        lambda page: page.get_by_label("Current password").fill(PASSWORD),
        (named("Change password"), "section"),
        (named("Make new ones"), "Cancel"),
        (named("Cancel"), "Make new ones"),
        (named("Close"), "ada: account menu"),
    )
    page.get_by_role("button", name="ada: account menu").press(key)
    with page.expect_navigation():
        page.get_by_role("button", name="Sign out", exact=True).press(key)
    page.wait_for_selector("body.ponder-ready")
    focus_is(page, COMPOSER, "signed out")

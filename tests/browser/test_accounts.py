"""People in the browser: guests, accounts, settings, and an admin who sees no chat."""

import json
import re
from datetime import timedelta

import pytest
from playwright.sync_api import APIResponse, Locator, Page, Route, expect
from sqlalchemy import update

from app.engine.base import EngineStatus
from app.history.store import now
from app.history.tables import SessionTable
from tests.browser.conftest import PHONE, Opens
from tests.live import LiveServer
from tests.people import PASSWORD

pytestmark = pytest.mark.browser

BOX = "#question textarea"
TITLES = "#conversations .open"


def ask(page: Page, text: str = "Why?") -> None:
    page.locator(BOX).fill(text)
    page.locator(BOX).press("Enter")
    expect(page.locator(".actions:visible")).to_have_count(1)


def dialog(page: Page) -> Locator:
    return page.get_by_role("dialog").last


def try_to_sign_in(page: Page, name: str, password: str = PASSWORD) -> None:
    page.locator("#account").get_by_role("button", name="Sign in").click()
    dialog(page).get_by_label("Username").fill(name)
    dialog(page).get_by_label("Password", exact=True).fill(password)
    page.keyboard.press("Enter")


def sign_in(page: Page, name: str, password: str = PASSWORD) -> None:
    try_to_sign_in(page, name, password)
    expect(page.get_by_role("button", name=f"{name}: account menu")).to_be_visible()


def has_account(live_server: LiveServer, name: str = "ada", *, is_admin: bool = False) -> None:
    """Somebody with an account, who has accepted the notice."""
    made = live_server.services.local.register_now(name, PASSWORD, is_admin=is_admin)
    live_server.services.people.change_settings(made.person_id, {}, 1)


def forget_checks(live_server: LiveServer) -> None:
    """As if everybody's last password check were hours ago."""
    with live_server.services.store.database.writing() as db:
        db.execute(update(SessionTable).values(verified_at=now() - timedelta(hours=2)))


def choose(page: Page, section: str) -> Locator:
    page.evaluate("location.hash = '#/settings'")
    page.get_by_role("tab", name=section).click()
    return dialog(page)


def test_signing_up_by_keyboard_shows_the_codes_until_they_are_kept(opens: Opens) -> None:
    page = opens()
    page.locator(BOX).fill("half a thought")
    page.get_by_role("button", name="Sign up").press("Enter")
    expect(dialog(page).get_by_label("Username")).to_be_focused()
    page.keyboard.type("ada")
    page.keyboard.press("Enter")
    expect(dialog(page).get_by_role("alert")).to_have_text("Please fill this in.")
    page.keyboard.type("password")
    page.keyboard.press("Enter")
    expect(dialog(page).get_by_role("alert")).to_contain_text("among the first that are tried")
    expect(dialog(page).get_by_label("Username")).to_have_value("ada")
    expect(dialog(page).get_by_label("Password", exact=True)).to_be_focused()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(dialog(page).locator("code")).to_have_count(8)
    expect(dialog(page).locator("code").first).to_have_text(re.compile(r"^(\w{4}-){3}\w{4}$"))
    codes = dialog(page).locator("code").all_inner_texts()
    for _ in range(2):
        page.keyboard.press("Escape")
    with page.expect_download() as saved:
        dialog(page).get_by_role("button", name="Download").click()
    assert all(code in saved.value.path().read_text() for code in codes)
    dialog(page).get_by_role("button", name="I have kept them").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.get_by_role("button", name="ada: account menu")).to_be_visible()
    expect(page.locator(BOX)).to_have_value("half a thought")


def test_a_wrong_password_is_said_and_a_recovery_code_sets_a_new_one(live_server: LiveServer, opens: Opens) -> None:
    code = live_server.services.local.register_now("ada", PASSWORD).recovery_codes[0]
    page = opens()
    try_to_sign_in(page, "ada", "four wrong words here")
    expect(dialog(page).get_by_role("alert")).to_have_text("The name and the password do not fit together.")
    expect(dialog(page).get_by_label("Password", exact=True)).to_have_value("four wrong words here")
    dialog(page).get_by_role("button", name="Use a recovery code").click()
    expect(dialog(page).get_by_label("Username")).to_have_value("ada")
    dialog(page).get_by_label("Recovery code").fill(code)
    dialog(page).get_by_label("New password", exact=True).fill("eight yellow tricycles")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="ada: account menu").click()
    page.get_by_role("button", name="Sign out").click()
    sign_in(page, "ada", "eight yellow tricycles")


@pytest.mark.parametrize("is_moved", [True, False])
def test_a_guests_chats_move_into_the_account_or_stay_behind(
    live_server: LiveServer, opens: Opens, is_moved: bool
) -> None:
    has_account(live_server)
    page = opens()
    ask(page, "guest question")
    page.locator(BOX).fill("half a thought")
    page.locator("#account").get_by_role("button", name="Sign in").click()
    box = dialog(page).get_by_role("checkbox", name="Move the chat of this browser into my account")
    expect(box).to_be_checked()
    if not is_moved:
        box.uncheck()
        expect(dialog(page)).to_contain_text("It stays behind and is deleted.")
    page.keyboard.press("Escape")
    page.locator("#account").get_by_role("button", name="Sign in").click()
    dialog(page).get_by_role("checkbox").set_checked(is_moved)
    dialog(page).get_by_label("Username").fill("ada")
    dialog(page).get_by_label("Password", exact=True).fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="ada: account menu")).to_be_visible()
    expect(page.locator(TITLES)).to_have_text(["guest question"] if is_moved else [])
    heading = page.get_by_role("heading", name="Ask something hard.")
    expect(page.locator(".question") if is_moved else heading).to_be_visible()
    expect(page.locator(BOX)).to_have_value("half a thought")


def test_signing_out_everywhere_is_seen_in_the_other_browser_which_keeps_its_text(
    live_server: LiveServer, opens: Opens
) -> None:
    has_account(live_server)
    first, second = opens(), opens()
    sign_in(first, "ada")
    ask(first, "the question")
    sign_in(second, "ada")
    second.locator(TITLES).click()
    expect(second.locator(".question")).to_be_visible()
    second.locator(BOX).fill("half a thought")
    choose(first, "Account").get_by_role("button", name="Sign out everywhere").click()
    expect(first.get_by_role("button", name="Sign up")).to_be_visible()
    expect(first.locator(TITLES)).to_have_count(0)
    second.locator(BOX).press("Enter")
    expect(second.get_by_role("heading", name="You have been signed out.")).to_be_visible()
    expect(second.locator(".question")).to_have_count(0)
    expect(second.locator(BOX)).to_have_value("half a thought")
    second.locator("#thread").get_by_role("button", name="Sign in").click()
    dialog(second).get_by_label("Username").fill("ada")
    dialog(second).get_by_label("Password", exact=True).fill(PASSWORD)
    second.keyboard.press("Enter")
    expect(second.locator(".question")).to_have_text("the question")
    expect(second.locator(BOX)).to_have_value("half a thought")


def test_a_second_person_sees_nothing_of_the_firsts_chat_by_its_address(live_server: LiveServer, opens: Opens) -> None:
    has_account(live_server, "ada")
    has_account(live_server, "bob")
    first, second = opens(), opens()
    sign_in(first, "ada")
    ask(first, "a secret question")
    address = first.evaluate("location.hash")
    sign_in(second, "bob")
    second.evaluate(f"location.hash = '{address}'")
    expect(second.get_by_role("heading", name="This chat is not here.")).to_be_visible()
    expect(second.locator("body")).not_to_contain_text("secret")
    kept = first.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, location.href])")
    assert all(word not in json.dumps(kept) for word in ("secret", "Forty", "ada", "notice"))


def test_settings_are_saved_at_once_and_hold_after_a_reload(live_server: LiveServer, opens: Opens) -> None:
    live_server.script("thinking</think>done", "thinking</think>done")
    page = opens()
    general = choose(page, "General")
    general.get_by_label("Appearance").select_option("dark")
    expect(page.locator("body.dark")).to_be_visible()
    general.get_by_label("How long to think, to begin with").select_option("deep")
    general.get_by_label("Opens by itself").uncheck()
    general.get_by_label("Shows time, tokens").uncheck()
    expect(general.get_by_role("status").first).to_have_text("Saved")
    model = choose(page, "Model")
    model.get_by_label("Instructions for the model").fill("Speak like a pirate.")
    model.get_by_label("Temperature").fill("7")
    page.keyboard.press("Tab")
    expect(model.get_by_role("alert")).to_contain_text("0 to 2")
    model.get_by_label("Temperature").fill("0.5")
    with page.expect_response("**/api/me"):
        page.keyboard.press("Tab")
    page.keyboard.press("Escape")
    page.reload()
    page.wait_for_selector("body.ponder-ready")
    expect(page.locator("body.dark")).to_be_visible()
    expect(page.get_by_role("radio", name="Deep")).to_be_checked()
    ask(page)
    expect(page.locator("#reasoning")).to_be_hidden()
    page.locator(".chip").click()
    expect(page.locator(".reasoning-text")).to_have_text("thinking")
    expect(page.locator(".stats")).to_be_hidden()
    sent = live_server.engine.requests[0]
    assert "Speak like a pirate." in live_server.engine.decoded(sent.prompt)
    assert sent.sampling.temperature == 0.5
    choose(page, "Model").get_by_role("button", name="Back to the model's advice").click()
    expect(dialog(page).get_by_role("status").first).to_have_text("Saved")
    expect(dialog(page).get_by_label("Temperature")).to_have_value("")


class Held:
    """The page asks who is here, and the answers are a long time on their way."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.answers: list[tuple[Route, APIResponse]] = []
        page.route("**/api/me", self.hold)

    def hold(self, route: Route) -> None:
        if route.request.method == "GET":
            self.answers.append((route, route.fetch()))
        else:
            route.continue_()

    def asked_by(self, script: str) -> None:
        with self.page.expect_request("**/api/me"):
            self.page.evaluate(script)

    def answer(self) -> None:
        for route, response in self.answers:
            route.fulfill(response=response)
        self.page.unroute("**/api/me", self.hold)
        # Answered after those, so the page has had them
        self.page.evaluate("fetch('/api/me').then((answer) => answer.text())")
        self.page.evaluate("new Promise((done) => setTimeout(done, 100))")


def test_a_late_answer_changes_nothing_for_who_has_gone_on_in_the_settings(opens: Opens) -> None:
    page = opens()
    choose(page, "General")
    held = Held(page)
    held.asked_by("location.hash = '#/settings'")
    page.get_by_role("tab", name="Model").click()
    prompt = dialog(page).get_by_label("Instructions for the model")
    prompt.fill("Speak like")
    with page.expect_response("**/api/me"):
        page.keyboard.press("Tab")
    prompt.fill("Speak like a pirate.")
    held.answer()
    expect(prompt).to_have_value("Speak like a pirate.")
    expect(prompt).to_be_focused()
    with page.expect_response("**/api/me"):
        page.keyboard.press("Tab")
    page.keyboard.press("Escape")
    choose(page, "Model")
    expect(prompt).to_have_value("Speak like a pirate.")


def test_a_changed_password_is_said_and_the_section_that_was_chosen_meanwhile_stays(
    live_server: LiveServer, opens: Opens
) -> None:
    has_account(live_server)
    page = opens()
    sign_in(page, "ada")
    account = choose(page, "Account")
    account.locator("summary", has_text="Change password").click()
    account.locator("[name='password']").fill(PASSWORD)
    account.locator("[name='new-password']").fill("eight red bicycles")
    held = Held(page)
    with page.expect_request(lambda request: request.url.endswith("/api/me") and request.method == "GET"):
        page.keyboard.press("Enter")
    page.get_by_role("tab", name="Model").click()
    held.answer()
    expect(dialog(page).get_by_label("Instructions for the model")).to_be_visible()
    expect(dialog(page)).to_contain_text("Your password is changed.")


def test_an_answer_from_before_a_change_is_not_taken(opens: Opens) -> None:
    page = opens()
    general = choose(page, "General")
    held = Held(page)
    held.asked_by("window.dispatchEvent(new Event('focus'))")
    general.get_by_label("Appearance").select_option("dark")
    expect(page.locator("body.dark")).to_be_visible()
    held.answer()
    expect(page.locator("body.dark")).to_be_visible()


@pytest.mark.parametrize("address", ["#/settings", "#/sign-in"])
def test_a_dialog_that_was_left_before_it_opened_stays_away(opens: Opens, address: str) -> None:
    page = opens()
    held = Held(page)
    held.asked_by(f"location.hash = '{address}'")
    page.go_back()
    held.answer()
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.evaluate(f"location.hash = '{address}'")
    expect(dialog(page)).to_be_visible()


def test_the_notice_is_accepted_once_also_after_a_reload(opens: Opens) -> None:
    page = opens(is_known=False, viewport=PHONE)
    page.locator(BOX).fill("Why?")
    page.locator(BOX).press("Enter")
    expect(dialog(page)).to_contain_text("deleted 7 days after your last visit")
    expect(dialog(page).get_by_role("link", name="Privacy")).to_have_attribute("href", "/privacy")
    page.get_by_role("button", name="I understand").click()
    expect(page.locator(".actions:visible")).to_have_count(1)
    page.reload()
    page.wait_for_selector("body.ponder-ready")
    page.locator(BOX).fill("And now?")
    page.locator(BOX).press("Enter")
    expect(page.locator(".actions:visible")).to_have_count(2)


def test_what_cannot_be_undone_asks_for_the_password_and_for_the_name(live_server: LiveServer, opens: Opens) -> None:
    has_account(live_server)
    page = opens()
    sign_in(page, "ada")
    forget_checks(live_server)
    choose(page, "Account").get_by_role("button", name="Delete account").click()
    expect(dialog(page).get_by_role("button", name="Delete account")).to_be_disabled()
    page.keyboard.type("ada")
    page.keyboard.press("Enter")
    expect(dialog(page).get_by_role("heading", name="Is it you?")).to_be_visible()
    page.keyboard.type("not my password")
    page.keyboard.press("Enter")
    expect(dialog(page).get_by_role("alert")).to_contain_text("This is not your password.")
    dialog(page).get_by_label("Password", exact=True).fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Sign up")).to_be_visible()
    try_to_sign_in(page, "ada")
    expect(dialog(page).get_by_role("alert")).to_contain_text("do not fit")


def test_an_admin_sees_people_and_numbers_and_no_text_of_a_chat(live_server: LiveServer, opens: Opens) -> None:
    has_account(live_server, "ada", is_admin=True)
    has_account(live_server, "bob")
    guest, page = opens(), opens(path="/#/admin")
    ask(guest, "a secret question")
    expect(page.get_by_role("heading", name="This chat is not here.")).to_be_visible()
    sign_in(page, "ada")
    rows = page.get_by_role("region", name="People").locator("tbody tr")
    expect(rows.filter(has_text="bob")).to_be_visible()
    expect(rows.filter(has_text="Guest").first).to_be_visible()
    expect(page.locator("body")).not_to_contain_text("secret")
    expect(page.locator("#composer")).to_be_hidden()
    expect(page.get_by_text("Scripted model, ready")).to_be_visible()
    live_server.become(EngineStatus("ready", way="8 at once, eager steps (CUDA graphs are off: no room)"))
    expect(page.get_by_text("CUDA graphs are off: no room")).to_be_visible()
    page.get_by_role("button", name="Disable: bob").click()
    expect(rows.filter(has_text="bob")).to_contain_text("disabled")
    page.get_by_label("Questions a day for bob").fill("5")
    with page.expect_response("**/api/admin/people/*"):
        page.keyboard.press("Tab")
    page.get_by_label("Search names").fill("bo")
    expect(rows).to_have_count(1)
    expect(page.get_by_label("Questions a day for bob")).to_have_value("5")
    page.get_by_role("button", name="Delete: bob").click()
    dialog(page).get_by_role("button", name="Delete").click()
    expect(page.get_by_text("Nobody by this name.")).to_be_visible()

"""Conversations in the browser: the list, its menu, search, versions, files, temporary chats."""

import json
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import PHONE, Opens
from tests.live import LiveServer
from tests.patience import until
from tests.people import PASSWORD
from tests.scripted import CLOSE, HOLD

pytestmark = pytest.mark.browser

BOX = "#question textarea"
TITLES = "#conversations .chats .open .title"


def ask(page: Page, text: str) -> None:
    """Ask, and wait for the answer's end."""
    before = page.locator(".actions:visible").count()
    page.locator(BOX).fill(text)
    page.locator(BOX).press("Enter")
    expect(page.locator(".actions:visible")).to_have_count(before + 1)


def new_chat(page: Page, text: str) -> None:
    page.get_by_role("button", name="New chat").click()
    expect(page.get_by_role("heading", name="Ask something hard.")).to_be_visible()
    ask(page, text)


def choose(page: Page, title: str, item: str) -> None:
    """Choose from a chat's menu, by keyboard."""
    options = page.get_by_role("button", name=f"Options of {title}")
    options.focus()
    page.keyboard.press("Enter")
    page.get_by_role("menuitem", name=item).focus()
    page.keyboard.press("Enter")


def data_settings(page: Page) -> Locator:
    page.evaluate("location.hash = '#/settings/chats'")
    return page.get_by_role("dialog").last


def question(page: Page, text: str) -> Locator:
    return page.locator(".question").filter(has_text=text)


def test_a_chat_is_renamed_in_its_place(opens: Opens) -> None:
    page = opens()
    ask(page, "first chat")
    choose(page, "first chat", "Rename")
    expect(page.get_by_label("New name of this chat")).to_be_focused()
    page.keyboard.type("<b>Primes</b>")
    page.keyboard.press("Enter")
    expect(page.locator(TITLES)).to_have_text(["<b>Primes</b>"])
    expect(page.get_by_role("heading", level=1)).to_have_text("<b>Primes</b>")
    choose(page, "<b>Primes</b>", "Rename")
    page.keyboard.type("not this")
    page.keyboard.press("Escape")
    expect(page.locator(TITLES)).to_have_text(["<b>Primes</b>"])
    page.reload()
    expect(page.locator(TITLES)).to_have_text(["<b>Primes</b>"])


def test_a_pinned_chat_stays_on_top(opens: Opens) -> None:
    page = opens()
    for text in ("one", "two", "three"):
        new_chat(page, text)
    choose(page, "one", "Pin")
    expect(page.locator(TITLES)).to_have_text(["one", "three", "two"])
    expect(page.get_by_role("heading", name="Pinned")).to_be_visible()
    page.reload()
    expect(page.locator(TITLES)).to_have_text(["one", "three", "two"])
    choose(page, "one", "Unpin")
    expect(page.locator(TITLES)).to_have_text(["three", "two", "one"])


def test_an_archived_chat_is_apart_and_comes_back(opens: Opens) -> None:
    page = opens()
    for text in ("one", "two"):
        new_chat(page, text)
    choose(page, "one", "Archive")
    expect(page.locator(TITLES)).to_have_text(["two"])
    page.get_by_role("button", name="Archive", exact=True).click()
    expect(page.locator(TITLES)).to_have_text(["one"])
    choose(page, "one", "Take out of the archive")
    expect(page.locator(TITLES)).to_have_count(0)
    page.get_by_role("button", name="Back to the chats").click()
    expect(page.locator(TITLES)).to_have_text(["two", "one"])


def test_a_deleted_chat_comes_back_with_undo(opens: Opens) -> None:
    page = opens()
    ask(page, "first chat")
    address = page.url
    choose(page, "first chat", "Delete")
    expect(page.locator(TITLES)).to_have_count(0)
    expect(page.get_by_role("heading", name="Ask something hard.")).to_be_visible()
    expect(page.get_by_role("status").filter(has_text="is deleted")).to_be_visible()
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(TITLES)).to_have_text(["first chat"])
    expect(question(page, "first chat")).to_be_visible()
    assert page.url == address


def test_all_are_deleted_and_come_back(opens: Opens) -> None:
    page = opens()
    for text in ("one", "two"):
        new_chat(page, text)
    data_settings(page).get_by_role("button", name="Delete all chats").click()
    page.get_by_role("dialog").last.get_by_role("button", name="Delete all").click()
    expect(page.locator(TITLES)).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(TITLES)).to_have_text(["two", "one"])


def test_a_search_opens_the_chat_at_the_message(live_server: LiveServer, opens: Opens) -> None:
    page = opens()
    long = "\n\n".join(f"Paragraph {number} about nothing." for number in range(60))
    live_server.script(f"A thought.{CLOSE}{long}\n\nA pangolin in the answer.")
    ask(page, "first chat")
    new_chat(page, "second chat")
    page.keyboard.press("Control+k")
    expect(page.get_by_label("Search chats")).to_be_focused()
    page.keyboard.type("pangol")
    result = page.locator("#conversations .results .open")
    expect(result).to_have_count(1)
    expect(result.locator("mark")).to_have_text(["pangolin"])
    expect(result).to_contain_text("Answer")
    page.keyboard.press("ArrowDown")
    expect(result).to_be_focused()
    page.keyboard.press("Enter")
    expect(question(page, "first chat")).to_be_visible()
    expect(page.locator(".answer .found")).to_have_text("A pangolin in the answer.")
    expect(page.locator(".answer .found")).to_be_in_viewport()
    page.get_by_label("Search chats").press("Escape")
    expect(page.locator(TITLES)).to_have_text(["second chat", "first chat"])


def test_a_search_finds_another_version_and_the_reasoning(live_server: LiveServer, opens: Opens) -> None:
    page = opens()
    live_server.script(f"First I look at the armadillo.{CLOSE}One.", f"Something else.{CLOSE}Two.")
    ask(page, "which animal")
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".answer-text")).to_have_text("Two.")
    page.get_by_label("Search chats").fill("armadillo")
    result = page.locator("#conversations .results .open")
    expect(result).to_contain_text("Reasoning")
    result.click()
    expect(page.locator(".answer-text")).to_have_text("One.")
    expect(page.locator("#reasoning")).to_contain_text("First I look at the armadillo.")
    expect(page.locator("#reasoning .found")).to_contain_text("armadillo")


@pytest.mark.parametrize(
    "text", ['"', "'", "%", "*", "(", "AND", "a OR", "^", ":", "\\", "\N{PILE OF POO}", "的", "<img src=x>"]
)
def test_whatever_is_typed_into_the_search_gives_results_or_none(opens: Opens, text: str) -> None:
    page = opens()
    ask(page, "first chat")
    page.get_by_label("Search chats").fill(text)
    expect(page.locator("#conversations .search-status")).to_have_text("Nothing found.")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_the_arrows_walk_between_versions_and_the_choice_is_remembered(live_server: LiveServer, opens: Opens) -> None:
    page = opens()
    live_server.script(*(f"Hm.{CLOSE}{word}." for word in ("One", "Two", "Three")))
    ask(page, "first chat")
    for word in ("Two", "Three"):
        page.get_by_role("button", name="Ask again").click()
        expect(page.locator(".answer-text")).to_have_text(f"{word}.")
        expect(page.locator(".actions:visible")).to_have_count(1)
    versions = page.locator(".answer .branches")
    expect(versions).to_have_text("3/3")
    previous = page.get_by_role("button", name="Previous version")
    previous.focus()
    page.keyboard.press("Enter")
    expect(page.locator(".answer-text")).to_have_text("Two.")
    expect(previous).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator(".answer-text")).to_have_text("One.")
    page.reload()
    expect(page.locator(".answer-text")).to_have_text("One.")
    expect(versions).to_have_text("1/3")


def test_an_edited_question_is_answered_beside_the_old_one(opens: Opens) -> None:
    page = opens()
    ask(page, "first")
    ask(page, "secnod")
    question(page, "secnod").hover()
    page.get_by_role("button", name="Edit the question").last.click()
    editor = page.get_by_role("textbox", name="Edit the question")
    expect(editor).to_be_focused()
    editor.fill("second")
    page.keyboard.press("Enter")
    expect(page.locator(".question p")).to_have_text(["first", "second"])
    expect(page.locator(".question .branches")).to_have_text("2/2")
    expect(page.locator(".actions:visible")).to_have_count(2)
    page.get_by_role("button", name="Previous version").click()
    expect(page.locator(".question p")).to_have_text(["first", "secnod"])


def test_an_edit_can_be_dropped(opens: Opens) -> None:
    page = opens()
    ask(page, "first")
    page.get_by_role("button", name="Edit the question").focus()
    page.keyboard.press("Enter")
    page.keyboard.type(" and more")
    page.keyboard.press("Escape")
    expect(page.locator(".question p")).to_have_text(["first"])
    expect(page.get_by_role("button", name="Edit the question")).to_be_focused()


def test_while_it_is_answered_nothing_can_be_edited_or_asked_again(live_server: LiveServer, opens: Opens) -> None:
    page = opens()
    ask(page, "first")
    live_server.script(f"A thought. {HOLD}More.{CLOSE}So.")
    page.locator(BOX).fill("second")
    page.locator(BOX).press("Enter")
    expect(page.locator("#reasoning")).to_contain_text("A thought.")
    expect(page.get_by_role("button", name="Edit the question")).to_have_count(0)
    expect(page.get_by_role("button", name="Ask again")).to_have_count(0)
    live_server.release()
    expect(page.get_by_role("button", name="Ask again")).to_have_count(2)


def test_two_tabs_on_one_chat_show_the_same_stream(live_server: LiveServer, opens: Opens) -> None:
    page = opens()
    ask(page, "first")
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_selector("body.ponder-ready")
    live_server.script(f"A thought.{CLOSE}Begun {HOLD}and ended.")
    page.locator(BOX).fill("from one tab")
    page.locator(BOX).press("Enter")
    expect(page.locator(".answer-text").last).to_contain_text("Begun")
    other.locator(BOX).fill("from the other")
    other.locator(BOX).press("Enter")
    expect(other.get_by_role("alert")).to_contain_text("still being answered")
    expect(other.locator(".answer-text").last).to_contain_text("Begun")
    expect(other.locator(BOX)).to_have_value("from the other")
    live_server.release()
    for tab in (page, other):
        expect(tab.locator(".answer-text").last).to_have_text("Begun and ended.")


@pytest.mark.parametrize(("way", "ending"), [("Markdown", ".md"), ("Web page", ".html"), ("JSON", ".json")])
def test_a_chat_is_taken_along_as_a_file(live_server: LiveServer, opens: Opens, way: str, ending: str) -> None:
    page = opens()
    live_server.script(f"A secret thought.{CLOSE}So $x^2$.")
    ask(page, "first chat")
    for is_with in (True, False):
        choose(page, "first chat", "Export")
        page.get_by_label("With the reasoning").set_checked(is_with)
        with page.expect_download() as started:
            page.get_by_role("dialog").get_by_role("button", name=way).click()
        assert started.value.suggested_filename.endswith(ending)
        text = Path(started.value.path()).read_text()
        assert "first chat" in text
        assert ("A secret thought." in text) is is_with


def test_everything_is_exported_and_comes_back_into_another_account(opens: Opens, tmp_path: Path) -> None:
    page = opens()
    for text in ("one", "two"):
        new_chat(page, text)
    with page.expect_download() as started:
        data_settings(page).get_by_role("button", name="Export all chats").click()
    file = tmp_path / "ponder.json"
    started.value.save_as(file)
    assert len(json.loads(file.read_text())["conversations"]) == 2
    other = opens()
    settings = data_settings(other)
    other.locator("#import-file").set_input_files(file)
    expect(settings.get_by_role("status").filter(has_text="2 chats with 4 messages")).to_be_visible()
    other.keyboard.press("Escape")
    expect(other.locator(TITLES)).to_have_text(["two", "one"])
    other.locator(TITLES).first.click()
    expect(other.locator(".answer-text")).to_have_text("Forty-two.")


def test_a_file_that_cannot_be_read_is_refused_in_words(opens: Opens, tmp_path: Path) -> None:
    page = opens()
    ask(page, "one")
    file = tmp_path / "wrong.json"
    file.write_text('{"format": "ponder", "version": 1, "conversations": [{"title"')
    settings = data_settings(page)
    page.locator("#import-file").set_input_files(file)
    expect(settings.get_by_role("alert")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(TITLES)).to_have_text(["one"])


def test_a_temporary_chat_says_so_and_leaves_nothing(live_server: LiveServer, opens: Opens) -> None:
    page = opens()
    page.get_by_role("button", name="New temporary chat").click()
    expect(page.get_by_role("note")).to_contain_text("kept in memory alone")
    ask(page, "a passing thought")
    expect(page.get_by_role("note")).to_contain_text("kept in memory alone")
    expect(page.locator(TITLES)).to_have_count(0)
    page.reload()
    expect(question(page, "a passing thought")).to_be_visible()
    expect(page.get_by_role("note")).to_be_visible()
    temporary = live_server.services.history.temporary
    talk = page.url.rsplit("/", 1)[1]
    address = page.url
    assert temporary.expires_in_s(talk) > 3000
    page.goto("about:blank")
    until(lambda: temporary.expires_in_s(talk) <= 30)
    temporary.end([talk])
    page.goto(address)
    expect(page.get_by_role("heading", name="This temporary chat has ended.")).to_be_visible()


def test_deleting_the_account_takes_the_chats_along(live_server: LiveServer, opens: Opens) -> None:
    made = live_server.services.local.register_now("ada", PASSWORD)
    live_server.services.people.change_settings(made.person_id, {}, 1)
    page = opens()
    page.locator("#account").get_by_role("button", name="Sign in").click()
    page.get_by_role("dialog").get_by_label("Username").fill("ada")
    page.get_by_role("dialog").get_by_label("Password", exact=True).fill(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="ada: account menu")).to_be_visible()
    ask(page, "a marsupial question")
    page.evaluate("location.hash = '#/settings/account'")
    page.get_by_role("dialog").get_by_role("button", name="Delete account").click()
    page.keyboard.type("ada")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Sign up")).to_be_visible()
    expect(page.locator(TITLES)).to_have_count(0)
    with live_server.services.store.database.reading() as db:
        assert db.connection().exec_driver_sql("SELECT count(*) FROM messages").scalar() == 0


def test_on_a_phone_the_menu_and_the_search_are_within_reach(opens: Opens) -> None:
    page = opens(viewport=PHONE)
    ask(page, "first chat")
    page.get_by_role("button", name="Chats", exact=True).click()
    page.get_by_role("button", name="Options of first chat").click()
    box = page.get_by_role("menu").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Options of first chat")).to_be_focused()
    page.get_by_label("Search chats").fill("first")
    page.locator("#conversations .results .open").click()
    expect(question(page, "first chat")).to_be_visible()

"""Signing in through a real provider on another site, as a person does it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.routes.providers.loopback import MockProvider, Ponder, mock_provider, ponder, provider

pytestmark = pytest.mark.browser
OpensPonder = Callable[..., Page]


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MockProvider]:
    """Another site than 127.0.0.1, so that cookies are held back as they would be on the net."""
    with mock_provider(tmp_path_factory.mktemp("mock"), "localhost") as found:
        yield found


@pytest.fixture
def server(tmp_path: Path, mock: MockProvider) -> Iterator[Ponder]:
    with ponder(tmp_path, provider(mock.url, "mock", label="Example Login"), trusted_proxies=0) as found:
        yield found


@pytest.fixture
def opens_ponder(chromium: Browser, server: Ponder) -> Iterator[OpensPonder]:
    """Opens the page as a new person who has accepted the notice."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    context.set_default_timeout(15_000)
    context.request.patch(f"{server.url}/api/me", data={"notice_version": 1})

    def new_page() -> Page:
        page = context.new_page()
        page.goto(server.url)
        page.wait_for_selector("body.ponder-ready")
        return page

    yield new_page
    context.close()


def ask(page: Page) -> None:
    page.locator("#question textarea").fill("Why?")
    page.keyboard.press("Enter")
    expect(page.locator(".answer-text")).to_contain_text("Forty-two.")
    expect(page.locator("#conversations .current")).to_have_text("Why?")


def leave_for_the_provider(page: Page) -> None:
    page.locator("#account").get_by_role("button", name="Sign in", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Continue with Example Login").click()
    expect(page.get_by_role("heading", name="Authorize Client")).to_be_visible()


def authorize(page: Page, server: Ponder, subject: str) -> None:
    page.locator("input[name=sub]").fill(subject)
    page.get_by_role("button", name="Authorize").click()
    page.wait_for_url(f"{server.url}/**")
    page.wait_for_selector("body.ponder-ready")


def test_pressing_the_providers_button_leads_there_and_back_signed_in(
    server: Ponder, mock: MockProvider, opens_ponder: OpensPonder
) -> None:
    mock.know("ada", preferred_username="Ada Lovelace")
    page = opens_ponder()
    leave_for_the_provider(page)
    assert page.url.startswith(mock.url)
    authorize(page, server, "ada")
    for _ in range(2):
        expect(page.locator("#account .name")).to_have_text("Ada Lovelace")
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.reload()
        page.wait_for_selector("body.ponder-ready")
    assert page.evaluate("document.cookie") == ""


def test_a_guests_chat_moves_into_the_account_and_is_shown_on_the_way_back(
    server: Ponder, opens_ponder: OpensPonder
) -> None:
    page = opens_ponder()
    ask(page)
    chat = page.url
    leave_for_the_provider(page)
    authorize(page, server, "grace@example.org")
    expect(page).to_have_url(chat)
    expect(page.locator(".answer-text")).to_contain_text("Forty-two.")
    expect(page.locator("#conversations .current")).to_have_text("Why?")
    expect(page.locator("#account .account-name")).to_be_visible()
    page.reload()
    expect(page.locator("#conversations .current")).to_have_text("Why?")


def test_a_guests_chat_stays_behind_when_the_box_is_not_ticked(server: Ponder, opens_ponder: OpensPonder) -> None:
    page = opens_ponder()
    ask(page)
    page.locator("#account").get_by_role("button", name="Sign in", exact=True).click()
    page.get_by_role("checkbox", name=re.compile("Move the")).uncheck()
    page.get_by_role("dialog").get_by_role("button", name="Continue with Example Login").click()
    authorize(page, server, "hopper@example.org")
    expect(page.locator("#account .account-name")).to_be_visible()
    expect(page.locator("#conversations")).not_to_contain_text("Why?")
    expect(page.locator(".answer-text")).to_have_count(0)


def test_whoever_says_no_comes_back_to_the_dialog_with_a_sentence_and_can_try_again(
    server: Ponder, opens_ponder: OpensPonder
) -> None:
    page = opens_ponder()
    leave_for_the_provider(page)
    # The provider answers a "no" without the state (it is a mock): give it back as a provider would
    state = re.search(r"state=([\w-]+)", page.url)
    assert state
    page.goto(f"{server.url}/auth/mock/callback?error=access_denied&state={state[1]}")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("You were not signed in: the provider said no, or you did.")
    dialog.get_by_role("button", name="Continue with Example Login").click()
    authorize(page, server, "lin@example.org")
    expect(page.locator("#account .account-name")).to_be_visible()


def test_a_provider_is_linked_and_unlinked_in_the_settings(
    server: Ponder, mock: MockProvider, opens_ponder: OpensPonder
) -> None:
    mock.know("linus", preferred_username="Linus")
    page = opens_ponder()
    page.goto(f"{server.url}/#/sign-in")
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Sign up").click()
    dialog.get_by_label("Username").fill("ada")
    dialog.get_by_label("Password", exact=True).fill("seven green bicycles")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="I have kept them").click()
    page.goto(f"{server.url}/#/settings")
    page.get_by_role("tab", name="Account").click()
    page.get_by_role("button", name="Link Example Login").click()
    authorize(page, server, "linus")
    expect(page.get_by_role("button", name="Unlink Example Login")).to_be_visible()
    # The name stays one's own, and the link opens the same account
    expect(page.get_by_role("dialog")).to_contain_text("Signed in as ada")
    page.get_by_role("button", name="Unlink Example Login").click()
    expect(page.get_by_role("button", name="Link Example Login")).to_be_visible()

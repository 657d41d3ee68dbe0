from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.browser_setup import LAUNCH, system_chromium
from tests.live import LiveServer

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
Opens = Callable[..., Page]
# A busy machine is slow, and no test here is about speed
expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One Chromium for a module's tests; while it lives, this thread has an event loop that runs."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=system_chromium(), args=list(LAUNCH))
        yield browser
        browser.close()


@pytest.fixture
def opens(chromium: Browser, live_server: LiveServer) -> Iterator[Opens]:
    """Opens the page as a new person; `is_known` has accepted the notice before."""
    contexts: list[BrowserContext] = []

    def new_page(*, viewport: dict[str, int] = DESKTOP, is_known: bool = True, path: str = "") -> Page:
        context = chromium.new_context(viewport=viewport, reduced_motion="reduce")  # type: ignore[arg-type]
        context.set_default_timeout(15_000)
        contexts.append(context)
        if is_known:
            context.request.patch(f"{live_server.url}/api/me", data={"notice_version": 1})
        page = context.new_page()
        page.goto(live_server.url + path)
        page.wait_for_selector("body.ponder-ready")
        return page

    yield new_page
    for context in contexts:
        context.close()

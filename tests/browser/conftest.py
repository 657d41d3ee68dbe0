import socket
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from app.config import Settings
from tests.browser_setup import LAUNCH, system_chromium
from tests.live import LiveServer, serving
from tests.scripted import ScriptedEngine

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
Opens = Callable[..., Page]
# A busy machine is slow, and no test here is about speed
expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One Chromium for a module's tests; while it lives, this thread has an event loop that runs."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=system_chromium(), args=[*LAUNCH, "--process-per-site"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def listening() -> Iterator[socket.socket]:
    """One address for a module's servers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def live_server(settings: Settings, engine: ScriptedEngine, listening: socket.socket) -> Iterator[LiveServer]:
    """A whole Ponder, where the module's earlier ones were."""
    with serving(settings, engine, listening) as server:
        yield server


class Visitor:
    """A context of Chromium that one person after the other uses.

    A page that stays there, with `--process-per-site`, keeps the process alive that draws the address's pages, so that
    the next person's page finds its hundred modules read and compiled.
    """

    def __init__(self, chromium: Browser, viewport: dict[str, int], url: str) -> None:
        self.context = chromium.new_context(viewport=viewport, reduced_motion="reduce")  # type: ignore[arg-type]
        self.context.set_default_timeout(15_000)
        self.staying = self.context.new_page()
        self.staying.goto(f"{url}/ponder/favicon.svg")

    def forget(self) -> None:
        """Be nobody again."""
        for page in self.context.pages:
            if page is not self.staying:
                page.close()
        self.context.clear_cookies()
        self.context.clear_permissions()
        self.staying.evaluate("localStorage.clear()")


@pytest.fixture(scope="module")
def visitors() -> dict[tuple[int, int], list[Visitor]]:
    """Those of the module who are free, by the size of their window."""
    return {}


@pytest.fixture
def opens(
    chromium: Browser, live_server: LiveServer, visitors: dict[tuple[int, int], list[Visitor]]
) -> Iterator[Opens]:
    """Opens the page as a new person; `is_known` has accepted the notice before."""
    taken: list[tuple[list[Visitor], Visitor]] = []

    def new_page(*, viewport: dict[str, int] = DESKTOP, is_known: bool = True, path: str = "") -> Page:
        free = visitors.setdefault((viewport["width"], viewport["height"]), [])
        visitor = free.pop() if free else Visitor(chromium, viewport, live_server.url)
        taken.append((free, visitor))
        if is_known:
            visitor.context.request.patch(f"{live_server.url}/api/me", data={"notice_version": 1})
        page = visitor.context.new_page()
        page.goto(live_server.url + path)
        page.wait_for_selector("body.ponder-ready")
        return page

    yield new_page
    for free, visitor in taken:
        visitor.forget()
        free.append(visitor)

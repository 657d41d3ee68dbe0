import socket
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from app.config import Settings
from tests.chromium import PATIENCE_MS, Chromium, Visitor
from tests.live import LiveServer, serving
from tests.scripted import ScriptedEngine

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
Opens = Callable[..., Page]
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="session")
def listening(lasting_chromium: Chromium) -> socket.socket:
    """One address for all servers of this process, so that the browser finds what it has read."""
    return lasting_chromium.listening


@pytest.fixture
def live_server(settings: Settings, engine: ScriptedEngine, listening: socket.socket) -> Iterator[LiveServer]:
    """A whole Ponder, where this process's earlier ones were."""
    with serving(settings, engine, listening) as server:
        yield server


@pytest.fixture
def opens(chromium: Browser, lasting_chromium: Chromium, live_server: LiveServer) -> Iterator[Opens]:
    """Opens the page as a new person; `is_known` has accepted the notice before."""
    taken: list[tuple[list[Visitor], Visitor]] = []

    def new_page(*, viewport: dict[str, int] = DESKTOP, is_known: bool = True, path: str = "") -> Page:
        size = (viewport["width"], viewport["height"])
        free = lasting_chromium.free.setdefault(size, [])
        visitor = free.pop() if free else Visitor(chromium, size, live_server.url)
        taken.append((free, visitor))
        if is_known:
            visitor.context.request.patch(f"{live_server.url}/api/me", data={"notice_version": 1})
        page = visitor.context.new_page()
        page.goto(live_server.url + path)
        page.wait_for_selector("body.ponder-ready")
        return page

    yield new_page
    for free, visitor in taken:
        if visitor.forget():
            free.append(visitor)

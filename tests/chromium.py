"""One Chromium for a process of tests. Starting one, and having it read and compile the page, takes seconds."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, BrowserContext, sync_playwright

from tests.browser_setup import LAUNCH, system_chromium

Size = tuple[int, int]
# A busy machine is slow, and no test here is about speed
PATIENCE_MS = 60_000


class Chromium:
    """The browser, the people who have used it, and the address of the servers that they know."""

    def __init__(self) -> None:
        self._playwright = sync_playwright().start()
        # Playwright leaves it "running" in this thread: `asyncio.run` of other tests would refuse to start
        self._loop = asyncio.get_running_loop()
        asyncio._set_running_loop(None)
        self._browser: Browser | None = None
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.free: dict[Size, list[Visitor]] = {}

    @contextmanager
    def in_use(self) -> Iterator[Browser]:
        """The browser; meanwhile this thread has an event loop that runs."""
        asyncio._set_running_loop(self._loop)
        try:
            if self._browser is None or not self._browser.is_connected():
                self.free.clear()
                self._browser = self._playwright.chromium.launch(
                    executable_path=system_chromium(), args=[*LAUNCH, "--process-per-site"]
                )
            yield self._browser
        finally:
            asyncio._set_running_loop(None)

    def close(self) -> None:
        """End it."""
        with self.in_use() as browser:
            browser.close()
            self._playwright.stop()
        self.listening.close()


class Visitor:
    """A context of Chromium that one person after the other uses.

    A page that stays there, with `--process-per-site`, keeps the process alive that draws the address's pages, so that
    the next person's page finds its hundred modules read and compiled.
    """

    def __init__(self, browser: Browser, size: Size, url: str) -> None:
        width, height = size
        self.context: BrowserContext = browser.new_context(
            viewport={"width": width, "height": height}, reduced_motion="reduce"
        )
        self.context.set_default_timeout(PATIENCE_MS)
        self.staying = self.context.new_page()
        self.staying.goto(f"{url}/ponder/favicon.svg")

    def forget(self) -> bool:
        """Be nobody again; whether that is possible."""
        has_other_clock = False
        for page in self.context.pages:
            if page is not self.staying:
                # `page.clock` is that of all pages of a context, and there is no way back to the real one
                has_other_clock = has_other_clock or page.evaluate("'__pwClock' in globalThis")
                page.close()
        if has_other_clock:
            self.context.close()
            return False
        self.context.clear_cookies()
        self.context.clear_permissions()
        self.context.set_offline(False)
        self.context.unroute_all()
        self.staying.evaluate("localStorage.clear()")
        return True

"""The page inside another site's frame, as Spaces shows it: browsers keep only partitioned cookies there."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from app.config import Settings
from tests.browser.conftest import DESKTOP
from tests.live import serving
from tests.scripted import ScriptedEngine

pytestmark = pytest.mark.browser


@contextmanager
def another_site(framed: str) -> Iterator[str]:
    """A site at 127.0.0.1 that shows `framed` in a frame."""

    class Framing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f'<!doctype html><iframe src="{framed}" width="1200" height="700"></iframe>'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Framing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_guest_in_a_frame_is_known_there_again_and_only_there(chromium: Browser, tmp_path: Path) -> None:
    """On `localhost` Chromium takes Secure cookies without TLS, so the flags are those of a real Space."""
    folders = {"data_dir": tmp_path / "data", "cache_dir": tmp_path / "cache"}
    settings = Settings(**folders, port=0, model="demo", base_url="https://localhost", framed_by="http://127.0.0.1:*")  # type: ignore[arg-type]
    context = chromium.new_context(viewport=DESKTOP)  # type: ignore[arg-type]
    context.set_default_timeout(15_000)
    with serving(settings, ScriptedEngine()) as server:
        ponder = server.url.replace("127.0.0.1", "localhost")
        with another_site(ponder) as site:
            page = context.new_page()
            page.goto(site)
            frame = page.frame_locator("iframe")
            frame.locator("#question textarea").fill("Why?")
            frame.locator("#send").click()
            frame.get_by_role("button", name="I understand").click()
            expect(frame.locator(".answer-text")).to_contain_text("Forty-two.")
            (cookie,) = context.cookies()
            assert (cookie["name"], cookie["secure"], cookie["httpOnly"]) == ("__Host-ponder", True, True)
            assert cookie["sameSite"] == "None"
            assert cookie.get("partitionKey")
            page.reload()
            expect(frame.locator("#conversations .open")).to_have_text("Why?")
            # Another jar: the same address in a tab of its own knows nobody
            page.goto(ponder)
            page.wait_for_selector("body.ponder-ready")
            expect(page.locator("#conversations .open")).to_have_count(0)
    context.close()


def test_a_site_that_is_not_listed_may_not_show_the_page(chromium: Browser, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache", port=0, model="demo")
    context = chromium.new_context(viewport=DESKTOP)  # type: ignore[arg-type]
    with (
        serving(settings, ScriptedEngine()) as server,
        another_site(server.url.replace("127.0.0.1", "localhost")) as site,
    ):
        page = context.new_page()
        with page.expect_console_message(lambda message: "frame-ancestors" in message.text):
            page.goto(site)
    context.close()

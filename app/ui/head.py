"""Our head, in the page's HTML itself.

Gradio's own `head=` comes with its configuration, which under our policy is asked for only after its scripts have run:
a second late, with Gradio's loading sign in between.
"""

import re
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEAD_END = b"</head>"
# Gradio's cards for links to the page speak of Gradio and point to its picture
_FIRST_TAG = re.compile(rb'<html(?:\s+lang="[^"]*")?([^>]*>)')
# Gradio's scripts that stand in the page are refused by our policy, each with a red line in the console
_INLINE_SCRIPTS = re.compile(rb"<script(?![^>]*\bsrc=)[^>]*>.*?</script>\s*", re.DOTALL)
_CARDS = re.compile(rb'<meta\s+(?:property="og:|name="twitter:)[^>]*>\s*')

Appearance = Callable[[Request], tuple[str, str]]


class EarlyHead:
    """Writes `head` at the end of the page's head, and the person's language and theme into its first tag."""

    def __init__(self, app: ASGIApp, head: str, appearance: Appearance) -> None:
        self._app = app
        self._head = head.encode()
        self._appearance = appearance

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
            await self._app(scope, receive, send)
            return
        start: Message = {}
        parts: list[bytes] = []

        async def collect(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                body = self._with_head(b"".join(parts), *self._appearance(Request(scope)))
                MutableHeaders(scope=start)["content-length"] = str(len(body))
                await send(start)
                await send({"type": "http.response.body", "body": body})

        await self._app(_asking_for_plain_text(scope), receive, collect)

    def _with_head(self, body: bytes, language: str, theme: str) -> bytes:
        first = f'<html lang="{language or "en"}" data-theme="{theme}"'.encode()
        whole = _INLINE_SCRIPTS.sub(b"", _CARDS.sub(b"", body)).replace(_HEAD_END, self._head + _HEAD_END, 1)
        return _FIRST_TAG.sub(lambda found: first + found[1], whole, count=1)


def _asking_for_plain_text(scope: Scope) -> Scope:
    """The request without its accepted encodings: what is to be written into must not be compressed."""
    headers = [(name, value) for name, value in Headers(scope=scope).raw if name != b"accept-encoding"]
    return {**scope, "headers": headers}

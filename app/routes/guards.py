"""What stands in front of every route: headers, the same-origin rule, the size of a body, the gate before Gradio.

Plain ASGI, so that event streams pass through untouched.
"""

import logging
import re
import socket
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.config import Settings, host_of, is_loopback
from app.errors import Forbidden, HeadersTooLarge, InternalError, NotFound, PonderError, TextTooLarge, UnknownHost

_POLICY = [
    "default-src 'self'",
    "script-src 'self'",
    # Gradio writes style attributes and style elements
    "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data: blob:",
    "font-src 'self' data:",
    "connect-src 'self'",
    "form-action 'self'",
    "base-uri 'self'",
    "object-src 'none'",
]
_SCRIPTLESS_POLICY = [
    "default-src 'none'",
    "style-src 'self'",
    "img-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
]
_SCRIPTLESS_PATHS = frozenset({"/privacy"})
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_log = logging.getLogger(__name__)
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
MOST_HEAD_BYTES = 64 * 1024
_MOST_BODY_BYTES = 2 * 1024 * 1024
# Of an account's import; the route counts for itself, and less for guests
MOST_IMPORT_BYTES = 200 * 1024 * 1024
_IMPORT_PATH = "/api/me/import"
# Without handlers Gradio's page needs neither its queue nor its heartbeat, which would hold a connection open
_OPEN_PATHS = re.compile(
    r"/(?:(?:api|auth|ponder|assets|static)/.*|privacy|healthz|readyz|config|theme\.css|favicon\.ico|gradio_api/info)?"
)
_WRITABLE_PATHS = re.compile(r"/(?:api|auth)/.*")
# No file's name is longer, and the operating system's word for that is an error
_LONGEST_NAME = 200
# In no address of ours; a line's end would pass for the end of the address
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# What is one person's, or says who they are or where we are
_PRIVATE_PATHS = re.compile(r"/(?:(?:api|auth)/.*|config|gradio_api/info)?")
# Gradio makes its own address of them, whoever wrote them; X-Forwarded-For is ours to read (app/routes/access.py)
_FORWARDED = frozenset(
    {b"forwarded", b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-prefix", b"x-forwarded-server"}
    | {b"x-forwarded-proto", b"x-forwarded-scheme", b"x-forwarded-ssl", b"x-gradio-server", b"x-gradio-user"}
    | {b"x-original-host", b"x-original-url", b"x-rewrite-url", b"x-host", b"x-script-name"}
)
# Asked by machines under whatever name they know us by; they tell nothing
_ANY_HOST_PATHS = frozenset({"/healthz", "/readyz"})


def error_response(error: PonderError) -> JSONResponse:
    """The JSON body and the status of an error."""
    body = {"code": error.code, "message": error.message, **error.details}
    headers = {"Retry-After": str(error.details["retry_after_s"])} if "retry_after_s" in error.details else None
    return JSONResponse({"error": body}, status_code=error.status, headers=headers)


class Guards:
    """Refuses what must not reach a route, and puts the security headers on every response."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._base_origin = settings.base_url
        self._base_host = urlsplit(settings.base_url).hostname or ""
        machine = socket.gethostname().lower()
        self._own_names = {settings.host.lower(), machine, f"{machine}.local", f"{machine}.lan", f"{machine}.home.arpa"}
        ancestors = ["frame-ancestors " + " ".join(["'self'", *settings.frame_origins])]
        self._policy = "; ".join(_POLICY + ancestors)
        self._scriptless_policy = "; ".join(_SCRIPTLESS_POLICY + ancestors)
        self._headers = dict(_HEADERS)
        if settings.base_url.startswith("https://"):
            self._headers["Strict-Transport-Security"] = "max-age=31536000"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        scope["headers"] = self._without_forwarded(scope["headers"])
        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        target: ASGIApp = error_response(refusal) if refusal else self._app
        is_import = scope["path"] == _IMPORT_PATH and scope["method"] == "POST"
        bounded = receive if is_import else _Bounded(receive)

        has_begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                found = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    found[name] = value
                is_scriptless = scope["path"] in _SCRIPTLESS_PATHS
                found["Content-Security-Policy"] = self._scriptless_policy if is_scriptless else self._policy
                if _PRIVATE_PATHS.fullmatch(scope["path"]) and "no-store" not in found.get("cache-control", ""):
                    found["Cache-Control"] = "no-store"
                # Gradio answers any origin that asks; nobody but our own page has business here
                for name in list(found.keys()):
                    if name.startswith("access-control-"):
                        del found[name]
            await send(message)

        try:
            await target(scope, bounded, send_with_headers)
        except Exception:
            if has_begun:
                raise
            _log.exception("%s %s failed", scope["method"], scope["path"])
            await error_response(_bug())(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope, headers: Headers) -> PonderError | None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEAD_BYTES:
            return HeadersTooLarge("The headers of this request are too large. Delete this site's cookies.")
        if scope["path"] not in _ANY_HOST_PATHS and not self._is_own_host(headers.get("host", "")):
            return UnknownHost(
                "This server does not know the name it was called by. "
                "Whoever runs it sets PONDER_BASE_URL to its address."
            )
        if _UNSEEN.search(scope["path"]) or not _OPEN_PATHS.fullmatch(scope["path"]):
            return NotFound("There is nothing at this address.")
        if b"%00" in scope["query_string"]:
            return NotFound("There is nothing at this address.")
        if any(len(part) > _LONGEST_NAME for part in scope["path"].split("/")):
            return NotFound("There is nothing at this address.")
        if scope["method"] not in _SAFE_METHODS and not self._is_own_page(scope, headers):
            return Forbidden("This request comes from another site. Use Ponder's own page.")
        if scope["method"] not in _SAFE_METHODS and not _WRITABLE_PATHS.fullmatch(scope["path"]):
            return NotFound("There is nothing at this address.")
        length = headers.get("content-length", "0")
        is_import = scope["path"] == _IMPORT_PATH and scope["method"] == "POST"
        most = MOST_IMPORT_BYTES if is_import else _MOST_BODY_BYTES
        if not re.fullmatch("[0-9]{1,18}", length) or int(length) > most:
            return too_large(is_import=is_import)
        return None

    def _without_forwarded(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """What others say about our address is dropped: the settings say it, and of a trusted proxy only http or https
        is believed."""
        kept = [(name, value) for name, value in headers if name not in _FORWARDED]
        said = [value for name, value in headers if name == b"x-forwarded-proto"]
        if self._base_origin:
            kept.append((b"x-forwarded-proto", self._base_origin.partition(":")[0].encode()))
        elif self._settings.trusted_proxies and said in ([b"http"], [b"https"]):
            kept.append((b"x-forwarded-proto", said[0]))
        return kept

    def _is_own_host(self, host: str) -> bool:
        """The name in the settings and this machine; without one, any number too: only names can be rebound."""
        name = host_of(host) if "@" not in host else ""
        if is_loopback(name) or (name and name == self._base_host):
            return True
        if self._base_host:
            return False
        return name in self._own_names or _is_number(name)

    def _is_own_page(self, scope: Scope, headers: Headers) -> bool:
        """Fetch metadata where the browser sends it, else Origin; a program without a cookie has nothing to lose."""
        site = headers.get("sec-fetch-site")
        if site is not None:
            return site in ("same-origin", "none")
        origin = headers.get("origin")
        if origin is not None:
            own = f"{scope['scheme']}://{headers.get('host', '')}"
            return origin == (self._base_origin or own)
        return "cookie" not in headers


def _is_number(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


class _BodyTooLarge(HTTPException):
    """An HTTPException, or FastAPI takes it for a body that is not JSON."""

    def __init__(self) -> None:
        super().__init__(413)


class _Bounded:
    """A receive that counts the body's bytes, for bodies that do not say their length."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._bytes = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._bytes += len(message.get("body", b""))
        if self._bytes > _MOST_BODY_BYTES:
            raise _BodyTooLarge
        return message


def _bug() -> PonderError:
    return InternalError("Something went wrong on the server. Your text is still here; try again.")


def too_large(*, is_import: bool = False) -> TextTooLarge:
    """A body of more bytes than its route takes."""
    if is_import:
        return TextTooLarge(
            f"The file is larger than {MOST_IMPORT_BYTES // 1024 // 1024} MB.", limit_bytes=MOST_IMPORT_BYTES
        )
    return TextTooLarge(
        f"The request is larger than {_MOST_BODY_BYTES // 1024 // 1024} MiB. Shorten your message.",
        limit_bytes=_MOST_BODY_BYTES,
    )

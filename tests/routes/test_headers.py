"""What stands around every answer: the same-origin rule, cookies, headers, names of the host, paths that climb."""

import http.client
import itertools
import json
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fastapi import Request
from fastapi.routing import iter_route_contexts
from fastapi.staticfiles import StaticFiles
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr

from app import static_files
from app.accounts import passwords
from app.config import ProviderSettings, Settings
from app.history.store import now
from app.routes.access import address_of
from app.web import build_app
from tests.live import LiveServer, serving
from tests.patience import PATIENCE_S
from tests.people import NO_TLS, PASSWORD
from tests.routes.test_access_matrix import (
    GRADIOS,
    UNKNOWN_ID,
    Key,
    gradios_routes_of,
    routes_of,
)
from tests.scripted import ScriptedEngine

SECRET = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
PROVIDERS_SECRET = "this-is-the-secret-of-github"
PLANTED = {"PONDER_TEST_PLANTED": "a planted value of the environment", "HF_TOKEN": "hf_planted_token_of_nobody"}
ELSEWHERE = "https://elsewhere.example"
BASE = "https://ponder.example"
FRAMES = "https://huggingface.co"
UNSAFE = {"POST", "PUT", "PATCH", "DELETE"}
ROOT = Path(__file__).parents[2]
PASSWORD_HASH = passwords.hashed(PASSWORD)


# Servers


@dataclass
class Served:
    """A server, its routes, and somebody with an account on it."""

    live: LiveServer
    own: set[Key]
    gradios: set[Key]
    host: str = ""
    token: str = ""
    username: str = ""
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def name(self) -> str:
        """The name of the cookie here."""
        return "__Host-ponder" if self.host else "ponder"

    def renew(self) -> "Served":
        """Somebody new to ask as: a test may have signed the last one out, or deleted them."""
        services = self.live.services
        self.username = f"ada{next(self.numbers)}"
        person_id = services.people.add_account(
            username=self.username, username_key=self.username, password_hash=PASSWORD_HASH
        )
        self.token = services.sessions.open(person_id, "", verified_at=now(), instead_of=None)
        return self

    def ask(self, method: str, path: str, *, is_known: bool = True, **more: Any) -> httpx.Response:
        """One request, as nobody else's: by whoever has the account, without any other header."""
        headers = {"Host": self.host} if self.host else {}
        if is_known:
            headers["Cookie"] = f"{self.name}={self.token}"
        headers |= more.pop("headers", {})
        return httpx.request(
            method, f"{self.live.url}{path}", headers=headers, verify=NO_TLS, timeout=PATIENCE_S, **more
        )

    def every_request(self) -> Iterator[Key]:
        """Every route there is with what it takes in its path made up, and paths that are not there."""
        for method, path in sorted(self.own | self.gradios | ODD):
            filled = re.sub(r"\{[^}]*\}", "github" if "{provider}" in path else UNKNOWN_ID, path)
            yield method, filled.replace(f"/ponder/{UNKNOWN_ID}", "/ponder/ponder.css")


# Errors of every kind: none there, wrong method, refused JSON, files, and what must not be there at all
ODD: set[Key] = {
    ("GET", "/nowhere"),
    ("GET", "/api/nowhere"),
    ("GET", "/auth/nowhere"),
    ("GET", "/ponder/nowhere.js"),
    ("GET", "/ponder/ponder.js"),
    ("GET", "/static/nowhere"),
    ("GET", "/assets/nowhere"),
    ("GET", "/static/img/logo.svg"),
    ("PUT", "/api/me"),
    ("DELETE", "/"),
    ("POST", "/privacy"),
    ("OPTIONS", "/api/me"),
    ("OPTIONS", "/config"),
    ("TRACE", "/"),
    ("GET", "/docs"),
    ("GET", "/redoc"),
    ("GET", "/gradio_api/upload"),
}


def _settings(folder: Path, **more: Any) -> Settings:
    github = ProviderSettings(
        name="github",
        kind="github",
        issuer="https://github.com",
        client_id="an-id",
        client_secret=SecretStr(PROVIDERS_SECRET),
        label="GitHub",
    )
    return Settings(
        data_dir=folder / "data",
        cache_dir=folder / "cache",
        port=0,
        model="demo",
        new_guests_per_hour=100_000,
        secret_key=SecretStr(SECRET),
        providers=(github,),
        **more,
    )


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Served]]:
    """Starts servers with other settings; all end with the module."""
    opened: list[Any] = []

    def start(**more: Any) -> Served:
        settings = _settings(tmp_path_factory.mktemp("headers"), **more)
        opened.append(serving(settings, ScriptedEngine()))
        live = opened[-1].__enter__()
        app = build_app(live.services)
        return Served(live, routes_of(app), gradios_routes_of(app), urlsplit(settings.base_url).netloc)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in PLANTED.items():
            patch.setenv(name, value)
        yield start
    for one in reversed(opened):
        one.__exit__(None, None, None)


@pytest.fixture(scope="module")
def plain_server(serve: Callable[..., Served]) -> Served:
    return serve()


@pytest.fixture(scope="module")
def public_server(serve: Callable[..., Served]) -> Served:
    return serve(base_url=BASE, framed_by=FRAMES, trusted_proxies=1)


@pytest.fixture(scope="module")
def unframed_server(serve: Callable[..., Served]) -> Served:
    return serve(base_url=BASE)


@pytest.fixture
def plain(plain_server: Served) -> Served:
    """As somebody starts it on their own machine."""
    return plain_server.renew()


@pytest.fixture
def public(public_server: Served) -> Served:
    """At a name of its own, over TLS, behind one proxy, in frames of one site."""
    return public_server.renew()


@pytest.fixture
def unframed(unframed_server: Served) -> Served:
    """At a name of its own, over TLS, in nobody's frame."""
    return unframed_server.renew()


@pytest.fixture(params=["plain", "public"])
def served(request: pytest.FixtureRequest) -> Served:
    """Both of them."""
    found: Served = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def quiet() -> Iterator[None]:
    """Nothing is logged: writing out a traceback here while pytest reads sources there breaks Python 3.11's parser."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def raw(served: Served, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """The answer to these very bytes: no client tidies the path, or the headers, up."""
    parts = urlsplit(served.live.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S) as connection:
        connection.sendall(request)
        response = http.client.HTTPResponse(connection)
        response.begin()
        body = response.read()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, body


def raw_get(served: Served, path: str, host: str = "127.0.0.1", more: str = "") -> tuple[int, dict[str, str], bytes]:
    """GET this very path."""
    lines = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n"
    return raw(served, lines.encode("latin-1"))


# Other sites' requests


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "OWN"},
        {"Sec-Fetch-Site": ""},
        {"Sec-Fetch-Site": "Same-Origin"},
        {"Origin": ELSEWHERE},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "OWN.elsewhere.example"},
        {"Origin": "OWN/"},
        {},
    ],
)
def test_every_unsafe_route_refuses_what_does_not_come_from_our_own_page(
    served: Served, headers: dict[str, str]
) -> None:
    own = BASE if served.host else served.live.url
    headers = {name: value.replace("OWN", own) for name, value in headers.items()}
    tried = 0
    for method, path in served.every_request():
        if method in UNSAFE and (path, method) != ("/", "DELETE"):
            response = served.ask(method, path, json={}, headers=headers)
            expected = 403 if path.startswith(("/api/", "/auth/", "/privacy")) else 404
            assert response.status_code == expected, f"{method} {path}"
            assert "set-cookie" not in response.headers
            tried += expected == 403
    assert tried > 20
    assert served.ask("GET", "/api/me").json()["kind"] == "account"


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "OWN"},
        {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "iframe", "X-Ponder-Framed": "1"},
    ],
)
def test_every_unsafe_route_takes_what_comes_from_our_own_page(served: Served, headers: dict[str, str]) -> None:
    own = BASE if served.host else served.live.url
    headers = {name: value.replace("OWN", own) for name, value in headers.items()}
    for method, path in served.every_request():
        if method in UNSAFE and path not in ("/", "/api/me", "/auth/logout", "/auth/recovery-codes"):
            # Nothing of these bodies can be used, so nothing happens
            response = served.ask(method, path, json=["nothing"], headers=headers)
            assert response.status_code != 403, f"{method} {path}"
    assert served.ask("POST", "/api/conversations", json={}, headers=headers).status_code == 201
    assert served.ask("GET", "/api/me").json()["kind"] == "account"


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize("path", ["/auth/login", "/auth/register", "/auth/recover", "/auth/logout"])
def test_another_site_cannot_sign_anybody_in_or_out(served: Served, path: str, kind: str) -> None:
    body = {"/auth/logout": {}, "/auth/recover": {"code": "x"}}.get(
        path, {"username": served.username, "password": PASSWORD}
    )
    for is_known in (True, False):
        for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": ELSEWHERE}):
            response = served.ask(
                "POST", path, is_known=is_known, content=json.dumps(body), headers={**headers, "Content-Type": kind}
            )
            assert response.status_code == 403
            assert "set-cookie" not in response.headers
    assert served.ask("GET", "/api/me").json()["name"] == served.username


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_what_a_form_could_send_is_not_read_as_json(served: Served, kind: str) -> None:
    body = json.dumps({"username": served.username, "password": PASSWORD})
    headers = {"Sec-Fetch-Site": "same-origin", "Content-Type": kind}
    response = served.ask("POST", "/auth/login", is_known=False, content=body, headers=headers)
    assert response.status_code == 422
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_link_on_another_site_starts_no_signing_in(served: Served, site: str) -> None:
    response = served.ask("GET", "/auth/github/login?next=/%23/settings", headers={"Sec-Fetch-Site": site})
    assert (response.status_code, response.headers["location"]) == (303, f"{base_of(served)}/#/sign-in")
    assert "set-cookie" not in response.headers


def base_of(served: Served) -> str:
    """Where the settings say that the server is."""
    return served.live.services.settings.public_url


# Cookies


def cookies_of(response: httpx.Response) -> dict[str, dict[str, str]]:
    """Each cookie that an answer sets, with its attributes in lower case."""
    found = {}
    for line in response.headers.get_list("set-cookie"):
        first, *attributes = line.split("; ")
        pairs = [attribute.partition("=") for attribute in attributes]
        found[first.partition("=")[0]] = {name.lower(): value for name, _, value in pairs}
    return found


PAGE = {"Sec-Fetch-Site": "same-origin"}
FLAGS_PLAIN = {"path": "/", "httponly": "", "samesite": "Lax"}
FLAGS_TLS = FLAGS_PLAIN | {"secure": ""}
FLAGS_FRAMED = FLAGS_TLS | {"samesite": "None", "partitioned": ""}


def all_that_set_cookies(served: Served, headers: dict[str, str]) -> Iterator[tuple[str, httpx.Response]]:
    """Every way to get the cookie, or to lose it."""
    services, client = served.live.services, httpx.Client(base_url=served.live.url, verify=NO_TLS, timeout=PATIENCE_S)
    client.headers.update(PAGE | headers | ({"Host": served.host} if served.host else {}))
    name = f"bea{next(served.numbers)}"
    person_id = services.people.add_account(username=name, username_key=name, password_hash=PASSWORD_HASH)
    new = services.local.new_recovery_codes(person_id)
    who = {"username": name, "password": PASSWORD}

    def send(method: str, path: str, body: Any) -> httpx.Response:
        client.cookies.clear()
        token = services.sessions.open(person_id, "", verified_at=now(), instead_of=None)
        return client.request(method, path, json=body, headers={"Cookie": f"{served.name}={token}"})

    with client:
        yield "a guest", client.post("/api/conversations", json={})
        client.cookies.clear()
        yield "a guest by settings", client.patch("/api/me", json={"settings": {"theme": "dark"}})
        client.cookies.clear()
        yield "signing in", client.post("/auth/login", json=who)
        yield "signing up", send("POST", "/auth/register", {"username": f"{name}x", "password": PASSWORD})
        yield "recovering", send("POST", "/auth/recover", who | {"code": new[0]})
        yield "confirming", send("POST", "/auth/confirm", {"password": PASSWORD})
        yield "a new password", send("POST", "/auth/password", {"password": PASSWORD, "new_password": "ten red mopeds"})
        yield "signing out", send("POST", "/auth/logout", {})
        ended = {"Cookie": f"{served.name}=a-ended"}
        yield "having been signed out", client.post("/auth/logout", json={"ended": True}, headers=ended)
        yield "leaving", send("DELETE", "/api/me", None)


@pytest.mark.parametrize(
    ("which", "framed", "flags"),
    [
        ("plain", None, FLAGS_PLAIN),
        ("plain", "1", FLAGS_PLAIN),
        ("unframed", None, FLAGS_TLS),
        ("unframed", "1", FLAGS_TLS),
        ("public", None, FLAGS_TLS),
        ("public", "0", FLAGS_TLS),
        ("public", "1", FLAGS_FRAMED),
    ],
)
def test_the_cookie_has_the_flags_of_its_place_however_it_comes_or_goes(
    request: pytest.FixtureRequest, which: str, framed: str | None, flags: dict[str, str]
) -> None:
    served: Served = request.getfixturevalue(which)
    headers = {"X-Ponder-Framed": framed} if framed is not None else {}
    for how, response in all_that_set_cookies(served, headers):
        assert response.is_success, f"{how}: {response.text}"
        (found,) = cookies_of(response).items()
        age = int(found[1].pop("max-age"))
        assert found == (served.name, flags), how
        assert (age == 0) is (how in ("signing out", "having been signed out", "leaving")), how
        # A cookie that is taken away has no value left, and one that is given no domain, or __Host- would not hold
        value = SimpleCookie(response.headers["set-cookie"].split(";")[0])[served.name].value
        assert (value == "") is (age == 0)


def test_the_cookie_of_a_sign_in_under_way_is_as_closed_as_it_can_be(plain: Served, public: Served) -> None:
    for served, name, flags in (
        (plain, "ponder-auth", {"path": "/auth", "httponly": "", "samesite": "lax"}),
        (public, "__Secure-ponder-auth", {"path": "/auth", "httponly": "", "samesite": "lax", "secure": ""}),
    ):
        host = urlsplit(base_of(served)).netloc
        response = served.ask("GET", "/auth/github/login", headers={"Host": host, "Sec-Fetch-Site": "none"})
        assert urlsplit(response.headers["location"]).netloc == "github.com"
        found = cookies_of(response)[name]
        assert int(found.pop("max-age")) <= 600
        assert found == flags


def test_a_cookie_without_the_prefix_is_nobody_where_there_is_tls(public: Served) -> None:
    for name in ("ponder", "__host-ponder", "__Secure-ponder", "Ponder"):
        response = public.ask("GET", "/api/me", headers={"Cookie": f"{name}={public.token}"})
        assert response.json()["kind"] == "nobody"


# Headers on everything


def test_no_answer_lets_another_origin_read_it(served: Served) -> None:
    for method, path in served.every_request():
        for more in ({}, {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a"}):
            for origin in (ELSEWHERE, "null", "http://localhost:3000"):
                asked = "OPTIONS" if more else method
                response = served.ask(asked, path, headers={"Origin": origin, **more})
                found = [name for name in response.headers if name.startswith("access-control-")]
                assert not found, f"{asked} {path} answers {found}"
                assert ELSEWHERE not in str(response.headers), f"{asked} {path}"


def policy_of(headers: Any) -> dict[str, str]:
    """The directives of the content security policy."""
    parts = (part.strip().partition(" ") for part in headers["content-security-policy"].split(";"))
    return {name: value for name, _, value in parts}


def check_headers(served: Served, path: str, headers: Any) -> None:
    """The headers that every answer has."""
    policy = policy_of(headers)
    assert policy["frame-ancestors"] == (f"'self' {FRAMES}" if served.host else "'self'"), path
    if path == "/privacy":
        assert "script-src" not in policy
        assert policy["default-src"] == "'none'"
        assert (policy["form-action"], policy["base-uri"]) == ("'none'", "'none'")
    else:
        assert (policy["default-src"], policy["script-src"]) == ("'self'", "'self'"), path
        assert (policy["object-src"], policy["base-uri"], policy["form-action"]) == ("'none'", "'self'", "'self'")
        assert policy["connect-src"] == "'self'"
        assert set(policy["img-src"].split()) <= {"'self'", "data:", "blob:"}
    assert headers["x-content-type-options"] == "nosniff", path
    assert headers["referrer-policy"] == "no-referrer", path
    assert headers["cross-origin-opener-policy"] == "same-origin", path
    assert ("strict-transport-security" in headers) is bool(served.host), path
    if path in ("/", "/config", "/gradio_api/info") or path.startswith(("/api/", "/auth/")):
        assert "no-store" in headers["cache-control"], path


def test_every_answer_has_the_security_headers_and_nothing_private_is_kept(served: Served) -> None:
    statuses = set()
    for method, path in served.every_request():
        for headers in ({}, PAGE):
            response = served.ask(method, path, headers=headers, content=b"{" if method in UNSAFE else None)
            statuses.add(response.status_code)
            check_headers(served, path, response.headers)
        served.renew()
    assert statuses >= {200, 204, 303, 403, 404, 405, 422}


@pytest.mark.parametrize(
    ("method", "path", "headers", "content", "status"),
    [
        ("POST", "/api/conversations", PAGE, b"x" * 2_200_000, 413),
        ("POST", "/api/conversations", PAGE, b"{", 422),
        ("POST", "/api/conversations", {**PAGE, "Content-Type": "application/json"}, b"[" * 100_000, 400),
        ("GET", "/api/me", {"Host": "elsewhere.example"}, None, 400),
        ("GET", "/ponder/ponder.css", {"Host": "elsewhere.example"}, None, 400),
        ("GET", "/api/me/sessions", {"Cookie": ""}, None, 401),
        ("GET", "/api/conversations?limit=0", {}, None, 422),
        ("GET", "/ponder/ponder.css", {"Range": "bytes=0-9"}, None, 206),
        ("GET", "/ponder/ponder.css", {"Range": "bytes=99999999-"}, None, 416),
        ("POST", "/config", PAGE, None, 404),
    ],
)
def test_errors_have_the_security_headers(
    served: Served, method: str, path: str, headers: dict[str, str], content: bytes | None, status: int
) -> None:
    response = served.ask(method, path, headers=headers, content=content)
    assert response.status_code == status
    check_headers(served, path.partition("?")[0], response.headers)


def send_without_a_length(served: Served) -> httpx.Response:
    return served.ask("POST", "/api/conversations", headers=PAGE, content=iter([b"x" * 65536] * 40))


def test_a_body_without_a_length_is_cut_off_with_the_security_headers(served: Served) -> None:
    response = send_without_a_length(served)
    assert response.status_code == 413
    check_headers(served, "/api/conversations", response.headers)


def test_a_body_without_a_length_is_said_to_be_too_large(served: Served) -> None:
    response = send_without_a_length(served)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "text_too_large")


@pytest.mark.parametrize(("method", "path"), [("GET", "/api/nowhere"), ("PUT", "/api/me"), ("POST", "/config")])
def test_every_error_has_a_code_and_a_sentence(served: Served, method: str, path: str) -> None:
    response = served.ask(method, path, headers=PAGE)
    assert response.status_code in (404, 405)
    assert set(response.json()["error"]) == {"code", "message"}


@pytest.mark.usefixtures("quiet")
def test_the_answer_to_a_bug_has_the_security_headers(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(served.live.services.store, "conversations", fail)
    response = served.ask("GET", "/api/conversations")
    assert response.status_code == 500
    check_headers(served, "/api/conversations", response.headers)


def test_an_event_stream_is_not_kept_and_has_the_security_headers(plain: Served) -> None:
    conversation = plain.ask("POST", "/api/conversations", json={}, headers=PAGE).json()["id"]
    body = {"text": "Why?", "client_key": "a-first-key"}
    accepted = plain.ask("POST", f"/api/conversations/{conversation}/messages", json=body, headers=PAGE).json()
    path = f"/api/runs/{accepted['run_id']}/events"
    response = plain.ask("GET", path)
    assert (response.status_code, response.headers["content-type"][:17]) == (200, "text/event-stream")
    check_headers(plain, path, response.headers)


def test_the_page_and_the_privacy_page_carry_no_script_of_their_own(served: Served) -> None:
    assert "<script" not in served.ask("GET", "/privacy").text
    policy = policy_of(served.ask("GET", "/").headers)
    assert "unsafe-inline" not in policy["script-src"]
    assert "unsafe-eval" not in policy["script-src"]


@pytest.mark.parametrize(
    "path",
    [
        "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/gradio_api/openapi.json",
        "/gradio_api/upload", "/gradio_api/upload_progress", "/upload", "/api/upload", "/gradio_api/deep_link",
        "/monitoring", "/monitoring/summary", "/gradio_api/mcp", "/gradio_api/mcp/sse", "/gradio_api/runs",
        "/gradio_api/vibe-code", "/gradio_api/token", "/gradio_api/user", "/gradio_api/dev/reload",
        "/gradio_api/proxy=http://127.0.0.1/", "/gradio_api/file=/etc/passwd", "/gradio_api/file/etc/passwd",
        "/login", "/login/huggingface", "/logout", "/svelte/x", "/custom_component/x", "/metrics",
    ],
)  # fmt: skip
def test_there_is_no_upload_no_documentation_and_none_of_gradios_extras(served: Served, path: str) -> None:
    for method in ("GET", "POST", "PUT"):
        response = served.ask(
            method, path, headers=PAGE, content=b"--x\r\n\r\nx\r\n--x--" if method == "POST" else None
        )
        assert response.status_code in (404, 405), f"{method} {path}"


def test_a_link_that_does_not_say_where_it_stood_starts_no_signing_in(plain: Served) -> None:
    """Browsers say nothing over http but on one's own machine."""
    response = plain.ask("GET", "/auth/github/login")
    assert (response.status_code, response.headers["location"]) == (303, f"{base_of(plain)}/#/sign-in")
    assert "set-cookie" not in response.headers


# Names of the host


@pytest.mark.parametrize(
    "forged",
    [
        {"X-Forwarded-Host": "elsewhere.example"},
        {"X-Forwarded-Host": "elsewhere.example", "X-Forwarded-Proto": "http", "X-Forwarded-Port": "81"},
        {"Forwarded": "host=elsewhere.example;proto=http"},
        {"X-Original-Host": "elsewhere.example", "X-Host": "elsewhere.example"},
        {"X-Forwarded-Prefix": "//elsewhere.example"},
        {"X-Forwarded-Server": "elsewhere.example"},
        {"Origin": BASE, "Referer": "https://elsewhere.example/"},
    ],
)
def test_no_header_changes_where_a_provider_sends_the_browser_back_to(public: Served, forged: dict[str, str]) -> None:
    for method, path in (("POST", "/auth/github/start"), ("GET", "/auth/github/login")):
        response = public.ask(method, path, json={} if method == "POST" else None, headers={**PAGE, **forged})
        location = response.json()["location"] if method == "POST" else response.headers["location"]
        assert urlsplit(location).netloc == "github.com"
        assert parse_qs(urlsplit(location).query)["redirect_uri"] == [f"{BASE}/auth/github/callback"]
        assert "elsewhere" not in location + str(response.headers)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "ponder.example:8443", "PONDER.example", "ponder.example:80"]
)
def test_by_another_name_of_ours_signing_in_goes_on_at_the_right_one(public: Served, host: str) -> None:
    response = public.ask("POST", "/auth/github/start", json={}, headers={**PAGE, "Host": host})
    assert response.json()["location"] == f"{BASE}/#/sign-in"


FOREIGN = [
    "elsewhere.example",
    "ponder.example.elsewhere.example",
    "elsewhere-ponder.example",
    "127.0.0.1.elsewhere.example",
    "localhost.elsewhere.example",
    "ponder.example@elsewhere.example",
    "elsewhere.example#ponder.example",
    "elsewhere.example?ponder.example",
    "elsewhere.example/ponder.example",
    "elsewhere.example\\ponder.example",
    "xn--pnder-jua.example",
    "0177.0.0.1.example",
    "[::1",
    "[elsewhere.example]",
    "[::1].elsewhere.example",
    "[::1]elsewhere.example",
    "[::1]:80.elsewhere.example",
    "[::1%25elsewhere.example]",
    "[::ffff:127.0.0.1%25elsewhere.example]",
    "[::ffff:127.0.0.1].elsewhere.example",
    "127.0.0.1:80@elsewhere.example",
    "elsewhere.example@127.0.0.1",
    "127.0.0.1, elsewhere.example",
    "127.0.0.1 elsewhere.example",
    "localhost:80:elsewhere.example",
    "loc\xd0\xb0lhost",
    "",
    " ",
    "a" * 5000,
]


@pytest.mark.parametrize("host", [*FOREIGN, "203.0.113.5", "[2001:db8::1]", "0.0.0.0"])
def test_with_a_base_url_every_other_name_and_number_is_refused(public: Served, host: str) -> None:
    for path in ("/", "/api/me", "/config", "/ponder/ponder.css", "/auth/github/login", "/nowhere"):
        status, headers, body = raw_get(public, path, host)
        assert status == 400, path
        assert json.loads(body)["error"]["code"] == "unknown_host"
        assert "location" not in headers
        assert host.strip() not in body.decode() or not host.strip()
    assert raw_get(public, "/healthz", host)[0] == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_without_a_base_url_names_are_refused(plain: Served, host: str) -> None:
    status, _, body = raw_get(plain, "/api/me", host)
    assert (status, json.loads(body)["error"]["code"]) == (400, "unknown_host")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:7860",
        "localhost",
        "LOCALHOST:1",
        "203.0.113.5",
        "192.168.1.4:7860",
        "[::1]",
        "[2001:db8::1]:80",
    ],
)
def test_without_a_base_url_numbers_and_this_machine_are_taken(plain: Served, host: str) -> None:
    assert raw_get(plain, "/api/me", host)[0] == 200


def test_without_a_base_url_a_number_in_the_request_is_not_where_a_provider_sends_back_to(plain: Served) -> None:
    response = plain.ask("POST", "/auth/github/start", json={}, headers={**PAGE, "Host": "203.0.113.5"})
    assert response.json()["location"] == f"{base_of(plain)}/#/sign-in"


FORGED = {
    "X-Forwarded-Host": "elsewhere.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Port": "81",
    "X-Forwarded-Prefix": "/elsewhere",
    "X-Forwarded-Server": "elsewhere.example",
    "X-Gradio-Server": "http://elsewhere.example",
    "Forwarded": "host=elsewhere.example;proto=https",
    "X-Original-Host": "elsewhere.example",
    "X-Host": "elsewhere.example",
}


@pytest.mark.parametrize("forged", [*({name: value} for name, value in FORGED.items()), FORGED])
@pytest.mark.parametrize("path", ["/", "/config", "/gradio_api/info", "/theme.css"])
def test_no_header_gets_into_what_gradio_says_of_our_address(served: Served, path: str, forged: dict[str, str]) -> None:
    plainly = served.ask("GET", path)
    assert served.ask("GET", path, headers=forged).text == plainly.text
    root = re.search(r'"root":\s*"([^"]*)"', plainly.text)
    assert root is None or root[1] == (BASE if served.host else served.live.url)


@pytest.mark.parametrize(
    ("said", "scheme"), [("https", "https"), ("http", "http"), ("https, http", "http"), ("gopher", "http")]
)
def test_of_a_trusted_proxy_http_or_https_is_believed_and_nothing_else(
    serve: Callable[..., Served], said: str, scheme: str
) -> None:
    behind = _behind_a_proxy(serve)
    more = {"X-Forwarded-Proto": said, "X-Forwarded-Host": "elsewhere.example", "X-Gradio-Server": "http://e.example"}
    root = behind.ask("GET", "/config", headers=more).json()["root"]
    assert root == behind.live.url.replace("http", scheme, 1)


def _behind_a_proxy(serve: Callable[..., Served], kept: list[Served] = []) -> Served:  # noqa: B006  one for all
    if not kept:
        kept.append(serve(trusted_proxies=1))
    return kept[0]


UNSEEN = ["%0a", "%0d", "%0d%0a", "%00", "%09", "%0b", "%0c", "%1f", "%7f", "%c2%85", "%e2%80%a8", "%e2%80%a9"]


@pytest.mark.parametrize("unseen", UNSEEN)
@pytest.mark.parametrize(
    "path",
    ["/", "/config", "/privacy", "/healthz", "/readyz", "/theme.css", "/favicon.ico", "/gradio_api/info", "/api/me",
     "/auth/github/login", "/ponder/ponder.css", "/static/img/logo.svg", "/assets/index.js"],
)  # fmt: skip
def test_what_nobody_sees_in_an_address_leads_nowhere(
    plain: Served, caplog: pytest.LogCaptureFixture, path: str, unseen: str
) -> None:
    for written in (path + unseen, unseen + path, path[:2] + unseen + path[2:]):
        status, headers, body = raw_get(plain, "/" * (not written.startswith("/")) + written)
        assert status == 404, written
        assert json.loads(body)["error"]["code"] == "not_found"
        assert "script-src" in policy_of(headers)
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    "path", ["/api/me/", "/privacy/", "//privacy", "/api//me", "/ponder", "/ponder/", "//elsewhere.example/"]
)
def test_an_address_that_is_written_otherwise_sends_nobody_elsewhere(served: Served, path: str) -> None:
    status, headers, _ = raw_get(served, path, served.host or "127.0.0.1")
    assert status in (200, 307, 404)
    place = urlsplit(headers.get("location", ""))
    assert place.netloc in ("", served.host or "127.0.0.1")


# Addresses


def at(settings: Settings, *lines: str, peer: str = "192.0.2.1") -> str:
    """The address of a request with these lines of X-Forwarded-For."""
    headers = [(b"x-forwarded-for", line.encode("latin-1", "replace")) for line in lines]
    return address_of(Request({"type": "http", "headers": headers, "client": (peer, 1)}), settings)


LEFT = st.lists(
    st.sampled_from(
        ["203.0.113.9", "127.0.0.1", "::1", "unknown", "", " ", "10.0.0.1:80", "a" * 200, "1.2.3.4, 5.6.7.8"]
    )
    | st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=20),
    max_size=6,
)


@given(left=LEFT)
@example(left=["198.51.100.7"])
@hypothesis_settings(max_examples=200, deadline=None)
def test_what_a_client_writes_into_x_forwarded_for_changes_nothing(tmp_path_factory: Any, left: list[str]) -> None:
    folder = tmp_path_factory.getbasetemp()
    assert at(_settings(folder, trusted_proxies=0), ", ".join(left)) == "192.0.2.1"
    assert at(_settings(folder, trusted_proxies=0), *left) == "192.0.2.1"
    one = _settings(folder, trusted_proxies=1)
    # What our proxy has seen stands at the right end, of one line or of the last of several
    assert at(one, ", ".join([*left, "198.51.100.7"])) == "198.51.100.7"
    assert at(one, *left, "198.51.100.7") == "198.51.100.7"


def test_forged_addresses_do_not_get_around_the_limit_of_tries(public: Served) -> None:
    codes = []
    for number in range(7):
        forged = f"203.0.113.{number}, {number}.2.3.4, 198.51.100.77"
        response = public.ask(
            "POST",
            "/auth/login",
            is_known=False,
            json={"username": "carl", "password": "a wrong one"},
            headers={**PAGE, "X-Forwarded-For": forged, "X-Real-IP": f"203.0.113.{number}"},
        )
        codes.append(response.status_code)
    assert codes == [401] * 5 + [429] * 2


# Paths that climb


CLIMBS = [
    "../{}",
    "..%2f{}",
    "%2e%2e/{}",
    "%2e%2e%2f{}",
    "%252e%252e%252f{}",
    "..%252f{}",
    "..\\{}",
    "..%5c{}",
    "%2e%2e%5c{}",
    "....//{}",
    "..;/{}",
    "./../{}",
    "x/../../{}",
    "ponder.css/../../{}",
    "%c0%ae%c0%ae/{}",
    "%e0%80%ae%e0%80%ae/{}",
    "..%00/{}",
    "ponder.css%00{}",
    "%00{}",
    "/{}",
    "//{}",
    "%2f{}",
    "{}",
    "file:///{}",
    "~root/{}",
]
TARGETS = ["app.py", "app/config.py", "pyproject.toml", "etc/passwd", "proc/self/environ"]
OURS = (b"root:", b"import ", b"[project]", b"HOME=", b"PATH=")


@pytest.mark.parametrize("climb", CLIMBS)
@pytest.mark.parametrize("base", ["/ponder/", static_files.address(""), "/assets/", "/static/", "/static/img/", "/"])
def test_no_path_climbs_out_of_the_folders_of_files(plain: Served, base: str, climb: str) -> None:
    for target in TARGETS:
        for more in range(5):
            path = base + climb.format(target).replace("..", "/".join([".."] * (more + 1)), 1)
            status, _, body = raw_get(plain, path)
            assert status in (400, 403, 404), path
            assert not any(word in body for word in OURS), path


@pytest.mark.parametrize(
    "climb", [*CLIMBS, "%", "%zz", "%ff%fe", "%ed%a0%80", "*", "'", "' OR '1'='1", '"', "{}", "null"]
)
def test_no_id_climbs_either(plain: Served, climb: str) -> None:
    ids = climb.format("me").replace(" ", "%20")
    cookie = f"Cookie: ponder={plain.token}\r\n"
    for path in ("/api/conversations/{}", "/api/messages/{}/reasoning", "/api/runs/{}", "/api/runs/{}/events"):
        status, _, body = raw_get(plain, path.format(ids), more=cookie)
        assert status in (400, 404), path
        assert plain.username.encode() not in body
    for path in ("/auth/{}/login", "/auth/{}/callback"):
        assert raw_get(plain, path.format(ids), more=cookie)[0] in (400, 404), path


@pytest.mark.parametrize("base", ["/ponder/", static_files.address(""), "/assets/", "/static/"])
@pytest.mark.parametrize("length", [200, 300, 5000])
@pytest.mark.usefixtures("quiet")
def test_a_name_that_no_file_can_have_is_not_there(plain: Served, base: str, length: int) -> None:
    assert raw_get(plain, base + "a" * length)[0] == 404


def test_the_folder_of_files_follows_no_link_and_has_none(plain: Served) -> None:
    contexts = iter_route_contexts(build_app(plain.live.services).routes)
    mounted = [getattr(context.original_route, "app", None) for context in contexts]
    folders = [folder for folder in mounted if isinstance(folder, StaticFiles)]
    assert [Path(folder.directory) for folder in folders if folder.directory] == [ROOT / "static"]
    assert not any(folder.follow_symlink for folder in folders)
    assert not [path for path in (ROOT / "static").rglob("*") if path.is_symlink()]


# What no answer tells


def test_no_secret_and_nothing_of_the_environment_is_in_any_answer(served: Served) -> None:
    settings = served.live.services.settings
    values = {name: value for name, value in os.environ.items() if len(value) >= 8}
    assert values.keys() >= PLANTED.keys()
    hidden = {
        "the secret key": SECRET,
        "the provider's secret": PROVIDERS_SECRET,
        "the database": settings.resolved_database_url,
        "the data folder": str(settings.data_dir),
        "the cache folder": str(settings.cache_dir),
        "the source": str(ROOT),
        **values,
    }
    for method, path in served.every_request():
        response = served.ask(method, path, content=b"{" if method in UNSAFE else None, headers=PAGE)
        said = response.text + str(response.headers)
        told = [name for name, value in hidden.items() if value in said]
        assert not told, f"{method} {path} tells {told}"
        assert "Traceback" not in said
        assert 'File "' not in said
        served.renew()


def test_what_gradio_says_of_the_page_is_the_same_for_everybody(plain: Served) -> None:
    for method, path in GRADIOS - {("GET", "/static/{path}"), ("GET", "/assets/{path}")}:
        known, unknown = plain.ask(method, path), plain.ask(method, path, is_known=False)
        assert known.text == unknown.text, path
        assert plain.username not in known.text

"""Whatever is sent, the server answers, never with a fault of its own, and lives on.

Every request comes from an address of its own, so that the limits of one address end nothing early.
"""

import itertools
import json
import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote_from_bytes, urlsplit

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from requests.cookies import RequestsCookieJar
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from app.accounts import passwords
from app.config import Settings
from app.history.store import now
from app.web import build_app
from tests.live import LiveServer, serving
from tests.patience import PATIENCE_S
from tests.people import NO_TLS, OWN_PAGE, PASSWORD
from tests.scripted import ScriptedEngine

PASSWORD_HASH = passwords.hashed(PASSWORD)
JSON = {"Content-Type": "application/json"}
EXAMPLES = 12
PHASES = (Phase.explicit, Phase.generate)
QUICK = hypothesis_settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=PHASES,
    suppress_health_check=list(HealthCheck),
)


@dataclass
class Fuzzed:
    """A server, and somebody with a conversation and a finished run on it."""

    live: LiveServer
    client: httpx.Client
    schema: dict[str, Any]
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def account(self, *, is_admin: bool = False) -> str:
        """The id of somebody new."""
        name = f"ada{next(self.numbers)}"
        return self.live.services.people.add_account(
            username=name, username_key=name, password_hash=PASSWORD_HASH, is_admin=is_admin
        )

    def headers(self, person_id: str = "") -> dict[str, str]:
        """What our own page sends, from an address of its own; with a new session, as the last may have been ended."""
        number = next(self.numbers)
        headers = OWN_PAGE | {"X-Forwarded-For": f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"}
        if person_id:
            token = self.live.services.sessions.open(person_id, "", verified_at=now(), instead_of=None)
            headers["Cookie"] = f"ponder={token}"
        return headers

    def ask(self, method: str, path: str, person_id: str = "", **more: Any) -> httpx.Response:
        """One request."""
        self.client.cookies.clear()
        headers = self.headers(person_id) | more.pop("headers", {})
        return self.client.request(method, path, headers=headers, **more)

    def things_of(self, person_id: str) -> dict[str, str]:
        """Real ids, by the names that paths have for them."""
        talk = self.ask("POST", "/api/conversations", person_id, json={}).json()["id"]
        body = {"text": "Why?", "client_key": f"key number {next(self.numbers)}"}
        accepted = self.ask("POST", f"/api/conversations/{talk}/messages", person_id, json=body).json()
        assert "event: done" in self.ask("GET", f"/api/runs/{accepted['run_id']}/events", person_id).text
        return {
            "conversation_id": talk,
            "message_id": accepted["answer_id"],
            "run_id": accepted["run_id"],
            "person_id": self.account(),
        }

    def raw(self, request: bytes) -> int:
        """The status of the answer to these very bytes; 400 where the server hangs up on them."""
        parts = urlsplit(self.live.url)
        with socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S) as connection:
            try:
                connection.sendall(request)
                answer = connection.makefile("rb").readline()
            except ConnectionError:
                return 400
        return int(answer.split()[1]) if answer else 400

    def is_alive(self) -> bool:
        """Whether the process answers, and as it should."""
        return self.ask("GET", "/healthz").json() == {"alive": True} and self.ask("GET", "/readyz").status_code == 200


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    """A server that lives as long as the module."""
    folder = tmp_path_factory.mktemp("fuzz")
    settings = Settings(
        data_dir=folder / "data",
        cache_dir=folder / "cache",
        port=0,
        model="demo",
        new_guests_per_hour=100_000,
        account_runs_at_once=1000,
        max_waiting_runs=1000,
        trusted_proxies=1,
    )
    with (
        serving(settings, ScriptedEngine()) as live,
        httpx.Client(base_url=live.url, timeout=PATIENCE_S, verify=NO_TLS) as client,
    ):
        yield Fuzzed(live, client, build_app(live.services).openapi())


@pytest.fixture
def quiet() -> Iterator[None]:
    """Nothing is logged: writing out a traceback here while pytest reads sources there breaks Python 3.11's parser."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# What the schema describes


class _NoCookies(RequestsCookieJar):
    """Keeps none: each call says who it is from."""

    def set_cookie(self, cookie: Any, *_: Any, **__: Any) -> None:
        pass


def can_be_wrong(operation: schemathesis.APIOperation[Any, Any, Any, Any]) -> bool:
    """Whether an operation takes anything that its schema forbids: in a path every text is a text."""
    taken = operation.definition.raw
    return "requestBody" in taken or any(parameter["in"] != "path" for parameter in taken.get("parameters", ()))


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_operation_answers_anything_with_a_fault_of_its_own(
    fuzzed: Fuzzed, subtests: pytest.Subtests, mode: GenerationMode
) -> None:
    account, admin = fuzzed.account(), fuzzed.account(is_admin=True)
    things = fuzzed.things_of(account)
    described: set[tuple[str, str]] = set()
    possible: set[tuple[str, str]] = set()
    tried: set[tuple[str, str]] = set()
    statuses: dict[str, set[int]] = {}
    with requests.Session() as session:
        session.cookies = _NoCookies()
        for result in schemathesis.openapi.from_dict(fuzzed.schema).get_all_operations():
            assert isinstance(result, Ok)
            operation = result.ok()
            described.add((operation.path, operation.method))
            if mode is GenerationMode.NEGATIVE and not can_be_wrong(operation):
                continue
            possible.add((operation.path, operation.method))

            @QUICK
            @given(case=operation.as_strategy(generation_mode=mode), is_real=st.booleans())
            def no_fault(case: schemathesis.Case[Any], is_real: bool) -> None:
                path, method = case.operation.path, case.method.upper()
                if path in ("/api/me", "/api/conversations") and method == "DELETE":
                    # Whoever leaves, or has nothing left, is not needed afterwards
                    person_id = fuzzed.account()
                else:
                    person_id = admin if path.startswith("/api/admin/") else account
                if is_real and method != "DELETE":
                    for name in case.path_parameters:
                        case.path_parameters[name] = things.get(name, case.path_parameters[name])
                headers = fuzzed.headers(person_id)
                response = case.call(base_url=fuzzed.live.url, headers=headers, session=session, timeout=PATIENCE_S)
                tried.add((path, method.lower()))
                statuses.setdefault(f"{method} {path}", set()).add(response.status_code)
                assert response.status_code < 500, response.text

            with subtests.test(operation=operation.label):
                no_fault()
    assert tried == possible
    assert described == {(path, method) for path, methods in fuzzed.schema["paths"].items() for method in methods}
    if mode is GenerationMode.POSITIVE:
        assert tried == described
        shallow = {name for name, found in statuses.items() if not any(status < 400 for status in found)}
        # These want a password, an id, or a file, that no schema describes
        assert shallow <= {
            "POST /api/me/import",
            "DELETE /api/me/sessions/{session_id}",
            "DELETE /api/me/identities/{identity_id}",
            "DELETE /api/conversations/{conversation_id}",
            "POST /api/conversations/{conversation_id}/restore",
            "POST /api/conversations/restore",
            "DELETE /api/admin/people/{person_id}",
            "POST /api/admin/runs/{run_id}/stop",
            "POST /auth/register",
            "POST /auth/login",
            "POST /auth/recover",
            "POST /auth/password",
            "POST /auth/confirm",
            "POST /auth/{provider}/start",
            "GET /auth/{provider}/login",
            "GET /auth/{provider}/callback",
        }
    assert fuzzed.is_alive()


# Gradio's queue


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
NAMED = st.fixed_dictionaries(
    {},
    optional={
        "fn_index": st.integers() | st.none() | st.text(),
        "data": st.lists(ANY_JSON, max_size=3),
        "session_hash": st.text(max_size=12) | st.none(),
        "event_data": ANY_JSON,
        "trigger_id": st.integers(),
        "component_id": st.integers(),
        "fn_name": st.text(max_size=12),
        "event_id": st.text(max_size=12),
        "batched": st.booleans(),
        "request": ANY_JSON,
    },
)
BODIES = (ANY_JSON | NAMED).map(lambda body: json.dumps(body).encode()) | st.binary(max_size=200)


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/queue/join",
        "/gradio_api/queue/data",
        "/gradio_api/run/x",
        "/gradio_api/call/x",
        "/gradio_api/api/x",
        "/gradio_api/upload",
        "/gradio_api/component_server",
        "/gradio_api/cancel",
        "/gradio_api/reset",
        "/gradio_api/process_recording",
        "/config",
        "/",
    ],
)
def test_gradio_takes_no_body_of_any_kind(fuzzed: Fuzzed, path: str) -> None:
    kinds = ("application/json", "text/plain", "multipart/form-data; boundary=x", "application/octet-stream")
    account = fuzzed.account()

    @hypothesis_settings(QUICK, max_examples=20)
    @given(body=BODIES, kind=st.sampled_from(kinds), is_known=st.booleans())
    def refused(body: bytes, kind: str, is_known: bool) -> None:
        headers = {"Content-Type": kind}
        response = fuzzed.ask("POST", path, account if is_known else "", content=body, headers=headers)
        assert response.status_code in (404, 405)

    refused()
    assert fuzzed.is_alive()


# Bodies


SURROGATE, NUL = "\ud800", "\x00"
STRANGE = [
    SURROGATE,
    f"a{SURROGATE}b" * 4,
    NUL,
    f"a{NUL}b" * 4,
    "\udfff\ud800",
    "\ufffe\uffff",
    "\u202e" * 9,
    "\x1b[2J" * 3,
]
TEXTS = [
    ("POST", "/auth/register", {"username": "TEXT", "password": "TEXT"}),
    ("POST", "/auth/register", {"username": "somebody", "password": "TEXT"}),
    ("POST", "/auth/login", {"username": "TEXT", "password": "TEXT"}),
    ("POST", "/auth/recover", {"username": "TEXT", "code": "TEXT", "password": "nine yellow bicycles"}),
    ("POST", "/auth/confirm", {"password": "TEXT"}),
    ("POST", "/auth/password", {"password": "TEXT", "new_password": "TEXT"}),
    ("POST", "/auth/nobody/start", {"next": "TEXT"}),
    ("PATCH", "/api/me", {"settings": {"system_prompt": "TEXT"}}),
    ("PATCH", "/api/me", {"settings": {"language": "TEXT"}}),
    ("PATCH", "/api/me", {"settings": {"TEXT": 1}}),
    ("PATCH", "/api/me", {"TEXT": {"TEXT": 1}}),
    ("POST", "/api/conversations", {"title": "TEXT"}),
    ("POST", "/api/conversations/{}/messages", {"text": "TEXT", "client_key": "long enough"}),
    ("POST", "/api/conversations/{}/messages", {"text": "Why?", "client_key": "TEXTTEXTTEXTTEXT"}),
    ("POST", "/api/conversations/{}/messages", {"text": "Why?", "client_key": "long enough", "parent_id": "TEXT"}),
    (
        "POST",
        "/api/conversations/{}/messages",
        {"text": "Why?", "client_key": "long enough", "options": {"system_prompt": "TEXT"}},
    ),
    ("PATCH", "/api/admin/people/nobody", {"TEXT": True}),
]


@pytest.mark.parametrize("text", STRANGE, ids=ascii)
@pytest.mark.parametrize(("method", "path", "body"), TEXTS, ids=[f"{path} {body}" for _, path, body in TEXTS])
@pytest.mark.usefixtures("quiet")
def test_no_text_that_is_none_makes_a_fault(
    fuzzed: Fuzzed, method: str, path: str, body: dict[str, Any], text: str
) -> None:
    is_surrogate = any(0xD800 <= ord(character) <= 0xDFFF for character in text)
    account = fuzzed.account(is_admin=True)
    if "{}" in path:
        path = path.format(fuzzed.ask("POST", "/api/conversations", account, json={}).json()["id"])
    content = json.dumps(body).replace("TEXT", json.dumps(text)[1:-1])
    response = fuzzed.ask(method, path, account, content=content, headers=JSON)
    assert response.status_code < 500, response.text
    if is_surrogate:
        assert 400 <= response.status_code < 500
    response.json()
    assert fuzzed.ask("GET", "/api/me", account).status_code == 200
    assert fuzzed.ask("GET", "/api/conversations", account).status_code == 200


@pytest.mark.parametrize(
    "text", ["%ED%A0%80", "%00", "%FF%FE", "%", "%%%", "%25_%5C", "'", "%C0%80", "\\", "%F0%9F%98%80" * 40, "a" * 4000]
)
@pytest.mark.parametrize(
    "path",
    [
        "/api/admin/people?q=",
        "/api/admin/people?cursor=",
        "/api/conversations?cursor=",
        "/api/conversations?limit=",
        "/api/runs/{}/events?after=",
    ],
)
def test_no_query_makes_a_fault(fuzzed: Fuzzed, path: str, text: str) -> None:
    account = fuzzed.account(is_admin=True)
    response = fuzzed.ask("GET", path.format("0" * 32) + text, account)
    assert response.status_code < 500
    if "q=" not in path:
        assert response.status_code in (404, 422)


ODD_BODIES = {
    "deep lists": "[" * 10_000,
    "deep lists, closed": "[" * 10_000 + "]" * 10_000,
    "deep objects": '{"title":' * 10_000 + "1" + "}" * 10_000,
    "deep in a field": '{"title":' + "[" * 10_000 + "]" * 10_000 + "}",
    "a number of 10,000 digits": '{"title":' + "1" * 10_000 + "}",
    "an exponent": '{"title": 1e999999}',
    "NaN": '{"title": NaN}',
    "infinity": '{"title": -Infinity}',
    "nothing": "",
    "a byte order mark alone": b"\xef\xbb\xbf",
    "UTF-16": '{"title": "x"}'.encode("utf-16") + b"\xff",
    "invalid UTF-8": b'{"title": "\xff\xfe"}',
    "a surrogate in UTF-8": b'{"title": "\xed\xa0\x80"}',
    "an overlong NUL": b'{"title": "\xc0\x80"}',
    "a cut character": b'{"title": "\xf0\x9f',
    "a raw NUL": b'{"title": "a\x00b"}',
    "NULs": b"\x00" * 1000,
    "a list": "[]",
    "null": "null",
    "a text": '"title"',
    "an unknown field twice": '{"owner_id": "a", "owner_id": "b"}',
    "a field twice, last wrong": '{"title": "a", "title": 1}',
    "10,000 unknown fields": json.dumps({f"field {number}": number for number in range(10_000)}),
    "a surrogate as a field": '{"\\ud800": 1}',
    "a surrogate deep in a field": '{"settings": {"\\ud800": {"\\udfff": 1}}}',
}


@pytest.mark.parametrize("body", ODD_BODIES.values(), ids=ODD_BODIES.keys())
def test_what_is_no_json_of_ours_is_refused_by_every_route_that_takes_json(fuzzed: Fuzzed, body: str | bytes) -> None:
    account = fuzzed.account(is_admin=True)
    routes = [
        (method, path)
        for path, methods in fuzzed.schema["paths"].items()
        for method, operation in methods.items()
        if "requestBody" in operation
    ]
    assert len(routes) > 8
    for method, path in routes:
        address = path.replace("{provider}", "nobody").replace("{conversation_id}", "x").replace("{person_id}", "x")
        response = fuzzed.ask(method, address, account, content=body, headers=JSON)
        assert response.status_code in (400, 422), f"{method} {path}"
        assert response.json()["error"]["code"] == "bad_request"
        assert len(response.text) < 1000


def test_of_a_field_that_comes_twice_the_checked_one_is_the_one_that_counts(fuzzed: Fuzzed) -> None:
    account = fuzzed.account()
    response = fuzzed.ask("POST", "/api/conversations", account, content='{"title": 1, "title": "b"}', headers=JSON)
    assert (response.status_code, response.json()["title"]) == (201, "b")


# Headers


def many_cookies(count: int) -> bytes:
    return b"; ".join(b"cookie%d=value" % number for number in range(count))


HEAD = b"GET /api/me HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
POST = b"POST /api/conversations HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nSec-Fetch-Site: same-origin\r\n"
REQUESTS = {
    "1,000 cookies": HEAD + b"Cookie: " + many_cookies(1000) + b"\r\n\r\n",
    "1,000 lines of cookies": HEAD + b"Cookie: ponder=x\r\n" * 1000 + b"\r\n",
    "1,000 cookies of ours": HEAD + b"Cookie: " + b"; ".join([b"ponder=a-x"] * 1000) + b"\r\n\r\n",
    "a cookie of 64 KB": HEAD + b"Cookie: ponder=" + b"x" * 65_536 + b"\r\n\r\n",
    "a header of 64 KB": HEAD + b"X-Header: " + b"x" * 65_536 + b"\r\n\r\n",
    "a name of 64 KB": HEAD + b"X" * 65_536 + b": x\r\n\r\n",
    "an agent of 64 KB": POST + b"Content-Length: 2\r\nUser-Agent: " + b"Mozilla/5.0 (" * 5_000 + b"\r\n\r\n{}",
    "addresses of 64 KB": HEAD + b"X-Forwarded-For: " + b"1.2.3.4, " * 7_000 + b"\r\n\r\n",
    "an address that is none": HEAD + b"X-Forwarded-For: \xff\xfe::%1\r\n\r\n",
    "an address of the house": POST + b"X-Forwarded-For: fe80::1%eth0\r\nContent-Length: 2\r\n\r\n{}",
    "10,000 headers": HEAD + b"X-Header: x\r\n" * 10_000 + b"\r\n",
    "a path of 64 KB": b"GET /api/" + b"x" * 65_536 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a query of 64 KB": b"GET /api/conversations?" + b"limit=1&" * 8_192 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a cookie that is no text": HEAD + b"Cookie: ponder=\xff\xfe\x80; \xff=\xfe\r\n\r\n",
    "a cookie of signs": HEAD + b'Cookie: ponder="\\"; ponder=;;;=; =ponder; ponder\r\n\r\n',
    "a sign-in's cookie that is no text": HEAD.replace(b"/api/me", b"/auth/x/callback?state=x")
    + b"Cookie: ponder-auth=\xff.\xfe.\x80\r\n\r\n",
    "a sign-in's cookie of others": HEAD.replace(b"/api/me", b"/auth/x/callback?state=x")
    + b"Cookie: ponder-auth=bnVsbA==.aa.bb\r\n\r\n",
    "a length that is none": POST + b"Content-Length: \xb2\r\n\r\n",
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a length of 100 digits": POST + b"Content-Length: " + b"9" * 100 + b"\r\n\r\n",
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
    "a length and chunks": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "a chunk that is none": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "an unknown coding": POST + b"Transfer-Encoding: gzip\r\n\r\n{}",
    "compressed": POST + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b",
    "a kind that is none": POST + b"Content-Type: \xff/\xfe; charset=\x80\r\nContent-Length: 2\r\n\r\n{}",
    "an unknown charset": POST + b"Content-Type: application/json; charset=x-none\r\nContent-Length: 2\r\n\r\n{}",
    "an upgrade": HEAD.replace(b"close", b"Upgrade") + b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    "3,000 ranges": HEAD.replace(b"/api/me", b"/ponder/ponder.css")
    + b"Range: bytes=" + b",".join(b"%d-%d" % (n, n) for n in range(3000)) + b"\r\n\r\n",
    "a range of 100 digits": HEAD.replace(b"/api/me", b"/ponder/ponder.css")
    + b"Range: bytes=0-" + b"9" * 100 + b"\r\n\r\n",
    "an old date": HEAD.replace(b"/api/me", b"/ponder/ponder.css") + b"If-Modified-Since: Thu, 99 Foo 0000\r\n\r\n",
    "a method of its own": HEAD.replace(b"GET", b"PONDER"),
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no path": b"GET  HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a star": b"OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
    "a whole address": b"GET http://elsewhere.example/api/me HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n",
    "a tunnel": b"CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("request_bytes", REQUESTS.values(), ids=REQUESTS.keys())
@pytest.mark.usefixtures("quiet")
def test_no_request_makes_a_fault(fuzzed: Fuzzed, request_bytes: bytes) -> None:
    if request_bytes.endswith(b"Connection: close\r\n"):
        request_bytes += b"\r\n"
    assert 200 <= fuzzed.raw(request_bytes) < 500
    assert fuzzed.is_alive()


def test_headers_of_a_mebibyte_are_refused(fuzzed: Fuzzed) -> None:
    assert fuzzed.raw(HEAD + b"X-Header: " + b"x" * 2**20 + b"\r\n\r\n") in (400, 431)


def test_no_cookie_makes_a_fault_or_somebody(fuzzed: Fuzzed) -> None:
    visible = st.sampled_from([value for value in range(33, 256) if value != 127])

    @hypothesis_settings(QUICK, max_examples=80)
    @given(value=st.lists(visible, min_size=1, max_size=80).map(bytes))
    def nobody(value: bytes) -> None:
        for name in (b"ponder", b"ponder-auth"):
            headers = {b"Cookie": name + b"=" + value}
            for path in ("/api/me", "/", "/auth/nobody/callback?state=x"):
                response = fuzzed.client.get(path, headers=headers)
                assert response.status_code < 500
                if path == "/api/me":
                    assert response.json()["kind"] == "nobody"

    nobody()


def test_no_path_makes_a_fault(fuzzed: Fuzzed) -> None:
    bases = ("/api/", "/auth/", "/ponder/", "/static/", "/assets/", "/api/runs/", "/api/conversations/", "/gradio_api/")
    account = fuzzed.account()

    @hypothesis_settings(QUICK, max_examples=150)
    @given(base=st.sampled_from(bases), rest=st.binary(max_size=40))
    def no_fault(base: str, rest: bytes) -> None:
        assert fuzzed.ask("GET", base + quote_from_bytes(rest), account).status_code < 500

    no_fault()


@pytest.mark.parametrize("digits", [1, 18, 19, 20, 400, 4300, 5000])
@pytest.mark.parametrize("how", ["header", "query"])
def test_no_place_in_an_event_stream_makes_a_fault(fuzzed: Fuzzed, how: str, digits: int) -> None:
    account = fuzzed.account()
    path = f"/api/runs/{fuzzed.things_of(account)['run_id']}/events"
    more = {"headers": {"Last-Event-ID": "9" * digits}} if how == "header" else {"params": {"after": "9" * digits}}
    assert fuzzed.ask("GET", path, account, **more).status_code in (200, 422)

import json
import os
import re
import socket
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from app.routes import portable
from tests.chromium import Chromium
from tests.exports import SAMPLES, answer, as_file, conversation, question
from tests.live import LiveServer
from tests.people import OWN_PAGE, Browsers, browsers, cookie_of, error_of
from tests.scripted import CLOSE

HOSTILE = """<script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)>
<a href="javascript:alert(4)">a</a> [b](javascript:alert(5)) ![c](https://evil.example/c.png)
<div style="position:fixed;inset:0;background:url(https://evil.example/d.png)">d</div>
<form action="https://evil.example/"><input type=password name=p></form><iframe src="https://evil.example/"></iframe>
</title></style></main><meta http-equiv="refresh" content="0;url=https://evil.example/"><base href="https://evil.example/">
<link rel=stylesheet href="https://evil.example/e.css"><style>@import "https://evil.example/f.css";</style>
{{ 7 * 7 }} {% raw %} $\\href{javascript:alert(6)}{x}$ <details open><summary>g</summary></details> <!-- open"""


@pytest.fixture
def people(live_server: LiveServer) -> Iterator[Browsers]:
    with browsers(live_server.url) as found:
        yield found


def take(client: httpx.Client, data: bytes, **headers: str) -> httpx.Response:
    return client.post("/api/me/import", content=data, headers={"Content-Type": "application/json"} | headers)


def only_talk(client: httpx.Client) -> str:
    (item,) = client.get("/api/conversations").json()["items"]
    return str(item["id"])


def export(client: httpx.Client, **params: Any) -> httpx.Response:
    return client.get(f"/api/conversations/{only_talk(client)}/export", params=params)


def files_of(live_server: LiveServer) -> list[Path]:
    folder = live_server.services.settings.data_dir / "imports"
    return list(folder.iterdir()) if folder.exists() else []


# Out


def test_a_chat_is_exported_as_it_was_had(live_server: LiveServer, people: Browsers) -> None:
    client = people.new()
    live_server.script(f"I wonder.{CLOSE}**Because** $x^2$.")
    talk = client.post("/api/conversations", json={}).json()["id"]
    body = {"text": "Why <b>so</b>?", "client_key": "a-first-key"}
    run = client.post(f"/api/conversations/{talk}/messages", json=body).json()["run_id"]
    assert "event: done" in client.get(f"/api/runs/{run}/events").text
    asked, replied = json.loads(export(client, format="json").content)["conversations"][0]["messages"]
    assert (asked["text"], replied["text"], replied["reasoning"]) == (
        "Why <b>so</b>?",
        "**Because** $x^2$.",
        "I wonder.",
    )
    assert replied["run"]["state"] == "done"
    markdown = export(client, format="md").text
    assert "```\nWhy <b>so</b>?\n```" in markdown
    assert "**Because** $x^2$." in markdown
    page = export(client, format="html").text
    assert "Why &lt;b&gt;so&lt;/b&gt;?" in page
    assert "<strong>Because</strong> <math>" in page
    for form in ("json", "md", "html"):
        assert "I wonder" in export(client, format=form).text
        assert "I wonder" not in export(client, format=form, reasoning="false").text


def test_a_temporary_chat_can_be_exported_and_is_not_in_everything(people: Browsers) -> None:
    client = people.new()
    made = client.post("/api/conversations", json={"is_temporary": True, "title": "Passing"}).json()
    response = client.get(f"/api/conversations/{made['id']}/export")
    assert response.json()["conversations"][0]["title"] == "Passing"
    assert client.get("/api/me/export").json()["conversations"] == []


def test_json_has_the_whole_tree_and_the_others_what_is_shown(people: Browsers) -> None:
    client = people.account("ada")
    tree = [question("Q"), answer(1, "First"), answer(1, "Second"), question("Again", 2), answer(4, "Third")]
    file = as_file(conversation(*tree, leaf=3))
    assert take(client, file).status_code == 200
    assert export(client, format="json").json() == json.loads(file)
    shown = export(client, format="json", branch="shown").json()["conversations"][0]
    assert [message["text"] for message in shown["messages"]] == ["Q", "Second"]
    assert shown["leaf"] == 2
    for form in ("md", "html"):
        text = export(client, format=form).text
        assert "Second" in text
        assert "First" not in text
        refused = export(client, format=form, branch="all")
        assert (refused.status_code, error_of(refused)) == (422, "bad_request")


@pytest.mark.parametrize(
    ("title", "plain", "name"),
    [
        ("How many primes?", "How-many-primes", "How-many-primes"),
        ("Überfluß", "Uberflu", "Überfluß"),
        ("质数有多少", "conversation", "质数有多少"),
        ('a"; filename="evil.exe', "a-filename-evil-exe", "a-filename-evil-exe"),
        ("a\r\nSet-Cookie: b=c", "a-Set-Cookie-b-c", "a-Set-Cookie-b-c"),
        ("../../etc/passwd\\..", "etc-passwd", "etc-passwd"),
        ("\u202egnp.exe", "gnp-exe", "gnp-exe"),
        ("x" * 200, "x" * 60, "x" * 60),
        ("…", "conversation", "conversation"),
        ("", "conversation", "conversation"),
    ],
)
def test_a_files_name_is_the_title_and_nothing_else(people: Browsers, title: str, plain: str, name: str) -> None:
    client = people.guest()
    client.delete("/api/conversations")
    assert take(client, as_file(conversation(title=title))).status_code == 200
    for form, kind in (("md", "text/markdown"), ("json", "application/json"), ("html", "text/html")):
        response = export(client, format=form)
        found = re.fullmatch(
            r"attachment; filename=\"([A-Za-z0-9-]+)\.(\w+)\"; filename\*=UTF-8''([A-Za-z0-9%._~-]+)\.(\w+)",
            response.headers["content-disposition"],
        )
        assert found is not None
        assert (found[1], found[2], unquote(found[3]), found[4]) == (plain, form, name, form)
        assert response.headers["content-type"].partition(";")[0] == kind
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in response.headers


def test_everything_goes_from_one_account_to_another_and_is_the_same_file(people: Browsers) -> None:
    first, second = people.account("ada"), people.account("bea")
    for sample in sorted(SAMPLES.iterdir()):
        assert take(first, sample.read_bytes()).status_code == 200
    everything = first.get("/api/me/export")
    assert everything.headers["content-disposition"].startswith("attachment; ")
    assert everything.headers["cache-control"] == "no-store"
    assert len(everything.json()["conversations"]) == 5
    assert take(second, everything.content).json() == {
        "format": "ponder",
        "conversations": 5,
        "messages": 16,
        "left_out": {},
    }
    assert second.get("/api/me/export").content == everything.content
    assert people.new().get("/api/me/export").json()["conversations"] == []


# A page of its own


class Tags(HTMLParser):
    """What a page is made of."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]


def hostile_page(people: Browsers) -> str:
    client = people.account("eve")
    error = {"code": "engine_failed", "message": HOSTILE[:1500]}
    run = answer(1)["run"] | {"model": HOSTILE[:200], "error": error, "state": "failed"}
    messages = [question(HOSTILE), answer(1, HOSTILE + "\n\n```html\n" + HOSTILE, reasoning=HOSTILE, run=run)]
    assert take(client, as_file(conversation(*messages, title=HOSTILE[:200]))).status_code == 200
    return export(client, format="html").text


def test_hostile_texts_stay_texts_in_a_page(people: Browsers) -> None:
    tags = Tags(hostile_page(people))
    once = ("html", "head", "title", "style", "body", "main", "h1", "details", "summary")
    assert {name: tags.names.count(name) for name in once} == dict.fromkeys(once, 1)
    for name in ("script", "img", "svg", "iframe", "form", "input", "link", "base", "object", "button"):
        assert name not in tags.names
    metas = [value for tag, name, value in tags.attributes if (tag, name) == ("meta", "http-equiv")]
    assert metas == ["Content-Security-Policy"]
    for tag, name, value in tags.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("src", "srcset", "style", "action", "formaction", "background"), (tag, name)
        if name == "href":
            assert value.startswith(("https://", "http://", "mailto:")), value


def test_a_page_names_the_one_style_it_may_have_and_nothing_to_fetch(people: Browsers) -> None:
    client = people.account("ada")
    take(client, as_file(conversation()))
    page = export(client, format="html").text
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "prefers-color-scheme: dark) { .ponder {" in style
    assert "@media print" in style
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src &#39;none&#39;; style-src &#39;sha256-" in policy[1]


@pytest.mark.browser
def test_a_hostile_page_does_nothing_in_a_browser(people: Browsers, tmp_path: Path, lasting_chromium: Chromium) -> None:
    file = tmp_path / "hostile.html"
    file.write_text(hostile_page(people), "utf-8")
    requests: list[str] = []
    said: list[str] = []
    with lasting_chromium.in_use() as chromium:
        page = chromium.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("console", lambda message: said.append(message.text))
        page.goto(file.as_uri())
        page.locator("details").evaluate("fold => fold.open = true")
        page.locator("h1").click()
        assert page.evaluate("getComputedStyle(document.querySelector('main')).maxWidth") == "768px"
        outside = """article => {
            const box = article.getBoundingClientRect();
            return [...article.querySelectorAll("*")].filter((inner) => {
              const found = inner.getBoundingClientRect();
              const { width } = found;
              return width && (found.left < box.left - 1 || found.top < box.top - 1 || found.bottom - 1 > box.bottom)
            }).length; }"""
        assert [article.evaluate(outside) for article in page.locator("article").all()] == [0, 0]
        assert page.url == file.as_uri()
        page.close()
    assert requests == [file.as_uri()]
    assert said == []


# In


def test_an_import_can_be_gone_on_with(live_server: LiveServer, people: Browsers) -> None:
    client = people.guest()
    client.delete("/api/conversations")
    found = take(client, (SAMPLES / "open-webui.json").read_bytes()).json()
    assert found == {
        "format": "open-webui",
        "conversations": 1,
        "messages": 5,
        "left_out": {"system": 1, "attachment": 1, "tool": 1},
    }
    talk = only_talk(client)
    messages = client.get(f"/api/conversations/{talk}").json()["messages"]
    assert messages[1]["reasoning"]["thinking_s"] == 13.0
    assert "Rayleigh" in client.get(f"/api/messages/{messages[1]['id']}/reasoning").json()["html"]
    live_server.script(f"Hm.{CLOSE}Violet.")
    body = {"text": "And before dawn?", "client_key": "a-later-key"}
    run = client.post(f"/api/conversations/{talk}/messages", json=body).json()["run_id"]
    assert "event: done" in client.get(f"/api/runs/{run}/events").text
    live_server.script(f"Hm.{CLOSE}Rayleigh again.")
    again = client.post(f"/api/messages/{messages[1]['id']}/retry", json={"client_key": "a-retry-key"})
    assert again.status_code == 202
    assert "event: done" in client.get(f"/api/runs/{again.json()['run_id']}/events").text


def test_a_question_without_an_answer_can_be_asked_again(live_server: LiveServer, people: Browsers) -> None:
    client = people.guest()
    client.delete("/api/conversations")
    chat = {"messages": [{"role": "user", "content": "Anybody there?"}]}
    assert take(client, json.dumps([chat]).encode()).status_code == 200
    found = client.get(f"/api/conversations/{only_talk(client)}").json()
    assert found["messages"][1]["run"]["state"] == "interrupted"
    live_server.script(f"Hm.{CLOSE}Yes.")
    again = client.post(f"/api/messages/{found['leaf_id']}/retry", json={"client_key": "a-retry-key"})
    assert "event: done" in client.get(f"/api/runs/{again.json()['run_id']}/events").text


def test_an_import_counts_as_no_question_of_today(people: Browsers) -> None:
    client = people.guest()
    take(client, (SAMPLES / "chatgpt.json").read_bytes())
    assert client.get("/api/me").json()["quota"]["runs_today"] == 0


def test_nobody_imports_and_nobody_becomes_a_guest_by_it(live_server: LiveServer, people: Browsers) -> None:
    client = people.new()
    response = take(client, as_file())
    assert (response.status_code, error_of(response)) == (401, "sign_in_first")
    assert not cookie_of(client)
    assert files_of(live_server) == []


def test_a_broken_file_is_refused_with_a_place_and_its_file_is_gone(live_server: LiveServer, people: Browsers) -> None:
    client = people.account("ada")
    response = take(client, as_file(conversation(), conversation(question(), answer(2))))
    assert (response.status_code, error_of(response)) == (422, "bad_import")
    assert "Conversation 2 (“Primes”), message 2" in response.json()["error"]["message"]
    assert client.get("/api/conversations").json()["items"] == []
    assert files_of(live_server) == []
    assert take(client, as_file(conversation())).status_code == 200
    assert files_of(live_server) == []


def test_a_type_of_content_is_not_asked_for_and_never_believed(people: Browsers) -> None:
    client = people.account("ada")
    for kind in ("application/octet-stream", "text/plain", "multipart/form-data; boundary=x", "application/json"):
        assert take(client, as_file(conversation()), **{"Content-Type": kind}).status_code == 200, kind


def test_a_file_from_another_site_is_refused(people: Browsers) -> None:
    client = people.account("ada")
    response = take(client, as_file(conversation()), **{"Sec-Fetch-Site": "cross-site"})
    assert (response.status_code, error_of(response)) == (403, "cross_site")


@pytest.mark.parametrize("is_guest", [True, False])
def test_a_file_that_is_too_large_is_refused_by_what_it_says_and_by_what_it_has(
    live_server: LiveServer, people: Browsers, monkeypatch: pytest.MonkeyPatch, is_guest: bool
) -> None:
    client = people.guest() if is_guest else people.account("ada")
    most = 5 if is_guest else 200
    answered = head_alone(client, most * 1024 * 1024 + 1)
    assert answered.startswith(b"HTTP/1.1 413 ")
    assert f"larger than {most} MB".encode() in answered
    # What does not say its length is counted; smaller limits make the same point sooner
    monkeypatch.setattr(portable, "_MOST_GUEST_BYTES", 100_000)
    monkeypatch.setattr(portable, "MOST_IMPORT_BYTES", 100_000)
    response = client.post("/api/me/import", content=iter([b" " * 30_000] * 4))
    assert (response.status_code, error_of(response)) == (413, "text_too_large")
    assert response.json()["error"]["limit_bytes"] == 100_000
    assert client.post("/api/me/import", content=iter([b" " * 30_000] * 3)).status_code == 422
    assert files_of(live_server) == []


def head_alone(client: httpx.Client, length: int) -> bytes:
    """The answer to a request that only announces its body."""
    head = [
        "POST /api/me/import HTTP/1.1",
        f"Host: {client.base_url.host}:{client.base_url.port}",
        f"Cookie: ponder={cookie_of(client)}",
        f"Content-Length: {length}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in OWN_PAGE.items()),
    ]
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), 10) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode())
        answered = b""
        while piece := connection.recv(65536):
            answered += piece
        return answered


def test_a_larger_body_than_other_routes_take_is_taken_here_alone(people: Browsers) -> None:
    client = people.account("ada")
    file = as_file(conversation(question("x" * 3 * 1024 * 1024), answer(1)))
    assert take(client, file).status_code == 200
    assert client.post("/api/conversations", content=file).status_code == 413


def test_a_file_whose_sender_leaves_is_forgotten(
    live_server: LiveServer, people: Browsers, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = people.account("ada")

    def broken() -> Iterator[bytes]:
        yield b'{"format": "ponder",' + b" " * 2_000_000
        while not files_of(live_server):
            pass
        assert os.stat(files_of(live_server)[0]).st_mode & 0o777 == 0o600
        raise ConnectionError

    with pytest.raises(ConnectionError):
        client.post("/api/me/import", content=broken())
    again = people.signed_in("ada")
    while (response := take(again, as_file(conversation()))).status_code == 429:
        assert response.json()["error"]["retry_after_s"] == 10, "the one before has not been noticed yet"
        monkeypatch.setattr(live_server.services.attempts, "count_import", lambda _: None)
    assert response.status_code == 200
    assert files_of(live_server) == []


def test_a_sender_who_falls_silent_is_not_waited_for(
    live_server: LiveServer, people: Browsers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portable, "_SILENCE_S", 0.05)
    answered = head_alone(people.account("ada"), 1000)
    assert answered.startswith(b"HTTP/1.1 422 ")
    assert b"did not arrive completely" in answered
    assert files_of(live_server) == []


def test_slow_senders_keep_nobody_from_importing(people: Browsers) -> None:
    held = []
    try:
        for _ in range(6):
            client = people.guest()
            head = [
                "POST /api/me/import HTTP/1.1",
                f"Host: {client.base_url.host}:{client.base_url.port}",
                f"Cookie: ponder={cookie_of(client)}",
                "Content-Length: 1000",
                "Expect: 100-continue",
                *(f"{name}: {value}" for name, value in OWN_PAGE.items()),
            ]
            held.append(socket.create_connection((client.base_url.host, client.base_url.port or 80), 20))
            held[-1].sendall("\r\n".join([*head, "", ""]).encode())
            assert held[-1].recv(100).startswith(b"HTTP/1.1 100"), "the server waits for the body"
            held[-1].sendall(b"{")
        assert take(people.guest(), as_file(conversation())).status_code == 200
    finally:
        for connection in held:
            connection.close()


def test_one_import_at_a_time_and_ten_an_hour_for_a_person(live_server: LiveServer, people: Browsers) -> None:
    client, other = people.account("ada"), people.account("bea")
    ((_, person_id),) = [
        (found, caller.person_id)
        for found in [cookie_of(client)]
        if (caller := live_server.services.sessions.caller(found)) is not None
    ]
    upload, file = live_server.services.imports.begin(person_id)
    file.close()
    refused = take(client, as_file(conversation()))
    assert (refused.status_code, error_of(refused)) == (429, "too_many_attempts")
    assert take(other, as_file(conversation())).status_code == 200
    live_server.services.imports.drop(upload)
    for _ in range(9):
        assert take(client, as_file(conversation())).status_code == 200
    refused = take(client, as_file(conversation()))
    assert (refused.status_code, error_of(refused)) == (429, "too_many_attempts")
    assert int(refused.headers["retry-after"]) > 0
    assert take(other, as_file(conversation())).status_code == 200

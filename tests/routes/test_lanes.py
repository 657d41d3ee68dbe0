"""Slow work has threads of its own: whoever searches, exports or draws holds up nobody's sending."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from app.history.search import Search
from app.history.store import Store
from app.runs import shown
from tests.exports import answer, as_file, conversation, question
from tests.live import LiveServer
from tests.patience import PATIENCE_S
from tests.people import Browsers, browsers, error_of

MANY = 24


@pytest.fixture
def people(live_server: LiveServer) -> Iterator[Browsers]:
    with browsers(live_server.url) as found:
        yield found


def held(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> tuple[threading.Semaphore, threading.Event]:
    """Hold up whoever calls this; how many have come, and what lets them go on."""
    come, may_go, before = threading.Semaphore(0), threading.Event(), getattr(owner, name)

    def waiting(*args: Any, **more: Any) -> Any:
        come.release()
        assert may_go.wait(30)
        return before(*args, **more)

    monkeypatch.setattr(owner, name, waiting)
    return come, may_go


class _Renderer(shown.StreamRenderer):
    """One for what is stored: what is being written is drawn by another."""

    def push(self, text: str) -> list[str]:
        return super().push(text)


def searching(_: LiveServer) -> tuple[Any, str, str]:
    return Search, "find", "/api/conversations?q=primes"


def exporting(_: LiveServer) -> tuple[Any, str, str]:
    return Store, "conversation", "/api/conversations/{id}/export"


def exporting_all(_: LiveServer) -> tuple[Any, str, str]:
    return Store, "conversation", "/api/me/export"


def drawing(_: LiveServer) -> tuple[Any, str, str]:
    return _Renderer, "push", "/api/conversations/{id}"


def drawing_a_page(_: LiveServer) -> tuple[Any, str, str]:
    return _Renderer, "push", "/api/conversations/{id}/export?format=html"


@pytest.mark.parametrize("work", [searching, exporting, exporting_all, drawing, drawing_a_page])
def test_whoever_does_slow_things_holds_up_nobodys_sending(
    live_server: LiveServer,
    people: Browsers,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[LiveServer], tuple[Any, str, str]],
) -> None:
    slow = [people.guest() for _ in range(MANY)]
    paths = []
    for client in slow:
        file = as_file(conversation(question("primes?"), answer(1, "**some** primes")))
        assert client.post("/api/me/import", content=file).status_code == 200
        found = client.get("/api/conversations").json()["items"]
        (talk,) = [item["id"] for item in found if item["title"]]
        paths.append(work(live_server)[2].format(id=talk))
    other = people.guest()
    monkeypatch.setattr(shown, "StreamRenderer", _Renderer)
    owner, name, _ = work(live_server)
    come, may_go = held(monkeypatch, owner, name)
    with ThreadPoolExecutor(MANY) as pool:
        asked = [pool.submit(client.get, path) for client, path in zip(slow, paths, strict=True)]
        try:
            assert come.acquire(timeout=PATIENCE_S)
            live_server.script("Answered")
            talk = other.post("/api/conversations", json={}).json()["id"]
            sent = other.post(f"/api/conversations/{talk}/messages", json={"text": "Why?", "client_key": "a-key-of-it"})
            assert sent.status_code == 202
            assert "event: done" in other.get(f"/api/runs/{sent.json()['run_id']}/events").text
            assert len(other.get("/api/conversations").json()["items"]) == 2
            assert other.patch("/api/me", json={"settings": {"theme": "dark"}}).status_code == 200
            assert httpx.get(f"{live_server.url}/readyz").status_code == 200
        finally:
            may_go.set()
        assert [future.result(30).status_code for future in asked] == [200] * MANY


def test_one_person_asks_for_so_much_at_once(
    live_server: LiveServer, people: Browsers, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, other = people.guest(), people.guest()
    owner, name, path = searching(live_server)
    _, may_go = held(monkeypatch, owner, name)
    with ThreadPoolExecutor(MANY) as pool:
        asked = [pool.submit(client.get, path) for _ in range(12)]
        done = []
        while len(done) < 4:
            done = [future.result() for future in asked if future.done()]
        assert {(response.status_code, error_of(response)) for response in done} == {(429, "too_many_attempts")}
        theirs = pool.submit(other.get, path)
        may_go.set()
        assert theirs.result(30).status_code == 200
        assert sorted(future.result(30).status_code for future in asked) == [200] * 8 + [429] * 4
    assert client.get(path).status_code == 200

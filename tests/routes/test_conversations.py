"""Conversations over HTTP: branches, the list, deletion and its undo, temporary chats."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from app.history import temporary
from app.runs import service
from tests.live import LiveServer
from tests.patience import PATIENCE_S, until
from tests.people import OWN_PAGE, error_of
from tests.scripted import CLOSE, HOLD

Client = httpx.Client


@pytest.fixture
def client(live_server: LiveServer) -> Iterator[Client]:
    with Client(base_url=live_server.url, headers=OWN_PAGE, timeout=PATIENCE_S) as made:
        yield made


def begin(client: Client, **body: Any) -> str:
    made = client.post("/api/conversations", json=body)
    assert made.status_code == 201, made.text
    return str(made.json()["id"])


def send(client: Client, talk: str, text: str, key: str = "", **body: Any) -> dict[str, Any]:
    """Send, and wait until it is answered."""
    body |= {"text": text, "client_key": key or f"the key of {text}"}
    accepted = client.post(f"/api/conversations/{talk}/messages", json=body)
    assert accepted.status_code == 202, accepted.text
    finish(client, accepted.json()["run_id"])
    return accepted.json()


def finish(client: Client, run_id: str) -> str:
    return client.get(f"/api/runs/{run_id}/events").text


def messages(client: Client, talk: str) -> list[dict[str, Any]]:
    return client.get(f"/api/conversations/{talk}").json()["messages"]


def titles(client: Client, **query: Any) -> list[str]:
    return [item["title"] for item in client.get("/api/conversations", params=query).json()["items"]]


# Any characters

REFUSED = (400, 404, 413, 422)
HOSTILE = (
    "'; DROP TABLE messages; --",
    '" OR 1=1 --',
    "100% of_it\\",
    "a\x00b",
    'NEAR(a b) AND col:x* ^"',
    "a & !b | <-> ':*",
    "{x} $1 %s :name ?",
    "\u202e\ufeff\U0010ffff",
    "../../etc/passwd",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_whatever_is_typed_is_a_text_in_titles_questions_search_and_ids(client: Client, text: str) -> None:
    talk, other = begin(client), begin(client)
    send(client, other, "What is left alone?")
    send(client, talk, f"{text} zebra")
    until(lambda: bool(titles(client, q="zebra")))
    renamed = client.patch(f"/api/conversations/{talk}", json={"title": text})
    assert renamed.status_code in (200, *REFUSED)
    # No address may have a NUL
    titles(client, q=text.replace("\0", " "))
    for place in ("cursor", "archived", "q"):
        assert client.get("/api/conversations", params={place: text}).status_code in (200, *REFUSED)
    for path in ("/api/conversations/{}", "/api/runs/{}/events", "/api/conversations/{}/export?format=json"):
        assert client.get(path.format(quote(text, safe=""))).status_code in REFUSED
    again = client.post(f"/api/conversations/{talk}/messages", json={"text": "x", "client_key": "k", "parent_id": text})
    assert again.status_code in REFUSED
    assert len(titles(client)) == 2
    assert len(messages(client, other)) == 2


def test_the_wildcards_of_a_database_are_characters(client: Client) -> None:
    for text in ("exactly 100% sure", "exactly 1000 times"):
        send(client, begin(client), text)
    until(lambda: len(titles(client, q="exactly")) == 2)
    assert (
        titles(client, q="ex%ly")
        == titles(client, q="ex_ctly ")
        == titles(client, q="%")
        == titles(client, q="_")
        == []
    )


def test_a_megabyte_is_refused_wherever_it_is_typed_and_half_a_pair_is_no_text(client: Client) -> None:
    talk = begin(client)
    long = "x" * 1_000_000
    assert client.patch(f"/api/conversations/{talk}", json={"title": long}).status_code in REFUSED
    told = {"text": long, "client_key": "k" * 20}
    assert client.post(f"/api/conversations/{talk}/messages", json=told).status_code in REFUSED
    for field in ("title", "text"):
        body = f'{{"{field}": "\\ud800", "client_key": "{"k" * 20}"}}'
        path = f"/api/conversations/{talk}"
        method, path = ("PATCH", path) if field == "title" else ("POST", f"{path}/messages")
        half = client.request(method, path, content=body, headers={"Content-Type": "application/json"})
        assert half.status_code in REFUSED, half.text
    assert messages(client, talk) == []


# Branches


def test_an_edited_question_is_answered_in_a_branch_of_its_own(live_server: LiveServer, client: Client) -> None:
    talk = begin(client)
    first = send(client, talk, "one")
    old = send(client, talk, "two")
    new = send(client, talk, "two, better", parent_id=first["answer_id"])
    found = client.get(f"/api/conversations/{talk}").json()
    assert found["leaf_id"] == new["answer_id"]
    asked = {message["text"]: message["parent_id"] for message in found["messages"] if message["role"] == "user"}
    assert asked == {"one": None, "two": first["answer_id"], "two, better": first["answer_id"]}
    # What the model was told is the branch, not what stands beside it
    prompt = live_server.engine.decoded(live_server.engine.requests[-1].prompt)
    assert "two, better" in prompt
    assert prompt.count("[user]") == 2
    back = client.patch(f"/api/conversations/{talk}", json={"leaf_id": old["message_id"]}).json()
    assert back["leaf_id"] == old["answer_id"]
    assert client.get(f"/api/conversations/{talk}").json()["leaf_id"] == old["answer_id"]


def test_another_answer_is_asked_for_with_the_same_question(live_server: LiveServer, client: Client) -> None:
    talk = begin(client)
    first = send(client, talk, "one")
    live_server.script(f"Again.{CLOSE}Forty-three.")
    body = {"client_key": "a retry's key", "options": {"effort": "deep"}}
    again = client.post(f"/api/messages/{first['answer_id']}/retry", json=body)
    assert again.status_code == 202
    assert again.json()["message_id"] == first["message_id"]
    finish(client, again.json()["run_id"])
    assert client.post(f"/api/messages/{first['answer_id']}/retry", json=body).json() == again.json()
    found = messages(client, talk)
    assert [message["text"] for message in found] == ["one", "Forty-two.", "Forty-three."]
    assert found[2]["run"]["effort"] == "deep"
    prompt = live_server.engine.decoded(live_server.engine.requests[-1].prompt)
    assert "Forty-two" not in prompt


def test_twenty_retries_at_once_with_one_key_are_one_answer(client: Client) -> None:
    talk = begin(client)
    first = send(client, talk, "one")
    body = {"client_key": "one key for all"}
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda _: client.post(f"/api/messages/{first['answer_id']}/retry", json=body), range(20)))
    taken = {answer.json()["run_id"] for answer in found if answer.status_code == 202}
    assert len(taken) == 1
    # Whoever came while the first was on its way is told of the run that is open
    assert {answer.json()["error"]["run_id"] for answer in found if answer.status_code == 409} <= taken
    finish(client, taken.pop())
    assert len(messages(client, talk)) == 3


def test_a_second_tab_that_sends_is_told_of_the_run_and_can_follow_it(live_server: LiveServer, client: Client) -> None:
    talk = begin(client)
    live_server.script(f"{HOLD}Late.{CLOSE}So.")
    body = {"text": "one", "client_key": "the first tab"}
    accepted = client.post(f"/api/conversations/{talk}/messages", json=body).json()
    for path, refused in (
        (f"/api/conversations/{talk}/messages", {"text": "two", "client_key": "the second tab"}),
        (f"/api/messages/{accepted['answer_id']}/retry", {"client_key": "the second tab"}),
    ):
        response = client.post(path, json=refused)
        assert (response.status_code, error_of(response)) == (409, "conversation_busy")
        assert response.json()["error"]["run_id"] == accepted["run_id"]
    live_server.release()
    assert finish(client, accepted["run_id"]).count("event: done") == 1
    assert finish(client, accepted["run_id"]).count("event: done") == 1
    assert len(messages(client, talk)) == 2


# The list


def test_a_conversation_is_renamed_pinned_and_archived(client: Client) -> None:
    ids = {title: begin(client, title=title) for title in ("a", "b", "c")}
    changed = client.patch(f"/api/conversations/{ids['a']}", json={"title": "  A  new\nname ", "is_pinned": True})
    assert changed.json()["title"] == "A new name"
    assert titles(client) == ["A new name", "c", "b"]
    client.patch(f"/api/conversations/{ids['c']}", json={"is_archived": True})
    assert titles(client) == ["A new name", "b"]
    assert titles(client, archived=True) == ["c"]


@pytest.mark.parametrize(
    "body", [{"title": ""}, {"title": " \n "}, {"title": "x" * 201}, {"is_pinned": 1}, {"id": "x"}]
)
def test_a_change_that_cannot_be_is_refused_in_words(client: Client, body: dict[str, Any]) -> None:
    talk = begin(client, title="kept")
    response = client.patch(f"/api/conversations/{talk}", json=body)
    assert (response.status_code, error_of(response)) == (422, "bad_request")
    assert titles(client) == ["kept"]


def test_a_conversation_says_whether_it_is_unread_and_takes_that_it_was_seen(client: Client) -> None:
    talk = begin(client, title="a")
    assert client.get(f"/api/conversations/{talk}").json()["is_unread"] is False
    assert client.patch(f"/api/conversations/{talk}", json={"is_unread": True}).json()["is_unread"] is True
    assert client.get("/api/conversations").json()["items"][0]["is_unread"] is True
    seen = client.patch(f"/api/conversations/{talk}", json={"is_unread": False}).json()
    assert (seen["is_unread"], seen["version"]) == (False, 0)


def test_a_tab_that_saw_an_older_state_changes_nothing(client: Client) -> None:
    talk = begin(client, title="before")
    seen = client.get(f"/api/conversations/{talk}").json()["version"]
    assert client.patch(f"/api/conversations/{talk}", json={"title": "mine", "version": seen}).status_code == 200
    response = client.patch(f"/api/conversations/{talk}", json={"title": "yours", "version": seen})
    assert (response.status_code, error_of(response)) == (409, "changed_meanwhile")
    assert response.json()["error"]["version"] == seen + 1
    assert titles(client) == ["mine"]


# Deletion


def test_a_deleted_conversation_comes_back_as_it_was(client: Client) -> None:
    talk = begin(client)
    accepted = send(client, talk, "one")
    before = client.get(f"/api/conversations/{talk}").json()
    assert client.delete(f"/api/conversations/{talk}").status_code == 204
    for path in (f"conversations/{talk}", f"messages/{accepted['answer_id']}/reasoning", f"runs/{accepted['run_id']}"):
        assert client.get(f"/api/{path}").status_code == 404, path
    assert titles(client) == []
    assert client.post(f"/api/conversations/{talk}/restore").status_code == 200
    assert client.get(f"/api/conversations/{talk}").json() == before
    assert client.post(f"/api/conversations/{talk}/restore").status_code == 404


def test_deleting_while_it_is_answered_stops_the_run_first(live_server: LiveServer, client: Client) -> None:
    talk = begin(client)
    live_server.script(f"Some thought. {HOLD}Late.{CLOSE}So.")
    body = {"text": "one", "client_key": "the first key"}
    run = client.post(f"/api/conversations/{talk}/messages", json=body).json()["run_id"]
    until(lambda: client.get(f"/api/runs/{run}").json()["state"] == "running")
    events: list[str] = []
    reader = threading.Thread(target=lambda: events.append(finish(client, run)))
    reader.start()
    assert client.delete(f"/api/conversations/{talk}").status_code == 204
    reader.join(20)
    assert not reader.is_alive()
    assert len(live_server.engine.cancelled) == 1
    client.post(f"/api/conversations/{talk}/restore")
    assert [message["run"]["state"] for message in messages(client, talk) if message["run"]] == ["stopped"]


def test_all_are_deleted_and_brought_back(client: Client) -> None:
    pinned, _, archived = (begin(client, title=title) for title in ("a", "b", "c"))
    client.patch(f"/api/conversations/{pinned}", json={"is_pinned": True})
    client.patch(f"/api/conversations/{archived}", json={"is_archived": True})
    deleted = client.delete("/api/conversations").json()
    assert deleted["count"] == 3
    assert titles(client) + titles(client, archived=True) == []
    body = {"deletion_id": deleted["deletion_id"]}
    assert client.post("/api/conversations/restore", json=body).json() == {"count": 3}
    assert (titles(client), titles(client, archived=True)) == (["a", "b"], ["c"])
    assert client.post("/api/conversations/restore", json=body).status_code == 404


# Temporary chats


@pytest.fixture
def swept_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks for what is over five times a second."""
    monkeypatch.setattr(service, "_SWEEP_EVERY_S", 0.2)


def test_a_temporary_chat_works_as_any_other_and_is_in_no_list(client: Client) -> None:
    talk = begin(client, is_temporary=True)
    item = client.get(f"/api/conversations/{talk}").json()
    assert item["is_temporary"]
    assert 3500 < (datetime.fromisoformat(item["expires_at"]) - datetime.now(UTC)).total_seconds() <= 3600
    first = send(client, talk, "one")
    send(client, talk, "two")
    again = client.post(f"/api/messages/{first['answer_id']}/retry", json={"client_key": "a retry's key"})
    finish(client, again.json()["run_id"])
    assert len(messages(client, talk)) == 5
    assert client.get(f"/api/messages/{first['answer_id']}/reasoning").json()["text"] == "Let me think.\n"
    renamed = client.patch(f"/api/conversations/{talk}", json={"title": "Mine", "leaf_id": first["answer_id"]})
    assert renamed.json()["title"] == "Mine"
    assert titles(client) == []


def test_nothing_of_a_temporary_chat_is_written_to_the_disk(
    live_server: LiveServer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    live_server.script(f"A xylophone thought.{CLOSE}A xylophone answer.")
    talk = begin(client, is_temporary=True, title="A xylophone title")
    send(client, talk, "A xylophone question")
    assert "xylophone answer" in str(messages(client, talk))
    folder = Path(live_server.services.settings.data_dir)
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert any(file.suffix == ".sqlite" for file in files)
    for file in files:
        assert b"xylophone" not in file.read_bytes(), file
    assert "xylophone" not in caplog.text


def test_a_temporary_chat_counts_as_any_other(client: Client) -> None:
    send(client, begin(client, is_temporary=True), "one")
    send(client, begin(client), "two")
    assert client.get("/api/me").json()["quota"]["runs_today"] == 2


def test_one_run_at_a_time_holds_across_temporary_and_kept_chats(live_server: LiveServer, client: Client) -> None:
    begin(client)
    limit = client.get("/api/me").json()["quota"]["runs_at_once"]
    live_server.script(*[f"{HOLD}Late.{CLOSE}So."] * limit)
    talks = [begin(client, is_temporary=bool(number % 2)) for number in range(limit + 2)]
    found = [
        client.post(f"/api/conversations/{talk}/messages", json={"text": "one", "client_key": f"a key of {talk}"})
        for talk in talks
    ]
    assert [answer.status_code for answer in found] == [202] * limit + [429, 429]
    assert {error_of(answer) for answer in found[limit:]} == {"too_many_runs"}
    for answer in found[:limit]:
        client.post(f"/api/runs/{answer.json()['run_id']}/stop")


@pytest.mark.usefixtures("swept_often")
def test_a_temporary_chat_ends_soon_after_its_tab_unless_it_is_read_again(
    monkeypatch: pytest.MonkeyPatch, live_server: LiveServer, client: Client
) -> None:
    kept, left = begin(client, is_temporary=True), begin(client, is_temporary=True)
    ends_at = live_server.services.history.temporary.expires_in_s
    for talk in (kept, left):
        assert client.post(f"/api/conversations/{talk}/leave").status_code == 204
        assert 20 < ends_at(talk) <= 30
    assert client.get(f"/api/conversations/{kept}").status_code == 200
    assert ends_at(kept) > 3500
    monkeypatch.setattr(temporary, "_LEFT_S", 0.0)
    client.post(f"/api/conversations/{left}/leave")
    until(lambda: client.get(f"/api/conversations/{left}").status_code == 404)
    assert client.get(f"/api/conversations/{kept}").status_code == 200


@pytest.mark.usefixtures("swept_often")
def test_an_hour_after_its_last_use_a_temporary_chat_ends_with_what_runs_in_it(
    monkeypatch: pytest.MonkeyPatch, live_server: LiveServer, client: Client
) -> None:
    talk = begin(client, is_temporary=True)
    live_server.script(f"Some thought. {HOLD}Late.{CLOSE}So.")
    monkeypatch.setattr(temporary, "KEPT_S", 0.5)
    body = {"text": "one", "client_key": "the first key"}
    run = client.post(f"/api/conversations/{talk}/messages", json=body).json()["run_id"]
    assert "event: done" in finish(client, run)
    until(lambda: not live_server.services.history.temporary.over())
    assert client.get(f"/api/conversations/{talk}").status_code == 404
    assert len(live_server.engine.cancelled) == 1


def test_a_person_has_only_so_many_temporary_chats(client: Client) -> None:
    for _ in range(10):
        begin(client, is_temporary=True)
    response = client.post("/api/conversations", json={"is_temporary": True})
    assert (response.status_code, error_of(response)) == (429, "too_many_temporary")


def test_leaving_a_chat_that_is_kept_does_nothing(client: Client) -> None:
    talk = begin(client, title="kept")
    assert client.post(f"/api/conversations/{talk}/leave").status_code == 204
    assert titles(client) == ["kept"]


def test_what_a_guest_has_open_for_a_while_is_the_accounts_after_they_sign_up(client: Client) -> None:
    talk = begin(client, is_temporary=True)
    send(client, talk, "one")
    body = {"username": "ada", "password": "nine yellow bicycles", "claim_guest": True}
    assert client.post("/auth/register", json=body).status_code == 201
    assert len(messages(client, talk)) == 2
    assert send(client, talk, "two")


def test_deleting_oneself_ends_the_temporary_chats_too(live_server: LiveServer, client: Client) -> None:
    talk = begin(client, is_temporary=True)
    owner = live_server.services.history.temporary
    send(client, talk, "one")
    assert client.delete("/api/me").status_code == 204
    with owner.database.reading() as db:
        assert db.connection().exec_driver_sql("SELECT count(*) FROM messages").scalar() == 0


# What an older renderer made, or none


def test_messages_without_html_are_rendered_once_and_kept(live_server: LiveServer, client: Client) -> None:
    talk = begin(client)
    accepted = send(client, talk, "one")
    store = live_server.services.store
    store.keep_html(accepted["answer_id"], "", "", 0)
    assert messages(client, talk)[1]["html"] == '<p dir="auto">Forty-two.</p>\n'
    with store.database.reading() as db:
        html = db.connection().exec_driver_sql("SELECT html FROM messages WHERE role = 'assistant'").scalar()
    assert html == '<p dir="auto">Forty-two.</p>\n'


def test_after_deleting_oneself_no_byte_of_what_was_written_is_left(
    live_server: LiveServer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    folder = Path(live_server.services.settings.data_dir)

    def has_words() -> list[Path]:
        return [file for file in folder.rglob("*") if file.is_file() and b"xylophone" in file.read_bytes().lower()]

    kept = Client(base_url=live_server.url, headers=OWN_PAGE, timeout=PATIENCE_S)
    send(kept, begin(kept), "What stays is this question about marimbas")
    talk = begin(client, title="A xylophone title")
    live_server.script(f"A xylophone thought.{CLOSE}A xylophone answer.", f"{HOLD}A xylophone too late.{CLOSE}So.")
    send(client, talk, "A xylophone question")
    body = {"text": "One more xylophone", "client_key": "the last key"}
    run = client.post(f"/api/conversations/{talk}/messages", json=body).json()["run_id"]
    until(lambda: client.get(f"/api/runs/{run}").json()["state"] == "running")
    assert client.get("/api/conversations", params={"q": "xyloph"}).json()["items"]
    assert has_words()
    assert client.delete("/api/me").status_code == 204
    until(lambda: not has_words())
    assert len(live_server.engine.cancelled) == 1
    assert "xylophone" not in caplog.text.lower()
    assert kept.get("/api/conversations", params={"q": "marimbas"}).json()["items"]
    kept.close()

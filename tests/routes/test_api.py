import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from app.engine.base import EngineStatus
from tests.live import LiveServer
from tests.patience import PATIENCE_S
from tests.scripted import CLOSE, HOLD

OWN_PAGE = {"Sec-Fetch-Site": "same-origin"}
Client = httpx.Client


@pytest.fixture
def new_client(live_server: LiveServer) -> Iterator[Callable[[], Client]]:
    """Makes browsers that do not know each other."""
    clients: list[Client] = []

    def make() -> Client:
        clients.append(Client(base_url=live_server.url, headers=OWN_PAGE, timeout=PATIENCE_S))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def client(new_client: Callable[[], Client]) -> Client:
    return new_client()


def start(client: Client, text: str = "Why?", key: str = "a-first-key") -> tuple[str, dict[str, Any]]:
    conversation = client.post("/api/conversations", json={}).json()["id"]
    return conversation, send(client, conversation, text, key).json()


def send(
    client: Client, conversation: str, text: str = "Why?", key: str = "another-key", **body: Any
) -> httpx.Response:
    return client.post(f"/api/conversations/{conversation}/messages", json={"text": text, "client_key": key, **body})


def read_events(client: Client, run_id: str, last_id: int | None = None) -> list[dict[str, Any]]:
    headers = {"Last-Event-ID": str(last_id)} if last_id is not None else {}
    found: list[dict[str, Any]] = []
    with client.stream("GET", f"/api/runs/{run_id}/events", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        for block in "".join(response.iter_text()).split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and line[0] != ":")
            if "event" in fields:
                seq = int(fields["id"]) if "id" in fields else None
                found.append({"event": fields["event"], "id": seq, **json.loads(fields["data"])})
    return found


def error_of(response: httpx.Response) -> str:
    error = response.json()["error"]
    assert error["message"].endswith((".", ")"))
    return str(error["code"])


def test_one_message_from_question_to_answer(live_server: LiveServer, client: Client) -> None:
    live_server.script(f"I wonder.\n{CLOSE}\n\n**Because**.")
    conversation, accepted = start(client)
    assert set(accepted) == {"message_id", "answer_id", "run_id", "place"}
    done = read_events(client, accepted["run_id"])[-1]
    assert (done["event"], done["state"], done["answer_id"]) == ("done", "done", accepted["answer_id"])
    found = client.get(f"/api/conversations/{conversation}").json()
    question, answer = found["messages"]
    assert (question["id"], question["text"], question["run"]) == (accepted["message_id"], "Why?", None)
    assert answer["text"] == "**Because**."
    assert "Because" in answer["html"]
    assert answer["reasoning"]["tokens"] > 0
    assert found["title"] == "Why?"
    assert found["running_run_id"] is None
    assert found["context"]["turns_left_out_next"] == 0
    reasoning = client.get(f"/api/messages/{answer['id']}/reasoning").json()
    assert reasoning["text"] == "I wonder.\n"
    listed = client.get("/api/conversations").json()
    assert [item["id"] for item in listed["items"]] == [conversation]


def test_the_event_stream_resumes_behind_the_last_id(live_server: LiveServer, client: Client) -> None:
    live_server.script(f"one two{CLOSE}three")
    _, accepted = start(client)
    whole = [event for event in read_events(client, accepted["run_id"]) if event["id"]]
    assert [event["id"] for event in whole] == list(range(1, len(whole) + 1))
    assert [event for event in read_events(client, accepted["run_id"], 2) if event["id"]] == whole[2:]


def test_a_restarted_server_still_has_the_run(live_server: LiveServer, client: Client) -> None:
    _, accepted = start(client)
    last = read_events(client, accepted["run_id"])[-1]
    live_server.services.runs._carrier._live.clear()
    snapshot, done = read_events(client, accepted["run_id"])
    assert snapshot["event"] == "snapshot"
    assert {**done} == last


def test_stop_and_answer_now_can_be_repeated(live_server: LiveServer, client: Client) -> None:
    # Where the order comes before the first token, there is a second completion
    live_server.script(f"so{HOLD}", HOLD)
    _, accepted = start(client)
    for order in ("answer-now", "answer-now", "stop", "stop", "answer-now"):
        assert client.post(f"/api/runs/{accepted['run_id']}/{order}").status_code == 202
    assert read_events(client, accepted["run_id"])[-1]["state"] == "stopped"
    assert client.get(f"/api/runs/{accepted['run_id']}").json()["state"] == "stopped"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"text": " \n", "client_key": "12345678"}, 422, "empty_text"),
        ({"text": "x" * 262_145, "client_key": "12345678"}, 413, "text_too_large"),
        ({"text": "x" * 2_200_000, "client_key": "12345678"}, 413, "text_too_large"),
        ({"text": "word " * 5000, "client_key": "12345678"}, 422, "too_long_for_model"),
        ({"text": "Why?"}, 422, "bad_request"),
        ({"text": "Why?", "client_key": "12345678", "owner_id": "me"}, 422, "bad_request"),
        ({"text": "Why?", "client_key": "12345678", "options": {"temperature": 9}}, 422, "bad_request"),
        ({"text": "Why?", "client_key": "12345678", "options": {"role": "admin"}}, 422, "bad_request"),
        ({"text": "Why?", "client_key": "12345678", "parent_id": "0" * 32}, 404, "not_found"),
        ({"text": 5, "client_key": "12345678"}, 422, "bad_request"),
        ({"text": "\ud800", "client_key": "12345678"}, 422, "bad_request"),
        ([], 422, "bad_request"),
    ],
)
def test_bad_input_is_answered_with_a_code_and_a_sentence(
    live_server: LiveServer, client: Client, body: object, status: int, code: str
) -> None:
    conversation = client.post("/api/conversations", json={}).json()["id"]
    response = client.post(
        f"/api/conversations/{conversation}/messages",
        content=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )
    assert (response.status_code, error_of(response)) == (status, code)
    assert client.get(f"/api/conversations/{conversation}").json()["messages"] == []
    assert live_server.engine.requests == []


def test_broken_json_and_deep_json_are_bad_requests(client: Client) -> None:
    for content in ("{", "[" * 100_000, "\x00", ""):
        response = client.post("/api/conversations", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 422)
        assert error_of(response) == "bad_request"


def test_a_second_message_while_one_runs_names_the_run(live_server: LiveServer, client: Client) -> None:
    live_server.script(HOLD)
    conversation, accepted = start(client)
    response = send(client, conversation)
    assert (response.status_code, error_of(response)) == (409, "conversation_busy")
    assert response.json()["error"]["run_id"] == accepted["run_id"]


def test_twenty_sends_with_one_key_are_one_message(client: Client) -> None:
    conversation, accepted = start(client, key="the-same-key")
    answers = [send(client, conversation, key="the-same-key").json() for _ in range(20)]
    assert {answer["run_id"] for answer in answers} == {accepted["run_id"]}
    assert len(client.get(f"/api/conversations/{conversation}").json()["messages"]) == 2


def test_nothing_of_one_person_is_there_for_another(live_server: LiveServer, new_client: Callable[[], Client]) -> None:
    live_server.script(f"{HOLD}{CLOSE}mine")
    victim, attacker, nobody = new_client(), new_client(), new_client()
    conversation, accepted = start(victim)
    own, _ = start(attacker)
    routes = [
        ("GET", f"/api/conversations/{conversation}", None),
        ("DELETE", f"/api/conversations/{conversation}", None),
        ("POST", f"/api/conversations/{conversation}/messages", {"text": "x", "client_key": "12345678"}),
        ("GET", f"/api/messages/{accepted['answer_id']}/reasoning", None),
        ("GET", f"/api/runs/{accepted['run_id']}", None),
        ("GET", f"/api/runs/{accepted['run_id']}/events", None),
        ("GET", f"/api/runs/{accepted['run_id']}/events?after=1", None),
        ("POST", f"/api/runs/{accepted['run_id']}/stop", None),
        ("POST", f"/api/runs/{accepted['run_id']}/answer-now", None),
        (
            "POST",
            f"/api/conversations/{own}/messages",
            {"text": "x", "client_key": "12345678", "parent_id": accepted["answer_id"]},
        ),
    ]
    for method, path, body in routes:
        response = attacker.request(method, path, json=body)
        if path.endswith(f"{own}/messages"):
            assert response.status_code in (404, 409), path
        else:
            assert (response.status_code, error_of(response)) == (404, "not_found"), path
            if "cursor" not in path:
                assert nobody.request(method, path, json=body).status_code == 404, path
    live_server.release()
    assert read_events(victim, accepted["run_id"])[-1]["state"] == "done"
    assert nobody.get("/api/conversations").json() == {"items": [], "next_cursor": None}
    assert "set-cookie" not in nobody.get("/api/conversations").headers


def test_the_guest_cookie_is_random_and_out_of_reach_of_scripts(new_client: Callable[[], Client]) -> None:
    first = new_client().post("/api/conversations", json={}).headers["set-cookie"]
    second = new_client().post("/api/conversations", json={}).headers["set-cookie"]
    assert "HttpOnly" in first
    assert "SameSite=Lax" in first
    assert "Path=/" in first
    assert first.split(";")[0] != second.split(";")[0]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Cookie": "ponder=x"}, 403),
        ({}, 201),
        ({"Sec-Fetch-Site": "same-origin"}, 201),
    ],
)
def test_unsafe_requests_come_from_our_own_page(live_server: LiveServer, headers: dict[str, str], status: int) -> None:
    response = httpx.post(f"{live_server.url}/api/conversations", json={}, headers=headers)
    assert response.status_code == status


@pytest.mark.parametrize(
    "path", ["/", "/api/conversations", "/api/nothing", "/readyz", "/ponder/ponder.css", "/nowhere"]
)
def test_every_response_carries_the_security_headers(client: Client, path: str) -> None:
    response = client.get(path, headers={"Origin": "https://elsewhere.example"})
    assert "script-src 'self';" in response.headers["content-security-policy"]
    assert "unsafe-eval" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    "path",
    [
        "/docs", "/openapi.json", "/gradio_api/upload", "/gradio_api/heartbeat/x",
        "/gradio_api/queue/join", "/gradio_api/queue/data",
        "/gradio_api/file=/etc/passwd", "/gradio_api/runs", "/login", "/monitoring",
        "/ponder/../app.py", "/ponder/%2e%2e/app.py", "/ponder/..%2fapp.py", "/gradio_api/proxy=http://x/",
    ],
)  # fmt: skip
def test_nothing_else_is_open(client: Client, path: str) -> None:
    assert client.get(path).status_code == 404
    assert client.post(path, json={}).status_code in (404, 405)


def test_chats_are_not_kept_by_caches(client: Client) -> None:
    conversation, _ = start(client)
    assert client.get(f"/api/conversations/{conversation}").headers["cache-control"] == "no-store"


def test_ready_says_whether_and_why_not(live_server: LiveServer, client: Client) -> None:
    assert client.get("/readyz").status_code == 200
    live_server.engine.status = EngineStatus("failed", problem="No room.", remedy="Use a smaller model.")
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["model"]["remedy"] == "Use a smaller model."
    assert client.get("/healthz").status_code == 200
    assert client.get("/api/model").json()["problem"] == "No room."


def test_deleting_a_conversation_removes_it(client: Client) -> None:
    conversation, accepted = start(client)
    assert client.delete(f"/api/conversations/{conversation}").status_code == 204
    assert client.get(f"/api/conversations/{conversation}").status_code == 404
    assert client.get(f"/api/runs/{accepted['run_id']}").status_code == 404

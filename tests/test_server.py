"""`python app.py` as an operator meets it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[1]
START_S = 60


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return os.environ | {"PONDER_DATA_DIR": str(tmp_path), "PONDER_MODEL": "/no/such/model", **more}


def run(tmp_path: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "app.py", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment(tmp_path, **more),
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )


@contextmanager
def free_port() -> Iterator[tuple[socket.socket, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe, probe.getsockname()[1]


def test_a_bad_setting_stops_the_start_and_names_its_key(tmp_path: Path) -> None:
    ended = run(tmp_path, PONDER_PORT="abc")
    assert ended.returncode == 2
    assert "PONDER_PORT" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_that_is_taken_is_said_with_a_way_out(tmp_path: Path) -> None:
    with free_port() as (taken, port):
        taken.listen()
        ended = run(tmp_path, "--port", str(port))
    assert ended.returncode == 1
    assert f"127.0.0.1:{port}" in ended.stderr
    assert "--port" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGHUP])
def test_it_says_where_it_is_stays_up_without_a_model_and_ends_well(tmp_path: Path, name: signal.Signals) -> None:
    with free_port() as (_, port):
        pass
    process = subprocess.Popen(
        [sys.executable, "app.py", "--port", str(port)],
        cwd=ROOT,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        said = next(line for line in process.stdout if "Ponder is at" in line)
        assert f"http://127.0.0.1:{port}" in said
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(url).status_code == 200
        ready = _ready_once_settled(url)
        assert ready.status_code == 503
        assert "/no/such/model" in ready.json()["model"]["problem"]
        process.send_signal(name)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_under_nohup_a_closed_terminal_ends_nothing(tmp_path: Path) -> None:
    with free_port() as (_, port):
        pass
    process = subprocess.Popen(
        ["nohup", sys.executable, "app.py", "--port", str(port)],
        cwd=ROOT,
        env=environment(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_up(url)
        process.send_signal(signal.SIGHUP)
        assert _ready_once_settled(url).status_code == 503
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def _ready_once_settled(url: str) -> httpx.Response:
    """What /readyz says once the loading has come to an end."""
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        answer = httpx.get(f"{url}/readyz")
        if answer.json()["model"]["state"] in ("ready", "failed"):
            return answer
        time.sleep(0.1)
    pytest.fail("the model neither loaded nor failed")


def test_the_log_at_debug_holds_nothing_that_people_wrote_or_may_not_be_known(tmp_path: Path) -> None:
    """Sign up, sign in wrong and right, chat, fail, stop: then read everything the server has said."""
    with free_port() as (_, port):
        pass
    log = tmp_path / "log"
    secrets = [
        "seven green bicycles",
        "a wrong guess 77",
        "marker-question",
        "marker-title",
        "marker-system",
        "marker-name",
    ]
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port)],
            cwd=ROOT,
            env=environment(tmp_path, PONDER_LOG_LEVEL="DEBUG", PONDER_SECRET_KEY="0123456789abcdef" * 4),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_up(url)
            with httpx.Client(base_url=url, headers={"Sec-Fetch-Site": "same-origin"}) as client:
                account = {"username": "marker-name", "password": secrets[0]}
                made = client.post("/auth/register", json=account)
                secrets += made.json()["recovery_codes"]
                secrets.append(client.cookies["ponder"])
                client.post("/auth/login", json={"username": "marker-name", "password": secrets[1]})
                client.post("/auth/login", json=account)
                secrets.append(client.cookies["ponder"])
                conversation = client.post("/api/conversations", json={"title": "marker-title"}).json()["id"]
                body = {"text": "marker-question", "client_key": "k" * 8, "options": {"system_prompt": "marker-system"}}
                client.post(f"/api/conversations/{conversation}/messages", json=body)
                client.get("/api/conversations", params={"cursor": "marker-question"})
                client.post("/auth/login", content=b"{marker-question")
                client.get("/auth/nobody/callback", params={"code": "marker-question", "state": "marker-question"})
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(START_S) == 0
    said = log.read_text()
    assert "DEBUG" in said
    assert not [secret for secret in [*secrets, "0123456789abcdef" * 4] if secret in said]


def _wait_until_up(url: str) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        try:
            if httpx.get(f"{url}/healthz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise TimeoutError(f"{url} did not come up")

"""A person at a running Ponder, over HTTP alone; and what goes wrong around it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from tests.live import LiveServer
from tests.patience import PATIENCE_S, until
from tests.people import NO_TLS, OWN_PAGE

__all__ = ["until"]

ROOT = Path(__file__).parents[2]
_HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
"""


@dataclass
class Person:
    """Somebody with a cookie, and what they do."""

    url: str
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.url, headers=OWN_PAGE, timeout=PATIENCE_S, verify=NO_TLS)

    def __enter__(self) -> "Person":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def begin(self, title: str = "") -> str:
        """A new conversation."""
        made = self.client.post("/api/conversations", json={"title": title})
        assert made.status_code == 201, made.text
        return str(made.json()["id"])

    def send(self, talk: str, text: str = "Why?", **more: Any) -> httpx.Response:
        """Send a message, whatever comes of it."""
        body = {"text": text, "client_key": uuid4().hex} | more
        return self.client.post(f"/api/conversations/{talk}/messages", json=body)

    def ask(self, talk: str, text: str = "Why?") -> dict[str, Any]:
        """Send a message that is taken, and do not wait for its answer."""
        taken = self.send(talk, text)
        assert taken.status_code == 202, taken.text
        return dict(taken.json())

    def events(self, run_id: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events of a run, until it is over."""
        with self.client.stream("GET", f"/api/runs/{run_id}/events") as response:
            assert response.status_code == 200
            name = ""
            for line in response.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield name, json.loads(line.removeprefix("data: "))

    def wait_for_text(self, run_id: str) -> None:
        """Until the model has begun to write."""
        assert any(name in ("delta", "snapshot") for name, _ in self.events(run_id))

    def finish(self, run_id: str) -> dict[str, Any]:
        """How a run ended."""
        return next(content for name, content in self.events(run_id) if name == "done")

    def answered(self, talk: str, text: str = "Why?") -> dict[str, Any]:
        """A message and its finished answer."""
        accepted = self.ask(talk, text)
        assert self.finish(accepted["run_id"])["state"] == "done"
        return accepted

    def read(self, talk: str) -> dict[str, Any]:
        """A conversation with its messages."""
        found = self.client.get(f"/api/conversations/{talk}")
        assert found.status_code == 200, found.text
        return dict(found.json())

    def titles(self) -> list[str]:
        """What the list shows."""
        found = self.client.get("/api/conversations")
        assert found.status_code == 200, found.text
        return [item["title"] for item in found.json()["items"]]

    def ready(self) -> bool:
        """Whether the server says that it can do its work."""
        return self.client.get("/readyz").status_code == 200


def person(server: LiveServer) -> Person:
    """Somebody nobody knows yet."""
    return Person(server.url)


def command(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What an operator types."""
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        env=os.environ | {"PONDER_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def refused(response: httpx.Response, *, saying: str = "") -> None:
    """It was refused as storage that fails is: with a sentence, and when to come back."""
    assert response.status_code == 503, response.text
    error = response.json()["error"]
    assert error["code"] == "storage_failed"
    assert saying in error["message"]
    assert int(response.headers["Retry-After"]) > 0


@contextmanager
def held_by_another_process(file: Path) -> Iterator[Callable[[], None]]:
    """Another process has the database for itself until what is given is called, or the `with` ends."""
    command = [sys.executable, "-c", _HOLD, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"

        def release() -> None:
            other.communicate("\n", timeout=PATIENCE_S)

        try:
            yield release
        finally:
            if other.poll() is None:
                release()

"""One whole conversation with the real demo model: real engine process, real weights, real database, real HTTP."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.config import Settings
from app.engine.base import Message
from app.engine.model import loading
from app.engine.model.demo import demo_folder
from app.engine.model.prompts import PromptEncoder
from app.engine.process import EngineProcess
from app.engine.profiles import DEMO
from tests.engine.batched.test_engine import both_ways_are_one
from tests.live import LiveServer, serving
from tests.routes.test_api import OWN_PAGE, read_events, send

# The model writes for a minute on a quiet machine
pytestmark = [pytest.mark.model, pytest.mark.timeout(1200)]
CACHE = Path(os.environ.get("PONDER_TEST_CACHE", Path.home() / ".cache" / "ponder"))
START_S = 600


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A Ponder with the demo model, converted once a machine."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("demo"), cache_dir=CACHE, port=0, model="demo")
    with serving(settings, EngineProcess(settings)) as server:  # type: ignore[arg-type]
        yield server


def wait_ready(client: httpx.Client) -> dict[str, object]:
    ready = threading.Event()
    for _ in range(START_S * 5):
        model = client.get("/api/model").json()
        if model["state"] in ("ready", "failed"):
            assert model["state"] == "ready", model
            return dict(model)
        ready.wait(0.2)
    raise AssertionError("the model did not get ready")


def test_the_demo_model_thinks_answers_remembers_and_survives_its_processs_death(live: LiveServer) -> None:
    with httpx.Client(base_url=live.url, headers=OWN_PAGE, timeout=600) as client:
        conversation = client.post("/api/conversations", json={}).json()["id"]
        # Sent while the model still loads: it waits, and is answered
        early = send(client, conversation, "What is the capital of France?", "the-first-key").json()
        events = read_events(client, early["run_id"])
        assert events[-1]["state"] == "done", events[-1]
        kinds = [note["kind"] for note in events[-1]["notes"]]
        assert kinds[0] == "opening"
        assert wait_ready(client)["is_demo"]

        question, answer = client.get(f"/api/conversations/{conversation}").json()["messages"]
        assert question["text"] == "What is the capital of France?"
        assert answer["text"].strip()
        assert "Final answer:" not in answer["text"]
        reasoning = client.get(f"/api/messages/{answer['id']}/reasoning").json()
        assert reasoning["text"].startswith("Let me work this out step by step.\n1.")
        # The second phase went on behind the first: nearly all of its prompt was in the KV cache
        assert answer["run"]["usage"]["cached_tokens"] > answer["run"]["usage"]["prompt_tokens"]

        follow_up = send(client, conversation, "And of Italy?", "the-second-key").json()
        pid = live.engine.pid  # type: ignore[attr-defined]
        os.kill(pid, signal.SIGKILL)
        done = read_events(client, follow_up["run_id"])[-1]
        assert done["state"] == "failed"
        # It was writing, or was being asked how many tokens the prompt has
        assert done["error"]["code"] in ("engine_failed", "model_unavailable")

        wait_ready(client)
        body = {"text": "And of Spain?", "client_key": "the-third-key", "options": {"effort": "quick"}}
        again = client.post(f"/api/conversations/{conversation}/messages", json=body).json()
        assert read_events(client, again["run_id"])[-1]["state"] == "done"


def test_it_is_written_for_many_at_once_as_it_is_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # In 16 bits rounding differs with the shape of a batch
    monkeypatch.setattr(loading, "_left_gpu_for", ["this is about float32"])
    folder = demo_folder(CACHE, lambda _: None)
    assert folder is not None
    tokenizer = loading.load_tokenizer(str(folder))
    model = loading.load_model(DEMO, str(folder), loading.load_config(str(folder)), lambda *_: None)
    questions = ["What is the capital of France?", "Why is the sky blue?", "Count to ten, and then back to one again."]
    encoder = PromptEncoder(tokenizer)
    both_ways_are_one(model, tokenizer, [encoder.prompt([Message("user", text)]) for text in questions])


def test_the_model_process_ends_with_its_server(live: LiveServer) -> None:
    with httpx.Client(base_url=live.url, headers=OWN_PAGE, timeout=600) as client:
        wait_ready(client)
    pid = live.engine.pid  # type: ignore[attr-defined]
    asyncio.run_coroutine_threadsafe(live.services.runs.close(), live.loop).result(START_S)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)

import queue
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from app.engine.base import EngineStatus
from app.engine.batched import engine as batched
from app.engine.batched import start
from app.engine.batched.selftest import CannotBatch
from app.engine.host import assembly as assembly_module
from app.engine.host.assembly import Assembly
from app.engine.local.engine import LocalEngine
from tests.engine.tiny import save_tiny

_HEAD_START_S = 0.5


def test_an_engine_that_is_refused_before_its_constructor_is_through_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[batched.BatchedEngine] = []

    class Slow(batched.BatchedEngine):
        """Its thread is as far as it can be when its constructor returns."""

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            made.append(self)
            self._thread.join(_HEAD_START_S)

    def refuse(*_: object) -> None:
        raise CannotBatch("no")

    monkeypatch.setattr(batched, "BatchedEngine", Slow)
    monkeypatch.setattr(start, "make_ready", refuse)
    monkeypatch.setattr(assembly_module, "_end_as_lost", lambda: None)
    monkeypatch.setattr(assembly_module.gc, "freeze", lambda: None)
    told = Namespace(
        model=str(save_tiny(tmp_path / "tiny")),
        cache_dir=tmp_path,
        engine="batched",
        gpu_memory_gib=0.0,
        max_context_tokens=512,
        kv_ram_gib="0",
    )
    statuses: queue.Queue[EngineStatus] = queue.Queue()
    assembly = Assembly(told, lambda _: None, statuses.put)
    assembly.load()
    while (status := statuses.get(timeout=60)).state == "loading":
        pass
    assert "one request at a time" in status.way
    assert isinstance(assembly.engine, LocalEngine)
    assert assembly.profile is not None
    assert assembly.profile.slots == 1
    assembly.engine.close()
    made[0].close()

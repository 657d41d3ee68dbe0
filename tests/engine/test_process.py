import asyncio
import gc
import os
import queue
import select
import signal
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from app.config import Settings
from app.engine import process as process_module
from app.engine.base import EngineStatus, Request, Sampling
from app.engine.host import assembly as assembly_module
from app.engine.host import hosting
from app.engine.host.assembly import Assembly
from app.engine.model import demo, loading
from app.engine.process import EngineProcess
from app.engine.wire import EXIT_GPU_LOST
from tests.engine import light_worker
from tests.engine.talking import Talk, is_alive, program, talk
from tests.engine.tiny import pretend_gpu, save_tiny
from tests.scripted import PROFILE


@pytest.fixture
def light(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings for a process without torch and a model."""
    code = Path(light_worker.__file__).read_text()
    monkeypatch.setattr(process_module.sys, "executable", program(tmp_path, code))
    return settings.model_copy(update={"model": "light"})


def test_a_missing_folder_is_said_before_torch_is_imported_and_not_tried_again(settings: Settings) -> None:
    async def body(there: Talk) -> None:
        await there.until(lambda: there.engine.status.state == "failed")
        assert "Starting torch" not in [status.stage for status in there.statuses]
        assert "/no/such/model" in there.engine.status.problem
        assert "PONDER_MODEL" in there.engine.status.remedy
        there.add("r", 5)
        await there.until(lambda: "r" in there.finished)
        assert there.finished["r"].reason == "failed"

    talk(settings.model_copy(update={"model": "/no/such/model"}), body)


@pytest.fixture
def thaws() -> Iterator[None]:
    """What a worker in this process has put out of the garbage collector's sight comes back."""
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("thaws")
def test_what_a_ready_process_holds_is_not_looked_through_for_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[EngineStatus] = []
    assembly = Assembly(Namespace(), lambda _: None, told.append)
    assembly.profile = PROFILE
    monkeypatch.setattr(assembly_module, "_end_as_lost", lambda: None)
    assert gc.get_freeze_count() < len(gc.get_objects())
    assembly._tell_ready("one request at a time")
    assert [status.state for status in told] == ["ready"]
    assert gc.get_freeze_count() > 10 * len(gc.get_objects())


@pytest.mark.usefixtures("thaws")
def test_a_file_that_cannot_be_read_is_said_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    told: list[EngineStatus] = []
    given = Namespace(model=str(tmp_path), cache_dir=tmp_path, gpu_memory_gib=0.0)
    Assembly(given, lambda _: None, told.append).load()
    assert f"{tmp_path} could not be read" in told[-1].problem
    assert "PONDER_MODEL" in told[-1].remedy


@pytest.mark.usefixtures("thaws")
@pytest.mark.parametrize(("setting", "way"), [("auto", "one request at a time"), ("batched", "at once")])
def test_the_demo_model_goes_without_a_gpu_that_has_no_room_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, way: str
) -> None:
    pretend_gpu(monkeypatch, 1.0)
    monkeypatch.setattr(hosting, "window_alone", lambda *_: 300)
    monkeypatch.setattr(demo, "demo_folder", lambda *_: save_tiny(tmp_path / "demo"))
    monkeypatch.setattr(assembly_module, "_end_as_lost", lambda: None)
    told = Namespace(
        model="demo", cache_dir=tmp_path, engine=setting, gpu_memory_gib=0.0, max_context_tokens=512, kv_ram_gib="0"
    )
    statuses: queue.Queue[EngineStatus] = queue.Queue()
    assembly = Assembly(told, lambda _: None, statuses.put)
    assembly.load()
    while (status := statuses.get(timeout=60)).state == "loading":
        pass
    assert assembly.engine is not None
    assembly.engine.close()
    assert status.state == "ready", status
    assert way in status.way
    assert assembly.profile is not None
    assert assembly.profile.context_window == (300 if setting == "auto" else 512)
    problem = "the one here cannot be used (SmolLM2-135M (demo) needs "
    assert (f"no CUDA GPU is used: {problem}" in status.way) == (setting == "auto")
    assert loading.why_no_gpu()[0].startswith(problem)


@pytest.mark.parametrize(("program", "how"), [("/bin/false", "exit status 1"), ("/no/such/python", "it did not start")])
def test_a_process_that_keeps_dying_is_given_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, program: str, how: str
) -> None:
    monkeypatch.setattr(process_module.sys, "executable", program)

    async def body(there: Talk) -> None:
        await there.until(lambda: there.engine.status.state == "failed")
        assert f"3 times in a row before it was ready ({how})" in there.engine.status.problem

    talk(settings, body)


def test_a_temp_folder_with_a_long_name_is_not_used_for_the_socket(
    light: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 30)))
    (tmp_path / ("long" * 30)).mkdir()

    async def body(there: Talk) -> None:
        await there.ready()
        assert len(os.fsencode(str(tmp_path / ("long" * 30)))) > 108

    talk(light, body)


def test_a_folder_is_named_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert process_module._absolute("models/mine") == process_module._absolute("~/models/mine")
    assert process_module._absolute("models/mine") == str(tmp_path / "models" / "mine")
    assert process_module._absolute("Qwen/QwQ-32B") == "Qwen/QwQ-32B"


def test_a_process_that_hangs_is_ended_and_started_again(light: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "_GOODBYE_S", 0.1)

    async def body(there: Talk) -> None:
        await there.ready()
        pid = there.engine.pid
        assert pid is not None
        # Counts from the next frame on
        there.engine._silence_s = 3.0
        there.add("before", 1)
        await there.until(lambda: "before" in there.finished)
        there.add("hangs", 480)
        os.kill(pid, signal.SIGSTOP)
        await there.until(lambda: "hangs" in there.finished)
        assert there.finished["hangs"].reason in ("failed", "length")
        await there.until(lambda: there.engine.status.state == "ready" and not is_alive(pid))
        assert (await there.written("next", 5)).reason == "length"

    talk(light, body)


def test_a_process_that_loses_its_gpu_is_told_in_words_and_followed_by_another(light: Settings) -> None:
    async def body(there: Talk) -> None:
        await there.ready()
        pid = there.engine.pid
        lost = await there.written(light_worker.LOSES_THE_GPU, 480)
        assert there.deltas
        assert lost.reason == "failed"
        assert "the GPU failed" in lost.problem
        assert "text so far is kept" in lost.problem
        await there.until(lambda: there.engine.status.state == "ready" and there.engine.pid not in (None, pid))
        assert (await there.written("next", 5)).reason == "length"

    talk(light, body)


def test_only_a_trial_that_ended_its_process_is_not_made_again_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, trying = EngineStatus("loading", "Loading weights"), EngineStatus("loading", is_trying=True)
    ready, failed = EngineStatus("ready"), EngineStatus("failed", problem="enough")
    lives = iter([[loading], [loading, trying], [loading, ready], [trying], [failed]])
    careful: list[bool] = []

    async def live(engine: EngineProcess) -> int:
        careful.append(engine._is_careful)
        for status in next(lives):
            engine._become(status)
        return 1

    async def at_once(_: float) -> None:
        return

    monkeypatch.setattr(EngineProcess, "_live_through_one", live)
    monkeypatch.setattr(process_module.asyncio, "sleep", at_once)
    asyncio.run(EngineProcess(settings)._supervise())
    assert careful == [False, False, True, False, True]


def test_a_process_that_cannot_be_killed_leaves_no_request_waiting(
    light: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_module, "_GOODBYE_S", 0.1)
    monkeypatch.setattr(process_module, "_KILLED_S", 0.1)

    async def body(there: Talk) -> None:
        await there.ready()
        pid = there.engine.pid
        process = there.engine._process
        assert pid is not None
        assert process is not None
        # Counts from the next frame on; they come every two seconds
        there.engine._silence_s = 1.5
        there.add("before", 1)
        await there.until(lambda: "before" in there.finished)
        monkeypatch.setattr(type(process), "kill", lambda _: None)
        os.kill(pid, signal.SIGSTOP)
        # What the app would send to a process that does not read must not be waited for either
        for number in range(8):
            there.engine.add(Request(f"r{number}", (40,) * 30_000, Sampling(), (), 10))
        await there.until(lambda: there.engine.status.state == "failed")
        assert "cannot be ended" in there.engine.status.problem
        await there.until(lambda: len(there.finished) == 9)
        monkeypatch.undo()
        os.kill(pid, signal.SIGKILL)
        await process.wait()

    talk(light, body)


def test_what_auto_was_at_the_first_start_it_stays(settings: Settings) -> None:
    engine = EngineProcess(settings.model_copy(update={"model": "auto"}))
    assert engine._model() == "auto"
    engine._profile = replace(PROFILE, name="qwq-32b")
    assert engine._model() == "qwq-32b"


def test_cs_own_exit_ends_a_process_as_one_that_lost_its_gpu() -> None:
    script = (
        "import ctypes; from app.engine.host.assembly import _end_as_lost; _end_as_lost(); ctypes.CDLL(None).exit(1)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2]).returncode == EXIT_GPU_LOST


_APP = """
import asyncio, sys
from app.config import Settings
from app.engine.process import EngineProcess

async def main():
    engine = EngineProcess(Settings(model="/no/such/model"))
    await engine.start()
    async for _ in engine.events():
        print(engine.pid, flush=True)
        await asyncio.sleep(1000)

asyncio.run(main())
"""


def test_the_process_ends_with_an_app_that_is_killed() -> None:
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", _APP], cwd=root, stdout=subprocess.PIPE) as app:
        assert app.stdout is not None
        end_of_worker = os.pidfd_open(int(app.stdout.readline()))
        app.kill()
    # Readable once the process has ended
    assert select.select([end_of_worker], [], [], 60)[0]
    os.close(end_of_worker)

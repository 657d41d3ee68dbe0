"""The engine process' end of the socket, in a thread, with something light to write."""

import asyncio
import logging
import threading
from argparse import Namespace
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from app.config import Settings
from app.engine import process as process_module
from app.engine.base import Delta, Finished, Request, Sampling
from app.engine.host import worker as worker_module
from app.engine.host.worker import Worker
from app.engine.process import EngineProcess
from app.engine.wire import Add, Encode, Frame, Ids, Written, from_line, to_line
from app.logs import set_up_logs
from tests.engine import light_worker
from tests.engine.talking import Talk, program, talk


class Silent:
    """An engine that is there and writes nothing."""

    def __init__(self) -> None:
        self.stuck_s = 0.0
        self.cancelled: list[str] = []

    def add(self, request: Request) -> None:
        raise RuntimeError(request.id)

    def cancel(self, request_id: str) -> None:
        self.cancelled.append(request_id)


class Beside:
    """A worker, and the app's end of its socket."""

    def __init__(
        self,
        worker: Worker,
        thread: threading.Thread,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.worker = worker
        self.thread = thread
        self._reader = reader
        self._writer = writer

    def send(self, frame: Frame | bytes) -> None:
        self._writer.write(frame if isinstance(frame, bytes) else to_line(frame))

    async def frame(self) -> Frame:
        """The next one that is no mere sign of life."""
        while (frame := from_line(await self._reader.readline())) == Written():
            pass
        return frame


async def wind_up(worker: Worker) -> None:
    """What the end of a process does else."""
    assert worker._writer is not None
    worker._writer.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(worker._writer.wait_closed(), *others, return_exceptions=True)


def beside(folder: Path, body: Callable[[Beside], Awaitable[None]]) -> None:
    async def main() -> None:
        connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Future()
        path = folder / "s"
        server = await asyncio.start_unix_server(lambda *ends: connected.set_result(ends), path)
        worker = Worker(Namespace(silence_s=60.0))
        worker._assembly.load = lambda: None  # type: ignore[method-assign]
        worker._assembly.engine = Silent()  # type: ignore[assignment]
        thread = threading.Thread(target=worker.run, args=(str(path),))
        thread.start()
        try:
            async with asyncio.timeout(60):
                reader, writer = await connected
                await body(Beside(worker, thread, reader, writer))
        finally:
            if connected.done():
                connected.result()[1].close()
            await asyncio.to_thread(thread.join)
            server.close()
            await asyncio.to_thread(worker._loop.run_until_complete, wind_up(worker))
            worker._loop.close()

    asyncio.run(main())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose path is short enough for a socket."""
    monkeypatch.chdir(tmp_path)
    return Path()


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"SECRET\n", None),
        (b"[]\n", None),
        (b'{"kind":"SECRET"}\n', None),
        (b'{"kind":"add","request":"SECRET"}\n', None),
        (b"\xff\xfe SECRET\n", None),
        (b'{"kind":"add","request":{"id":"r.1","prompt":"SECRET"}}\n', "r.1"),
        (b'{"kind":"prompt","call":7,"messages":[{"role":"user","text":["SECRET"]}]}\n', 7),
        (b'{"kind":"encode","call":7,"text":["SECRET"]}\n', 7),
    ],
)
def test_a_frame_that_cannot_be_read_is_logged_without_its_text_and_hurts_no_other(
    folder: Path, caplog: pytest.LogCaptureFixture, line: bytes, answer: object
) -> None:
    async def body(there: Beside) -> None:
        there.send(line)
        frame = await there.frame() if answer is not None else None
        if isinstance(answer, str):
            assert isinstance(frame, Written)
            assert [(one.request_id, one.reason) for one in frame.finished] == [(answer, "failed")]
            assert "Try again" in frame.finished[0].problem
        elif answer is not None:
            assert isinstance(frame, Ids)
            assert frame.call == answer
            assert "Try again" in frame.problem
        there.send(Encode(8, "more"))
        assert await there.frame() == Ids(8, problem="The model's tokenizer is not loaded yet. Try again in a moment.")

    caplog.set_level(logging.DEBUG)
    beside(folder, body)
    assert f"{len(line)} bytes that are no frame" in caplog.text
    assert "SECRET" not in caplog.text


def test_a_line_without_an_end_ends_the_process_without_its_text(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "MOST_LINE_BYTES", 1000)

    async def body(there: Beside) -> None:
        there.send(b"SECRET" * 1000)
        await asyncio.to_thread(there.thread.join)

    beside(folder, body)
    assert "more than 1000 bytes" in caplog.text
    assert "SECRET" not in caplog.text


def test_a_request_that_the_engine_refuses_ends_as_failed(folder: Path) -> None:
    async def body(there: Beside) -> None:
        there.send(Add(Request("r.1", (1,), Sampling(), (), 5)))
        frame = await there.frame()
        assert isinstance(frame, Written)
        assert [(one.request_id, one.reason) for one in frame.finished] == [("r.1", "failed")]

    beside(folder, body)


def test_what_cannot_be_sent_ends_its_request_and_no_other(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def body(there: Beside) -> None:
        for event in (
            Delta("good", (1,), ("fine",)),
            Delta("bad", (2,), ("SECRET\ud800",)),
            Finished("good", "stop"),
        ):
            there.worker._collect(event)
        told: list[Any] = []
        while len(told) < 3:
            frame = await there.frame()
            assert isinstance(frame, Written)
            told += [*frame.deltas, *frame.finished]
        assert told[0].texts == ("fine",)
        assert sorted((one.request_id, one.reason) for one in told[1:]) == [("bad", "failed"), ("good", "stop")]
        assert there.worker._assembly.engine.cancelled == ["bad"]  # type: ignore[union-attr]

    beside(folder, body)
    assert "SECRET" not in caplog.text


def test_a_process_that_was_stopped_as_a_whole_is_not_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(worker_module, "time", Namespace(monotonic=lambda: clock[0]))
    worker = Worker(Namespace(silence_s=60.0))
    worker._loop.close()
    engine = Silent()
    worker._assembly.engine = engine  # type: ignore[assignment]

    def looks_at(moment: float) -> bool:
        clock[0] = moment
        engine.stuck_s = moment
        return worker._is_hung()

    assert not any(looks_at(float(moment)) for moment in range(0, 40, 2))
    # As long as a container may be paused, or a laptop sleep
    assert not any(looks_at(float(moment)) for moment in range(10_000, 10_060, 2))
    assert looks_at(10_062.0)


@pytest.mark.parametrize("frames", [0, 1])
def test_an_app_that_was_stopped_gives_its_engine_process_time_to_speak(
    settings: Settings, caplog: pytest.LogCaptureFixture, frames: int
) -> None:
    async def main() -> None:
        loop, engine, reader = asyncio.get_running_loop(), EngineProcess(settings), asyncio.StreamReader()
        clock, jumped = loop.time, 0.0
        loop.time = lambda: clock() + jumped  # type: ignore[method-assign]
        reading = asyncio.create_task(engine._read(reader))
        await asyncio.sleep(0)
        looks = 0
        while not reading.done():
            jumped += 1000.0
            looks += 1
            await asyncio.sleep(0.0)
            await asyncio.sleep(0.001)
            if frames and looks == process_module._LOOKS - 1:
                reader.feed_data(to_line(Written()))
                reader.feed_eof()
                await reading
        assert looks >= process_module._LOOKS - 1

    asyncio.run(main())
    assert ("no sign of life" in caplog.text) == (not frames)


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "ERROR"])
def test_the_log_level_reaches_the_engines_process(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    level: str,
) -> None:
    # asyncio says at DEBUG which selector it uses; the program says the rest
    code = (
        Path(light_worker.__file__)
        .read_text()
        .replace(
            "    sys.exit(",
            "    import logging\n"
            "    levels = worker.set_up_logs\n"
            "    worker.set_up_logs = lambda level: (levels(level), logging.getLogger('app.x').info('told at INFO'))\n"
            "    sys.exit(",
        )
    )
    monkeypatch.setattr(process_module.sys, "executable", program(tmp_path, code))

    async def body(there: Talk) -> None:
        await there.ready()

    talk(settings.model_copy(update={"model": "light", "log_level": level}), body)
    written = capfd.readouterr().err
    assert ("Using selector" in written) == (level == "DEBUG")
    assert ("told at INFO" in written) == (level != "ERROR")


def test_libraries_write_no_secrets_at_any_level() -> None:
    names = ("", "httpx", "httpcore", "urllib3", "huggingface_hub", "sqlalchemy", "authlib")
    before = {name: logging.getLogger(name).level for name in names}
    try:
        set_up_logs("DEBUG")
        logging.getLogger().setLevel(logging.DEBUG)
        assert not any(logging.getLogger(name).isEnabledFor(logging.DEBUG) for name in names if name)
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)

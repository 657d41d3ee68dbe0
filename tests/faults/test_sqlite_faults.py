"""A running Ponder whose SQLite file is locked, full, read-only, deleted or replaced."""

import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import event

from app.config import Settings
from app.errors import StorageFailed
from app.history import database, sqlite
from app.runs import keeper
from app.web import build_services
from tests.faults.chatting import Person, held_by_another_process, person, refused, until
from tests.live import LiveServer, serving
from tests.scripted import CLOSE, HOLD, ScriptedEngine

BEGINNING = f"Let me think.\n{CLOSE}\n\nIt begins{HOLD}"
WHOLE = "It begins and it ends."


@pytest.fixture
def engine() -> ScriptedEngine:
    """Several answers at once."""
    return ScriptedEngine().with_profile(slots=4)


@pytest.fixture
def file(settings: Settings) -> Path:
    return settings.data_dir / "ponder.sqlite"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds are over sooner."""
    monkeypatch.setitem(sqlite.PRAGMAS, "busy_timeout", 100)
    monkeypatch.setattr(database, "_TURN_S", 0.1)
    monkeypatch.setattr(keeper, "_SAVE_AGAIN_S", 0.1)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a moment can take longer than the five seconds that are waited."""
    monkeypatch.setitem(sqlite.PRAGMAS, "busy_timeout", 60_000)


@pytest.fixture
def ada(live_server: LiveServer) -> Iterator[Person]:
    with person(live_server) as ada:
        yield ada


def stored(file: Path, answer_id: str) -> tuple[str, str]:
    """What another program finds: an answer's text, and how its run ended."""
    connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
    try:
        found: tuple[str, str] = connection.execute(
            "SELECT messages.text, state FROM messages JOIN runs ON answer_id = messages.id WHERE messages.id = ?",
            (answer_id,),
        ).fetchone()
        return found
    finally:
        connection.close()


# Locked by another process


def test_five_seconds_is_how_long_a_locked_database_is_waited_for() -> None:
    assert sqlite.PRAGMAS["busy_timeout"] == 5000
    assert database._TURN_S == 5.0


@pytest.mark.usefixtures("patient")
def test_while_another_process_writes_a_send_waits_and_reading_does_not(
    live_server: LiveServer, ada: Person, file: Path
) -> None:
    talk = ada.begin("Here")
    with ThreadPoolExecutor(1) as pool, held_by_another_process(file) as release, person(live_server) as reader:
        reader.client.cookies = ada.client.cookies
        sent = pool.submit(ada.ask, talk)
        for _ in range(3):
            assert reader.titles() == ["Here"]
            assert reader.read(talk)["messages"] == []
        assert not sent.done()
        release()
        assert ada.finish(sent.result()["run_id"])["state"] == "done"
    assert ada.read(talk)["messages"][-1]["text"] == "Forty-two."


@pytest.mark.usefixtures("impatient")
def test_what_is_written_while_the_database_is_locked_is_shown_whole_and_saved_afterwards(
    live_server: LiveServer, ada: Person, file: Path
) -> None:
    talk, other = ada.begin("Going on"), ada.begin("Another")
    live_server.script(f"{BEGINNING} and it ends.")
    accepted = ada.ask(talk)
    ada.wait_for_text(accepted["run_id"])
    with held_by_another_process(file) as release:
        refused(ada.send(other), saying="busy")
        refused(ada.client.post("/api/conversations", json={}), saying="busy")
        live_server.release()
        assert ada.finish(accepted["run_id"])["state"] == "done"
        assert stored(file, accepted["answer_id"])[1] == "running"
        shown = ada.read(talk)
        assert shown["running_run_id"] is None
        assert (shown["messages"][-1]["text"], shown["messages"][-1]["run"]["state"]) == (WHOLE, "done")
        assert "Let me think" in ada.client.get(f"/api/messages/{accepted['answer_id']}/reasoning").json()["text"]
        assert WHOLE in ada.client.get(f"/api/conversations/{talk}/export", params={"format": "md"}).text
        assert ada.client.get(f"/api/runs/{accepted['run_id']}").json()["state"] == "done"
        refused(ada.send(talk), saying="could not be saved yet")
        release()
    until(lambda: stored(file, accepted["answer_id"]) == (WHOLE, "done"))
    ada.answered(talk)
    ada.answered(other)
    assert len(ada.read(talk)["messages"]) == 4


@pytest.mark.usefixtures("impatient")
def test_a_chat_whose_last_answer_was_not_saved_goes_on_as_soon_as_it_can_be(
    live_server: LiveServer, ada: Person, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "_SAVE_AGAIN_S", 3600.0)
    talk = ada.begin()
    live_server.script(f"{BEGINNING} and it ends.")
    accepted = ada.ask(talk)
    ada.wait_for_text(accepted["run_id"])
    with held_by_another_process(file):
        live_server.release()
        assert ada.finish(accepted["run_id"])["state"] == "done"
    ada.answered(talk)
    assert stored(file, accepted["answer_id"]) == (WHOLE, "done")
    prompt = live_server.engine.decoded(live_server.engine.requests[-1].prompt)
    assert WHOLE in prompt


# A full disk


@contextmanager
def small_disk(settings: Settings) -> Iterator[Callable[[bool], None]]:
    """The data folder on a disk of its own, where root may; what is given fills it up, or makes room again."""
    settings.data_dir.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", settings.data_dir], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("only root can make a disk")
    filler = settings.data_dir / "filler"

    def fill(is_full: bool) -> None:
        if not is_full:
            filler.unlink()
            return
        with filler.open("ab", buffering=0) as out:
            try:
                while True:
                    out.write(b"\0" * 4096)
            except OSError:
                return

    try:
        yield fill
    finally:
        subprocess.run(["umount", "--lazy", settings.data_dir], check=True)


@pytest.mark.usefixtures("impatient")
def test_on_a_full_disk_an_answer_is_shown_to_its_end_and_all_is_well_when_there_is_room(
    settings: Settings, engine: ScriptedEngine, file: Path
) -> None:
    with small_disk(settings) as fill, serving(settings, engine) as server, person(server) as ada:
        check_full_disk(server, ada, file, fill)


@pytest.mark.usefixtures("impatient")
def test_a_database_that_may_not_grow_is_a_full_disk(live_server: LiveServer, ada: Person, file: Path) -> None:
    engine = live_server.services.store.database.engine
    limits = {True: 1, False: 1_000_000}
    now = {"is_full": False}

    def limit(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {limits[now['is_full']]}")

    event.listen(engine, "checkout", limit)

    def fill(is_full: bool) -> None:
        now["is_full"] = is_full

    check_full_disk(live_server, ada, file, fill)


def check_full_disk(server: LiveServer, ada: Person, file: Path, fill: Callable[[bool], None]) -> None:
    talk = ada.begin("Going on")
    word = "ever" * 10_000
    server.script(f"{BEGINNING} {word} and it ends.")
    accepted = ada.ask(talk)
    ada.wait_for_text(accepted["run_id"])
    others = [ada.begin(f"Number {number}") for number in range(3)]
    fill(True)
    while (last := ada.send(others[0], "more " * 300, parent_id=None)).status_code != 503:
        ada.finish(last.json()["run_id"])
    refused(last, saying="disk is full")
    assert ada.client.get("/healthz").status_code == 200
    server.release()
    assert ada.finish(accepted["run_id"])["state"] == "done"
    shown = ada.read(talk)["messages"][-1]
    assert shown["text"] == f"It begins {word} and it ends."
    assert shown["run"]["state"] == "done"
    assert "Going on" in ada.titles()
    assert ada.client.get("/api/conversations", params={"q": "Number"}).json()["items"]
    fill(False)
    until(ada.ready)
    until(lambda: stored(file, accepted["answer_id"])[1] == "done")
    assert stored(file, accepted["answer_id"])[0] == shown["text"]
    ada.answered(talk)
    ada.answered(others[1])


# A file that may not be written, or has lost its name


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that can only be read: by its modes, and for root, who heeds none, as a mount of its own."""
    if os.geteuid() == 0:
        made = subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False)
        if made.returncode != 0:
            pytest.skip("this root may not mount")
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
            yield
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)
        return
    paths = [*folder.iterdir(), folder]
    modes = [path.stat().st_mode for path in paths]
    try:
        for path in paths:
            path.chmod(0o500 if path.is_dir() else 0o400)
        yield
    finally:
        for path, mode in zip(paths[::-1], modes[::-1], strict=True):
            path.chmod(mode)


def test_a_file_that_may_only_be_read_is_read_and_the_server_says_that_it_is_not_ready(
    ada: Person, settings: Settings
) -> None:
    talk = ada.begin("Here")
    ada.answered(talk)
    until(ada.ready)
    with read_only(settings.data_dir):
        refused(ada.send(talk), saying="may not write")
        assert not ada.ready()
        assert ada.client.get("/readyz").json()["database"] is False
        assert ada.titles() == ["Here"]
        assert len(ada.read(talk)["messages"]) == 2
    until(ada.ready)
    ada.answered(talk)


@pytest.mark.parametrize("loss", ["deleted", "replaced"])
def test_a_file_that_is_gone_is_not_made_anew_and_the_server_goes_on_when_it_is_back(
    ada: Person, file: Path, tmp_path: Path, loss: str
) -> None:
    talk = ada.begin("Here")
    ada.answered(talk)
    file.rename(tmp_path / "aside")
    if loss == "replaced":
        file.write_bytes(b"")
    refused(ada.send(talk), saying="moved, deleted or replaced")
    refused(ada.client.post("/api/conversations", json={}), saying="moved, deleted or replaced")
    assert not ada.ready()
    assert ada.client.get("/healthz").status_code == 200
    assert ada.client.get("/").status_code == 200
    assert (file.exists(), file.exists() and file.stat().st_size) == (loss == "replaced", False)
    (tmp_path / "aside").rename(file)
    until(ada.ready)
    ada.answered(talk)
    assert len(ada.read(talk)["messages"]) == 4


def test_a_start_without_the_file_that_was_there_is_refused_and_names_the_copy(
    settings: Settings, engine: ScriptedEngine, file: Path
) -> None:
    with serving(settings, engine) as server, person(server) as ada:
        ada.begin("Here")
    file.unlink()
    with pytest.raises(StorageFailed, match=r"is gone, and it was here before.*python -m app restore FILE") as failed:
        build_services(settings, engine)
    assert not file.exists()
    (mark,) = [path for path in file.parent.iterdir() if str(path) in failed.value.message and path != file]
    mark.unlink()
    with serving(settings, engine) as server, person(server) as ada:
        assert ada.titles() == []

"""`python app.py` on a database that another has, and on one that a newer Ponder made."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import httpx

from app.config import Settings
from app.history.database import Database
from app.history.migrating import head
from tests.faults.chatting import ROOT, until


@contextmanager
def started(settings: Settings, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process of `python app.py` without a model, which says everything into a file."""
    environment = os.environ | {"PONDER_DATA_DIR": str(settings.data_dir), "PONDER_MODEL": "/no/such/model"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--port", "0"], cwd=ROOT, env=environment, stdout=out, stderr=out
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_of_two_that_start_at_once_one_serves_and_one_says_why_it_does_not(settings: Settings, tmp_path: Path) -> None:
    logs = [tmp_path / "first", tmp_path / "second"]
    with ExitStack() as stack:
        both = [stack.enter_context(started(settings, log)) for log in logs]
        until(lambda: any(process.poll() is not None for process in both))
        (loser,) = [number for number, process in enumerate(both) if process.poll() is not None]
        assert both[loser].returncode == 2
        said = logs[loser].read_text()
        assert f"Another Ponder is running with the database {settings.data_dir / 'ponder.sqlite'}" in said
        assert "Traceback" not in said
        winner, its_log = both[1 - loser], logs[1 - loser]
        until(lambda: "Ponder is at" in its_log.read_text())
        url = its_log.read_text().partition("Ponder is at ")[2].split()[0]
        assert httpx.get(f"{url}/healthz").status_code == 200
        winner.send_signal(signal.SIGTERM)
        assert winner.wait(60) == 0


def test_a_database_of_a_newer_ponder_stops_the_start_and_both_revisions_are_named(
    settings: Settings, tmp_path: Path
) -> None:
    database = Database(settings.resolved_database_url)
    database.migrate()
    database.close()
    with closing(sqlite3.connect(settings.data_dir / "ponder.sqlite")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    log = tmp_path / "log"
    with started(settings, log) as process:
        assert process.wait(60) == 2
    said = log.read_text()
    assert "Ponder cannot start." in said
    assert f"revision 9999, and this Ponder knows them up to {head()}" in said
    assert "python -m app restore FILE" in said
    assert "Traceback" not in said

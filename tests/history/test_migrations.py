import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from app.accounts.retention import Purged, Retention
from app.config import Settings
from app.errors import StorageFailed
from app.history import snapshots
from app.history.database import Database
from app.history.migrating import MIGRATIONS, config_for, head, revision_of
from app.history.people import People
from app.history.sqlite import make_empty
from app.history.tables import Table
from tests.databases import PostgresServer
from tests.history.filling import ROWS, columns_of, contents, fill, tables_of

ROOT = Path(__file__).parents[2]
REVISIONS = [script.revision for script in reversed(list(ScriptDirectory(str(MIGRATIONS)).walk_revisions()))]
STEPS = list(pairwise(REVISIONS))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def empty(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Database]:
    """A database without tables."""
    if request.param == "sqlite":
        database = Database(settings.resolved_database_url)
        assert database.file is not None
        make_empty(database.file)
        yield database
        database.close()
        return
    server: PostgresServer = request.getfixturevalue("server")
    address = server.empty()
    database = Database(address)
    yield database
    database.close()
    server.drop(address)


@contextmanager
def migrating(database: Database) -> Iterator[tuple[Connection, Config]]:
    with database.engine.execution_options(is_writer=True).begin() as connection:
        yield connection, config_for(connection)


def filled_at(database: Database, revision: str) -> dict[str, tuple[int, str]]:
    with migrating(database) as (connection, config):
        command.upgrade(config, revision)
        fill(connection)
        return contents(connection)


def in_another_process(database: Database, code: str = "") -> "subprocess.Popen[str]":
    url = database.url.render_as_string(hide_password=False)
    whole = f"from app.history.database import Database\ndatabase = Database({url!r})\n{code}\ndatabase.migrate()"
    return subprocess.Popen([sys.executable, "-c", whole], cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_the_migrations_make_the_tables(empty: Database) -> None:
    empty.migrate()
    with empty.engine.connect() as connection:
        opts = {"compare_type": True, "include_object": _is_compared}
        context = MigrationContext.configure(connection, opts=opts)
        assert compare_metadata(context, Table.metadata) == []


def _is_compared(_object: object, name: str | None, *_: object) -> bool:
    # The index of the search has another shape on each database; its migration alone makes it
    return not (name or "").startswith(("search_terms", "ix_search_terms"))


def test_what_alembic_would_make_of_the_tables_now_is_nothing(empty: Database) -> None:
    empty.migrate()
    with migrating(empty) as (connection, config):
        command.check(config)
        assert revision_of(connection) == head()


def test_migrations_go_down_to_nothing_and_up_again(empty: Database) -> None:
    empty.migrate()
    with migrating(empty) as (connection, config):
        command.downgrade(config, "base")
        assert set(inspect(connection).get_table_names()) <= {"alembic_version"}
        assert inspect(connection).get_view_names() == []
        command.upgrade(config, "head")
    assert People(empty).add_guest("hash")


def test_migrating_twice_changes_nothing(empty: Database) -> None:
    empty.migrate()
    person = People(empty).add_guest("hash")
    empty.migrate()
    caller = People(empty).caller("hash")
    assert caller is not None
    assert caller.person_id == person


@pytest.mark.parametrize(("old", "new"), STEPS)
def test_a_step_up_down_and_up_loses_nothing_of_a_filled_database(empty: Database, old: str, new: str) -> None:
    before = filled_at(empty, old)
    assert all(count == ROWS for count, _ in before.values())
    with migrating(empty) as (connection, config):
        columns = columns_of(connection)
        command.upgrade(config, new)
        kept = {table: names & columns_of(connection)[table] for table, names in columns.items()}
        counts = {table: count for table, (count, _) in contents(connection).items()}
        common = contents(connection, kept)
    with migrating(empty) as (connection, config):
        command.downgrade(config, old)
        assert contents(connection) == before
        assert contents(connection, kept) == common
        command.upgrade(config, new)
        # What a step adds may be the moment of the step, so of new columns only the rows are counted
        assert {table: count for table, (count, _) in contents(connection).items()} == counts
        assert contents(connection, kept) == common


@pytest.mark.parametrize(("old", "new"), STEPS)
def test_a_database_filled_by_the_newer_goes_down_and_up_again(empty: Database, old: str, new: str) -> None:
    filled_at(empty, new)
    with migrating(empty) as (connection, config):
        command.downgrade(config, old)
        assert revision_of(connection) == old
        assert any(count for count, _ in contents(connection).values())
        command.upgrade(config, new)
        if empty.is_sqlite:
            assert connection.execute(text("PRAGMA foreign_key_check")).all() == []


@pytest.mark.parametrize("statement", [1, 5, 11])
def test_a_migration_that_was_killed_half_way_is_repeated(empty: Database, statement: int) -> None:
    before = filled_at(empty, REVISIONS[0])
    kill = f"""
import os, signal
from sqlalchemy import event
seen = []
@event.listens_for(database.engine, "before_cursor_execute")
def count(connection, cursor, statement, *_):
    if statement.lstrip().startswith(("CREATE", "ALTER", "DROP", "UPDATE", "INSERT", "DELETE")):
        seen.append(statement)
        if len(seen) == {statement}:
            os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = in_another_process(empty, kill)
    assert killed.wait(60) == -signal.SIGKILL, killed.stderr.read() if killed.stderr else ""
    assert killed.stderr is not None
    killed.stderr.close()
    with empty.engine.connect() as connection:
        assert revision_of(connection) == REVISIONS[0]
        assert contents(connection) == before
    empty.migrate()
    with empty.engine.connect() as connection:
        assert revision_of(connection) == head()
        assert {table: count for table, (count, _) in contents(connection).items() if table in before} == dict.fromkeys(
            before, ROWS
        )


def test_processes_that_start_at_once_migrate_once(empty: Database) -> None:
    filled_at(empty, REVISIONS[0])
    processes = [in_another_process(empty) for _ in range(3)]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    with empty.engine.connect() as connection:
        assert revision_of(connection) == head()
        assert all(count == ROWS for name, (count, _) in contents(connection).items() if name == "people")
    if empty.file is not None:
        assert len(list(snapshots.folder_of(empty.file).glob("*.sqlite"))) == 1


def test_a_database_of_a_newer_ponder_is_refused_with_both_revisions(empty: Database) -> None:
    empty.migrate()
    with migrating(empty) as (connection, _):
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        before = {table.name for table in tables_of(connection)}
    with pytest.raises(StorageFailed, match=rf"revision 9999.* up to {head()}: a newer Ponder") as refused:
        empty.migrate()
    assert "python -m app restore" in refused.value.message
    with empty.engine.connect() as connection:
        assert revision_of(connection) == "9999"
        assert {table.name for table in tables_of(connection)} == before


@pytest.mark.postgresql
def test_the_password_in_an_address_is_not_said(server: PostgresServer) -> None:
    secret = Database(server.migrated().replace("ponder@", "ponder:hunter2@"))
    assert secret.url.password == "hunter2"
    with migrating(secret) as (connection, _):
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StorageFailed) as refused:
        secret.migrate()
    secret.close()
    server.drop(secret.url.render_as_string(hide_password=False))
    assert "hunter2" not in refused.value.message


def test_a_sqlite_file_is_copied_before_its_tables_change(settings: Settings) -> None:
    database = Database(settings.resolved_database_url)
    assert database.file is not None
    make_empty(database.file)
    before = filled_at(database, REVISIONS[-2])
    database.migrate()
    database.migrate()
    (snapshot,) = snapshots.folder_of(database.file).iterdir()
    assert snapshot.name.startswith(f"ponder-{REVISIONS[-2]}-")
    assert oct(snapshot.stat().st_mode & 0o777) == "0o600"
    copy = Database(f"sqlite:///{snapshot}")
    with copy.engine.connect() as connection:
        assert contents(connection) == before
    copy.close()
    database.close()


def test_an_empty_database_leaves_no_snapshot(settings: Settings) -> None:
    database = Database(settings.resolved_database_url)
    database.migrate()
    database.close()
    assert not (settings.data_dir / "snapshots").exists()


def test_a_file_that_an_older_ponder_serves_is_not_migrated_under_it(settings: Settings) -> None:
    serving = Database(settings.resolved_database_url)
    assert serving.file is not None
    make_empty(serving.file)
    filled_at(serving, REVISIONS[-2])
    serving.claim()
    newer = Database(settings.resolved_database_url)
    with pytest.raises(StorageFailed, match="an older Ponder is running"):
        newer.migrate()
    with serving.engine.connect() as connection:
        assert revision_of(connection) == REVISIONS[-2]
    serving.close()
    newer.migrate()
    newer.close()


def test_accounts_came_to_guests_without_ending_their_visits(settings: Settings) -> None:
    database = Database(settings.resolved_database_url)
    assert database.file is not None
    make_empty(database.file)
    moment = "2026-11-01 10:00:00.000000"
    with migrating(database) as (connection, config):
        command.upgrade(config, "0001")
        connection.execute(text(f"INSERT INTO people VALUES ('p', 'guest', '{moment}')"))
        connection.execute(text(f"INSERT INTO sessions VALUES ('{'h' * 64}', 'p', '{moment}')"))
    database.migrate()
    caller = People(database).caller("h" * 64)
    assert caller is not None
    assert (caller.person_id, caller.kind, caller.session_id) == ("p", "guest", "h" * 32)
    # Nobody knows when they were here last, so the first purge takes nobody
    assert Retention(database, People(database), settings).purge() == Purged(0, 0, 0)
    database.close()


def test_the_tests_see_every_migration() -> None:
    files = [name for name in os.listdir(MIGRATIONS / "versions") if name.endswith(".py")]
    assert len(files) == len(REVISIONS) == len(STEPS) + 1

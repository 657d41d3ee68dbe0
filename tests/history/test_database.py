import sqlite3
import threading
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, event, inspect, text

from app.accounts.retention import Purged, Retention
from app.config import Settings
from app.errors import StorageFailed
from app.history.database import Database
from app.history.people import People
from app.history.sqlite import make_empty
from app.history.store import Store
from app.history.tables import Table

MIGRATIONS = Path(__file__).parents[2] / "migrations"


def test_the_migrations_make_the_tables(store: Store) -> None:
    with store.database.engine.connect() as connection:
        opts = {"compare_type": True, "include_object": _is_compared}
        context = MigrationContext.configure(connection, opts=opts)
        assert compare_metadata(context, Table.metadata) == []


def _is_compared(_object: object, name: str | None, *_: object) -> bool:
    # The index of the search has other shapes on the two databases; only its migration makes it
    return not (name or "").startswith(("search_terms", "ix_search_terms"))


def test_migrations_go_down_to_nothing_and_up_again(store: Store) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with store.database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert set(inspect(connection).get_table_names()) <= {"alembic_version"}
        command.upgrade(config, "head")
    assert People(store.database).add_guest("hash")


def test_migrating_twice_changes_nothing(store: Store) -> None:
    person = People(store.database).add_guest("hash")
    store.database.migrate()
    caller = People(store.database).caller("hash")
    assert caller is not None
    assert caller.person_id == person


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize(
    ("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1), ("busy_timeout", 5000)]
)
def test_every_connection_is_as_safe_as_promised(store: Store, pragma: str, value: object) -> None:
    with store.database.engine.connect() as connection:
        assert connection.execute(text(f"PRAGMA {pragma}")).scalar() == value


def test_a_failed_transaction_leaves_nothing_behind(store: Store) -> None:
    with pytest.raises(StorageFailed):
        store.add_conversation("nobody", "title")
    with store.database.reading() as db:
        assert db.execute(text("SELECT count(*) FROM conversations")).scalar() == 0


def test_writers_of_two_threads_queue_instead_of_failing(store: Store) -> None:
    owner = People(store.database).add_guest("hash")
    errors: list[Exception] = []

    def write() -> None:
        try:
            for _ in range(20):
                store.add_conversation(owner, "title")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store.conversations(owner, None, 200)[0]) == 80


@pytest.mark.only_on("sqlite")
def test_a_full_disk_is_said_in_a_sentence(store: Store) -> None:
    owner = People(store.database).add_guest("hash")
    with store.database.engine.connect() as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar()
    store.database.engine.dispose()

    def limit(connection: sqlite3.Connection, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages}")

    event.listen(store.database.engine, "connect", limit)

    def fill() -> None:
        for _ in range(1000):
            store.add_conversation(owner, "x" * 200)

    with pytest.raises(StorageFailed, match="disk is full"):
        fill()


def test_a_folder_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFailed, match="PONDER_DATA_DIR"):
        Database(f"sqlite:///{tmp_path}/file/ponder.sqlite")


def _rows(connection: Connection) -> dict[str, list[tuple[object, ...]]]:
    tables = ("people", "sessions", "conversations", "messages", "runs")
    return {
        table: [tuple(row) for row in connection.execute(text(f"SELECT * FROM {table} ORDER BY 1"))] for table in tables
    }


def test_accounts_come_to_a_filled_database_and_go_without_losing_a_row(settings: Settings) -> None:
    database = Database(settings.resolved_database_url)
    make_empty(Path(str(database.file)))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    moment = "2026-11-01 10:00:00.000000"
    with database.engine.execution_options(is_writer=True).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(text(f"INSERT INTO people VALUES ('p', 'guest', '{moment}')"))
        connection.execute(text(f"INSERT INTO sessions VALUES ('{'h' * 64}', 'p', '{moment}')"))
        connection.execute(text(f"INSERT INTO conversations VALUES ('c', 'p', 'Why?', 'm', '{moment}', '{moment}')"))
        connection.execute(
            text(f"INSERT INTO messages VALUES ('m', 'c', NULL, 1, 'user', 'Why?', '', '', '', 0, '{moment}')")
        )
        connection.execute(
            text(
                "INSERT INTO runs VALUES ('r', 'p', 'c', 'm', 'key', 'done', '', 'normal', "
                f"'{{}}', '[]', '{{}}', '{{}}', '', '', 0, '{moment}', NULL)"
            )
        )
        before = _rows(connection)
    database.migrate()
    with database.engine.begin() as connection:
        after = _rows(connection)
    assert {table: len(rows) for table, rows in after.items()} == {table: len(rows) for table, rows in before.items()}
    for table in ("conversations", "messages", "runs"):
        assert [row[: len(old)] for row, old in zip(after[table], before[table], strict=True)] == before[table]
    caller = People(database).caller("h" * 64)
    assert caller is not None
    assert (caller.person_id, caller.kind, caller.session_id) == ("p", "guest", "h" * 32)
    # Nobody knows when they were here last, so the first purge takes nobody
    assert Retention(database, People(database), settings).purge() == Purged(0, 0, 0)
    with database.engine.execution_options(is_writer=True).begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
        assert _rows(connection) == before
    database.close()

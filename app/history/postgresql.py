"""PostgreSQL through psycopg 3: limits of time on everything, and which errors are worth another try."""

from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry

from app.history.damage import loads

DRIVER = "postgresql+psycopg"
_LIMITS = {
    "statement_timeout": "5s",
    "lock_timeout": "3s",
    "idle_in_transaction_session_timeout": "15s",
}
_CONNECT = {
    "connect_timeout": 3,
    "application_name": "ponder",
    # A machine that is gone without a word is noticed in seconds, not in the hours of the operating system
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
# Serialization failure, deadlock, shut down by an admin or a crash, starting up; 08 is the connection itself
_PASSING = frozenset({"40001", "40P01", "57P01", "57P02", "57P03"})
# Its disk is full; it is a standby, or was made read-only
_STUCK = frozenset({"53100", "25006"})
# Any number will do that nobody else on this server takes: "ponder" as bytes
_MIGRATION_LOCK = int.from_bytes(b"ponder")


def with_driver(url: URL) -> URL:
    """The address with the driver that is installed; `postgres://` and `postgresql://` leave it open."""
    is_open = url.drivername in ("postgres", "postgresql")
    return url.set(drivername=DRIVER) if is_open else url


def server_engine(url: URL) -> Engine:
    """An engine whose pool notices connections that died, and lets nobody wait longer than two seconds for one."""
    given: dict[str, Any] = {name: value for name, value in _CONNECT.items() if name not in url.query}
    engine = create_engine(
        url,
        connect_args=given,
        pool_pre_ping=True,
        pool_timeout=2,
        pool_recycle=1800,
        hide_parameters=True,
        json_deserializer=loads,
    )
    event.listen(engine, "connect", _limit)
    return engine


def lock_migrations(connection: Connection) -> None:
    """Wait until no other process migrates; give this transaction the time a migration may take."""
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
    connection.execute(text("SET LOCAL lock_timeout = '10min'"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _MIGRATION_LOCK})
    connection.execute(text("SET LOCAL lock_timeout = '30s'"))


def is_passing(error: DBAPIError) -> bool:
    """Whether the same transaction may well succeed when it is tried again."""
    state = _state_of(error)
    return error.connection_invalidated or state in _PASSING or state.startswith("08")


def is_unreachable(error: DBAPIError) -> bool:
    """Whether the server was not there, as against having refused something."""
    state = _state_of(error)
    return not state or error.connection_invalidated or state.startswith(("08", "57P"))


def is_stuck_server(error: DBAPIError) -> bool:
    """Whether the server cannot write, and will not until somebody does something about it."""
    return _state_of(error) in _STUCK


def _state_of(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def _limit(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
    # Not as options of the connection, which poolers in between refuse
    cursor = connection.cursor()
    for name, value in _LIMITS.items():
        cursor.execute(f"SET SESSION {name} = '{value}'")
    cursor.close()
    connection.commit()

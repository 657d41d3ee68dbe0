"""A running Ponder whose PostgreSQL crashes, comes back, ends connections, or has to choose between two writers."""

import logging
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any

import psycopg
import pytest
from sqlalchemy import event

from app.config import Settings
from app.runs import keeper
from tests.databases import PostgresServer, name_in
from tests.faults.chatting import Person, person, refused, until
from tests.live import LiveServer, serving
from tests.scripted import CLOSE, HOLD, ScriptedEngine

pytestmark = pytest.mark.postgresql

BEGINNING = f"Let me think.\n{CLOSE}\n\nIt begins{HOLD}"
WHOLE = "It begins and it ends."
TRIED_AGAIN = "a transaction is tried once more"


@pytest.fixture
def address(server: PostgresServer) -> Iterator[str]:
    """A database of this test's own, which loses nothing in a crash."""
    address = server.migrated()
    server.execute(f"ALTER DATABASE {name_in(address)} SET synchronous_commit = on")
    # So long a deadlock lasts before one of the two is chosen: longer than a test takes to make one
    server.execute(f"ALTER DATABASE {name_in(address)} SET deadlock_timeout = '2s'")
    yield address
    server.drop(address)


@pytest.fixture
def live(settings: Settings, address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveServer]:
    monkeypatch.setattr(keeper, "_SAVE_AGAIN_S", 0.1)
    shared = {"database_url": address, "secret_key": "0123456789abcdef" * 4}
    settings = Settings(**settings.model_dump() | shared)
    with serving(settings, ScriptedEngine().with_profile(slots=4)) as server:
        yield server


@pytest.fixture
def ada(live: LiveServer) -> Iterator[Person]:
    with person(live) as ada:
        yield ada


def stored(server: PostgresServer, address: str, answer_id: str) -> tuple[object, ...]:
    query = f"SELECT m.text, state FROM messages m JOIN runs ON answer_id = m.id WHERE m.id = '{answer_id}'"
    return server.execute(query, name_in(address))[0]


def counted(server: PostgresServer, address: str, table: str) -> object:
    return server.execute(f"SELECT count(*) FROM {table}", name_in(address))[0][0]


# The server goes and comes back


def test_a_chat_goes_on_while_postgresql_is_gone_and_is_saved_when_it_is_back(
    live: LiveServer, ada: Person, server: PostgresServer, address: str
) -> None:
    talk, other = ada.begin("Going on"), ada.begin("Another")
    live.script(f"{BEGINNING} and it ends.")
    accepted = ada.ask(talk)
    events = ada.events(accepted["run_id"])
    before = list(takewhile(lambda found: "begins" not in str(found[1].get("text", "")), events))
    assert before
    server.stop()
    try:
        refused(ada.send(other))
        refused(ada.client.get("/api/conversations"))
        assert not ada.ready()
        assert ada.client.get("/healthz").status_code == 200
        assert ada.client.get("/").status_code == 200
        live.release()
        rest = list(events)
        assert rest[-1][0] == "done"
        assert rest[-1][1]["state"] == "done"
        assert "".join(str(content.get("html")) for name, content in rest if name == "block").count(WHOLE) == 1
    finally:
        server.start()
    until(ada.ready)
    until(lambda: stored(server, address, accepted["answer_id"]) == (WHOLE, "done"))
    assert ada.read(talk)["messages"][-1]["text"] == WHOLE
    ada.answered(other)
    ada.answered(talk)
    assert len(ada.read(talk)["messages"]) == 4


def test_connections_that_were_ended_cost_nobody_anything(
    live: LiveServer, ada: Person, server: PostgresServer, address: str
) -> None:
    talk, other = ada.begin("Going on"), ada.begin("Another")
    live.script(f"{BEGINNING} and it ends.")
    accepted = ada.ask(talk)
    ada.wait_for_text(accepted["run_id"])
    for _ in range(3):
        ended = f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name_in(address)}'"
        assert server.execute(ended)
        assert ada.titles() == ["Another", "Going on"] or ada.titles() == ["Going on", "Another"]
        ada.answered(other)
    live.release()
    assert ada.finish(accepted["run_id"])["state"] == "done"
    until(lambda: stored(server, address, accepted["answer_id"]) == (WHOLE, "done"))


# A transaction that fails by no fault of its own


def test_a_send_whose_connection_is_ended_in_its_middle_is_done_once(
    live: LiveServer, ada: Person, server: PostgresServer, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    talk = ada.begin()
    killed: list[int] = []

    def kill(_: object, cursor: Any, statement: str, *__: object) -> None:
        if statement.startswith("INSERT INTO runs") and not killed:
            killed.append(cursor.connection.info.backend_pid)
            server.execute(f"SELECT pg_terminate_backend({killed[0]}, 5000)")

    event.listen(live.services.store.database.engine, "before_cursor_execute", kill)
    with caplog.at_level(logging.INFO):
        ada.answered(talk)
    assert killed
    assert TRIED_AGAIN in caplog.messages
    assert [message["role"] for message in ada.read(talk)["messages"]] == ["user", "assistant"]
    assert (counted(server, address, "messages"), counted(server, address, "runs")) == (2, 1)


def test_a_send_that_was_committed_though_its_connection_broke_is_done_once_and_answered(
    live: LiveServer, ada: Person, server: PostgresServer, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = ada.begin()
    dialect = live.services.store.database.engine.dialect
    commit = dialect.do_commit
    has_run: set[object] = set()
    broken: list[object] = []

    def see(_: object, cursor: Any, statement: str, *__: object) -> None:
        if statement.startswith("INSERT INTO runs"):
            has_run.add(cursor.connection)

    def commit_and_break(connection: Any) -> None:
        commit(connection)
        if connection.driver_connection in has_run and not broken:
            broken.append(connection)
            connection.driver_connection.close()
            raise psycopg.errors.AdminShutdown("terminating connection due to administrator command")

    event.listen(live.services.store.database.engine, "before_cursor_execute", see)
    monkeypatch.setattr(dialect, "do_commit", commit_and_break)
    ada.answered(talk)
    assert broken
    assert (counted(server, address, "messages"), counted(server, address, "runs")) == (2, 1)


def test_a_send_that_is_chosen_in_two_deadlocks_is_done_once(
    ada: Person, server: PostgresServer, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    talk = ada.begin()
    waiting = f"SELECT 1 FROM pg_stat_activity WHERE datname = '{name_in(address)}' AND wait_event_type = 'Lock'"
    owner = "SELECT people.id FROM people JOIN conversations ON owner_id = people.id FOR UPDATE OF people"
    with (
        psycopg.connect(address) as other,
        psycopg.connect(server.address(), autocommit=True) as looking,
        ThreadPoolExecutor(2) as pool,
        caplog.at_level(logging.INFO),
    ):
        # Whoever looks first is chosen, and this one never does
        other.execute("SET deadlock_timeout = '60s'")
        other.execute("SELECT id FROM conversations WHERE id = %s FOR UPDATE", (talk,))
        sent = pool.submit(ada.send, talk)
        until(lambda: looking.execute(waiting).fetchall())
        locked = pool.submit(other.execute, owner)
        until(lambda: len(looking.execute(waiting).fetchall()) == 2)
        # It sleeps through the first deadlock, and finds the lock taken by the second try
        os.kill(other.info.backend_pid, signal.SIGSTOP)
        try:
            until(lambda: TRIED_AGAIN in caplog.messages and len(looking.execute(waiting).fetchall()) == 2)
        finally:
            os.kill(other.info.backend_pid, signal.SIGCONT)
        locked.result()
        other.rollback()
        accepted = sent.result()
    assert accepted.status_code == 202, accepted.text
    assert caplog.messages.count(TRIED_AGAIN) >= 2
    assert ada.finish(accepted.json()["run_id"])["state"] == "done"
    assert (counted(server, address, "messages"), counted(server, address, "runs")) == (2, 1)

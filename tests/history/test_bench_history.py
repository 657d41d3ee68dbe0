from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import func, select

from app.accounts.keys import hash_of
from app.config import Settings
from app.history.database import Database
from app.history.search import Indexer, terms
from app.history.tables import ConversationTable, MessageTable, SearchEntryTable
from bench import history
from bench.history_filling import OPENED_MESSAGES, fill
from tests.databases import PostgresServer
from tests.live import serving
from tests.scripted import ScriptedEngine


@contextmanager
def in_this_process(url: str, folder: Path) -> Iterator[str]:
    settings = Settings(data_dir=folder, cache_dir=folder, port=0, database_url=url, secret_key=hash_of("a bench"))  # type: ignore[arg-type]
    with serving(settings, ScriptedEngine()) as live:
        yield live.url


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def test_the_bench_fills_a_database_as_ponder_would(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ponder.sqlite"
    if kind == "postgresql":
        server: PostgresServer = request.getfixturevalue("server")
        url = server.empty()
    assert_as_ponder_would(url, fill(url, 1000, history.REVISION).messages)


def test_the_bench_asks_for_everything_and_gets_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ponder.sqlite"
    filled = fill(url, 1000, history.REVISION)
    figures = history.measure(url, tmp_path / "server", filled, seconds=0.2, serve=in_this_process)
    assert {name: value for name, value in figures.items() if name.endswith("refused") and value} == {}
    assert figures["list p99"] > 0
    assert figures["search: a rare word, thousands kB"] > 0.1  # something is found


def assert_as_ponder_would(url: str, messages: int) -> None:
    """Messages are found by what Ponder would find them by, and shown branches end at a leaf."""
    database = Database(url)
    database.migrate()
    with database.reading() as db:
        assert db.scalar(select(func.count()).select_from(MessageTable)) == messages
        rows = db.execute(
            select(MessageTable.text, MessageTable.reasoning, SearchEntryTable.terms)
            .join(SearchEntryTable, SearchEntryTable.message_id == MessageTable.id)
            .order_by(MessageTable.id)
            .limit(100)
        ).all()
        assert [set(found.split()) for *_, found in rows] == [set(terms(*texts)) for *texts, _ in rows]
        parents = set(db.scalars(select(MessageTable.parent_id)))
        leaves = db.scalars(select(ConversationTable.leaf_id)).all()
        assert leaves
        assert not parents.intersection(leaves)
        sizes = select(func.count(MessageTable.id)).group_by(MessageTable.conversation_id)
        assert OPENED_MESSAGES in db.scalars(sizes).all()
    assert Indexer(database).index_some() == 0
    database.close()

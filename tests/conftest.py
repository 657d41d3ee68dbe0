from collections.abc import Iterator
from pathlib import Path

import pytest

from app.config import Settings
from app.history.database import Database
from app.history.store import Store
from tests.live import LiveServer, serving
from tests.scripted import ScriptedEngine


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings whose files live and die with the test."""
    return Settings(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache", port=0, model="demo")


@pytest.fixture
def store(settings: Settings) -> Iterator[Store]:
    """A real database with all tables."""
    database = Database(settings.resolved_database_url)
    database.migrate()
    yield Store(database)
    database.close()


@pytest.fixture
def engine() -> ScriptedEngine:
    """The engine of `live_server`."""
    return ScriptedEngine()


@pytest.fixture
def live_server(settings: Settings, engine: ScriptedEngine) -> Iterator[LiveServer]:
    """A whole Ponder on a loopback port."""
    with serving(settings, engine) as server:
        yield server

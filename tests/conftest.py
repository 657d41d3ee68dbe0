import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from app.config import Settings
from app.history.database import Database
from app.history.store import Store
from tests.databases import PostgresServer, postgresql
from tests.live import LiveServer, serving
from tests.orphans import leave_no_orphans
from tests.reused import reuse_tables
from tests.scripted import ScriptedEngine

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.chromium import Chromium

# The other core has tests of its own; threads that wait for it spin. Whatever starts here takes it over
os.environ.setdefault("OMP_NUM_THREADS", "1")
leave_no_orphans()
reuse_tables()
# No example is too slow, as on a busy machine each may be; `--hypothesis-profile ci` also draws the same each time
hypothesis_settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("any machine")
# Looking through all that the libraries hold takes a tenth of the suite's time at Python's own pace
gc.set_threshold(50_000, 20, 100)
# Their tests are about what a database takes and when, so whatever uses one runs on both kinds
_ON_BOTH_DATABASES = ("tests/history/", "tests/runs/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest come first: whoever is without work takes over tests, and the last to run should be short."""
    items.sort(key=lambda item: item.get_closest_marker("model") is None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """In two folders whatever uses a database runs on SQLite and on PostgreSQL, unless it says `only_on`."""
    if "database_url" not in metafunc.fixturenames:
        return
    kinds = ["sqlite"]
    if any(folder in metafunc.definition.path.as_posix() for folder in _ON_BOTH_DATABASES):
        kinds.append("postgresql")
    marker = metafunc.definition.get_closest_marker("only_on")
    if marker is not None:
        kinds = [marker.args[0]]
    marks = {"sqlite": (), "postgresql": (pytest.mark.postgresql,)}
    metafunc.parametrize("database_url", [pytest.param(kind, marks=marks[kind]) for kind in kinds], indirect=True)


@pytest.fixture(scope="session")
def server() -> PostgresServer:
    """The PostgreSQL of this process of tests."""
    return postgresql()


@pytest.fixture(scope="session")
def lasting_chromium() -> Iterator["Chromium"]:
    """The browser of this process of tests, for `chromium` to be used."""
    from tests.chromium import Chromium

    lasting = Chromium()
    yield lasting
    lasting.close()


@pytest.fixture(scope="module")
def chromium(lasting_chromium: "Chromium") -> Iterator["Browser"]:
    """Chromium for a module's tests; while it is in use, this thread has an event loop that runs."""
    with lasting_chromium.in_use() as browser:
        yield browser


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings whose files live and die with the test."""
    return Settings(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache", port=0, model="demo")


@pytest.fixture
def database_url(request: pytest.FixtureRequest, settings: Settings) -> Iterator[str]:
    """The address of a database for this test alone. On PostgreSQL it has its tables already, all empty."""
    if request.param == "sqlite":
        yield settings.resolved_database_url
        return
    server = request.getfixturevalue("server")
    address = server.lend()
    yield address
    server.take_back(address)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A real database with all tables."""
    with opened(database_url) as database:
        yield database


@pytest.fixture
def store(database: Database) -> Store:
    """The store on a real database."""
    return Store(database)


@contextmanager
def opened(url: str) -> Iterator[Database]:
    """A database brought up to date, closed at the end."""
    database = Database(url)
    try:
        database.migrate()
        yield database
    finally:
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

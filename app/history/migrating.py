"""Bringing the tables to the newest revision: once, whoever starts; never from a newer one; SQLite copied before."""

from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from app.errors import StorageFailed

MIGRATIONS = Path(__file__).parents[2] / "migrations"


@cache
def head() -> str:
    """The revision this Ponder works with."""
    return ScriptDirectory(str(MIGRATIONS)).get_current_head() or ""


def revision_of(connection: Connection) -> str:
    """The revision the database is at; "" if it has no tables."""
    return MigrationContext.configure(connection).get_current_revision() or ""


def refuse_unknown(revision: str, where: str) -> None:
    """A revision this Ponder has never heard of was made by a newer one.

    Raises:
        StorageFailed: it is such a one; names both.
    """
    if revision and revision not in _known():
        raise StorageFailed(
            f"The database {where} is at revision {revision}, and this Ponder knows them up to {head()}: a newer "
            "Ponder was here. Start that one, or restore a copy from before it: python -m app restore FILE."
        )


@cache
def _known() -> frozenset[str]:
    return frozenset(script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions())


def upgrade(connection: Connection) -> None:
    """Every migration that is missing, in the transaction of `connection`."""
    command.upgrade(config_for(connection), "head")


def config_for(connection: Connection) -> Config:
    """Alembic's settings for working over a connection of ours."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config

"""What tests take over from one another, because making it takes longer than most of them: the page, and empty tables.

Both are made once in a process, by the real code.
"""

import functools
import os
from contextlib import closing
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text

from app.history import migrating
from app.history.database import Database

if TYPE_CHECKING:
    from gradio import Blocks

_migrated = migrating.upgrade
# Tables that FTS5 makes by itself
_OF_FTS5 = ("_data", "_idx", "_docsize", "_config", "_content")


def reuse_tables() -> None:
    """From now on a SQLite database without tables gets those that migrating once has made."""
    migrating.upgrade = _upgrade


def reuse_page() -> None:
    """From now on all apps of this process show the same Blocks by the same app of Gradio's."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from gradio.routes import App

    from app.ui import page

    if hasattr(page.build_page, "cache_info"):
        return
    page.build_page = functools.cache(page.build_page)
    create, made = App.create_app, {}

    def created(blocks: "Blocks", **more: Any) -> App:
        # Blocks make one for themselves too, before they have their theme
        if "parent_app" not in more:
            return create(blocks, **more)
        if blocks not in made:
            made[blocks] = create(blocks, **more)
        return made[blocks]

    App.create_app = staticmethod(created)


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name != "sqlite" or migrating.revision_of(connection):
        _migrated(connection)
        return
    for statement in _tables():
        connection.exec_driver_sql(statement)
    connection.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": migrating.head()})


@functools.cache
def _tables() -> tuple[str, ...]:
    """What makes the tables of the newest revision."""
    with closing(Database("sqlite://")) as database, database.engine.connect() as connection:
        _migrated(connection)
        made = connection.exec_driver_sql("SELECT name, tbl_name, sql FROM sqlite_master ORDER BY rowid").all()
        names = {name for name, _, sql in made if sql and sql.startswith("CREATE VIRTUAL TABLE")}
        for name, table, _ in made:
            is_left_out = table != name or table == "alembic_version" or _is_of_fts5(name, names)
            assert is_left_out or not connection.exec_driver_sql(f'SELECT 1 FROM "{name}"').first(), table
    return tuple(sql for name, _, sql in made if sql and not _is_of_fts5(name, names))


def _is_of_fts5(name: str, tables: set[str]) -> bool:
    return any(name == f"{table}{ending}" for table in tables for ending in _OF_FTS5)

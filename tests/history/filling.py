"""Rows for whatever tables a database has, so that a migration meets data without its test knowing the tables."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import JSON, Boolean, Column, Connection, DateTime, Float, Integer, MetaData, String, Table, insert
from sqlalchemy import select as select_rows

ROWS = 40
# Which rules a conversation was indexed by: a step that changes the search begins anew
_DERIVED = frozenset({"search_version"})
_MOMENT = datetime(2026, 3, 1, 23, 59, 59, 123456, tzinfo=UTC)


def tables_of(connection: Connection) -> list[Table]:
    """The tables as they are now, those first that others refer to; without the search's own."""
    metadata = MetaData()
    metadata.reflect(connection, only=lambda name, _: not name.startswith(("search_terms", "alembic")))
    return metadata.sorted_tables


def fill(connection: Connection) -> None:
    """Rows in every table: every column has a value, every reference is one."""
    filled: dict[str, list[dict[str, Any]]] = {}
    for table in tables_of(connection):
        rows = filled[table.name] = []
        for index in range(ROWS):
            rows.append({column.name: _value(column, index, filled) for column in table.columns})
            connection.execute(insert(table), [rows[-1]])


def contents(connection: Connection, columns: dict[str, set[str]] | None = None) -> dict[str, tuple[int, str]]:
    """How many rows each table has, and a hash of what is in them; only these `columns`, if they are given."""
    found = {}
    for table in tables_of(connection):
        if columns is not None and table.name not in columns:
            continue
        chosen = [
            column
            for column in table.columns
            if (columns is None or column.name in columns[table.name]) and column.name not in _DERIVED
        ]
        chosen.sort(key=lambda column: column.name)
        rows = sorted(repr([_comparable(value) for value in row]) for row in connection.execute(select_rows(*chosen)))
        found[table.name] = (len(rows), hashlib.sha256("\n".join(rows).encode()).hexdigest())
    return found


def columns_of(connection: Connection) -> dict[str, set[str]]:
    """The names of all columns."""
    return {table.name: {column.name for column in table.columns} for table in tables_of(connection)}


def _value(column: Column[Any], index: int, filled: dict[str, list[dict[str, Any]]]) -> Any:
    for key in column.foreign_keys:
        table, _, name = key.target_fullname.rpartition(".")
        if table == column.table.name:  # a tree: each row hangs on one that is there
            return filled[table][index // 2][name] if index else None
        return filled[table][index][name]
    kind = column.type
    if isinstance(kind, Boolean):
        return index % 2 == 0
    if isinstance(kind, Integer):
        return index + 1
    if isinstance(kind, Float):
        return index + 0.25
    if isinstance(kind, DateTime):
        return _MOMENT + timedelta(minutes=index, microseconds=index)
    if isinstance(kind, JSON):
        return {"index": index, "text": "ä漢"}
    assert isinstance(kind, String), kind
    # Also its beginning and its end alone tell the rows apart, as they do with what is random
    length = kind.length or 100
    return f"{index:03}-{column.name}-{'ä漢🙂' * 30}"[: length - 3] + f"{index:03}"


def _comparable(value: Any) -> Any:
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    return value

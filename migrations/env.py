"""Alembic's way in: migrates over the connection that the app hands over."""

from alembic import context

from app.history.tables import Table

connection = context.config.attributes["connection"]


def _is_compared(_object: object, name: str | None, kind: str, _is_reflected: bool, _compared_to: object) -> bool:
    # The index of the search has another shape on each database; its migration alone makes it
    return kind not in ("table", "index") or not (name or "").startswith(("search_terms", "ix_search_terms"))


context.configure(
    connection=connection,
    target_metadata=Table.metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    compare_type=True,
    include_object=_is_compared,
)
with context.begin_transaction():
    context.run_migrations()

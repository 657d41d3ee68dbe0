"""what messages and titles are found by; rows come later, in the background

FTS5 on SQLite, GIN on PostgreSQL, over the same terms. What begins with `search_terms` or `ix_search_terms` is made
here alone and left out where tables and migrations are compared.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_TITLE = sa.text("message_id IS NULL")

# "@" and the owner is a term like the others: the rows of others are never walked through.
# Tokens end at spaces alone: of ASCII come letters and digits, already folded, and the marks named here.
_SQLITE = (
    "CREATE VIEW search_terms_source AS SELECT id, '@' || owner_id || ' ' || terms AS terms FROM search_entries",
    """CREATE VIRTUAL TABLE search_terms USING fts5(
        terms, content='search_terms_source', content_rowid='id', detail='none', columnsize=0,
        tokenize="ascii tokenchars '@^+#'"
    )""",
    """CREATE TRIGGER search_terms_insert AFTER INSERT ON search_entries BEGIN
        INSERT INTO search_terms (rowid, terms) VALUES (new.id, '@' || new.owner_id || ' ' || new.terms);
    END""",
    """CREATE TRIGGER search_terms_delete AFTER DELETE ON search_entries BEGIN
        INSERT INTO search_terms (search_terms, rowid, terms)
        VALUES ('delete', old.id, '@' || old.owner_id || ' ' || old.terms);
    END""",
    """CREATE TRIGGER search_terms_update AFTER UPDATE ON search_entries BEGIN
        INSERT INTO search_terms (search_terms, rowid, terms)
        VALUES ('delete', old.id, '@' || old.owner_id || ' ' || old.terms);
        INSERT INTO search_terms (rowid, terms) VALUES (new.id, '@' || new.owner_id || ' ' || new.terms);
    END""",
)
# New rows wait in a list until there are enough of them; every search reads the list, so it is a short one
_POSTGRESQL = (
    """CREATE INDEX ix_search_terms ON search_entries
        USING gin (array_to_tsvector(string_to_array('@' || owner_id || ' ' || terms, ' ')))
        WITH (gin_pending_list_limit = 256)""",
)


def upgrade() -> None:
    op.create_table(
        "search_entries",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("owner_id", sa.String(length=32), nullable=False),
        sa.Column("conversation_id", sa.String(length=32), nullable=False),
        sa.Column("message_id", sa.String(length=32), nullable=True),
        sa.Column("terms", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["conversation_id"],
            ["conversations.id"],
            name="fk_search_entries_conversation_id_conversations",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["message_id"], ["messages.id"], name="fk_search_entries_message_id_messages", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_search_entries"),
        sa.UniqueConstraint("message_id", name="uq_search_entries_message_id"),
    )
    op.create_index("ix_search_entries_owner", "search_entries", ["owner_id", "id"])
    op.create_index("ix_search_entries_conversation_id", "search_entries", ["conversation_id"])
    op.create_index(
        "uq_search_entries_title",
        "search_entries",
        ["conversation_id"],
        unique=True,
        sqlite_where=_TITLE,
        postgresql_where=_TITLE,
    )
    for statement in _SQLITE if op.get_bind().dialect.name == "sqlite" else _POSTGRESQL:
        op.execute(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TABLE search_terms")
        op.execute("DROP VIEW search_terms_source")
    op.drop_table("search_entries")
    op.execute("UPDATE conversations SET search_version = 0")

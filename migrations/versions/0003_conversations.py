"""pinned, archived, deleted conversations; an order that no clock can turn"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_PRESENT = sa.text("deleted_at IS NULL")
_DELETED = sa.text("deleted_at IS NOT NULL")


def upgrade() -> None:
    # Plain ADD COLUMN: making `conversations` anew would drop it, and dropping it deletes what hangs on it
    for column in (
        sa.Column("is_pinned", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("is_archived", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("recency", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("version", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("search_version", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("deletion_id", sa.String(length=32), nullable=True),
    ):
        op.add_column("conversations", column)
    op.add_column("messages", sa.Column("is_imported", sa.Boolean(), nullable=False, server_default=sa.false()))
    if op.get_bind().dialect.name == "sqlite":
        seconds, rest = "strftime('%s', updated_at)", "substr(updated_at || '000000', 21, 6)"
        micros = f"CAST({seconds} AS INTEGER) * 1000000 + CAST({rest} AS INTEGER)"
    else:
        micros = "CAST(EXTRACT(EPOCH FROM updated_at) * 1000000 AS BIGINT)"
    op.execute(f"UPDATE conversations SET recency = {micros}")  # noqa: S608 — nothing in it comes from outside
    op.drop_index("ix_conversations_owner_newest", "conversations")
    op.create_index(
        "ix_conversations_list",
        "conversations",
        ["owner_id", "is_archived", "is_pinned", "recency", "id"],
        sqlite_where=_PRESENT,
        postgresql_where=_PRESENT,
    )
    op.create_index(
        "ix_conversations_deleted",
        "conversations",
        ["deleted_at"],
        sqlite_where=_DELETED,
        postgresql_where=_DELETED,
    )
    op.create_index("ix_conversations_search_version", "conversations", ["search_version"])


def downgrade() -> None:
    # What was deleted does not come back with an older version that knows nothing of it
    op.execute("DELETE FROM conversations WHERE deleted_at IS NOT NULL")
    op.drop_index("ix_conversations_search_version", "conversations")
    op.drop_index("ix_conversations_deleted", "conversations")
    op.drop_index("ix_conversations_list", "conversations")
    op.create_index("ix_conversations_owner_newest", "conversations", ["owner_id", "updated_at", "id"])
    op.drop_column("messages", "is_imported")
    for name in ("deletion_id", "deleted_at", "search_version", "version", "recency", "is_archived", "is_pinned"):
        op.drop_column("conversations", name)

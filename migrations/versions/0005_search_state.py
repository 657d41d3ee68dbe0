"""whether anything waits for the search: asked of what is there alone, and not of what an import has yet to show"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_NAME = "ix_conversations_search_version"
_PRESENT = sa.text("deleted_at IS NULL")


def upgrade() -> None:
    op.drop_index(_NAME, "conversations")
    op.create_index(_NAME, "conversations", ["search_version"], sqlite_where=_PRESENT, postgresql_where=_PRESENT)


def downgrade() -> None:
    op.drop_index(_NAME, "conversations")
    op.create_index(_NAME, "conversations", ["search_version"])

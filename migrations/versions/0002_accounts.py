"""accounts, identities, recovery codes, counters, usage"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None

_ID = sa.String(length=32)
_MOMENT = sa.DateTime(timezone=True)
_OPEN = sa.text("state IN ('queued', 'running')")


def upgrade() -> None:
    # Plain ADD COLUMN: making `people` anew would drop it, and dropping it deletes what hangs on it
    for column in (
        sa.Column("username", sa.String(length=64), nullable=True),
        sa.Column("username_key", sa.String(length=64), nullable=True),
        sa.Column("display_name", sa.String(length=64), nullable=False, server_default=""),
        sa.Column("password_hash", sa.String(length=200), nullable=True),
        sa.Column("is_admin", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("is_disabled", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("runs_per_day", sa.Integer(), nullable=True),
        sa.Column("settings", sa.JSON(), nullable=False, server_default="{}"),
        sa.Column("notice_version", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("notice_accepted_at", _MOMENT, nullable=True),
    ):
        op.add_column("people", column)
    op.create_index("ix_people_username_key", "people", ["username_key"], unique=True)

    op.add_column("sessions", sa.Column("id", _ID, nullable=True))
    op.add_column("sessions", sa.Column("agent", sa.String(length=80), nullable=False, server_default=""))
    op.add_column("sessions", sa.Column("last_seen_at", _MOMENT, nullable=True))
    op.add_column("sessions", sa.Column("verified_at", _MOMENT, nullable=True))
    # The end of the hash says nothing about the token, and no two are equal
    # Nobody knows when they were here last: as of now, or the first purge takes guests who came this morning
    op.execute("UPDATE sessions SET id = substr(token_hash, 33, 32), last_seen_at = CURRENT_TIMESTAMP")
    with op.batch_alter_table("sessions") as batch:
        batch.alter_column("id", existing_type=_ID, nullable=False)
        batch.alter_column("last_seen_at", existing_type=_MOMENT, nullable=False)
    op.create_index("ix_sessions_id", "sessions", ["id"], unique=True)
    op.create_index("ix_sessions_last_seen_at", "sessions", ["last_seen_at"])

    op.create_index("ix_runs_conversation_id", "runs", ["conversation_id"])
    op.drop_index("ix_runs_open", "runs")
    op.create_index("ix_runs_open", "runs", ["state", "owner_id"], sqlite_where=_OPEN, postgresql_where=_OPEN)

    op.create_table(
        "identities",
        sa.Column("id", _ID, nullable=False),
        sa.Column("person_id", _ID, nullable=False),
        sa.Column("issuer", sa.String(length=255), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("provider", sa.String(length=64), nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["person_id"], ["people.id"], name=op.f("fk_identities_person_id_people"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_identities")),
        sa.UniqueConstraint("issuer", "subject", name="uq_identities_issuer_subject"),
    )
    op.create_index("ix_identities_person_id", "identities", ["person_id"])
    op.create_table(
        "recovery_codes",
        sa.Column("code_hash", sa.String(length=64), nullable=False),
        sa.Column("person_id", _ID, nullable=False),
        sa.ForeignKeyConstraint(
            ["person_id"], ["people.id"], name=op.f("fk_recovery_codes_person_id_people"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("code_hash", name=op.f("pk_recovery_codes")),
    )
    op.create_index("ix_recovery_codes_person_id", "recovery_codes", ["person_id"])
    op.create_table(
        "counters",
        sa.Column("key", sa.String(length=200), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_counters")),
    )
    op.create_index("ix_counters_expires_at", "counters", ["expires_at"])
    counts = ("runs", "done", "stopped", "failed", "interrupted", "reasoning_tokens", "answer_tokens")
    op.create_table(
        "usage",
        sa.Column("day", sa.String(length=10), nullable=False),
        sa.Column("person_id", _ID, nullable=False),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in counts),
        sa.PrimaryKeyConstraint("day", "person_id", name=op.f("pk_usage")),
    )
    op.create_index("ix_usage_person_id", "usage", ["person_id"])


def downgrade() -> None:
    for table in ("usage", "counters", "recovery_codes", "identities"):
        op.drop_table(table)
    op.drop_index("ix_runs_open", "runs")
    op.drop_index("ix_runs_conversation_id", "runs")
    op.create_index("ix_runs_open", "runs", ["state"], sqlite_where=_OPEN, postgresql_where=_OPEN)
    op.drop_index("ix_sessions_last_seen_at", "sessions")
    op.drop_index("ix_sessions_id", "sessions")
    for name in ("verified_at", "last_seen_at", "agent", "id"):
        op.drop_column("sessions", name)
    # Accounts would come back as guests that nobody can reach; their rows stay, as nothing else says what they own
    op.drop_index("ix_people_username_key", "people")
    for name in (
        "notice_accepted_at",
        "notice_version",
        "settings",
        "runs_per_day",
        "is_disabled",
        "is_admin",
        "password_hash",
        "display_name",
        "username_key",
        "username",
    ):
        op.drop_column("people", name)

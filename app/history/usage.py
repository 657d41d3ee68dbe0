"""What people used, in numbers: for quotas, and for the admin, who sees nothing else."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from app.errors import NotFound, QuotaUsedUp, TooManyRuns
from app.history.database import Database
from app.history.states import FINAL_STATES, OPEN_STATES
from app.history.tables import (
    ConversationTable,
    MessageTable,
    PersonTable,
    RunTable,
    SessionTable,
    UsageTable,
)

_COUNTS = ("runs", *FINAL_STATES, "reasoning_tokens", "answer_tokens")


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much a person may ask; None means as much as they like."""

    runs_at_once: int | None = None
    runs_per_day: int | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """A person in the admin's list."""

    id: str
    kind: str
    name: str
    is_admin: bool
    is_disabled: bool
    created_at: datetime
    last_seen_at: datetime | None
    conversation_count: int
    runs_today: int
    runs_per_day: int | None


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that waits or goes on, for the admin."""

    id: str
    person_id: str
    name: str
    kind: str
    state: str
    effort: str
    usage: dict[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Totals:
    """What there is in all."""

    accounts: int
    guests: int
    disabled: int
    conversations: int
    messages: int
    sessions: int


def day_of(moment: datetime) -> str:
    """The day (UTC) that quotas and usage are counted by."""
    return moment.strftime("%Y-%m-%d")


def count_usage(db: Session, person_id: str, moment: datetime, **counts: int) -> None:
    """Add to a person's day, inside the transaction of what is counted."""
    dialect = sqlite if db.get_bind().dialect.name == "sqlite" else postgresql
    row = {"day": day_of(moment), "person_id": person_id, **dict.fromkeys(_COUNTS, 0), **counts}
    added = {name: getattr(UsageTable, name) + value for name, value in counts.items()}
    db.execute(
        dialect.insert(UsageTable).values(row).on_conflict_do_update(index_elements=["day", "person_id"], set_=added)
    )


def move_usage(db: Session, from_id: str, to_id: str) -> None:
    """Add one person's numbers to another's; "" stands for people who are gone."""
    for row in db.scalars(select(UsageTable).where(UsageTable.person_id == from_id)).all():
        day = datetime.strptime(row.day, "%Y-%m-%d")
        count_usage(db, to_id, day, **{name: getattr(row, name) for name in _COUNTS})
    db.execute(delete(UsageTable).where(UsageTable.person_id == from_id))


def refuse_too_much(db: Session, person_id: str, allowance: Allowance, moment: datetime) -> None:
    """Check a person's allowance in the transaction that accepts one more run.

    Raises:
        TooManyRuns, QuotaUsedUp: one more is too much.
    """
    if allowance.runs_at_once is not None:
        at_once = db.scalar(
            select(func.count())
            .select_from(RunTable)
            .where(RunTable.owner_id == person_id, RunTable.state.in_(OPEN_STATES))
        )
        refuse_too_many_at_once(at_once or 0, allowance)
    if allowance.runs_per_day is not None and runs_on(db, person_id, moment) >= allowance.runs_per_day:
        midnight = (moment + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        raise QuotaUsedUp(
            f"You have asked your {allowance.runs_per_day} questions of today. Come back tomorrow (UTC).",
            limit=allowance.runs_per_day,
            retry_after_s=int((midnight - moment).total_seconds()) + 1,
        )


def refuse_too_many_at_once(at_once: int, allowance: Allowance) -> None:
    """Whether one more may run or wait beside those that do.

    Raises:
        TooManyRuns: it may not.
    """
    if allowance.runs_at_once is not None and at_once >= allowance.runs_at_once:
        raise TooManyRuns(
            f"{allowance.runs_at_once} of your questions are being answered or wait already. "
            "Wait for one of them, or stop it.",
            limit=allowance.runs_at_once,
        )


def runs_on(db: Session, person_id: str, moment: datetime) -> int:
    """How many runs a person began on a day."""
    return (
        db.scalar(select(UsageTable.runs).where(UsageTable.person_id == person_id, UsageTable.day == day_of(moment)))
        or 0
    )


class Usage:
    """The admin's queries: people, numbers, open runs; never a text. Synchronous; raises `StorageFailed` throughout."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def runs_today(self, person_id: str, moment: datetime) -> int:
        """How many runs a person began today."""
        with self.database.reading() as db:
            return runs_on(db, person_id, moment)

    def members(
        self, moment: datetime, *, search: str = "", cursor: str | None = None, limit: int = 50, person_id: str = ""
    ) -> tuple[list[Member], str | None]:
        """People, newest first; the cursor for the next page, None at the end. `search` is folded as usernames are.

        Raises:
            NotFound: the cursor is none of ours.
        """
        query = select(PersonTable).order_by(PersonTable.created_at.desc(), PersonTable.id.desc()).limit(limit + 1)
        if person_id:
            query = query.where(PersonTable.id == person_id)
        if search:
            shown = func.lower(PersonTable.display_name)
            query = query.where(
                PersonTable.username_key.contains(search, autoescape=True) | shown.contains(search, autoescape=True)
            )
        with self.database.reading() as db:
            if cursor is not None:
                last = db.get(PersonTable, cursor)
                if last is None:
                    raise NotFound("This page of the list is not here.")
                query = query.where(
                    (PersonTable.created_at < last.created_at)
                    | ((PersonTable.created_at == last.created_at) & (PersonTable.id < last.id))
                )
            rows = db.scalars(query).all()
            found = _members(db, list(rows[:limit]), moment)
        return found, found[-1].id if len(rows) > limit else None

    def change(self, person_id: str, changes: dict[str, Any]) -> None:
        """Change a person's role, quota or standing. A new role or being disabled ends an account's sessions; a guest's
        is all they have, and is refused while they are disabled.

        Raises:
            NotFound: they are gone.
        """
        with self.database.writing() as db:
            row = db.get(PersonTable, person_id)
            if row is None:
                raise NotFound("This person is not here.")
            was = (row.is_admin, row.is_disabled)
            for name, value in changes.items():
                setattr(row, name, value)
            if (row.is_admin, row.is_disabled) != was and row.kind == "account":
                db.execute(delete(SessionTable).where(SessionTable.person_id == person_id))

    def open_runs(self) -> list[OpenRun]:
        """What waits or goes on, the oldest first."""
        query = (
            select(RunTable, PersonTable)
            .join(PersonTable, PersonTable.id == RunTable.owner_id)
            .where(RunTable.state.in_(OPEN_STATES))
            .order_by(RunTable.created_at)
        )
        with self.database.reading() as db:
            return [
                OpenRun(
                    id=run.id,
                    person_id=person.id,
                    name=person.username or person.display_name,
                    kind=person.kind,
                    state=run.state,
                    effort=run.effort,
                    usage=run.usage,
                    created_at=run.created_at,
                )
                for run, person in db.execute(query)
            ]

    def totals(self) -> Totals:
        """What there is in all."""
        with self.database.reading() as db:
            kinds = dict(db.execute(select(PersonTable.kind, func.count()).group_by(PersonTable.kind)).all())
            disabled = db.scalar(select(func.count()).where(PersonTable.is_disabled.is_(True)))
            counts = [
                db.scalar(select(func.count()).select_from(table)) or 0
                for table in (ConversationTable, MessageTable, SessionTable)
            ]
        return Totals(kinds.get("account", 0), kinds.get("guest", 0), disabled or 0, *counts)

    def days(self, limit: int = 30) -> list[dict[str, Any]]:
        """Usage by day, newest first; `people` is how many asked something."""
        sums = [func.sum(getattr(UsageTable, name)).label(name) for name in _COUNTS]
        query = (
            select(UsageTable.day, func.count().label("people"), *sums)
            .group_by(UsageTable.day)
            .order_by(UsageTable.day.desc())
            .limit(limit)
        )
        with self.database.reading() as db:
            return [dict(row._mapping) for row in db.execute(query)]


def _members(db: Session, rows: list[PersonTable], moment: datetime) -> list[Member]:
    ids = [row.id for row in rows]
    seen = dict(
        db.execute(
            select(SessionTable.person_id, func.max(SessionTable.last_seen_at))
            .where(SessionTable.person_id.in_(ids))
            .group_by(SessionTable.person_id)
        ).all()
    )
    chats = dict(
        db.execute(
            select(ConversationTable.owner_id, func.count())
            .where(ConversationTable.owner_id.in_(ids), ConversationTable.deleted_at.is_(None))
            .group_by(ConversationTable.owner_id)
        ).all()
    )
    runs = dict(
        db.execute(
            select(UsageTable.person_id, UsageTable.runs).where(
                UsageTable.person_id.in_(ids), UsageTable.day == day_of(moment)
            )
        ).all()
    )
    return [
        Member(
            id=row.id,
            kind=row.kind,
            name=row.username or row.display_name,
            is_admin=row.is_admin,
            is_disabled=row.is_disabled,
            created_at=row.created_at,
            last_seen_at=seen.get(row.id),
            conversation_count=chats.get(row.id, 0),
            runs_today=runs.get(row.id, 0),
            runs_per_day=row.runs_per_day,
        )
        for row in rows
    ]

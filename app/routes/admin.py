"""What an admin sees and does: people, numbers, quotas, running runs. Never the text of a conversation."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool

from app.accounts.names import username_key
from app.errors import BadRequest, NotFound, NotYourself
from app.history.people import Caller
from app.history.store import now
from app.history.usage import Member, OpenRun
from app.routes.access import Admin, Services, Serving
from app.routes.me import delete_person

router = APIRouter(prefix="/api/admin")


class PersonChanges(BaseModel):
    """`PATCH /api/admin/people/{id}`; an own quota of null is the settings' one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    is_disabled: StrictBool | None = None
    is_admin: StrictBool | None = None
    runs_per_day: int | None = Field(default=None, ge=0, le=1_000_000)


@router.get("/people")
def list_people(
    admin: Admin,
    serving: Serving,
    q: Annotated[str, Query(max_length=200)] = "",
    cursor: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> dict[str, Any]:
    """Everybody, newest first."""
    found, next_cursor = serving.usage.members(now(), search=username_key(q), cursor=cursor, limit=limit)
    return {"items": [_member(member, admin) for member in found], "next_cursor": next_cursor}


@router.patch("/people/{person_id}")
async def change_person(person_id: str, changes: PersonChanges, admin: Admin, serving: Serving) -> dict[str, Any]:
    """Disable, enable, give a role or a quota. Role and disabling end the person's sessions."""
    member = _one(serving, person_id)
    given = changes.model_dump(exclude_unset=True)
    given = {name: value for name, value in given.items() if value is not None or name == "runs_per_day"}
    if {"is_disabled", "is_admin"} & given.keys():
        _refuse_oneself(admin, person_id)
    if given.get("is_admin") is not None:
        serving.sessions.require_recent(admin)
        if member.kind == "guest":
            raise BadRequest("is_admin cannot be used: a guest has no password to be an admin with.")
    await asyncio.to_thread(serving.usage.change, person_id, given)
    if given.get("is_disabled"):
        await serving.runs.stop_all_of(person_id)
    return _member(_one(serving, person_id), admin)


@router.delete("/people/{person_id}", status_code=204)
async def delete_somebody(person_id: str, admin: Admin, serving: Serving) -> Response:
    """Remove a person with everything they have here."""
    _one(serving, person_id)
    _refuse_oneself(admin, person_id)
    serving.sessions.require_recent(admin)
    await delete_person(serving, person_id)
    return Response(status_code=204)


@router.get("/usage")
def usage(_: Admin, serving: Serving) -> dict[str, Any]:
    """What there is and what was asked, in numbers."""
    totals = serving.usage.totals()
    return {
        "people": {"accounts": totals.accounts, "guests": totals.guests, "disabled": totals.disabled},
        "conversations": totals.conversations,
        "messages": totals.messages,
        "sessions": totals.sessions,
        "database_bytes": serving.store.database.size_bytes(),
        "model": _model(serving),
        "days": serving.usage.days(),
    }


@router.get("/quotas")
async def quotas(_: Admin, serving: Serving) -> dict[str, int]:
    """The quotas of the settings; 0 is without a limit."""
    settings = serving.settings
    return {
        "guest_runs_per_day": settings.guest_runs_per_day,
        "account_runs_per_day": settings.account_runs_per_day,
        "guest_runs_at_once": settings.guest_runs_at_once,
        "account_runs_at_once": settings.account_runs_at_once,
    }


@router.get("/runs")
async def list_runs(_: Admin, serving: Serving) -> dict[str, Any]:
    """What waits or goes on."""
    return {"items": [_open_run(serving, run) for run in serving.usage.open_runs()]}


@router.post("/runs/{run_id}/stop", status_code=202)
async def stop_run(run_id: str, _: Admin, serving: Serving) -> dict[str, Any]:
    """Stop somebody's run; what it has written is kept for them."""
    run = next((run for run in serving.usage.open_runs() if run.id == run_id), None)
    # One whose chat was deleted, or a temporary one, is in memory alone
    was_live = await serving.runs.stop_any(run_id)
    if run is None and not was_live:
        raise NotFound("This run is not here, or is over.")
    return _open_run(serving, run) if run is not None else {"id": run_id, "state": "stopped"}


def _model(serving: Services) -> dict[str, Any]:
    """Which model answers, and how: the way its steps are taken, with what the self-test took back."""
    status, profile = serving.engine.status, serving.engine.profile
    return {
        "title": profile.title if profile else None,
        "state": status.state,
        "stage": status.stage,
        "problem": " ".join(sentence for sentence in (status.problem, status.remedy) if sentence),
        "way": status.way,
    }


def _one(serving: Services, person_id: str) -> Member:
    found, _ = serving.usage.members(now(), person_id=person_id)
    if not found:
        raise NotFound("This person is not here.")
    return found[0]


def _refuse_oneself(admin: Caller, person_id: str) -> None:
    if admin.person_id == person_id:
        raise NotYourself("You cannot do this to yourself: nobody might be left to look after this server.")


def _member(member: Member, admin: Caller) -> dict[str, Any]:
    return {
        "id": member.id,
        "is_yourself": member.id == admin.person_id,
        "kind": member.kind,
        "name": member.name,
        "is_admin": member.is_admin,
        "is_disabled": member.is_disabled,
        "created_at": member.created_at.isoformat(),
        "last_seen_at": member.last_seen_at.isoformat() if member.last_seen_at else None,
        "conversation_count": member.conversation_count,
        "runs_today": member.runs_today,
        "runs_per_day": member.runs_per_day,
    }


def _open_run(serving: Services, run: OpenRun) -> dict[str, Any]:
    return {
        "id": run.id,
        "person_id": run.person_id,
        "name": run.name,
        "kind": run.kind,
        "state": run.state,
        "place": serving.runs.place(run.id),
        "created_at": run.created_at.isoformat(),
        "effort": run.effort,
        "reasoning_tokens": run.usage.get("reasoning_tokens", 0),
        "answer_tokens": run.usage.get("answer_tokens", 0),
        "elapsed_s": round((now() - run.created_at).total_seconds(), 1),
    }

"""The person's own page: who they are here, their settings, their sessions, and leaving."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.accounts import names, passwords
from app.accounts.settings import PersonSettings, settings_of
from app.config import Settings
from app.errors import Disabled, SignedOut
from app.history.people import Caller
from app.history.store import now
from app.routes.access import (
    Account,
    MaybeCaller,
    Services,
    Serving,
    SomeCaller,
    allowance_of,
    caller_or_none,
    new_guest,
    set_cookie,
)

router = APIRouter(prefix="/api/me")
# Raise it when the notice says something new: everybody is shown it once more
NOTICE_VERSION = 1


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Changes(_Body):
    """`PATCH /api/me`."""

    settings: PersonSettings | None = None
    notice_version: int | None = Field(default=None, ge=1, le=NOTICE_VERSION)


@router.get("")
async def get_me(request: Request, response: Response, serving: Serving) -> dict[str, Any]:
    """Who the caller is here; never fails for want of a cookie."""
    try:
        found = await caller_or_none(request, serving)
    except SignedOut:
        # The cookie is left: another tab may have a new one already, which this answer would take away
        return me_json(serving, None, was_signed_out=True)
    except Disabled:
        return me_json(serving, None)
    if found is not None:
        agent = request.headers.get("user-agent", "")
        token = await asyncio.to_thread(serving.sessions.renewed_guest, found, agent)
        if token is not None:
            set_cookie(request, response, serving.settings, token)
    return me_json(serving, found)


@router.patch("")
def change_me(
    changes: Changes, request: Request, response: Response, found: MaybeCaller, serving: Serving
) -> dict[str, Any]:
    """Change settings, or accept the notice; whoever is unknown becomes a guest."""
    caller = found or new_guest(request, response, serving)
    settings = changes.settings.model_dump(exclude_unset=True) if changes.settings else {}
    serving.people.change_settings(caller.person_id, settings, changes.notice_version)
    return me_json(serving, caller)


@router.delete("", status_code=204)
async def delete_me(request: Request, caller: SomeCaller, serving: Serving) -> Response:
    """Remove the person with everything they have here."""
    serving.sessions.require_recent(caller)
    await delete_person(serving, caller.person_id)
    response = Response(status_code=204)
    set_cookie(request, response, serving.settings, "")
    return response


@router.get("/sessions")
async def list_sessions(caller: Account, serving: Serving) -> dict[str, Any]:
    """Where the person is signed in."""
    return {
        "items": [
            {
                "id": session.id,
                "agent": session.agent,
                "created_at": session.created_at.isoformat(),
                "last_seen_at": session.last_seen_at.isoformat(),
                "is_current": session.id == caller.session_id,
            }
            for session in serving.people.sessions(caller.person_id)
        ]
    }


@router.delete("/sessions/{session_id}", status_code=204)
def end_session(session_id: str, caller: Account, serving: Serving) -> Response:
    """Sign one browser out."""
    serving.people.end_session(caller.person_id, session_id)
    return Response(status_code=204)


@router.delete("/identities/{identity_id}", status_code=204)
def unlink_identity(identity_id: str, caller: Account, serving: Serving) -> Response:
    """Take a provider away, unless it is the last way in."""
    serving.sessions.require_recent(caller)
    serving.people.unlink(caller.person_id, identity_id, serving.sessions.usable_providers)
    return Response(status_code=204)


async def delete_person(serving: Services, person_id: str) -> None:
    """Stop what the person has running, then remove them; what began in between ends too."""
    await serving.runs.stop_all_of(person_id)
    await asyncio.to_thread(serving.people.delete, person_id)
    await serving.runs.stop_all_of(person_id)
    await asyncio.to_thread(serving.history.temporary.end_all_of, person_id)
    serving.removal.forget_soon()


def me_json(serving: Services, caller: Caller | None, *, was_signed_out: bool = False) -> dict[str, Any]:
    """What the page knows of the person and of the server it is on."""
    shown: dict[str, Any] = {
        "kind": "nobody",
        "name": "",
        "is_admin": False,
        "was_signed_out": was_signed_out,
        "has_username": False,
        "has_password": False,
        "is_recent": False,
        "recovery_codes_left": 0,
        "identities": [],
        "conversation_count": 0,
        "notice_version": 0,
        "settings": PersonSettings().model_dump(),
        "quota": None,
        "site": _site(serving.settings),
    }
    return shown if caller is None else shown | _known(serving, caller)


def _known(serving: Services, caller: Caller) -> dict[str, Any]:
    person = serving.people.person(caller.person_id)
    labels = {provider.name: provider.label for provider in serving.settings.providers}
    allowance = allowance_of(caller, serving.settings)
    return {
        "kind": person.kind,
        "name": person.name,
        "is_admin": person.is_admin,
        "has_username": bool(person.username),
        "has_password": person.has_password,
        "is_recent": serving.sessions.is_recent(caller),
        "recovery_codes_left": person.recovery_codes,
        "identities": [
            {
                "id": identity.id,
                "provider": identity.provider,
                "label": labels.get(identity.provider, identity.provider),
                "added_at": identity.created_at.isoformat(),
            }
            for identity in serving.people.identities(caller.person_id)
        ],
        "conversation_count": person.conversation_count,
        "notice_version": person.notice_version,
        "settings": settings_of(person.settings).model_dump(),
        "quota": {
            "runs_per_day": allowance.runs_per_day,
            "runs_today": serving.usage.runs_today(caller.person_id, now()),
            "runs_at_once": allowance.runs_at_once,
        },
    }


def _site(settings: Settings) -> dict[str, Any]:
    return {
        "guests": settings.guests,
        "registration": settings.registration,
        "guest_days": settings.guest_days,
        "min_username_chars": names.SHORTEST,
        "min_password_chars": passwords.SHORTEST,
        "notice_version": NOTICE_VERSION,
        "operator": settings.operator,
        "engine_place": "here",
        "providers": [{"name": provider.name, "label": provider.label} for provider in settings.providers],
        "is_on_spaces": settings.is_on_spaces,
        "base_url": settings.public_url,
    }

"""Signing up, in and out with a name and a password."""

import asyncio
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.errors import BadRequest, NotFound, RegistrationClosed
from app.history.people import Caller
from app.history.store import now
from app.routes.access import Account, Address, CallerIfAny, Services, Serving, set_cookie
from app.routes.me import me_json

router = APIRouter(prefix="/auth")
# Above our own limits, so that ours give the words; far below what would cost anything
Typed = Annotated[str, StringConstraints(max_length=2000)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SignIn(_Body):
    """`POST /auth/register` and `/auth/login`."""

    username: Typed
    password: Typed
    claim_guest: bool = False


class Recovery(_Body):
    """`POST /auth/recover`."""

    username: Typed
    code: Typed
    password: Typed
    claim_guest: bool = False


class SignOut(_Body):
    """`POST /auth/logout`."""

    everywhere: bool = False
    ended: bool = False


class NewPassword(_Body):
    """`POST /auth/password`."""

    new_password: Typed
    password: Typed | None = None
    username: Typed | None = None


class Confirmation(_Body):
    """`POST /auth/confirm`."""

    password: Typed = Field(min_length=1)


@router.post("/register", status_code=201)
async def register(
    body: SignIn, request: Request, response: Response, before: CallerIfAny, where: Address, serving: Serving
) -> dict[str, Any]:
    """A new account, signed in."""
    if not serving.settings.registration:
        raise RegistrationClosed("This server takes no new accounts.")
    made = await serving.local.register(body.username, body.password, where)
    found = await enter(request, response, serving, made.person_id, before, claim_guest=body.claim_guest, is_new=True)
    return {"me": me_json(serving, found), "recovery_codes": made.recovery_codes}


@router.post("/login")
async def login(
    body: SignIn, request: Request, response: Response, before: CallerIfAny, where: Address, serving: Serving
) -> dict[str, Any]:
    """Sign in with name and password."""
    person_id = await serving.local.sign_in(body.username, body.password, where)
    found = await enter(request, response, serving, person_id, before, claim_guest=body.claim_guest)
    return {"me": me_json(serving, found)}


@router.post("/recover")
async def recover(
    body: Recovery, request: Request, response: Response, before: CallerIfAny, where: Address, serving: Serving
) -> dict[str, Any]:
    """Set a new password with a recovery code, and sign in."""
    person_id = await serving.local.recover(body.username, body.code, body.password, where)
    found = await enter(request, response, serving, person_id, before, claim_guest=body.claim_guest)
    return {"me": me_json(serving, found)}


@router.post("/logout", status_code=204)
def logout(body: SignOut, request: Request, before: CallerIfAny, serving: Serving) -> Response:
    """End this session, or all of them. Guests keep theirs: it is all they have.

    With `ended` only the cookie of a session that is over already is taken away.
    """
    if before is not None and body.ended:
        return Response(status_code=204)
    if before is not None and before.kind == "account":
        if body.everywhere:
            serving.people.end_sessions(before.person_id)
        else:
            serving.people.end_session(before.person_id, before.session_id)
    response = Response(status_code=204)
    if before is None or before.kind == "account":
        set_cookie(request, response, serving.settings, "")
    return response


@router.post("/password")
async def change_password(
    body: NewPassword, request: Request, response: Response, caller: Account, where: Address, serving: Serving
) -> dict[str, Any]:
    """Change the password, or set the first one of an account that came by a provider. Other sessions end."""
    person = serving.people.person(caller.person_id)
    codes: list[str] = []
    if person.has_password:
        if body.password is None:
            raise BadRequest("password is missing: say the old one too.")
        await serving.local.change_password(
            caller.person_id, body.password, body.new_password, where, session_id=caller.session_id
        )
    else:
        serving.sessions.require_recent(caller)
        codes = await serving.local.set_first_password(
            caller.person_id, body.username or "", body.new_password, where, session_id=caller.session_id
        )
    found = await enter(request, response, serving, caller.person_id, caller)
    return {"me": me_json(serving, found)} | ({"recovery_codes": codes} if codes else {})


@router.post("/confirm")
async def confirm(
    body: Confirmation, request: Request, response: Response, caller: Account, where: Address, serving: Serving
) -> dict[str, Any]:
    """Check the password once more; good for ten minutes."""
    await serving.local.confirm(caller.person_id, body.password, where)
    found = await enter(request, response, serving, caller.person_id, caller)
    return {"me": me_json(serving, found)}


@router.post("/recovery-codes")
def new_recovery_codes(caller: Account, serving: Serving) -> dict[str, Any]:
    """New codes in place of the old ones."""
    serving.sessions.require_recent(caller)
    return {"recovery_codes": serving.local.new_recovery_codes(caller.person_id)}


async def enter(
    request: Request,
    response: Response,
    serving: Services,
    person_id: str,
    before: Caller | None,
    *,
    claim_guest: bool = False,
    is_new: bool = False,
    is_fresh: bool = True,
) -> Caller:
    """Open a session for somebody just checked, with a new cookie; whatever session the browser had is over.

    `is_fresh` False carries over when they were checked last. A guest that another tab has claimed meanwhile is no
    reason to refuse anybody.
    """
    if claim_guest and before is not None and before.kind == "guest":
        with suppress(NotFound):
            await asyncio.to_thread(serving.people.claim, before.person_id, person_id, with_settings=is_new)
        serving.runs.move(before.person_id, person_id)
        await asyncio.to_thread(serving.history.temporary.move, before.person_id, person_id)
    verified_at = now() if is_fresh or before is None else before.verified_at
    agent = request.headers.get("user-agent", "")
    token = await asyncio.to_thread(serving.sessions.open, person_id, agent, instead_of=before, verified_at=verified_at)
    set_cookie(request, response, serving.settings, token)
    found = serving.sessions.caller(token)
    assert found is not None
    return found

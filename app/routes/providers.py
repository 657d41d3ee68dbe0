"""Signing in through a provider: the routes.

State, nonce and PKCE verifier lie in a signed cookie of ten minutes under /auth, so they belong to one browser. The
redirect address comes from the settings, never from the request.
"""

import asyncio
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.middleware.sessions import SessionMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.accounts.identities import ProvenIdentity, WrongIdentity
from app.config import Settings
from app.errors import (
    BadRequest,
    Disabled,
    IdentityTaken,
    PonderError,
    RegistrationClosed,
    SignInFirst,
    TooManyAttempts,
)
from app.history.people import Caller
from app.routes.access import Address, CallerIfAny, Services, Serving
from app.routes.auth import enter
from app.routes.local_path import local_path
from app.routes.provider_clients import ProviderProblem, Providers

router = APIRouter(prefix="/auth")
_FLOW_S = 600
Purpose = Literal["sign_in", "link", "confirm"]


async def _providers(request: Request) -> Providers:
    found: Providers = request.app.state.providers
    return found


Known = Annotated[Providers, Depends(_providers)]


class Start(BaseModel):
    """`POST /auth/{provider}/start`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    purpose: Purpose = "sign_in"
    claim_guest: bool = False
    next: str = Field(default="/", max_length=200)


@router.post("/{provider}/start")
async def start(
    provider: str, body: Start, request: Request, caller: CallerIfAny, serving: Serving, known: Known
) -> dict[str, str]:
    """Begin; the page then goes to `location`."""
    known.get(provider)
    if body.purpose != "sign_in":
        if caller is None or caller.kind != "account":
            raise SignInFirst("Sign in first.")
        if body.purpose == "link":
            serving.sessions.require_recent(caller)
    if not _is_at_home(request, serving.settings):
        if body.purpose != "sign_in":
            raise BadRequest(f"Open Ponder at {serving.settings.public_url} for this.")
        return {"location": f"{serving.settings.public_url}/#/sign-in"}
    kept = _kept(body.purpose, caller, claim_guest=body.claim_guest, next=body.next)
    try:
        return {"location": await known.begin(request, provider, **kept)}
    except ProviderProblem as problem:
        return {"location": f"/#/sign-in/{problem.code}"}


@router.get("/{provider}/login")
async def login(
    provider: str, request: Request, caller: CallerIfAny, serving: Serving, known: Known, next: str = "/"
) -> Response:
    """The same as a link. From another site, or at another name of ours, it only opens the sign-in dialog.

    Old browsers, and all of them over http in a home's network, do not say where a link stood; it may be another site.
    """
    known.get(provider)
    site = request.headers.get("sec-fetch-site", "")
    if site not in ("same-origin", "none") or not _is_at_home(request, serving.settings):
        return _to(f"{serving.settings.public_url}/#/sign-in")
    try:
        kept = _kept("sign_in", caller, claim_guest=False, next=next)
        return _to(await known.begin(request, provider, **kept))
    except ProviderProblem as problem:
        return _to(f"/#/sign-in/{problem.code}")


@router.get("/{provider}/callback")
async def callback(
    provider: str, request: Request, caller: CallerIfAny, where: Address, serving: Serving, known: Known
) -> Response:
    """Where the provider sends the browser back to."""
    known.get(provider)
    try:
        proven, kept = await known.finish(request, provider)
        # Nobody may have become a guest in another tab meanwhile
        began = kept["person_id"] or (caller.person_id if caller and caller.kind == "guest" else None)
        if began != (caller.person_id if caller else None):
            raise ProviderProblem("expired")
        return await _arrive(request, serving, proven, kept, caller, where)
    except ProviderProblem as problem:
        return _to(f"/#/sign-in/{problem.code}")


async def _arrive(
    request: Request, serving: Services, proven: ProvenIdentity, kept: dict[str, Any], caller: Caller | None, where: str
) -> Response:
    response = _to(local_path(kept["next"]))
    try:
        if kept["purpose"] == "sign_in":
            person_id, is_new = await asyncio.to_thread(serving.identities.sign_in, proven, where)
            # Coming back as who one is already may have been silent: that is no fresh check
            is_fresh = caller is None or caller.person_id != person_id
            claim = kept["claim_guest"]
            await enter(
                request, response, serving, person_id, caller, claim_guest=claim, is_new=is_new, is_fresh=is_fresh
            )
        else:
            if caller is None or caller.kind != "account":
                raise ProviderProblem("expired")
            if kept["purpose"] == "link":
                await asyncio.to_thread(serving.identities.link, caller, proven)
            else:
                await asyncio.to_thread(serving.identities.confirm, caller, proven)
            await enter(request, response, serving, caller.person_id, caller)
    except PonderError as error:
        raise ProviderProblem(_CODES.get(type(error), "failed")) from error
    return response


_CODES: dict[type[PonderError], str] = {
    IdentityTaken: "taken",
    WrongIdentity: "mismatch",
    RegistrationClosed: "closed",
    Disabled: "disabled",
    TooManyAttempts: "too_many",
}


def _kept(purpose: Purpose, caller: Caller | None, *, claim_guest: bool, next: str) -> dict[str, Any]:
    person_id = caller.person_id if caller else None
    return {"purpose": purpose, "claim_guest": claim_guest, "next": local_path(next), "person_id": person_id}


def _is_at_home(request: Request, settings: Settings) -> bool:
    """Whether the browser is at the address that the provider will send it back to: its cookies are kept by host."""
    return request.headers.get("host", "") == urlsplit(settings.public_url).netloc


def _to(location: str) -> RedirectResponse:
    return RedirectResponse(location, status_code=303)


class AuthCookie:
    """Starlette's signed cookie, for paths under /auth alone."""

    def __init__(self, app: ASGIApp, secret: str, *, is_https: bool) -> None:
        self._app = app
        self._with_cookie = SessionMiddleware(
            app,
            secret_key=secret,
            session_cookie="__Secure-ponder-auth" if is_https else "ponder-auth",
            max_age=_FLOW_S,
            path="/auth",
            same_site="lax",
            https_only=is_https,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_ours = scope["type"] == "http" and scope["path"].startswith("/auth/")
        await (self._with_cookie if is_ours else self._app)(scope, receive, send)

"""Who is asking: the person from the cookie, and from nothing else in the request."""

import asyncio
import logging
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from typing import Annotated

from fastapi import Depends, Request, Response

from app.accounts.attempts import Attempts
from app.accounts.identities import Identities
from app.accounts.local import LocalAccounts
from app.accounts.retention import Retention
from app.accounts.sessions import ABSOLUTE, Sessions
from app.accounts.settings import PersonSettings, settings_of
from app.config import Settings
from app.engine.base import Engine
from app.errors import Disabled, NotFound, PonderError, SignedOut, SignInFirst
from app.history.people import Caller, People
from app.history.portable.importing import Imports
from app.history.removal import Removal
from app.history.search import Indexer, Search
from app.history.store import Store
from app.history.temporary import History
from app.history.usage import Allowance, Usage
from app.routes.lanes import Lanes
from app.runs.service import RunService
from app.runs.shown import Freshener

_log = logging.getLogger(__name__)
# Outlives its session, so that whoever comes back late is told that they were signed out
_COOKIE_AGE_S = int(ABSOLUTE.total_seconds()) + 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes call; built once, in `web`."""

    settings: Settings
    secret: bytes
    engine: Engine
    store: Store
    history: History
    people: People
    usage: Usage
    sessions: Sessions
    local: LocalAccounts
    identities: Identities
    retention: Retention
    removal: Removal
    search: Search
    indexer: Indexer
    attempts: Attempts
    imports: Imports
    runs: RunService
    freshener: Freshener
    lanes: Lanes


async def services(request: Request) -> Services:
    """The services of the app that got this request."""
    found: Services = request.app.state.services
    return found


Serving = Annotated[Services, Depends(services)]


# The cookie


def is_https(request: Request, settings: Settings) -> bool:
    """Whether the person's browser speaks TLS with us, a proxy included."""
    return request.url.scheme == "https" or settings.base_url.startswith("https://")


def cookie_name(*, is_secure: bool) -> str:
    """The cookie's name; the prefix makes browsers refuse one set by a sibling host or without TLS."""
    return "__Host-ponder" if is_secure else "ponder"


def token_of(request: Request, settings: Settings) -> str | None:
    """The token in the request's cookie."""
    return request.cookies.get(cookie_name(is_secure=is_https(request, settings)))


def set_cookie(request: Request, response: Response, settings: Settings, token: str) -> None:
    """Give the browser a token; "" takes the cookie away.

    Three kinds: plain http on one's own machine; https; and https inside another site's frame, where browsers keep only
    cookies that are `Partitioned`. The page says that it is framed; saying so wrongly only loses one's own cookie.
    """
    is_secure = is_https(request, settings)
    is_framed = is_secure and bool(settings.frame_origins) and request.headers.get("x-ponder-framed") == "1"
    parts = [
        f"{cookie_name(is_secure=is_secure)}={token}",
        "Path=/",
        f"Max-Age={_COOKIE_AGE_S if token else 0}",
        "HttpOnly",
        "SameSite=None" if is_framed else "SameSite=Lax",
    ]
    parts += ["Secure"] if is_secure else []
    # By hand: the standard library knows Partitioned only from Python 3.14 on
    parts += ["Partitioned"] if is_framed else []
    response.headers.append("set-cookie", "; ".join(parts))


# The address


def address_of(request: Request, settings: Settings) -> str:
    """Where the request comes from, for limits. X-Forwarded-For is counted from the right, by the proxies we trust:
    whatever a client wrote into it stands further left."""
    peer = request.client.host if request.client else "unknown"
    hops = settings.trusted_proxies
    if not hops and "x-forwarded-for" in request.headers:
        _warn_of_a_proxy()
    if hops:
        said = [part.strip() for line in request.headers.getlist("x-forwarded-for") for part in line.split(",")]
        peer = said[-hops] if len(said) >= hops else peer
    return network_of(peer)


def network_of(peer: str) -> str:
    """What counts as one address: an address, or a network of IPv6; "unknown" for what is neither."""
    try:
        found = ip_address(_without_port(peer))
    except ValueError:
        return "unknown"
    if found.version == 6 and found.ipv4_mapped is None:
        return ":".join(found.exploded.split(":")[:4])
    return str(found.ipv4_mapped or found) if found.version == 6 else str(found)


def _without_port(peer: str) -> str:
    """Some proxies write the port too: 192.0.2.1:5001, [2001:db8::1]:5001."""
    if peer.startswith("["):
        return peer[1:].partition("]")[0].partition("%")[0]
    host, _, _ = peer.partition(":") if peer.count(":") == 1 else (peer, "", "")
    return host.partition("%")[0]


@cache
def _warn_of_a_proxy() -> None:
    """Once: anybody can send the header, so it alone proves nothing."""
    _log.error("requests carry X-Forwarded-For: if a proxy of yours writes it, set PONDER_TRUSTED_PROXIES=1")


async def address(request: Request, serving: Serving) -> str:
    """Where the request comes from."""
    return address_of(request, serving.settings)


Address = Annotated[str, Depends(address)]


# The person


async def caller_or_none(request: Request, serving: Serving) -> Caller | None:
    """The person whose cookie came with the request.

    Raises:
        SignedOut: it is the cookie of an account's session that has ended.
    """
    found = serving.sessions.caller(token_of(request, serving.settings))
    if found is not None and serving.sessions.is_due(found):
        await asyncio.to_thread(serving.sessions.note_visit, found)
    return found


async def caller_if_any(request: Request, serving: Serving) -> Caller | None:
    """Like `caller_or_none`, for signing in and out: a session that has ended stands in nobody's way."""
    try:
        return await caller_or_none(request, serving)
    except (SignedOut, Disabled):
        return None


async def caller(found: Annotated[Caller | None, Depends(caller_or_none)]) -> Caller:
    """Like `caller_or_none`, where nobody unknown has anything to find."""
    if found is None:
        raise NotFound("This is not here. It may belong to another browser.")
    return found


def new_guest(request: Request, response: Response, serving: Services) -> Caller:
    """A guest, with a cookie, for whoever is unknown. For handlers, when the request is known to be good: FastAPI asks
    dependencies before it judges the body.

    Raises:
        SignInFirst: this server takes no guests.
        TooManyAttempts: many guests came from this address.
    """
    if not serving.settings.guests:
        raise SignInFirst("Sign in first: this server takes no guests. Your text is still here.")
    where = address_of(request, serving.settings)
    token = serving.sessions.new_guest(request.headers.get("user-agent", ""), where)
    set_cookie(request, response, serving.settings, token)
    guest = serving.sessions.caller(token)
    assert guest is not None
    return guest


async def account(found: Annotated[Caller | None, Depends(caller_or_none)]) -> Caller:
    """Somebody with an account.

    Raises:
        SignInFirst: a guest, or nobody.
    """
    if found is None or found.kind != "account":
        raise SignInFirst("Sign in first.")
    return found


async def admin(found: Annotated[Caller | None, Depends(caller_or_none)]) -> Caller:
    """Somebody with the admin role, as the database has it now; for everybody else there is nothing here."""
    if found is None or not found.is_admin:
        raise NotFound("There is nothing at this address.")
    return found


async def person(found: Annotated[Caller, Depends(caller)]) -> str:
    """The id of the person who asks."""
    return found.person_id


async def person_or_none(found: Annotated[Caller | None, Depends(caller_or_none)]) -> str | None:
    """The id of the person who asks, if they are known."""
    return found.person_id if found else None


def allowance_of(caller: Caller, settings: Settings) -> Allowance:
    """How much a person may ask; an admin's word for one person goes before the settings. 0 is without a limit."""
    is_guest = caller.kind == "guest"
    per_day = settings.guest_runs_per_day if is_guest else settings.account_runs_per_day
    at_once = settings.guest_runs_at_once if is_guest else settings.account_runs_at_once
    return Allowance(at_once, caller.runs_per_day if caller.runs_per_day is not None else per_day or None)


CallerIfAny = Annotated[Caller | None, Depends(caller_if_any)]
SomeCaller = Annotated[Caller, Depends(caller)]
MaybeCaller = Annotated[Caller | None, Depends(caller_or_none)]
Account = Annotated[Caller, Depends(account)]
Admin = Annotated[Caller, Depends(admin)]
MaybePerson = Annotated[str | None, Depends(person_or_none)]
Person = Annotated[str, Depends(person)]


def appearance(request: Request, serving: Services) -> tuple[str, str]:
    """The language and theme a page is drawn in before its script runs; "" and "system" for whoever has set none."""
    try:
        found = serving.sessions.caller(token_of(request, serving.settings))
    except PonderError:
        found = None
    settings = settings_of(found.settings) if found else PersonSettings()
    return settings.language, settings.theme

"""Who is asking: the person from the cookie, and from nothing else in the request."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Response

from app.accounts.guests import Guests
from app.config import Settings
from app.engine.base import Engine
from app.errors import NotFound
from app.history.store import Store
from app.runs.service import RunService

_COOKIE_AGE_S = 60 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes call; built once, in `web`."""

    settings: Settings
    engine: Engine
    store: Store
    guests: Guests
    runs: RunService


async def services(request: Request) -> Services:
    """The services of the app that got this request."""
    found: Services = request.app.state.services
    return found


Serving = Annotated[Services, Depends(services)]


def is_https(request: Request, settings: Settings) -> bool:
    """Whether the person's browser speaks TLS with us, a proxy included."""
    return request.url.scheme == "https" or settings.base_url.startswith("https://")


def cookie_name(*, is_secure: bool) -> str:
    """The cookie's name; the prefix makes browsers refuse one set by a sibling host or without TLS."""
    return "__Host-ponder" if is_secure else "ponder"


async def person_or_none(request: Request, serving: Serving) -> str | None:
    """The id of the person whose cookie came with the request."""
    return serving.guests.known(request.cookies.get(cookie_name(is_secure=is_https(request, serving.settings))))


async def person(found: Annotated[str | None, Depends(person_or_none)]) -> str:
    """Like `person_or_none`, where nobody unknown has anything to find."""
    if found is None:
        raise NotFound("This is not here. It may belong to another browser.")
    return found


def person_or_guest(
    request: Request, response: Response, serving: Serving, found: Annotated[str | None, Depends(person_or_none)]
) -> str:
    """The person who asks; whoever is unknown becomes a guest and gets a cookie."""
    if found is not None:
        return found
    is_secure = is_https(request, serving.settings)
    guest = serving.guests.add()
    response.set_cookie(
        cookie_name(is_secure=is_secure),
        guest.token,
        max_age=_COOKIE_AGE_S,
        path="/",
        secure=is_secure,
        httponly=True,
        samesite="lax",
    )
    return guest.person_id


MaybePerson = Annotated[str | None, Depends(person_or_none)]
Person = Annotated[str, Depends(person)]
PersonOrGuest = Annotated[str, Depends(person_or_guest)]

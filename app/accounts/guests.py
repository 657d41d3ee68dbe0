"""Guests: a person known by a random token in a cookie, and by nothing else about them or their browser."""

import hashlib
import secrets
from dataclasses import dataclass

from app.history.store import Store

_TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class NewGuest:
    """A guest just made; the token goes into their cookie and is kept nowhere else."""

    person_id: str
    token: str


class Guests:
    """Makes guests and knows them again."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def known(self, token: str | None) -> str | None:
        """The id of the person with this cookie token; None for no or an unknown token."""
        return self._store.person_of(_hash(token)) if token else None

    def add(self) -> NewGuest:
        """A new guest."""
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        return NewGuest(self._store.add_guest(_hash(token)), token)


def _hash(token: str) -> str:
    # The token has 256 random bits, so a plain hash is as good as a slow one
    return hashlib.sha256(token.encode()).hexdigest()

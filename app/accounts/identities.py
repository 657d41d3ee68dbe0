"""People by a provider's word. An identity is (issuer, subject); names and addresses say nothing."""

import unicodedata
from dataclasses import dataclass

from app.accounts.attempts import Attempts
from app.config import Settings
from app.errors import Disabled, Forbidden, RegistrationClosed
from app.history.people import Caller, People

_LONGEST_NAME = 64


@dataclass(frozen=True, slots=True)
class ProvenIdentity:
    """What a provider has said, checked: who it is there, and what they are called."""

    issuer: str
    subject: str
    provider: str
    display_name: str


class WrongIdentity(Forbidden):
    """Confirming with an identity that is not this account's."""

    code = "wrong_identity"


class Identities:
    """Signs in, links and confirms by identities. Synchronous."""

    def __init__(self, people: People, attempts: Attempts, settings: Settings) -> None:
        self._people = people
        self._attempts = attempts
        self._takes_new = settings.registration

    def sign_in(self, proven: ProvenIdentity, address: str) -> tuple[str, bool]:
        """The id of the account with this identity, made if there is none; whether it is new.

        Raises:
            RegistrationClosed: there is none, and no new ones are taken.
            Disabled: an admin has disabled it.
            TooManyAttempts: many accounts were made from there.
        """
        found = self._people.identity(proven.issuer, proven.subject)
        if found is not None:
            identity, is_disabled = found
            if is_disabled:
                raise Disabled("This account has been disabled. Whoever runs this server can say why.")
            return identity.person_id, False
        if not self._takes_new:
            raise RegistrationClosed("This server takes no new accounts.")
        self._attempts.count_account(address)
        person_id = self._people.add_account(
            display_name=clean_name(proven.display_name), identity=(proven.issuer, proven.subject, proven.provider)
        )
        return person_id, True

    def link(self, caller: Caller, proven: ProvenIdentity) -> None:
        """Give the caller this identity too.

        Raises:
            IdentityTaken: it is another account's.
        """
        self._people.link(caller.person_id, proven.issuer, proven.subject, proven.provider)

    def confirm(self, caller: Caller, proven: ProvenIdentity) -> None:
        """Check that the identity is the caller's.

        Raises:
            WrongIdentity: it is not.
        """
        found = self._people.identity(proven.issuer, proven.subject)
        if found is None or found[0].person_id != caller.person_id:
            raise WrongIdentity("That identity is not linked to this account.")


def clean_name(name: str) -> str:
    """A provider's name for somebody, to be shown: visible characters, on one line."""
    normal = unicodedata.normalize("NFKC", name)
    visible = "".join(c if unicodedata.category(c)[0] in "LMNPS" else " " for c in normal[: 4 * _LONGEST_NAME])
    return " ".join(visible.split())[:_LONGEST_NAME]

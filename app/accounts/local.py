"""Accounts with a name and a password here. There is no e-mail: who forgets the password has recovery codes.

Everything that costs a hash runs in one worker thread, attempts counted and refused first: many tries at once stand in
line, and never take more than one core.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from app.accounts import passwords
from app.accounts.attempts import Attempts
from app.accounts.keys import hash_of_code, new_codes
from app.accounts.names import checked_username, username_key
from app.errors import BadUsername, Disabled, TooManyAttempts, UsernameTaken, WrongPassword
from app.history.people import Credentials, People

_LONGEST_LINE = 64
# One address, which may be a whole school's, leaves room for others
_LONGEST_LINE_FROM_ONE = 32
_WRONG = "The name and the password do not fit together."
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Registered:
    """A new account, and its recovery codes, which are shown this once."""

    person_id: str
    recovery_codes: list[str]


class LocalAccounts:
    """Registers, checks and changes passwords. Use it on one event loop."""

    def __init__(self, people: People, attempts: Attempts) -> None:
        self._people = people
        self._attempts = attempts
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="passwords")
        self._waiting: Counter[str] = Counter()

    def close(self) -> None:
        """End the worker."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def register(self, username: str, password: str, address: str) -> Registered:
        """A new account.

        Raises:
            BadUsername, BadPassword, UsernameTaken, TooManyAttempts: nothing was made.
        """
        return await self._in_line(address, lambda: self.register_now(username, password, address))

    async def sign_in(self, username: str, password: str, address: str) -> str:
        """The id of the person with this name and password.

        Raises:
            WrongPassword: they do not fit, or nobody has the name.
            TooManyAttempts: that was tried too often.
            Disabled: they fit, and an admin has disabled the account.
        """
        return await self._in_line(address, lambda: self._sign_in(username, password, address))

    async def recover(self, username: str, code: str, password: str, address: str) -> str:
        """Use up a recovery code for a new password; ends every session. The person's id.

        Raises:
            WrongPassword: name and code do not fit.
            BadPassword: the new password breaks a rule; the code is still good.
            TooManyAttempts, Disabled: as for signing in.
        """
        return await self._in_line(address, lambda: self._recover(username, code, password, address))

    async def confirm(self, person_id: str, password: str, address: str) -> None:
        """Check a signed-in person's password once more.

        Raises:
            WrongPassword, TooManyAttempts: not now.
        """
        await self._in_line(address, lambda: self._confirm(person_id, password, address))

    async def change_password(
        self, person_id: str, password: str, new_password: str, address: str, *, session_id: str
    ) -> None:
        """A new password in place of the old one; every other session ends.

        Raises:
            WrongPassword, TooManyAttempts, BadPassword: nothing was changed.
        """
        await self._in_line(address, lambda: self._change(person_id, password, new_password, address, session_id))

    async def set_first_password(
        self, person_id: str, username: str, new_password: str, address: str, *, session_id: str
    ) -> list[str]:
        """Name and password for an account that came by a provider; its recovery codes.

        Raises:
            BadUsername, BadPassword, UsernameTaken, TooManyAttempts: nothing was changed.
        """
        work = lambda: self._set_first(person_id, username, new_password, address, session_id)  # noqa: E731
        return await self._in_line(address, work)

    def new_recovery_codes(self, person_id: str) -> list[str]:
        """New codes; the old ones are void."""
        codes = new_codes()
        self._people.set_codes(person_id, [hash_of_code(code) for code in codes])
        return codes

    # In the worker, or from the command line

    def register_now(self, username: str, password: str, address: str = "", *, is_admin: bool = False) -> Registered:
        """Like `register`, here and now. Without an address it is whoever runs the server: nothing is counted, and any
        name is good."""
        shown, key = checked_username(username, may_speak_for_us=not address)
        checked = passwords.checked_password(password, shown)
        if address:
            self._attempts.refuse_many_names(address)
        # Hashed before anything is said of the name: whoever tries names out pays for each
        hashed = passwords.hashed(checked)
        self._refuse_taken(key, address)
        if address:
            self._attempts.count_account(address)
        codes = new_codes()
        person_id = self._people.add_account(
            username=shown,
            username_key=key,
            password_hash=hashed,
            code_hashes=[hash_of_code(code) for code in codes],
            is_admin=is_admin,
        )
        return Registered(person_id, codes)

    def require(self, username: str) -> Credentials:
        """The account of this name.

        Raises:
            BadUsername: nobody has it.
        """
        found = self._people.credentials(username_key(username))
        if found is None:
            raise BadUsername(f"Nobody here is called {username}.")
        return found

    def reset_now(self, username: str, password: str) -> list[str]:
        """A new password for whoever runs the server to hand out; ends all sessions, gives new codes.

        Raises:
            BadUsername: nobody has this name.
            BadPassword: a rule is not met.
        """
        found = self.require(username)
        codes = new_codes()
        hashed = passwords.hashed(passwords.checked_password(password, username))
        self._people.set_password(found.person_id, hashed, code_hashes=[hash_of_code(code) for code in codes])
        return codes

    def _sign_in(self, username: str, password: str, address: str) -> str:
        key = username_key(username)
        self._attempts.refuse_too_many(key, address)
        found = self._people.credentials(key)
        self._check(found, password, key, address)
        assert found is not None
        if found.is_disabled:
            raise _disabled()
        assert found.password_hash is not None
        if passwords.is_outdated(found.password_hash):
            self._people.rehash(found.person_id, passwords.hashed(passwords.normal(password)))
        return found.person_id

    def _recover(self, username: str, code: str, password: str, address: str) -> str:
        key = username_key(username)
        self._attempts.refuse_too_many(key, address)
        checked = passwords.checked_password(password, username)
        found = self._people.credentials(key)
        # A hash for everybody: a wrong code takes as long as a right one
        hashed = passwords.hashed(checked)
        code_hash = hash_of_code(code)
        if not self._people.has_code(found.person_id if found else "", code_hash) or found is None:
            self._attempts.failed(key, address)
            raise WrongPassword("The name and the recovery code do not fit together. Each code works once.")
        if found.is_disabled:
            raise _disabled()
        if not self._people.recover(found.person_id, code_hash, hashed):
            raise WrongPassword("This recovery code has just been used.")
        self._attempts.succeeded(key, address)
        return found.person_id

    def _confirm(self, person_id: str, password: str, address: str) -> None:
        self._attempts.refuse_too_many(person_id, address)
        found = self._people.credentials_of(person_id)
        self._check(found, password, person_id, address, "This is not your password.")

    def _change(self, person_id: str, password: str, new_password: str, address: str, session_id: str) -> None:
        self._attempts.refuse_too_many(person_id, address)
        names = self._people.person(person_id).username
        checked = passwords.checked_password(new_password, names)
        found = self._people.credentials_of(person_id)
        self._check(found, password, person_id, address, "This is not your password.")
        self._people.set_password(person_id, passwords.hashed(checked), but=session_id)

    def _set_first(self, person_id: str, username: str, new_password: str, address: str, session_id: str) -> list[str]:
        self._attempts.refuse_too_many(person_id, address)
        name = checked_username(username)
        checked = passwords.checked_password(new_password, name[0])
        self._attempts.refuse_many_names(address)
        try:
            self._refuse_taken(name[1], address)
        except UsernameTaken:
            self._attempts.failed(person_id, address)
            raise
        codes = new_codes()
        self._people.set_password(
            person_id,
            passwords.hashed(checked),
            but=session_id,
            name=name,
            code_hashes=[hash_of_code(code) for code in codes],
        )
        return codes

    def _refuse_taken(self, key: str, address: str = "") -> None:
        """The database has the last word. A name that is told to be taken is counted for the address."""
        if self._people.credentials(key) is not None:
            if address:
                self._attempts.count_taken_name(address)
            raise UsernameTaken("This name is taken. Choose another one.")

    def _check(self, found: Credentials | None, password: str, key: str, address: str, sentence: str = _WRONG) -> None:
        if not passwords.fits(found.password_hash if found else None, password):
            self._attempts.failed(key, address)
            raise WrongPassword(sentence)
        self._attempts.succeeded(key, address)

    async def _in_line(self, address: str, work: Callable[[], _T]) -> _T:
        if self._waiting.total() >= _LONGEST_LINE or self._waiting[address] >= _LONGEST_LINE_FROM_ONE:
            raise TooManyAttempts("Many people are signing in right now. Try again in a few seconds.", retry_after_s=5)
        self._waiting[address] += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, work)
        finally:
            self._waiting[address] -= 1
            if not self._waiting[address]:
                del self._waiting[address]


def _disabled() -> Disabled:
    return Disabled("This account has been disabled. Whoever runs this server can say why.")

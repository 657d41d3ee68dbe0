"""Passwords: which are taken, and how they are kept. Argon2id at the floor OWASP names: 19 MiB, two passes."""

import secrets
import string
import unicodedata
from itertools import pairwise

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from zxcvbn.frequency_lists import FREQUENCY_LISTS

from app.errors import BadPassword

SHORTEST, LONGEST = 8, 128
_FEWEST_LETTERS = 5
_DECORATION = string.digits + string.punctuation + " "
_LETTERS_FOR_SIGNS = [str.maketrans("@4301!5$7", letters) for letters in ("aaeoiisst", "aaeollsst")]
_COMMON = frozenset(FREQUENCY_LISTS["passwords"])

_hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
# Somebody unknown costs as much as somebody known
_nobodys = _hasher.hash(secrets.token_hex())


def checked_password(typed: str, *names: str) -> str:
    """A new password as it is hashed: NFKC, so that every keyboard types the same.

    Raises:
        BadPassword: a rule is not met; the message says which.
    """
    if len(typed) > LONGEST:
        raise BadPassword(f"A password has at most {LONGEST} characters.", rule="length")
    password = normal(typed)
    if not SHORTEST <= len(password) <= LONGEST:
        raise BadPassword(f"A password has {SHORTEST} to {LONGEST} characters.", rule="length")
    if _is_easy(password, names):
        raise BadPassword(
            "This password is among the first that are tried. Use several words, or a longer one.", rule="easy"
        )
    return password


def _is_easy(password: str, names: tuple[str, ...]) -> bool:
    """Whether it is common, or common but for its decoration, or has next to nothing in it.

    zxcvbn's own estimate would say more, and takes ten seconds for some passwords of 72 characters: only its list.
    """
    folded = password.casefold()
    bare = folded.strip(_DECORATION)
    plain = (folded, bare, *(bare.translate(letters) for letters in _LETTERS_FOR_SIGNS))
    if any(form in _COMMON for form in plain) or len(set(folded)) < _FEWEST_LETTERS:
        return True
    steps = {ord(after) - ord(before) for before, after in pairwise(folded)}
    if len(steps - {-9, 9}) == 1 and steps & {-1, 1}:
        return True
    rest = folded
    for name in names:
        rest = rest.replace(name.casefold(), "") if name else rest
    return len(rest) < _FEWEST_LETTERS


def normal(typed: str) -> str:
    """A password in the form that is hashed and checked."""
    return unicodedata.normalize("NFKC", typed)


def hashed(password: str) -> str:
    """The hash to keep; takes about 40 ms of one core and 19 MiB."""
    return _hasher.hash(password.encode(errors="replace"))


def fits(password_hash: str | None, typed: str) -> bool:
    """Whether a password is the one that was hashed; as slow for nobody's hash as for anybody's."""
    if len(typed) > LONGEST:
        return False
    try:
        is_right = _hasher.verify(password_hash or _nobodys, normal(typed).encode(errors="replace"))
    except (VerificationError, InvalidHashError):
        return False
    return is_right and password_hash is not None


def is_outdated(password_hash: str) -> bool:
    """Whether a hash was made with other parameters than today's."""
    return _hasher.check_needs_rehash(password_hash)

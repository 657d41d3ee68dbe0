"""Secrets of this server and tokens of its people: how they are made, and how they are kept."""

import hashlib
import hmac
import os
import secrets
from datetime import datetime

from app.config import Settings
from app.errors import BadSetting

_TOKEN_BYTES = 32
# 80 random bits, in letters and digits that cannot be taken for one another
_CODE_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"
_CODE_GROUPS, _GROUP_LETTERS = 4, 4
CODES = 8


def new_token(kind: str) -> str:
    """A token for a cookie: its kind, so that a cookie that has ended can say what it was, and 256 random bits."""
    return f"{kind[0]}-{secrets.token_urlsafe(_TOKEN_BYTES)}"


def is_of_account(token: str) -> bool:
    """Whether a cookie's token was an account's. Only for the words of an error: it proves nothing."""
    return token.startswith("a-")


def hash_of(token: str) -> str:
    """What is stored of a token or a code: with this many random bits a plain hash is as good as a slow one."""
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def new_codes() -> list[str]:
    """Recovery codes as people keep them: ABCD-EFGH-JKMN-PQRS."""
    groups = range(_CODE_GROUPS)
    return [
        "-".join("".join(secrets.choice(_CODE_LETTERS) for _ in range(_GROUP_LETTERS)) for _ in groups)
        for _ in range(CODES)
    ]


def hash_of_code(code: str) -> str:
    """The hash of a code however it was typed."""
    return hash_of("".join(letter for letter in code.upper() if letter in _CODE_LETTERS))


def read_secret(settings: Settings) -> bytes:
    """The server's secret: PONDER_SECRET_KEY, else a file in the data folder that only its owner can read.

    Raises:
        BadSetting: the file cannot be read or written, or others can read it.
    """
    given = settings.secret_key.get_secret_value()
    if given:
        return given.encode()
    path = settings.data_dir / "secret-key"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            if path.stat().st_mode & 0o077:
                raise BadSetting(f"Others can read {path}. Say: chmod 600 {path}") from None
        else:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(_TOKEN_BYTES))
        found = path.read_text().strip()
    except OSError as error:
        raise BadSetting(
            f"{path} cannot be used: {error.strerror}. Set PONDER_SECRET_KEY or PONDER_DATA_DIR."
        ) from error
    if len(found) < _TOKEN_BYTES:
        raise BadSetting(f"{path} is too short. Delete it, and a new one is made.")
    return found.encode()


def keyed(secret: bytes, purpose: str, *parts: str) -> str:
    """A keyed hash of `parts`: what it stands for cannot be found by trying, and purposes never meet."""
    message = "\x1f".join((purpose, *parts)).encode(errors="replace")
    return hmac.digest(secret, message, "sha256").hex()


def keyed_today(secret: bytes, moment: datetime, *parts: str) -> str:
    """Like `keyed`, and another one tomorrow: addresses cannot be followed over days."""
    return keyed(secret, f"day {moment:%Y-%m-%d}", *parts)[:32]

import time

import pytest

from app.accounts import passwords
from app.errors import BadPassword

COMMON = ["password", "Password1!", "p@ssw0rd", "qwertyuiop", "iloveyou1", "11111111", "abababab", "adaadaada"]
RUNS = ["abcdefghij", "9876543210", "12345678901234567890"]


@pytest.mark.parametrize("password", ["short", "x" * 129, *COMMON, *RUNS])
def test_short_long_and_common_passwords_are_refused(password: str) -> None:
    with pytest.raises(BadPassword):
        passwords.checked_password(password, "ada")


def test_ten_megabytes_are_refused_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    for slow in ("_is_easy", "normal", "_hasher"):
        monkeypatch.setattr(passwords, slow, None)
    with pytest.raises(BadPassword):
        passwords.checked_password("x" * 10_000_000)
    assert not passwords.fits(None, "x" * 10_000_000)


def test_128_characters_of_any_script_are_taken() -> None:
    long = "".join(chr(0x4E00 + 7 * n) for n in range(64)) + "ñandú-" * 10 + "1234"
    assert len(long) == 128
    assert passwords.fits(passwords.hashed(passwords.checked_password(long)), long)


def test_a_password_is_the_same_on_every_keyboard() -> None:
    assert passwords.fits(passwords.hashed(passwords.checked_password("caf\u00e9 und kuchen")), "cafe\u0301 und kuchen")


def test_a_hash_is_argon2id_with_the_parameters_of_today() -> None:
    kept = passwords.hashed("seven green bicycles")
    assert kept.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert not passwords.is_outdated(kept)
    assert passwords.is_outdated(kept.replace("t=2", "t=1"))


def test_nobody_has_a_password() -> None:
    assert not passwords.fits(None, "seven green bicycles")
    assert not passwords.fits("not a hash", "seven green bicycles")


def test_no_password_takes_long_to_be_judged() -> None:
    """An estimator that tries every spelling of these takes ten seconds; ours looks into a list."""
    began = time.process_time()
    passwords.checked_password("a4@b8c({[<e3g69i1!|l1|7o0s$5t+7x%z2" * 3)
    assert time.process_time() - began < 1

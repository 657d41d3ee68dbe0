"""The commands of whoever runs the server, as they are typed."""

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from app.accounts.attempts import Attempts
from app.accounts.keys import read_secret
from app.accounts.local import LocalAccounts
from app.config import Settings
from app.errors import BadSetting
from app.history.database import Database
from app.history.people import People

ROOT = Path(__file__).parents[1]
PASSWORD = "seven green bicycles"


def run(folder: Path, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PONDER_DATA_DIR": str(folder)}
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, input=typed, capture_output=True, text=True, timeout=60, check=False
    )


def local_accounts(folder: Path) -> tuple[People, LocalAccounts]:
    database = Database(f"sqlite:///{folder / 'ponder.sqlite'}")
    people = People(database)
    return people, LocalAccounts(people, Attempts(database, b"s" * 32, 100))


def test_an_admin_is_made_and_can_sign_in(tmp_path: Path) -> None:
    made = run(tmp_path, "create-admin", "ada", typed=f"{PASSWORD}\n")
    assert made.returncode == 0, made.stderr
    assert len(re.findall(r"^  [A-Z2-9]{4}(?:-[A-Z2-9]{4}){3}$", made.stdout, re.MULTILINE)) == 8
    assert PASSWORD not in made.stdout
    people, local = local_accounts(tmp_path)
    assert people.person(local._sign_in("ada", PASSWORD, "here")).is_admin
    people.database.close()


def test_whoever_took_the_name_before_does_not_become_the_admin_by_mistake(tmp_path: Path) -> None:
    run(tmp_path, "purge")
    people, local = local_accounts(tmp_path)
    person_id = local.register_now("ada", PASSWORD).person_id
    refused = run(tmp_path, "create-admin", "Ada", typed=f"{PASSWORD}\n")
    assert (refused.returncode, people.person(person_id).is_admin) == (2, False)
    assert "--existing" in refused.stderr
    assert "is an admin now" in run(tmp_path, "create-admin", "Ada", "--existing").stdout
    assert people.person(person_id).is_admin
    people.database.close()


def test_a_reset_password_replaces_the_old_one_and_the_codes(tmp_path: Path) -> None:
    run(tmp_path, "create-admin", "ada", typed=f"{PASSWORD}\n")
    weak = run(tmp_path, "reset-password", "ada", typed="password\n")
    assert (weak.returncode, weak.stderr) == (
        2,
        "This password is among the first that are tried. Use several words, or a longer one.\n",
    )
    assert run(tmp_path, "reset-password", "ada", typed="eight red bicycles\n").returncode == 0
    people, local = local_accounts(tmp_path)
    assert local._sign_in("ada", "eight red bicycles", "here")
    with pytest.raises(Exception, match="do not fit"):
        local._sign_in("ada", PASSWORD, "here")
    people.database.close()


def test_nobody_is_reset_with_a_sentence(tmp_path: Path) -> None:
    ended = run(tmp_path, "reset-password", "bob", typed=f"{PASSWORD}\n")
    assert (ended.returncode, ended.stderr) == (2, "Nobody here is called bob.\n")


def test_a_dry_purge_only_counts(tmp_path: Path) -> None:
    assert run(tmp_path, "purge", "--dry-run").stdout == "0 guests, 0 sessions, 0 counters would be removed\n"
    assert run(tmp_path, "purge").stdout == "0 guests, 0 sessions, 0 counters removed\n"


def test_the_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    secret = read_secret(settings)
    path = tmp_path / "secret-key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(secret) == 64
    assert read_secret(settings) == secret
    path.chmod(0o644)
    with pytest.raises(BadSetting, match="chmod 600"):
        read_secret(settings)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(BadSetting, match="too short"):
        read_secret(settings)


@pytest.mark.parametrize("secret", ["short", "changeme" * 2, "a" * 64])
def test_a_secret_that_can_be_guessed_stops_the_start(tmp_path: Path, secret: str) -> None:
    with pytest.raises(ValueError, match="at least 32 random characters"):
        Settings(data_dir=tmp_path, secret_key=secret)  # type: ignore[arg-type]


def test_processes_that_share_a_database_must_share_a_secret(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="PONDER_SECRET_KEY is missing"):
        Settings(data_dir=tmp_path, database_url="postgresql+psycopg://somewhere/ponder")

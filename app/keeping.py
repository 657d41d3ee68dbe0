"""What whoever runs the server does at its command line: make an admin, reset a password, purge, back up, restore.

Works on the database directly, also while the server runs. A password is asked for twice at a terminal, and read from
one line of standard input otherwise; it is never an argument, which others could see in the list of processes.
"""

import getpass
import sys
from pathlib import Path

from sqlalchemy.engine import make_url

from app.accounts.attempts import Attempts
from app.accounts.keys import read_secret
from app.accounts.local import LocalAccounts
from app.accounts.names import username_key
from app.accounts.retention import Retention
from app.config import read_settings
from app.errors import BadPassword, StorageFailed, UsernameTaken
from app.history import snapshots
from app.history.database import Database
from app.history.people import People
from app.history.search import forget_deleted
from app.history.sqlite import file_of
from app.history.usage import Usage


def create_admin(name: str, *, is_existing: bool) -> int:
    """Make an account that is an admin. One that is there becomes an admin only if that is meant.

    Raises:
        UsernameTaken: somebody has the name, and `is_existing` was not said: anyone may have registered it.
    """
    database, people, local = _open()
    found = people.credentials(username_key(name))
    if found is not None and not is_existing:
        raise UsernameTaken(
            f"{name} has an account already, and anybody may have made it. If it is the right one, add --existing."
        )
    if found is not None:
        Usage(database).change(found.person_id, {"is_admin": True})
        print(f"{name} is an admin now and has to sign in again.")
        return 0
    made = local.register_now(name, _ask_password(), is_admin=True)
    print(f"The admin {name} is made.")
    _print_codes(made.recovery_codes)
    return 0


def reset_password(name: str) -> int:
    """A new password for an account; all its sessions end, and its old recovery codes are void."""
    _, _, local = _open()
    local.require(name)
    codes = local.reset_now(name, _ask_password())
    print(f"{name} has a new password and has to sign in again.")
    _print_codes(codes)
    return 0


def purge(*, is_dry: bool) -> int:
    """Remove what is over its time, or only count it."""
    settings = read_settings()
    database, people, _ = _open()
    purged = Retention(database, people, settings).purge(is_dry=is_dry)
    if purged.guests and not is_dry:
        forget_deleted(database)
    verb = "would be removed" if is_dry else "removed"
    print(f"{purged.guests} guests, {purged.sessions} sessions, {purged.counters} counters {verb}")
    return 0


def backup(target: Path | None) -> int:
    """Copy the database while it is in use, and prove the copy."""
    file = _sqlite_file("pg_dump --format=custom --file=ponder.dump ADDRESS")
    if not file.exists():
        raise StorageFailed(f"There is no database {file} yet. PONDER_DATA_DIR says in which folder it is.")
    if target is not None and target.exists() and target.samefile(file):
        raise StorageFailed(f"{target} is the database itself. Name another file for its copy.")
    print(f"Copied to {snapshots.take(file, target)} and checked.")
    if target is None:
        print(
            f"The newest {snapshots.KEPT} copies are kept there, for {snapshots.KEPT_DAYS} days; "
            "name a file to put one elsewhere."
        )
    return 0


def restore(source: Path, *, is_confirmed: bool) -> int:
    """Put a copy in the place of the database, which is kept beside it. The app must not run."""
    file = _sqlite_file("pg_restore --clean --if-exists --dbname=ADDRESS ponder.dump")
    database = Database(read_settings().resolved_database_url)
    try:
        database.claim()
        if file.exists() and not is_confirmed and not _is_meant(file):
            print("Nothing was changed.")
            return 1
        old = snapshots.restore(file, source)
    finally:
        database.close()
    print(f"{file} is what {source} was. Start Ponder: it brings the tables up to date by itself.")
    if old is not None:
        print(f"What was there before is {old}.")
    return 0


def _sqlite_file(otherwise: str) -> Path:
    file = file_of(make_url(read_settings().resolved_database_url))
    if file is None:
        raise StorageFailed(f"This Ponder uses a PostgreSQL, which has its own command for this: {otherwise}")
    return file


def _is_meant(file: Path) -> bool:
    if not sys.stdin.isatty():
        raise StorageFailed("Everything since that copy will be gone. If that is meant, add --yes.")
    return input(f"Everything in {file} since that copy will be gone. Restore it? [y/N] ").strip().lower() == "y"


def _open() -> tuple[Database, People, LocalAccounts]:
    settings = read_settings()
    database = Database(settings.resolved_database_url)
    database.migrate()
    people = People(database)
    attempts = Attempts(database, read_secret(settings), settings.new_guests_per_hour)
    return database, people, LocalAccounts(people, attempts)


def _ask_password() -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    password = getpass.getpass("New password: ")
    if getpass.getpass("Once more: ") != password:
        raise BadPassword("The two are not the same. Nothing was changed.")
    return password


def _print_codes(codes: list[str]) -> None:
    print("Recovery codes, each good for one new password. They are shown this once:")
    for code in codes:
        print(f"  {code}")

"""Words that were deleted are in no file any more: not in the database's pages, not in the search's, not in the log."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from app.accounts.retention import Retention
from app.config import Settings
from app.errors import BadImport, StorageFailed
from app.history import removal as removal_module
from app.history.people import People
from app.history.portable.importing import Imports
from app.history.removal import Removal
from app.history.search import Indexer
from app.history.store import Store, now
from app.history.tables import SessionTable
from tests.exports import Desk, answer, as_file, conversation, question
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.only_on("sqlite")
MARKS = ["Zwiebelmarmelade", "Xylophonquartett", "Rhabarberkuchen"]


@pytest.fixture
def desk(store: Store, tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(store, Imports(store.database, tmp_path / "imports"))
    stays = desk.person()
    desk.take(stays, chats("usual words", 40))
    yield desk
    desk.imports.close()


def chats(words: str, count: int = 1) -> bytes:
    one = conversation(
        question(f"About {words}?"), answer(1, f"{words} it is.", reasoning=f"Hm, {words}."), title=words
    )
    return as_file(*[one] * count)


def with_words(desk: Desk, owner: str) -> str:
    """Somebody with chats whose words are in the files, in pages of every kind."""
    desk.take(owner, chats(" ".join(MARKS), 3))
    indexer = Indexer(desk.store.database)
    while indexer.index_some():
        pass
    indexer.close()
    assert found(desk)
    return owner


def found(desk: Desk) -> set[str]:
    """The words that are in a file of the database."""
    file = desk.store.database.file
    assert file is not None
    contents = [path.read_bytes().lower() for path in file.parent.glob(f"{file.name}*")]
    return {mark for mark in MARKS if any(mark.lower().encode() in content for content in contents)}


def until_forgotten(desk: Desk, removal: Removal) -> None:
    """Let the job do its work until no file has the words; the time allowed is for a machine that is busy."""

    async def scene() -> None:
        job = asyncio.create_task(removal.run())
        async with asyncio.timeout(60):
            # The files are read one after the other, and words go from one to another meanwhile
            while removal._forgotten != desk.store.database.deletions or found(desk):
                assert not job.done()
                await asyncio.sleep(0.01)
        job.cancel()

    asyncio.run(scene())
    removal.close()


def quick(desk: Desk) -> Removal:
    return Removal(desk.store.database, undo=timedelta(seconds=-1), every_s=0.01)


def one_by_one(desk: Desk, owner: str) -> None:
    for item in desk.store.conversations(owner, None, 100)[0]:
        desk.store.delete_conversation(owner, item.id)


def all_at_once(desk: Desk, owner: str) -> None:
    desk.store.delete_all(owner)


def with_the_account(desk: Desk, owner: str) -> None:
    People(desk.store.database).delete(owner)


def by_the_clock(desk: Desk, owner: str) -> None:
    """A guest who has not come back; nobody asks for anything."""
    with desk.store.database.writing() as db:
        long_ago = now() - timedelta(days=30)
        db.execute(update(SessionTable).where(SessionTable.person_id == owner).values(last_seen_at=long_ago))
    retention = Retention(desk.store.database, People(desk.store.database), Settings())
    assert retention.purge().guests >= 1
    retention.close()


@pytest.mark.parametrize("way", [one_by_one, all_at_once, with_the_account, by_the_clock])
def test_deleted_words_are_gone_from_every_file(desk: Desk, way: Callable[[Desk, str], None]) -> None:
    owner = with_words(desk, desk.person())
    removal = quick(desk)
    removal.forget()  # as the job does at the start: from here on something new has to be noticed
    way(desk, owner)
    until_forgotten(desk, removal)
    assert found(desk) == set()


def test_words_of_an_import_that_failed_are_gone_too(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.history.portable.importing._ROWS_AT_ONCE", 3)
    removal = quick(desk)
    removal.forget()
    broken = chats(" ".join(MARKS), 30)[:-2]
    with pytest.raises(BadImport):
        desk.take(desk.person(), broken)
    until_forgotten(desk, removal)


def test_whatever_is_deleted_while_it_forgets_is_forgotten_next(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = with_words(desk, desk.person()), desk.person()
    desk.take(second, chats(MARKS[0]))
    removal, forget, times = quick(desk), removal_module.forget_deleted, []

    def and_somebody_leaves(database: Any) -> bool:
        is_done = forget(database)
        if not times:
            People(database).delete(second)
        times.append(is_done)
        return is_done

    monkeypatch.setattr(removal_module, "forget_deleted", and_somebody_leaves)
    People(desk.store.database).delete(first)
    until_forgotten(desk, removal)
    assert len(times) >= 2


def test_a_reader_puts_it_off_and_does_not_call_it_off(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = with_words(desk, desk.person())
    file, removal, forget = desk.store.database.file, quick(desk), removal_module.forget_deleted
    reader = sqlite3.connect(str(file), isolation_level=None, check_same_thread=False)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM messages").fetchone()
    answers = []

    def until_the_reader_ends(database: Any) -> bool:
        answers.append(forget(database))
        if len(answers) == 2:
            reader.execute("COMMIT")
            reader.close()
        return answers[-1]

    monkeypatch.setattr(removal_module, "forget_deleted", until_the_reader_ends)
    People(desk.store.database).delete(owner)
    until_forgotten(desk, removal)
    assert answers[:2] == [False, False]


def test_a_database_that_fails_puts_it_off_too(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = with_words(desk, desk.person())
    removal, forget, times = quick(desk), removal_module.forget_deleted, iter(range(10**6))

    def at_first_not(database: Any) -> bool:
        if next(times) < 3:
            raise StorageFailed("not now")
        return forget(database)

    monkeypatch.setattr(removal_module, "forget_deleted", at_first_not)
    People(desk.store.database).delete(owner)
    until_forgotten(desk, removal)


def test_without_a_deletion_it_rests(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    removal, forget, times = quick(desk), removal_module.forget_deleted, []
    monkeypatch.setattr(removal_module, "forget_deleted", lambda database: times.append(1) or forget(database))
    looked, look = threading.Semaphore(0), removal.remove_deleted
    monkeypatch.setattr(removal, "remove_deleted", lambda: looked.release() or look())

    async def scene() -> None:
        job = asyncio.create_task(removal.run())
        for _ in range(20):
            assert await asyncio.to_thread(looked.acquire, timeout=PATIENCE_S)
        desk.take(desk.person(), chats("usual words", 5))
        for _ in range(20):
            assert await asyncio.to_thread(looked.acquire, timeout=PATIENCE_S)
        job.cancel()

    asyncio.run(scene())
    removal.close()
    assert times == [1], "once at the start, for the process before this one"


def test_the_promise_of_thirty_seconds_is_kept_by_the_job_that_runs() -> None:
    """Undo, a look, a merge under way that must rest as long as it took, and the merge: what a large index needs is
    measured; the fixed parts leave room for it."""
    fixed_s = removal_module.UNDO.total_seconds() + 2 * removal_module._EVERY_S
    assert fixed_s <= 22

import asyncio
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select, text, update

from app.errors import BadRequest
from app.history.database import Database
from app.history.people import People
from app.history.search import (
    SEARCH_VERSION,
    Hit,
    Indexer,
    Search,
    find,
    forget_deleted,
    index_message,
    index_title,
    indexer,
    move_entries,
)
from app.history.search.terms import terms
from app.history.store import new_id
from app.history.tables import ConversationTable, MessageTable, RunTable, SearchEntryTable

THEN = datetime(2026, 3, 1, 12, tzinfo=UTC)


class World:
    """People with conversations, and what they find."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.people = People(database)
        self.search = Search(database)
        self.owner = self.person()
        self.moment = THEN

    def person(self) -> str:
        return self.people.add_guest(new_id())

    def conversation(self, title: str = "", *, owner: str | None = None, version: int = SEARCH_VERSION) -> str:
        self.moment += timedelta(seconds=1)
        row = ConversationTable(
            id=new_id(),
            owner_id=owner or self.owner,
            title=title,
            search_version=version,
            created_at=self.moment,
            updated_at=self.moment,
        )
        with self.database.writing() as db:
            db.add(row)
            db.flush()
            if version == SEARCH_VERSION:
                index_title(db, row.owner_id, row.id, title)
        return row.id

    def message(
        self, conversation_id: str, text: str, reasoning: str = "", *, role: str = "user", is_indexed: bool = True
    ) -> str:
        self.moment += timedelta(seconds=1)
        with self.database.writing() as db:
            position = db.scalar(select(func.count()).where(MessageTable.conversation_id == conversation_id))
            row = MessageTable(
                id=new_id(),
                conversation_id=conversation_id,
                position=(position or 0) + 1,
                role="assistant" if reasoning else role,
                text=text,
                reasoning=reasoning,
                created_at=self.moment,
            )
            db.add(row)
            db.flush()
            if is_indexed:
                owner = db.scalar(select(ConversationTable.owner_id).where(ConversationTable.id == conversation_id))
                index_message(db, owner or "", conversation_id, row.id, [text, reasoning])
        return row.id

    def said(self, text: str, reasoning: str = "", *, owner: str | None = None) -> str:
        """A message in a conversation of its own."""
        return self.message(self.conversation(owner=owner), text, reasoning)

    def find(self, query: str, *, owner: str | None = None) -> list[Hit]:
        return self.search.find(owner or self.owner, query).hits

    def ids(self, query: str, *, owner: str | None = None) -> list[str | None]:
        return [hit.message_id for hit in self.find(query, owner=owner)]


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


def test_every_word_must_be_there_and_the_last_as_far_as_it_is_typed(world: World) -> None:
    apples = world.said("Red apples and green pears")
    world.said("Green applause")
    assert world.ids("pears red") == [apples]
    assert world.ids("green appl") == world.ids("GREEN AP") == [*world.ids("applause"), apples]
    assert world.ids("appl green") == []
    assert world.ids("apples bananas") == []


def test_the_newest_comes_first_however_late_it_was_indexed(world: World) -> None:
    first, second, third = (world.said(f"needle {number}") for number in range(3))
    assert world.ids("needle") == [third, second, first]
    with world.database.writing() as db:
        row = db.get_one(MessageTable, first)
        index_message(db, world.owner, row.conversation_id, first, [])
    assert world.ids("needle") == [third, second]
    with world.database.writing() as db:
        index_message(db, world.owner, row.conversation_id, first, ["needle again"])
    assert world.ids("needle") == [third, second, first]


def test_messages_of_one_moment_are_all_found(world: World) -> None:
    conversation = world.conversation()
    ids = []
    for number in range(200):
        world.moment = THEN
        ids.append(world.message(world.conversation() if number % 2 else conversation, "twins"))
    found, cursor = [], None
    while True:
        page = world.search.find(world.owner, "twins", cursor, limit=30)
        found += page.hits
        cursor = page.next_cursor
        if cursor is None:
            break
    assert {hit.message_id for hit in found if hit.conversation_id != conversation} == set(ids[1::2])


@pytest.mark.parametrize("query", ["学习", "习中文", "学", "文", "中文 学习"])
def test_a_chinese_word_in_mid_sentence_is_found(world: World, query: str) -> None:
    said = world.said("我喜欢学习中文。")
    world.said("我喜欢跑步。")
    assert world.ids(query) == [said]


def test_pairs_alone_do_not_make_a_longer_word(world: World) -> None:
    world.said("学习和习中，然后中文")
    assert world.ids("学习中文") == []
    assert world.ids("学习 中文") != []


def test_accents_case_and_width_do_not_matter(world: World) -> None:
    said = world.said("Größe: ＣＡＦÉ, naïve, C++")
    for query in ("grosse", "GRÖSSE", "cafe", "ｃａｆｅ", "naive", "c++", "c"):
        assert world.ids(query) == [said], query
    assert world.ids("c#") == []


@pytest.mark.parametrize("query", ["", " ", "...", "*", '"', "🎉", "\x00", "\ud800", "_", "-"])
def test_what_has_no_word_finds_nothing(world: World, query: str) -> None:
    world.said("something")
    found = world.search.find(world.owner, query)
    assert (found.hits, found.next_cursor) == ([], None)


@pytest.mark.parametrize(
    "query",
    [
        '"a',
        "a*",
        "NEAR(a b)",
        "a AND",
        "NOT a",
        "terms:a",
        "^a",
        "a' OR 1=1 --",
        "a & b | !c",
        "a:*",
        "@" + "0" * 32,
        "(a",
    ],
)
def test_the_databases_own_signs_are_no_orders(world: World, query: str) -> None:
    assert world.find(query) == []


def test_nobody_finds_what_is_not_theirs(world: World) -> None:
    other = world.person()
    world.said("secret", owner=other)
    assert world.ids("secret") == []
    assert world.ids(other) == world.ids(f"@{other}") == []
    assert len(world.ids("secret", owner=other)) == 1


def test_a_deleted_conversation_is_not_found_and_is_again_when_restored(world: World) -> None:
    conversation = world.conversation("needle title")
    world.message(conversation, "needle")
    for moment, count in ((THEN, 0), (None, 1)):
        with world.database.writing() as db:
            db.execute(update(ConversationTable).values(deleted_at=moment))
        assert len(world.find("needle")) == count


def test_removing_rows_removes_them_from_the_index_too(world: World) -> None:
    conversation = world.conversation("needle")
    kept, gone = world.message(conversation, "needle"), world.message(conversation, "needle gone")
    with world.database.writing() as db:
        db.execute(delete(MessageTable).where(MessageTable.id == gone))
    assert world.ids("needle") == [kept]
    with world.database.writing() as db:
        db.execute(delete(ConversationTable))
        assert db.scalar(select(func.count()).select_from(SearchEntryTable)) == 0
    assert_sound(world.database)
    assert raw_ids(world.database, "needle") == []


def test_titles_are_found_and_an_old_title_is_not(world: World) -> None:
    conversation = world.conversation("Old name")
    assert [(hit.conversation_id, hit.message_id, hit.where) for hit in world.find("old")] == [
        (conversation, None, "title")
    ]
    with world.database.writing() as db:
        db.get_one(ConversationTable, conversation).title = "New name"
        index_title(db, world.owner, conversation, "New name")
    assert world.find("old") == []
    (hit,) = world.find("new")
    assert (hit.text, hit.marks) == ("New name", ((0, 3),))


@pytest.mark.parametrize(
    ("answer", "reasoning", "query", "where"),
    [
        ("The answer is here", "Thinking", "answer", "answer"),
        ("Forty-two", "Thinking of answers", "answers", "reasoning"),
        ("both here", "both here", "both", "answer"),
        ("one", "one and two", "one two", "reasoning"),
    ],
)
def test_a_hit_says_where_it_is(world: World, answer: str, reasoning: str, query: str, where: str) -> None:
    world.said(answer, reasoning)
    (hit,) = world.find(query)
    assert hit.where == where


def test_a_question_is_found_with_its_words_marked(world: World) -> None:
    said = world.said("🎉 Wie groß ist der Mond?")
    (hit,) = world.find("mond gross")
    assert (hit.message_id, hit.where, hit.text) == (said, "question", "🎉 Wie groß ist der Mond?")
    assert hit.marks == ((7, 11), (20, 24))


def test_a_conversation_is_once_on_a_page_with_its_newest_hit(world: World) -> None:
    busy = world.conversation("needle")
    newest = [world.message(busy, "needle") for _ in range(5)][-1]
    alone = world.said("needle")
    assert world.ids("needle") == [alone, newest]


@pytest.mark.parametrize("walks", [1, 3, 100])
def test_pages_go_through_everything_once(world: World, monkeypatch: pytest.MonkeyPatch, walks: int) -> None:
    monkeypatch.setattr(find, "_WALKS", walks)
    monkeypatch.setattr(find, "_CANDIDATES", 7)
    monkeypatch.setattr(find, "_AT_ONCE", 3)
    monkeypatch.setattr(find, "_WALKED", 5)
    said = [world.said(f"needle number{number}") for number in range(40)]
    seen: list[str | None] = []
    cursor, pages = None, 0
    while pages == 0 or cursor is not None:
        page = world.search.find(world.owner, "needle", cursor, limit=6)
        seen += [hit.message_id for hit in page.hits]
        cursor, pages = page.next_cursor, pages + 1
    assert seen == said[::-1]


def test_a_page_of_a_busy_conversation_ends_and_the_next_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "_CANDIDATES", 6)
    monkeypatch.setattr(find, "_AT_ONCE", 3)
    monkeypatch.setattr(find, "_WALKED", 5)
    older = world.said("needle")
    busy = world.conversation()
    for _ in range(20):
        world.message(busy, "needle")
    first = world.search.find(world.owner, "needle", limit=5)
    assert [hit.conversation_id for hit in first.hits] == [busy]
    cursor, seen = first.next_cursor, []
    while cursor is not None:
        page = world.search.find(world.owner, "needle", cursor, limit=5)
        seen += [hit.message_id for hit in page.hits]
        cursor = page.next_cursor
    assert seen[-1] == older


def test_a_common_word_is_walked_to_only_so_far_for_a_page(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "_WALKED", 5)
    monkeypatch.setattr(find, "_WALKS", 2)
    older = world.said("needle")
    busy = world.conversation()
    for _ in range(20):
        world.message(busy, "needle")
    first = world.search.find(world.owner, "needl")
    assert [hit.conversation_id for hit in first.hits] == [busy]
    second = world.search.find(world.owner, "needl", first.next_cursor)
    third = world.search.find(world.owner, "needl", second.next_cursor)
    assert [hit.message_id for hit in third.hits] == [older]
    assert third.next_cursor is None


def test_the_last_page_says_that_it_is_the_last(world: World) -> None:
    for _ in range(4):
        world.said("needle")
    page = world.search.find(world.owner, "needle", limit=2)
    assert page.next_cursor is not None
    assert world.search.find(world.owner, "needle", page.next_cursor, limit=2).next_cursor is None


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1" * 30, "１"])
def test_a_cursor_that_is_none_of_ours_is_refused(world: World, cursor: str) -> None:
    with pytest.raises(BadRequest, match="first page"):
        world.search.find(world.owner, "x", cursor)


def test_what_a_guest_had_is_found_by_the_account_it_moved_to(world: World) -> None:
    other = world.person()
    said = world.said("needle", owner=other)
    with world.database.writing() as db:
        db.execute(update(ConversationTable).where(ConversationTable.owner_id == other).values(owner_id=world.owner))
        move_entries(db, other, world.owner)
    assert world.ids("needle") == [said]
    assert world.ids("needle", owner=other) == []
    assert_sound(world.database)


def test_claiming_a_guest_moves_what_is_found(world: World) -> None:
    said = world.said("needle")
    account = world.people.add_account(username="ada", username_key="ada", password_hash="hash")
    world.people.claim(world.owner, account, with_settings=False)
    assert world.ids("needle", owner=account) == [said]
    assert_sound(world.database)


def test_the_background_wakes_when_it_is_nudged(world: World) -> None:
    def until_found(title: str) -> None:
        while not world.find(title):
            time.sleep(0.01)

    async def work() -> None:
        background = Indexer(world.database)
        task = asyncio.create_task(background.run())
        for title in ("first", "second"):
            world.conversation(title, version=0)
            background.nudge()
            async with asyncio.timeout(30):
                await asyncio.to_thread(until_found, title)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(work())


@pytest.mark.only_on("sqlite")
def test_a_message_whose_row_is_damaged_is_found_all_the_same(world: World) -> None:
    talk = world.conversation("title", version=0)
    message = world.message(talk, "needle", is_indexed=False)
    with world.database.writing() as db:
        db.execute(text("UPDATE messages SET created_at = 'some day' WHERE id = :id"), {"id": message})
    background = Indexer(world.database)
    while background.index_some():
        pass
    found = world.search.find(world.owner, "needle")
    assert [hit.message_id for hit in found.hits] == [message]
    assert found.is_complete


def test_a_conversation_that_cannot_be_read_keeps_no_other_from_being_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, sound = world.conversation("broken", version=0), world.conversation("sound", version=0)
    world.message(broken, "needle that cannot be read", is_indexed=False)
    message = world.message(sound, "needle", is_indexed=False)

    def failing(*texts: str) -> list[str]:
        if any("cannot be read" in text for text in texts):
            raise ValueError
        return terms(*texts)

    monkeypatch.setattr(indexer, "terms", failing)
    background = Indexer(world.database)
    while background.index_some():
        pass
    found = world.search.find(world.owner, "needle")
    assert [hit.message_id for hit in found.hits] == [message]
    assert not found.is_complete


def test_an_old_database_is_indexed_in_the_background(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexer, "_CONVERSATIONS", 2)
    long = world.conversation("long title", version=0)
    messages = [world.message(long, f"needle word{number}", is_indexed=False) for number in range(10)]
    for number in range(4):
        world.conversation(f"title{number}", version=0)
    assert not world.search.find(world.owner, "needle").is_complete
    background = Indexer(world.database)
    rounds = 0
    while background.index_some(limit=3):
        rounds += 1
        assert rounds < 50
    assert rounds > 3
    assert world.search.find(world.owner, "needle").is_complete
    assert world.ids("word0") == [messages[0]]
    assert len(world.find("title3")) == len(world.find("long")) == 1
    assert_sound(world.database)


def test_other_rules_make_entries_anew_without_a_second_one(world: World) -> None:
    conversation = world.conversation("title")
    message = world.message(conversation, "needle")
    with world.database.writing() as db:
        before = db.scalars(select(SearchEntryTable.id).order_by(SearchEntryTable.id)).all()
        db.execute(update(SearchEntryTable).values(terms="rubbish"))
        db.execute(update(ConversationTable).values(search_version=SEARCH_VERSION + 1))
    assert Indexer(world.database).index_some() == 1
    assert world.ids("needle") == [message]
    assert world.find("rubbish") == []
    with world.database.reading() as db:
        assert db.scalars(select(SearchEntryTable.id).order_by(SearchEntryTable.id)).all() == before


def test_what_is_deleted_or_being_answered_is_left_alone_until_it_is_not(world: World) -> None:
    deleted, open_one = world.conversation("needle", version=0), world.conversation("needle", version=0)
    answer = world.message(open_one, "half an ans", is_indexed=False)
    run = RunTable(
        id=new_id(),
        owner_id=world.owner,
        conversation_id=open_one,
        answer_id=answer,
        client_key="k",
        state="running",
        effort="normal",
        created_at=THEN,
    )
    with world.database.writing() as db:
        db.execute(update(ConversationTable).where(ConversationTable.id == deleted).values(deleted_at=THEN))
        db.add(run)
    background = Indexer(world.database)
    assert background.index_some() == 0
    assert not world.search.find(world.owner, "x").is_complete
    with world.database.writing() as db:
        db.execute(update(ConversationTable).values(deleted_at=None))
        db.execute(update(RunTable).values(state="done"))
    assert background.index_some() == 2
    assert len(world.find("needle")) == 2


def test_a_huge_message_of_different_words_can_be_kept_and_found(world: World) -> None:
    conversation = world.conversation()
    message = world.message(conversation, " ".join(f"w{number:x}" for number in range(200_000)), "needle")
    assert world.ids("w0 w1 w2") == [message]
    wide = world.message(conversation, " ".join(chr(0x20000 + n) * 64 for n in range(2000)))
    assert wide in world.ids("\U00020001")


@given(words=st.text(st.characters(), max_size=80), typed=st.text(st.characters(), max_size=80))
@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_any_word_of_a_text_finds_it_and_nothing_typed_is_an_error(world: World, words: str, typed: str) -> None:
    kept = words.encode("utf-8", "replace").decode().replace("\x00", "")
    with world.database.writing() as db:
        db.execute(delete(ConversationTable))
    message = world.said(kept)
    world.find(typed)
    for word in kept.split():
        assert world.ids(word) in ([message], []), word
        if any(char.isalnum() for char in word):
            assert world.ids(word) == [message], word


def test_words_of_what_was_deleted_are_in_no_file(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/ponder.db")
    database.migrate()
    world = World(database)
    for number in range(300):
        world.said(f"usual words number{number} " + " ".join(f"filler{number * 7 + n}" for n in range(40)))
    gone = world.conversation("Xylophonquartett")
    world.message(gone, "about the Zwiebelmarmelade", "and 罕见词语 too")
    world.said("later words")
    marks = [mark.encode() for mark in ("xylophonquartett", "zwiebelmarmelade", "wiebelmarm", "罕见")]
    assert all(any(mark in content.lower() for content in files(tmp_path)) for mark in marks)
    with database.writing() as db:
        db.execute(delete(ConversationTable).where(ConversationTable.id == gone))
    forget_deleted(database)
    for content in files(tmp_path):
        for mark in marks:
            assert mark not in content.lower()
    assert_sound(database)
    assert len(world.find("usual")) == 50
    database.close()


def files(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in folder.iterdir() if file.is_file()]


def assert_sound(database: Database) -> None:
    """FTS5's index is exactly what the entries say."""
    if database.is_sqlite:
        with database.writing() as db:
            db.execute(text("INSERT INTO search_terms (search_terms, rank) VALUES ('integrity-check', 1)"))


def raw_ids(database: Database, term: str) -> list[int]:
    if not database.is_sqlite:
        return []
    with sqlite3.connect(str(database.url.database)) as connection:
        rows = connection.execute(
            "SELECT rowid FROM search_terms WHERE search_terms MATCH ?", (f'"{term}"',)
        ).fetchall()
    connection.close()
    return [row[0] for row in rows]

import io
import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import BadImport, NotFound, StorageFailed, TooManyAttempts
from app.history.people import People
from app.history.portable import importing, reading
from app.history.portable.importing import Imports
from app.history.portable.reading import parts
from app.history.store import Store, StoredMessage, branch, now
from app.history.tables import ConversationTable, MessageTable
from tests.exports import SAMPLES, Desk, answer, as_file, conversation, question

ROOT = Path(__file__).parents[2]
MANY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def desk(store: Store, tmp_path: Path) -> Desk:
    return Desk(store, Imports(store.database, tmp_path / "imports"))


def trees_of(desk: Desk, owner: str) -> dict[str, list[StoredMessage]]:
    """The messages of every conversation, by title."""
    found = []
    for is_archived in (False, True):
        found += desk.store.conversations(owner, None, 100, is_archived=is_archived)[0]
    return {item.title: desk.store.conversation(owner, item.id)[1] for item in found}


def shown(desk: Desk, owner: str) -> list[tuple[str, str, str]]:
    """Role, text and reasoning of the shown branch of the only conversation."""
    ((item,), _) = desk.store.conversations(owner, None, 10)
    found, messages = desk.store.conversation(owner, item.id)
    return [(message.role, message.text, message.reasoning) for message in branch(messages, found.leaf_id)]


# What comes in


def test_chatgpts_pieces_become_one_answer_with_its_reasoning(desk: Desk) -> None:
    owner = desk.person()
    found = desk.take(owner, (SAMPLES / "chatgpt.json").read_bytes())
    assert (found.format, found.conversations, found.messages) == ("chatgpt", 2, 7)
    assert found.left_out == {"system": 2, "tool": 2, "attachment": 1}
    first, reply, more, last, other = trees_of(desk, owner)["Primes below 30"]
    assert first.text == "How many primes are below 30?"
    assert reply.text == "There are **ten**."
    assert reply.reasoning == "**Counting primes**\n\n2, 3, 5, 7, 11, 13, 17, 19, 23, 29.\n\nThat is ten."
    assert reply.run is not None
    assert (reply.run.state, reply.run.model, reply.run.timing) == ("done", "gpt-5-2-thinking", {"thinking_s": 8.0})
    assert (more.text, more.parent_id) == ("And their sum? 😀", reply.id)
    assert last.text == "````\nprint(129) # ``` in it\n````\n\nThe sum is 129."
    assert (other.text, other.parent_id) == ("Ten: 2, 3, 5, 7, 11, 13, 17, 19, 23, 29.", first.id)
    assert first.created_at == datetime(2025, 11, 13, 2, 13, 21, tzinfo=UTC)


def test_questions_in_a_row_are_one_that_waits_to_be_asked_again(desk: Desk) -> None:
    owner = desk.person()
    desk.take(owner, (SAMPLES / "chatgpt.json").read_bytes())
    asked, nothing = trees_of(desk, owner)["Hello"]
    assert asked.text == "Hello\n\nAre you there?"
    assert (nothing.text, nothing.parent_id) == ("", asked.id)
    assert nothing.run is not None
    assert nothing.run.state == "interrupted"


def test_open_webuis_reasoning_is_taken_out_of_the_text(desk: Desk) -> None:
    owner = desk.person()
    found = desk.take(owner, (SAMPLES / "open-webui.json").read_bytes())
    assert (found.format, found.conversations, found.messages) == ("open-webui", 1, 5)
    assert found.left_out == {"system": 1, "attachment": 1, "tool": 1}
    _, first, second, *_ = trees_of(desk, owner)["Why the sky is blue"]
    assert first.text == "Because of Rayleigh scattering."
    assert first.reasoning == "Okay, the sky.\n\nRayleigh: blue scatters more."
    assert second.reasoning == "Is 1 < 2?\nI think it's so."
    assert second.text == "Short waves scatter more.\n\n<details><summary>More</summary>\nmy own fold\n</details>"
    assert second.run is not None
    assert (second.run.model, second.run.timing) == ("qwq:32b", {"thinking_s": 21.0})
    assert [text for _, text, _ in shown(desk, owner)][-2:] == ["And at dusk?", "Red."]
    (item,), _ = desk.store.conversations(owner, None, 10)
    assert item.is_pinned


def test_old_chats_of_open_webui_are_read_too(desk: Desk) -> None:
    owner = desk.person()
    found = desk.take(owner, (SAMPLES / "open-webui-old.json").read_bytes())
    assert (found.format, found.conversations) == ("open-webui", 2)
    assert found.left_out == {"system": 1, "attachment": 1}
    trees = trees_of(desk, owner)
    assert [message.text for message in trees["Ahoy"]] == ["Ahoy", "Ahoy!"]
    assert [message.text for message in trees["Bare"]] == ["One?", "One."]


def test_every_imported_message_is_marked_and_its_html_is_drawn_when_it_is_read(desk: Desk) -> None:
    owner = desk.person()
    for sample in SAMPLES.iterdir():
        desk.take(owner, sample.read_bytes())
    with desk.store.database.reading() as db:
        rows = db.query(MessageTable).all()
        versions = {row.search_version for row in db.query(ConversationTable).all()}
    assert {(row.is_imported, row.html, row.renderer_version) for row in rows} == {(True, "", 0)}
    assert versions == {0}


@pytest.mark.parametrize(
    ("nodes", "leaf", "expected"),
    [
        ([("a", None, "assistant", "Hello!")], "a", [("user", "…"), ("assistant", "Hello!")]),
        (
            [("q", None, "user", "One"), ("s", "q", "system", "Be brief."), ("a", "s", "assistant", "1")],
            "s",
            [("user", "One"), ("assistant", "1")],
        ),
        (
            [("q", "gone", "user", "One"), ("a", "q", "assistant", "1"), ("b", "a", "assistant", "and 2")],
            "a",
            [("user", "One"), ("assistant", "1\n\nand 2")],
        ),
        (
            [("q", None, "user", "One"), ("a", "q", "assistant", "1"), ("r", "q", "assistant", "2")],
            "a",
            [("user", "One"), ("assistant", "1")],
        ),
        (
            [("q", None, "user", "One"), ("a", "q", "assistant", "1"), ("r", None, "user", "Two")],
            "nowhere",
            [("user", "Two"), ("assistant", "")],
        ),
        ([("q", None, "user", "One\x00")], None, [("user", "One\N{REPLACEMENT CHARACTER}"), ("assistant", "")]),
        ([("q", None, "tool", "129")], None, []),
    ],
)
def test_a_tree_that_is_not_of_our_kind_is_made_one(
    desk: Desk, nodes: list[tuple[str, str | None, str, str]], leaf: str | None, expected: list[tuple[str, str]]
) -> None:
    owner = desk.person()
    desk.take(owner, json.dumps([open_webui_chat(nodes, leaf)]).encode())
    assert [(role, text) for role, text, _ in shown(desk, owner)] == expected


def open_webui_chat(nodes: list[tuple[str, str | None, str, str]], leaf: str | None) -> dict[str, Any]:
    messages = {
        key: {"id": key, "parentId": parent, "role": role, "content": text} for key, parent, role, text in nodes
    }
    return {"title": "T", "chat": {"history": {"messages": messages, "currentId": leaf}}}


@st.composite
def foreign_trees(draw: st.DrawFn) -> list[tuple[str, str | None, str, str]]:
    count = draw(st.integers(0, 9))
    roles = st.sampled_from(["user", "assistant", "system", "tool", ""])
    return [
        (
            str(place),
            draw(st.sampled_from([None, "gone", *map(str, range(place))])),
            draw(roles),
            draw(st.sampled_from(["", "x", "\ud800", "<details", '<details type="reasoning">\n> a\n</details>b'])),
        )
        for place in range(count)
    ]


@MANY
@given(nodes=foreign_trees(), leaf=st.sampled_from([None, "0", "3", "gone"]))
def test_whatever_tree_comes_in_it_is_one_of_ours_and_can_be_exported_and_imported_again(
    desk: Desk, nodes: list[tuple[str, str | None, str, str]], leaf: str | None
) -> None:
    first, second = desk.person(), desk.person()
    desk.take(first, json.dumps([open_webui_chat(nodes, leaf)]).encode())
    file = desk.file_of(first)
    desk.take(second, file)
    assert desk.file_of(second) == file


def test_times_that_cannot_be_are_replaced(desk: Desk) -> None:
    owner = desk.person()
    chat = open_webui_chat([("q", None, "user", "One")], None)
    for said in (-5, 1e300, "yesterday", "0001-01-01", True, {}, 9_999_999_999, None):
        chat["updated_at"] = chat["created_at"] = said
        chat["chat"]["history"]["messages"]["q"]["timestamp"] = said
        desk.take(owner, json.dumps([chat]).encode())
    items, _ = desk.store.conversations(owner, None, 100)
    assert all(now() - timedelta(minutes=5) < item.updated_at <= now() for item in items)


def test_milliseconds_and_written_times_are_times(desk: Desk) -> None:
    owner = desk.person()
    chat = open_webui_chat([("q", None, "user", "One")], None)
    for said in (1700000000, 1700000000000, "2023-11-14T22:13:20Z", "2023-11-14T23:13:20+01:00"):
        chat["updated_at"] = chat["created_at"] = said
        desk.take(owner, json.dumps([chat]).encode())
    items, _ = desk.store.conversations(owner, None, 100)
    assert {item.updated_at for item in items} == {datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)}


def test_a_title_is_cut_and_a_missing_one_is_the_question(desk: Desk) -> None:
    owner = desk.person()
    long = open_webui_chat([("q", None, "user", "One")], None) | {"title": "x" * 500}
    none = open_webui_chat([("q", None, "user", "# Two\nmore")], None) | {"title": None}
    desk.take(owner, json.dumps([long, none]).encode())
    assert set(trees_of(desk, owner)) == {"x" * 199 + "…", "# Two"}


# In order


def recencies(desk: Desk, owner: str) -> list[tuple[str, int]]:
    with desk.store.database.reading() as db:
        rows = db.query(ConversationTable).filter_by(owner_id=owner).order_by(ConversationTable.recency).all()
        return [(row.title, row.recency) for row in rows]


def test_our_files_order_is_kept_and_nothing_is_used_in_the_future(desk: Desk) -> None:
    owner = desk.person()
    times = ["2025-03-01", "2024-01-01", "2999-01-01", "2025-05-05"]
    talks = [conversation(title=f"{n}", updated_at=f"{day}T00:00:00.000000Z") for n, day in enumerate(times)]
    desk.take(owner, as_file(*talks))
    found = recencies(desk, owner)
    assert [title for title, _ in found] == ["0", "1", "2", "3"]
    assert len({recency for _, recency in found}) == 4
    march = int(datetime(2025, 3, 1, tzinfo=UTC).timestamp() * 1e6)
    assert [recency for _, recency in found][:2] == [march, march + 1]
    assert found[-1][1] <= now().timestamp() * 1e6


def test_foreign_chats_are_in_the_order_of_their_times(desk: Desk) -> None:
    owner = desk.person()
    chats = [
        open_webui_chat([("q", None, "user", "x")], None) | {"title": title, "updated_at": second}
        for title, second in (("new", 1700000300), ("old", 1700000100), ("middle", 1700000200))
    ]
    desk.take(owner, json.dumps(chats).encode())
    assert [title for title, _ in recencies(desk, owner)] == ["old", "middle", "new"]


# What is refused


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


A_CYCLE = open_webui_chat([("1", "2", "user", "x"), ("2", "1", "assistant", "y")], "1")
OURS = as_file(conversation(title="Fine"), conversation()).decode()


@pytest.mark.parametrize(
    ("file", "where"),
    [
        (b"", "ends too early"),
        (b"\x00" * 50, "not valid JSON"),
        (b"hello", "not valid JSON"),
        (b"5", "single value"),
        (b"{}", "no conversation"),
        (b"[]", "no conversation"),
        (b"[5]", "Conversation 1 is neither"),
        (b'[{"a": 1}]', "Conversation 1 is neither"),
        (b'{"mapping": {}}', "“mapping”"),
        (b'{"format": "other"}', "“format”"),
        (b'{"format": "ponder", "version": 2}', "version 1"),
        (b'{"format": "ponder", "version": true}', "version 1"),
        (b'{"format": "ponder", "version": 1}', "“conversations”"),
        (b'{"format": "ponder", "version": 1, "conversations": {}}', "must be a list"),
        (b'{"version": 1, "conversations": []}', "“format”"),
        (b'{"format": "ponder", "format": "ponder"}', "twice"),
        (b'{"format": "ponder", "version": 1, "conversations": [], "exported_at": 1}', "exported_at"),
        (OURS[:-1].encode(), "too early"),
        (OURS[: len(OURS) // 2].encode(), "too early"),
        (OURS.encode() + b"x", "behind the end"),
        (OURS.replace('"title"', '"title":"x","title"').encode(), "Conversation 1 has “title” twice"),
        (OURS.replace('"Primes"', "NaN").encode(), "Conversation 2 cannot be read"),
        (OURS.replace('"Primes"', "Infinity").encode(), "Conversation 2 cannot be read"),
        (OURS.replace('"Primes"', "1e999").encode(), "number is too large"),
        (OURS.replace('"Primes"', "9" * 40).encode(), "number is too large"),
        (OURS.replace('"Primes"', '"\\ud800"').encode(), "no text"),
        (OURS.replace('"Primes"', '"\\ud800\\u0041"').encode(), "no text"),
        (OURS.replace('"Primes"', '"\\u0000"').encode(), "no text"),
        (OURS.encode().replace(b"Primes", b"\xff\xfe"), "not UTF-8"),
        (OURS.encode().replace(b"Primes", b"\xed\xa0\x80"), "not UTF-8"),
        (as_file(conversation(title="x" * 201)), "Conversation 1: “title”"),
        (as_file(conversation(title=5)), "Conversation 1: “title”"),
        (as_file(conversation(question(), answer(1), role="x")), "Conversation 1: “role”"),
        (as_file(conversation(), conversation({"role": "system", "text": "Obey."})), "Conversation 2, message 1"),
        (as_file(conversation(question(), answer(1, is_admin=True))), "message 2: “is_admin”"),
        (as_file(conversation(question(), answer(2))), "message 2: its parent 2 does not stand before it"),
        (as_file(conversation(question(parent=2), answer(1))), "message 1: its parent 2"),
        (as_file(conversation(question(), answer(True))), "message 2"),
        (as_file(conversation(question(), answer(1), answer(2))), "message 3: an answer follows an answer"),
        (as_file(conversation(question(), answer(1), question(parent=1))), "message 3: a question follows"),
        (as_file(conversation(question(), answer(1), question(parent=2), leaf=2)), "message 3: this question has no"),
        (as_file(conversation(leaf=1)), "“leaf”"),
        (as_file(conversation(leaf=3)), "“leaf”"),
        (as_file(conversation(leaf=None)), "“leaf”"),
        (as_file(conversation(created_at="2025-02-30T00:00:00.000000Z")), "no such time"),
        (as_file(conversation(created_at="1925-02-03T00:00:00.000000Z")), "“created_at”"),
        (as_file(conversation(created_at=1763000000)), "“created_at”"),
        (as_file(conversation(question(), answer(1, run={"state": "running"}))), "message 2: “run"),
        (json.dumps([A_CYCLE]).encode(), "Conversation 1 (“T”): its messages hang on each other in a circle"),
        (json.dumps([A_CYCLE | {"mapping": {}}, A_CYCLE]).encode(), "Conversation 2 is in another format"),
        (json.dumps([{"title": "x", "mapping": {"a": 5}}]).encode(), "Conversation 1 (“x”), message 1"),
        (json.dumps([{"title": "x", "mapping": []}]).encode(), "“mapping”"),
        (json.dumps([{"messages": [5]}]).encode(), "Conversation 1, message 1"),
        (deep(21), "deeper than 20"),
        (deep(100_000), "deeper than 20"),
        (json.dumps([{"chat": {"history": {"a": json.loads(deep(20))}}}]).encode(), "Conversation 1 is nested deeper"),
        (b'{"format":{"a":' + deep(30) + b"}}", "The file is nested deeper than 20"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_what_is_wrong_where_and_leaves_nothing(
    desk: Desk, tmp_path: Path, file: bytes, where: str
) -> None:
    owner = desk.person()
    before = desk.rows()
    with pytest.raises(BadImport) as caught:
        desk.take(owner, file)
    assert where in caught.value.message
    assert desk.rows() == before
    assert list((tmp_path / "imports").iterdir()) == []


def test_depth_is_counted_from_the_files_first_bracket(desk: Desk) -> None:
    owner = desk.person()
    for levels, is_taken in ((20, True), (21, False)):
        chat = b'[{"messages":[],"extra":' + deep(levels - 2) + b"}]"
        if is_taken:
            desk.take(owner, chat)
        else:
            with pytest.raises(BadImport, match="deeper than 20"):
                desk.take(owner, chat)


def test_too_many_messages_are_refused(desk: Desk) -> None:
    owner = desk.person()
    before = desk.rows()
    many = [message for n in range(5001) for message in (question(), answer(2 * n + 1, run=None))]
    with pytest.raises(BadImport, match="at most 10000"):
        desk.take(owner, as_file(conversation(*many)))
    nodes = [(str(n), None, "user", "x") for n in range(10_001)]
    with pytest.raises(BadImport, match="more than 10,000 messages"):
        desk.take(owner, json.dumps([open_webui_chat(nodes, None)]).encode())
    # Each of them would get an empty answer
    with pytest.raises(BadImport, match="more than 10,000 messages"):
        desk.take(owner, json.dumps([open_webui_chat(nodes[:5001], None)]).encode())
    assert desk.rows() == before


def test_a_text_may_have_four_megabytes_however_it_is_written(desk: Desk) -> None:
    owner = desk.person()
    most = 4 * 1024 * 1024
    for text in ("x" * most, "é" * (most // 2)):
        for file in (
            as_file(conversation(question(text), answer(1))),
            as_file(conversation(question(), answer(1, text))),
        ):
            desk.take(owner, file)
            with pytest.raises(BadImport, match="Conversation 1 has a text that is longer than 4 MB"):
                desk.take(owner, file.replace(text.encode(), (text + "y").encode()))
    escaped = as_file(conversation(question("@@"), answer(1))).replace(b"@@", b"\\u0041" * most)
    assert desk.take(owner, escaped).messages == 2


def test_a_value_without_an_end_is_not_collected() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += size
            return (b'["' if self.given == size else b"") + b"x" * size

    file = Endless()
    with pytest.raises(BadImport, match="longer than 4 MB"):
        list(parts(file))  # type: ignore[arg-type]
    assert file.given < 32 * 1024 * 1024


def test_joined_pieces_are_bounded_as_texts_are(desk: Desk) -> None:
    owner = desk.person()
    piece = "x" * (3 * 1024 * 1024)
    nodes = [("q", None, "user", "x"), ("a", "q", "assistant", piece), ("b", "a", "assistant", piece)]
    with pytest.raises(BadImport, match="too long to be joined"):
        desk.take(owner, json.dumps([open_webui_chat(nodes, None)]).encode())
    # Every piece is the end of a branch, so that each would be written again and again
    comb = [("0", None, "user", "x")]
    for n in range(1, 2000):
        comb += [(f"a{n}", f"a{n - 1}" if n > 1 else "0", "assistant", "y"), (f"q{n}", f"a{n}", "user", "z")]
    with pytest.raises(BadImport, match="too long to be joined"):
        desk.take(owner, json.dumps([open_webui_chat(comb, None)]).encode())


def test_texts_made_to_be_slow_are_not(desk: Desk) -> None:
    owner = desk.person()
    for text in ("<details " * 100_000, "<details>" * 100_000, "\\" * 1_000_000, "`" * 1_000_000, "&gt;" * 200_000):
        nodes = [("q", None, "user", text), ("a", "q", "assistant", text)]
        desk.take(owner, json.dumps([open_webui_chat(nodes, None)]).encode())


# All or nothing


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "_ROWS_AT_ONCE", 3)


def many_talks(count: int = 20) -> bytes:
    return as_file(*(conversation(title=f"{n}") for n in range(count)))


@pytest.mark.usefixtures("small_batches")
def test_nobody_sees_anything_before_all_is_there(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = desk.person()
    seen = []

    def look(self: Any) -> None:
        seen.append((desk.rows()["conversations"], len(desk.store.conversations(owner, None, 100)[0])))
        seen.append((0, desk.file_of(owner).count(b"title")))
        show(self)

    show = importing._Writer.show
    monkeypatch.setattr(importing._Writer, "show", look)
    desk.take(owner, many_talks())
    assert seen == [(20, 0), (0, 0)] or seen == [(19, 0), (0, 0)]
    assert len(desk.store.conversations(owner, None, 100)[0]) == 20


@pytest.mark.usefixtures("small_batches")
def test_what_fails_late_takes_back_what_was_written_early(desk: Desk) -> None:
    owner = desk.person()
    desk.take(owner, many_talks(2))
    before, file = desk.rows(), desk.file_of(owner)
    for broken in (many_talks()[:-2], many_talks()[:-2] + b",5]}", many_talks() + b"x"):
        with pytest.raises(BadImport):
            desk.take(owner, broken)
        assert desk.rows() == before
    assert desk.file_of(owner) == file


@pytest.mark.usefixtures("small_batches")
def test_a_database_that_fails_in_the_middle_keeps_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = desk.person()
    before = desk.rows()
    write, times = importing._Writer._write, iter(range(100))

    def fail(self: Any) -> None:
        if next(times) == 4:
            raise StorageFailed("The disk is full.")
        write(self)

    monkeypatch.setattr(importing._Writer, "_write", fail)
    with pytest.raises(StorageFailed):
        desk.take(owner, many_talks())
    assert desk.rows() == before


@pytest.mark.usefixtures("small_batches")
def test_what_a_crash_leaves_is_seen_by_nobody_and_removed_in_an_hour(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = desk.person()
    monkeypatch.setattr(importing._Writer, "show", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(importing._Writer, "undo", lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        desk.take(owner, many_talks())
    assert desk.store.conversations(owner, None, 100)[0] == []
    with desk.store.database.reading() as db:
        ends = {row.deleted_at for row in db.query(ConversationTable).all()}
    assert len(ends) == 1
    assert now() + timedelta(minutes=59) < ends.pop() < now() + timedelta(minutes=61)  # type: ignore[operator]


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("is_claimed", [False, True])
@pytest.mark.usefixtures("small_batches")
def test_an_import_fails_whole_when_its_person_is_deleted_or_signs_in_meanwhile(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, is_claimed: bool, is_late: bool
) -> None:
    people, guest, account = People(desk.store.database), desk.person(), desk.account()
    write, times = importing._Writer._write, iter(range(100))

    def leave(self: Any) -> None:
        write(self)
        if next(times) == (6 if is_late else 1):
            people.claim(guest, account, with_settings=False) if is_claimed else people.delete(guest)

    monkeypatch.setattr(importing._Writer, "_write", leave)
    with pytest.raises(NotFound):
        desk.take(guest, many_talks(9))
    assert next(times) == (7 if is_late else 2)
    assert [desk.rows()[name] for name in ("conversations", "messages", "runs")] == [0, 0, 0]


def test_one_file_at_a_time_for_a_person_and_slow_bodies_keep_nobody_out(desk: Desk) -> None:
    people = [desk.person() for _ in range(12)]
    begun = [desk.imports.begin(owner, "192.0.2.1") for owner in people[:10]]
    with pytest.raises(TooManyAttempts, match="Your last import"):
        desk.imports.begin(people[0], "192.0.2.2")
    assert desk.take(people[10], many_talks(1)).conversations == 1
    for upload, file in begun:
        file.close()
        desk.imports.drop(upload)
    assert desk.take(people[0], many_talks(1)).conversations == 1
    assert desk.take(people[0], many_talks(1)).conversations == 1


def test_bodies_of_one_address_leave_room_for_others(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "_MOST_UPLOADS_OF_ONE", 2)
    monkeypatch.setattr(importing, "_MOST_UPLOADS", 3)
    people = [desk.person() for _ in range(5)]
    begun = [desk.imports.begin(owner, "192.0.2.1") for owner in people[:2]]
    with pytest.raises(TooManyAttempts, match="Others"):
        desk.imports.begin(people[2], "192.0.2.1")
    begun.append(desk.imports.begin(people[2], "192.0.2.2"))
    with pytest.raises(TooManyAttempts, match="Others"):
        desk.imports.begin(people[3], "192.0.2.3")
    for upload, file in begun:
        file.close()
        desk.imports.drop(upload)
        desk.imports.drop(upload)
    upload, file = desk.imports.begin(people[3], "192.0.2.1")
    file.close()
    desk.imports.drop(upload)


def test_only_complete_files_stand_in_line(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "_MOST_IN_LINE", 1)
    may_go, take = threading.Event(), desk.imports.take
    monkeypatch.setattr(desk.imports, "take", lambda upload: may_go.wait(20) and take(upload))
    first, second = (desk.imports.begin(desk.person()) for _ in range(2))
    for _, file in (first, second):
        with file:
            file.write(many_talks(1))
    taking = desk.imports.start(first[0])
    with pytest.raises(TooManyAttempts, match="Others"):
        desk.imports.start(second[0])
    may_go.set()
    assert taking.result(20).conversations == 1
    desk.imports.drop(second[0])


def test_a_file_is_readable_by_its_owner_alone_and_what_a_killed_process_left_goes_at_once(
    desk: Desk, tmp_path: Path
) -> None:
    others = Imports(desk.store.database, tmp_path / "imports")
    upload, file = desk.imports.begin(desk.person())
    file.close()
    assert (os.stat(upload.path).st_mode & 0o777, os.stat(upload.path.parent).st_mode & 0o777) == (0o600, 0o700)
    left = upload.path.with_name("left-by-a-killed-process")
    left.write_text("plain text")
    for imports in (others, desk.imports):
        imports.sweep()
        assert upload.path.exists(), "a living process has it"
        assert not left.exists()
        left.write_text("plain text")
    os.utime(upload.path, (0, 0))
    others.sweep()
    assert not upload.path.exists(), "whoever has it has hung for a day"
    desk.imports.drop(upload)
    Imports(desk.store.database, tmp_path / "nowhere").sweep()


def test_a_process_that_is_killed_in_an_upload_leaves_nothing_to_the_next(desk: Desk, tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from app.history.portable.importing import Imports
class Nothing: file = None
_, file = Imports(Nothing(), Path(sys.argv[1])).begin("somebody")
file.write(b"plain text"); file.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    folder = tmp_path / "imports"
    ended = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=False)
    assert ended.returncode == -9
    assert [path.read_bytes() for path in folder.iterdir()] == [b"plain text"]
    Imports(desk.store.database, folder).sweep()
    assert list(folder.iterdir()) == []


@pytest.mark.only_on("sqlite")
@pytest.mark.usefixtures("small_batches")
def test_rows_of_an_import_that_was_cut_go_at_the_next_start(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = desk.person()
    desk.take(owner, many_talks(1))
    before = desk.rows()
    with monkeypatch.context() as patch:
        patch.setattr(importing._Writer, "show", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(importing._Writer, "undo", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            desk.take(owner, many_talks())
    assert desk.rows() != before
    started = Imports(desk.store.database, tmp_path / "imports")
    desk.take(owner, many_talks(3))
    started.remove_hidden()
    assert desk.rows()["conversations"] == before["conversations"] + 3
    started.close()


def test_an_import_that_goes_on_is_not_cleared_away(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    show = importing._Writer.show

    def swept(self: Any) -> None:
        desk.imports.sweep()
        desk.imports.remove_hidden()
        show(self)

    monkeypatch.setattr(importing._Writer, "show", swept)
    assert desk.take(desk.person(), many_talks(5)).conversations == 5


@pytest.mark.usefixtures("small_batches")
def test_a_server_that_ends_ends_its_imports_and_keeps_nothing_of_them(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = desk.person()
    before = desk.rows()
    write, has_begun = importing._Writer._write, threading.Event()

    def close(self: Any) -> None:
        write(self)
        has_begun.set()
        desk.imports._is_closed = True

    monkeypatch.setattr(importing._Writer, "_write", close)
    upload, file = desk.imports.begin(owner)
    with file:
        file.write(many_talks())
    future = desk.imports.start(upload)
    with pytest.raises(StorageFailed, match="restarted"):
        future.result(20)
    desk.imports.close()
    assert has_begun.is_set()
    assert desk.rows() == before


# Anything at all


@MANY
@given(data=st.binary(max_size=200) | st.text(alphabet='[]{}",:\\u0d8ntrue1.e-', max_size=60).map(str.encode))
def test_any_bytes_are_refused_and_leave_nothing(desk: Desk, data: bytes) -> None:
    owner = desk.person()
    before = desk.rows()
    with pytest.raises(BadImport):
        desk.take(owner, data)
    assert desk.rows() == before


VALID = [sample.read_bytes() for sample in sorted(SAMPLES.iterdir())] + [as_file(conversation(), conversation())]


@MANY
@given(file=st.sampled_from(VALID), data=st.data())
def test_a_valid_file_with_changed_bytes_is_taken_whole_or_leaves_nothing(
    desk: Desk, file: bytes, data: st.DataObject
) -> None:
    owner = desk.person()
    before = desk.rows()
    start = data.draw(st.integers(0, len(file)))
    end = data.draw(st.integers(start, min(len(file), start + 40)))
    put = data.draw(st.sampled_from([b"", b"null", b"{}", b"[]", b'"x"', b"1e9", b"-1", b"true", b"\xff", b'"']))
    try:
        found = desk.take(owner, file[:start] + put + file[end:])
    except BadImport:
        assert desk.rows() == before
    else:
        assert desk.rows()["conversations"] == before["conversations"] + found.conversations
        assert desk.rows()["messages"] == before["messages"] + found.messages


def replaced(value: Any, path: list[int], new: Any) -> Any:
    """A JSON value in which the value at a path (of places, taken modulo the sizes) is another."""
    if not path or not isinstance(value, dict | list) or not value:
        return new
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[path[0] % len(keys)]
    made: Any = dict(value) if isinstance(value, dict) else list(value)
    made[key] = replaced(value[key], path[1:], new)
    return made


ODD = st.sampled_from([None, True, 0, -1, 1e300, 2**62, "", "x", "\x00", [], {}, [[]], {"a": 1}, [None], ["x"]])


@MANY
@given(file=st.sampled_from(VALID), path=st.lists(st.integers(0, 20), min_size=1, max_size=8), new=ODD)
def test_a_valid_file_with_another_value_somewhere_is_taken_whole_or_leaves_nothing(
    desk: Desk, file: bytes, path: list[int], new: Any
) -> None:
    owner, other = desk.person(), desk.person()
    before = desk.rows()
    try:
        desk.take(owner, json.dumps(replaced(json.loads(file), path, new)).encode())
    except BadImport:
        assert desk.rows() == before
        return
    exported = desk.file_of(owner)
    desk.take(other, exported)
    assert desk.file_of(other) == exported


ESCAPES = st.lists(
    st.sampled_from(["\\\\", "\\ud83d", "\\ude00", "\\uD83D\\uDE00", "a", "\\n", "ud83d", '\\"']), max_size=12
)


@MANY
@given(pieces=ESCAPES, size=st.integers(1, 9))
def test_half_a_pair_is_never_taken_for_a_character_wherever_the_file_is_cut(pieces: list[str], size: int) -> None:
    class Cut(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            return super().read(size)

    text = "".join(pieces)
    ((part,)) = list(parts(Cut(f'["{text}"]'.encode())))
    expected = "".join("\x00" if "\ud800" <= char <= "\udfff" else char for char in json.loads(f'"{text}"'))
    assert part.value == expected


def test_more_conversations_than_are_taken_are_refused(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_CONVERSATIONS", 3)
    with pytest.raises(BadImport, match="more than 3 conversations"):
        desk.take(desk.person(), many_talks(4))


@pytest.mark.usefixtures("small_batches")
def test_every_sample_is_taken_and_given_the_same_and_nothing_is_kept_of_broken_ones(desk: Desk) -> None:
    first, second = desk.person(), desk.person()
    for sample in sorted(SAMPLES.iterdir()):
        desk.take(first, sample.read_bytes())
    desk.take(first, many_talks())
    file = desk.file_of(first)
    desk.take(second, file)
    assert desk.file_of(second) == file
    before = desk.rows()
    for broken in (many_talks()[:-2], many_talks()[:-2] + b",5]}", file + b"x"):
        with pytest.raises(BadImport):
            desk.take(second, broken)
    assert desk.rows() == before

"""Branches, the list's order, deletion and its undo."""

from datetime import timedelta

import pytest
import time_machine
from sqlalchemy import func, select

from app.errors import BadRequest, ChangedMeanwhile, ConversationBusy, NotFound
from app.history.people import People
from app.history.removal import Removal, remove_conversations
from app.history.store import UNDO, Accepted, Changes, Ending, Store, Written, now
from app.history.tables import ConversationTable, MessageTable, RunTable, Table
from app.history.tree import branch
from app.history.usage import Allowance


@pytest.fixture
def owner(store: Store) -> str:
    return People(store.database).add_guest("a" * 64)


def answered(store: Store, accepted: Accepted, text: str = "Because.") -> Accepted:
    written = Written(text, "Hm.", [], {"reasoning_tokens": 1, "answer_tokens": 2}, {}, 9)
    store.save(accepted.run_id, written, Ending("done", f"<p>{text}</p>", "<p>Hm.</p>", 1))
    return accepted


def ask(store: Store, owner: str, conversation_id: str, text: str, parent_id: str | None = None) -> Accepted:
    accepted = store.accept(
        owner,
        conversation_id,
        text,
        parent_id=parent_id,
        client_key=f"the key of {text}",
        effort="normal",
        options={},
        allowance=Allowance(),
    )
    return answered(store, accepted, f"About {text}")


def retry(store: Store, owner: str, message_id: str, key: str = "a retry's key") -> Accepted:
    return store.retry(owner, message_id, client_key=key, effort="normal", options={}, allowance=Allowance())


def shown(store: Store, owner: str, conversation_id: str) -> list[str]:
    conversation, messages = store.conversation(owner, conversation_id)
    return [message.text for message in branch(messages, conversation.leaf_id)]


def titles(store: Store, owner: str, *, is_archived: bool = False, limit: int = 2) -> list[str]:
    found, cursor = store.conversations(owner, None, limit, is_archived=is_archived)
    while cursor is not None:
        more, cursor = store.conversations(owner, cursor, limit, is_archived=is_archived)
        found += more
    return [conversation.title for conversation in found]


def rows(store: Store, *tables: type[Table]) -> list[int]:
    with store.database.reading() as db:
        return [db.scalar(select(func.count()).select_from(table)) or 0 for table in tables]


# Branches


def test_an_edited_question_is_a_sibling_and_the_old_one_can_be_shown_again(store: Store, owner: str) -> None:
    talk = store.add_conversation(owner).id
    first = ask(store, owner, talk, "one")
    second = ask(store, owner, talk, "two", first.answer_id)
    ask(store, owner, talk, "two, better", first.answer_id)
    assert shown(store, owner, talk) == ["one", "About one", "two, better", "About two, better"]
    assert store.change_conversation(owner, talk, Changes(leaf_id=second.message_id)).leaf_id == second.answer_id
    assert shown(store, owner, talk) == ["one", "About one", "two", "About two"]
    assert len(store.conversation(owner, talk)[1]) == 6


def test_an_edited_first_question_is_a_second_root(store: Store, owner: str) -> None:
    talk = store.add_conversation(owner).id
    first, second = ask(store, owner, talk, "one"), ask(store, owner, talk, "another one")
    _, messages = store.conversation(owner, talk)
    assert [message.parent_id for message in messages if message.role == "user"] == [None, None]
    assert shown(store, owner, talk) == ["another one", "About another one"]
    store.change_conversation(owner, talk, Changes(leaf_id=first.message_id))
    assert shown(store, owner, talk) == ["one", "About one"]
    assert second.is_new


@pytest.mark.parametrize("of", ["question", "answer"])
def test_another_answer_stands_beside_the_first(store: Store, owner: str, of: str) -> None:
    talk = store.add_conversation(owner).id
    first = ask(store, owner, talk, "one")
    again = answered(store, retry(store, owner, first.message_id if of == "question" else first.answer_id), "Or so.")
    assert again.message_id == first.message_id
    assert shown(store, owner, talk) == ["one", "Or so."]
    _, messages = store.conversation(owner, talk)
    assert [message.parent_id for message in messages] == [None, first.message_id, first.message_id]
    assert [message.run.state for message in messages if message.run] == ["done", "done"]


def test_a_retry_sent_twice_is_one_answer(store: Store, owner: str) -> None:
    first = ask(store, owner, store.add_conversation(owner).id, "one")
    one, other = retry(store, owner, first.answer_id), retry(store, owner, first.answer_id)
    assert (one.is_new, other.is_new, one.answer_id) == (True, False, other.answer_id)


def test_nothing_is_asked_again_while_a_run_is_open(store: Store, owner: str) -> None:
    first = ask(store, owner, store.add_conversation(owner).id, "one")
    open_run = retry(store, owner, first.answer_id)
    with pytest.raises(ConversationBusy) as busy:
        retry(store, owner, first.answer_id, "another key")
    assert busy.value.details == {"run_id": open_run.run_id}


def test_an_answer_to_nothing_cannot_be_given_again(store: Store, owner: str) -> None:
    talk = store.add_conversation(owner).id
    with store.database.writing() as db:
        db.add(MessageTable(id="lone", conversation_id=talk, position=1, role="assistant", created_at=now()))
    with pytest.raises(BadRequest, match="no question"):
        retry(store, owner, "lone")


def test_a_leaf_of_another_conversation_cannot_be_shown(store: Store, owner: str) -> None:
    talk, other = store.add_conversation(owner).id, store.add_conversation(owner).id
    elsewhere = ask(store, owner, other, "one")
    with pytest.raises(NotFound):
        store.change_conversation(owner, talk, Changes(leaf_id=elsewhere.answer_id))


def test_a_change_made_on_what_is_not_there_any_more_changes_nothing(store: Store, owner: str) -> None:
    talk = store.add_conversation(owner, "before")
    first = store.change_conversation(owner, talk.id, Changes(title="mine", version=talk.version))
    assert first.version == talk.version + 1
    with pytest.raises(ChangedMeanwhile) as refused:
        store.change_conversation(owner, talk.id, Changes(title="yours", version=talk.version))
    assert refused.value.details == {"version": first.version}
    assert store.item(owner, talk.id).title == "mine"


# The list


def test_pinned_ones_are_on_top_and_archived_ones_apart(store: Store, owner: str) -> None:
    ids = {title: store.add_conversation(owner, title).id for title in ("a", "b", "c", "d", "e")}
    store.change_conversation(owner, ids["b"], Changes(is_pinned=True))
    store.change_conversation(owner, ids["a"], Changes(is_pinned=True))
    store.change_conversation(owner, ids["d"], Changes(is_archived=True))
    assert titles(store, owner) == ["b", "a", "e", "c"]
    assert titles(store, owner, is_archived=True) == ["d"]
    store.change_conversation(owner, ids["d"], Changes(is_archived=False))
    store.change_conversation(owner, ids["b"], Changes(is_pinned=False))
    assert titles(store, owner) == ["a", "e", "d", "c", "b"]


def test_a_renamed_conversation_keeps_its_place(store: Store, owner: str) -> None:
    talk = store.add_conversation(owner, "old").id
    store.add_conversation(owner, "newer")
    store.change_conversation(owner, talk, Changes(title="new name"))
    assert titles(store, owner) == ["newer", "new name"]


@pytest.mark.parametrize("jump", [timedelta(hours=-1), timedelta(hours=1), timedelta(days=-400)])
def test_a_clock_that_jumps_reorders_nothing(store: Store, owner: str, jump: timedelta) -> None:
    first, second = store.add_conversation(owner, "first").id, store.add_conversation(owner, "second").id
    with time_machine.travel(now() + jump, tick=True):
        store.add_conversation(owner, "third")
        ask(store, owner, first, "one")
        assert titles(store, owner) == ["first", "third", "second"]
    ask(store, owner, second, "two")
    assert titles(store, owner) == ["second", "first", "third"]


@pytest.mark.parametrize(
    "cursor", ["", "x", "2-1-a", "0--1-a", "0-1", "0-99999999999999999999-a", "0-1-" + "a" * 33, "0-1-ä"]
)
def test_a_cursor_that_is_none_of_ours_is_refused(store: Store, owner: str, cursor: str) -> None:
    with pytest.raises(BadRequest, match="first page"):
        store.conversations(owner, cursor, 10)


def test_a_page_goes_on_though_the_conversation_it_ended_with_is_gone(store: Store, owner: str) -> None:
    ids = [store.add_conversation(owner, title).id for title in ("c", "b", "a")]
    page, cursor = store.conversations(owner, None, 2)
    assert [found.title for found in page] == ["a", "b"]
    store.delete_conversation(owner, ids[1])
    remove_conversations(store.database, ConversationTable.id == ids[1])
    assert [found.title for found in store.conversations(owner, cursor, 2)[0]] == ["c"]


# Deletion


def test_what_is_deleted_is_gone_at_once_and_back_after_an_undo(store: Store, owner: str) -> None:
    talk = store.add_conversation(owner).id
    accepted = ask(store, owner, talk, "one")
    before = store.conversation(owner, talk)
    store.delete_conversation(owner, talk)
    for attempt in (
        lambda: store.conversation(owner, talk),
        lambda: store.item(owner, talk),
        lambda: store.message(owner, accepted.answer_id),
        lambda: store.run(owner, accepted.run_id),
        lambda: ask(store, owner, talk, "more"),
        lambda: retry(store, owner, accepted.answer_id),
        lambda: store.delete_conversation(owner, talk),
        lambda: store.change_conversation(owner, talk, Changes(title="x")),
    ):
        with pytest.raises(NotFound):
            attempt()
    assert store.conversations(owner, None, 10) == ([], None)
    store.restore_conversation(owner, talk)
    assert store.conversation(owner, talk) == before
    with pytest.raises(NotFound):
        store.restore_conversation(owner, talk)


def test_all_are_deleted_and_only_those_come_back(store: Store, owner: str) -> None:
    for title in ("a", "b", "c"):
        store.add_conversation(owner, title)
    store.delete_conversation(owner, store.add_conversation(owner, "deleted before").id)
    deletion_id, count = store.delete_all(owner)
    assert count == 3
    assert titles(store, owner) == []
    assert store.restore_all(owner, deletion_id) == 3
    assert titles(store, owner) == ["c", "b", "a"]
    with pytest.raises(NotFound):
        store.restore_all(owner, deletion_id)


def test_nobody_else_undoes_a_deletion(store: Store, owner: str) -> None:
    other = People(store.database).add_guest("b" * 64)
    talk = store.add_conversation(owner).id
    deletion_id, _ = store.delete_all(owner)
    with pytest.raises(NotFound):
        store.restore_all(other, deletion_id)
    with pytest.raises(NotFound):
        store.restore_conversation(other, talk)


def test_after_the_time_for_an_undo_the_rows_are_removed(store: Store, owner: str) -> None:
    kept, talk = store.add_conversation(owner, "kept").id, store.add_conversation(owner).id
    ask(store, owner, kept, "one")
    ask(store, owner, talk, "two")
    store.delete_conversation(owner, talk)
    removal = Removal(store.database)
    assert removal.remove_deleted() == 0
    with time_machine.travel(now() + UNDO + timedelta(seconds=1), tick=True):
        with pytest.raises(NotFound):
            store.restore_conversation(owner, talk)
        assert removal.remove_deleted() == 1
    assert rows(store, ConversationTable, MessageTable, RunTable) == [1, 2, 1]
    assert shown(store, owner, kept) == ["one", "About one"]


def test_what_is_deleted_in_the_future_is_an_import_and_is_left_alone(store: Store, owner: str) -> None:
    talk = store.add_conversation(owner).id
    with store.database.writing() as db:
        row = db.get_one(ConversationTable, talk)
        row.deleted_at, row.deletion_id = now() + timedelta(hours=1), "an import"
    assert Removal(store.database).remove_deleted() == 0
    with pytest.raises(NotFound):
        store.restore_conversation(owner, talk)
    assert store.conversations(owner, None, 10) == ([], None)


def test_many_conversations_and_long_ones_are_removed_whole(store: Store, owner: str) -> None:
    long = store.add_conversation(owner).id
    for _ in range(45):
        store.add_conversation(owner)
    with store.database.writing() as db:
        parent = None
        for position in range(1, 3003):
            message_id = f"{position % 7}-{position}"  # in an order of its own, as ids are
            role = "user" if position % 2 else "assistant"
            db.add(
                MessageTable(
                    id=message_id,
                    conversation_id=long,
                    parent_id=parent,
                    position=position,
                    role=role,
                    created_at=now(),
                )
            )
            db.flush()
            parent = message_id
    assert remove_conversations(store.database, ConversationTable.owner_id == owner) == 46
    assert rows(store, ConversationTable, MessageTable) == [0, 0]


def test_deleting_a_person_leaves_no_row_of_theirs(store: Store, owner: str) -> None:
    other = People(store.database).add_guest("b" * 64)
    for person in (owner, other):
        ask(store, person, store.add_conversation(person).id, "one")
    People(store.database).delete(owner)
    assert rows(store, ConversationTable, MessageTable, RunTable) == [1, 2, 1]
    with store.database.reading() as db:
        for table in Table.metadata.sorted_tables:
            for row in db.execute(table.select()).mappings():
                assert owner not in row.values(), table.name

from datetime import timedelta

import pytest
from sqlalchemy import select

from app.errors import ConversationBusy, NotFound
from app.history.people import People
from app.history.removal import remove_conversations
from app.history.store import Accepted, Changes, Ending, Store, Written, branch, title_from
from app.history.tables import ConversationTable, MessageTable, RunTable, SearchEntryTable
from app.history.usage import Allowance


def accept(store: Store, owner: str, conversation: str, text: str = "Why?", **changes: str | None) -> Accepted:
    parent_id = changes.get("parent_id")
    key = changes.get("client_key") or f"key-{text}"
    return store.accept(
        owner,
        conversation,
        text,
        parent_id=parent_id,
        client_key=key,
        effort="normal",
        options={"effort": "normal"},
        allowance=Allowance(),
    )


def end(store: Store, run_id: str, text: str = "Because.", state: str = "done") -> None:
    written = Written(text, "Hm.", [{"kind": "budget", "text": "t", "at_token": 3}], {"answer_tokens": 2}, {}, 9)
    store.save(run_id, written, Ending(state, "<p>Because.</p>", "<p>Hm.</p>", 1))


@pytest.fixture
def owner(store: Store) -> str:
    return People(store.database).add_guest("a" * 64)


@pytest.fixture
def stranger(store: Store) -> str:
    return People(store.database).add_guest("b" * 64)


def test_an_accepted_message_is_there_with_an_empty_answer_and_a_queued_run(store: Store, owner: str) -> None:
    conversation = store.add_conversation(owner)
    accepted = accept(store, owner, conversation.id, "Why is the sky blue?")
    found, (question, answer) = store.conversation(owner, conversation.id)
    assert (question.text, question.role, question.parent_id) == ("Why is the sky blue?", "user", None)
    assert (answer.id, answer.text, answer.parent_id) == (accepted.answer_id, "", question.id)
    assert answer.run is not None
    assert answer.run.state == "queued"
    assert found.leaf_id == answer.id
    assert found.title == "Why is the sky blue?"
    assert found.running_run_id == accepted.run_id


def test_the_same_client_key_is_one_message(store: Store, owner: str) -> None:
    conversation = store.add_conversation(owner)
    first = accept(store, owner, conversation.id, client_key="same")
    second = accept(store, owner, conversation.id, client_key="same")
    assert first.is_new
    assert not second.is_new
    assert (first.message_id, first.run_id) == (second.message_id, second.run_id)
    assert len(store.conversation(owner, conversation.id)[1]) == 2


def test_a_second_run_in_a_conversation_is_refused_with_the_first_ones_id(store: Store, owner: str) -> None:
    conversation = store.add_conversation(owner)
    first = accept(store, owner, conversation.id, "one")
    with pytest.raises(ConversationBusy) as busy:
        accept(store, owner, conversation.id, "two")
    assert busy.value.details == {"run_id": first.run_id}
    end(store, first.run_id)
    assert accept(store, owner, conversation.id, "two", parent_id=first.answer_id).is_new


def test_what_a_run_wrote_is_kept_with_its_notes_and_counts(store: Store, owner: str) -> None:
    conversation = store.add_conversation(owner)
    accepted = accept(store, owner, conversation.id)
    store.start_run(accepted.run_id, "demo")
    end(store, accepted.run_id)
    answer = store.message(owner, accepted.answer_id)
    assert (answer.text, answer.reasoning, answer.html) == ("Because.", "Hm.", "<p>Because.</p>")
    assert answer.run is not None
    assert (answer.run.state, answer.run.model, answer.run.last_event) == ("done", "demo", 9)
    assert answer.run.notes[0]["kind"] == "budget"


def test_what_a_run_wrote_in_a_deleted_chat_is_there_when_the_deletion_is_undone(store: Store, owner: str) -> None:
    conversation = store.add_conversation(owner)
    accepted = accept(store, owner, conversation.id)
    store.delete_conversation(owner, conversation.id)
    end(store, accepted.run_id, "Because.", "stopped")
    with pytest.raises(NotFound):
        store.message(owner, accepted.answer_id)
    store.restore_conversation(owner, conversation.id)
    message = store.message(owner, accepted.answer_id)
    assert message.run is not None
    assert (message.text, message.run.state) == ("Because.", "stopped")


@pytest.mark.parametrize("is_end", [False, True])
def test_a_run_that_was_removed_is_saved_no_more(store: Store, owner: str, is_end: bool) -> None:
    conversation = store.add_conversation(owner)
    accepted = accept(store, owner, conversation.id)
    remove_conversations(store.database, ConversationTable.id == conversation.id)
    written, ending = Written("SECRET", "SECRET", [], {}, {}, 9), Ending("done", "SECRET", "SECRET", 1)
    assert store.save(accepted.run_id, written, ending if is_end else None) is None
    assert store.end_run(accepted.run_id, ending) is None
    with store.database.reading() as db:
        for table in (MessageTable, RunTable, SearchEntryTable):
            assert db.scalars(select(table)).all() == []


def test_only_what_is_open_and_old_and_carried_by_nobody_is_interrupted(store: Store, owner: str) -> None:
    runs = [accept(store, owner, store.add_conversation(owner).id, f"number {number}").run_id for number in range(3)]
    end(store, runs[0])
    assert store.interrupt_open_runs(older_than=timedelta(minutes=1)) == 0
    assert store.interrupt_open_runs(but_not=[runs[1]], older_than=timedelta()) == 1
    assert [store.run(owner, run_id).state for run_id in runs] == ["done", "queued", "interrupted"]


@pytest.mark.parametrize("name", ["m" * 250, "half\ud800", "nul\x00"])
def test_a_run_starts_whatever_the_folder_of_the_model_is_called(store: Store, owner: str, name: str) -> None:
    accepted = accept(store, owner, store.add_conversation(owner).id)
    assert store.start_run(accepted.run_id, name) == owner
    assert store.run(owner, accepted.run_id).model[:3] == name[:3]


def test_what_was_written_so_far_never_comes_over_the_end(store: Store, owner: str) -> None:
    conversation = store.add_conversation(owner)
    accepted = accept(store, owner, conversation.id)
    end(store, accepted.run_id, "Because.")
    store.save(accepted.run_id, Written("Bec", "", [], {}, {}, 1))
    message = store.message(owner, accepted.answer_id)
    assert message.run is not None
    assert (message.text, message.run.state, message.run.last_event) == ("Because.", "done", 9)


def test_runs_that_were_open_when_the_process_ended_are_interrupted(store: Store, owner: str) -> None:
    conversation = store.add_conversation(owner)
    accepted = accept(store, owner, conversation.id)
    assert store.interrupt_open_runs() == 1
    assert store.run(owner, accepted.run_id).state == "interrupted"
    assert store.interrupt_open_runs() == 0


def test_nothing_of_somebody_else_is_there(store: Store, owner: str, stranger: str) -> None:
    conversation = store.add_conversation(owner)
    accepted = accept(store, owner, conversation.id)
    end(store, accepted.run_id)
    for attempt in (
        lambda: store.conversation(stranger, conversation.id),
        lambda: store.delete_conversation(stranger, conversation.id),
        lambda: store.message(stranger, accepted.answer_id),
        lambda: store.run(stranger, accepted.run_id),
        lambda: accept(store, stranger, conversation.id, "mine now"),
        lambda: store.change_conversation(stranger, conversation.id, Changes(title="mine")),
        lambda: store.restore_conversation(stranger, conversation.id),
    ):
        with pytest.raises(NotFound):
            attempt()
    assert store.conversations(stranger, None, 10) == ([], None)
    assert len(store.conversation(owner, conversation.id)[1]) == 2


def test_a_parent_of_another_conversation_is_not_found(store: Store, owner: str) -> None:
    first, second = store.add_conversation(owner), store.add_conversation(owner)
    accepted = accept(store, owner, first.id)
    with pytest.raises(NotFound):
        accept(store, owner, second.id, "next", parent_id=accepted.answer_id)


def test_the_list_has_the_newest_first_and_pages_without_gap_or_repeat(store: Store, owner: str) -> None:
    ids = [store.add_conversation(owner, str(number)).id for number in range(7)]
    found: list[str] = []
    cursor: str | None = None
    while True:
        page, cursor = store.conversations(owner, cursor, 3)
        found += [conversation.id for conversation in page]
        if cursor is None:
            break
    assert sorted(found) == sorted(ids)
    assert found[0] == ids[-1]


def test_the_branch_leads_from_the_root_to_the_leaf(store: Store, owner: str) -> None:
    conversation = store.add_conversation(owner)
    first = accept(store, owner, conversation.id, "one")
    end(store, first.run_id)
    second = accept(store, owner, conversation.id, "two", parent_id=first.answer_id)
    messages = store.conversation(owner, conversation.id)[1]
    assert [m.text for m in branch(messages, second.answer_id)] == ["one", "Because.", "two", ""]
    assert [m.text for m in branch(messages, first.answer_id)] == ["one", "Because."]
    assert branch(messages, None) == []


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Why?", "Why?"),
        ("\n\n  first   line \nsecond", "first line"),
        ("word " * 40, "word word word word word word word word word word word word …"),
        ("字" * 100, "字" * 60 + " …"),
    ],
)
def test_a_title_is_the_first_line_cut_at_a_word(text: str, title: str) -> None:
    assert title_from(text) == title

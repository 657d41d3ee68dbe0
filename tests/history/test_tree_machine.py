"""Whatever people do in whatever order: no turn is ever lost or doubled."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings as checked
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from app.history.database import Database
from app.history.people import People
from app.history.portable.importing import Imports
from app.history.store import Changes, Ending, Store, Written
from app.history.tree import branch
from app.history.usage import Allowance
from tests.exports import Desk

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(str.strip)


@dataclass
class Turn:
    """A message as the model has it; `parent` is a place in the conversation's turns."""

    text: str
    reasoning: str
    parent: int | None


@dataclass
class Talk:
    """A conversation as the model has it."""

    id: str
    turns: list[Turn] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    leaf: int | None = None
    is_deleted: bool = False

    def newest_below(self, at: int) -> int:
        """The end of the branch through a turn."""
        below = [number for number, turn in enumerate(self.turns) if turn.parent == at]
        return self.newest_below(below[-1]) if below else at


class Tree(RuleBasedStateMachine):
    """One person's conversations in a real database, beside a model of them."""

    talks: Bundle[Talk] = Bundle("talks")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(Database(f"sqlite:///{Path(self.folder.name)}/ponder.sqlite"))
        self.store.database.migrate()
        self.desk = Desk(self.store, Imports(self.store.database, Path(self.folder.name) / "imports"))
        self.known: list[Talk] = []
        self.keys = 0

    @initialize()
    def somebody(self) -> None:
        self.owner = People(self.store.database).add_guest("a" * 64)

    def teardown(self) -> None:
        self.desk.imports.close()
        self.store.database.close()
        self.folder.cleanup()

    @rule(target=talks)
    def begin(self) -> Talk:
        self.known.append(Talk(self.store.add_conversation(self.owner).id))
        return self.known[-1]

    @rule(talk=talks, text=TEXT, data=st.data())
    def send_or_edit(self, talk: Talk, text: str, data: st.DataObject) -> None:
        """Behind the shown branch, behind any answer, or as a new root."""
        if talk.is_deleted:
            return
        answers: list[int | None] = [number for number in range(len(talk.turns)) if self._is_answer(talk, number)]
        parent = data.draw(st.sampled_from([talk.leaf, None, *answers]))
        self.keys += 1
        sent = {
            "parent_id": talk.ids[parent] if parent is not None else None,
            "client_key": f"key {self.keys}",
            "effort": "normal",
            "options": {},
            "allowance": Allowance(),
        }
        accepted = self.store.accept(self.owner, talk.id, text, **sent)
        talk.turns.append(Turn(text, "", parent))
        talk.ids.append(accepted.message_id)
        self._answer(talk, len(talk.turns) - 1, accepted.answer_id, accepted.run_id, text)
        # A client that did not hear the answer sends again
        again = self.store.accept(self.owner, talk.id, text, **sent)
        assert (again.is_new, again.answer_id) == (False, accepted.answer_id)

    @rule(talk=talks, text=TEXT, data=st.data())
    def retry(self, talk: Talk, text: str, data: st.DataObject) -> None:
        if talk.is_deleted or not talk.turns:
            return
        at = data.draw(st.integers(0, len(talk.turns) - 1))
        self.keys += 1
        accepted = self.store.retry(
            self.owner, talk.ids[at], client_key=f"key {self.keys}", effort="normal", options={}, allowance=Allowance()
        )
        parent = talk.turns[at].parent
        question = parent if self._is_answer(talk, at) and parent is not None else at
        self._answer(talk, question, accepted.answer_id, accepted.run_id, text)

    @rule(talk=talks, data=st.data())
    def switch_branch(self, talk: Talk, data: st.DataObject) -> None:
        if talk.is_deleted or not talk.turns:
            return
        at = data.draw(st.integers(0, len(talk.turns) - 1))
        self.store.change_conversation(self.owner, talk.id, Changes(leaf_id=talk.ids[at]))
        talk.leaf = talk.newest_below(at)

    @rule(talk=talks)
    def delete_or_undo(self, talk: Talk) -> None:
        if talk.is_deleted:
            self.store.restore_conversation(self.owner, talk.id)
        else:
            self.store.delete_conversation(self.owner, talk.id)
        talk.is_deleted = not talk.is_deleted

    @rule()
    def delete_all_and_undo(self) -> None:
        deletion_id, count = self.store.delete_all(self.owner)
        assert count == sum(not talk.is_deleted for talk in self.known)
        if count:
            assert self.store.restore_all(self.owner, deletion_id) == count

    @rule()
    def export_and_import_into_another_account(self) -> None:
        """The other's export is the same file, and what is here stays as it was."""
        file = self.desk.file_of(self.owner)
        other = self.desk.person()
        there = [talk for talk in self.known if not talk.is_deleted]
        assert self.desk.take(other, file).conversations == len(there)
        assert self.desk.file_of(other) == file

    @rule()
    def import_beside_what_is_here(self) -> None:
        """What comes in stands beside what is there, whole."""
        file = self.desk.file_of(self.owner)
        known = {talk.id for talk in self.known}
        found = self.desk.take(self.owner, file)
        listed, _ = self.store.conversations(self.owner, None, 200)
        new = [conversation for conversation in listed if conversation.id not in known]
        assert len(new) == found.conversations
        there = [talk for talk in self.known if not talk.is_deleted]
        shapes = sorted(len(talk.turns) for talk in there)
        assert sorted(len(self.store.conversation(self.owner, one.id)[1]) for one in new) == shapes
        for one in new:
            self.store.delete_conversation(self.owner, one.id)

    @invariant()
    def everything_is_there_once(self) -> None:
        there = [talk for talk in self.known if not talk.is_deleted]
        listed, _ = self.store.conversations(self.owner, None, 200) if self.known else ([], None)
        assert {found.id for found in listed} == {talk.id for talk in there}
        for talk in there:
            conversation, messages = self.store.conversation(self.owner, talk.id)
            places = {message.id: place for place, message in enumerate(messages)}
            found = [
                Turn(message.text, message.reasoning, places[message.parent_id] if message.parent_id else None)
                for message in messages
            ]
            assert found == talk.turns
            assert [message.id for message in messages] == talk.ids
            way: list[str] = []
            at = talk.leaf
            while at is not None:
                way.insert(0, talk.ids[at])
                at = talk.turns[at].parent
            assert [message.id for message in branch(messages, conversation.leaf_id)] == way

    def _is_answer(self, talk: Talk, number: int) -> bool:
        return bool(talk.turns[number].reasoning)

    def _answer(self, talk: Talk, question: int, answer_id: str, run_id: str, text: str) -> None:
        answer = Turn(f"{text}!", f"Hm, {text}", question)
        written = Written(answer.text, answer.reasoning, [], {}, {}, 1)
        self.store.save(run_id, written, Ending("done", "", "", 1))
        talk.turns.append(answer)
        talk.ids.append(answer_id)
        talk.leaf = len(talk.turns) - 1


TestTree = Tree.TestCase
TestTree.settings = checked(max_examples=20, stateful_step_count=25, deadline=None)

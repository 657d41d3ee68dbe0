import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from app.history.people import People
from app.history.portable import ours, schema
from app.history.portable.importing import Imports
from app.history.portable.markdown import as_markdown
from app.history.store import Conversation, Store, StoredMessage, branch
from tests.exports import (
    LONG_AGO,
    TEXTS,
    Desk,
    answer,
    as_file,
    conversation,
    insert,
    question,
    rows_of_conversations,
)

SCHEMA = Path(__file__).parents[2] / "docs" / "export.schema.json"
MANY = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def desk(store: Store, tmp_path: Path) -> Desk:
    return Desk(store, Imports(store.database, tmp_path / "imports"))


def only_conversation(desk: Desk, owner: str) -> tuple[Conversation, list[StoredMessage]]:
    (found,), _ = desk.store.conversations(owner, None, 10)
    return desk.store.conversation(owner, found.id)


def read(data: bytes) -> list[dict[str, Any]]:
    found = json.loads(data)["conversations"]
    assert isinstance(found, list)
    return found


# Our format


@MANY
@given(rows=rows_of_conversations())
def test_exported_and_imported_and_exported_again_is_the_same_file(desk: Desk, rows: list[dict[str, Any]]) -> None:
    first, second = desk.person(), desk.person()
    insert(desk.store, first, rows)
    file = desk.file_of(first)
    jsonschema_rs.validator_for(json.loads(SCHEMA.read_text())).validate(json.loads(file))
    desk.take(second, file)
    assert desk.file_of(second) == file


def test_the_schema_in_the_docs_is_the_one_that_is_read_by() -> None:
    assert json.loads(SCHEMA.read_text()) == schema.File.model_json_schema()


def test_the_example_in_the_docs_can_be_imported_and_comes_out_again(desk: Desk) -> None:
    text = (SCHEMA.parent / "export.md").read_text()
    (example,) = (block.content for block in MarkdownIt().parse(text) if block.type == "fence" and block.info == "json")
    owner = desk.person()
    desk.take(owner, example.encode())
    assert json.loads(desk.file_of(owner)) == json.loads(example)


def test_a_file_has_no_id_no_mark_of_an_import_and_no_date_of_its_own(desk: Desk) -> None:
    owner = desk.person()
    desk.take(owner, as_file(conversation()))
    found, messages = only_conversation(desk, owner)
    file = desk.file_of(owner).decode()
    ids = [found.id, owner, *(message.id for message in messages), *(m.run.id for m in messages if m.run)]
    assert not any(one in file for one in ids)
    assert "import" not in file
    assert list(json.loads(file)) == ["format", "version", "conversations"]


def test_pinned_and_archived_conversations_are_in_it_and_deleted_and_strangers_are_not(desk: Desk) -> None:
    owner, stranger = desk.person(), desk.person()
    desk.take(
        owner,
        as_file(
            conversation(title="Pinned", is_pinned=True),
            conversation(title="Archived", is_archived=True),
            conversation(title="Deleted"),
        ),
    )
    desk.take(stranger, as_file(conversation(title="Strange")))
    found, _ = desk.store.conversations(owner, None, 10)
    desk.store.delete_conversation(owner, next(item.id for item in found if item.title == "Deleted"))
    assert {item["title"] for item in read(desk.file_of(owner))} == {"Pinned", "Archived"}


def test_what_is_deleted_or_claimed_by_another_while_it_is_exported_is_not_in_it(desk: Desk) -> None:
    guest, account = desk.person(), desk.account()
    desk.take(guest, as_file(*(conversation(title=f"Talk {n}") for n in range(3))))
    found, _ = desk.store.conversations(guest, None, 10)
    ids = {item.title: item.id for item in found}
    pieces = ours.exported_all(desk.store, guest, has_reasoning=True)
    file = next(pieces) + next(pieces)
    desk.store.delete_conversation(guest, ids["Talk 1"])
    People(desk.store.database).claim(guest, account, with_settings=False)
    file += b"".join(pieces)
    assert [item["title"] for item in read(file)] == ["Talk 0"]
    assert [item["title"] for item in read(desk.file_of(account))] == ["Talk 0", "Talk 2"]


def test_without_reasoning_nothing_tells_of_it(desk: Desk) -> None:
    owner, other = desk.person(), desk.person()
    desk.take(owner, as_file(conversation(question(), answer(1, reasoning="A secret thought"))))
    file = desk.file_of(owner, has_reasoning=False)
    (found,) = read(file)
    run = found["messages"][1]["run"]
    assert b"secret" not in file
    assert "reasoning" not in found["messages"][1]
    assert (run["usage"], run["notes"]) == ({"prompt_tokens": 5, "answer_tokens": 2}, [])
    assert run["timing"] == {"total_s": 2.0, "tokens_per_s": 4.5}
    desk.take(other, file)
    assert desk.file_of(other, has_reasoning=False) == file


def test_an_answer_that_is_being_written_is_exported_as_interrupted(desk: Desk) -> None:
    owner = desk.person()
    message = {"role": "user", "parent": None, "text": "Why?", "created_at": LONG_AGO}
    reply = {
        "role": "assistant",
        "parent": 0,
        "text": "Be",
        "created_at": LONG_AGO,
        "run": {"state": "queued", "effort": ""},
    }
    row = {"title": "T", "is_pinned": False, "is_archived": False, "recency": 1, "leaf": 1, "is_running": True}
    insert(desk.store, owner, [row | {"created_at": LONG_AGO, "updated_at": LONG_AGO, "messages": [message, reply]}])
    assert read(desk.file_of(owner))[0]["messages"][1]["run"]["state"] == "interrupted"


# Markdown


def markdown_of(desk: Desk, *messages: dict[str, Any], title: str = "Primes", has_reasoning: bool = True) -> str:
    owner = desk.person()
    desk.take(owner, as_file(conversation(*messages, title=title)))
    found, stored = only_conversation(desk, owner)
    return as_markdown(found.title, branch(stored, found.leaf_id), has_reasoning=has_reasoning)


def blocks_of(markdown: str) -> Iterator[tuple[str, str]]:
    """Kind and text of every block at the top."""
    found = MarkdownIt().parse(markdown)
    for place, token in enumerate(found):
        if token.level == 0 and token.nesting >= 0:
            yield (f"{token.type} {token.tag}".strip(), token.content or found[place + 1].content)


def test_markdown_has_a_heading_a_turn_and_folds_the_reasoning(desk: Desk) -> None:
    markdown = markdown_of(desk, question("How *many*?"), answer(1, "**Ten**."))
    assert markdown == (
        "# Primes\n\n## Question\n\n```\nHow *many*?\n```\n\n## Answer\n\n"
        "<details>\n<summary>Reasoning</summary>\n\n2, 3, 5 …\n\n</details>\n\n**Ten**.\n"
    )
    assert "2, 3, 5" not in markdown_of(desk, question(), answer(1), has_reasoning=False)


HOSTILE_TEXTS = st.lists(
    st.sampled_from(
        ["```", "~~~~", "\n", "# x", "</details>", "<!--", "<script>", "    ", "> ", "`", "---", "a", "\r"]
    ),
    max_size=12,
).map("".join)


@MANY
@given(title=TEXTS | HOSTILE_TEXTS, text=HOSTILE_TEXTS)
def test_what_a_person_typed_stands_in_markdown_as_typed_and_breaks_nothing(desk: Desk, title: str, text: str) -> None:
    markdown = markdown_of(desk, question(text), answer(1, "Ten."), title=title)
    found = list(blocks_of(markdown))
    assert [kind for kind, _ in found] == [
        "heading_open h1",
        "heading_open h2",
        "fence code",
        "heading_open h2",
        "html_block",
        "paragraph_open p",
        "html_block",
        "paragraph_open p",
    ]
    typed = text.replace("\r\n", "\n").replace("\r", "\n")
    assert found[2][1].rstrip("\n") == typed.rstrip("\n")


@pytest.mark.parametrize(
    "reasoning", ["</details>\n\n# Out", "<details><summary>x", "</DETAILS >", "```\nopen", "~~~~ py\nopen\n~~~"]
)
def test_reasoning_cannot_end_its_own_fold(desk: Desk, reasoning: str) -> None:
    markdown = markdown_of(desk, question(), answer(1, "Ten.", reasoning=reasoning))
    inner = markdown.partition("</summary>")[2].rpartition("</details>")[0]
    assert "<details" not in inner.lower()
    assert "</details" not in inner.lower()
    kinds = [kind for kind, _ in blocks_of(markdown)]
    assert kinds[-2:] == ["html_block", "paragraph_open p"]


def test_a_code_block_that_broke_off_does_not_swallow_the_next_turn(desk: Desk) -> None:
    markdown = markdown_of(desk, question(), answer(1, "So:\n```py\nprint(1)"), question("And?", 2), answer(3))
    assert [text for kind, text in blocks_of(markdown) if kind == "heading_open h2"] == ["Question", "Answer"] * 2

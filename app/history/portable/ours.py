"""Our own format, version 1: writing it, and reading what meets its schema exactly.

A file has no ids, no date of its own and no mark of an import, so that exporting what was imported gives the same
bytes.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from pydantic import ValidationError
from sqlalchemy import select

from app.errors import BadImport, NotFound
from app.history.portable.schema import SENTENCE_CHARS, AnswerPart, ConversationPart, QuestionPart, RunPart
from app.history.portable.shape import FileConversation, FileMessage, FileRun
from app.history.states import OPEN_STATES
from app.history.store import Conversation, Run, Store, StoredMessage
from app.history.tables import ConversationTable

FORMAT = "ponder"
VERSION = 1
HEAD = b'{"format":"ponder","version":1,"conversations":['
TAIL = b"]}\n"
_ABOUT_REASONING = frozenset({"budget", "answer_now", "context_end", "unmarked", "opening"})
_COUNTS = ("prompt_tokens", "cached_tokens", "reasoning_tokens", "answer_tokens")
_SECONDS = ("thinking_s", "first_token_s", "total_s", "tokens_per_s")
_FIGURES_ABOUT_REASONING = frozenset({"reasoning_tokens", "thinking_s"})


# Writing


def exported(conversation: Conversation, messages: Sequence[StoredMessage], *, has_reasoning: bool) -> bytes:
    """One conversation as it stands in a file; `messages` are all of it or one branch, parents first."""
    number = {message.id: place for place, message in enumerate(messages, 1)}
    leaf = number.get(conversation.leaf_id or "") or _newest_leaf(messages, number)
    return orjson.dumps(
        {
            "title": conversation.title,
            "is_pinned": conversation.is_pinned,
            "is_archived": conversation.is_archived,
            "created_at": _moment(conversation.created_at),
            "updated_at": _moment(conversation.updated_at),
            "leaf": leaf,
            "messages": [_exported_message(message, number, has_reasoning) for message in messages],
        }
    )


def exported_all(store: Store, owner_id: str, *, has_reasoning: bool) -> Iterator[bytes]:
    """Everything of a person, piece by piece; no session is open between two pieces.

    What is deleted, or becomes somebody else's, while this goes on is left out.

    Raises:
        StorageFailed: the database gave an error.
    """
    with store.database.reading() as db:
        ids = db.scalars(
            select(ConversationTable.id)
            .where(ConversationTable.owner_id == owner_id, ConversationTable.deleted_at.is_(None))
            .order_by(ConversationTable.recency, ConversationTable.id)
        ).all()
    yield HEAD
    is_first = True
    for conversation_id in ids:
        try:
            conversation, messages = store.conversation(owner_id, conversation_id)
        except NotFound:
            continue
        yield (b"\n" if is_first else b",\n") + exported(conversation, messages, has_reasoning=has_reasoning)
        is_first = False
    yield TAIL


def _newest_leaf(messages: Sequence[StoredMessage], number: dict[str, int]) -> int | None:
    newest_child = {message.parent_id: message.id for message in messages}
    at: str | None = None
    while at in newest_child:
        at = newest_child[at]
    return number[at] if at else None


def _exported_message(message: StoredMessage, number: dict[str, int], has_reasoning: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "role": message.role,
        "parent": number.get(message.parent_id or ""),
        "created_at": _moment(message.created_at),
        "text": message.text,
    }
    if message.role == "user":
        return found
    if has_reasoning:
        found["reasoning"] = message.reasoning
    return found | {"run": _exported_run(message.run, has_reasoning) if message.run else None}


def _exported_run(run: Run, has_reasoning: bool) -> dict[str, Any]:
    notes = [
        {"kind": note["kind"], "text": note["text"][:SENTENCE_CHARS], "at_token": note["at_token"]}
        for note in run.notes
    ]
    hidden = frozenset() if has_reasoning else _FIGURES_ABOUT_REASONING
    return {
        "state": "interrupted" if run.state in OPEN_STATES else run.state,
        "model": run.model,
        "effort": run.effort,
        "notes": [note for note in notes if has_reasoning or note["kind"] not in _ABOUT_REASONING],
        "usage": {name: int(run.usage[name]) for name in _COUNTS if name in run.usage and name not in hidden},
        "timing": {name: float(run.timing[name]) for name in _SECONDS if name in run.timing and name not in hidden},
        "error": {"code": run.error_code, "message": run.error_message[:SENTENCE_CHARS]} if run.error_code else None,
    }


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# Reading


def check_field(name: str, value: Any) -> None:
    """Whether a field of the file itself, beside its conversations, is what it must be.

    Raises:
        BadImport: it is not.
    """
    if name == "format" and value != FORMAT:
        raise BadImport("This is none of the files that can be imported: its “format” is not “ponder”.")
    if name == "version" and (value != VERSION or type(value) is not int):
        raise BadImport(f"This file is of another version of Ponder's format; this server reads version {VERSION}.")
    if name == "conversations" and value != []:
        raise BadImport("“conversations” must be a list.")
    if name not in ("format", "version", "conversations"):
        raise BadImport(f"This is none of the files that can be imported: nothing in them is called “{name[:40]}”.")


def check_file(fields: dict[str, Any]) -> None:
    """Whether all fields of the file were there.

    Raises:
        BadImport: one is missing.
    """
    if not fields:
        raise BadImport("There is no conversation in this file.")
    for name in ("format", "version", "conversations"):
        if name not in fields:
            raise BadImport(f"This is none of the files that can be imported: it has no “{name}”.")


def imported(value: Any, number: int) -> FileConversation:
    """A conversation out of the JSON of one; `number` is its place in the file.

    Raises:
        BadImport: it does not meet the schema exactly.
    """
    where = f"Conversation {number}"
    try:
        part = ConversationPart.model_validate(value)
    except ValidationError as error:
        raise BadImport(_sentence(where, error)) from error
    _refuse_no_text(where, part.title)
    where = f"{where} (“{part.title[:40]}”)" if part.title else where
    roles: list[str] = []
    for place, message in enumerate(part.messages, 1):
        _check_parent(f"{where}, message {place}", message, roles)
        roles.append(message.role)
    answered = {message.parent for message in part.messages}
    for place, role in enumerate(roles, 1):
        if role == "user" and place not in answered:
            raise BadImport(f"{where}, message {place}: this question has no answer.")
    if (part.leaf is None) != (not roles) or (part.leaf and (part.leaf > len(roles) or roles[part.leaf - 1] == "user")):
        raise BadImport(f"{where}: “leaf” must be the number of an answer.")
    return FileConversation(
        title=part.title,
        created_at=_read_moment(part.created_at, where),
        updated_at=_read_moment(part.updated_at, where),
        leaf=part.leaf - 1 if part.leaf else None,
        messages=[_read_message(message, f"{where}, message {n}") for n, message in enumerate(part.messages, 1)],
        is_pinned=part.is_pinned,
        is_archived=part.is_archived,
        is_in_order=True,
    )


def _check_parent(where: str, message: QuestionPart | AnswerPart, roles: list[str]) -> None:
    """A question is a root or follows an answer, an answer follows a question, and both stand behind their parent."""
    if message.parent is None:
        return
    if message.parent > len(roles):
        raise BadImport(f"{where}: its parent {message.parent} does not stand before it.")
    if roles[message.parent - 1] == message.role:
        said = "a question follows a question" if message.role == "user" else "an answer follows an answer"
        raise BadImport(f"{where}: {said}.")


def _read_message(message: QuestionPart | AnswerPart, where: str) -> FileMessage:
    _refuse_no_text(where, message.text)
    reasoning, run = "", None
    if isinstance(message, AnswerPart):
        reasoning = message.reasoning or ""
        _refuse_no_text(where, reasoning)
        run = _read_run(message.run, where) if message.run else None
    return FileMessage(
        role=message.role,
        parent=message.parent - 1 if message.parent else None,
        text=message.text,
        created_at=_read_moment(message.created_at, where),
        reasoning=reasoning,
        run=run,
    )


def _read_run(run: RunPart, where: str) -> FileRun:
    for text in (run.model, *(note.text for note in run.notes), run.error.message if run.error else ""):
        _refuse_no_text(where, text)
    return FileRun(
        state=run.state,
        model=run.model,
        effort=run.effort,
        notes=[note.model_dump() for note in run.notes],
        usage=run.usage.model_dump(exclude_none=True),
        timing=run.timing.model_dump(exclude_none=True),
        error_code=run.error.code if run.error else "",
        error_message=run.error.message if run.error else "",
    )


def _refuse_no_text(where: str, text: str) -> None:
    if "\x00" in text:
        raise BadImport(f"{where} has a character that is no text (NUL, or half of a pair).")


def _read_moment(said: str, where: str) -> datetime:
    try:
        return datetime.strptime(said, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise BadImport(f"{where}: there is no such time as {said}.") from error


def _sentence(where: str, error: ValidationError) -> str:
    """The first thing that is wrong, and where; never what people wrote."""
    first = error.errors(include_input=False, include_url=False)[0]
    place = [part for part in first["loc"] if part not in ("user", "assistant")]
    if len(place) > 1 and place[0] == "messages":
        where, place = f"{where}, message {int(place[1]) + 1}", place[2:]
    field = ".".join(str(part) for part in place)[:80]
    said = first["msg"][0].lower() + first["msg"][1:]
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        said = "its “role” must be “user” or “assistant”"
    return f"{where}: {f'“{field}”: ' if field else ''}{said}."

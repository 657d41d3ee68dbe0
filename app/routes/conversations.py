"""Conversations and their messages."""

import asyncio
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.accounts.settings import PersonSettings, settings_of
from app.errors import BadRequest
from app.history.store import Changes, Conversation, StoredMessage, now
from app.history.temporary import is_temporary
from app.routes.access import (
    Address,
    MaybeCaller,
    MaybePerson,
    Person,
    Services,
    Serving,
    SomeCaller,
    allowance_of,
    new_guest,
)
from app.routes.runs import run_json
from app.runs.live import Options
from app.runs.service import AcceptedRun
from app.runs.shown import answer_html, reasoning_html

router = APIRouter(prefix="/api")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NewConversation(_Body):
    """`POST /api/conversations`."""

    title: str = Field(default="", max_length=200)
    is_temporary: bool = False


class ConversationChanges(_Body):
    """`PATCH /api/conversations/{id}`."""

    title: str | None = Field(default=None, min_length=1, max_length=200)
    is_pinned: bool | None = None
    is_archived: bool | None = None
    is_unread: bool | None = None
    leaf_id: str | None = Field(default=None, max_length=64)
    version: int | None = Field(default=None, ge=0, le=2**31 - 1)


class Deletion(_Body):
    """`POST /api/conversations/restore`."""

    deletion_id: str = Field(min_length=1, max_length=64)


class RunOptions(_Body):
    """How a message shall be answered; what is left out is the person's setting, else the model's own advice."""

    effort: Literal["quick", "normal", "deep"] | None = None
    thinking_tokens: int | None = Field(default=None, ge=0, le=1_000_000)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1, le=1000)
    min_p: float | None = Field(default=None, ge=0, le=1)
    seed: int | None = Field(default=None, ge=0, le=2**63 - 1)
    system_prompt: str | None = Field(default=None, max_length=32_768)


class NewMessage(_Body):
    """`POST /api/conversations/{id}/messages`."""

    text: str
    client_key: str = Field(min_length=8, max_length=64)
    parent_id: str | None = Field(default=None, max_length=64)
    options: RunOptions = RunOptions()


class Retry(_Body):
    """`POST /api/messages/{id}/retry`."""

    client_key: str = Field(min_length=8, max_length=64)
    options: RunOptions = RunOptions()


@router.post("/conversations", status_code=201)
def add_conversation(
    body: NewConversation, request: Request, response: Response, found: MaybeCaller, serving: Serving
) -> dict[str, Any]:
    """A new, empty conversation; whoever is unknown becomes a guest."""
    caller = found or new_guest(request, response, serving)
    store = serving.history.temporary if body.is_temporary else serving.store
    return _item(store.add_conversation(caller.person_id, body.title.strip()), serving)


@router.get("/conversations")
async def list_conversations(
    person_id: MaybePerson,
    serving: Serving,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    archived: bool = False,
    q: Annotated[str | None, Query(max_length=1000)] = None,
) -> dict[str, Any]:
    """The person's conversations: pinned first, then newest first; with `q` those that have its words."""
    if person_id is None:
        return {"items": [], "next_cursor": None}
    if q is not None:
        return await serving.lanes.search.run(person_id, _search, serving, person_id, q, cursor, limit)
    found, next_cursor = serving.store.conversations(person_id, cursor, limit, is_archived=archived)
    return {"items": [_item(conversation, serving) for conversation in found], "next_cursor": next_cursor}


def _search(serving: Services, person_id: str, query: str, cursor: str | None, limit: int) -> dict[str, Any]:
    found = serving.search.find(person_id, query, cursor, limit)
    items = {item.id: item for item in serving.store.items(person_id, [hit.conversation_id for hit in found.hits])}
    return {
        "items": [
            _item(items[hit.conversation_id], serving)
            | {
                "hit": {
                    "message_id": hit.message_id,
                    "where": hit.where,
                    "text": hit.text,
                    "marks": [list(mark) for mark in hit.marks],
                }
            }
            for hit in found.hits
            if hit.conversation_id in items
        ],
        "next_cursor": found.next_cursor,
        "is_complete": found.is_complete,
    }


@router.delete("/conversations")
async def delete_all_conversations(person_id: MaybePerson, serving: Serving) -> dict[str, Any]:
    """Stop what runs in them and delete them all; they can be restored for a few seconds."""
    if person_id is None:
        return {"deletion_id": "", "count": 0}
    deletion_id, count = await serving.runs.delete_all_conversations(person_id)
    return {"deletion_id": deletion_id, "count": count}


@router.post("/conversations/restore")
def restore_all(body: Deletion, person_id: Person, serving: Serving) -> dict[str, int]:
    """Undo the deletion of all."""
    return {"count": serving.store.restore_all(person_id, body.deletion_id)}


@router.get("/conversations/{conversation_id}")
async def get_conversation(
    conversation_id: str, person_id: Person, request: Request, serving: Serving
) -> dict[str, Any]:
    """One conversation with its messages, parents first."""
    store = serving.history.of(conversation_id)
    conversation, messages = await asyncio.to_thread(store.shown, person_id, conversation_id)
    messages = serving.runs.as_written(messages)
    messages = await serving.freshener.fresh(store, person_id, messages, request.is_disconnected)
    use = await serving.runs.window_use(person_id, conversation)
    context = asdict(use) if use else None
    return _item(conversation, serving) | {"messages": [_message(message) for message in messages], "context": context}


@router.patch("/conversations/{conversation_id}")
def change_conversation(
    conversation_id: str, body: ConversationChanges, person_id: Person, serving: Serving
) -> dict[str, Any]:
    """Rename, pin, archive, show another branch, or have seen it."""
    title = " ".join(body.title.split()) if body.title is not None else None
    if title == "":
        raise BadRequest("title cannot be used: write at least one character.")
    changes = Changes(title, body.is_pinned, body.is_archived, body.leaf_id, body.version, body.is_unread)
    store = serving.history.of(conversation_id)
    return _item(store.change_conversation(person_id, conversation_id, changes), serving)


@router.delete("/conversations/{conversation_id}", status_code=204)
async def delete_conversation(conversation_id: str, person_id: Person, serving: Serving) -> Response:
    """Stop what runs in it and delete it; it can be restored for a few seconds."""
    await serving.runs.delete_conversation(person_id, conversation_id)
    return Response(status_code=204)


@router.post("/conversations/{conversation_id}/restore")
def restore_conversation(conversation_id: str, person_id: Person, serving: Serving) -> dict[str, Any]:
    """Undo its deletion."""
    return _item(serving.store.restore_conversation(person_id, conversation_id), serving)


@router.post("/conversations/{conversation_id}/leave", status_code=204)
def leave_conversation(conversation_id: str, person_id: Person, serving: Serving) -> Response:
    """The page that shows it is being closed: a temporary one ends soon, unless it is read again."""
    if is_temporary(conversation_id):
        serving.history.temporary.leave(person_id, conversation_id)
    else:
        serving.store.item(person_id, conversation_id)
    return Response(status_code=204)


@router.post("/conversations/{conversation_id}/messages", status_code=202)
async def add_message(
    conversation_id: str, body: NewMessage, caller: SomeCaller, address: Address, serving: Serving
) -> dict[str, str | int]:
    """Take a message; its run is in line when this returns."""
    accepted = await serving.runs.accept(
        caller.person_id,
        conversation_id,
        body.text,
        parent_id=body.parent_id,
        is_parent_given="parent_id" in body.model_fields_set,
        client_key=body.client_key,
        options=_options(body.options, settings_of(caller.settings)),
        allowance=allowance_of(caller, serving.settings),
        address=address,
    )
    return _accepted(accepted)


@router.post("/messages/{message_id}/retry", status_code=202)
async def retry(
    message_id: str, body: Retry, caller: SomeCaller, address: Address, serving: Serving
) -> dict[str, str | int]:
    """Answer a question once more; its run is in line when this returns."""
    accepted = await serving.runs.retry(
        caller.person_id,
        message_id,
        client_key=body.client_key,
        options=_options(body.options, settings_of(caller.settings)),
        allowance=allowance_of(caller, serving.settings),
        address=address,
    )
    return _accepted(accepted)


@router.get("/messages/{message_id}/reasoning")
async def get_reasoning(message_id: str, person_id: Person, request: Request, serving: Serving) -> dict[str, Any]:
    """The reasoning behind an answer."""
    store = serving.history.of(message_id)
    stored = serving.runs.as_written([await asyncio.to_thread(store.message, person_id, message_id)])
    (message,) = await serving.freshener.fresh(store, person_id, stored, request.is_disconnected)
    return {
        "text": message.reasoning,
        "html": reasoning_html(message),
        "notes": message.run.notes if message.run else [],
    }


def _options(asked: RunOptions, settings: PersonSettings) -> Options:
    """What was asked for with the message, else what the person has set."""
    own = {
        "effort": settings.effort,
        "system_prompt": settings.system_prompt or None,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "min_p": settings.min_p,
    }
    given = {name: value for name, value in asked.model_dump().items() if value is not None}
    return Options(**{**own, **given})


def _accepted(accepted: AcceptedRun) -> dict[str, str | int]:
    return {
        "message_id": accepted.message_id,
        "answer_id": accepted.answer_id,
        "run_id": accepted.run_id,
        "place": accepted.place,
    }


def _item(conversation: Conversation, serving: Services) -> dict[str, Any]:
    has_end = is_temporary(conversation.id)
    ends_in_s = serving.history.temporary.expires_in_s(conversation.id) if has_end else 0.0
    run_id = conversation.running_run_id
    return {
        "id": conversation.id,
        "title": conversation.title,
        "is_pinned": conversation.is_pinned,
        "is_archived": conversation.is_archived,
        "is_unread": conversation.is_unread,
        "is_temporary": has_end,
        "expires_at": (now() + timedelta(seconds=ends_in_s)).isoformat() if has_end else None,
        "version": conversation.version,
        "created_at": conversation.created_at.isoformat(),
        "updated_at": conversation.updated_at.isoformat(),
        "leaf_id": conversation.leaf_id,
        "running_run_id": None if run_id is None or serving.runs.is_over(run_id) else run_id,
    }


def _message(message: StoredMessage) -> dict[str, Any]:
    run = message.run
    reasoning = None
    if message.has_reasoning:
        # Of what came from somebody else's file it is not known
        reasoning = {
            "tokens": run.usage.get("reasoning_tokens", 0) if run else None,
            "thinking_s": run.timing.get("thinking_s", 0.0) if run else None,
        }
    return {
        "id": message.id,
        "parent_id": message.parent_id,
        "role": message.role,
        "text": message.text,
        "html": answer_html(message),
        "reasoning": reasoning,
        "run": run_json(run) if run else None,
        "created_at": message.created_at.isoformat(),
    }

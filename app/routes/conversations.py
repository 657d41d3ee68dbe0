"""Conversations and their messages."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from app.accounts.settings import PersonSettings, settings_of
from app.history.store import Conversation, StoredMessage
from app.routes.access import MaybeCaller, MaybePerson, Person, Serving, SomeCaller, allowance_of, new_guest
from app.routes.runs import run_json
from app.runs.live import Options
from app.runs.shown import answer_html, reasoning_html

router = APIRouter(prefix="/api")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class NewConversation(_Body):
    """`POST /api/conversations`."""

    title: str = Field(default="", max_length=200)


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


@router.post("/conversations", status_code=201)
def add_conversation(
    body: NewConversation, request: Request, response: Response, found: MaybeCaller, serving: Serving
) -> dict[str, Any]:
    """A new, empty conversation; whoever is unknown becomes a guest."""
    caller = found or new_guest(request, response, serving)
    return _item(serving.store.add_conversation(caller.person_id, body.title.strip()))


@router.get("/conversations")
async def list_conversations(
    person_id: MaybePerson,
    serving: Serving,
    cursor: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> dict[str, Any]:
    """The person's conversations, newest first."""
    if person_id is None:
        return {"items": [], "next_cursor": None}
    found, next_cursor = serving.store.conversations(person_id, cursor, limit)
    return {"items": [_item(conversation) for conversation in found], "next_cursor": next_cursor}


@router.get("/conversations/{conversation_id}")
async def get_conversation(conversation_id: str, person_id: Person, serving: Serving) -> dict[str, Any]:
    """One conversation with its messages, parents first."""
    conversation, messages = serving.store.conversation(person_id, conversation_id)
    use = await serving.runs.window_use(person_id, conversation_id)
    context = (
        {
            "used_tokens": use.used_tokens,
            "window_tokens": use.window_tokens,
            "turns_left_out_next": use.turns_left_out_next,
        }
        if use
        else None
    )
    return _item(conversation) | {"messages": [_message(message) for message in messages], "context": context}


@router.delete("/conversations/{conversation_id}", status_code=204)
async def delete_conversation(conversation_id: str, person_id: Person, serving: Serving) -> Response:
    """Stop what runs in it and remove it."""
    await serving.runs.delete_conversation(person_id, conversation_id)
    return Response(status_code=204)


@router.post("/conversations/{conversation_id}/messages", status_code=202)
async def add_message(
    conversation_id: str, body: NewMessage, caller: SomeCaller, serving: Serving
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
    )
    return {
        "message_id": accepted.message_id,
        "answer_id": accepted.answer_id,
        "run_id": accepted.run_id,
        "place": accepted.place,
    }


@router.get("/messages/{message_id}/reasoning")
async def get_reasoning(message_id: str, person_id: Person, serving: Serving) -> dict[str, Any]:
    """The reasoning behind an answer."""
    message = serving.store.message(person_id, message_id)
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


def _item(conversation: Conversation) -> dict[str, Any]:
    return {
        "id": conversation.id,
        "title": conversation.title,
        "created_at": conversation.created_at.isoformat(),
        "updated_at": conversation.updated_at.isoformat(),
        "leaf_id": conversation.leaf_id,
        "running_run_id": conversation.running_run_id,
    }


def _message(message: StoredMessage) -> dict[str, Any]:
    run = message.run
    reasoning = None
    if run is not None and message.reasoning:
        reasoning = {"tokens": run.usage.get("reasoning_tokens", 0), "thinking_s": run.timing.get("thinking_s", 0.0)}
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

"""Conversations as files: out as Markdown, JSON or a page; in from our JSON, ChatGPT or Open WebUI."""

import asyncio
import re
import unicodedata
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, BinaryIO, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse
from starlette.requests import ClientDisconnect

from app.errors import BadImport, BadRequest, SignInFirst, TextTooLarge
from app.history.people import Caller
from app.history.portable import ours
from app.history.portable.importing import Imports
from app.history.portable.markdown import as_markdown
from app.history.store import Conversation, StoredMessage, branch, now
from app.routes.access import Address, MaybeCaller, MaybePerson, Person, Serving
from app.routes.exported_page import as_page
from app.routes.guards import MOST_IMPORT_BYTES

router = APIRouter(prefix="/api")
_MOST_GUEST_BYTES = 5 * 1024 * 1024
_WRITE_BYTES = 1024 * 1024
_SILENCE_S = 30
_NAME_CHARS = 60
_TYPES = {"md": "text/markdown; charset=utf-8", "json": "application/json", "html": "text/html; charset=utf-8"}
_Format = Literal["md", "json", "html"]


@router.get("/conversations/{conversation_id}/export")
async def export_conversation(
    conversation_id: str,
    person_id: Person,
    request: Request,
    serving: Serving,
    format: _Format = "json",
    reasoning: bool = True,
    branches: Annotated[Literal["shown", "all"] | None, Query(alias="branch")] = None,
) -> Response:
    """One conversation as a file; JSON has the whole tree unless only the shown branch is asked for."""
    if branches == "all" and format != "json":
        raise BadRequest("Only JSON has room for all branches. Leave “branch” out, or set “format” to “json”.")
    store = serving.history.of(conversation_id)
    lane = serving.lanes.export
    conversation, messages = await lane.run(person_id, store.conversation, person_id, conversation_id)
    messages = serving.runs.as_written(messages)
    if format != "json" or branches == "shown":
        messages = branch(messages, conversation.leaf_id)
    if format == "html":
        messages = await serving.freshener.fresh(store, person_id, messages, request.is_disconnected)
    body = await lane.run(person_id, _exported, conversation, messages, format, has_reasoning=reasoning)
    return Response(body, media_type=_TYPES[format], headers=_headers(conversation.title, format))


@router.get("/me/export")
async def export_all(person_id: MaybePerson, serving: Serving, reasoning: bool = True) -> StreamingResponse:
    """Everything of this person as one file."""
    pieces = ours.exported_all(serving.store, person_id or "", has_reasoning=reasoning)
    # What fails at once fails while there is still a status to say so
    first = await serving.lanes.export.run(person_id or "", next, pieces, b"")

    async def all_of_them() -> AsyncIterator[bytes]:
        piece = first
        while piece:
            yield piece
            piece = await serving.lanes.export.run(person_id or "", next, pieces, b"")

    name = f"Ponder {now():%Y-%m-%d}"
    return StreamingResponse(all_of_them(), media_type=_TYPES["json"], headers=_headers(name, "json"))


@router.post("/me/import")
async def import_file(request: Request, found: MaybeCaller, where: Address, serving: Serving) -> dict[str, Any]:
    """Take in a file: the request's body. Nobody becomes a guest by it."""
    if found is None:
        raise SignInFirst("Sign in first, or ask a question: an import needs somebody whom it is for.")
    most = _most_bytes(found)
    if int(request.headers.get("content-length", "0")) > most:
        raise _too_large(found)
    await asyncio.to_thread(serving.attempts.count_import, found.person_id)
    upload, file = serving.imports.begin(found.person_id, where)
    try:
        with file:
            async with asyncio.timeout(serving.settings.upload_timeout_s):
                await _receive(request, serving.imports, file, most, found)
        taking = serving.imports.start(upload)
    except BaseException as error:
        serving.imports.drop(upload)
        if isinstance(error, TimeoutError):
            raise _incomplete() from error
        raise
    # Whoever leaves now leaves it to its end: there is one place that clears up
    imported = await asyncio.shield(asyncio.wrap_future(taking))
    serving.indexer.nudge()
    return {
        "format": imported.format,
        "conversations": imported.conversations,
        "messages": imported.messages,
        "left_out": imported.left_out,
    }


def _exported(
    conversation: Conversation, messages: Sequence[StoredMessage], format: _Format, *, has_reasoning: bool
) -> bytes:
    """The file of these messages of a conversation."""
    if format == "json":
        return ours.HEAD + b"\n" + ours.exported(conversation, messages, has_reasoning=has_reasoning) + ours.TAIL
    if format == "md":
        return as_markdown(conversation.title, messages, has_reasoning=has_reasoning).encode()
    return as_page(conversation, messages, has_reasoning=has_reasoning).encode()


def _headers(title: str, ending: str) -> dict[str, str]:
    """What makes a browser keep a file under a name made of `title`, for itself alone."""
    words = re.sub(r"[^\w]+", "-", unicodedata.normalize("NFC", title)[:200]).strip("-_")[:_NAME_CHARS].rstrip("-_")
    plain = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode()
    plain = re.sub(r"[^A-Za-z0-9]+", "-", plain).strip("-") or "conversation"
    name = f"{words or 'conversation'}.{ending}"
    return {
        "Content-Disposition": f"attachment; filename=\"{plain}.{ending}\"; filename*=UTF-8''{quote(name, safe='')}",
        "Cache-Control": "no-store",
    }


async def _receive(request: Request, imports: Imports, file: BinaryIO, most: int, caller: Caller) -> None:
    """Write the body to a file, and count it.

    Raises:
        TextTooLarge: it goes beyond `most` bytes.
        BadImport: it does not come to its end.
    """
    held, received = bytearray(), 0
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(_SILENCE_S):
                piece = await anext(stream, None)
        except (TimeoutError, ClientDisconnect) as error:
            raise _incomplete() from error
        received += len(piece or b"")
        if received > most:
            raise _too_large(caller)
        held += piece or b""
        if held and (piece is None or len(held) >= _WRITE_BYTES):
            await imports.write(file, bytes(held))
            held.clear()
        if piece is None:
            return


def _incomplete() -> BadImport:
    return BadImport("The file did not arrive completely. Try again.")


def _most_bytes(caller: Caller) -> int:
    return _MOST_GUEST_BYTES if caller.kind == "guest" else MOST_IMPORT_BYTES


def _too_large(caller: Caller) -> TextTooLarge:
    most = _most_bytes(caller)
    said = f"The file is larger than {most // 1024 // 1024} MB."
    if caller.kind == "guest":
        said += f" With an account it may have {MOST_IMPORT_BYTES // 1024 // 1024} MB."
    return TextTooLarge(said, limit_bytes=most)

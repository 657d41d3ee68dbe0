"""Open WebUI's export: a list of chats, each with `history.messages` by id and a `currentId`.

New exports wrap the chat (`{"chat": {...}, "updated_at", "archived", "pinned"}`), old ones are the chat, and the oldest
have a list `messages` and no tree. Reasoning stands in an answer's text, in `<details type="reasoning">`.
"""

import re
from html import unescape
from typing import Any

from app.errors import BadImport
from app.history.portable.joining import Turn, clean, joined, seconds_of, time_of
from app.history.portable.shape import FileConversation, LeftOut

_OPENING = re.compile(r"<details\b([^<>]{0,4000})>")
_CLOSING = "</details>"
_TYPE = re.compile(r'\btype="([\w-]*)"')
_DURATION = re.compile(r'\bduration="([0-9]{1,8})"')
_SUMMARY = re.compile(r"\s*<summary>.*?</summary>", re.DOTALL)
_TOOLS = frozenset({"tool_calls", "code_interpreter", "code_execution"})


def is_open_webui(value: Any) -> bool:
    """Whether an element of a list is one of Open WebUI's chats."""
    return isinstance(value, dict) and any(isinstance(value.get(key), dict | list) for key in _CHAT_KEYS)


_CHAT_KEYS = ("chat", "history", "messages")


def imported(value: dict[str, Any], number: int, left_out: LeftOut) -> FileConversation:
    """One chat; `number` is its place in the file.

    Raises:
        BadImport: its messages are no tree, or too many.
    """
    inner = value.get("chat")
    chat = inner if isinstance(inner, dict) else value
    title = clean(value.get("title")) or clean(chat.get("title"))
    where = f"Conversation {number} (“{title[:40]}”)" if title else f"Conversation {number}"
    history = chat.get("history")
    history = history if isinstance(history, dict) else {}
    if clean(chat.get("system")):
        left_out.add("system")
    found, leaf = _messages(chat, history, where)
    turns = []
    for place, (key, message) in enumerate(found.items(), 1):
        if not isinstance(message, dict):
            raise BadImport(f"{where}, message {place}: it is not an object.")
        turns.append(_turn(key, message, left_out))
    return joined(
        where,
        _in_order(turns, found),
        leaf=leaf,
        title=title,
        created_at=time_of(value.get("created_at")) or time_of(chat.get("timestamp")),
        updated_at=time_of(value.get("updated_at")),
        is_pinned=value.get("pinned") is True,
        is_archived=value.get("archived") is True,
        left_out=left_out,
    )


def _messages(chat: dict[str, Any], history: dict[str, Any], where: str) -> tuple[dict[str, Any], str | None]:
    """Messages by id, and the id of the shown end."""
    messages = history.get("messages")
    if isinstance(messages, dict) and messages:
        leaf = history.get("currentId")
        return messages, leaf if isinstance(leaf, str) else None
    listed = chat.get("messages")
    if not isinstance(listed, list):
        if isinstance(messages, dict | list) or listed is None:
            return {}, None
        raise BadImport(f"{where}: “messages” is neither a list nor an object.")
    found: dict[str, Any] = {}
    above: str | None = None
    for place, message in enumerate(listed, 1):
        if not isinstance(message, dict):
            raise BadImport(f"{where}, message {place}: it is not an object.")
        key = f"message {place}"
        found[key] = {**message, "parentId": above}
        above = key
    return found, above


def _in_order(turns: list[Turn], messages: dict[str, Any]) -> list[Turn]:
    """Siblings as their parent lists them; the rest as it stands."""
    rank: dict[str, int] = {}
    for message in messages.values():
        children = message.get("childrenIds")
        for place, child in enumerate(children if isinstance(children, list) else []):
            if isinstance(child, str):
                rank[child] = place
    return sorted(turns, key=lambda turn: rank.get(turn.key, 0))


def _turn(key: str, message: dict[str, Any], left_out: LeftOut) -> Turn:
    parent, role = message.get("parentId"), clean(message.get("role"))
    why = "" if role in ("user", "assistant") else "system" if role == "system" else "tool"
    text, reasoning, thinking_s = _text(message.get("content"), left_out), "", 0.0
    if role == "assistant":
        text, reasoning, thinking_s = _split(text, left_out)
        reasoning = reasoning or clean(message.get("reasoning_content")).strip()
    files = message.get("files")
    if isinstance(files, list) and files and not why:
        left_out.add("attachment", len(files))
    return Turn(
        key,
        parent if isinstance(parent, str) else None,
        role,
        text,
        reasoning,
        created_at=time_of(message.get("timestamp")),
        model=clean(message.get("model")) or clean(message.get("modelName")),
        thinking_s=thinking_s,
        left_out=why,
    )


def _text(content: Any, left_out: LeftOut) -> str:
    """A text, or a list of parts of which some are texts."""
    if not isinstance(content, list):
        return clean(content)
    found = []
    for part in content:
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            found.append(clean(part["text"]))
        elif part is not None:
            left_out.add("attachment")
    return "\n\n".join(text for text in found if text)


def _split(text: str, left_out: LeftOut) -> tuple[str, str, float]:
    """The answer, the reasoning and its seconds out of an answer's text."""
    kept: list[str] = []
    reasoning: list[str] = []
    seconds, at = 0.0, 0
    while (opening := _OPENING.search(text, at)) is not None:
        end = text.find(_CLOSING, opening.end())
        if end < 0:
            break
        kept.append(text[at : opening.start()])
        at = end + len(_CLOSING)
        kind = _TYPE.search(opening[1])
        if kind is not None and kind[1] == "reasoning":
            duration = _DURATION.search(opening[1])
            seconds += seconds_of(duration[1]) if duration else 0.0
            reasoning.append(_unquoted(_without_summary(text[opening.end() : end])))
        elif kind is not None and kind[1] in _TOOLS:
            left_out.add("tool")
        else:
            kept.append(text[opening.start() : at])
    if not at:
        return text, "", 0.0
    answer = "".join([*kept, text[at:]]).strip()
    return answer, "\n\n".join(part for part in reasoning if part), seconds


def _without_summary(body: str) -> str:
    found = _SUMMARY.match(body)
    return body[found.end() :] if found else body


def _unquoted(body: str) -> str:
    """Reasoning stands as a quote, in newer versions with its signs escaped."""
    body = body.strip()
    if body.startswith("&gt;"):
        body = unescape(body)
    lines = body.split("\n")
    if all(line.startswith(">") or not line.strip() for line in lines):
        lines = [line[1:].removeprefix(" ") if line.startswith(">") else line for line in lines]
    return "\n".join(lines).strip()

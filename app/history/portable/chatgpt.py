"""ChatGPT's `conversations.json`: a list of conversations, each with a `mapping` of nodes and a `current_node`.

Thoughts, their recap, code and text of one answer are nodes below each other; custom instructions are hidden nodes of
the person; tools answer in nodes of their own.
"""

from typing import Any

from app.errors import BadImport
from app.history.portable.fences import fenced
from app.history.portable.joining import Turn, clean, joined, seconds_of, time_of
from app.history.portable.shape import FileConversation, LeftOut

# What a content type that we know holds its text under
_TEXT_KEYS = ("text", "result", "content", "summary", "user_instructions", "user_profile", "model_set_context")
_INSTRUCTIONS = frozenset({"user_editable_context", "model_editable_context"})


def is_chatgpt(value: Any) -> bool:
    """Whether an element of a list is one of ChatGPT's conversations."""
    return isinstance(value, dict) and "mapping" in value


def imported(value: dict[str, Any], number: int, left_out: LeftOut) -> FileConversation:
    """One conversation; `number` is its place in the file.

    Raises:
        BadImport: its nodes are no tree, or too many.
    """
    title = clean(value.get("title"))
    where = f"Conversation {number} (“{title[:40]}”)" if title else f"Conversation {number}"
    mapping = value["mapping"]
    if not isinstance(mapping, dict):
        raise BadImport(f"{where}: “mapping” is not an object.")
    turns = []
    for place, (key, node) in enumerate(mapping.items(), 1):
        if not isinstance(node, dict):
            raise BadImport(f"{where}, message {place}: it is not an object.")
        turns.append(_turn(key, node, left_out))
    leaf = value.get("current_node")
    return joined(
        where,
        _in_order(turns, mapping),
        leaf=leaf if isinstance(leaf, str) else None,
        title=title,
        created_at=time_of(value.get("create_time")),
        updated_at=time_of(value.get("update_time")),
        is_pinned=value.get("is_starred") is True or value.get("pinned_time") is not None,
        is_archived=value.get("is_archived") is True,
        left_out=left_out,
    )


def _in_order(turns: list[Turn], mapping: dict[str, Any]) -> list[Turn]:
    """Siblings as their parent lists them; the rest as it stands."""
    rank: dict[str, int] = {}
    for node in mapping.values():
        children = node.get("children")
        for place, child in enumerate(children if isinstance(children, list) else []):
            if isinstance(child, str):
                rank[child] = place
    return sorted(turns, key=lambda turn: rank.get(turn.key, 0))


def _turn(key: str, node: dict[str, Any], left_out: LeftOut) -> Turn:
    parent = node.get("parent")
    parent = parent if isinstance(parent, str) else None
    message = node.get("message")
    if not isinstance(message, dict):
        return Turn(key, parent, "")
    content, metadata = _object(message, "content"), _object(message, "metadata")
    role, kind = clean(_object(message, "author").get("role")), clean(content.get("content_type"))
    why = _why_left_out(message, metadata, role, kind)
    text, reasoning = ("", "") if why else _texts(content, kind, left_out)
    if why == "system" and not _texts(content, kind, LeftOut())[0]:
        why, role = "", ""  # nothing was in it
    return Turn(
        key,
        parent,
        role,
        text,
        reasoning,
        created_at=time_of(message.get("create_time")),
        model=clean(metadata.get("model_slug")),
        thinking_s=seconds_of(metadata.get("finished_duration_sec")),
        left_out=why,
    )


def _why_left_out(message: dict[str, Any], metadata: dict[str, Any], role: str, kind: str) -> str:
    if role == "system" or kind in _INSTRUCTIONS or metadata.get("is_visually_hidden_from_conversation") is True:
        return "system"
    if role not in ("user", "assistant"):
        return "tool"
    recipient = message.get("recipient")
    # What the model said to a tool, and not to the person
    return "tool" if role == "assistant" and isinstance(recipient, str) and recipient != "all" else ""


def _texts(content: dict[str, Any], kind: str, left_out: LeftOut) -> tuple[str, str]:
    """The text and the reasoning in a content."""
    if kind == "thoughts":
        thoughts = content.get("thoughts")
        found = [thought for thought in thoughts if isinstance(thought, dict)] if isinstance(thoughts, list) else []
        return "", "\n\n".join(text for thought in found if (text := _thought(thought)))
    if kind == "reasoning_recap":
        return "", ""
    if kind == "code":
        code, language = clean(content.get("text")), clean(content.get("language"))
        language = language if language.isalnum() and language != "unknown" else ""
        return fenced(code, language) if code else "", ""
    parts = content.get("parts")
    if isinstance(parts, list):
        return _parts(parts, left_out), ""
    return next((text for key in _TEXT_KEYS if (text := clean(content.get(key)))), ""), ""


def _thought(thought: dict[str, Any]) -> str:
    summary, body = clean(thought.get("summary")).strip(), clean(thought.get("content")).strip()
    return "\n\n".join(part for part in (f"**{summary}**" if summary else "", body) if part)


def _parts(parts: list[Any], left_out: LeftOut) -> str:
    found = []
    for part in parts:
        if isinstance(part, str):
            found.append(clean(part))
        elif isinstance(part, dict) and isinstance(part.get("text"), str):
            found.append(clean(part["text"]))  # what was said, written down
        elif part is not None:
            left_out.add("attachment")
    return "\n\n".join(text for text in found if text)


def _object(value: dict[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    return found if isinstance(found, dict) else {}

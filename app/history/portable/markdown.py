"""A branch as Markdown: a heading a turn, the reasoning folded away.

What a person wrote stands in a code block, exactly as typed, so that nothing in it is taken for Markdown. What a model
wrote is Markdown already and stands as it is; only a code block that broke off is closed.
"""

import re
from collections.abc import Sequence

from app.history.portable.fences import closed, fenced
from app.history.store import StoredMessage

_FOLDS = re.compile(r"<(?=/?(?:details|summary)\b)", re.IGNORECASE)
_MARKS = re.compile(r"([\\`*_{}\[\]()<>#+.!|~&$-])")


def as_markdown(title: str, messages: Sequence[StoredMessage], *, has_reasoning: bool) -> str:
    """The messages of one branch, the first one first."""
    parts = [f"# {_plain(title) or 'Conversation'}"]
    for message in messages:
        if message.role == "user":
            parts += ["## Question", fenced(message.text)]
            continue
        parts.append("## Answer")
        if has_reasoning and message.reasoning:
            # Else it could end the fold that it stands in
            reasoning = _FOLDS.sub("&lt;", closed(message.reasoning.strip("\n")))
            parts += ["<details>\n<summary>Reasoning</summary>", reasoning, "</details>"]
        if message.text:
            parts.append(closed(message.text.strip("\n")))
        note = _note(message)
        if note:
            parts.append(f"*{_plain(note)}*")
    return "\n\n".join(parts) + "\n"


def _note(message: StoredMessage) -> str:
    run = message.run
    if run is None or run.state == "done":
        return ""
    if run.state == "failed":
        return run.error_message or "This answer failed."
    return "This answer was stopped." if run.state == "stopped" else "This answer was interrupted."


def _plain(text: str) -> str:
    """One line of which nothing is taken for Markdown."""
    return _MARKS.sub(r"\\\1", " ".join(text.split()))

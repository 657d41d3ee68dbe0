"""A conversation as one HTML file that needs nothing else: no script, no request, formulas as MathML."""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app.history.store import Conversation, StoredMessage
from app.runs.shown import answer_html, reasoning_html
from app.static_files import STATIC

_PAGES = Path(__file__).parent / "pages"
_STYLES = (
    STATIC / "document.css",
    STATIC / "math.css",
    STATIC / "code.css",
    _PAGES / "export.css",
)
# In the chat a class says that it is dark; here the system does
_DARK_CODE = re.compile(r"body\.dark \.ponder,\s*\.dark \.ponder \{([^}]*)\}")


@dataclass(frozen=True, slots=True)
class _Page:
    template: Any
    style: str
    policy: str


def as_page(conversation: Conversation, messages: Sequence[StoredMessage], *, has_reasoning: bool) -> str:
    """The messages of one branch as a page of its own, the first one first."""
    page = _page()
    shown: str = page.template.render(
        title=conversation.title or "Conversation",
        created=conversation.created_at.strftime("%Y-%m-%d"),
        turns=[_turn(message, has_reasoning) for message in messages],
        style=page.style,
        policy=page.policy,
    )
    return shown


def _turn(message: StoredMessage, has_reasoning: bool) -> dict[str, Any]:
    run = message.run
    return {
        "is_question": message.role == "user",
        "text": message.text,
        "html": _without_buttons(answer_html(message)) if message.role != "user" else "",
        "reasoning": _without_buttons(reasoning_html(message)) if has_reasoning and message.reasoning else "",
        "thinking_s": round(run.timing.get("thinking_s", 0)) if run else 0,
        "model": run.model if run else "",
        "state": run.state if run else "done",
        "error": run.error_message if run else "",
    }


def _without_buttons(html: str) -> str:
    """Without what only a script would bring to life."""
    return re.sub(r'<button type="button" class="copy">[^<]*</button>', "", html)


@cache
def _page() -> _Page:
    pages = Environment(loader=FileSystemLoader(_PAGES), autoescape=True, undefined=StrictUndefined)
    whole = "\n".join(path.read_text("utf-8") for path in _STYLES)
    # The font of formulas is too large for every file; browsers have one
    style = re.sub(r"@font-face\s*\{[^}]*\}", "", whole)
    style = _DARK_CODE.sub(r"@media (prefers-color-scheme: dark) { .ponder {\1} }", style)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return _Page(pages.get_template("export.html"), style, policy)

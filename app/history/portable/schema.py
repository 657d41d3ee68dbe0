"""The schema of our own format, version 1. `docs/export.schema.json` is made of it."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.history.portable.shape import MOST_MESSAGES, MOST_TEXT_BYTES, TITLE_CHARS
from app.history.states import FinalState

SENTENCE_CHARS = 2000
_MOST_COUNT = 10**12


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


_Moment = Annotated[
    str, Field(pattern=r"^(?:19[7-9]|[2-9]\d\d)\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$", description="UTC, microseconds")
]
_Text = Annotated[str, Field(max_length=MOST_TEXT_BYTES, description="Unicode without NUL, at most 4 MiB in UTF-8")]
_Count = Annotated[int, Field(ge=0, le=_MOST_COUNT)]
_Figure = Annotated[float, Field(ge=0, le=_MOST_COUNT)]


class NotePart(_Part):
    """Something Ponder did to a run."""

    kind: Annotated[str, Field(pattern="^[a-z_]{1,32}$")]
    text: Annotated[str, Field(max_length=SENTENCE_CHARS)]
    at_token: _Count


class UsagePart(_Part):
    """Tokens; what is not known is left out."""

    prompt_tokens: _Count | None = None
    cached_tokens: _Count | None = None
    reasoning_tokens: _Count | None = None
    answer_tokens: _Count | None = None


class TimingPart(_Part):
    """Seconds, and tokens a second; what is not known is left out."""

    thinking_s: _Figure | None = None
    first_token_s: _Figure | None = None
    total_s: _Figure | None = None
    tokens_per_s: _Figure | None = None


class ErrorPart(_Part):
    """Why a run failed."""

    code: Annotated[str, Field(pattern="^[a-z_]{1,64}$")]
    message: Annotated[str, Field(max_length=SENTENCE_CHARS)]


class RunPart(_Part):
    """How an answer came about."""

    state: FinalState
    model: Annotated[str, Field(max_length=200)]
    effort: Annotated[str, Field(pattern="^[a-z]{0,16}$")]
    notes: Annotated[list[NotePart], Field(max_length=1000)]
    usage: UsagePart
    timing: TimingPart
    error: ErrorPart | None


class QuestionPart(_Part):
    """What a person wrote. `parent` is the number of an answer, or null at a root; messages are numbered from 1."""

    role: Literal["user"]
    parent: Annotated[int, Field(ge=1)] | None
    created_at: _Moment
    text: _Text


class AnswerPart(_Part):
    """What a model wrote; `parent` is the number of its question. Without `reasoning`, that was not exported."""

    role: Literal["assistant"]
    parent: Annotated[int, Field(ge=1)]
    created_at: _Moment
    text: _Text
    reasoning: _Text | None = None
    run: RunPart | None


class ConversationPart(_Part):
    """A tree of messages, parents first; `leaf` is the number of the answer at the end of the shown branch."""

    title: Annotated[str, Field(max_length=TITLE_CHARS)]
    is_pinned: bool
    is_archived: bool
    created_at: _Moment
    updated_at: _Moment
    leaf: Annotated[int, Field(ge=1)] | None
    messages: Annotated[
        list[Annotated[QuestionPart | AnswerPart, Field(discriminator="role")]], Field(max_length=MOST_MESSAGES)
    ]


class File(_Part):
    """The whole file; conversations from the one used longest ago to the one used last."""

    format: Literal["ponder"]
    version: Literal[1]
    conversations: list[ConversationPart]

"""Every error a person may see, worded for that person.

Knows no framework: `routes` turns these into a status and a JSON body, the engine process sends them over its socket
by `code`. What is not one of these is a bug.
"""

from typing import ClassVar


class PonderError(Exception):
    """An error with a code for programs and a sentence for people.

    `status` is the HTTP status `routes` answers with; `details` are numbers and ids a client can act on.
    """

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 400

    def __init__(self, message: str, **details: str | int) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class BadSetting(PonderError):
    """A setting that cannot be used; names its key. Stops the start."""

    code = "bad_setting"


class BadRequest(PonderError):
    """The request's JSON is not what the route takes."""

    code = "bad_request"
    status = 422


class NotFound(PonderError):
    """No such thing, or not yours: both look the same from outside."""

    code = "not_found"
    status = 404


class Forbidden(PonderError):
    """An unsafe request that does not come from our own page."""

    code = "cross_site"
    status = 403


class EmptyText(PonderError):
    """A message without a visible character."""

    code = "empty_text"
    status = 422


class TextTooLarge(PonderError):
    """More bytes than the server takes."""

    code = "text_too_large"
    status = 413


class PromptTooLong(PonderError):
    """The message alone does not fit the context window; both numbers are in `details`."""

    code = "too_long_for_model"
    status = 422


class ConversationBusy(PonderError):
    """A run is going on in this conversation; `details["run_id"]` names it."""

    code = "conversation_busy"
    status = 409


class QueueFull(PonderError):
    """More runs wait than the server keeps in line."""

    code = "queue_full"
    status = 503


class ModelUnavailable(PonderError):
    """The model cannot answer now and will not by waiting: it is missing, broken or too large."""

    code = "model_unavailable"
    status = 503


class EngineFailed(PonderError):
    """The model raised, or its process died, while this run was writing."""

    code = "engine_failed"
    status = 503


class StorageFailed(PonderError):
    """The database could not take or give what was asked: full disk, locked file, read-only folder."""

    code = "storage_failed"
    status = 503

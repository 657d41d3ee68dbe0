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


class InternalError(PonderError):
    """A bug of ours; its traceback is in the log."""

    code = "internal"
    status = 500


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


class UnknownHost(PonderError):
    """The request names a host that is not ours: a proxy that is not set up, or a rebound name."""

    code = "unknown_host"
    status = 400


class HeadersTooLarge(PonderError):
    """More bytes of headers than a browser of ours sends."""

    code = "headers_too_large"
    status = 431


class BadFraming(PonderError):
    """A request whose head or body is put together as no client of ours does it."""

    code = "bad_request"
    status = 400


class TooSlow(PonderError):
    """A request that did not arrive in time."""

    code = "too_slow"
    status = 408


class TooManyConnections(PonderError):
    """More connections at once than one address may have."""

    code = "too_many_connections"
    status = 503


class SignedOut(PonderError):
    """The cookie of an account whose session has ended."""

    code = "signed_out"
    status = 401


class SignInFirst(PonderError):
    """Guests are off here."""

    code = "sign_in_first"
    status = 401


class WrongPassword(PonderError):
    """The name and the password, or the code, do not fit. Says no more, so that names cannot be tried out."""

    code = "wrong_password"
    status = 401


class ConfirmFirst(PonderError):
    """Needs a password or provider check of the last minutes; `details["methods"]` says which this person has."""

    code = "confirm_first"
    status = 403


class Disabled(PonderError):
    """An admin has disabled this account."""

    code = "disabled"
    status = 403


class RegistrationClosed(PonderError):
    """The operator takes no new accounts."""

    code = "registration_closed"
    status = 403


class BadUsername(PonderError):
    """A name that breaks a rule; the message says which."""

    code = "bad_username"
    status = 422


class BadPassword(PonderError):
    """A password that breaks a rule; the message says which."""

    code = "bad_password"
    status = 422


class UsernameTaken(PonderError):
    """Somebody has that name, or one that looks like it."""

    code = "username_taken"
    status = 409


class IdentityTaken(PonderError):
    """A provider's identity that is another account's."""

    code = "identity_taken"
    status = 409


class LastWayIn(PonderError):
    """Without this nobody could sign in to the account."""

    code = "last_way_in"
    status = 409


class NotYourself(PonderError):
    """An admin cannot disable, demote or delete themselves: nobody might be left."""

    code = "not_yourself"
    status = 409


class TooManyAttempts(PonderError):
    """Tried too often; `details["retry_after_s"]` says when again."""

    code = "too_many_attempts"
    status = 429


class TooManyRuns(PonderError):
    """More runs of one person at once than they may have."""

    code = "too_many_runs"
    status = 429


class QuotaUsedUp(PonderError):
    """More runs in a day than this person may have; `details["retry_after_s"]` says when again."""

    code = "quota_used_up"
    status = 429


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


class ChangedMeanwhile(PonderError):
    """Another tab changed the conversation first; `details["version"]` is the current one."""

    code = "changed_meanwhile"
    status = 409


class TooManyTemporary(PonderError):
    """More temporary chats of one person than are kept in memory."""

    code = "too_many_temporary"
    status = 429


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


class BadImport(PonderError):
    """A file that cannot be imported; the message says what is wrong where. Nothing of it was kept."""

    code = "bad_import"
    status = 422


class StorageFailed(PonderError):
    """The database could not take or give what was asked: full disk, locked file, read-only folder."""

    code = "storage_failed"
    status = 503

    def __init__(self, message: str, **details: str | int) -> None:
        super().__init__(message, **{"retry_after_s": 5, **details})


def first_line(error: BaseException) -> str:
    """What an error of a library says, in a line that fits a sentence; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

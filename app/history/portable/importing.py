"""An import: a file on the disk becomes conversations, all of them or none.

Rows are written in short transactions, and until the last of them the conversations look as if they were deleted an
hour from now: nobody sees them, and if this process dies they are removed as deleted ones are.
"""

import asyncio
import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from sqlalchemy import insert, select, update
from sqlalchemy.orm import Session

from app.errors import BadImport, NotFound, StorageFailed, TooManyAttempts
from app.history.database import Database
from app.history.portable import chatgpt, open_webui, ours
from app.history.portable.reading import Part, parts
from app.history.portable.shape import FileConversation, FileMessage, FileRun, LeftOut
from app.history.removal import remove_conversations
from app.history.store import new_id, now
from app.history.tables import ConversationTable, MessageTable, PersonTable, RunTable

_HIDDEN_FOR = timedelta(hours=1)
_ROWS_AT_ONCE = 200
_CHARS_AT_ONCE = 2 * 1024 * 1024
_WORKERS = 2
# Files that are complete and wait for a worker, or have one
_MOST_IN_LINE = 32
# Bodies on their way; slow ones of one address leave room for others'
_MOST_UPLOADS_OF_ONE = 32
_MOST_UPLOADS = 256
_SWEPT_EVERY_S = 60.0
# No upload and no import takes so long: its process hangs
_OLDEST_S = 24 * 3600
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import has brought."""

    format: str
    conversations: int
    messages: int
    left_out: dict[str, int]


@dataclass(frozen=True, slots=True)
class Upload:
    """A file on its way in; only this process may read it."""

    owner_id: str
    path: Path


class Imports:
    """Takes files in, one at a time for a person. Every upload that is begun is ended by `take` or by `drop`.

    A file is locked while its process lives, so whatever is not locked is what a killed one left.
    """

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        # What keeps the files locked: descriptors of their own
        self._held: dict[Path, int] = {}
        self._uploading: dict[Path, str] = {}
        self._in_line = 0
        self._left = self._hidden_rows()
        self._workers = ThreadPoolExecutor(_WORKERS, "import")
        self._writers = ThreadPoolExecutor(_WORKERS, "upload")
        self._is_closed = False

    def sweep(self) -> None:
        """Remove the files that killed processes left."""
        with suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                with self._lock:  # none that is just being made
                    _remove_abandoned(path)

    def remove_hidden(self) -> None:
        """Remove the rows of imports that were cut; nobody has ever seen them.

        Raises:
            StorageFailed: the database gave an error; the rest is left for the next time.
        """
        if self._left:
            remove_conversations(self._database, ConversationTable.deletion_id.in_(self._left))
            self._left = []

    async def run(self) -> None:
        """Clear up after others, now and every minute, for as long as the server lives."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.run_in_executor(self._writers, self.sweep)
                await loop.run_in_executor(self._writers, self.remove_hidden)
            except StorageFailed:
                pass  # logged where it failed
            except Exception:  # a job that has died would leave plain text behind
                _log.exception("clearing up after imports failed; trying again")
            await asyncio.sleep(_SWEPT_EVERY_S)

    def close(self) -> None:
        """Imports that go on end, with nothing kept."""
        self._is_closed = True
        self._workers.shutdown()
        self._writers.shutdown()

    def begin(self, owner_id: str, address: str = "") -> tuple[Upload, BinaryIO]:
        """A place for a file, and the file to write it to.

        Raises:
            TooManyAttempts: this person's last import still goes on, or many bodies are on their way.
            StorageFailed: no file can be made.
        """
        with self._lock:
            if owner_id in self._busy:
                raise TooManyAttempts("Your last import still goes on. Wait until it is over.", retry_after_s=10)
            of_one = sum(found == address for found in self._uploading.values())
            if of_one >= _MOST_UPLOADS_OF_ONE or len(self._uploading) >= _MOST_UPLOADS:
                raise _others()
            upload = Upload(owner_id, self._folder / uuid4().hex)
            self._busy.add(owner_id)
            self._uploading[upload.path] = address
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._lock:
                descriptor = os.open(upload.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                file = os.fdopen(descriptor, "wb")
                self._held[upload.path] = os.dup(descriptor)
                with suppress(OSError):  # where files cannot be locked they are swept by their age alone
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.drop(upload)
            raise cannot_keep(error) from error
        return upload, file

    async def write(self, file: BinaryIO, data: bytes) -> None:
        """Add to an upload, in a thread that is there for this alone: a slow disk holds up nobody's sending.

        Raises:
            StorageFailed: it cannot be written.
        """

        def written() -> None:
            try:
                file.write(data)
                file.flush()
            except OSError as error:
                raise cannot_keep(error) from error

        await asyncio.get_running_loop().run_in_executor(self._writers, written)

    def drop(self, upload: Upload) -> None:
        """Remove the file; its person may import again."""
        try:
            upload.path.unlink(missing_ok=True)
        finally:
            with self._lock:
                self._busy.discard(upload.owner_id)
                self._uploading.pop(upload.path, None)
                held = self._held.pop(upload.path, None)
            if held is not None:
                os.close(held)

    def start(self, upload: Upload) -> Future[Imported]:
        """`take` in a thread of few that are there for this alone. Only from here on an upload has a place in the line:
        bodies that are slow to come take none.

        Raises:
            TooManyAttempts: many wait already; the file is left to `drop`.
        """
        with self._lock:
            if self._in_line >= _MOST_IN_LINE:
                raise _others()
            self._in_line += 1
            self._uploading.pop(upload.path, None)
        taken = self._workers.submit(self.take, upload)
        taken.add_done_callback(self._leave_line)
        return taken

    def _leave_line(self, _: Future[Imported]) -> None:
        with self._lock:
            self._in_line -= 1

    def _hidden_rows(self) -> list[str]:
        """The ids of imports that ended half-way in a process before this one. Other processes may be at work on a
        PostgreSQL: there such rows go as deleted ones do, within the hour."""
        if self._database.file is None:
            return []
        try:
            with self._database.reading() as db:
                hidden = select(ConversationTable.deletion_id).where(ConversationTable.deleted_at > now()).distinct()
                return [found for found in db.scalars(hidden) if found]
        except StorageFailed:
            return []  # as above

    def take(self, upload: Upload) -> Imported:
        """Import a file that is complete, and remove it.

        Raises:
            BadImport: the file is none of the three, or broken; the message says where.
            NotFound: the person is gone meanwhile.
            StorageFailed: the database could not take it, or the server ends.
        """
        try:
            with upload.path.open("rb") as file:
                return self._take(upload.owner_id, file)
        except OSError as error:
            raise cannot_keep(error) from error
        finally:
            self.drop(upload)

    def _take(self, owner_id: str, file: BinaryIO) -> Imported:
        writer, left_out = _Writer(self._database, owner_id), LeftOut()
        source = _Conversations(file, left_out)
        try:
            for conversation in source:
                if self._is_closed:
                    raise StorageFailed("The server is being restarted; nothing was imported. Try again in a minute.")
                writer.add(conversation)
            writer.show()
        except BaseException:
            writer.undo()
            raise
        return Imported(source.format, writer.conversations, writer.messages, left_out.counts)


def _remove_abandoned(path: Path) -> None:
    """Remove a file of a process that is not there any more: it would have it locked."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return  # dropped meanwhile, or none of ours
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_abandoned = True
    except OSError:
        is_abandoned = os.fstat(descriptor).st_mtime < time.time() - _OLDEST_S
    finally:
        os.close(descriptor)
    if is_abandoned:
        path.unlink(missing_ok=True)


def _others() -> TooManyAttempts:
    return TooManyAttempts("Others are importing just now. Try again in a minute.", retry_after_s=60)


def cannot_keep(error: OSError) -> StorageFailed:
    """What to say when the file of an import cannot be written or read."""
    _log.error("an import's file failed: %s", error.strerror)
    return StorageFailed("The server could not keep the file while reading it. Nothing was imported; try again later.")


class _Conversations:
    """A file's conversations, whatever its format; `format` is known when they have been read."""

    def __init__(self, file: BinaryIO, left_out: LeftOut) -> None:
        self._parts = parts(file)
        self._left_out = left_out
        self.format = ""

    def __iter__(self) -> Iterator[FileConversation]:
        said: dict[str, Any] = {}
        for part in self._parts:
            if part.key == "":
                yield self._foreign(part)
            elif part.number is None:
                said[part.key] = part.value
                ours.check_field(part.key, part.value)
            elif part.key == "conversations":
                yield ours.imported(part.value, part.number)
            else:
                ours.check_field(part.key, [])
        if not self.format:
            ours.check_file(said)
            self.format = ours.FORMAT

    def _foreign(self, part: Part) -> FileConversation:
        assert part.number is not None
        if chatgpt.is_chatgpt(part.value):
            found, read = "chatgpt", chatgpt.imported
        elif open_webui.is_open_webui(part.value):
            found, read = "open-webui", open_webui.imported
        else:
            raise BadImport(f"Conversation {part.number} is neither one of ChatGPT's nor one of Open WebUI's.")
        if self.format not in ("", found):
            raise BadImport(f"Conversation {part.number} is in another format than those before it.")
        self.format = found
        return read(part.value, part.number, self._left_out)


@dataclass(slots=True)
class _Rows:
    conversations: list[dict[str, Any]] = field(default_factory=list)
    messages: list[dict[str, Any]] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    chars: int = 0


class _Writer:
    """Writes conversations that nobody sees before `show`."""

    def __init__(self, database: Database, owner_id: str) -> None:
        self._database = database
        self._owner_id = owner_id
        self._import_id = new_id()
        self._began_at = now()
        self._recency = 0
        self._rows = _Rows()
        self.conversations = 0
        self.messages = 0

    def add(self, conversation: FileConversation) -> None:
        """Take a conversation; what has come together goes into the database."""
        conversation_id = new_id()
        ids = [new_id() for _ in conversation.messages]
        self._rows.conversations.append(
            {
                "id": conversation_id,
                "owner_id": self._owner_id,
                "title": conversation.title,
                "is_pinned": conversation.is_pinned,
                "is_archived": conversation.is_archived,
                "recency": self._recency_of(conversation),
                "version": 0,
                "search_version": 0,
                "deleted_at": self._began_at + _HIDDEN_FOR,
                "deletion_id": self._import_id,
                "leaf_id": ids[conversation.leaf] if conversation.leaf is not None else None,
                "created_at": conversation.created_at,
                "updated_at": conversation.updated_at,
            }
        )
        for position, message in enumerate(conversation.messages, 1):
            self._add_message(conversation_id, ids, position, message)
            if len(self._rows.messages) >= _ROWS_AT_ONCE or self._rows.chars >= _CHARS_AT_ONCE:
                self._write()
        if len(self._rows.conversations) >= _ROWS_AT_ONCE:
            self._write()
        self.conversations += 1
        self.messages += len(ids)

    def _add_message(self, conversation_id: str, ids: list[str], position: int, message: FileMessage) -> None:
        message_id = ids[position - 1]
        self._rows.messages.append(
            {
                "id": message_id,
                "conversation_id": conversation_id,
                "parent_id": ids[message.parent] if message.parent is not None else None,
                "position": position,
                "role": message.role,
                "text": message.text,
                "reasoning": message.reasoning,
                "is_imported": True,
                "created_at": message.created_at,
            }
        )
        self._rows.chars += len(message.text) + len(message.reasoning)
        if message.run is not None:
            self._rows.runs.append(self._run(conversation_id, message_id, message, message.run))

    def _run(self, conversation_id: str, message_id: str, message: FileMessage, run: FileRun) -> dict[str, Any]:
        return {
            "id": new_id(),
            "owner_id": self._owner_id,
            "conversation_id": conversation_id,
            "answer_id": message_id,
            "client_key": f"import-{new_id()}",
            "state": run.state,
            "model": run.model,
            "effort": run.effort,
            "options": {},
            "notes": run.notes,
            "usage": run.usage,
            "timing": run.timing,
            "error_code": run.error_code,
            "error_message": run.error_message,
            "last_event": 0,
            "created_at": message.created_at,
            "ended_at": message.created_at,
        }

    def _recency_of(self, conversation: FileConversation) -> int:
        """Microseconds of the last use as far as it is in the past; in order of the file where that has one."""
        moment = min(conversation.updated_at, self._began_at)
        recency = (moment - _EPOCH) // timedelta(microseconds=1)
        if conversation.is_in_order:
            recency = max(recency, self._recency + 1)
        self._recency = recency
        return recency

    def _write(self) -> None:
        rows, self._rows = self._rows, _Rows()
        with self._database.writing() as db:
            self._require_person(db)
            for table, found in (
                (ConversationTable, rows.conversations),
                (MessageTable, rows.messages),
                (RunTable, rows.runs),
            ):
                if found:
                    db.execute(insert(table), found)

    def _require_person(self, db: Session) -> None:
        if db.get(PersonTable, self._owner_id) is None:
            raise NotFound("Whoever began this import is not here any more. Nothing was imported.")

    def show(self) -> None:
        """Everything is there: now it is seen, at once.

        Raises:
            NotFound: it became somebody else's meanwhile.
        """
        self._write()
        with self._database.writing() as db:
            shown = db.execute(
                update(ConversationTable)
                .where(ConversationTable.deletion_id == self._import_id, ConversationTable.owner_id == self._owner_id)
                .values(deleted_at=None, deletion_id=None)
                .returning(ConversationTable.id)
            ).all()
            if len(shown) != self.conversations:
                raise NotFound("Whoever began this import is not here any more. Nothing was imported.")

    def undo(self) -> None:
        """Remove what was written. What cannot be removed now is removed as a deletion an hour from now."""
        try:
            remove_conversations(self._database, ConversationTable.deletion_id == self._import_id)
        except StorageFailed:
            _log.warning("the rows of an import that failed stay hidden and are removed in an hour")

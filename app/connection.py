"""One HTTP connection: every part of a request is bounded in bytes and in time, and so is the reading of an answer.

uvicorn's parser is fast and bounds nothing: heads, trailers, chunk extensions, bodies that nobody reads, requests
behind requests. Knows no routes and no people.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from app.config import Settings
from app.crowd import Crowd
from app.errors import BadFraming, HeadersTooLarge, PonderError, TooManyConnections, TooSlow
from app.routes.access import network_of
from app.routes.guards import MOST_HEAD_BYTES, error_response

# What the parser gets at once: a bound is noticed this much late at most, and nobody waits longer for one connection
_FEED_BYTES = 16 * 1024
_MOST_HEADERS = 200
# Chunk sizes, their extensions and trailers, beyond as many bytes as the body has
_MOST_FRAMING_BYTES = 16 * 1024
# Of requests sent before the answer to the one before them; no browser sends any
_MOST_BEHIND = 8
# uvicorn stops reading at 64 KiB that nobody has taken, and goes on whenever anybody asks
_MOST_UNREAD_BYTES = 1024 * 1024
# Of a body that is still coming after its request was answered: browsers read an answer only when they have sent all
_MOST_DRAINED_BYTES = 16 * 1024 * 1024
_LEAST_UPLOAD_BYTES_PER_S = 16 * 1024
_LEAST_DOWNLOAD_BYTES_PER_S = 2 * 1024
_HOSTS = b"host"


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol with bounds. What goes beyond one is answered with a sentence if it can be, and hung up on."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        settings: Settings,
        crowd: Crowd,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings = settings
        self._crowd = crowd
        self.timeout_keep_alive = settings.idle_timeout_s  # type: ignore[assignment]  # seconds, for call_later
        self.address = ""
        self._refusal: PonderError | None = None
        self._is_in_body = False
        # Bytes of the part that is being read, a head or what stands around a body's bytes
        self._part_bytes = 0
        self._body_bytes = 0
        self._drained_bytes = 0
        self._body_began = 0.0
        self._unsent_bytes = 0
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = network_of(self.client[0] if self.client else "")
        if not self._crowd.admit(self):
            self._refuse(TooManyConnections("There are too many connections from your address.", retry_after_s=5))
            return
        self._time_reading(self._settings.head_timeout_s, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.leave(self)
        self._stop_timing_reading()
        self._stop_timing_writing()
        super().connection_lost(exc)
        # Whatever was read of requests that nobody answers any more
        self.pipeline.clear()

    def make_room(self) -> None:
        """Close: somebody else needs the place more than whoever waits here."""
        self._hang_up()

    def shutdown(self) -> None:
        super().shutdown()
        self._see_it_sent()

    def timeout_keep_alive_handler(self) -> None:
        self._hang_up()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # Reading

    def data_received(self, data: bytes) -> None:
        if not self._is_in_body and not self._is_answering and self._reading is None:
            self._time_reading(self._settings.head_timeout_s, self._head_is_late)
        for start in range(0, len(data), _FEED_BYTES):
            if self.transport.is_closing():
                return
            piece = data[start : start + _FEED_BYTES]
            self._part_bytes += len(piece)
            super().data_received(piece)
            self._part_bytes = max(0, self._part_bytes)
            self._check_part()

    def _check_part(self) -> None:
        if self.transport.is_closing():
            return
        if self._is_in_body and self._part_bytes > _MOST_FRAMING_BYTES + self._body_bytes:
            self._refuse(BadFraming("The body of this request is cut into too many pieces, or has too much behind it."))
        elif not self._is_in_body and self._part_bytes > MOST_HEAD_BYTES:
            self._refuse(_head_too_large())

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_body:
            return  # a trailer: nobody here has a use for one, and the request is being answered already
        if len(self.headers) >= _MOST_HEADERS:
            raise self._refused(_head_too_large())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._check_framing()
        if len(self.pipeline) >= _MOST_BEHIND:
            raise self._refused(BadFraming("Wait for answers before sending more requests."))
        self._is_in_body = True
        self._part_bytes = self._body_bytes = self._drained_bytes = 0
        self._body_began = self.loop.time()
        self._time_reading(self._settings.stall_timeout_s, self._body_is_late)
        self._crowd.works(self)
        super().on_headers_complete()

    def _check_framing(self) -> None:
        """What another server in front of us might read otherwise than we do is not guessed about."""
        named = [value for name, value in self.headers if name == b"transfer-encoding"]
        if named and (named != [b"chunked"] or self.parser.get_http_version() != "1.1"):
            raise self._refused(BadFraming("A body comes with its length, or in chunks by HTTP/1.1."))
        if sum(name == _HOSTS for name, _ in self.headers) > 1:
            raise self._refused(BadFraming("A request names one host."))

    def on_body(self, body: bytes) -> None:
        self._part_bytes -= len(body)
        self._body_bytes += len(body)
        if self.cycle.response_complete:
            self._drained_bytes += len(body)
            if self._drained_bytes > _MOST_DRAINED_BYTES:
                self._hang_up()
            return
        super().on_body(body)
        if len(self.cycle.body) > _MOST_UNREAD_BYTES:
            raise self._refused(BadFraming("Wait for answers before sending more requests."))

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._is_in_body = False
        self._part_bytes = 0
        self._stop_timing_reading()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._wait_for_more()

    # Answering

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        task.add_done_callback(lambda _: self._see_it_sent())
        self.tasks.add(task)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._see_it_sent()
        if self.transport.is_closing() or self._is_answering:
            return
        if self._is_in_body:
            self._time_reading(self._settings.stall_timeout_s, self._hang_up)
        else:
            self._wait_for_more()

    def _wait_for_more(self) -> None:
        self._crowd.waits(self)
        self._unset_keepalive_if_required()
        if self._part_bytes:
            self._time_reading(self._settings.head_timeout_s, self._head_is_late)
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def pause_writing(self) -> None:
        super().pause_writing()
        self._see_it_sent()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_timing_writing()

    # Time

    def _time_reading(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_timing_reading()
        self._reading = self.loop.call_later(seconds, then)

    def _stop_timing_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _stop_timing_writing(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _head_is_late(self) -> None:
        if self._part_bytes:
            self._refuse(TooSlow("The request did not arrive in time."))
        else:
            self._hang_up()  # one that never said a word: browsers open some in advance

    def _body_is_late(self) -> None:
        """A body has some seconds, and more the more of it has come; never more than the longest upload."""
        seconds, most = self._settings.stall_timeout_s, self._settings.upload_timeout_s
        if self.flow.read_paused:
            self._body_began += seconds  # it is us who do not read
        taken = self.loop.time() - self._body_began
        allowed = min(seconds + self._body_bytes / _LEAST_UPLOAD_BYTES_PER_S, most)
        if taken >= allowed:
            self._refuse(TooSlow("The request did not arrive in time. Try again."))
        else:
            self._time_reading(min(allowed - taken, seconds), self._body_is_late)

    def _see_it_sent(self) -> None:
        """What lies here to be sent has to go on its way, or whoever does not read it is hung up on."""
        if self._writing is None and (unsent := self.transport.get_write_buffer_size()):
            self._unsent_bytes = unsent
            self._writing = self.loop.call_later(self._settings.stall_timeout_s, self._look_whether_it_is_sent)

    def _look_whether_it_is_sent(self) -> None:
        self._writing = None
        unsent = self.transport.get_write_buffer_size()
        least = self._settings.stall_timeout_s * _LEAST_DOWNLOAD_BYTES_PER_S
        if unsent and self._unsent_bytes - unsent < least:
            self.transport.abort()
        else:
            self._see_it_sent()

    # Refusing

    def _refused(self, error: PonderError) -> PonderError:
        """To be raised in what the parser calls: it stops there, and `send_400_response` says why."""
        self._refusal = error
        return error

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or BadFraming("This is no request that can be read."))

    def _refuse(self, error: PonderError) -> None:
        """Say why and hang up; without a word where that would stand in the answer to another request."""
        if self._is_in_body:
            is_next = self._is_answering and not self.cycle.response_started and not self.pipeline
        else:
            is_next = not self._is_answering
        if is_next and not self.transport.is_closing():
            response = error_response(error)
            lines = [b"HTTP/1.1 %d \r\nconnection: close\r\nx-content-type-options: nosniff\r\n" % response.status_code]
            lines += [b"%s: %s\r\n" % header for header in response.raw_headers]
            self.transport.write(b"".join([*lines, b"\r\n", bytes(response.body)]))
        self._hang_up()

    def _hang_up(self) -> None:
        self._stop_timing_reading()
        if not self.transport.is_closing():
            self.transport.close()
        self._see_it_sent()


def bounded_http(settings: Settings, most_connections: int) -> Callable[..., BoundedHttp]:
    """What makes a connection's protocol; all connections of a server share one crowd."""
    # A proxy's connections are everybody's: there it is the proxy that shares them out
    most_of_one = None if settings.trusted_proxies else settings.max_connections_per_address
    return partial(BoundedHttp, settings=settings, crowd=Crowd(most_connections, most_of_one))


def _head_too_large() -> HeadersTooLarge:
    return HeadersTooLarge("The headers of this request are too large. Delete this site's cookies.")

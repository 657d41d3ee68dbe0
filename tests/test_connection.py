"""One connection cannot hurt others: what is sent without an end is hung up on, what stops half-way is timed out."""

import asyncio
import itertools
import json
import re
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from uvicorn.server import ServerState

from app.config import Settings
from app.connection import bounded_http
from app.crowd import Crowd
from tests.live import LiveServer, serving
from tests.patience import PATIENCE_S
from tests.people import OWN_PAGE
from tests.scripted import HOLD, ScriptedEngine

# Sent by nobody who is well; with it a test comes to its end where nothing hangs up
MOST = 24 * 1024 * 1024
PIECE = 64 * 1024
PAGE = "Host: 127.0.0.1\r\nSec-Fetch-Site: same-origin\r\n"
CHUNKED = f"{PAGE}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
SHORT = {"head_timeout_s": 0.6, "idle_timeout_s": 0.6, "stall_timeout_s": 0.6, "upload_timeout_s": 2}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., LiveServer]]:
    """Starts servers with other settings; all end with the module."""
    opened: list[Any] = []

    def started(**more: Any) -> LiveServer:
        folder = tmp_path_factory.mktemp("connection")
        given: dict[str, Any] = {"data_dir": folder, "cache_dir": folder, "port": 0, "model": "demo"} | more
        opened.append(serving(Settings(**given), ScriptedEngine()))
        return opened[-1].__enter__()  # type: ignore[no-any-return]

    yield started
    for one in reversed(opened):
        one.__exit__(None, None, None)


@pytest.fixture(scope="module")
def patient(start: Callable[..., LiveServer]) -> LiveServer:
    """A server with the limits it has by itself."""
    return start()


@pytest.fixture(scope="module")
def hasty(start: Callable[..., LiveServer]) -> LiveServer:
    """A server that waits for nobody."""
    return start(**SHORT)


def connected(live: LiveServer, sent: str | bytes = b"", *, source: str = "127.0.0.1") -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE)
    client.settimeout(30)
    client.bind((source, 0))
    client.connect(("127.0.0.1", int(live.url.rpartition(":")[2])))
    client.sendall(sent if isinstance(sent, bytes) else sent.encode())
    return client


def flooded(client: socket.socket, pieces: Iterator[bytes], most: int = MOST) -> int:
    """How many bytes went out before the server hung up."""
    sent = 0
    try:
        while sent < most:
            piece = next(pieces)
            client.sendall(piece)
            sent += len(piece)
    except (ConnectionError, BrokenPipeError):
        return sent
    pytest.fail(f"the server took {sent} bytes")


def until_closed(client: socket.socket) -> bytes:
    """Everything the server says, up to its hanging up."""
    said = b""
    try:
        while piece := client.recv(PIECE):
            said += piece
    except ConnectionResetError:
        pass
    return said


def answer_of(client: socket.socket) -> bytes:
    """The next answer with all of its body."""
    said = b""
    while b"\r\n\r\n" not in said:
        said += client.recv(1)
    length = re.search(rb"content-length: ([0-9]+)", said)
    body = b""
    while length and len(body) < int(length[1]):
        body += client.recv(int(length[1]) - len(body))
    return said + body


def listen(client: socket.socket, seconds: float) -> None:
    """Wait so long for the server to say something; ConnectionError if it hangs up."""
    if select.select([client], [], [], seconds)[0] and not client.recv(PIECE):
        raise ConnectionResetError


def conversation_of(client: httpx.Client) -> str:
    return str(client.post("/api/conversations", json={}).json()["id"])


def run_of(client: httpx.Client, conversation: str) -> str:
    body = {"text": "Why?", "client_key": "a-first-key"}
    return str(client.post(f"/api/conversations/{conversation}/messages", json=body).json()["run_id"])


def status_of(said: bytes) -> int:
    return int(said.split(b" ", 2)[1])


def is_well(live: LiveServer) -> bool:
    return httpx.get(f"{live.url}/healthz", timeout=PATIENCE_S).status_code == 200


# Bytes

TARGETS = {
    "taken": "POST /api/conversations HTTP/1.1\r\n" + CHUNKED,
    "nowhere": "POST /nowhere HTTP/1.1\r\n" + CHUNKED,
    "another host": "POST /api/conversations HTTP/1.1\r\n" + CHUNKED.replace("127.0.0.1", "evil.example"),
    "another site": "POST /api/conversations HTTP/1.1\r\n" + CHUNKED.replace("same-origin", "cross-site"),
    "an import": "POST /api/me/import HTTP/1.1\r\n" + CHUNKED,
    "a page": "GET / HTTP/1.1\r\n" + CHUNKED,
    "health": "GET /healthz HTTP/1.1\r\n" + CHUNKED,
}
FLOODS: dict[str, tuple[str, bytes]] = {
    "trailers": ("2\r\n{}\r\n0\r\n", b"X-T: bbbbbbbb\r\n" * 4096),
    "one trailer": ("2\r\n{}\r\n0\r\nX-T: ", b"b" * PIECE),
    "a trailer's name": ("2\r\n{}\r\n0\r\nX", b"b" * PIECE),
    "trailers after an empty body": ("0\r\n", b"X-T: bbbbbbbb\r\n" * 4096),
    "an extension": ("2;a=", b"b" * PIECE),
    "extensions": ("", b"1;abcdefghijklmnop=abcdefghijklmnop\r\n \r\n" * 1024),
    "a chunk's size": ("", b"0" * PIECE),
    "tiny chunks": ("", b"1\r\n \r\n" * 8192),
    "a body": ("", b"10000\r\n" + b" " * 65536 + b"\r\n"),
}


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("target", TARGETS)
def test_no_part_of_a_request_goes_on_for_ever(patient: LiveServer, target: str, flood: str) -> None:
    begun, piece = FLOODS[flood]
    with connected(patient, f"{TARGETS[target]}\r\n{begun}") as client:
        flooded(client, itertools.repeat(piece))
    assert is_well(patient)


HEADS: dict[str, tuple[str, bytes]] = {
    "an address": ("GET /", b"a" * PIECE),
    "a method": ("", b"A" * PIECE),
    "a header": (f"GET / HTTP/1.1\r\n{PAGE}X-A: ", b"a" * PIECE),
    "a header's name": (f"GET / HTTP/1.1\r\n{PAGE}X", b"a" * PIECE),
    "headers": (f"GET / HTTP/1.1\r\n{PAGE}", b"X-A: b\r\n" * 8192),
    "lines before it": ("", b"\r\n" * 32768),
}


@pytest.mark.parametrize("head", HEADS)
def test_no_head_goes_on_for_ever(patient: LiveServer, head: str) -> None:
    begun, piece = HEADS[head]
    with connected(patient, begun) as client:
        flooded(client, itertools.repeat(piece), 2 * 1024 * 1024)
    assert is_well(patient)


def test_a_head_byte_by_byte_is_counted_too(patient: LiveServer) -> None:
    with connected(patient, f"GET / HTTP/1.1\r\n{PAGE}X-A: ") as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        flooded(client, itertools.repeat(b"a"), 200_000)


@pytest.mark.parametrize("count", [100, 200, 201, 1000])
def test_a_request_has_at_most_two_hundred_headers(patient: LiveServer, count: int) -> None:
    lines = "".join(f"X-{number}: a\r\n" for number in range(count - 1))
    with connected(patient, f"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}\r\n") as client:
        said = answer_of(client)
    assert status_of(said) == (200 if count <= 200 else 431)
    if count > 200:
        assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_large"


def test_trailers_are_no_headers(patient: LiveServer) -> None:
    """They come when the request is being answered: none may say afterwards who asks, or from where."""
    head = TARGETS["another site"]
    with connected(patient, f"{head}\r\n2\r\n{{}}\r\n0\r\nSec-Fetch-Site: same-origin\r\nX-A: b\r\n\r\n") as client:
        assert status_of(answer_of(client)) == 403
        client.sendall(f"GET /healthz HTTP/1.1\r\n{PAGE}\r\n".encode())
        assert status_of(answer_of(client)) == 200


def test_a_body_in_pieces_with_a_few_trailers_is_taken(patient: LiveServer) -> None:
    pieces = "".join(f"{len(piece):x};name=value\r\n{piece}\r\n" for piece in ('{"tit', 'le": "', "In pieces", '"}'))
    with connected(patient, f"{TARGETS['taken']}\r\n{pieces}0\r\nX-Checksum: abc\r\n\r\n") as client:
        said = answer_of(client)
    assert status_of(said) == 201
    assert b"In pieces" in said


def test_requests_behind_a_stream_are_not_collected(patient: LiveServer) -> None:
    patient.script(f"One{HOLD}two")
    with httpx.Client(base_url=patient.url, headers=OWN_PAGE, timeout=PATIENCE_S) as client:
        run = run_of(client, conversation_of(client))
        cookie = f"Cookie: ponder={client.cookies['ponder']}\r\n"
        with connected(patient, f"GET /api/runs/{run}/events HTTP/1.1\r\n{PAGE}{cookie}\r\n") as reader:
            assert status_of(answer_of(reader)) == 200
            flooded(reader, itertools.repeat(f"GET /healthz HTTP/1.1\r\n{PAGE}\r\n".encode() * 500))
        patient.release()
        assert "event: done" in client.get(f"/api/runs/{run}/events").text


def test_a_few_requests_at_once_are_answered_in_order(patient: LiveServer) -> None:
    asked = "".join(f"GET {path} HTTP/1.1\r\n{PAGE}\r\n" for path in ("/healthz", "/nowhere", "/api/me", "/healthz"))
    with connected(patient, asked) as client:
        client.sendall(f"GET /api/model HTTP/1.1\r\n{PAGE}Connection: close\r\n\r\n".encode())
        said = until_closed(client)
    assert [int(part[:3]) for part in said.split(b"HTTP/1.1 ")[1:]] == [200, 404, 200, 200, 200]


@pytest.mark.parametrize(
    "named",
    [
        *("gzip, chunked", "identity, chunked", "identity", "gzip", "chunked, chunked", "xchunked", "chunked;q=1"),
        *("chunked\r\nTransfer-Encoding: chunked", "Chunked, identity"),
    ],
)
def test_a_body_is_framed_in_one_way_or_not_taken(patient: LiveServer, named: str) -> None:
    head = TARGETS["taken"].replace("chunked", named)
    with connected(patient, f"{head}\r\n2\r\n{{}}\r\n0\r\n\r\n") as client:
        said = until_closed(client)
    assert status_of(said) == 400
    assert said.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("version", ["1.0", "0.9", "1.2", "2.0"])
def test_chunks_are_for_http_1_1(patient: LiveServer, version: str) -> None:
    with connected(patient, f"{TARGETS['taken'].replace('/1.1', f'/{version}')}\r\n2\r\n{{}}\r\n0\r\n\r\n") as client:
        assert status_of(until_closed(client)) == 400


def test_of_two_hosts_none_is_believed(patient: LiveServer) -> None:
    with connected(patient, f"GET / HTTP/1.1\r\n{PAGE}Host: evil.example\r\n\r\n") as client:
        assert status_of(until_closed(client)) == 400


def test_a_refused_body_is_read_so_far_that_the_sentence_arrives(patient: LiveServer) -> None:
    body = b"a" * (2 * 1024 * 1024 - 1)
    with httpx.Client(base_url=patient.url, headers=OWN_PAGE, timeout=PATIENCE_S) as client:
        refused = client.post("/nowhere", content=body)
        assert refused.json()["error"]["code"] == "not_found"
        assert client.get("/healthz").status_code == 200


# Time


@pytest.mark.parametrize(
    "begun",
    [
        "",
        "G",
        "\r\n",
        "GET / HTTP/1.1\r\n",
        f"GET / HTTP/1.1\r\n{PAGE}",
        f"GET /healthz HTTP/1.1\r\n{PAGE}\r\nGET /",
        f"{TARGETS['taken']}\r\n",
        f"{TARGETS['taken']}\r\n2\r\n{{",
        f"{TARGETS['taken']}\r\n2\r\n{{}}\r\n0\r\nX-T: a\r\n",
        f"{TARGETS['nowhere']}\r\n2\r\n{{}}\r\n",
        f"{TARGETS['an import']}\r\n2\r\n",
        f"{TARGETS['a page']}\r\n2\r\n",
        f"POST /api/conversations HTTP/1.1\r\n{PAGE}Content-Length: 10\r\n\r\n{{",
        f"POST /nowhere HTTP/1.1\r\n{PAGE}Content-Length: 10\r\n\r\n{{",
    ],
)
def test_what_stops_half_way_is_hung_up_on(hasty: LiveServer, begun: str) -> None:
    with connected(hasty, begun) as client:
        until_closed(client)


def test_whoever_is_late_is_told_so(hasty: LiveServer) -> None:
    for begun in ("GET / HTTP/1.1\r\n", f"{TARGETS['taken']}\r\n2\r\n"):
        with connected(hasty, begun) as client:
            said = until_closed(client)
        assert status_of(said) == 408
        assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_slow"


@pytest.mark.parametrize(
    ("begun", "piece"),
    [
        (f"GET / HTTP/1.1\r\n{PAGE}X-A: ", b"a"),
        ("", b"\r\n"),
        (f"GET /healthz HTTP/1.1\r\n{PAGE}\r\n", b"\r\n"),
        (f"{TARGETS['taken']}\r\n", b"1\r\n \r\n"),
        (f"{TARGETS['nowhere']}\r\n", b"1\r\n \r\n"),
        (f"{TARGETS['an import']}\r\n", b"1\r\n \r\n"),
        (f"{TARGETS['taken']}\r\n2\r\n{{}}\r\n0\r\n", b"X-T: a\r\n"),
    ],
)
def test_whoever_sends_a_little_now_and_then_is_hung_up_on(hasty: LiveServer, begun: str, piece: bytes) -> None:
    with connected(hasty, begun) as client:
        try:
            for _ in range(3000):
                client.sendall(piece)
                listen(client, 0.01)
        except ConnectionError:
            return
    pytest.fail("the server waited for half a minute")


def test_an_upload_has_an_end_however_fast_it_is(hasty: LiveServer) -> None:
    """200 KiB a second is fast enough to go on, but for no longer than the longest upload."""
    with connected(hasty, f"{TARGETS['an import']}\r\n") as client:
        try:
            for _ in range(1500):
                client.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")
                listen(client, 0.02)
        except ConnectionError:
            return
    pytest.fail("the server took it for half a minute")


@pytest.mark.parametrize("size", [0, 1_000, 40_000, 50_000_000])
@pytest.mark.parametrize("keeps", [b"keep-alive", b"close"])
def test_whoever_reads_no_answer_is_hung_up_on(tmp_path: Path, size: int, keeps: bytes) -> None:
    """An endless answer (0), one that fits the buffers, and those that do not, also when nothing more is written."""

    async def answer(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"connection", keeps)]})
        while not size and state.connections:
            await send({"type": "http.response.body", "body": b"a" * PIECE, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"a" * size})

    state = ServerState()

    async def scene() -> None:
        settings = Settings(data_dir=tmp_path, **SHORT)  # type: ignore[arg-type]
        made = bounded_http(settings, 100)
        config = uvicorn.Config(answer, http=made, ws="none", log_config=None, lifespan="off")  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: made(config, state, {}), "127.0.0.1", 0)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.setblocking(False)
            await loop.sock_connect(client, server.sockets[0].getsockname())
            await loop.sock_sendall(client, f"GET / HTTP/1.1\r\n{PAGE}\r\n".encode())
            async with asyncio.timeout(60):
                while not state.total_requests and not state.connections:  # noqa: ASYNC110  uvicorn gives no event
                    await asyncio.sleep(0)
                while state.connections or state.tasks:  # noqa: ASYNC110  nor one for this
                    await asyncio.sleep(0.01)
        server.close()

    asyncio.run(scene())


def test_a_stream_that_says_little_for_long_is_left_alone(hasty: LiveServer) -> None:
    hasty.script(f"One{HOLD}two")
    with httpx.Client(base_url=hasty.url, headers=OWN_PAGE, timeout=PATIENCE_S) as client:
        run = run_of(client, conversation_of(client))
        with client.stream("GET", f"/api/runs/{run}/events") as response:
            lines = response.iter_lines()
            assert next(lines).startswith("retry")
            for _ in range(5):  # each is held up longer than anything else may take here
                with connected(hasty, "GET") as other:
                    until_closed(other)
            hasty.release()
            assert any("event: done" in line for line in lines)


# Places


class Seat:
    def __init__(self, address: str) -> None:
        self.address = address
        self.is_closed = False

    def make_room(self) -> None:
        self.is_closed = True


def test_a_newcomer_takes_the_place_of_whoever_waits_longest_at_its_address() -> None:
    crowd = Crowd(most=100, most_of_one=3)
    first, second, third = (Seat("a") for _ in range(3))
    assert all(crowd.admit(seat) for seat in (first, second, third, Seat("b")))
    crowd.works(first)
    assert crowd.admit(Seat("a"))
    assert (first.is_closed, second.is_closed, third.is_closed) == (False, True, False)


def test_whoever_works_is_not_sent_away_for_a_newcomer_of_the_same_address() -> None:
    crowd = Crowd(most=100, most_of_one=2)
    busy = [Seat("a"), Seat("a")]
    for seat in busy:
        assert crowd.admit(seat)
        crowd.works(seat)
    newcomer = Seat("a")
    assert not crowd.admit(newcomer)
    crowd.leave(newcomer)
    assert crowd.admit(Seat("b"))
    crowd.leave(busy[0])
    assert crowd.admit(Seat("a"))
    assert not busy[1].is_closed


def test_when_all_places_are_taken_the_address_with_the_most_makes_room() -> None:
    crowd = Crowd(most=5, most_of_one=None)
    many, few = [Seat("many") for _ in range(4)], Seat("few")
    for seat in [few, *many]:
        assert crowd.admit(seat)
    assert crowd.admit(Seat("new"))
    assert many[0].is_closed
    assert not few.is_closed


def test_half_requests_of_one_address_keep_nobody_out(start: Callable[..., LiveServer]) -> None:
    live = start(max_connections_per_address=8)
    held = [connected(live, "GET /healthz HTTP/1.1\r\n") for _ in range(40)]
    try:
        for _ in range(3):
            assert is_well(live)
        with connected(live, f"GET /healthz HTTP/1.1\r\n{PAGE}\r\n", source="127.0.0.2") as other:
            assert status_of(answer_of(other)) == 200
        assert sum(until_closed(client) == b"" for client in held[:30]) == 30
    finally:
        for client in held:
            client.close()


def test_behind_a_proxy_the_proxy_shares_connections_out(start: Callable[..., LiveServer]) -> None:
    live = start(max_connections_per_address=8, trusted_proxies=1)
    held = [connected(live, "GET /healthz HTTP/1.1\r\n") for _ in range(20)]
    try:
        for client in held:
            client.sendall(f"{PAGE}\r\n".encode())
            assert status_of(answer_of(client)) == 200
    finally:
        for client in held:
            client.close()


def test_streams_of_one_address_leave_room_for_another(start: Callable[..., LiveServer]) -> None:
    live = start(max_connections_per_address=8)
    live.script(f"One{HOLD}two")
    with httpx.Client(base_url=live.url, headers=OWN_PAGE, timeout=PATIENCE_S) as client:
        run = run_of(client, conversation_of(client))
        cookie = f"Cookie: ponder={client.cookies['ponder']}\r\n"
        request = f"GET /api/runs/{run}/events HTTP/1.1\r\n{PAGE}{cookie}\r\n"
        readers = []
        try:
            for _ in range(8):
                readers.append(connected(live, request))
                assert status_of(answer_of(readers[-1])) == 200
            with connected(live, request) as refused:
                said = until_closed(refused)
            assert status_of(said) == 503
            assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"
            with connected(live, request, source="127.0.0.3") as other:
                assert status_of(answer_of(other)) == 200
        finally:
            for reader in readers:
                reader.close()
            live.release()

"""Connections that never end what they begin, and heads without end, on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app import http_protocol
from app.direct_exchange import DirectExchange, Handler, Headers
from app.http_protocol import MAX_HEAD_BYTES, BoundedHttpProtocol, Limits

SIMPLE = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
CHUNKED = b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
PATIENCE = 20.0
"""Seconds that a test waits at most for what should come at once."""


HURRIED = Limits(head=0.2, silence=0.2, body=60.0)
PATIENT = Limits(head=60.0, silence=60.0, body=60.0)


class Echo:
    """Answers with the body's length after a while, and counts the clients that left before its end.

    reads: whether it waits for the body; without, the length is 0. headers: those of the last request.
    """

    def __init__(self, delay: float = 0.0, *, reads: bool = True) -> None:
        self.left = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._delay, self._reads = delay, reads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(self._delay)
        self.headers = scope["headers"]
        size, more = 0, self._reads
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            size, more = size + len(message["body"]), message["more_body"]
        content = b"%d" % size
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(content))]}
        )
        await send({"type": "http.response.body", "body": content})


@asynccontextmanager
async def listening(
    app: Echo,
    limits: Limits = HURRIED,
    keep_alive: int = 5,
    refused: Callable[[int], None] = lambda _: None,
    direct: Handler | None = None,
) -> AsyncIterator[int]:
    """The port on which the application is served."""
    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_keep_alive=keep_alive)
    config.load()
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: BoundedHttpProtocol(
            config=config, server_state=state, app_state={}, limits=limits, refused=refused, direct=direct
        ),
        "127.0.0.1",
        0,
    )
    async with server:
        yield server.sockets[0].getsockname()[1]


async def exchange(port: int, *pieces: bytes, pause: float = 0.0) -> bytes:
    """What comes back until the server closes, also before all is sent; who then sends gets a reset, and it counts."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    heard = bytearray()

    async def listen() -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                heard.extend(data)

    hearing = asyncio.create_task(listen())
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)
    except ConnectionError:
        pass
    try:
        await asyncio.wait_for(hearing, PATIENCE)
    finally:
        writer.close()
    return bytes(heard)


@pytest.mark.parametrize(
    "pieces",
    [
        [b"GET /x HTTP/1.1\r\nHost: x\r\nX-Long: ", *[b"a" * 4096] * 40],
        [b"GET /x HTTP/1.1\r\nHost: x\r\n", *[b"X-Many: abcdefgh\r\n" * 256] * 40],
        [b"GET /x HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * (MAX_HEAD_BYTES + 1) + b"\r\n\r\n"],
        [b"POST /x HTTP/1.1\r\nX-Long: " + b"a" * (MAX_HEAD_BYTES + 1) + b"\r\nContent-Length: 3\r\n\r\nabc"],
        [b"GET /" + b"x" * 2 * MAX_HEAD_BYTES],
        [SIMPLE, b"GET /x HTTP/1.1\r\nHost: x\r\nX-Long: ", *[b"a" * 4096] * 40],
    ],
)
async def test_heads_without_end_are_431(pieces: list[bytes]) -> None:
    async with listening(Echo(), PATIENT) as port:
        answer = await exchange(port, *pieces, pause=0.001)
    answer = answer.removeprefix(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n3")
    assert answer.startswith(b"HTTP/1.1 431 "), answer
    assert b'{"error":"the request\'s headers are larger' in answer


@pytest.mark.parametrize("tail", [b"0\r\nX-Trailer: " + b"a" * 8192, b"3;" + b"a" * 8192])
async def test_trailers_and_chunk_extensions_without_end_are_431(tail: bytes) -> None:
    app = Echo()
    async with listening(app, PATIENT) as port:
        answer = await exchange(port, CHUNKED + b"3\r\nabc\r\n", tail, *[b"a" * 8192] * 20, pause=0.001)
    assert answer.startswith(b"HTTP/1.1 431 "), answer
    assert app.left == 1


async def test_slow_heads_and_silent_bodies_are_408() -> None:
    app, told = Echo(), list[int]()
    async with listening(app, refused=told.append, direct=Refusing()) as port:
        head = await exchange(port, *[SIMPLE[at : at + 1] for at in range(20)], pause=0.05)
        body = await exchange(port, SIMPLE[:-1])
        direct = await exchange(port, SIMPLE.replace(b"/x", b"/refused")[:-1])
    for answer in (head, body, direct):
        assert answer.startswith(b"HTTP/1.1 408 "), answer
        assert b'{"error":' in answer
    assert app.left == 1
    assert told == [408], "the body's is the application's to note"


async def test_a_body_that_comes_steadily_for_too_long_is_408() -> None:
    app = Echo()
    async with listening(app, Limits(head=60.0, silence=60.0, body=0.3)) as port:
        answer = await exchange(port, SIMPLE.replace(b": 3", b": 100"), *[b"a"] * 8, pause=0.05)
    assert answer.startswith(b"HTTP/1.1 408 "), answer
    assert b"body took longer than 0.3 s" in answer
    assert app.left == 1


async def test_large_bodies_and_ordinary_heads_pass() -> None:
    size = 50 * MAX_HEAD_BYTES
    head = b"POST /x HTTP/1.1\r\nHost: x\r\nX: %s\r\nConnection: close\r\n" % (b"a" * (MAX_HEAD_BYTES // 2))
    chunks = b"".join(b"%x\r\n%s\r\n" % (size // 10, b"a" * (size // 10)) for _ in range(10))
    async with listening(Echo(), PATIENT) as port:
        whole = await exchange(port, head + b"Content-Length: %d\r\n\r\n" % size + b"a" * size)
        chunked = await exchange(port, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")
        two = await exchange(port, SIMPLE + SIMPLE.replace(b"Host", b"Connection: close\r\nHost"))
    for answer in (whole, chunked):
        assert answer.endswith(b"\r\n\r\n%d" % (size // 10 * 10 if answer is chunked else size)), answer
    assert two.count(b"HTTP/1.1 200") == 2


async def test_a_body_that_comes_slowly_but_steadily_passes() -> None:
    async with listening(Echo(), Limits(head=60.0, silence=1.0, body=60.0)) as port:
        request = SIMPLE.replace(b"Host", b"Connection: close\r\nHost").replace(b": 3\r\n\r\nabc", b": 12\r\n\r\n")
        answer = await exchange(port, request, *[b"a"] * 12, pause=0.1)
    assert answer.endswith(b"12"), answer


async def test_what_is_no_http_has_the_error_shape() -> None:
    told: list[int] = []
    async with listening(Echo(), refused=told.append) as port:
        answer = await exchange(port, b"\x16\x03\x01 no http\r\n\r\n")
    assert told == [400]
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b'{"error":"Invalid HTTP request received."}')


@pytest.mark.parametrize("lines", [0, 2])
async def test_a_connection_that_says_nothing_is_closed(lines: int) -> None:
    """Empty lines, which may come before a request (RFC 9112, section 2.2), are nothing."""
    async with listening(Echo(), keep_alive=0) as port:
        assert await exchange(port, *[b"\r\n"] * lines, pause=0.05) == b""


async def test_empty_lines_after_an_answer_are_nothing() -> None:
    async with listening(Echo(), keep_alive=1) as port:
        answer = await exchange(port, SIMPLE, b"\r\n", pause=0.1)
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_the_first_request_has_the_time_of_a_head_however_short_connections_are_kept() -> None:
    async with listening(Echo(), PATIENT, keep_alive=0) as port:
        answer = await exchange(port, b"", SIMPLE, pause=0.05)
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_trailers_are_no_headers() -> None:
    """RFC 9110, section 6.5.1; the application's task begins after all of the segment was parsed."""
    app = Echo()
    request = CHUNKED.replace(b"Host", b"Connection: close\r\nHost") + b"3\r\nabc\r\n0\r\n"
    async with listening(app, PATIENT) as port:
        answer = await exchange(port, request + b"Authorization: Bearer x\r\nExpect: 100-continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert [name for name, _ in app.headers] == [b"connection", b"host", b"transfer-encoding"]


@pytest.mark.parametrize("app", [Echo(), Echo(reads=False)], ids=["read", "answered before"])
async def test_a_trailer_that_closes_the_connection_ends_it(app: Echo) -> None:
    """The parser takes nothing after it, so nobody may wait for another answer."""
    async with listening(app, PATIENT, keep_alive=60) as port:
        answer = await exchange(port, CHUNKED, b"3\r\nabc\r\n0\r\nConnection: close\r\n\r\n", pause=0.05)
    assert answer.startswith(b"HTTP/1.1 200 "), answer


async def test_a_connection_is_idle_when_both_the_answer_and_the_request_are_complete() -> None:
    """Not before, and from then on."""
    async with listening(Echo(reads=False), PATIENT, keep_alive=0) as port:
        answer = await exchange(port, SIMPLE[:-2], b"b", b"c" + SIMPLE, pause=0.05)
    assert answer.count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize("rest", [b"", b"no chunk\r\n"], ids=["silence", "rubbish"])
async def test_a_request_that_was_answered_gets_no_second_answer(monkeypatch: pytest.MonkeyPatch, rest: bytes) -> None:
    monkeypatch.setattr(http_protocol, "LAST_WORDS_SECONDS", 0.1)
    told = list[int]()
    async with listening(Echo(reads=False), refused=told.append) as port:
        answer = await exchange(port, CHUNKED, rest, pause=0.05)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert told == []


async def test_a_head_has_its_time_while_the_server_does_not_read() -> None:
    """It stops reading while two requests wait for their answers."""
    last = SIMPLE.replace(b"Host", b"Connection: close\r\nHost")
    async with listening(Echo(delay=0.3)) as port:
        answer = await exchange(port, SIMPLE + SIMPLE + last[:20], last[20:], pause=0.01)
    assert answer.count(b"HTTP/1.1 200 ") == 3, answer


class Refusing:
    """A direct handler that answers requests for /refused as soon as they are complete."""

    length = 3

    def accept(self, url: bytes, headers: Headers) -> Refusing | None:
        return self if url == b"/refused" else None

    def arrived(self, exchange: DirectExchange) -> None: ...

    def begin(self, exchange: DirectExchange) -> None:
        exchange.respond(400, [(b"content-length", b"0")], [])

    def ended(self, status: int | None) -> None: ...


async def test_an_answer_given_at_once_sets_no_end_to_the_request_behind_it() -> None:
    async with listening(Echo(delay=0.1), PATIENT, keep_alive=0, direct=Refusing()) as port:
        answer = await exchange(port, SIMPLE.replace(b"/x", b"/refused") + SIMPLE)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 200 ") == 1, answer


async def test_whitespace_around_a_value_is_none_of_it() -> None:
    """RFC 9110, section 5.5."""
    app = Echo()
    head = SIMPLE.replace(b"Length: 3", b"Length: \t3 \t").replace(b"Host", b"Connection: close \r\nX:  a b\t\r\nHost")
    async with listening(app, PATIENT) as port:
        answer = await exchange(port, head)
    assert answer.endswith(b"\r\n\r\n3")
    assert app.headers == [(b"connection", b"close"), (b"x", b"a b"), (b"host", b"x"), (b"content-length", b"3")]


async def test_an_offer_of_another_protocol_may_close_the_connection() -> None:
    offer = SIMPLE.replace(b"Host", b"Connection: Upgrade, close\r\nUpgrade: h2c\r\nHost")
    async with listening(Echo(), PATIENT) as port:
        answer = await exchange(port, offer)
    assert b"\r\nconnection: close\r\n" in answer


async def test_a_long_head_in_the_same_piece_as_another_request_is_not_taken() -> None:
    long = b"GET /x HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * (MAX_HEAD_BYTES + 1) + b"\r\n\r\n"
    async with listening(Echo(), PATIENT) as port:
        answer = await exchange(port, SIMPLE + long)
        other = await exchange(port, long + SIMPLE)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"connection: close" in answer
    assert other.startswith(b"HTTP/1.1 431 "), "and its answer is not that of the request behind it"
    assert other.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /x HTTP/1.1\r\n", 400),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nHost: y\r\n", 400),
        (b"POST /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n", 501),
        (b"POST /x HTTP/1.0\r\n", 200),
        (b"POST /x HTTP/1.0\r\nExpect: 100-continue\r\n", 200),
        (b"POST /x HTTP/1.1\r\nHost:\r\nTransfer-Encoding: Chunked\r\nConnection: close\r\n", 200),
    ],
)
async def test_host_transfer_coding_and_expectation(head: bytes, status: int) -> None:
    """RFC 9112, sections 3.2 and 6.1; RFC 9110, section 10.1.1, of Expect."""
    body = b"3\r\nabc\r\n0\r\n\r\n"
    if b"Transfer" not in head:
        head, body = head + b"Content-Length: 3\r\n", b"abc"
    async with listening(Echo(), PATIENT) as port:
        answer = await exchange(port, head + b"\r\n" + body)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert answer.count(b"HTTP/1.1") == 1


async def test_an_accepted_request_is_answered_though_rubbish_follows() -> None:
    """It takes longer than the connection is kept after a refusal."""
    app = Echo(delay=1.5)
    async with listening(app, PATIENT) as port:
        answer = await exchange(port, SIMPLE + b"no http\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n3")
    assert app.left == 0

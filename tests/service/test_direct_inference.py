"""Requests that come whole are answered without ASGI, those in chunks with it: nobody can tell by the answer."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.service.process import Server, serving
from tests.service.test_survival import metric, metric_of_status, patiently

SERIES = np.random.default_rng(1).normal(size=(2, 3, 96)).astype("<f4")
HEAD = json.dumps(
    {
        "id": "a",
        "inputs": [
            {
                "name": "series",
                "shape": [2, 3, 96],
                "datatype": "FP32",
                "parameters": {"binary_data_size": SERIES.nbytes},
            }
        ],
        "parameters": {"binary_data_output": True},
    }
).encode()
SUM = {"inputs": [{"name": name, "shape": [1, 3], "datatype": "INT32", "data": [1, 2, 3]} for name in ("a", "b")]}


@dataclass
class Call:
    path: str
    body: bytes
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


def json_of(**changes: object) -> bytes:
    return json.dumps(SUM | changes).encode()


LENGTH = "Inference-Header-Content-Length"
CALLS = {
    "binary": Call("hot-etth1", HEAD + SERIES.tobytes(), 200, {LENGTH: str(len(HEAD))}),
    "raw": Call("hot-etth1", SERIES[:1].tobytes(), 200, {LENGTH: "0"}),
    "json": Call("add", json_of(), 200),
    "version": Call("add/versions/1", json_of(id="x"), 200),
    "one output": Call("add", json_of(outputs=[{"name": "sum"}]), 200),
    "compressed answer": Call(
        "hot-etth1", HEAD + SERIES.tobytes(), 200, {LENGTH: str(len(HEAD)), "Accept-Encoding": "gzip"}
    ),
    "compressed request": Call("add", gzip.compress(json_of()), 200, {"Content-Encoding": "gzip"}),
    "unknown model": Call("nobody", json_of(), 404),
    "unknown version": Call("add/versions/9", json_of(), 404),
    "broken model": Call("broken", json_of(), 503),
    "no JSON": Call("add", b"{", 400),
    "empty": Call("add", b"", 400),
    "unknown output": Call("add", json_of(outputs=[{"name": "product"}]), 400),
    "wrong length": Call("hot-etth1", HEAD + SERIES.tobytes(), 400, {LENGTH: "1"}),
    "bad length": Call("hot-etth1", HEAD + SERIES.tobytes(), 400, {LENGTH: "many"}),
    "bad time limit": Call("add", json_of(), 400, {"X-Request-Timeout": "soon"}),
    "unknown coding": Call("add", json_of(), 415, {"Content-Encoding": "br"}),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_whole_and_in_chunks_are_answered_alike(server: Server, call: Call):
    answers = []
    with httpx.Client(base_url=f"{server.url}/v2/models", headers={"Accept-Encoding": "identity"}) as client:
        for content in (call.body, iter([call.body[:5], call.body[5:]])):
            answer = client.post(f"/{call.path}/infer", content=content, headers=dict(call.headers))
            assert answer.status_code == call.status, answer.text
            del answer.headers["date"]
            answers.append((answer.content, dict(answer.headers)))
    whole, chunked = answers
    assert whole == chunked


def test_the_first_of_two_request_ids_counts(server: Server):
    ids = [("X-Request-Id", "one"), ("X-Request-Id", "two")]
    for content in (json_of(), iter([json_of()])):
        answer = httpx.post(f"{server.url}/v2/models/add/infer", content=content, headers=ids)
        assert answer.headers["x-request-id"] == "one"


def request(body: bytes, path: str = "/v2/models/add/infer", more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


def answers_of(server: Server, *pieces: bytes) -> list[tuple[int, dict[str, object]]]:
    """Status and body of every answer on one connection, whose last request closes it."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while data := connection.recv(1 << 16):
            received += data
    found = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        found.append((int(head.split()[1]), json.loads(received[:length])))
        received = received[length:]
    return found


def test_pipelined_requests_are_answered_in_their_order(server: Server):
    names = [str(n) for n in range(9)]
    sent = [request(json_of(id=name)) for name in names]
    sent.insert(3, request(b"{", "/v2/models/nobody/infer"))
    sent.append(request(json_of(id="last"), more="Connection: close\r\n"))
    answers = answers_of(server, b"".join(sent))
    assert [status for status, _ in answers] == [200] * 3 + [404] + [200] * 7
    assert [body["id"] for status, body in answers if status == 200] == [*names, "last"]


def test_a_body_in_pieces_of_a_byte(server: Server):
    whole = request(json_of(id="slow"), more="Connection: keep-alive\r\n")
    last = request(json_of(id="end"), more="Connection: close\r\n")
    pieces = [whole[n : n + 1] for n in range(len(whole))]
    assert [body["id"] for _, body in answers_of(server, *pieces, last)] == ["slow", "end"]


def test_trailing_slash_query_and_escapes_are_the_application_s(server: Server):
    paths = ("/v2/models/add/infer/", "/v2/models/add/infer?x=1", "/v2/models/%61dd/infer")
    for path in paths:
        assert httpx.post(f"{server.url}{path}", json=SUM).status_code == 200, path


def test_clients_that_leave_before_their_answer_are_counted(server: Server):
    gone = metric_of_status(server, 499)
    for body in (HEAD + SERIES.tobytes(), b"{"):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = f"POST /v2/models/hot-etth1/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body) + 1}\r\n\r\n"
            connection.sendall(head.encode() + body)
    patiently(lambda: metric_of_status(server, 499) >= gone + 2)
    assert metric(server, "kronserve_queue_requests") == 0


def test_bodies_that_never_end_are_taken_off_the_budget(mixed_repository: Path, tmp_path: Path):
    """Each of them announces nearly all that the service may hold."""
    rows = np.zeros((80, 7, 96), "<f4")
    with serving(mixed_repository, tmp_path / "log", "--max-inflight-bytes", str(1 << 18)) as server:
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                head = "POST /v2/models/hot-etth1/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 250000\r\n\r\n"
                connection.sendall(head.encode() + bytes(1000))
        patiently(lambda: metric_of_status(server, 499) >= 5)
        header = HEAD.replace(b"[2, 3, 96]", b"[80, 7, 96]").replace(str(SERIES.nbytes).encode(), b"%d" % rows.nbytes)
        url = f"{server.url}/v2/models/hot-etth1/infer"
        answer = httpx.post(url, content=header + rows.tobytes(), headers={LENGTH: str(len(header))}, timeout=60)
        assert answer.status_code == 200, answer.text


def test_what_is_announced_but_never_sent_holds_nothing(mixed_repository: Path, tmp_path: Path):
    """Heads alone take none of the budget; bodies do, and whoever finds no room for its own is told so."""
    rows = np.zeros((70, 7, 96), "<f4")
    header = HEAD.replace(b"[2, 3, 96]", b"[70, 7, 96]").replace(str(SERIES.nbytes).encode(), b"%d" % rows.nbytes)
    head = b"POST /v2/models/hot-etth1/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 250000\r\n\r\n"
    options = ("--max-inflight-bytes", str(1 << 18), "--queue-budget", "0.5")
    with serving(mixed_repository, tmp_path / "log", *options) as server, ExitStack() as held:

        def honest() -> httpx.Response:
            url = f"{server.url}/v2/models/hot-etth1/infer"
            return httpx.post(url, content=header + rows.tobytes(), headers={LENGTH: str(len(header))}, timeout=60)

        for _ in range(16):
            held.enter_context(socket.create_connection(("127.0.0.1", server.port))).sendall(head)
        assert honest().status_code == 200
        with socket.create_connection(("127.0.0.1", server.port)) as greedy:
            greedy.sendall(head + bytes(200_000))
            patiently(lambda: honest().status_code == 429)
            refused = honest()
            assert (refused.status_code, refused.json().keys()) == (429, {"error"})
            assert int(refused.headers["retry-after"]) >= 1
        patiently(lambda: honest().status_code == 200)


@pytest.mark.parametrize("offer", ["h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA", "websocket"])
@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "in chunks"])
def test_an_offer_of_another_protocol_is_declined_and_the_request_answered(
    server: Server, offer: str, pieces: int, chunked: bool
):
    """As Java's HttpClient and curl --http2 send their first request."""
    more = f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {offer}\r\n"
    first = request(json_of(id="offered"), more=more)
    if chunked:
        body = json_of(id="offered")
        first = first[: first.index(b"Content-Length")] + b"Transfer-Encoding: chunked\r\n\r\n"
        first += b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    sent = first + request(json_of(id="next"), more="Connection: close\r\n")
    size = -(-len(sent) // pieces)
    answers = answers_of(server, *(sent[n : n + size] for n in range(0, len(sent), size)))
    assert [(status, body["id"]) for status, body in answers] == [(200, "offered"), (200, "next")]


def test_a_proxy_is_not_what_this_is(server: Server):
    ((status, body),) = answers_of(server, b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, body.keys()) == (400, {"error"})


async def test_many_at_once_each_get_their_own(server: Server):
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:

        async def one(n: int) -> None:
            tensors = [{**item, "data": [n, n, n]} for item in SUM["inputs"]]
            answer = await client.post("/v2/models/add/infer", content=json_of(inputs=tensors, id=str(n)))
            body = answer.json()
            assert body["id"] == str(n)
            assert {output["name"]: output["data"] for output in body["outputs"]}["sum"] == [2 * n] * 3

        await asyncio.gather(*(one(n) for n in range(200)))

"""The load generator against a real socket server whose answers are known."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator

import pytest

from bench.closed_loop import run

BODY = bytes(range(256)) * 2000  # larger than a socket's buffer
ANSWER = b"x" * 300_000


class Handler(socketserver.StreamRequestHandler):
    """Answers a whole request with 200; every third of a connection with 429, and closes after the sixth."""

    def handle(self) -> None:
        for number in range(1, 7):
            length = 0
            while (line := self.rfile.readline().strip()) != b"":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            if length == 0:
                return
            assert self.rfile.read(length) == BODY
            refuse = number % 3 == 0
            with self.server.lock:  # type: ignore[attr-defined]
                self.server.sent[429 if refuse else 200] += 1  # type: ignore[attr-defined]
            status, body = (b"429 Too Many Requests\r\nRetry-After: 0", b"") if refuse else (b"200 OK", ANSWER)
            self.wfile.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body))


class Counting(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections cut at the end of the load."""


@pytest.fixture
def server() -> Iterator[Counting]:
    with Counting(("127.0.0.1", 0), Handler) as running:
        running.sent, running.lock = {200: 0, 429: 0}, threading.Lock()  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_statuses_are_counted_apart_and_closed_connections_replaced(server: Counting) -> None:
    found = run(f"http://127.0.0.1:{server.server_address[1]}/any", BODY, ["X-Any: 1"], 4, 0.5)
    sent = server.sent  # type: ignore[attr-defined]
    good, refused = found["statuses"]["200"], found["statuses"]["429"]
    # What was sent and not yet read when the load ended is at most one answer per connection.
    assert 0 <= sent[200] + sent[429] - good["count"] - refused["count"] <= 4
    assert good["count"] >= 2 * refused["count"] > 0
    assert found["broken"] > 0
    assert 0 < good["p50"] <= good["p99"]

"""A socket server whose answers are known, for the load generators."""

from __future__ import annotations

import socketserver
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

BODY = bytes(range(256)) * 2000  # larger than a socket's buffer
ANSWER = b"x" * 300_000


class Handler(socketserver.StreamRequestHandler):
    """Answers a whole request with 200; every third of a connection with 429, and closes after the sixth."""

    server: Counting

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
            with self.server.lock:
                self.server.sent[429 if refuse else 200] += 1
            status, body = (b"429 Too Many Requests\r\nRetry-After: 0", b"") if refuse else (b"200 OK", ANSWER)
            self.wfile.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body))


class Counting(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.sent, self.lock = Counter[int](), threading.Lock()

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections cut at the end of the load."""


@pytest.fixture
def answering() -> Iterator[Counting]:
    with Counting() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()

"""A closed-loop load generator that keeps the latencies of each status apart: one thread, epoll, bare sockets.

Every connection sends its request, reads the answer, sends again. A client that is refused with 429 waits for
Retry-After before its next try, as RFC 9110 asks. Answers need a Content-Length.

Runs as a process of its own: python -m bench.closed_loop URL --body FILE --connections 512 --seconds 5
"""

from __future__ import annotations

import argparse
import heapq
import json
import select
import socket
import time
from collections import defaultdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BUFFER = 1 << 18


class Client:
    """One connection: the request's unsent rest, the answer's unread rest, and when the request began."""

    __slots__ = ("head", "remaining", "retry_after", "socket", "started", "status", "unsent")

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.started = 0.0
        self.unsent = memoryview(b"")
        self.head = b""
        self.remaining = -1
        self.status = 0
        self.retry_after = 0.0

    def send(self) -> bool:
        """Send what is left; False when the socket takes no more for now."""
        while self.unsent:
            try:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
            except BlockingIOError:
                return False
        return True

    def receive(self, buffer: bytearray) -> bool:
        """Read what is there; True when the answer is whole. Raises ConnectionError."""
        try:
            size = self.socket.recv_into(buffer)
        except BlockingIOError:
            return False
        if size == 0:
            raise ConnectionError("closed by the server")
        if self.remaining >= 0:
            self.remaining -= size
            return self.remaining <= 0
        self.head += buffer[:size]
        end = self.head.find(b"\r\n\r\n")
        if end < 0:
            return False
        self._parse(self.head[:end].lower())
        self.remaining -= len(self.head) - end - 4
        self.head = b""
        return self.remaining <= 0

    def _parse(self, head: bytes) -> None:
        self.status = int(head[9:12])
        headers = dict(line.split(b":", 1) for line in head.split(b"\r\n")[1:])
        if b"content-length" not in headers:
            raise ConnectionError("an answer without Content-Length")
        self.remaining = int(headers[b"content-length"])
        self.retry_after = float(headers.get(b"retry-after", b"0"))


def run(url: str, body: bytes, headers: list[str], connections: int, seconds: float) -> dict[str, Any]:
    """{"seconds", "broken", "statuses": {status: {"count", "p50", "p99"}}}, latencies in seconds."""
    parts = urlsplit(url)
    address = (parts.hostname or "127.0.0.1", parts.port or 80)
    lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {len(body)}", *headers]
    request = "\r\n".join([*lines, "", ""]).encode() + body
    poll, buffer = select.epoll(), bytearray(BUFFER)
    clients: dict[int, Client] = {}
    latencies: dict[int, list[float]] = defaultdict(list)
    resting: list[tuple[float, int]] = []
    broken = 0
    clock = time.perf_counter

    def begin(client: Client) -> None:
        client.started, client.unsent, client.remaining = clock(), memoryview(request), -1
        if not client.send():
            poll.modify(client.socket, select.EPOLLIN | select.EPOLLOUT)

    def connect() -> None:
        client = Client(address)
        clients[client.socket.fileno()] = client
        poll.register(client.socket, select.EPOLLIN)
        begin(client)

    for _ in range(connections):
        connect()
    started = clock()
    until = started + seconds
    while (now := clock()) < until:
        while resting and resting[0][0] <= now:
            client = clients.get(heapq.heappop(resting)[1])
            if client is not None:
                begin(client)
        rest = min(until, resting[0][0]) if resting else until
        for descriptor, events in poll.poll(max(0.0, rest - now)):
            client = clients[descriptor]
            try:
                if events & select.EPOLLOUT and client.send():
                    poll.modify(descriptor, select.EPOLLIN)
                if not events & ~select.EPOLLOUT or not client.receive(buffer):
                    continue
            except OSError:
                broken += 1
                poll.unregister(descriptor)
                clients.pop(descriptor).socket.close()
                connect()
                continue
            ended = clock()
            latencies[client.status].append(ended - client.started)
            if client.status == 429 and client.retry_after:
                heapq.heappush(resting, (ended + client.retry_after, descriptor))
            else:
                begin(client)
    took = clock() - started
    for client in clients.values():
        client.socket.close()
    return {"seconds": took, "broken": broken, "statuses": {str(s): _summary(taken) for s, taken in latencies.items()}}


def _summary(taken: list[float]) -> dict[str, float]:
    ordered = sorted(taken)
    return {
        "count": len(ordered),
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--header", action="append", default=[], metavar="'NAME: VALUE'")
    parser.add_argument("--connections", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    result = run(options.url, options.body.read_bytes(), options.header, options.connections, options.seconds)
    print("RESULT", json.dumps(result))

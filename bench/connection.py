"""What both load generators are made of: one HTTP/1.1 connection on a bare socket, and the summary of latencies."""

from __future__ import annotations

import argparse
import select
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

BUFFER = 1 << 18
"""Bytes that one read takes at most."""


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

    def begin(self, poll: select.epoll, request: bytes, now: float) -> None:
        """Send a request that began at `now`; `poll` knows the socket, and says when the rest can go."""
        self.started, self.unsent, self.remaining = now, memoryview(request), -1
        if not self.send():
            poll.modify(self.socket, select.EPOLLIN | select.EPOLLOUT)

    def advance(self, poll: select.epoll, events: int, buffer: bytearray) -> bool:
        """Go on after what `poll` told; True when the answer is whole. Raises ConnectionError."""
        if events & select.EPOLLOUT and self.send():
            poll.modify(self.socket, select.EPOLLIN)
        return bool(events & ~select.EPOLLOUT) and self.receive(buffer)

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


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The command line of both generators, but for what is the one's alone."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--header", action="append", default=[], metavar="'NAME: VALUE'")
    parser.add_argument("--connections", type=int, default=512)
    return parser


def post(url: str, body: bytes, headers: Iterable[str]) -> tuple[tuple[str, int], bytes]:
    """Where to connect, and the bytes of the POST request; `headers` are lines "Name: value"."""
    parts = urlsplit(url)
    lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {len(body)}", *headers]
    return (parts.hostname or "127.0.0.1", parts.port or 80), "\r\n".join([*lines, "", ""]).encode() + body


def by_status(latencies: Mapping[int, list[float]]) -> dict[str, dict[str, float]]:
    """{status: {"count", "p50", "p99"}}, seconds."""
    return {str(status): _summary(taken) for status, taken in latencies.items()}


def _summary(taken: list[float]) -> dict[str, float]:
    ordered = sorted(taken)
    return {
        "count": len(ordered),
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
    }

"""A closed-loop load generator that keeps the latencies of each status apart: one thread, epoll, bare sockets.

Every connection sends its request, reads the answer, sends again. A client that is refused with 429 waits for
Retry-After before its next try, as RFC 9110 asks. Answers need a Content-Length.

Runs as a process of its own: python -m bench.closed_loop URL --body FILE --connections 512 --seconds 5
"""

from __future__ import annotations

import heapq
import json
import select
import time
from collections import defaultdict
from typing import Any

from bench.connection import BUFFER, Client, arguments, by_status, post


def run(url: str, body: bytes, headers: list[str], connections: int, seconds: float) -> dict[str, Any]:
    """{"seconds", "broken", "statuses": {status: {"count", "p50", "p99"}}}, latencies in seconds."""
    address, request = post(url, body, headers)
    poll, buffer = select.epoll(), bytearray(BUFFER)
    clients: dict[int, Client] = {}
    latencies: dict[int, list[float]] = defaultdict(list)
    resting: list[tuple[float, int]] = []
    broken = 0
    clock = time.perf_counter

    def connect() -> None:
        client = Client(address)
        clients[client.socket.fileno()] = client
        poll.register(client.socket, select.EPOLLIN)
        client.begin(poll, request, clock())

    for _ in range(connections):
        connect()
    started = clock()
    until = started + seconds
    while (now := clock()) < until:
        while resting and resting[0][0] <= now:
            client = clients.get(heapq.heappop(resting)[1])
            if client is not None:
                client.begin(poll, request, clock())
        rest = min(until, resting[0][0]) if resting else until
        for descriptor, events in poll.poll(max(0.0, rest - now)):
            client = clients[descriptor]
            try:
                if not client.advance(poll, events, buffer):
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
                client.begin(poll, request, clock())
    took = clock() - started
    for client in clients.values():
        client.socket.close()
    return {"seconds": took, "broken": broken, "statuses": by_status(latencies)}


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    result = run(options.url, options.body.read_bytes(), options.header, options.connections, options.seconds)
    print("RESULT", json.dumps(result))

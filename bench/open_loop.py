"""An open-loop load generator: requests fall due by the clock, whatever became of those before. One thread, epoll.

A request that falls due goes out on a connection that waits for no answer; when all of them wait, it is counted as
`unsent`. Its latency counts from the moment at which it was due. A refused client honours nothing: it takes the next
request that falls due. At the end every connection is closed, answered or not.

Runs as a process of its own: python -m bench.open_loop URL --body FILE --connections 512 --rate 6000 --seconds 60
"""

from __future__ import annotations

import json
import select
import time
from collections import defaultdict, deque
from typing import Any

from bench.connection import BUFFER, Client, arguments, by_status, post


def run(url: str, body: bytes, headers: list[str], connections: int, seconds: float, rate: float) -> dict[str, Any]:
    """{"seconds", "offered", "unsent", "broken", "bare_refusals", "statuses": {status: {"count", "p50", "p99"}}}.

    `rate`: requests a second. `offered`: how many fell due. `bare_refusals`: 429 without Retry-After. Times in seconds.
    """
    address, request = post(url, body, headers)
    poll, buffer = select.epoll(), bytearray(BUFFER)
    clients: dict[int, Client] = {}
    free: deque[Client] = deque()
    latencies: dict[int, list[float]] = defaultdict(list)
    offered = unsent = broken = bare_refusals = 0
    clock = time.perf_counter

    def connect() -> None:
        client = Client(address)
        clients[client.socket.fileno()] = client
        poll.register(client.socket, select.EPOLLIN)
        free.append(client)

    def replace(client: Client) -> None:
        nonlocal broken
        broken += 1
        descriptor = client.socket.fileno()
        poll.unregister(descriptor)
        del clients[descriptor]
        client.socket.close()
        connect()

    for _ in range(connections):
        connect()
    started = clock()
    until = started + seconds
    while (now := clock()) < until:
        while (due := started + offered / rate) <= now:
            offered += 1
            if not free:
                unsent += 1
                continue
            client = free.popleft()
            try:
                client.begin(poll, request, due)
            except OSError:
                replace(client)
        for descriptor, events in poll.poll(max(0.0, min(due, until) - now)):
            client = clients[descriptor]
            try:
                if not client.advance(poll, events, buffer):
                    continue
            except OSError:
                if client in free:
                    free.remove(client)
                replace(client)
                continue
            latencies[client.status].append(clock() - client.started)
            bare_refusals += client.status == 429 and client.retry_after <= 0
            free.append(client)
    took = clock() - started
    for client in clients.values():
        client.socket.close()
    return {
        "seconds": took,
        "offered": offered,
        "unsent": unsent,
        "broken": broken,
        "bare_refusals": bare_refusals,
        "statuses": by_status(latencies),
    }


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--rate", type=float, required=True, metavar="REQUESTS/S")
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    content = options.body.read_bytes()
    print(
        "RESULT",
        json.dumps(run(options.url, content, options.header, options.connections, options.seconds, options.rate)),
    )

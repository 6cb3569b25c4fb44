"""How near to the compute limit an event loop in Python can come: a server that understands nothing, beside Kronserve.

It takes the last bytes of a request for the tensor, has an executor per core run batches of the size that Kronserve's
plan has, and sends the outputs' bytes. Of HTTP it knows Content-Length; nothing is checked, bounded, timed or counted.
What it falls short of the limit is the price of uvloop, the kernel's network, the load generator, and cold caches.

Takes turns with Kronserve and the limit and prints shares: python -m bench.bare_loop --rounds 6 --seconds 2
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import statistics
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from math import prod
from typing import cast

import numpy as np
import onnxruntime as ort
import uvloop

from app.serve import SWITCH_SECONDS
from bench import limit, machine
from bench.bundles import MODELS, WORK, ensure_bundles
from bench.load import wrk
from bench.payloads import v2_binary
from bench.process import Running, free_port
from bench.servers import PATIENCE, SERVERS, environment

CONNECTIONS = (8, 32)
WARM_SECONDS = 0.5
LENGTH = re.compile(rb"\r\nContent-Length: *(\d+)", re.IGNORECASE)


class Executors:
    """One thread a core that takes what waits and runs it; the event loop hears of what has ended."""

    def __init__(self, session: ort.InferenceSession, batch: int, loop: asyncio.AbstractEventLoop) -> None:
        self._session, self._batch, self._loop = session, batch, loop
        self._name = session.get_inputs()[0].name
        self._waiting: deque[tuple[asyncio.Transport, np.ndarray]] = deque()
        self._came = threading.Condition()
        self._executors = len(os.sched_getaffinity(0))
        for _ in range(self._executors):
            threading.Thread(target=self._work, daemon=True).start()

    def submit(self, transport: asyncio.Transport, row: np.ndarray) -> None:
        """Queue one row."""
        with self._came:
            self._waiting.append((transport, row))
            self._came.notify()

    def _work(self) -> None:
        while True:
            with self._came:
                while not self._waiting:
                    self._came.wait()
                rows = min(self._batch, -(-len(self._waiting) // self._executors))  # some for the others
                taken = [self._waiting.popleft() for _ in range(rows)]
            output = self._session.run(None, {self._name: np.concatenate([row for _, row in taken])})[0]
            answers = [(transport, output[at].tobytes()) for at, (transport, _) in enumerate(taken)]
            self._loop.call_soon_threadsafe(self._send, answers)

    def _send(self, answers: Sequence[tuple[asyncio.Transport, bytes]]) -> None:
        for transport, body in answers:
            transport.writelines([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body])


class Connection(asyncio.Protocol):
    """Requests one after another, each with a tensor of the same size at its end; GET is answered at once."""

    def __init__(self, executors: Executors, shape: Sequence[int]) -> None:
        self._executors, self._shape = executors, shape
        self._values = prod(shape)
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """A request, or a part of one."""
        self._received = received = self._received + data if self._received else data
        end = received.find(b"\r\n\r\n")
        if received.startswith(b"GET "):
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        elif (length := LENGTH.search(received, 0, end)) is None or len(received) < end + 4 + int(length[1]):
            return
        else:
            row = np.frombuffer(received[-4 * self._values :], np.float32).reshape(self._shape)
            self._executors.submit(self._transport, row)
        self._received = b""


async def serve(port: int, graph: str, shape: Sequence[int], batch: int) -> None:
    """Serve the model on a port of the loopback interface until the process is stopped."""
    executors = Executors(limit.session(graph, 1, spinning=False), batch, asyncio.get_running_loop())
    server = await asyncio.get_running_loop().create_server(lambda: Connection(executors, shape), "127.0.0.1", port)
    await server.serve_forever()


def start(model: str, batch: int) -> Running:
    """The bare loop in a process of its own. Raises NotStarted."""
    port = free_port()
    shape = ",".join(map(str, MODELS[model].shape))
    command = [sys.executable, "-m", "bench.bare_loop", "--serve", str(MODELS[model].graph), "--port", str(port)]
    command += ["--shape", shape, "--batch", str(batch)]
    return Running(command, port, "/", WORK / "logs" / f"bare-loop-{model}.log", environment(), PATIENCE)


def shares(servers: Mapping[str, Running], model: str, connections: int, seconds: float) -> dict[str, float]:
    """What each server answers, one after the other while the rest is frozen, as a share of the compute limit."""
    rates = {}
    for server in servers.values():
        server.freeze()
    for name, server in servers.items():
        server.thaw()
        target = v2_binary(model).target(server.port)
        wrk(target, connections, WARM_SECONDS)
        rates[name] = wrk(target, connections, seconds).rate
        server.freeze()
    most = limit.apart(MODELS[model], seconds)["samples_per_second"]
    for server in servers.values():
        server.thaw()
    return {name: rate / most for name, rate in rates.items()}


def compare(model: str, rounds: int, seconds: float) -> dict[str, object]:
    """Medians over the rounds by connections: the share of each server, and Kronserve's rate over the bare loop's."""
    with contextlib.ExitStack() as running:
        kronserve = SERVERS["kronserve"].start()
        running.callback(kronserve.stop)
        batch = kronserve.get_json(f"/v2/models/{model}/config")["max_batch_size"]
        bare = start(model, batch)
        running.callback(bare.stop)
        servers = {"bare loop": bare, "kronserve": kronserve}
        taken = [
            {connections: shares(servers, model, connections, seconds) for connections in CONNECTIONS}
            for _ in range(rounds)
        ]
    found: dict[str, object] = {"batch": batch}
    for connections in CONNECTIONS:
        turns = [one[connections] for one in taken]
        medians = {name: round(statistics.median(turn[name] for turn in turns), 3) for name in servers}
        ratio = statistics.median(turn["kronserve"] / turn["bare loop"] for turn in turns)
        found[f"{connections} connections"] = {**medians, "kronserve / bare loop": round(ratio, 3)}
    return found


def main() -> None:
    """Serve, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement; default: %(default)s")
    serving = parser.add_argument_group("the server itself")
    serving.add_argument("--serve", metavar="MODEL.onnx")
    serving.add_argument("--port", type=int)
    serving.add_argument("--shape", help="of one sample, the batch axis first: 1,7,96")
    serving.add_argument("--batch", type=int)
    given = parser.parse_args()
    if given.serve is not None:
        sys.setswitchinterval(SWITCH_SECONDS)
        uvloop.run(serve(given.port, given.serve, tuple(map(int, given.shape.split(","))), given.batch))
        return
    ensure_bundles()
    found = {model: compare(model, given.rounds, given.seconds) for model in MODELS}
    print(json.dumps({"machine": machine.describe()} | found, indent=2))


if __name__ == "__main__":
    main()

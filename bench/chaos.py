"""A hundred thousand requests, some of them bad: every good one must be answered right, and the counters must add up.

    python -m bench.chaos [--requests 100000] [--clients 32]

Of the requests, 5 % are malformed, 5 % disconnect before the answer, 5 % carry a deadline that passes in the queue. The
others are compared with ONNX Runtime's own answer. Prints a JSON report; exits with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort

from bench.process import Running, free_port

MODEL, VARIATES, KINDS = "hot-etth1", 7, 64
PARTS = 10
"""Memory is looked at after each."""

KIND_SHARES = {"good": 0.85, "malformed": 0.05, "leaving": 0.05, "late": 0.05}
OUTCOMES = ("succeeded", "failed", "refused", "expired", "cancelled", "aborted")


def request_bytes(series: np.ndarray, timeout: int | None = None, cut: int = 0) -> bytes:
    """An HTTP request with binary tensors; `cut` bytes of the tensor missing, `timeout` in microseconds."""
    blob = series.tobytes()[: series.nbytes - cut]
    parameters = {"binary_data_output": True} | ({"timeout": timeout} if timeout is not None else {})
    item = {
        "name": "series",
        "shape": list(series.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": series.nbytes},
    }
    header = json.dumps({"inputs": [item], "parameters": parameters}).encode()
    head = (
        f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(header) + len(blob)}\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\n\r\n"
    )
    return head.encode() + header + blob


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, int]:
    """Status, body, and the length of the JSON in it."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    body = await reader.readexactly(int(fields["content-length"]))
    return int(head.split(" ", 2)[1]), body, int(fields.get("inference-header-content-length", 0))


async def client(port: int, kinds: list[str], series: np.ndarray, expected: np.ndarray, seen: Counter[str]) -> None:
    """Send requests of these kinds one after another, over one connection while it lasts."""
    requests = {
        "good": [request_bytes(series[n : n + 1]) for n in range(KINDS)],
        "malformed": [request_bytes(series[:1], cut=4)],
        "leaving": [request_bytes(series[:1])],
        "late": [request_bytes(series[:1], timeout=1)],
    }
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for kind in kinds:
        number = random.randrange(len(requests[kind]))  # noqa: S311
        writer.write(requests[kind][number])
        await writer.drain()
        if kind == "leaving":
            writer.close()
            await writer.wait_closed()
            seen["left"] += 1
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            continue
        status, body, json_length = await read_answer(reader)
        if status != 200:
            seen[f"{kind} {status}"] += 1
            continue
        forecast = np.frombuffer(body[json_length:], "<f4").reshape(expected[number : number + 1].shape)
        right = np.allclose(forecast, expected[number : number + 1], rtol=1e-4, atol=1e-4)
        seen[f"{kind} {'right' if right else 'WRONG'}"] += 1
    writer.close()


def counters(port: int) -> dict[str, int]:
    """The scheduler's counters from /metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        lines = page.read().decode().splitlines()
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}
    found = {name: int(values[f'kronserve_inference_requests_total{{outcome="{name}"}}']) for name in OUTCOMES}
    return found | {"submitted": int(values["kronserve_inference_submitted_total"])}


def start(repository: Path, folder: Path) -> Running:
    """A kronserve process with its default settings and a cache of its own."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("kronserve")), "serve", "--repository", str(repository)]
    command += ["--port", str(port), "--grpc-port", "none", "--cache-dir", str(folder / "cache")]
    return Running(command, port, "/v2/health/ready", folder / "log", os.environ, patience=60.0)


async def run(requests: int, clients: int, repository: Path) -> dict[str, object]:
    """Start a server, send everything, and report."""
    random.seed(0)
    series = np.random.default_rng(0).normal(size=(KINDS, VARIATES, 96)).astype("<f4")
    session = ort.InferenceSession(repository / MODEL / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    expected = session.run(["forecast"], {"series": series})[0]
    kinds = random.choices(list(KIND_SHARES), list(KIND_SHARES.values()), k=requests)  # noqa: S311
    seen, resident = Counter[str](), []
    with tempfile.TemporaryDirectory() as folder:
        server = start(repository, Path(folder))
        try:
            for part in range(PARTS):
                share = kinds[part * requests // PARTS : (part + 1) * requests // PARTS]
                sending = (client(server.port, share[n::clients], series, expected, seen) for n in range(clients))
                await asyncio.gather(*sending)
                server.settle()
                resident.append(round(server.memory().rss))
            counted = counters(server.port)
        finally:
            server.stop()
    endings = sum(counted[name] for name in OUTCOMES)
    sent = Counter(kinds)
    checks = {
        "every good request was answered right": seen["good right"] == sent["good"],
        "every malformed one was 400": seen["malformed 400"] == sent["malformed"],
        "every late one was 504 or right": seen["late 504"] + seen["late right"] == sent["late"],
        "endings add up to what was submitted": endings == counted["submitted"],
        "nothing failed": counted["failed"] == counted["aborted"] == 0,
        "memory is flat after the first tenth": max(resident[1:]) - resident[0] <= max(8, resident[0] // 10),
    }
    return {
        "sent": dict(sent),
        "seen": dict(sorted(seen.items())),
        "counters": counted,
        "resident_mib": resident,
        "checks": checks,
    }


def main() -> int:
    """Command line; the report goes to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    options = parser.parse_args()
    report = asyncio.run(run(options.requests, options.clients, options.repository))
    print(json.dumps(report, indent=2))
    checks = report["checks"]
    assert isinstance(checks, dict)
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

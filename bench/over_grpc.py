"""gRPC against REST: the same tensors, raw in both, one server, one load generator (h2load) for both, in turns.

h2load counts HTTP statuses, and a gRPC error has status 200 too: the server's own counter of calls tells them apart.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.api.grpc import inference_pb2
from bench.bundles import MODELS, WORK
from bench.load import NoLoadGenerator
from bench.payloads import reference, v2_binary
from bench.process import Running, free_port
from bench.servers import PATIENCE, environment, kronserve_command

CONNECTIONS = (1, 8, 32)
METHOD = "/inference.GRPCInferenceService/ModelInfer"
WARM_SECONDS = 1


class CallsFailed(Exception):
    """Not every call was answered with status OK."""


@dataclass(frozen=True)
class Served:
    """A server that speaks both; `grpc_port` beside the HTTP port of `running`."""

    running: Running
    grpc_port: int

    def calls(self) -> dict[str, int]:
        """ModelInfer calls so far, by status code."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.running.port}/metrics", timeout=5) as page:
            text = page.read().decode()
        pattern = r'^kronserve_grpc_requests_total\{code="(\w+)",method="ModelInfer"\} ([\d.e+]+)$'
        return {code: int(float(count)) for code, count in re.findall(pattern, text, re.MULTILINE)}


def require_h2load() -> str:
    """The version of h2load. Raises NoLoadGenerator, which says how to install it."""
    if shutil.which("h2load") is None:
        raise NoLoadGenerator("h2load is not on PATH; on Debian and Ubuntu: apt-get install nghttp2-client")
    return subprocess.run(["h2load", "--version"], capture_output=True, text=True).stdout.strip()


def start() -> Served:
    """Kronserve on the benchmark's bundles with both ports. Raises NotStarted."""
    port, grpc_port = free_port(), free_port()
    command = kronserve_command(port)
    command[command.index("--grpc-port") + 1] = str(grpc_port)
    log = WORK / "logs" / "kronserve-grpc.log"
    return Served(Running(command, port, "/v2/health/ready", log, environment(), PATIENCE), grpc_port)


def measure(served: Served, seconds: float) -> list[dict[str, Any]]:
    """One entry per model and number of connections: {"rest", "grpc"}, each {"rate", "cpu_per_request"}.

    Raises CallsFailed.
    """
    found = []
    for model in MODELS:
        for connections in CONNECTIONS:
            entry: dict[str, Any] = {"model": model, "connections": connections}
            entry["rest"] = _drive(served, _rest(served, model), connections, seconds)
            before = served.calls()
            entry["grpc"] = _drive(served, call_options(model, served.grpc_port), connections, seconds)
            new = {code: count - before.get(code, 0) for code, count in served.calls().items()}
            # When its time is over h2load leaves in the middle of the calls under way.
            left = new.pop("CANCELLED", 0)
            if {code for code, count in new.items() if count} != {"OK"} or left > connections:
                raise CallsFailed(f"{model}, {connections} connections: {new}, cancelled: {left}")
            found.append(entry)
    return found


def _rest(served: Served, model: str) -> list[str]:
    target = v2_binary(model).target(served.running.port)
    headers = [part for name, value in target.headers.items() for part in ("-H", f"{name}: {value}")]
    return ["--h1", "-d", str(target.body), *headers, target.url]


def call_options(model: str, port: int) -> list[str]:
    """What h2load needs to call ModelInfer with the model's raw tensor, without end."""
    tensor = MODELS[model].tensor()
    request = inference_pb2.ModelInferRequest(model_name=model, raw_input_contents=[tensor.tobytes()])
    request.inputs.add(name=reference(model)[0], datatype="FP32", shape=tensor.shape)
    message = request.SerializeToString()
    file = WORK / "payloads" / f"grpc-{model}.bin"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"\0" + struct.pack(">I", len(message)) + message)  # gRPC's length-prefixed message, uncompressed
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    return ["-m", "1", "-d", str(file), *headers, f"http://127.0.0.1:{port}{METHOD}"]


def h2load(how: Sequence[str], connections: int, seconds: int) -> float:
    """Answers a second with HTTP status 200. Raises CallsFailed when there is none."""
    command = ["h2load", "-D", str(seconds), "-c", str(connections), "-t", "1", f"--warm-up-time={WARM_SECONDS}", *how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    good = re.search(r"status codes: (\d+) 2xx", done.stdout)
    if good is None or int(good.group(1)) == 0:
        raise CallsFailed(done.stdout[-500:])
    return int(good.group(1)) / seconds


def _drive(served: Served, how: Sequence[str], connections: int, seconds: float) -> dict[str, float]:
    whole = max(1, round(seconds))
    before = served.running.cpu_seconds()
    rate = h2load(how, connections, whole)
    cpu = served.running.cpu_seconds() - before
    return {"rate": rate, "cpu_per_request": cpu / (rate * (whole + WARM_SECONDS))}

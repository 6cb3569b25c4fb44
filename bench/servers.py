"""The servers that are compared: how each is started, and in which forms it takes a request."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench import payloads
from bench.bundles import MODELS, REPOSITORY, WORK
from bench.environments import python
from bench.payloads import Form
from bench.process import Running, free_port

PAYLOADS = ("binary", "json", "npy")
PATIENCE = 120.0
CACHE = WORK / "cache"

Command = Callable[[int], list[str]]
"""Port -> command line."""


@dataclass(frozen=True)
class Server:
    """One server. `forms`: payload -> model -> request."""

    name: str
    command: Command
    ready: str
    forms: Mapping[str, Callable[[str], Form]]
    freezable: bool = True
    """Whether it survives SIGSTOP; otherwise it stays awake, idle, while others are measured."""

    def form(self, payload: str, model: str) -> Form | None:
        """The request in this payload, or None when the server has no such endpoint."""
        make = self.forms.get(payload)
        return make(model) if make else None

    def start(self) -> Running:
        """Start it on a free port. Raises NotStarted; NotInstallable when its environment cannot be made."""
        port = free_port()
        log = WORK / "logs" / f"{self.name}.log"
        return Running(self.command(port), port, self.ready, log, environment(), PATIENCE)


def environment() -> dict[str, str]:
    """This process's environment with every KRONSERVE_ setting at its default, the cache in the work folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KRONSERVE_")}
    return kept | {"KRONSERVE_CACHE_DIR": str(CACHE)}


def forget_plans() -> None:
    """Drop compiled models and plans, so that they are measured anew, on the machine as it is now."""
    shutil.rmtree(CACHE, ignore_errors=True)


def _graphs() -> list[str]:
    return [part for model in MODELS.values() for part in ("--model", f"{model.name}={model.graph}")]


def kronserve_command(port: int) -> list[str]:
    """`kronserve serve` on the benchmark's bundles, with default settings, without gRPC."""
    command = str(Path(sys.executable).with_name("kronserve"))
    return [command, "serve", "--repository", str(REPOSITORY), "--port", str(port), "--grpc-port", "none"]


def _noop(port: int) -> list[str]:
    return [sys.executable, "-m", "bench.noop", "--port", str(port)]


def _peer(environment_name: str, script: str, *options: str) -> Command:
    file = Path(__file__).with_name("peers") / script

    def command(port: int) -> list[str]:
        return [str(python(environment_name)), str(file), "--port", str(port), *options, *_graphs()]

    return command


SERVERS = {
    server.name: server
    for server in (
        Server(
            "kronserve",
            kronserve_command,
            "/v2/health/ready",
            {"binary": payloads.v2_binary, "json": payloads.v2_json, "npy": payloads.npy},
        ),
        Server(
            "triton",
            _peer("triton", "triton.py", "--work", str(WORK / "triton")),
            "/v2/health/ready",
            {"binary": payloads.v2_binary, "json": payloads.v2_json},
            freezable=False,  # locks between its processes time out by the wall clock
        ),
        Server(
            "litserve",
            _peer("litserve", "litserve_app.py"),
            "/health",
            {
                "binary": lambda model: payloads.raw(model, f"/{model}"),
                "json": lambda model: payloads.v2_json(model, f"/{model}"),
            },
        ),
        Server(
            "naive",
            _peer("naive", "naive_fastapi.py"),
            "/health",
            {"binary": lambda model: payloads.raw(model, f"/raw/{model}"), "json": payloads.v2_json},
        ),
        Server(
            "noop",
            _noop,
            "/0",
            {
                "binary": lambda model: payloads.noop(model, payloads.v2_binary(model), binary=True),
                "json": lambda model: payloads.noop(model, payloads.v2_json(model), binary=False),
            },
        ),
    )
}
FLOORS = frozenset({"noop"})
"""Servers that answer nothing real: shown, never ranked."""

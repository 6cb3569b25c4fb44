"""A real `kronserve serve` process on free ports."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass
class Server:
    """A running server; `url` ends without a slash."""

    process: subprocess.Popen[bytes]
    port: int
    grpc_port: int
    log: Path
    trust: ssl.SSLContext | None = None
    """How a client knows the server, where it speaks TLS."""

    @property
    def url(self) -> str:
        return f"{'http' if self.trust is None else 'https'}://127.0.0.1:{self.port}"

    def resident_bytes(self) -> int:
        """Resident memory of the process."""
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")

    def peak_bytes(self) -> int:
        """Highest resident memory that the process has had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) << 10

    def stop(self, grace: float = 30.0) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(grace)


@contextmanager
def serving(
    repository: Path, log: Path, *options: str, wait_ready: bool = True, trust: ssl.SSLContext | None = None
) -> Iterator[Server]:
    """Run `kronserve serve` on `repository`; ready when the block starts, killed when it ends.

    Its plans are measured in a fifth of the usual time: no test here is about how well.
    """
    path = "/v2/health/ready" if wait_ready else "/v2/health/live"
    server = _start(repository, log, options, trust)
    try:
        try:
            _wait(server, path)
        except AssertionError:
            if not _lost_its_port(server):
                raise
            server = _start(repository, log, options, trust)
            _wait(server, path)
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def _start(repository: Path, log: Path, options: tuple[str, ...], trust: ssl.SSLContext | None) -> Server:
    with socket.socket() as http, socket.socket() as grpc:
        for probe in (http, grpc):
            probe.bind(("127.0.0.1", 0))
        port, grpc_port = http.getsockname()[1], grpc.getsockname()[1]
    command = [str(Path(sys.executable).with_name("kronserve")), "serve", "--plan-seconds", "0.2"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, "--repository", str(repository), "--port", str(port), "--grpc-port", str(grpc_port), *options],
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    return Server(process, port, grpc_port, log, trust)


def _lost_its_port(server: Server) -> bool:
    """Whether it has ended since another process took a port that was free when it was chosen."""
    lines = [line for line in server.log.read_text().splitlines() if "address already in use" in line.lower()]
    ours = re.compile(rf"\b({server.port}|{server.grpc_port})\b")
    return server.process.poll() is not None and any(ours.search(line) for line in lines)


def _wait(server: Server, path: str, patience: float = 60.0) -> None:
    until = time.monotonic() + patience
    while time.monotonic() < until:
        if server.process.poll() is not None:
            break
        try:
            if httpx.get(server.url + path, verify=server.trust or True).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"no {path} from the server:\n{server.log.read_text()}")


def patiently(condition: Callable[[], bool], patience: float = 30.0) -> None:
    """Wait until the condition holds; AssertionError when it does not come true."""
    until = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.02)

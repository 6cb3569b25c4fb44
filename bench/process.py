"""A server as a tree of processes: start, wait until it answers, freeze while others are measured, account, stop."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

POLL_SECONDS = 0.01
SETTLE_SECONDS = 20.0
QUIET_SECONDS, QUIET_SHARE = 0.3, 0.1
"""A server is at rest when it takes at most this share of one core for this long."""
MIB = 1 << 20


class NotStarted(Exception):
    """A server that did not become ready; the message has the end of its log."""


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True)
class Memory:
    """MiB over the tree. `rss` counts shared pages once per process, `pss` divides them among the processes."""

    rss: float
    pss: float
    processes: int


class Running:
    """A started server. `seconds_to_ready`: from the start of the process to the first 200 of its ready path."""

    def __init__(
        self, command: Sequence[str], port: int, ready: str, log: Path, env: Mapping[str, str], patience: float
    ) -> None:
        """Start and wait. Raises NotStarted."""
        self.port, self._log = port, log
        log.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                list(command), stdout=stream, stderr=subprocess.STDOUT, env=dict(env), start_new_session=True
            )
        try:
            while not self._answers(ready):
                if self._process.poll() is not None or time.perf_counter() - started > patience:
                    raise NotStarted(
                        f"{command[0]} did not get ready: {log.read_text(errors='replace')[-1500:].strip()}"
                    )
                time.sleep(POLL_SECONDS)
        except BaseException:
            self.stop()
            raise
        self.seconds_to_ready = time.perf_counter() - started

    def settle(self) -> bool:
        """Wait until it has done what its last clients left behind; False when it does not come to rest."""
        until = time.perf_counter() + SETTLE_SECONDS
        while time.perf_counter() < until:
            before = self.cpu_seconds()
            time.sleep(QUIET_SECONDS)
            if self.cpu_seconds() - before <= QUIET_SHARE * QUIET_SECONDS:
                return True
        return False

    def freeze(self) -> None:
        """Stop the whole tree without ending it: parents first, so that none sees its children hang."""
        for process in self._tree():
            process.suspend()

    def thaw(self) -> None:
        """Let it run again, children first."""
        for process in reversed(self._tree()):
            process.resume()

    def cpu_seconds(self) -> float:
        """User and system time of the tree so far."""
        total = 0.0
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def event_loop_seconds(self) -> float:
        """User and system time of the root process's main thread so far, which is where an event loop runs."""
        root = psutil.Process(self._process.pid)
        return sum(float(t.user_time + t.system_time) for t in root.threads() if t.id == root.pid)

    def descriptors(self) -> int:
        """Open file descriptors of the tree."""
        return sum(process.num_fds() for process in self._tree())

    def memory(self) -> Memory:
        """Resident memory of the tree now."""
        rss = pss = 0
        processes = self._tree()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                info = process.memory_full_info()
                rss, pss = rss + info.rss, pss + info.pss
        return Memory(rss / MIB, pss / MIB, len(processes))

    def get_json(self, path: str) -> Any:
        """What the server answers to GET `path`."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return json.load(answer)

    def stop(self, grace: float = 10.0) -> None:
        """SIGTERM, and after the grace SIGKILL to what is left of the tree."""
        if self._process.poll() is None:
            tree = self._tree()
            for process in reversed(tree):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(grace)
            for process in tree:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its own session: only what it started
        self._process.wait()

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _tree(self) -> list[psutil.Process]:
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

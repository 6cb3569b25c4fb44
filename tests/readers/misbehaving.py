"""A module for `app.readers.isolated`, that does to its process what a broken file may."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import numpy as np

from app.errors import UnusableInput
from app.readers.isolated import Answer, answer


def work(question: Any, data: bytes) -> Answer:
    if question == "echo":
        return {"size": len(data)}, {"data": np.frombuffer(data, np.uint8), "none": np.zeros((0, 3), np.float32)}
    if question == "refuse":
        raise UnusableInput("not so", field="there")
    if question == "spin":
        while True:
            pass
    if question == "sleep":
        time.sleep(1000)
    if question == "eat":
        np.ones(1 << 30, np.uint8)
    if question == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if question == "leave":
        sys.stdout.flush()
        os._exit(0)
    if question == "talk":
        sys.stderr.write("secret " * 200_000)
    raise RuntimeError("secret")


if __name__ == "__main__":
    if sys.argv[1] == "one that does not listen":
        sys.exit(3)
    answer(work)

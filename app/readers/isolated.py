"""Work on strangers' bytes in a process of its own, for libraries of native code: its end is no end of the service.

`ask` starts it; its module calls `answer`. What goes in are a line of JSON and bytes, what comes out are a line of JSON
and arrays, or an error of the service's own. The process has a limit of memory and of time.
"""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from app.errors import InvalidRequest, KronserveError, PayloadTooLarge, Unavailable, UnusableInput

if TYPE_CHECKING:
    from app.readers.bounded import Buffer

SECONDS = 20
"""Of one core, for one file, if nothing else is said: on a busy machine it takes longer."""

PATIENCE = 4
"""How many times as long a process may take that does not get its core."""

WORKING_SPACE = 64 << 20
"""Bytes beside what the work itself is known to take."""

logger = logging.getLogger(__name__)

_TRACE = re.compile(r"^(?:  File \".*\", line \d+|[A-Za-z_.]*(?:Error|Exception|Interrupt)\b)", re.MULTILINE)
_ERRORS: dict[str, type[KronserveError]] = {
    error.__name__: error for error in (InvalidRequest, PayloadTooLarge, UnusableInput)
}

Answer = tuple[dict[str, Any], Mapping[str, np.ndarray]]


def ask(module: str, what: str, question: Any, data: Buffer, memory: int, seconds: float = SECONDS) -> Answer:
    """What a module's process answers, and the arrays that go with it.

    Args:
        module: run as `python -m`; calls `answer`.
        what: the work's object, as errors and the log name it.
        question, data: what `answer` hands to its work; the former as JSON.
        memory: most bytes that the process may take beyond its libraries, `data` and WORKING_SPACE.
        seconds: most that it may take, of one core.

    Raises:
        InvalidRequest: the process died: of a broken file, or of its limit. PayloadTooLarge: it took too long.
        Unavailable: none can be started. What the work raises of the service's own errors.
    """
    # -P, and this package's own folder: the working directory may hold another package of this name.
    command = [sys.executable, "-P", "-m", module, what, str(memory), str(ceil(seconds))]
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    pipe = subprocess.PIPE
    try:
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment) as process:  # noqa: S603
            try:
                assert process.stdin is not None
                # The process reads this line first, however long; the file is not copied to stand behind it.
                with suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(question).encode() + b"\n")
                output, errors = process.communicate(data, timeout=PATIENCE * seconds)  # type: ignore[arg-type]
            except BaseException:
                process.kill()
                raise
    except subprocess.TimeoutExpired as exc:
        raise PayloadTooLarge(f"{what} takes longer than {PATIENCE * seconds:.0f} s to read") from exc
    except OSError as exc:
        logger.error("no process to read %s: %s", what, exc)
        raise Unavailable(f"{what} cannot be read now") from exc
    if process.returncode == -signal.SIGXCPU:
        raise PayloadTooLarge(f"{what} takes longer than {seconds:.0f} s to read")
    header, _, body = output.partition(b"\n")
    if process.returncode or not header:
        logger.warning(
            "the process that reads %s ended with %d: %s", what, process.returncode, _without_content(errors)
        )
        raise InvalidRequest(f"{what} is broken, or takes more memory than its limit")
    said: dict[str, Any] = json.loads(header)
    if "error" in said:
        raise _ERRORS[said["error"]](said["message"], field=said["field"])
    arrays: dict[str, np.ndarray] = {}
    at = 0
    for name, dtype, shape in said["arrays"]:
        count = int(np.prod(shape))
        array: np.ndarray = np.frombuffer(body, dtype, count, at) if count else np.empty(0, dtype)
        at += array.nbytes
        arrays[name] = array.reshape(shape)
    return said["answer"], arrays


def answer(work: Callable[[Any, bytes], Answer]) -> None:
    """The process's side: `work` on the question and the bytes of standard input, under the limit of memory.

    `work` raises the service's own errors; of any other the process ends, and a MemoryError is PayloadTooLarge.
    """
    what, memory, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    question = json.loads(sys.stdin.buffer.readline())
    data = sys.stdin.buffer.read()
    limit_memory(memory + WORKING_SPACE)
    until = ceil(time.process_time()) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (until, until + 1))
    arrays: Mapping[str, np.ndarray] = {}
    try:
        said, arrays = work(question, data)
        header: dict[str, Any] = {
            "answer": said,
            "arrays": [[name, array.dtype.str, array.shape] for name, array in arrays.items()],
        }
    except KronserveError as error:
        header, arrays = _told(error), {}
    except MemoryError:
        header, arrays = _told(PayloadTooLarge(f"{what} takes more memory than its limit allows")), {}
    sys.stdout.buffer.write(json.dumps(header).encode() + b"\n")
    for array in arrays.values():
        sys.stdout.buffer.write(array.tobytes())


def limit_memory(more: int) -> None:
    """Allow this process so many bytes beyond what it has mapped now."""
    with open("/proc/self/statm") as statm:
        mapped = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more, mapped + more))


def _told(error: KronserveError) -> dict[str, Any]:
    return {"error": type(error).__name__, "message": error.message, "field": error.field}


def _without_content(errors: bytes) -> str:
    """Of what the process wrote, the places and kinds of errors: their messages may hold what was sent."""
    return " ".join(_TRACE.findall(errors.decode("utf-8", "replace"))[-8:])

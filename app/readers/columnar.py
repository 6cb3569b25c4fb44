"""Parquet and Arrow IPC to columns, through pyarrow (the extra `arrow`) in a process of its own.

Both formats nest compression that pyarrow undoes without a bound: pages and buffers say themselves how large they are.
The process has a limit of memory and of time instead, and what a broken file does to it stays there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import InvalidRequest, KronserveError, NotSupported, PayloadTooLarge, Unavailable, UnusableInput
from app.readers.bounded import Buffer
from app.readers.table import Selection, Table

PARQUET_MAGIC = b"PAR1"
ARROW_MAGIC = b"ARROW1"

SECONDS = 20
"""Longest time for one file."""

logger = logging.getLogger(__name__)

_TRACE = re.compile(r"^(?:  File \".*\", line \d+|[A-Za-z_.]*(?:Error|Exception|Interrupt)\b)", re.MULTILINE)
_ERRORS: dict[str, type[KronserveError]] = {
    error.__name__: error for error in (InvalidRequest, PayloadTooLarge, UnusableInput)
}


def read_columnar(data: Buffer, kind: str, selection: Selection, limit: int) -> Table:
    """The columns that a selection asks for, of a file of kind parquet or arrow (IPC file or stream).

    Raises:
        NotSupported: pyarrow is not installed. InvalidRequest: broken. UnusableInput: columns of other types than
        numbers, texts and timestamps, or with no timestamp in a row. PayloadTooLarge: more than `limit` bytes.
        Unavailable: no process can be started.
    """
    if find_spec("pyarrow") is None:
        raise NotSupported(f"{kind} files need the extra 'arrow' (pip install 'kronserve[arrow]')")
    # -P, and this package's own folder: the working directory may hold another package of this name.
    command = [sys.executable, "-P", "-m", "app.readers.columnar_process", kind, str(limit)]
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    pipe = subprocess.PIPE
    try:
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment) as process:  # noqa: S603
            try:
                assert process.stdin is not None
                # The process reads this line first, however long; the file is not copied to stand behind it.
                with suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(asdict(selection)).encode() + b"\n")
                output, errors = process.communicate(data, timeout=SECONDS)  # type: ignore[arg-type]
            except BaseException:
                process.kill()
                raise
    except subprocess.TimeoutExpired as exc:
        raise PayloadTooLarge(f"the {kind} file takes longer than {SECONDS} s to read") from exc
    except OSError as exc:
        logger.error("no process to read %s files: %s", kind, exc)
        raise Unavailable(f"{kind} files cannot be read now") from exc
    header, _, body = output.partition(b"\n")
    if process.returncode or not header:
        logger.warning(
            "the process that reads %s files ended with %d: %s", kind, process.returncode, _without_content(errors)
        )
        raise InvalidRequest(f"the {kind} file is broken, or takes more memory than its limit")
    said: dict[str, Any] = json.loads(header)
    if "error" in said:
        raise _ERRORS[said["error"]](said["message"], field=said["field"])
    return _table(said, body)


def _without_content(errors: bytes) -> str:
    """Of what the process wrote, the places and kinds of errors: their messages may hold what was sent."""
    return " ".join(_TRACE.findall(errors.decode("utf-8", "replace"))[-8:])


def _table(said: dict[str, Any], body: bytes) -> Table:
    import pandas as pd

    arrays: dict[str, np.ndarray] = {}
    at = 0
    for name, dtype, shape in said["arrays"]:
        array: np.ndarray = (
            np.frombuffer(body, dtype, int(np.prod(shape)), at) if np.prod(shape) else np.empty(0, dtype)
        )
        at += array.nbytes
        arrays[name] = array.reshape(shape)
    time: Any = arrays.get("time")
    if time is not None and time.dtype.kind == "M":
        time = pd.DatetimeIndex(time)
        if said["zone"] is not None:
            try:
                time = time.tz_localize("UTC").tz_convert(said["zone"])
            except (ValueError, LookupError, OSError, OverflowError) as exc:
                name = said["time_name"]
                raise UnusableInput(
                    f"column {name!r}: the time zone {said['zone'][:40]!r} is not known", field=name
                ) from exc
    return Table(tuple(said["names"]), arrays["values"], time, said["time_name"], arrays.get("ids"))

"""Parquet and Arrow IPC to columns, through pyarrow (the extra `arrow`) in a process of its own.

Both formats nest compression that pyarrow undoes without a bound: pages and buffers say themselves how large they are.
The process has a limit of memory and of time instead, and what a broken file does to it stays there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

import numpy as np

from app.errors import InvalidRequest, KronserveError, NotSupported, PayloadTooLarge, UnusableInput
from app.readers.bounded import Buffer
from app.readers.table import Selection, Table

PARQUET_MAGIC = b"PAR1"
ARROW_MAGIC = b"ARROW1"

SECONDS = 20
"""Longest time for one file."""

_ERRORS: dict[str, type[KronserveError]] = {
    error.__name__: error for error in (InvalidRequest, PayloadTooLarge, UnusableInput)
}


def read_columnar(data: Buffer, kind: str, selection: Selection, limit: int) -> Table:
    """The columns that a selection asks for, of a file of kind parquet or arrow (IPC file or stream).

    Raises:
        NotSupported: pyarrow is not installed. InvalidRequest: broken. UnusableInput: columns of other types than
        numbers, texts and timestamps, or with no timestamp in a row. PayloadTooLarge: more than `limit` bytes.
    """
    if find_spec("pyarrow") is None:
        raise NotSupported(f"{kind} files need the extra 'arrow' (pip install 'kronserve[arrow]')")
    command = [sys.executable, "-m", "app.readers.columnar_process", kind, str(limit), json.dumps(asdict(selection))]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as exc:
        raise PayloadTooLarge(f"the {kind} file takes longer than {SECONDS} s to read") from exc
    header, _, body = done.stdout.partition(b"\n")
    if done.returncode or not header:
        raise InvalidRequest(f"the {kind} file is broken, or takes more memory than its limit")
    said: dict[str, Any] = json.loads(header)
    if "error" in said:
        raise _ERRORS[said["error"]](said["message"], field=said["field"])
    return _table(said, body)


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
            time = time.tz_localize("UTC").tz_convert(said["zone"])
    return Table(tuple(said["names"]), arrays["values"], time, said["time_name"], arrays.get("ids"))

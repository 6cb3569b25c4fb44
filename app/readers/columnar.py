"""Parquet and Arrow IPC to columns, through pyarrow (the extra `arrow`) in a process of its own.

Both formats nest compression that pyarrow undoes without a bound: pages and buffers say themselves how large they are.
The process has a limit of memory and of time instead, and what a broken file does to it stays there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

import numpy as np

from app.errors import NotSupported, UnusableInput
from app.readers.bounded import Buffer
from app.readers.isolated import ask
from app.readers.table import Selection, Table, without_index

PARQUET_MAGIC = b"PAR1"
ARROW_MAGIC = b"ARROW1"


def read_columnar(data: Buffer, kind: str, selection: Selection, limit: int) -> Table:
    """The columns that a selection asks for, of a file of kind parquet or arrow (IPC file or stream).

    Raises:
        NotSupported: pyarrow is not installed. InvalidRequest: broken. UnusableInput: columns of other types than
        numbers, texts and timestamps, or with no timestamp in a row. PayloadTooLarge: more than `limit` bytes.
        Unavailable: no process can be started.
    """
    if find_spec("pyarrow") is None:
        raise NotSupported(f"{kind} files need the extra 'arrow' (pip install 'kronserve[arrow]')")
    question = {"kind": kind, "limit": limit, "selection": asdict(selection)}
    said, arrays = ask("app.readers.columnar_process", f"the {kind} file", question, data, 3 * limit)
    return without_index(_table(said, arrays), selection, leads=said["leads"])


def _table(said: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Table:
    import pandas as pd

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

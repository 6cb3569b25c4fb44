"""The process behind `columnar`: what a selection asks for of a Parquet or Arrow file."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc
import pyarrow.parquet

from app.errors import InvalidRequest, PayloadTooLarge, UnusableInput
from app.readers.isolated import Answer, answer
from app.readers.table import MAX_TEXT, Roles, Selection, check_size, named_roles


def main() -> None:
    """Answer `columnar`."""
    use_little()
    answer(lambda question, data: columns_of(data, question["kind"], question["limit"], _selection(question)))


def use_little() -> None:
    """Memory from where its limit is felt, and no threads beside this one."""
    pa.set_memory_pool(pa.system_memory_pool())
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


def _selection(question: dict[str, Any]) -> Selection:
    given: dict[str, Any] = question["selection"]
    chosen: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    return Selection(**chosen)


def columns_of(data: bytes, kind: str, limit: int, selection: Selection) -> Answer:
    """The names and the arrays that `columnar` makes a table of; raises as `read_columnar` does."""
    try:
        return _read(data, kind, limit, selection)
    except MemoryError:  # pyarrow's is one, too
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError, TypeError, KeyError, IndexError) as error:
        text = str(error).partition("\n")[0][:200]
        raise InvalidRequest(f"the {kind} file is broken ({text})") from error


def _read(data: bytes, kind: str, limit: int, selection: Selection) -> Answer:
    source = pa.BufferReader(data)
    if kind == "parquet":
        file = pyarrow.parquet.ParquetFile(source)
        schema, rows = file.schema_arrow, file.metadata.num_rows
        roles = _roles(schema, rows, limit, selection)
        table = file.read(columns=[schema.names[at] for at in _wanted(roles)], use_threads=False)
    else:
        with _open(data, source, None) as first:
            schema = first.schema
        roles = _roles(schema, 0, limit, selection)
        wanted = _wanted(roles)
        with _open(data, source, wanted) as reader:
            table = _batches(reader, pa.schema([schema.field(at) for at in sorted(wanted)]), limit)
    if not table.num_rows:
        raise InvalidRequest(f"the {kind} file has no rows")
    return _columns(table, schema, roles)


def _open(data: bytes, source: pa.BufferReader, fields: list[int] | None) -> Any:
    options = pyarrow.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
    source.seek(0)
    opened = pyarrow.ipc.open_file if data.startswith(b"ARROW1") else pyarrow.ipc.open_stream
    return opened(source, options=options)


def _batches(reader: Any, schema: pa.Schema, limit: int) -> pa.Table:
    batches: list[Any] = []
    rows = 0
    count = getattr(reader, "num_record_batches", None)
    while count is None or len(batches) < count:
        try:
            batch = reader.read_next_batch() if count is None else reader.get_batch(len(batches))
        except StopIteration:
            break
        # pyarrow believes what IPC says of offsets and lengths, and would read where they lead.
        batch.validate(full=True)
        rows += batch.num_rows
        _check_rows(rows, batch.num_columns, limit)
        batches.append(batch)
    return pa.Table.from_batches(batches, schema if not batches else batches[0].schema)


def _roles(schema: pa.Schema, rows: int, limit: int, selection: Selection) -> Roles:
    check_size(len(schema.names) - 1, 0)
    roles = named_roles(schema.names, selection)
    if roles.time is None:
        for at, field in enumerate(schema):
            if at != roles.identity and (pa.types.is_temporal(field.type) or _is_text(field.type)):
                roles = Roles(at, roles.identity, tuple(other for other in roles.variates if other != at))
                break
    for at in roles.variates:
        kind = schema.field(at).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
            raise UnusableInput(
                f"column {schema.names[at]!r} holds {str(kind)[:40]}, not numbers", field=schema.names[at]
            )
    _check_rows(rows, len(roles.variates), limit)
    return roles


def _check_rows(rows: int, columns: int, limit: int) -> None:
    check_size(0, rows)
    if rows * columns * 8 > limit:
        raise PayloadTooLarge(f"the file holds {rows * columns} numbers, more than {limit} bytes take")


def _wanted(roles: Roles) -> list[int]:
    return [*roles.variates, *(at for at in (roles.time, roles.identity) if at is not None)]


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _columns(table: pa.Table, schema: pa.Schema, roles: Roles) -> Answer:
    names = [schema.names[at] for at in roles.variates]
    values = np.empty((len(names), table.num_rows))
    for row, name in enumerate(names):
        values[row] = table[name].cast(pa.float64(), safe=False).to_numpy()
    arrays = {"values": values}
    zone = None
    if roles.time is not None:
        name = schema.names[roles.time]
        column = table[name]
        if pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("s"))
        if pa.types.is_timestamp(column.type):
            if column.null_count:
                row = int(pc.index(pc.is_null(column), True).as_py())
                raise UnusableInput(f"column {name!r}, row {row + 1}: no timestamp", field=name)
            zone = column.type.tz
            arrays["time"] = column.cast(pa.timestamp(column.type.unit)).to_numpy()
            _check_years(arrays["time"], name, zone is not None)
        elif _is_text(column.type):
            arrays["time"] = _texts(column, name)
        else:
            raise UnusableInput(f"column {name!r} holds {str(column.type)[:40]}, not timestamps", field=name)
    if roles.identity is not None:
        arrays["ids"] = _texts(table[schema.names[roles.identity]], schema.names[roles.identity])
    header = {
        "leads": roles.leads,
        "names": names,
        "time_name": "date" if roles.time is None else schema.names[roles.time],
        "zone": zone,
    }
    return header, arrays


def _check_years(stamps: np.ndarray, name: str, zoned: bool) -> None:
    """UnusableInput for a stamp that ISO 8601 cannot write. In a zone the first and the last day are left out, too."""
    unit = np.datetime_data(stamps.dtype)[0]
    if unit == "ns":  # those of 1677 to 2262, and one that means none
        outside = np.isnat(stamps)
    else:
        day = np.timedelta64(1 if zoned else 0, "D")
        first, end = np.array(["0001-01-01", "10000-01-01"], stamps.dtype)
        outside = np.isnat(stamps) | (stamps < first + day) | (stamps >= end - day)
    if outside.any():
        row = int(outside.argmax())
        raise UnusableInput(f"column {name!r}, row {row + 1}: a timestamp outside the years 1 to 9999", field=name)


def _texts(column: pa.ChunkedArray, name: str) -> np.ndarray:
    texts = pc.fill_null(column.cast(pa.large_string()), "")
    longest = pc.max(pc.binary_length(texts)).as_py()
    if longest > MAX_TEXT:
        raise UnusableInput(f"column {name!r}: a text of more than {MAX_TEXT} characters", field=name)
    cells = [text.encode("utf-8", "replace") for text in texts.to_pylist()]
    return np.array(cells, dtype=f"S{max(1, longest)}")


if __name__ == "__main__":
    main()

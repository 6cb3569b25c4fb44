"""CSV to columns: a header line; fields parted by commas, semicolons or tabs; UTF-8 or Latin-1; empty cells are NaN.

pandas' C parser reads a block of rows at a time, so that beside the numbers only one block is held in its wide form.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from app.errors import InvalidRequest, PayloadTooLarge, UnusableInput
from app.readers.bounded import Buffer
from app.readers.dates import is_date
from app.readers.decimal_mark import MARKS, find_mark, is_written_number, number
from app.readers.series import MAX_STEPS
from app.readers.table import MAX_TEXT, NAMELESS, Roles, Selection, Table, check_size, named_roles, without_index

if TYPE_CHECKING:
    import pandas as pd

DELIMITERS = (",", ";", "\t")
EMPTY = ("", "NA", "N/A", "n/a", "NaN", "nan", "-nan", "NULL", "null", "None", "#N/A", "#NA", "<NA>")
"""What stands for an empty cell among numbers."""

BLOCK_CELLS = 1 << 18
"""Cells that are parsed at a time."""

_BAD_NUMBER_SHOWN = 40
_EXCHANGE = str.maketrans(".,", ",.")


def read_csv_table(data: Buffer, selection: Selection, limit: int, max_rows: int = MAX_STEPS) -> Table:
    """The columns that a selection asks for.

    The timestamps are the column named date, ds, timestamp, time or datetime, or else the first whose first cell is no
    number. Numbers have decimal points, or decimal commas where commas part no fields, as `selection.decimal` or the
    first clear cell says.

    Raises:
        InvalidRequest: not text, no header, rows of different lengths. UnusableInput: a cell that is no number, no
        variate, unknown names. PayloadTooLarge: more numbers than `limit` bytes hold, more rows than `max_rows`.
    """
    raw = bytes(data)
    encoding = _encoding(raw)
    if b"\n" not in raw:
        raw = raw.replace(b"\r", b"\n")  # the line ends of classic Mac OS
    elif b"\r\r\n" in raw:
        raw = raw.replace(b"\r\r\n", b"\n")  # those of Windows, written twice
    names, rows_at, delimiter = _header(raw, encoding)
    _refuse_data_as_header(names)
    fields = len(names)
    while not names[-1]:
        names.pop()  # a delimiter ends every line, or a spreadsheet was once wider
    if fields == 1:
        raw = raw.rstrip()  # a blank line among those of one column is an empty cell
    lines = raw.count(b"\n", rows_at) + 1
    check_size(len(names) - 1, lines - 1, max_rows)
    roles = named_roles(names, selection)
    if len(roles.variates) * lines * 8 > limit:
        raise PayloadTooLarge(
            f"the CSV holds up to {len(roles.variates) * lines} numbers, more than {limit} bytes take"
        )
    # Parsed once to find what only the content says, so that the columns' types are known for all blocks.
    if roles.time is None:
        blocks = _blocks(raw, rows_at, fields, delimiter, encoding, ".", roles, rows=64)
        roles = _with_time(roles, blocks, len(names))
    if selection.decimal is not None:
        mark = MARKS[selection.decimal]
    elif delimiter == "," or (raw.find(b",", rows_at) < 0 and raw.find(b".", rows_at) < 0):
        mark = "."
    else:
        blocks = _blocks(raw, rows_at, fields, delimiter, encoding, ".", roles, written=True)
        mark = find_mark(_cells(blocks, names, roles))
    columns = _Columns(names, roles, lines, mark, grouped=selection.decimal is not None)
    for block in _blocks(raw, rows_at, fields, delimiter, encoding, mark, roles):
        columns.add(block)
        if selection.columns is None and block.iloc[:, len(names) :].notna().any(axis=None):
            raise UnusableInput(NAMELESS, field="columns")
    return without_index(columns.table(), selection, leads=roles.leads)


class _Columns:
    """What the blocks so far hold."""

    def __init__(self, names: list[str], roles: Roles, lines: int, mark: str, *, grouped: bool) -> None:
        self._mark, self._grouped = mark, grouped
        self._names, self._roles, self._rows = names, roles, 0
        self._values = np.empty((len(roles.variates), lines))
        self._time: list[npt.NDArray[Any]] = []
        self._ids: list[npt.NDArray[Any]] = []

    def add(self, block: pd.DataFrame) -> None:
        start, self._rows = self._rows, self._rows + len(block)
        if self._rows > self._values.shape[1]:
            raise InvalidRequest("the CSV has rows that no line holds")
        for at, column in enumerate(self._roles.variates):
            self._values[at, start : self._rows] = _numbers(
                block[column], self._names[column], start, self._mark, grouped=self._grouped
            )
        for texts, role in ((self._time, self._roles.time), (self._ids, self._roles.identity)):
            if role is not None:
                texts.append(_texts(block[role], self._names[role], start))

    def table(self) -> Table:
        if not self._rows:
            raise InvalidRequest("the CSV has no rows after its header (is there one?)")
        time = self._roles.time
        return Table(
            names=tuple(self._names[column] for column in self._roles.variates),
            values=self._values[:, : self._rows],
            time=np.concatenate(self._time) if self._time else None,
            time_name="date" if time is None else self._names[time],
            ids=np.concatenate(self._ids) if self._ids else None,
        )


def _blocks(
    raw: bytes,
    rows_at: int,
    fields: int,
    delimiter: str,
    encoding: str,
    decimal: str,
    roles: Roles,
    rows: int | None = None,
    *,
    written: bool = False,
) -> Iterator[pd.DataFrame]:
    """Blocks of rows as data frames with numbered columns, all of them in turn or only the first `rows`; with the
    variates' cells as they are `written`, where that is asked for."""
    import pandas as pd

    stream = io.BytesIO(raw)
    stream.seek(rows_at)
    texts = {column: object for column in (roles.time, roles.identity) if column is not None}
    empty: dict[Any, list[str]] = {column: list(EMPTY) for column in range(fields) if column not in texts}
    if written:
        texts |= dict.fromkeys(roles.variates, object)
    try:
        reader = pd.read_csv(
            stream,
            sep=delimiter,
            header=None,
            names=range(fields),
            encoding=encoding,
            decimal=decimal,
            low_memory=False,  # one dtype a column and block
            skipinitialspace=True,
            dtype=texts,
            skip_blank_lines=fields > 1,
            keep_default_na=False,
            na_values=empty,
            nrows=rows,
            chunksize=max(64, BLOCK_CELLS // fields),
        )
        with reader:
            for block in reader:
                if not isinstance(block.index, pd.RangeIndex):
                    raise InvalidRequest(f"the CSV's header has {fields} fields, its first row has more")
                yield block
    except (ValueError, OverflowError) as exc:
        raise InvalidRequest(f"the CSV is broken: {exc}") from exc


def _with_time(roles: Roles, blocks: Iterator[pd.DataFrame], columns: int) -> Roles:
    """The first column whose first cell is text is the timestamps'."""
    block = next(blocks, None)
    if block is None:
        return roles
    for column in sorted({*range(columns)} - {roles.identity}):
        cells = block[column].dropna()
        if cells.size and isinstance(cells.iloc[0], str) and not is_written_number(cells.iloc[0]):
            return Roles(column, roles.identity, tuple(at for at in roles.variates if at != column))
    return roles


def _encoding(raw: bytes) -> str:
    if b"\0" in raw[:4096]:
        raise InvalidRequest("the CSV is not text in UTF-8 or Latin-1")
    if raw.isascii():
        return "utf-8"
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(raw), 1 << 20):
            decoder.decode(raw[start : start + (1 << 20)])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _header(raw: bytes, encoding: str) -> tuple[list[str], int, str]:
    """The fields of the first line that is not blank, the position after it, and what parts its fields.

    pandas would rename repeated names instead of telling.
    """
    position = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
    while position < len(raw):
        end = raw.find(b"\n", position) + 1 or len(raw)
        check_size(max(raw.count(delimiter.encode(), position, end) for delimiter in DELIMITERS), 0)
        line = raw[position:end].decode(encoding)
        position = end
        if line.strip():
            # The first of equals: a name may well hold a semicolon, but then the commas are more.
            fields, delimiter = max(((_split(line, one), one) for one in DELIMITERS), key=lambda found: len(found[0]))
            if any(fields):
                return fields, position, delimiter
    raise InvalidRequest("the CSV is empty")


def _split(line: str, delimiter: str) -> list[str]:
    try:
        return [field.strip() for field in next(csv.reader([line], delimiter=delimiter, strict=True), [])]
    except csv.Error as exc:
        if delimiter == DELIMITERS[0]:
            reason = str(exc)
            if "unexpected end" in reason:
                reason = "a quote is not closed where the line ends; write every name on one line"
            raise InvalidRequest(f"the CSV's header is broken: {reason}") from exc
        return []


def _refuse_data_as_header(names: list[str]) -> None:
    """UnusableInput if every name is a number or a timestamp: the first row would be lost."""
    texts = [name for name in names if not _is_number(name)]
    if not texts or all(text[:1].isdigit() and is_date(text) for text in texts):
        raise UnusableInput("the CSV has no header: its first line holds only numbers and timestamps, not names")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cells(blocks: Iterator[pd.DataFrame], names: list[str], roles: Roles) -> Iterator[tuple[str, str]]:
    """The cells of the variates, each with its column's name."""
    for block in blocks:
        for column in roles.variates:
            for text in block[column].dropna():
                yield names[column], text


def _numbers(column: pd.Series[Any], name: str, start: int, mark: str, *, grouped: bool) -> npt.NDArray[np.float64]:
    import pandas as pd
    from pandas.api.types import is_bool_dtype

    if column.dtype.kind in "iuf":
        return column.to_numpy(np.float64)
    numbers = np.full(len(column), np.nan)
    if not is_bool_dtype(column.dtype):
        points = column if mark == "." else column.map(_exchanged, na_action="ignore")
        numbers = np.array(pd.to_numeric(points, errors="coerce"), np.float64)
    for row in np.flatnonzero(np.isnan(numbers) & np.asarray(column.notna())).tolist():
        cell, place = str(column.iloc[row]), f"column {name!r}, row {start + row + 1}"
        try:
            value = number(cell, mark, grouped=grouped)
        except UnusableInput as error:
            raise UnusableInput(f"{place}: {error.message}", field="decimal") from None
        if value is None:
            raise UnusableInput(f"{place}: {cell[:_BAD_NUMBER_SHOWN]!r} is not a number", field=name)
        numbers[row] = value
    return numbers


def _exchanged(cell: Any) -> Any:
    return cell.translate(_EXCHANGE) if isinstance(cell, str) else cell


def _texts(column: pd.Series[Any], name: str, start: int) -> npt.NDArray[Any]:
    """Cells as bytes in UTF-8, of the length of the longest."""
    cells = column.to_numpy(object)
    longest = len(max(cells, key=len, default=""))
    if longest > MAX_TEXT:
        row = next(row for row, cell in enumerate(cells) if len(cell) == longest)
        raise UnusableInput(f"column {name!r}, row {start + row + 1}: more than {MAX_TEXT} characters", field=name)
    try:
        return cells.astype(f"S{max(1, longest)}")  # ASCII alone, and ten times as fast
    except UnicodeEncodeError:
        return np.array([cell.encode("utf-8", "replace") for cell in cells], dtype=np.bytes_)

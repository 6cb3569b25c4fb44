"""What a request's query says of the file that it sends: which part to read, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Query
from pydantic import BaseModel, Field

from app.readers.table import Selection


class SeriesQuery(BaseModel):
    """Query parameters of every path that takes a series as a file."""

    freq: str | None = Field(
        None, description="Sampling step (h, 10min, D, MS, ...); the most frequent one of the timestamps if absent."
    )
    fill: Literal["ffill", "linear"] | None = Field(
        None, description="Fill missing values and left-out steps: with the value before, or on a line."
    )
    columns: list[str] | None = Field(None, description="The variates to read: names, repeated or parted by commas.")
    id: list[str] | None = Field(None, description="The series of a long file to forecast; all of them if absent.")
    time_column: str | None = Field(None, description="Name of the timestamps' column, where it is not the usual one.")
    id_column: str | None = Field(
        None,
        description="Name of the column that tells the series of a long file apart; unique_id, item_id and "
        "series_id are known.",
    )
    until: str | None = Field(None, description="Last timestamp that counts: later rows are not looked at.")
    dates: Literal["dmy", "mdy"] | None = Field(
        None, description="Day or month first, where the dates do not tell (01/02/2020)."
    )
    decimal: Literal["point", "comma"] | None = Field(
        None, description="The mark before decimals, where a CSV does not tell (1.234); the other may part thousands."
    )
    tz: str | None = Field(
        None, description="IANA time zone: timestamps without an offset are its clock's, days and months its own."
    )

    def selection(self) -> Selection:
        """What the readers know it as."""
        return Selection(
            columns=None if self.columns is None else tuple(self.columns),
            ids=None if self.id is None else tuple(self.id),
            time_column=self.time_column,
            id_column=self.id_column,
            until=self.until,
            dates=self.dates,
            decimal=self.decimal,
            zone=self.tz,
        )


SeriesOptions = Annotated[SeriesQuery, Query()]

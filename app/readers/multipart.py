"""multipart/form-data (RFC 7578) from a body that is already in memory and bounded."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import InvalidRequest
from app.readers.bounded import Buffer

MAX_PARTS = 1024
"""Slices of a DICOM series may come as so many files."""


@dataclass(eq=False)
class Part:
    """One part of the form: the field's name, the file's name and media type ("" where absent), its bytes."""

    name: str = ""
    filename: str = ""
    media_type: str = ""
    data: bytearray = field(default_factory=bytearray)


def media_type_of(content_type: str) -> str:
    """The media type of a Content-Type, lower case, without parameters."""
    return content_type.partition(";")[0].strip().lower()


def read_parts(body: Buffer, content_type: str) -> list[Part]:
    """Split a form into its parts, in order.

    Raises:
        InvalidRequest: no boundary, a broken or truncated form, or more parts than MAX_PARTS.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 0 < len(boundary) <= 70:  # RFC 2046, 5.1.1
        raise InvalidRequest("multipart/form-data without a usable boundary")
    form = _Form()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin_part,
                "on_part_data": form.add_data,
                "on_header_field": form.add_header_name,
                "on_header_value": form.add_header_value,
                "on_header_end": form.end_header,
                "on_end": form.end,
            },
        )
        parser.write(bytes(body))
        parser.finalize()
    except FormParserError as exc:
        raise InvalidRequest(f"broken multipart/form-data: {exc}") from exc
    if not form.ended:
        raise InvalidRequest("truncated multipart/form-data")
    return form.parts


class _Form:
    """Collects what the parser reports."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._name, self._value = b"", b""

    def begin_part(self) -> None:
        if len(self.parts) == MAX_PARTS:
            raise InvalidRequest(f"multipart/form-data with more than {MAX_PARTS} parts")
        self.parts.append(Part())

    def add_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data += memoryview(data)[start:end]

    def add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def end_header(self) -> None:
        part, name = self.parts[-1], self._name.lower()
        if name == b"content-disposition":
            options = parse_options_header(self._value)[1]
            part.name = options.get(b"name", b"").decode("utf-8", "replace")
            part.filename = options.get(b"filename", b"").decode("utf-8", "replace")
        elif name == b"content-type":
            part.media_type = media_type_of(self._value.decode("latin-1"))
        self._name, self._value = b"", b""

    def end(self) -> None:
        self.ended = True

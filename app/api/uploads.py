"""What was sent, as a list of payloads: the body itself, or the `file` parts of a form."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from app.errors import InvalidRequest
from app.readers.bounded import Buffer, read_body
from app.readers.byte_budget import Lease
from app.readers.multipart import media_type_of, read_parts
from app.readers.offload import offload
from app.settings import Settings


@dataclass(frozen=True, eq=False)
class Upload:
    """One payload: its bytes, the media type that its sender gave ("" if none) and the file's name ("" if none)."""

    data: Buffer
    media_type: str
    filename: str = ""


async def read_uploads(request: Request, settings: Settings, lease: Lease) -> list[Upload]:
    """The payloads of a request, at least one; `lease` counts their bytes.

    Raises:
        InvalidRequest: an empty body, a broken form, a part that is not called `file`.
        PayloadTooLarge, UnsupportedMediaType, Overloaded, ClientDisconnect: as `read_body` does.
    """
    body = await read_body(
        request.receive, request.scope["headers"], settings.max_body_bytes, settings.max_decoded_bytes, lease
    )
    if not body:
        raise InvalidRequest("the body is empty")
    content_type = request.headers.get("content-type", "")
    media_type = media_type_of(content_type)
    if media_type != "multipart/form-data":
        return [Upload(body, media_type)]
    parts = await offload(len(body), lambda: read_parts(body, content_type))
    for part in parts:
        if part.name != "file":
            raise InvalidRequest(f"unexpected form field {part.name[:40]!r}; the one known is 'file'", field="file")
    if not parts:
        raise InvalidRequest("the form has no 'file'", field="file")
    return [Upload(part.data, part.media_type, part.filename) for part in parts]

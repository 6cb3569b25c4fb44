"""What was sent, as a list of payloads: the body itself, or the `file` parts of a form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import cpu_count
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from starlette.requests import Request

from app.errors import InvalidRequest
from app.readers.bounded import Buffer, read_body
from app.readers.multipart import media_type_of, read_parts
from app.settings import Settings

INLINE_BYTES = 1 << 18
"""Work on fewer bytes is done in the event loop: a thread would cost more than it frees."""

Result = TypeVar("Result")

_decoders: RunVar[CapacityLimiter] = RunVar("_decoders")


@dataclass(frozen=True, eq=False)
class Upload:
    """One payload: its bytes, the media type that its sender gave ("" if none) and the file's name ("" if none)."""

    data: Buffer
    media_type: str
    filename: str = ""


async def read_uploads(request: Request, settings: Settings) -> list[Upload]:
    """The payloads of a request, at least one.

    Raises:
        InvalidRequest: an empty body, a broken form, a part that is not called `file`.
        PayloadTooLarge, UnsupportedMediaType, ClientDisconnect: as `read_body` does.
    """
    body = await read_body(
        request.receive, request.scope["headers"], settings.max_body_bytes, settings.max_decoded_bytes
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


async def offload(size: int, work: Callable[[], Result]) -> Result:
    """Run `work` in a thread if it has many bytes to go through, at most one a core at a time.

    Decoding holds memory and the processor: more of it at once would only raise the peak.
    """
    if size <= INLINE_BYTES:
        return work()
    try:
        limiter = _decoders.get()
    except LookupError:
        limiter = CapacityLimiter(cpu_count() or 1)
        _decoders.set(limiter)
    return await to_thread.run_sync(work, limiter=limiter)

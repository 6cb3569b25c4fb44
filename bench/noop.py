"""The floor of HTTP: uvicorn with uvloop and httptools, reading a body and answering POST /N with N zero bytes.

Runs as a process of its own: python -m bench.noop --port 9000
"""

from __future__ import annotations

import argparse
import functools

import uvicorn
from starlette.types import Receive, Scope, Send


@functools.cache
def _body(size: int) -> bytes:
    return bytes(size)


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Any method: read the whole body, answer as many bytes as the path says (0 when it says nothing)."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body", False):
        pass
    body = _body(int(scope["path"].strip("/") or 0))
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    config = uvicorn.Config(
        answer, port=parser.parse_args().port, http="httptools", loop="uvloop", access_log=False, lifespan="off"
    )
    uvicorn.Server(config).run()

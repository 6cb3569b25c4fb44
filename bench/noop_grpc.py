"""The floor of gRPC: grpcio's asyncio server on uvloop, answering every call with N zero bytes.

Runs as a process of its own, with any release of grpcio: python bench/noop_grpc.py --port 9001 --bytes 20160
"""

from __future__ import annotations

import argparse
from typing import Any

import grpc
import uvloop


class Zeros(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Any unary method of any service."""

    def __init__(self, size: int) -> None:
        self._answer = bytes(size)

    def service(self, _: object) -> Any:
        """The handler of every method."""
        return grpc.unary_unary_rpc_method_handler(self._call)

    async def _call(self, _: bytes, __: object) -> bytes:
        return self._answer


async def serve(port: int, size: int) -> None:
    """Until the process is ended."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([Zeros(size)])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--bytes", type=int, required=True)
    options = parser.parse_args()
    uvloop.run(serve(options.port, options.bytes))

"""grpc.health.v1.Health: the server as a whole ("") and the inference service, both as ready as /v2/health/ready.

Specification: grpc/grpc, doc/health-checking.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from app.api.grpc import health_pb2 as pb
from app.service import Service

SERVICE_NAME = "grpc.health.v1.Health"

WATCH_SECONDS = 0.25
"""How often a watched status is looked at."""


class Health:
    """The servicer. Nothing is kept up to date: every answer is the service's state at that moment."""

    def __init__(self, service: Service, names: tuple[str, ...]) -> None:
        self._service, self._names = service, ("", *names)
        self._leaving = asyncio.Event()

    def handlers(self) -> Any:
        """The service's methods, as grpcio takes them."""
        asked, status = pb.HealthCheckRequest.FromString, pb.HealthCheckResponse.SerializeToString
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(self._check, asked, status),
            "List": grpc.unary_unary_rpc_method_handler(
                self._list, pb.HealthListRequest.FromString, pb.HealthListResponse.SerializeToString
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch, asked, status),
        }
        return grpc.method_handlers_generic_handler(SERVICE_NAME, methods)

    def leave(self) -> None:
        """End the watches, which would otherwise keep a stopping server waiting."""
        self._leaving.set()

    async def _check(self, request: pb.HealthCheckRequest, context: Any) -> pb.HealthCheckResponse:
        """The status now; NOT_FOUND for a service that is not here."""
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r}")
        return pb.HealthCheckResponse(status=self._status(request.service))

    async def _list(self, _: pb.HealthListRequest, __: object) -> pb.HealthListResponse:
        """The status of everything that has one."""
        return pb.HealthListResponse(
            statuses={name: pb.HealthCheckResponse(status=self._status(name)) for name in self._names}
        )

    async def _watch(self, request: pb.HealthCheckRequest, _: object) -> AsyncIterator[pb.HealthCheckResponse]:
        """The status now and at every change."""
        last = None
        while not self._leaving.is_set():
            if (status := self._status(request.service)) != last:
                yield pb.HealthCheckResponse(status=status)
                last = status
            try:
                async with asyncio.timeout(WATCH_SECONDS):
                    await self._leaving.wait()
            except TimeoutError:
                continue

    def _status(self, name: str) -> pb.HealthCheckResponse.ServingStatus:
        kinds = pb.HealthCheckResponse
        if name not in self._names:
            return kinds.SERVICE_UNKNOWN
        return kinds.SERVING if self._service.ready else kinds.NOT_SERVING

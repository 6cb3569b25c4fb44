"""The gRPC server: grpcio's asyncio server in the HTTP server's event loop, before the same scheduler."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import grpc
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION
from grpc_reflection.v1alpha.reflection import enable_server_reflection

from app.api.grpc import methods
from app.api.grpc.health import SERVICE_NAME as HEALTH
from app.api.grpc.health import Health
from app.service import Service

logger = logging.getLogger(__name__)

LINGER_SECONDS = 0.5
"""How long calls are told UNAVAILABLE at the end; grpcio itself would reset those that are on their way: CANCELLED."""


class _NotTheClientsLeaving(logging.Filter):
    """grpcio writes an error with a traceback when a client leaves while it is being answered, which is none."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is about something else."""
        return not str(record.msg).startswith("ExecuteBatchError")


class GrpcServer:
    """One listening port with inference, health and reflection."""

    def __init__(self, service: Service) -> None:
        """Bind the port of the settings; from the event loop. OSError when it cannot be had."""
        settings = service.settings
        logging.getLogger("grpc._cython.cygrpc").addFilter(_NotTheClientsLeaving())
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", settings.grpc_max_message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a port that is taken is an error, not half of another server's calls
            )
        )
        self._calls = methods.Calls(service)
        self._health = Health(service, (methods.SERVICE_NAME,))
        self._server.add_generic_rpc_handlers((self._calls, self._health.handlers()))
        enable_server_reflection((methods.SERVICE_NAME, HEALTH, REFLECTION), self._server)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"{host}:{settings.grpc_port}"
        try:
            self.port: int = (
                self._server.add_insecure_port(address)
                if settings.tls_certificate is None or settings.tls_key is None
                else self._server.add_secure_port(address, _credentials(settings.tls_certificate, settings.tls_key))
            )
        except RuntimeError as error:
            raise OSError(f"gRPC cannot listen on {address}: {error}") from error

    async def start(self) -> None:
        """Accept calls."""
        await self._server.start()
        logger.info("gRPC on port %d", self.port)

    async def stop(self, grace: float) -> None:
        """Accept no more calls, answer those accepted for at most `grace` seconds, then cancel the rest."""
        self._calls.leaving = True
        self._health.leave()
        if self._calls.began:
            await asyncio.sleep(LINGER_SECONDS)
        await self._server.stop(grace)


def _credentials(certificate: Path, key: Path) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])

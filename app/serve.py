"""Running the application: one uvicorn server, gRPC beside it, and a SIGTERM that means leave cleanly."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, cast

import uvicorn

from app import configuration
from app.http_protocol import BoundedHttpProtocol, Limits
from app.journal import set_up_logging

if TYPE_CHECKING:
    from app.api.grpc.server import GrpcServer
    from app.service import Service
    from app.tracing import Tracing

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 5
"""Time to write the last answers after the grace, before uvicorn cancels what is left."""

POLL_SECONDS = 0.02

SPANS_SECONDS = 5.0
"""Longest time that the last spans get to leave, of what remains of the grace."""

SWITCH_SECONDS = 0.0001
"""How long a thread waits for the interpreter before it asks for it.

With Python's 5 ms an executor whose batch is done finds the event loop writing answers, sleeps, and wakes only to find
it at the next one: its core idles meanwhile.
"""

GRPC_EXPERIMENTS = "-event_engine_listener"
"""What gRPC's core is asked for if its variable of this name does not say: no threads of its own for reading.

With them, the default of newer releases, a message passes one thread more on its way to the event loop.
"""

LINGER_SECONDS = 1.0
"""How long idle connections are kept at the end: a request may be on its way in one of them."""


def serve(argv: Sequence[str]) -> int:
    """Serve a model repository over HTTP and gRPC."""
    example = "example: kronserve serve --repository model_repository --port 8000"
    parser = configuration.parser("serve", "Serve a model repository over HTTP and gRPC.", example)
    settings, _ = configuration.read(parser, argv)
    if settings.keys is None and not settings.open and not _is_loopback(settings.host):
        parser.error(
            f"--host {settings.host} lets others in: name an API key file with --keys (KRONSERVE_KEYS), "
            "or say --open true (KRONSERVE_OPEN) to serve everybody"
        )
    set_up_logging(settings.log_level, settings.log_format)
    for key in configuration.unknown_variables():
        logger.warning("%s is not a setting, and is ignored", key)
    from app.api.direct import DirectInference
    from app.main import create_app

    try:
        app = create_app(settings)
    except ValueError as error:
        parser.error(str(error))
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=cast(
            "type[asyncio.Protocol]",
            partial(
                BoundedHttpProtocol,
                limits=Limits(settings.head_timeout, settings.silence_timeout, settings.body_timeout),
                direct=DirectInference(service),
                refused=service.unparsed,
            ),
        ),
        log_config=None,
        ws="none",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        timeout_keep_alive=settings.keep_alive,
        timeout_graceful_shutdown=ceil(settings.shutdown_grace) + ANSWER_SECONDS,
    )
    try:
        config.load()
    except OSError as error:  # of the certificate or the key; ssl.SSLError is one
        parser.error(f"--tls-certificate (KRONSERVE_TLS_CERTIFICATE), --tls-key (KRONSERVE_TLS_KEY): {error}")
    server = Server(config, service)
    sys.setswitchinterval(SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(server.serve())
    return 0 if server.started else 1


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Server(uvicorn.Server):
    """uvicorn, leaving in order: not ready, still accepting for the delay, then answer what was accepted, exit 0.

    A second signal stops at once: what was accepted and has no answer yet is answered with an error.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._grpc: GrpcServer | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Our own handlers instead of uvicorn's, which would raise the signal again after a clean exit."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, self._leave, number)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _leave(self, number: signal.Signals) -> None:
        if self._service.draining:
            logger.warning("second %s: stopping at once", signal.Signals(number).name)
            self.force_exit = self.should_exit = True
            self._service.scheduler.abort()
            return
        delay = self._service.settings.shutdown_delay if number == signal.SIGTERM else 0.0
        logger.info("%s: not ready from now on, accepting for %g s more", signal.Signals(number).name, delay)
        self._service.draining = True
        asyncio.get_running_loop().call_later(delay, self._stop_accepting)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's startup, with the gRPC port, which is bound first: without it there is no start."""
        try:
            self._grpc = _grpc_server(self._service)
        except OSError as error:
            logger.error("gRPC: %s; --host and --grpc-port say where, none as the port goes without", error)
            self.should_exit = True
            return
        # What the imports made stays to the end: a full collection, which holds every thread, need not go through it.
        gc.freeze()
        try:
            await super().startup(sockets)
        except SystemExit:  # the port is taken, and uvicorn has said so
            self._service.repository.stop()
            raise SystemExit(1) from None
        if self._grpc is not None and self.started:
            await self._grpc.start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's shutdown, after what was on its way has been taken in and answered, or the grace is over."""
        await self._stop_listening()
        loop, grace = asyncio.get_running_loop(), self._service.settings.shutdown_grace
        lingered = loop.time() + LINGER_SECONDS
        until = lingered + grace
        leaving = (
            None
            if self._grpc is None
            else asyncio.create_task(self._grpc.stop(LINGER_SECONDS + grace + ANSWER_SECONDS))
        )

        def busy() -> bool:
            return bool(self.server_state.connections) or (leaving is not None and not leaving.done())

        while busy() and loop.time() < lingered and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
        for connection in list(self.server_state.connections):
            connection.shutdown()  # the idle ones go; the others after their answer
        while busy() and loop.time() < until and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
        # What the scheduler has not done by now is answered with an error, before uvicorn cuts it off.
        remaining = 0.0 if self.force_exit else max(0.0, until - loop.time())
        stopping = asyncio.create_task(self._service.stop(remaining))
        await super().shutdown(sockets)
        await stopping
        if self.force_exit:  # uvicorn leaves it running then, and it would end with a traceback
            await self.lifespan.shutdown()
        if leaving is not None and not self.force_exit:
            await leaving
        if self._service.tracing is not None:
            await self._send_last_spans(self._service.tracing, max(1.0, min(SPANS_SECONDS, until - loop.time())))

    async def _send_last_spans(self, tracing: Tracing, seconds: float) -> None:
        sending, loop = tracing.close(), asyncio.get_running_loop()
        until = loop.time() + seconds
        while sending.is_alive() and loop.time() < until and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
        if sending.is_alive():
            logger.warning("the last spans could not be sent")

    async def _stop_listening(self) -> None:
        """Close the listening sockets. Connections that only the kernel has accepted are taken in, not reset."""
        loop = asyncio.get_running_loop()
        waiting: list[socket.socket] = []
        for listener in self.servers:
            for listening in listener.sockets:
                with socket.socket(fileno=os.dup(listening.fileno())) as own, contextlib.suppress(OSError):
                    own.setblocking(False)
                    while True:
                        waiting.append(own.accept()[0])
            listener.close()
        config, state = self.config, self.server_state

        def protocol() -> asyncio.Protocol:
            made = cast("Callable[..., asyncio.Protocol]", config.http_protocol_class)
            return made(config=config, server_state=state, app_state=self.lifespan.state)

        taken_in = [loop.connect_accepted_socket(protocol, connection, ssl=config.ssl) for connection in waiting]
        with contextlib.suppress(TimeoutError):  # of a TLS handshake that nobody goes on with
            async with asyncio.timeout(LINGER_SECONDS):
                await asyncio.gather(*taken_in, return_exceptions=True)  # one that has gone is no matter

    def _stop_accepting(self) -> None:
        self.should_exit = True


def _grpc_server(service: Service) -> GrpcServer | None:
    """The gRPC server, bound; None when it is off or its packages are not installed."""
    if service.settings.grpc_port is None:
        return None
    os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # or every handshake that fails is a line in no form of ours
    try:
        from app.api.grpc.server import GrpcServer
    except ModuleNotFoundError as error:
        logger.info("no gRPC: %s is not installed (pip install 'kronserve[grpc]')", error.name)
        return None
    return GrpcServer(service)

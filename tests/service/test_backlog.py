"""The end of listening: connections that wait in the kernel for the event loop are answered, not reset."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from pathlib import Path
from typing import Any

import trustme
import uvicorn

from app.http_protocol import BoundedHttpProtocol, Limits
from app.main import create_app
from app.serve import Server
from app.settings import Settings
from tests.tiny_models import write_offset_model

REQUEST = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


async def started(folder: Path, **options: Any) -> tuple[Server, tuple[str, int]]:
    """A server in this event loop, and where it listens."""
    write_offset_model(folder / "models" / "m" / "1", 1)
    app = create_app(Settings(repository=folder / "models", grpc_port=None, cache_dir=folder / "cache"))
    http: Any = partial(BoundedHttpProtocol, limits=Limits(60.0, 60.0, 60.0))
    config = uvicorn.Config(app, port=0, http=http, log_config=None, ws="none", **options)
    config.load()
    server = Server(config, app.state.service)
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    return server, server.servers[0].sockets[0].getsockname()


async def test_connections_in_the_backlog_are_answered(tmp_path: Path) -> None:
    server, address = await started(tmp_path)
    # Nothing is awaited from here on, so the event loop has no chance to accept them.
    clients = [socket.create_connection(address) for _ in range(20)]
    for client in clients:
        client.sendall(REQUEST)
    leaving = asyncio.create_task(server.shutdown())
    server._service.draining = True
    for client in clients:
        client.setblocking(False)
        answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1000), 20)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        client.close()
    await leaving


async def test_a_silent_handshake_in_the_backlog_holds_nothing_up(tmp_path: Path) -> None:
    """A client that connects and says nothing: the server does not wait for its TLS, which would be a minute."""
    issued = trustme.CA().issue_cert("127.0.0.1")
    pem = tmp_path / "both.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(pem))
    server, address = await started(tmp_path, ssl_certfile=pem)
    with socket.create_connection(address):
        server._service.draining = True
        await asyncio.wait_for(server.shutdown(), 30)

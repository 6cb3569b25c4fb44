"""A gRPC server that writes its port, then how long each request may wait, in seconds, as the scheduler is told it.

A process of its own, python -m tests.service.noting_limits REPOSITORY SECONDS: the messages of `app.api.grpc` and those
of tritonclient have the same names, and one process can know one of them only. SECONDS: the service's own limit.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from app.api.grpc.server import GrpcServer
from app.service import Service
from app.settings import Settings


def write(value: object) -> None:
    sys.stdout.write(f"{value}\n")
    sys.stdout.flush()


async def serve(repository: Path, longest: float) -> None:
    settings = Settings(
        repository=repository, device="cpu", executors=1, max_batch=1, request_timeout=longest, grpc_port=0
    )
    service = Service(settings)
    await service.start()
    await service.wait_loaded()
    submit = service.scheduler.submit

    def noting(*arguments: Any, **options: Any) -> Any:
        write(options["timeout"])
        return submit(*arguments, **options)

    service.scheduler.submit = noting  # type: ignore[method-assign]
    server = GrpcServer(service)
    await server.start()
    write(server.port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), float(sys.argv[2])))

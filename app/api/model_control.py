"""The model repository and statistics extensions, for REST and gRPC alike.

Specifications: triton-inference-server/server, "Model repository extension" and "Statistics extension".
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from app.engine.repository import IndexRow
from app.errors import InvalidRequest, NotSupported
from app.service import Service


async def index(service: Service, *, ready: bool = False) -> list[IndexRow]:
    """Every version in the repository with its state and reason; `ready`: only those that serve."""
    rows = await asyncio.to_thread(service.repository.index)
    return [row for row in rows if row.state == "READY"] if ready else rows


async def load(service: Service, name: str, parameters: Iterable[str] = ()) -> None:
    """Bring a model to what is in its folder now; returns when that serves.

    parameters: names of the request's parameters. Raises NotSupported (a configuration or files sent along),
    UnknownModel, LoadFailed with the reason (what served before still does), Unavailable (shutting down).
    """
    for parameter in parameters:
        if parameter == "config" or parameter.startswith("file:"):
            raise NotSupported("models are loaded from the repository's folder alone", field=parameter)
        raise InvalidRequest(f"unknown parameter {parameter!r}", field=parameter)
    await service.load_model(name)


async def unload(service: Service, name: str, parameters: Iterable[str] = ()) -> None:
    """Stop serving a model; returns when no new request is taken for it, what was accepted is still answered.

    No model here depends on another, so `unload_dependents` changes nothing. Raises InvalidRequest for any other
    parameter, UnknownModel, Unavailable (shutting down).
    """
    for parameter in parameters:
        if parameter != "unload_dependents":
            raise InvalidRequest(f"unknown parameter {parameter!r}", field=parameter)
    await service.unload_model(name)


def statistics(service: Service, name: str | None = None, version: str | None = None) -> dict[str, Any]:
    """Counts and times of one version, of all that serve of one model, or of all that serve.

    Raises UnknownModel, or Unavailable for one that does not serve.
    """
    repository = service.repository
    if name is None:
        serving = [(entry.name, entry.version) for entry in repository if entry.serves]
    elif version is None:
        repository.get(name)
        serving = [(name, each) for each in repository.versions(name)]
    else:
        serving = [(name, repository.get(name, version).version)]
    return {"model_stats": [service.statistics.of(*each) for each in serving]}

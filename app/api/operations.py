"""What operators and orchestrators call: metrics and the list of models."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.engine.runtime import Model
from app.service import Service


def install(app: FastAPI, service: Service) -> None:
    """Add GET /metrics and GET /v1/models."""

    @app.get("/metrics", tags=["Operations"], summary="Prometheus metrics", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", tags=["Operations"], summary="Every version in the repository, broken ones with the reason")
    async def models() -> dict[str, list[dict[str, Any]]]:
        listed = []
        for entry in service.repository:
            row: dict[str, Any] = {"name": entry.name, "version": entry.version}
            if isinstance(entry, Model):
                task = entry.manifest.task.kind if entry.manifest else "tensors"
                row |= {"state": "ready", "task": task, "device": entry.device.kind}
            else:
                row |= {"state": entry.state.lower(), "reason": entry.reason}
            listed.append(row)
        return {"models": listed}

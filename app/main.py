"""The ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from app.api import answers, docs, oip, oip_control, operations, timeseries
from app.api.backtests import router as evaluate
from app.api.classify import router as classify
from app.api.cors import Cors, NoForgery, document_refusals
from app.api.edge import Edge
from app.api.forecast import router as forecast
from app.api.gate import Gate, document_keys
from app.api.oip import InferFirst
from app.service import Service
from app.settings import Settings

DESCRIPTION = """
Serves Kronecker-attention models: forecasts of time series, classification of volumes, and raw tensors.

Every error is `{"error": message}`, with `"field"` where one part of the request is at fault.
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application for these settings (default: from the environment). Its service is `app.state.service`.

    Loading starts with the lifespan and goes on while the server already answers /v2/health; ready comes after it.
    """
    service = Service(settings or Settings())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = Application(
        title="Kronserve",
        version=version("kronserve"),
        description=DESCRIPTION,
        lifespan=lifespan,
        # FastAPI's own telemetry, where a release has it, records paths, queries and exceptions; ours is tracing.py.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        docs_url=None,  # FastAPI's pages load scripts from elsewhere; ours is in api/docs.py
        redoc_url=None,
        redirect_slashes=False,  # a redirect would be made from the caller's Host header
    )
    app.state.service = service
    answers.install(app)
    oip_control.install(app, service)
    oip.install(app, service)
    app.include_router(forecast)
    app.include_router(classify)
    app.include_router(evaluate)
    timeseries.install(app, service)
    operations.install(app, service)
    docs.install(app)
    return app


class Application(FastAPI):
    """FastAPI behind our own layers: counting and lingering outermost, then web pages, keys, and the inference path."""

    def openapi(self) -> dict[str, Any]:
        """The document without the framework's own validation answer, which is never given: ours is {"error": ..}.

        It says what is refused to web pages, and where keys are asked for.
        """
        if self.openapi_schema is None:
            document = super().openapi()
            for path in document["paths"].values():
                for operation in path.values():
                    if "HTTPValidationError" in str(operation["responses"].get("422", "")):
                        del operation["responses"]["422"]
            for name in ("HTTPValidationError", "ValidationError"):
                document.get("components", {}).get("schemas", {}).pop(name, None)
            document_refusals(document)
            if self.state.service.keys is not None:
                document_keys(document)
        return super().openapi()

    def build_middleware_stack(self) -> ASGIApp:
        """The framework's stack, wrapped."""
        service: Service = self.state.service
        inner: ASGIApp = InferFirst(super().build_middleware_stack(), service)
        if service.keys is not None:
            inner = Gate(inner, service.keys, self.routes, service.metrics.rejected)
        origins = tuple(filter(None, service.settings.cors_origins.split(",")))
        inner = NoForgery(inner, origins)
        if origins:
            inner = Cors(inner, origins)
        return Edge(inner, service)

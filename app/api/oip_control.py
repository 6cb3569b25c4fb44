"""REST routes of the model repository and statistics extensions."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import FastAPI, Request, Response

from app.api import model_control
from app.api.answers import error_responses
from app.engine.repository import IndexRow
from app.errors import InvalidRequest
from app.readers.bounded import read_body
from app.service import Service

MAX_BODY_BYTES = 1 << 20
"""Nothing these requests can say is longer."""

_DURATION = {
    "type": "object",
    "required": ["count", "ns"],
    "properties": {"count": {"type": "integer"}, "ns": {"type": "integer"}},
}
_PHASES = dict.fromkeys(("compute_input", "compute_infer", "compute_output"), _DURATION)
_STATISTICS = {
    "type": "object",
    "required": ["model_stats"],
    "properties": {
        "model_stats": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "version", "inference_count", "execution_count", "inference_stats", "batch_stats"],
                "properties": {
                    "name": {"type": "string"},
                    "version": {"type": "string"},
                    "last_inference": {"type": "integer", "description": "Milliseconds since 1970; 0: none yet."},
                    "inference_count": {"type": "integer", "description": "Rows that were run."},
                    "execution_count": {"type": "integer", "description": "Batches that were run."},
                    "inference_stats": {
                        "type": "object",
                        "required": ["success", "fail", "queue", *_PHASES],
                        "properties": {"success": _DURATION, "fail": _DURATION, "queue": _DURATION, **_PHASES},
                    },
                    "batch_stats": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["batch_size", *_PHASES],
                            "properties": {"batch_size": {"type": "integer"}, **_PHASES},
                        },
                    },
                },
            },
        }
    },
}


def install(app: FastAPI, service: Service) -> None:
    """Add the routes; before those of /v2/models/{model}, since `stats` is a path of its own beside the models."""

    async def document(request: Request) -> dict[str, Any]:
        return _document(await read_body(request.receive, request.scope["headers"], MAX_BODY_BYTES))

    statistics: dict[str, Any] = {
        "tags": ["Statistics"],
        "response_class": Response,
        "responses": {
            200: {"description": "Totals since start", "content": {"application/json": {"schema": _STATISTICS}}},
        },
    }
    of_model = {**statistics, "responses": statistics["responses"] | error_responses(404, 503)}

    @app.get("/v2/models/stats", summary="Statistics of every model that serves", **statistics)
    async def all_statistics() -> Response:
        return _json(model_control.statistics(service))

    @app.get("/v2/models/{model}/stats", summary="Statistics of a model's versions", **of_model)
    async def model_statistics(model: str) -> Response:
        return _json(model_control.statistics(service, model))

    @app.get("/v2/models/{model}/versions/{version}/stats", summary="Statistics of one version", **of_model)
    async def version_statistics(model: str, version: str) -> Response:
        return _json(model_control.statistics(service, model, version))

    tag: dict[str, Any] = {"tags": ["Model repository"]}

    @app.post(
        "/v2/repository/index",
        summary="Every version in the repository and its state",
        responses=error_responses(400, 413, 415),
        openapi_extra=_request_body({"ready": {"type": "boolean", "description": "Only those that serve."}}),
        **tag,
    )
    async def repository_index(request: Request) -> list[IndexRow]:
        ready = (await document(request)).get("ready", False)
        if not isinstance(ready, bool):
            raise InvalidRequest("ready must be true or false", field="ready")
        return await model_control.index(service, ready=ready)

    @app.post(
        "/v2/repository/models/{model}/load",
        summary="Bring a model to what is in its folder now",
        response_class=Response,
        responses={200: {"description": "It serves."}, **error_responses(400, 404, 413, 415, 422, 501, 503)},
        openapi_extra=_request_body({"parameters": {"type": "object", "description": "None is supported."}}),
        **tag,
    )
    async def load(request: Request, model: str) -> Response:
        """New and changed versions are loaded beside those that serve, and take their place when they are ready.

        When a version cannot be loaded the answer says why, and what served before still does.
        """
        await model_control.load(service, model, _parameters(await document(request)))
        return _json({})

    @app.post(
        "/v2/repository/models/{model}/unload",
        summary="Stop serving a model",
        response_class=Response,
        responses={200: {"description": "New requests are refused."}, **error_responses(400, 404, 413, 415, 503)},
        openapi_extra=_request_body({"parameters": {"type": "object", "description": "unload_dependents: no effect."}}),
        **tag,
    )
    async def unload(request: Request, model: str) -> Response:
        """What was accepted is still answered; new requests for the model get 503 until it is loaded again."""
        await model_control.unload(service, model, _parameters(await document(request)))
        return _json({})


def _request_body(properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties}
    return {"requestBody": {"required": False, "content": {"application/json": {"schema": schema}}}}


def _document(body: bytes | bytearray) -> dict[str, Any]:
    """The body as a JSON object; an empty one is {}."""
    try:
        document = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidRequest("the body must be a JSON object")
    return document


def _parameters(document: dict[str, Any]) -> dict[str, Any]:
    """The request's parameters; none are {}, absent or null."""
    parameters = document.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequest("parameters must be a JSON object", field="parameters")
    return parameters


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")

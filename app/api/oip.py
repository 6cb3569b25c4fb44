"""Open Inference Protocol v2 over REST. Specification: kserve/open-inference-protocol, "Inference REST API"."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
from fastapi import FastAPI, Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import dataplane, deadline
from app.api.answers import error_response, error_responses
from app.api.compression import Coding, accepted, compress, shrinks
from app.api.dataplane import OFFLOAD_CLASSES_BYTES
from app.api.model_config import model_config
from app.api.oip_codec import (
    JSON_HEADER_LENGTH,
    MAX_JSON_BYTES,
    InferRequest,
    bytes_to_write,
    decode_request,
    encode_response,
)
from app.api.waiting import answer_or_disconnect
from app.engine.runtime import Model
from app.errors import InferenceFailed, InvalidRequest
from app.readers.bounded import read_body
from app.readers.byte_budget import Lease
from app.readers.offload import INLINE_BYTES, offload
from app.service import Service
from app.tasks.tensors import check_inputs
from app.timeline import Timeline, note_decoding, note_model, timeline_of

INLINE_COMPRESS_BYTES = 1 << 17
"""Answers up to this size are compressed in the event loop: a thread costs more than that takes."""

INFER_ROUTE = SimpleNamespace(path="/v2/models/{model}/infer")
"""What the metrics count inference under, with and without a version."""

_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer"}},
        "datatype": {"type": "string", "example": "FP32"},
        "parameters": {"type": "object"},
        "data": {"type": "array", "items": {}, "description": "Row-major, nested or flat."},
    },
}
_OUTPUT = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "parameters": {
            "type": "object",
            "properties": {
                "binary_data": {"type": "boolean"},
                "classification": {"type": "integer", "minimum": 0, "description": "The k largest, as BYTES."},
            },
        },
    },
}
_INFER_REQUEST = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object", "description": "binary_data_output, priority, timeout (microseconds)."},
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {"type": "array", "items": _OUTPUT},
    },
}
_INFER_RESPONSE = {
    "type": "object",
    "required": ["model_name", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": _TENSOR},
    },
}
_HEADER_LENGTH = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "description": "Bytes of JSON before the binary tensors; 0: the body is the raw tensor of the only input.",
    "schema": {"type": "integer", "minimum": 0},
}
_EXAMPLE = {
    "id": "42",
    "inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1.0, 2.0, 3.0]}],
    "outputs": [{"name": "y", "parameters": {"binary_data": False}}],
}
_ANSWER = {
    "model_name": "offset",
    "model_version": "1",
    "id": "42",
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 3], "data": [2.0, 3.0, 4.0]}],
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}


def install(app: FastAPI, service: Service) -> None:
    """Add the protocol's routes. Inference itself is answered by `infer_app`, ahead of the framework."""
    _document_infer(app)
    tag: dict[str, Any] = {"tags": ["Open Inference Protocol"]}
    per_model: dict[str, Any] = {**tag, "responses": error_responses(404, 503)}

    @app.get("/v2", summary="Server metadata", **tag)
    async def server_metadata() -> dict[str, Any]:
        return dataplane.server_metadata()

    @app.get("/v2/health/live", summary="Can the process work?", responses=error_responses(503), **tag)
    async def server_live() -> Response:
        return _health("live", service.live)

    @app.get("/v2/health/ready", summary="Is every model loaded and warm?", responses=error_responses(503), **tag)
    async def server_ready() -> Response:
        return _health("ready", service.ready)

    @app.get("/v2/models/{model}/ready", summary="Does the model serve?", **per_model)
    async def model_ready(model: str) -> dict[str, Any]:
        return {"name": service.repository.get(model).name, "ready": True}

    @app.get("/v2/models/{model}/versions/{version}/ready", summary="Does this version serve?", **per_model)
    async def version_ready(model: str, version: str) -> dict[str, Any]:
        return {"name": service.repository.get(model, version).name, "ready": True}

    @app.get("/v2/models/{model}", summary="Model metadata", **per_model)
    async def model_metadata(model: str) -> dict[str, Any]:
        return dataplane.model_metadata(service, model)

    @app.get("/v2/models/{model}/versions/{version}", summary="Model metadata of one version", **per_model)
    async def version_metadata(model: str, version: str) -> dict[str, Any]:
        return dataplane.model_metadata(service, model, version)

    @app.get("/v2/models/{model}/config", summary="Model configuration, the measured plan in it", **per_model)
    async def configuration(model: str) -> dict[str, Any]:
        return model_config(service.repository.get(model))

    @app.get("/v2/models/{model}/versions/{version}/config", summary="Configuration of one version", **per_model)
    async def version_configuration(model: str, version: str) -> dict[str, Any]:
        return model_config(service.repository.get(model, version))


def _document_infer(app: FastAPI) -> None:
    async def infer(model: str) -> None:  # noqa: ARG001
        """Run a model on tensors.

        JSON, or the binary tensor data extension with `Inference-Header-Content-Length`. FP16 travels only in binary.
        NaN and infinity in an input are refused; in a JSON output they are `null`.
        """
        raise AssertionError("answered by InferFirst; this function is the documentation")

    async def infer_version(model: str, version: str) -> None:  # noqa: ARG001
        """Run one version of a model on tensors; as without a version otherwise."""
        raise AssertionError("answered by InferFirst; this function is the documentation")

    for path, endpoint in (
        ("/v2/models/{model}/infer", infer),
        ("/v2/models/{model}/versions/{version}/infer", infer_version),
    ):
        app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            tags=["Open Inference Protocol"],
            response_model=None,
            responses={
                200: {
                    "description": "The requested outputs.",
                    "content": {
                        "application/json": {"schema": _INFER_RESPONSE, "example": _ANSWER},
                        "application/octet-stream": _BINARY,
                    },
                },
                **error_responses(400, 404, 413, 415, 429, 500, 501, 503, 504),
            },
            openapi_extra={
                "parameters": [_HEADER_LENGTH, deadline.DOCUMENTED],
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {"schema": _INFER_REQUEST, "example": _EXAMPLE},
                        "application/octet-stream": _BINARY,
                    },
                },
            },
        )


def infer_route(path: str) -> dict[str, str] | None:
    """The path parameters of an inference request, or None for any other path."""
    match path.split("/"):
        case ["", "v2", "models", model, "infer"]:
            return {"model": model}
        case ["", "v2", "models", model, "versions", version, "infer"]:
            return {"model": model, "version": version}
    return None


class InferFirst:
    """ASGI middleware that answers inference itself, without routing and without request or response objects."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path.endswith("/") and path.startswith("/v2/"):
            scope["path"] = path = path.rstrip("/")
        parameters = infer_route(path) if scope["type"] == "http" and scope["method"] == "POST" else None
        if parameters is None:
            await self._app(scope, receive, send)
            return
        scope["route"], scope["path_params"] = INFER_ROUTE, parameters
        try:
            lease = Lease(self._service.body_budget)
            try:  # not `with`: this is the path of every small request, which holds nothing
                answer = await _infer(self._service, parameters, scope, receive, lease)
            finally:
                if lease.held:
                    lease.settle(0)
        except ClientDisconnect:
            return
        except Exception as error:
            await error_response(error)(scope, receive, send)
        else:
            await _send(answer, send)


@dataclass(slots=True)
class Answer:
    """A response body in pieces; `json_length`: of the JSON before the binary tensors; `coding`: how it is packed."""

    pieces: list[bytes | memoryview]
    json_length: int | None
    coding: Coding | None = None

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that say what the pieces are."""
        content_type = b"application/json" if self.json_length is None else b"application/octet-stream"
        headers = [(b"content-type", content_type), (b"content-length", b"%d" % sum(map(len, self.pieces)))]
        if self.json_length is not None:
            headers.append((JSON_HEADER_LENGTH, b"%d" % self.json_length))
        if self.coding is not None:
            headers += [(b"content-encoding", self.coding.encode()), (b"vary", b"accept-encoding")]
        return headers

    def worthwhile(self, accept_encoding: bytes | None, smallest: int) -> Coding | None:
        """The coding that the client prefers, for an answer of at least `smallest` bytes that gets smaller by it."""
        if accept_encoding is None or (coding := accepted(accept_encoding)) is None:
            return None
        return coding if sum(map(len, self.pieces)) >= smallest and shrinks(self.pieces) else None

    async def compressed(self, coding: Coding) -> Answer:
        """This answer, once it is."""
        size = sum(map(len, self.pieces))
        self.pieces = [await offload(size, lambda: compress(self.pieces, coding), INLINE_COMPRESS_BYTES)]
        self.coding = coding
        return self


async def _send(answer: Answer, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": answer.headers()})
    await send({"type": "http.response.body", "body": b"".join(answer.pieces)})


async def _infer(service: Service, parameters: dict[str, str], scope: Scope, receive: Receive, lease: Lease) -> Answer:
    settings, headers, timeline = service.settings, scope["headers"], timeline_of(scope)
    model = service.repository.get(parameters["model"], parameters.get("version"))
    note_model(scope, model)
    header_length = accept_encoding = timeout_header = None
    for name, value in headers:
        if name == JSON_HEADER_LENGTH:
            if header_length is not None:
                raise InvalidRequest("Inference-Header-Content-Length is given more than once")
            header_length = value
        elif name == b"accept-encoding":
            accept_encoding = value
        elif name == deadline.RAW_HEADER:
            timeout_header = value
    # Only tensors in binary are as large in memory as they are here.
    decoded_limit = settings.max_decoded_bytes
    if header_length is None and decoded_limit > MAX_JSON_BYTES:
        decoded_limit = MAX_JSON_BYTES
    body = await read_body(receive, headers, settings.max_body_bytes, decoded_limit, lease)
    service.scheduler.check_room(model)
    note_decoding(scope)
    request, inputs = await offload(len(body), partial(decode, body, header_length, model))
    future = submit(service, model, request, inputs, timeout_header, timeline)
    try:
        results = await answer_or_disconnect(future, receive)
    except InferenceFailed as error:
        raise dataplane.fault(inputs, error) from error
    if timeline is not None:
        timeline.encode()
    return await pack(model, request, results, accept_encoding, settings.compress_from)


def decode(
    body: bytes | bytearray, header_length: bytes | None, model: Model
) -> tuple[InferRequest, dict[str, np.ndarray]]:
    """The request in a body, and its inputs, checked. Raises InvalidRequest, NotSupported, PayloadTooLarge."""
    request = decode_request(body, header_length, model)
    return request, check_inputs(model, request.tensors)


def submit(
    service: Service,
    model: Model,
    request: InferRequest,
    inputs: dict[str, np.ndarray],
    timeout_header: bytes | None,
    timeline: Timeline | None,
) -> asyncio.Future[dict[str, np.ndarray]]:
    """Queue a decoded request, as `dataplane.submit` does, with the shorter of its two time limits."""
    outputs = [output.name for output in request.outputs]
    timeout = deadline.earliest(request.timeout, deadline.seconds(timeout_header))
    return dataplane.submit(
        service, model, inputs, outputs, timeout=timeout, priority=request.priority, timeline=timeline
    )


def pack_inline(request: InferRequest, results: dict[str, np.ndarray]) -> bool:
    """Whether so little of the results has to be written that the event loop does it."""
    size, inline = _packing(request, results)
    return size <= inline


def _packing(request: InferRequest, results: dict[str, np.ndarray]) -> tuple[int, int]:
    """Bytes to be written, at most, and how many of them are written in the event loop."""
    inline = OFFLOAD_CLASSES_BYTES if request.classified else INLINE_BYTES
    size = sum(tensor.nbytes for tensor in results.values())
    return (bytes_to_write(request, results) if size > inline else size), inline


async def pack(
    model: Model,
    request: InferRequest,
    results: dict[str, np.ndarray],
    accept_encoding: bytes | None,
    compress_from: int,
) -> Answer:
    """The answer to a request, compressed if that is accepted and worthwhile from `compress_from` bytes on."""
    size, inline = _packing(request, results)
    answer = Answer(*await offload(size, partial(encode_response, model, request, results), inline))
    coding = answer.worthwhile(accept_encoding, compress_from)
    return answer if coding is None else await answer.compressed(coding)


def _health(name: str, good: bool) -> Response:
    return Response(orjson.dumps({name: good}), 200 if good else 503, media_type="application/json")

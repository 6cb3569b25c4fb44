"""The methods of inference.GRPCInferenceService: messages to calls of the dataplane, and back.

Messages come in as bytes, so that large ones are parsed in a thread and a malformed one is the caller's error.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import grpc
import numpy as np
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message

from app.access import Pass, Scope, bearer
from app.api import dataplane, model_control
from app.api.dataplane import OFFLOAD_CLASSES_BYTES
from app.api.grpc import codec
from app.api.grpc import inference_pb2 as pb
from app.api.grpc.statuses import LONGEST_MESSAGE, status_code, trailing_metadata
from app.api.model_config import model_config
from app.engine.runtime import Model
from app.errors import DeadlineExceeded, InferenceFailed, InvalidRequest, KronserveError, Unavailable
from app.journal import REQUEST_ID
from app.readers.byte_budget import SMALL
from app.readers.offload import INLINE_BYTES, offload
from app.service import Service
from app.tasks.tensors import check_inputs
from app.timeline import Timeline

logger = logging.getLogger(__name__)

SERVICE_NAME = "inference.GRPCInferenceService"

Context = Any
"""grpc.aio.ServicerContext; grpcio has no type information."""

Metadata = Any
"""Pairs of name and value, or None."""

Request = TypeVar("Request", bound=Message)


@dataclass(slots=True)
class Noted:
    """What is noted of one call for its log line and trace."""

    timeline: Timeline | None
    model: str | None = None
    """The name of a model that there is."""


Method = Callable[[Service, bytes, Context, Noted], Awaitable[bytes]]


class Calls(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The service's methods as grpcio takes them, with errors turned into statuses, every call counted and timed."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.leaving = False
        """Whether new calls are refused as UNAVAILABLE, which tells clients to go elsewhere."""
        self.began = 0
        """Calls so far."""

        self._handlers = {
            f"/{SERVICE_NAME}/{name}": (
                _scope(name),
                grpc.unary_unary_rpc_method_handler(self._answering(name)),
                grpc.stream_unary_rpc_method_handler(self._unread(name)),
            )
            for name in METHODS
        }

    def service(self, handler_call_details: Any) -> Any:
        """Who answers a call, asked by grpcio before it reads the message.

        With keys, a call that nobody has let in is answered unread, be it refused or about whether the server is there:
        of a stream, nothing is read until the handler asks.
        """
        found = self._handlers.get(handler_call_details.method)
        if found is None:
            return None
        scope, answering, unread = found
        if self._service.keys is None:
            return answering
        if scope is None:
            return unread
        try:
            self._service.keys.check(_presented(handler_call_details.invocation_metadata), scope)
        except KronserveError:
            return unread
        return answering

    def _unread(self, name: str) -> Callable[[object, Context], Awaitable[bytes]]:
        answer = self._answering(name)

        async def unread(_: object, context: Context) -> bytes:
            return await answer(b"", context)

        return unread

    def _answering(self, name: str) -> Callable[[bytes, Context], Awaitable[bytes]]:
        service, method, scope = self._service, METHODS[name], _scope(name)

        async def answer(body: bytes, context: Context) -> bytes:
            started = time.perf_counter()
            self.began += 1
            code = grpc.StatusCode.OK
            tracing = None if scope is None else service.tracing
            noted = Noted(None if tracing is None else tracing.begin(_headers(context)))
            let_in: Pass | None = None
            try:
                if self.leaving:
                    raise Unavailable("the server is shutting down")
                if service.keys is not None and scope is not None:
                    try:
                        let_in = service.keys.admit(_presented(context.invocation_metadata()), scope)
                    except KronserveError as error:
                        service.metrics.rejected(error.reason)
                        raise
                return await method(service, body, context, noted)
            except KronserveError as error:
                code, failure = status_code(error), error
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            except Exception as error:
                logger.error("unexpected %s", type(error).__name__, exc_info=error)
                code, failure = grpc.StatusCode.INTERNAL, KronserveError("internal error")
            finally:
                if let_in is not None:
                    let_in.leave()
                seconds = time.perf_counter() - started
                service.metrics.called(name, code.name, seconds)
                trace = None
                if noted.timeline is not None and tracing is not None:
                    trace = tracing.answered_rpc(noted.timeline, f"{SERVICE_NAME}/{name}", code.name)
                if not service.journal.silent:
                    given = _metadata(context.invocation_metadata(), REQUEST_ID.decode())
                    request_id = service.journal.request_id(given[0].encode() if len(given) == 1 else None)
                    key = None if let_in is None else let_in.name
                    service.journal.answered(
                        "grpc", name, code.name, seconds, request_id, trace, model=noted.model, key=key
                    )
            failure.__traceback__ = None  # it would hold the message until the next garbage collection
            await context.abort(code, failure.message[:LONGEST_MESSAGE], trailing_metadata(failure))
            raise AssertionError("abort raises")

        return answer


async def _infer(service: Service, body: bytes, context: Context, noted: Noted) -> bytes:
    if len(body) <= SMALL:
        return await _run(service, body, context, noted)
    with service.body_budget.lease() as lease:
        await lease.take(len(body))
        return await _run(service, body, context, noted)


async def _run(service: Service, body: bytes, context: Context, noted: Noted) -> bytes:
    timeline = noted.timeline
    if timeline is not None:
        timeline.decode()
    model, call, inputs = await offload(len(body), lambda: _decode(service, body, noted))
    timeout, remaining = call.timeout, context.time_remaining()
    if remaining is not None:
        if remaining <= 0:
            raise DeadlineExceeded("the call's deadline passed before it was queued")
        timeout = min(timeout or remaining, remaining)
    # A call that its client gives up is cancelled here, and the request with it.
    try:
        results = await dataplane.submit(
            service, model, inputs, call.outputs, timeout=timeout, priority=call.priority, timeline=timeline
        )
    except InferenceFailed as error:
        raise dataplane.fault(inputs, error) from error
    if timeline is not None:
        timeline.encode()
    inline = OFFLOAD_CLASSES_BYTES if any(call.outputs.values()) else INLINE_BYTES
    size = sum(tensor.nbytes for tensor in results.values())
    return await offload(size, lambda: _encode(model, call, results), inline)


def _decode(service: Service, body: bytes, noted: Noted) -> tuple[Model, codec.InferCall, dict[str, np.ndarray]]:
    request = _parse(pb.ModelInferRequest, body)
    model = service.repository.get(request.model_name, request.model_version or None)
    noted.model = model.name
    if noted.timeline is not None:
        noted.timeline.belongs_to(model)
    call = codec.decode(request, model)
    return model, call, check_inputs(model, call.tensors)


def _encode(model: Model, call: codec.InferCall, results: Mapping[str, np.ndarray]) -> bytes:
    return bytes(codec.encode(model, call, results).SerializeToString())


async def _server_live(service: Service, body: bytes, *_: object) -> bytes:
    _parse(pb.ServerLiveRequest, body)
    return _serialised(pb.ServerLiveResponse(live=service.live))


async def _server_ready(service: Service, body: bytes, *_: object) -> bytes:
    _parse(pb.ServerReadyRequest, body)
    return _serialised(pb.ServerReadyResponse(ready=service.ready))


async def _model_ready(service: Service, body: bytes, *_: object) -> bytes:
    request = _parse(pb.ModelReadyRequest, body)
    try:
        service.repository.get(request.name, request.version or None)
    except Unavailable:
        return _serialised(pb.ModelReadyResponse(ready=False))
    return _serialised(pb.ModelReadyResponse(ready=True))


async def _server_metadata(_: Service, body: bytes, *__: object) -> bytes:
    _parse(pb.ServerMetadataRequest, body)
    return _serialised(ParseDict(dataplane.server_metadata(), pb.ServerMetadataResponse()))


async def _model_metadata(service: Service, body: bytes, *_: object) -> bytes:
    request = _parse(pb.ModelMetadataRequest, body)
    described = dataplane.model_metadata(service, request.name, request.version or None)
    # The message has no place for `parameters`.
    return _serialised(ParseDict(described, pb.ModelMetadataResponse(), ignore_unknown_fields=True))


async def _model_config(service: Service, body: bytes, *_: object) -> bytes:
    request = _parse(pb.ModelConfigRequest, body)
    config = model_config(service.repository.get(request.name, request.version or None))
    return _serialised(ParseDict({"config": config}, pb.ModelConfigResponse()))


async def _statistics(service: Service, body: bytes, *_: object) -> bytes:
    request = _parse(pb.ModelStatisticsRequest, body)
    counted = model_control.statistics(service, request.name or None, request.version or None)
    return _serialised(ParseDict(counted, pb.ModelStatisticsResponse()))


async def _repository_index(service: Service, body: bytes, *_: object) -> bytes:
    request = _parse(pb.RepositoryIndexRequest, body)
    rows = await model_control.index(service, ready=request.ready)
    return _serialised(ParseDict({"models": [asdict(row) for row in rows]}, pb.RepositoryIndexResponse()))


async def _load(service: Service, body: bytes, *_: object) -> bytes:
    request = _parse(pb.RepositoryModelLoadRequest, body)
    name = request.model_name or request.repository_name
    await model_control.load(service, name, request.parameters)
    return _serialised(pb.RepositoryModelLoadResponse(model_name=name, isLoaded=True))


async def _unload(service: Service, body: bytes, *_: object) -> bytes:
    request = _parse(pb.RepositoryModelUnloadRequest, body)
    name = request.model_name or request.repository_name
    await model_control.unload(service, name, request.parameters)
    return _serialised(pb.RepositoryModelUnloadResponse(model_name=name, isUnloaded=True))


METHODS: dict[str, Method] = {
    "ServerLive": _server_live,
    "ServerReady": _server_ready,
    "ModelReady": _model_ready,
    "ServerMetadata": _server_metadata,
    "ModelMetadata": _model_metadata,
    "ModelInfer": _infer,
    "ModelConfig": _model_config,
    "ModelStatistics": _statistics,
    "RepositoryIndex": _repository_index,
    "RepositoryModelLoad": _load,
    "RepositoryModelUnload": _unload,
}


def _scope(name: str) -> Scope | None:
    """The scope that a method needs; None for the open ones."""
    if name in ("ServerLive", "ServerReady"):
        return None
    if name == "ModelInfer":
        return "inference"
    return "admin" if name in ("RepositoryModelLoad", "RepositoryModelUnload") else "read"


def _presented(metadata: Metadata) -> str | None:
    given = _metadata(metadata, "authorization")
    return bearer(given[0]) if len(given) == 1 else None


def _metadata(metadata: Metadata, key: str) -> list[str]:
    return [value for name, value in metadata or () if name == key]


def _headers(context: Context) -> list[tuple[bytes, bytes]]:
    """The call's metadata that is text."""
    return [
        (name.encode(), value.encode()) for name, value in context.invocation_metadata() or () if isinstance(value, str)
    ]


def _parse(kind: type[Request], body: bytes) -> Request:
    try:
        return kind.FromString(body)  # type: ignore[no-any-return]
    except DecodeError as error:
        raise InvalidRequest(f"the message is not a {kind.DESCRIPTOR.name}") from error


def _serialised(message: Message) -> bytes:
    return bytes(message.SerializeToString())

"""POST /v1/models/{model}/classify: volumes in, labels with probabilities out."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

import orjson
from fastapi import Request
from starlette.responses import Response

from app.api.answers import error_responses
from app.api.task_routes import require_task, task_router
from app.api.uploads import Upload, read_uploads
from app.api.waiting import answer_or_disconnect
from app.engine.runtime import Model
from app.errors import DeadlineExceeded, KronserveError, PayloadTooLarge
from app.manifest import VolumeClassification
from app.readers.bounded import GZIP_MAGIC, MAX_EXPANSION
from app.readers.libraries import offload_with
from app.readers.volumes import ZIP_MAGIC, read_json_volume, read_volume
from app.service import Service
from app.tasks import classification

JSON = "application/json"

_BINARY = {"type": "string", "format": "binary", "description": ".npy, .npz, .nii or .nii.gz, told by the first bytes"}
_NESTED: dict[str, Any] = {"type": "array", "items": {"type": "array", "items": {"type": "array"}}}
_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/octet-stream": {"schema": _BINARY},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "array", "items": _BINARY}},
            }
        },
        JSON: {
            "schema": {
                "type": "object",
                "required": ["volume"],
                "additionalProperties": False,
                "properties": {"volume": _NESTED},
            },
            "example": {"volume": [[[0, 0], [0, 1]], [[0, 1], [1, 1]]]},
        },
    },
}
_PREDICTION = {
    "type": "object",
    "properties": {
        "index": {"type": "integer"},
        "label": {"type": "string"},
        "probability": {"type": "number"},
        "probabilities": {"type": "object", "additionalProperties": {"type": "number"}},
        "input": {
            "type": "object",
            "properties": {
                "format": {"type": "string", "enum": ["nifti", "npy", "npz", "json"]},
                "shape": {"type": "array", "items": {"type": "integer"}},
                "spacing": {"type": ["array", "null"], "items": {"type": "number"}, "description": "mm"},
            },
        },
        "preprocessing": {"type": "array", "items": {"type": "object"}},
    },
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One prediction a volume, in the order sent",
        "content": {
            JSON: {
                "schema": {
                    "type": "object",
                    "required": ["model", "version", "predictions", "notice"],
                    "properties": {
                        "model": {"type": "string"},
                        "version": {"type": "string"},
                        "predictions": {"type": "array", "items": _PREDICTION},
                        "notice": {"type": "string"},
                    },
                },
                "example": {
                    "model": "hot-adrenal",
                    "version": "1",
                    "predictions": [
                        {
                            "index": 0,
                            "label": "normal",
                            "probability": 0.83,
                            "probabilities": {"normal": 0.83, "hyperplasia": 0.17},
                            "input": {"format": "nifti", "shape": [64, 64, 64], "spacing": [1.0, 1.0, 1.0]},
                            "preprocessing": [{"op": "reorient", "from": "LPS", "to": "RAS"}],
                        }
                    ],
                    "notice": classification.NOTICE,
                },
            }
        },
    },
    **error_responses(400, 404, 413, 415, 422, 429, 500, 503, 504),
}


async def classify(request: Request, model: str) -> Response:
    """Classify the volume in the body, or each `file` of a form. Research use only.

    Any Content-Type other than JSON and forms is a file, told by its first bytes. The answer says how it was read and
    what preprocessing was applied.
    """
    service: Service = request.app.state.service
    loaded = service.repository.get(model, request.path_params.get("version"))
    spec = require_task(loaded, VolumeClassification, "does not classify volumes")
    with service.body_budget.lease() as lease:
        uploads = await read_uploads(request, service.settings, lease)
        prepared = await _prepare_all(service, loaded, spec, uploads)
    predictions = await _run(service, request, loaded, prepared)
    return Response(
        orjson.dumps(
            {
                "model": loaded.name,
                "version": loaded.version,
                "predictions": predictions,
                "notice": classification.NOTICE,
            }
        ),
        media_type=JSON,
    )


async def _prepare_all(
    service: Service, model: Model, spec: VolumeClassification, uploads: list[Upload]
) -> list[classification.Prepared]:
    """All volumes, before any is run: a bad file fails its request at no cost to the others' batches.

    The limit of decoded bytes and the timeout hold for all of them together.
    """
    clock, limit = asyncio.get_running_loop().time, service.settings.max_decoded_bytes
    until, left = clock() + service.settings.request_timeout, limit
    prepared = []
    for index, upload in enumerate(uploads):
        if clock() > until:
            raise DeadlineExceeded(
                f"{index} of {len(uploads)} files were read within {service.settings.request_timeout:g} s"
            )
        try:
            volume, size = await _prepare(service, upload, spec, model, left)
        except KronserveError as error:
            if len(uploads) > 1:
                error.field = error.field or f"file[{index}]"
            if isinstance(error, PayloadTooLarge) and left < limit:
                error.message += f" (of {limit}, the files before it took {limit - left})"
            raise
        left -= min(size, left)
        prepared.append(volume)
    return prepared


async def _prepare(
    service: Service, upload: Upload, spec: VolumeClassification, model: Model, limit: int
) -> tuple[classification.Prepared, int]:
    """One volume, and the bytes that its voxels took."""

    def decode() -> tuple[classification.Prepared, int]:
        read = read_json_volume if upload.media_type == JSON else read_volume
        volume = read(upload.data, limit)
        return classification.prepare(volume, spec, input_name=model.inputs[0].name), volume.data.nbytes

    if not bytes(upload.data[:4]).startswith((GZIP_MAGIC, ZIP_MAGIC)):
        return await offload_with("nibabel", len(upload.data), decode)
    # A compressed body says nothing of the work behind it: a thousandth of it may be all that was sent.
    largest = min(limit, MAX_EXPANSION * len(upload.data))
    with service.body_budget.lease() as lease:
        await lease.take(largest)
        return await offload_with("nibabel", largest, decode)


async def _run(
    service: Service, request: Request, model: Model, prepared: list[classification.Prepared]
) -> list[dict[str, Any]]:
    """Submit every volume as a request of its own, so that they form batches, and wait for all."""
    futures: list[asyncio.Future[Any]] = []
    try:
        for volume in prepared:
            futures.append(  # noqa: PERF401  (those submitted before a refusal must be known, to be withdrawn)
                service.scheduler.submit(
                    model, volume.tensors, model.ordinary_outputs[:1], timeout=service.settings.request_timeout
                )
            )
        answers = await answer_or_disconnect(asyncio.gather(*futures), request.receive)
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    return [asdict(classification.finish(volume, outputs)) for volume, outputs in zip(prepared, answers, strict=True)]


router = task_router(
    classify, "classify", "Classify volumes", responses=_RESPONSES, openapi_extra={"requestBody": _REQUEST_BODY}
)

"""POST /v1/models/{model}/classify: volumes in, labels with probabilities out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import orjson
from fastapi import Query, Request
from starlette.responses import Response

from app.api.answers import error_responses
from app.api.submission import run_all
from app.api.task_routes import require_task, task_router
from app.api.uploads import Upload, read_uploads
from app.engine.runtime import Model
from app.errors import DeadlineExceeded, InvalidRequest, KronserveError, PayloadTooLarge
from app.manifest import VolumeClassification
from app.readers.bounded import GZIP_MAGIC, MAX_EXPANSION, ZIP_MAGIC, Buffer
from app.readers.libraries import offload_with
from app.readers.volumes import Kind, NamedFile, grouped, kind_of, read_group, read_json_volume
from app.service import Service
from app.tasks import attention, classification
from app.tasks.preprocessing import made_bytes
from app.timeline import note_decoding, note_model

JSON = "application/json"

_BINARY = {
    "type": "string",
    "format": "binary",
    "description": "NIfTI (.nii, .nii.gz, .hdr with .img), DICOM slices, NRRD, MetaImage, .npy, .npz, "
    "or a zip of one volume; told by "
    "the first bytes",
}
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
                "format": {"type": "string", "enum": ["nifti", "dicom", "nrrd", "metaimage", "npy", "npz", "json"]},
                "shape": {"type": "array", "items": {"type": "integer"}},
                "spacing": {"type": ["array", "null"], "items": {"type": "number"}, "description": "mm"},
            },
        },
        "preprocessing": {"type": "array", "items": {"type": "object"}},
        "explanation": {
            "type": "object",
            "description": "with explain=attention: matrices by block and mode, and the attention each slice receives",
        },
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


MAX_VOLUMES = 64
"""Volumes of one request."""

_MAY_BE_COMPRESSED: frozenset[Kind] = frozenset(("archive", "gzip", "dicom", "nrrd", "metaimage"))

Time = Annotated[int | None, Query(ge=0, description="Which volume of a file, or of JSON, with four axes, from 0.")]
Explain = Annotated[
    Literal["attention"] | None, Query(description="Also answer what the model attended to; needs a bundle that can.")
]


async def classify(request: Request, model: str, t: Time = None, explain: Explain = None) -> Response:
    """Classify the volume in the body, or those that the `file`s of a form make. Research use only.

    Any Content-Type other than JSON and forms is a file, told by its first bytes. DICOM slices of a form make one
    volume, as do the halves of a NIfTI pair; every other file is one. The answer says what was read and done.
    """
    service: Service = request.app.state.service
    loaded = service.repository.get(model, request.path_params.get("version"))
    note_model(request.scope, loaded)
    spec = require_task(loaded, VolumeClassification, "does not classify volumes")
    assert loaded.manifest is not None
    names = loaded.ordinary_outputs[:1]
    if explain is not None:
        names += tuple(output.name for output in attention.attention_outputs(loaded.manifest))
    with service.body_budget.lease() as lease:
        uploads = await read_uploads(request, service.settings, lease)
        service.scheduler.check_room(loaded)
        note_decoding(request.scope)
        prepared = await _prepare_all(service, loaded, spec, uploads, t)
    # Every volume is a request of its own, so that they form batches.
    answers = await run_all(service, request, loaded, [volume.tensors for volume in prepared], names)
    predictions = []
    for volume, outputs in zip(prepared, answers, strict=True):
        prediction = asdict(classification.finish(volume, {names[0]: outputs[names[0]]}))
        if explain is not None:
            prediction["explanation"] = attention.explanation(loaded.manifest, outputs)
        predictions.append(prediction)
    document = {
        "model": loaded.name,
        "version": loaded.version,
        "predictions": predictions,
        "notice": classification.NOTICE,
    }
    return Response(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), media_type=JSON)


async def _prepare_all(
    service: Service, model: Model, spec: VolumeClassification, uploads: list[Upload], time: int | None
) -> list[classification.Prepared]:
    """All volumes, before any is run: a bad file fails its request at no cost to the others' batches.

    The limit of decoded bytes and the timeout hold for all of them together.
    """
    clock, limit = asyncio.get_running_loop().time, service.settings.max_decoded_bytes
    until, left = clock() + service.settings.request_timeout, limit
    groups: Sequence[list[NamedFile] | Upload] = uploads
    if uploads[0].media_type != JSON:
        groups = grouped([NamedFile(upload.data, upload.filename) for upload in uploads])
    if len(groups) > MAX_VOLUMES:
        raise InvalidRequest(f"the form has {len(groups)} volumes; at most {MAX_VOLUMES} are classified together")
    # Of all of them together: small volumes one after the other would hold up the event loop as long as a large one.
    work = sum(_work_size(group, spec) for group in groups)
    prepared = []
    for index, group in enumerate(groups):
        if clock() > until:
            raise DeadlineExceeded(
                f"{index} of {len(groups)} volumes were read within {service.settings.request_timeout:g} s"
            )
        try:
            volume, size = await _prepare(service, group, spec, model, left, time, work)
        except KronserveError as error:
            if len(groups) > 1:
                error.field = error.field or f"file[{index}]"
            if isinstance(error, PayloadTooLarge) and left < limit:
                error.message += f" (of {limit}, the files before it took {limit - left})"
            raise
        left -= min(size, left)
        prepared.append(volume)
    return prepared


def _work_size(files: list[NamedFile] | Upload, spec: VolumeClassification) -> int:
    """What reading and preprocessing one volume costs, in bytes as `offload` counts them.

    Its files' length, where the time follows that: what is compressed expands up to a thousandfold, and the steps may
    make a large grid of a small volume.
    """
    lengths = (len(part) * (MAX_EXPANSION if kind_of(part) in _MAY_BE_COMPRESSED else 1) for part in _parts(files))
    return max(sum(lengths), made_bytes(spec))


def _parts(files: list[NamedFile] | Upload) -> list[Buffer]:
    return [files.data] if isinstance(files, Upload) else [file.data for file in files]


async def _prepare(
    service: Service,
    files: list[NamedFile] | Upload,
    spec: VolumeClassification,
    model: Model,
    limit: int,
    time: int | None,
    work: int,
) -> tuple[classification.Prepared, int]:
    """One volume, and the bytes that its voxels took; `work` is that of the whole request, as `offload` counts it."""

    def decode() -> tuple[classification.Prepared, int]:
        if isinstance(files, Upload):
            volume = read_json_volume(files.data, limit, time)
        else:
            volume = read_group(files, limit, time)
        return classification.prepare(volume, spec, input_name=model.inputs[0].name), volume.data.nbytes

    parts = _parts(files)
    with service.body_budget.lease() as lease:
        if any(bytes(part[:4]).startswith((GZIP_MAGIC, ZIP_MAGIC)) for part in parts):
            # A compressed body says nothing of what it holds: a thousandth of it may be all that was sent.
            await lease.take(min(limit, MAX_EXPANSION * sum(map(len, parts))))
        return await offload_with("nibabel", work, decode)


router = task_router(
    classify, "classify", "Classify volumes", responses=_RESPONSES, openapi_extra={"requestBody": _REQUEST_BODY}
)

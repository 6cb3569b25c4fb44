"""What the tensor protocols share: server and model metadata, and inference. Protocol files only translate.

REST (`oip.py`) and gRPC differ in how a request is spelled and how an error is told; what lies between is here, and in
`model_config.py` and `model_control.py`. Failures are the errors of `app.errors`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from importlib.metadata import version as distribution_version
from typing import Any

import numpy as np

from app.engine.runtime import Model
from app.errors import InferenceFailed, InvalidRequest
from app.service import Service
from app.tasks.tensors import check_outputs
from app.timeline import Timeline

OFFLOAD_CLASSES_BYTES = 1 << 13
"""Outputs past this size are sorted and written as classes in a thread, about a microsecond each."""

EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "schedule_policy",
    "statistics",
]


def server_metadata() -> dict[str, Any]:
    """The server's name, version and the protocol extensions it speaks."""
    return {"name": "kronserve", "version": distribution_version("kronserve"), "extensions": EXTENSIONS}


def model_metadata(service: Service, name: str, version: str | None = None) -> dict[str, Any]:
    """The protocol's model metadata, with the manifest's facts under `parameters`."""
    model = service.repository.get(name, version)
    parameters: dict[str, Any] = {
        "version": model.version,
        "device": model.device.kind,
        "providers": list(model.providers),
        "max_batch_size": model.batch_limit if model.batched else 0,
    }
    if model.kernel_use is not None:
        parameters["custom_ops"] = model.kernel_use.as_dict()
    if model.manifest is not None:
        parameters |= model.manifest.model_dump(
            mode="json", include={"description", "task", "metrics", "data_licence", "intended_use"}
        )
    if on_request := [spec.name for spec in model.outputs if spec.on_request]:
        parameters["outputs_on_request"] = on_request
    signature = {"name", "datatype", "shape"}
    return {
        "name": model.name,
        "versions": service.repository.versions(name),
        "platform": "onnxruntime_onnx",
        "inputs": [spec.model_dump(include=signature) for spec in model.inputs],
        "outputs": [spec.model_dump(include=signature) for spec in model.outputs],
        "parameters": parameters,
    }


def submit(
    service: Service,
    model: Model,
    inputs: Mapping[str, np.ndarray],
    outputs: Iterable[str],
    *,
    timeout: float | None = None,
    priority: int = 0,
    timeline: Timeline | None = None,
    follows: bool = False,
) -> asyncio.Future[dict[str, np.ndarray]]:
    """Queue a request whose inputs `check_inputs` has passed; the future's result is the named output arrays.

    outputs: requested names, none for the ordinary ones. timeout: seconds, at most the server's own limit, which holds
    without one. priority: 0 is highest. timeline: where the work is noted. follows: as `Scheduler.submit` has it.
    Cancel the future when the caller has gone.
    """
    names = check_outputs(model, outputs)
    longest = service.settings.request_timeout
    limit = min(timeout or longest, longest)
    runs = None if timeline is None else timeline.queue()
    return service.scheduler.submit(model, inputs, names, timeout=limit, priority=priority, runs=runs, follows=follows)


def fault(inputs: Mapping[str, np.ndarray], error: InferenceFailed) -> InferenceFailed | InvalidRequest:
    """Whose fault a failed inference is: the caller's, if an axis is empty and the graph cannot take that."""
    for name, tensor in inputs.items():
        if 0 in tensor.shape[1:]:
            return InvalidRequest(f"input {name!r} has an empty axis: {error.message}", field=name)
    return error

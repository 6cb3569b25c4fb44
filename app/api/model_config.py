"""GET /v2/models/M/config: the model configuration extension (triton-inference-server/server, "Model configuration").

Values that only this server has are string parameters: the measured plan, providers, sizes of files and memory.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from app.engine.runtime import Model
from app.manifest import TensorSpec

_TYPES = {"BYTES": "STRING"}


def model_config(model: Model) -> dict[str, Any]:
    """The configuration as its clients read it; `max_batch_size` is 0 for a model without a batch axis."""
    parameters = {
        "plan": json.dumps(asdict(model.plan)),
        "providers": ", ".join(model.providers),
        "device": f"{model.device.kind}: {model.device.reason}",
        "bundle_bytes": str(model.bundle_bytes),
        "memory": json.dumps(asdict(model.memory)),
    }
    if model.kernel_use is not None:
        parameters["custom_ops"] = json.dumps(model.kernel_use.as_dict())
    return {
        "name": model.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "max_batch_size": model.batch_limit if model.batched else 0,
        "input": [_tensor(spec, model.batched) for spec in model.inputs],
        "output": [_tensor(spec, model.batched) for spec in model.outputs],
        "instance_group": [
            {"name": model.name, "kind": f"KIND_{_kind(model)}", "count": model.device.executors},
        ],
        "dynamic_batching": {"max_queue_delay_microseconds": 0},
        "parameters": {name: {"string_value": value} for name, value in parameters.items()},
    }


def _kind(model: Model) -> str:
    return "GPU" if model.device.on_gpu else "CPU"


def _tensor(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": "TYPE_" + _TYPES.get(spec.datatype, spec.datatype),
        "dims": list(spec.shape[1:] if batched else spec.shape),
    }

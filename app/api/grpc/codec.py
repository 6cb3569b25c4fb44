"""ModelInfer messages: tensors out of a request, tensors into a response.

Specification: kserve/open-inference-protocol, "gRPC API", "Tensor Data". An input's elements are in its `contents`,
in the field of its datatype, or else, for all inputs, in `raw_input_contents`. The answer is raw when the request was,
and when an output's datatype has no field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.api.grpc import inference_pb2 as pb
from app.api.raw_tensors import filled, from_bytes, raw_bytes
from app.engine.datatypes import NUMPY_TYPES
from app.engine.runtime import Model
from app.errors import InvalidRequest, NotSupported
from app.tasks.tensors import SHOWN_NAME, unexpected_input, unknown_output
from app.tasks.top_classes import top_classes

CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of each datatype in InferTensorContents; FP16 has none."""

MAX_AXES = 32
"""Longest shape."""

_WIDE = {"bool_contents": "?", "int_contents": "i4", "uint_contents": "u4", "int64_contents": "i8"}
_WIDE |= {"uint64_contents": "u8", "fp32_contents": "f4", "fp64_contents": "f8"}


@dataclass(slots=True)
class InferCall:
    """A decoded ModelInferRequest. `timeout` is in seconds.

    outputs: requested names, each with the number of classes it is wanted as, 0 for its values; none are the ordinary
    ones.
    """

    tensors: dict[str, np.ndarray]
    outputs: dict[str, int]
    id: str
    raw: bool
    timeout: float | None
    priority: int


def decode(request: pb.ModelInferRequest, model: Model) -> InferCall:
    """The request's tensors and parameters; InvalidRequest names the field at fault.

    What the model does not know is refused at once, so that a message of many small parts costs no time.
    """
    raw = request.raw_input_contents
    inputs = request.inputs
    if raw and len(raw) != len(inputs):
        raise InvalidRequest(f"{len(raw)} raw_input_contents for {len(inputs)} inputs", field="raw_input_contents")
    tensors: dict[str, np.ndarray] = {}
    for number, item in enumerate(inputs):
        name = item.name
        if not name:
            raise InvalidRequest("an input has no name", field="inputs")
        if name not in model.input_specs:
            raise unexpected_input(model, name)
        if name in tensors:
            raise InvalidRequest(f"input {name!r} is given twice", field=name)
        tensors[name] = _decode_input(item, raw[number] if raw else None)
    outputs: dict[str, int] = {}
    for output in request.outputs:
        if not output.name:
            raise InvalidRequest("every requested output needs a name", field="outputs")
        if output.name not in model.output_names:
            raise unknown_output(model, output.name)
        if output.name in outputs:
            raise InvalidRequest(f"output {output.name!r} is requested twice", field=output.name)
        outputs[output.name] = _count(output.parameters, "classification")
    timeout = _count(request.parameters, "timeout")
    return InferCall(
        tensors,
        outputs,
        request.id,
        bool(raw),
        timeout / 1e6 if timeout else None,
        _count(request.parameters, "priority"),
    )


def encode(model: Model, call: InferCall, results: Mapping[str, np.ndarray]) -> pb.ModelInferResponse:
    """The response with the requested outputs, in the order asked for."""
    datatypes = {spec.name: spec.datatype for spec in model.outputs}
    wanted = call.outputs or dict.fromkeys(results, 0)
    raw = call.raw or any(not classes and datatypes[name] not in CONTENTS for name, classes in wanted.items())
    response = pb.ModelInferResponse(model_name=model.name, model_version=model.version, id=call.id)
    for name, classes in wanted.items():
        tensor, datatype = results[name], datatypes[name]
        if classes:
            tensor, datatype = top_classes(model, name, tensor, classes), "BYTES"
        output = response.outputs.add(name=name, datatype=datatype, shape=tensor.shape)
        if raw:
            response.raw_output_contents.append(bytes(raw_bytes(tensor)))
        elif datatype == "BYTES":
            output.contents.bytes_contents.extend(map(_element, tensor.ravel()))
        else:
            getattr(output.contents, CONTENTS[datatype]).extend(tensor.ravel().tolist())
    return response


def _decode_input(item: pb.ModelInferRequest.InferInputTensor, blob: bytes | None) -> np.ndarray:
    name, datatype = item.name, item.datatype
    dtype = NUMPY_TYPES.get(datatype)
    if dtype is None:
        if datatype == "BF16":
            raise NotSupported(f"input {name!r}: BF16 is not supported", field=name)
        raise InvalidRequest(f"input {name!r} has the unknown datatype {datatype[:SHOWN_NAME]!r}", field=name)
    if len(item.shape) > MAX_AXES:
        raise InvalidRequest(f"input {name!r} has {len(item.shape)} axes, more than {MAX_AXES}", field=name)
    shape = list(item.shape)
    if min(shape, default=0) < 0:
        raise InvalidRequest(f"input {name!r} needs a shape of non-negative integers", field=name)
    if blob is not None:
        if item.HasField("contents"):
            raise InvalidRequest(f"input {name!r} has contents beside raw_input_contents", field=name)
        return from_bytes(blob, name, datatype, dtype, shape)
    return _from_contents(item.contents, name, datatype, dtype, shape)


def _from_contents(
    contents: pb.InferTensorContents, name: str, datatype: str, dtype: np.dtype[Any], shape: list[int]
) -> np.ndarray:
    wanted = CONTENTS.get(datatype)
    if wanted is None:
        raise InvalidRequest(f"input {name!r} is {datatype}, which only raw_input_contents can carry", field=name)
    present = [field.name for field, _ in contents.ListFields()]
    if present not in ([], [wanted]):
        raise InvalidRequest(
            f"input {name!r} is {datatype}: its elements belong in {wanted} alone, not in {', '.join(present)}",
            field=name,
        )
    elements = getattr(contents, wanted)
    if datatype == "BYTES":
        return filled(list(elements), name, dtype, shape)
    values = np.array(elements, _WIDE[wanted])
    narrow = values.astype(dtype, copy=False)
    if dtype.kind in "iu" and not np.array_equal(narrow, values):
        raise InvalidRequest(f"input {name!r}: a value is outside the range of {datatype}", field=name)
    return filled(narrow, name, dtype, shape)


def _count(parameters: Mapping[str, pb.InferParameter], name: str) -> int:
    """A parameter that is a non-negative integer; 0 without it."""
    if name not in parameters:
        return 0
    parameter = parameters[name]
    chosen = parameter.WhichOneof("parameter_choice")
    value = getattr(parameter, chosen) if chosen in ("int64_param", "uint64_param") else -1
    if value < 0:
        raise InvalidRequest(f"{name} must be a non-negative integer", field=name)
    return int(value)


def _element(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()

"""Open Inference Protocol v2 bodies: request bytes to tensors, tensors to response bytes.

Specification: kserve/open-inference-protocol, "Inference REST API"; triton-inference-server/server, "Binary tensor data
extension". Tensors are row-major and little-endian; `data` may be nested or flat.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from math import prod
from operator import mul
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import orjson
import simdjson

from app.api import json_text
from app.api.raw_tensors import filled, from_bytes, lies_ready, raw_bytes
from app.engine.datatypes import NUMPY_TYPES
from app.engine.runtime import Model
from app.errors import InvalidRequest, KronserveError, NotSupported, PayloadTooLarge
from app.tasks.tensors import unexpected_input, unknown_output
from app.tasks.top_classes import top_classes

JSON_HEADER_LENGTH = b"inference-header-content-length"
SMALL_DOCUMENT = 1 << 11
"""Bytes up to which a document is cheaper as Python objects: the JSON beside binary tensors, above all."""

MAX_JSON_BYTES = 64 << 20
MAX_NUMBERS = 8 << 20
"""Elements of one JSON document: the parser takes 16 bytes for each, and no thread can run beside it."""

MAX_GENERAL_BYTES = 1 << 20
"""Text of any member but `data`."""

MAX_WIDE_BYTES = 4 << 20
"""JSON with integers of more than 64 bits, which the parser does not know."""

MAX_INPUTS = 1024

MAX_STRINGS = 1 << 20
"""BYTES elements in one JSON tensor; each is a Python object."""

OTHER_NUMBERS = ("BIGINT_ERROR", "NUMBER_ERROR")
"""What simdjson says of integers of more than 64 bits; of other numbers it cannot read, the latter too."""

LONGEST_NUMBER = 18
"""Digits of a length; more are past any limit."""

MAX_AXES = 32
"""Longest shape; nested data goes no deeper."""

MAX_AXIS = 1 << 31
"""Longest axis beside an empty one; without one, the number of elements is limit enough."""

BINARY_ONLY = frozenset({"FP16", "BF16"})

_BUFFER_TYPES = {"f": ("d", np.float64), "i": ("i", np.int64), "u": ("u", np.uint64)}


@dataclass(slots=True)
class OutputRequest:
    """One requested output and whether it goes into the binary part; `classes`: how many of the largest, 0: values."""

    name: str
    binary: bool
    classes: int = 0


@dataclass(slots=True)
class InferRequest:
    """A decoded request. `timeout` is in seconds; `binary_default` holds for outputs that are not listed."""

    tensors: dict[str, np.ndarray]
    outputs: tuple[OutputRequest, ...] = ()
    id: str | None = None
    binary_default: bool = False
    timeout: float | None = None
    priority: int = 0

    @property
    def classified(self) -> bool:
        """Whether an answer is to be classes, which take longer to write than values."""
        return any(output.classes for output in self.outputs)


@dataclass(slots=True)
class _Blobs:
    """The binary part of a body, consumed in tensor order."""

    body: memoryview
    position: int
    sizes: list[int] = field(default_factory=list)

    def take(self, size: int, name: str) -> memoryview:
        if size > len(self.body) - self.position:
            left = len(self.body) - self.position
            raise InvalidRequest(f"input {name!r} announces {size} bytes, the body has {left} left", field=name)
        start, self.position = self.position, self.position + size
        return self.body[start : self.position]


def decode_request(body: bytes | bytearray, header_length: bytes | None, model: Model) -> InferRequest:
    """Decode a request body; InvalidRequest names the field at fault.

    header_length: value of Inference-Header-Content-Length, or None when the whole body is JSON. "0" means that the
    body is the raw tensor of the model's only input, batch 1.
    """
    if header_length is None:
        return _decode_document(bytes(body), _Blobs(memoryview(b""), 0), model)
    if not header_length.isdigit() or len(header_length) > LONGEST_NUMBER:
        raise InvalidRequest(f"Inference-Header-Content-Length is not a length: {header_length[:40]!r}")
    length = int(header_length)
    if length > len(body):
        raise InvalidRequest(f"Inference-Header-Content-Length is {length}, the body has {len(body)} bytes")
    if length == 0:
        return InferRequest(_decode_raw(memoryview(body), model), binary_default=True)
    blobs = _Blobs(memoryview(body), length)
    text = bytes(memoryview(body)[:length])
    layouts = _layouts(model) if length <= SMALL_DOCUMENT else None
    layout = None if layouts is None else layouts.get(text)
    request = _decode_document(text, blobs, model, layouts) if layout is None else layout.read(blobs)
    if blobs.position != len(body):
        raise InvalidRequest(f"{len(body) - blobs.position} bytes follow the last binary tensor")
    return request


@dataclass(frozen=True, slots=True)
class _Layout:
    """What the JSON before binary tensors says, in a request that was decoded: clients repeat it word for word."""

    inputs: tuple[tuple[str, str, np.dtype[Any], list[int], int], ...]
    """Name, datatype twice, shape and bytes of each tensor."""
    outputs: tuple[OutputRequest, ...]
    binary_default: bool
    timeout: float | None
    priority: int

    def read(self, blobs: _Blobs) -> InferRequest:
        """The request that has these tensors."""
        tensors = {
            name: from_bytes(blobs.take(size, name), name, datatype, dtype, shape)
            for name, datatype, dtype, shape, size in self.inputs
        }
        return InferRequest(tensors, self.outputs, None, self.binary_default, self.timeout, self.priority)


MOST_LAYOUTS = 64
"""Layouts of one model that are remembered."""

_LAYOUTS: WeakKeyDictionary[Model, dict[bytes, _Layout]] = WeakKeyDictionary()


def _layouts(model: Model) -> dict[bytes, _Layout]:
    """Those of the model, by the JSON's text; each was decoded for this model, with the tensors that it announces."""
    known = _LAYOUTS.get(model)
    if known is None:
        known = _LAYOUTS[model] = {}
    return known


def _remember(layouts: dict[bytes, _Layout], text: bytes, inputs: list[dict[str, Any]], request: InferRequest) -> None:
    """Keep the layout of a request, if it can come again: one with an `id` would hardly."""
    if request.id is not None or any(item.get("data") is not None for item in inputs):
        return
    if len(layouts) >= MOST_LAYOUTS:
        layouts.clear()
    tensors = tuple(
        (
            item["name"],
            item["datatype"],
            NUMPY_TYPES[item["datatype"]],
            item["shape"],
            item["parameters"]["binary_data_size"],
        )
        for item in inputs
    )
    layouts[text] = _Layout(tensors, request.outputs, request.binary_default, request.timeout, request.priority)


def _must_be_binary(request: InferRequest, name: str, datatype: str) -> None:
    """Refuse an output that JSON cannot carry before it is computed."""
    asked = [output for output in request.outputs if output.name == name]
    in_json = [not output.binary and not output.classes for output in asked] if request.outputs else None
    if any(in_json) if in_json is not None else not request.binary_default:
        raise InvalidRequest(f"output {name!r} is {datatype}, which only binary_data can carry", field=name)


def bytes_to_write(request: InferRequest, results: Mapping[str, np.ndarray]) -> int:
    """Of the results, those that `encode_response` has to go through; binary tensors are sent as they lie."""
    if not request.outputs:
        as_they_lie = set(results) if request.binary_default else set()
    else:
        as_they_lie = {output.name for output in request.outputs if output.binary and not output.classes}
    return sum(t.nbytes for name, t in results.items() if not (name in as_they_lie and lies_ready(t)))


def encode_response(
    model: Model, request: InferRequest, results: Mapping[str, np.ndarray]
) -> tuple[list[bytes | memoryview], int | None]:
    """The response body in pieces, and the length of its JSON when binary tensors follow it."""
    wanted = request.outputs or tuple(OutputRequest(name, request.binary_default) for name in results)
    datatypes = {spec.name: spec.datatype for spec in model.outputs}
    outputs: list[dict[str, Any]] = []
    blobs: list[bytes | memoryview] = []
    numbers = 0
    for item in wanted:
        tensor, datatype = results[item.name], datatypes[item.name]
        if item.classes:
            tensor, datatype = top_classes(model, item.name, tensor, item.classes), "BYTES"
        output: dict[str, Any] = {"name": item.name, "datatype": datatype, "shape": tensor.shape}
        if item.binary:
            blob = raw_bytes(tensor)
            output["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        elif datatype == "BYTES":
            output["data"] = [_text(value) for value in tensor.ravel()]
        else:
            output["data"] = np.ascontiguousarray(tensor).ravel()
            numbers += tensor.size
        outputs.append(output)
    answer: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if request.id is not None:
        answer["id"] = request.id
    answer["outputs"] = outputs
    header = json_text.dumps(answer, numbers)
    return [header, *blobs], (len(header) if blobs or request.binary_default else None)


def _decode_document(
    text: bytes, blobs: _Blobs, model: Model, layouts: dict[bytes, _Layout] | None = None
) -> InferRequest:
    """The request that a JSON text and the binary tensors after it are; remembered in `layouts` where that helps."""
    document = _parse(text)
    inputs = document.get("inputs")
    if not isinstance(inputs, list):
        raise InvalidRequest("inputs must be a list of tensors", field="inputs")
    tensors: dict[str, np.ndarray] = {}
    lists = 0
    for item in inputs:
        name, tensor, nested = _decode_input(item, blobs, model)
        if name in tensors:
            raise InvalidRequest(f"input {name!r} is given twice", field=name)
        tensors[name] = tensor
        lists += nested
    outputs = document.get("outputs")
    # Lists of numbers are flattened as they are read, so that [1, [2]] looks like [1, 2]; when there are only as many
    # brackets as there should be, none is hidden.
    if lists and text.count(b"[") > lists + 1 + len(inputs) + (outputs is not None):
        for item in inputs:
            if item.get("data") is not None:
                _refuse_hidden_lists(item["name"], item["data"], item["shape"])
    parameters = _parameters(document, "parameters")
    binary_default = _flag(parameters, "binary_data_output", default=False)
    identifier = document.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise InvalidRequest("id must be a string", field="id")
    timeout = parameters.get("timeout")
    if timeout is not None and not _is_count(timeout):
        raise InvalidRequest("timeout must be a number of microseconds", field="timeout")
    priority = parameters.get("priority", 0)
    if not _is_count(priority):
        raise InvalidRequest("priority must be a non-negative integer", field="priority")
    request = InferRequest(
        tensors,
        tuple(_decode_outputs(outputs, binary_default, model)),
        identifier,
        binary_default,
        timeout / 1e6 if timeout else None,
        priority,
    )
    for spec in model.outputs:
        if spec.datatype in BINARY_ONLY and (request.outputs or not spec.on_request):
            _must_be_binary(request, spec.name, spec.datatype)
    if layouts is not None:
        _remember(layouts, text, inputs, request)
    return request


def _parse(text: bytes) -> dict[str, Any]:
    """The document as Python objects, but for the inputs' `data` in a large one.

    Those stay in the parser's own memory, from which numbers are copied without a Python object for each.

    Raises:
        InvalidRequest: not JSON, or more inputs than any model has.
        PayloadTooLarge: past MAX_JSON_BYTES, MAX_NUMBERS, MAX_GENERAL_BYTES in anything but `data`, or MAX_WIDE_BYTES.
    """
    if len(text) > MAX_NUMBERS and (len(text) > MAX_JSON_BYTES or text.count(b",") >= MAX_NUMBERS):
        raise PayloadTooLarge(
            f"the JSON has more than {MAX_JSON_BYTES} bytes or {MAX_NUMBERS} elements; send more as binary tensors"
        )
    try:
        document = simdjson.Parser().parse(text)
    except (ValueError, RuntimeError) as error:  # the latter for nesting past the parser's limit
        if not str(error).startswith(OTHER_NUMBERS):
            raise InvalidRequest(f"the body is not valid JSON: {_reason(error)}") from error
        document = _parse_wide(text)
    if not isinstance(document, simdjson.Object):
        raise InvalidRequest("the body must be a JSON object")
    if len(text) <= SMALL_DOCUMENT:
        return cast("dict[str, Any]", document.as_dict())
    # Members are asked for by name: a walk over them would make Python objects of everything.
    plain = {key: _plain(document.get(key)) for key in ("id", "parameters", "outputs")}
    inputs = document.get("inputs")
    if isinstance(inputs, simdjson.Array):
        if len(inputs) > MAX_INPUTS:
            raise InvalidRequest(f"more than {MAX_INPUTS} inputs", field="inputs")
        plain["inputs"] = [_members(item) if isinstance(item, simdjson.Object) else None for item in inputs]
    return plain


def _parse_wide(text: bytes) -> Any:
    """The document with its integers of more than 64 bits as floats, as JavaScript writes those below 1e21.

    RFC 8259, section 6, has no largest number, and grants parsers the precision of a double.
    """
    if len(text) > MAX_WIDE_BYTES:
        raise PayloadTooLarge(
            f"JSON of more than {MAX_WIDE_BYTES} bytes has a malformed number or an integer of more than 64 bits; "
            "send it as binary tensors"
        )
    try:
        return simdjson.Parser().parse(orjson.dumps(orjson.loads(text)))
    except (orjson.JSONDecodeError, orjson.JSONEncodeError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from error


def _members(item: Any) -> dict[str, Any]:
    """The members of an input; its data stays in the parser's memory if it is a list."""
    plain = {key: _plain(item.get(key)) for key in ("name", "shape", "datatype", "parameters")}
    return {**plain, "data": item.get("data")}


def _plain(value: Any) -> Any:
    """Python objects, which take up to thirty times the bytes of the text."""
    if not isinstance(value, simdjson.Object | simdjson.Array):
        return value
    if len(value.mini) > MAX_GENERAL_BYTES:
        raise PayloadTooLarge(f"the JSON has more than {MAX_GENERAL_BYTES} bytes in something else than data")
    return value.as_dict() if isinstance(value, simdjson.Object) else value.as_list()


def _reason(error: Exception) -> str:
    """What simdjson says, without its name of the error and its remark that it cannot go on."""
    text = str(error).split(": ", 1)[-1]
    return text.split("  This is a fatal", 1)[0].strip()


def _decode_input(item: Any, blobs: _Blobs, model: Model) -> tuple[str, np.ndarray, int]:
    """Name and tensor of one input, and of how many lists its JSON data is made."""
    if not isinstance(item, dict):
        raise InvalidRequest("every input must be a JSON object", field="inputs")
    name = item.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidRequest("an input has no name", field="inputs")
    if name not in model.input_specs:
        raise unexpected_input(model, name)
    datatype = item.get("datatype")
    dtype = NUMPY_TYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise _unknown_datatype(name, datatype)
    shape = item.get("shape")
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise InvalidRequest(f"input {name!r} needs a shape of non-negative integers", field=name)
    if len(shape) > MAX_AXES:
        raise InvalidRequest(f"input {name!r} has {len(shape)} axes, no model has more than {MAX_AXES}", field=name)
    if 0 in shape and max(shape) > MAX_AXIS:
        raise InvalidRequest(f"input {name!r}: shape {shape} is out of bounds", field=name)
    size = _parameters(item, f"parameters of input {name!r}").get("binary_data_size")
    data = item.get("data")
    if (size is None) == (data is None):
        raise InvalidRequest(f"input {name!r} needs exactly one of data and binary_data_size", field=name)
    if data is None:
        if not _is_count(size):
            raise InvalidRequest(f"input {name!r}: binary_data_size must be a non-negative integer", field=name)
        return name, from_bytes(blobs.take(cast("int", size), name), name, str(datatype), dtype, shape), 0
    if isinstance(data, list):  # of a small document: back into the parser, so that numbers are read in one way
        try:
            data = simdjson.Parser().parse(orjson.dumps(data))
        except orjson.JSONEncodeError as error:
            raise InvalidRequest(f"input {name!r}: data cannot be read", field=name) from error
    if not isinstance(data, simdjson.Array):
        raise InvalidRequest(f"input {name!r}: data must be a list", field=name)
    tensor, lists = _from_json(data, name, str(datatype), dtype, shape)
    return name, tensor, lists


def _unknown_datatype(name: str, datatype: object) -> KronserveError:
    if datatype == "BF16":
        return NotSupported(f"input {name!r}: BF16 is not supported", field=name)
    if not isinstance(datatype, str):
        return InvalidRequest(f"input {name!r} needs a datatype, as a string", field=name)
    return InvalidRequest(f"input {name!r} has the unknown or unsupported datatype {datatype[:40]!r}", field=name)


def _from_json(
    data: Any, name: str, datatype: str, dtype: np.dtype[Any], shape: Sequence[int]
) -> tuple[np.ndarray, int]:
    """The tensor, and of how many lists `data` is made."""
    if datatype in BINARY_ONLY:
        raise InvalidRequest(f"input {name!r} is {datatype}, which only binary data can carry", field=name)
    nested, lists = len(data) > 0 and isinstance(data[0], simdjson.Array), 1
    if nested:
        if not _nested_as(data, shape):
            raise InvalidRequest(f"input {name!r}: data is not nested as shape {list(shape)} says", field=name)
        lists = sum(accumulate(shape[:-1], mul, initial=1))
    elif len(data) != prod(shape):  # before numbers that nobody will use are copied
        raise InvalidRequest(f"input {name!r}: {len(data)} values do not fill shape {list(shape)}", field=name)
    if dtype.kind in _BUFFER_TYPES:
        code, wide = _BUFFER_TYPES[dtype.kind]
        try:
            values = np.frombuffer(data.as_buffer(of_type=code), wide)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InvalidRequest(f"input {name!r}: data is not all {datatype}", field=name) from error
        with np.errstate(over="ignore"):
            narrow = values.astype(dtype)
        if dtype.kind != "f" and not np.array_equal(narrow, values):
            raise InvalidRequest(f"input {name!r}: a value is outside the range of {datatype}", field=name)
        return filled(narrow, name, dtype, shape), lists
    if prod(shape) > MAX_STRINGS and datatype == "BYTES":
        raise PayloadTooLarge(f"input {name!r}: more than {MAX_STRINGS} strings; send them as binary tensors")
    flat = data.as_list()
    for _ in shape[1:] if nested else ():
        flat = list(chain.from_iterable(flat))
    wanted = bool if datatype == "BOOL" else str
    if not all(isinstance(value, wanted) for value in flat):
        raise InvalidRequest(f"input {name!r}: data is not all {datatype}", field=name)
    return filled(flat, name, dtype, shape), lists


def _nested_as(data: Any, shape: Sequence[int]) -> bool:
    """Whether a nested list is rectangular and of this shape."""
    if len(data) != (shape[0] if shape else -1):
        return False
    if len(shape) == 1:
        return True
    return all(isinstance(item, simdjson.Array) and _nested_as(item, shape[1:]) for item in data)


def _refuse_hidden_lists(name: str, data: Any, shape: Sequence[int]) -> None:
    """InvalidRequest if a list stands where an element should."""
    lists = (list, simdjson.Array)
    level = iter([data])
    for _ in shape if len(data) and isinstance(data[0], lists) else shape[:1] or (0,):
        level = chain.from_iterable(level)
    if any(isinstance(value, lists) for value in level):
        raise InvalidRequest(f"input {name!r}: data is neither flat nor nested as its shape", field=name)


def _decode_raw(body: memoryview, model: Model) -> dict[str, np.ndarray]:
    """Header length 0: the whole body is the only input's tensor; one dynamic axis may follow from the size."""
    if len(model.inputs) != 1:
        raise InvalidRequest(f"a raw body needs a model with one input; {model.name} has {len(model.inputs)}")
    spec = model.inputs[0]
    if spec.datatype == "BYTES":
        raise NotSupported("a raw body cannot carry BYTES", field=spec.name)
    shape = list(spec.shape)
    if model.batched:
        shape[0] = 1
    dtype = NUMPY_TYPES[spec.datatype]
    if shape.count(-1) > 1:
        raise InvalidRequest(
            f"the shape of a raw body cannot be told: {spec.name} is {list(spec.shape)}", field=spec.name
        )
    known = prod(size for size in shape if size >= 0) * dtype.itemsize
    if -1 in shape and known and len(body) and len(body) % known == 0:
        shape[shape.index(-1)] = len(body) // known
    if -1 in shape or len(body) != prod(shape) * dtype.itemsize:
        raise InvalidRequest(
            f"{len(body)} bytes do not hold {spec.datatype} of shape {list(spec.shape)}", field=spec.name
        )
    return {spec.name: from_bytes(body, spec.name, spec.datatype, dtype, shape)}


def _decode_outputs(outputs: Any, binary_default: bool, model: Model) -> Iterator[OutputRequest]:
    if outputs is None:
        return
    if not isinstance(outputs, list):
        raise InvalidRequest("outputs must be a list", field="outputs")
    seen: set[str] = set()
    for item in outputs:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise InvalidRequest("every requested output needs a name", field="outputs")
        if name not in model.output_names:
            raise unknown_output(model, name)
        if name in seen:
            raise InvalidRequest(f"output {name!r} is requested twice", field=name)
        seen.add(name)
        parameters = _parameters(item, f"parameters of output {name!r}")
        classes = parameters.get("classification", 0)
        if not _is_count(classes):
            raise InvalidRequest(f"classification of output {name!r} must be a number of classes", field=name)
        yield OutputRequest(name, _flag(parameters, "binary_data", default=binary_default), classes)


def _parameters(item: dict[str, Any], name: str = "parameters") -> dict[str, Any]:
    value = item.get("parameters")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{name} must be a JSON object", field="parameters")
    return value


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{name} must be true or false", field=name)
    return value


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0  # a bool is none


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

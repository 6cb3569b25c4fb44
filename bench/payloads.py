"""The one request of each model in every form that a server here understands, and how its answer is read.

All forms carry the same float32 tensor. JSON holds the shortest decimal form of each value, flat, as V2 clients send.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnxruntime as ort
import orjson

from bench.bundles import MODELS, WORK
from bench.load import Target

JSON_LENGTH = "Inference-Header-Content-Length"
OCTETS = "application/octet-stream"

Decode = Callable[[Mapping[str, str], bytes], np.ndarray]
"""Response headers (any case) and body -> the model's output, flat."""


@dataclass(frozen=True)
class Form:
    """One way to ask for one model: path, headers, body, and the reading of the answer.

    `expect` turns bare ONNX Runtime's output into what this form answers, where that is something else.
    """

    path: str
    headers: Mapping[str, str]
    body: bytes
    decode: Decode
    expect: Callable[[np.ndarray], np.ndarray] = np.ravel

    def target(self, port: int) -> Target:
        """The form as the load generators take it; the body goes into a file."""
        name = f"{self.path.strip('/').replace('/', '-')}-{len(self.body)}.bin"
        file = WORK / "payloads" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.is_file() or file.read_bytes() != self.body:
            file.write_bytes(self.body)
        return Target(f"http://127.0.0.1:{port}{self.path}", self.headers, file)


@cache
def reference(model: str) -> tuple[str, str, np.ndarray]:
    """Name of the input, name of the output, and what bare ONNX Runtime answers to the request."""
    session = ort.InferenceSession(str(MODELS[model].graph), providers=["CPUExecutionProvider"])
    entry, exit_ = session.get_inputs()[0].name, session.get_outputs()[0].name
    return entry, exit_, session.run([exit_], {entry: MODELS[model].tensor()})[0]


def v2_json(model: str, path: str | None = None) -> Form:
    """The Open Inference Protocol as JSON."""
    tensor, name = MODELS[model].tensor(), reference(model)[0]
    entry = {"name": name, "shape": tensor.shape, "datatype": "FP32", "data": tensor.ravel()}
    body = orjson.dumps({"inputs": [entry]}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Form(path or f"/v2/models/{model}/infer", {"Content-Type": "application/json"}, body, _read_v2_json)


def v2_binary(model: str, rows: int = 1) -> Form:
    """The Open Inference Protocol with its binary tensor data extension, both ways; `rows` times the same row."""
    tensor, name = np.concatenate([MODELS[model].tensor()] * rows), reference(model)[0]
    parameters = {"binary_data_size": tensor.nbytes}
    entry = {"name": name, "shape": tensor.shape, "datatype": "FP32", "parameters": parameters}
    header = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Content-Type": OCTETS, JSON_LENGTH: str(len(header))}
    return Form(f"/v2/models/{model}/infer", headers, header + tensor.tobytes(), _read_v2_binary)


def raw(model: str, path: str) -> Form:
    """The tensor's bytes, nothing else, both ways."""
    return Form(path, {"Content-Type": OCTETS}, MODELS[model].tensor().tobytes(), _read_raw)


def npy(model: str) -> Form:
    """Kronserve's own endpoints with a .npy file: a forecast comes back as .npy, a classification as JSON."""
    stream = io.BytesIO()
    tensor = MODELS[model].tensor()
    np.save(stream, tensor[0] if model == "forecaster" else tensor[0, 0])
    headers = {"Content-Type": "application/x-npy"}
    if model == "forecaster":
        headers["Accept"] = "application/x-npy"
        return Form(f"/v1/models/{model}/forecast", headers, stream.getvalue(), _read_npy)
    return Form(f"/v1/models/{model}/classify", headers, stream.getvalue(), _read_probabilities, _softmax)


def noop(model: str, form: Form, *, binary: bool) -> Form:
    """The same bytes in and as many out as the answer has, from the server that does nothing."""
    output = reference(model)[2]
    size = output.nbytes if binary else len(orjson.dumps(output.ravel(), option=orjson.OPT_SERIALIZE_NUMPY))
    return Form(f"/{size}", form.headers, form.body, lambda _, body: np.frombuffer(body, np.uint8), _zeros(size))


def _zeros(size: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda _: np.zeros(size, np.uint8)


def _read_v2_json(_: Mapping[str, str], body: bytes) -> np.ndarray:
    return np.array(json.loads(body)["outputs"][0]["data"], np.float32).ravel()


def _read_v2_binary(headers: Mapping[str, str], body: bytes) -> np.ndarray:
    return np.frombuffer(body[int(headers[JSON_LENGTH]) :], np.float32)


def _read_raw(_: Mapping[str, str], body: bytes) -> np.ndarray:
    return np.frombuffer(body, np.float32)


def _read_npy(_: Mapping[str, str], body: bytes) -> np.ndarray:
    values: np.ndarray = np.load(io.BytesIO(body))
    return values.ravel()


def _read_probabilities(_: Mapping[str, str], body: bytes) -> np.ndarray:
    answer = json.loads(body)
    return np.array(list(answer["predictions"][0]["probabilities"].values()))


def _softmax(output: np.ndarray) -> np.ndarray:
    powers = np.exp(output - output.max())
    return np.ravel(powers / powers.sum())

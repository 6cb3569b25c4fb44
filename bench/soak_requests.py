"""What a soak sends: good requests for several models in several forms, bad ones, and those whose client leaves."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import orjson

LOOKBACK, SEED = 96, 20240717


@dataclass(frozen=True)
class Kind:
    """A kind of request. `share`: of all of them; `status`: its only right answer, besides 429.

    leaves: "" stays for its answer, "waiting" hangs up when the request is sent, "sending" in the middle of it.
    """

    name: str
    share: float
    path: str
    headers: Mapping[str, str]
    body: bytes
    status: int = 200
    leaves: str = ""

    def bytes(self) -> bytes:
        """The HTTP request, or the part of it that is sent."""
        lines = [f"POST {self.path} HTTP/1.1", "Host: bench", f"Content-Length: {len(self.body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        body = self.body[: len(self.body) // 2] if self.leaves == "sending" else self.body
        return "\r\n".join([*lines, "", ""]).encode() + body


def _binary(name: str, tensor: np.ndarray, short: int = 0) -> tuple[dict[str, str], bytes]:
    item = {"name": name, "shape": tensor.shape, "datatype": "FP32", "parameters": {"binary_data_size": tensor.nbytes}}
    header = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    content = tensor.astype("<f4").tobytes()
    return {"Inference-Header-Content-Length": str(len(header))}, header + content[: len(content) - short]


def _json(name: str, tensor: np.ndarray) -> tuple[dict[str, str], bytes]:
    item = {"name": name, "shape": tensor.shape, "datatype": "FP32", "data": tensor.ravel()}
    return {"Content-Type": "application/json"}, orjson.dumps({"inputs": [item]}, option=orjson.OPT_SERIALIZE_NUMPY)


def _zipped(headers: dict[str, str], body: bytes) -> tuple[dict[str, str], bytes]:
    return headers | {"Content-Encoding": "gzip"}, gzip.compress(body, mtime=0)


def _csv(series: np.ndarray) -> tuple[dict[str, str], bytes]:
    stamps = np.datetime64("2024-01-01T00") + np.arange(series.shape[1])
    lines = ["date," + ",".join(f"v{n}" for n in range(len(series)))]
    lines += [
        f"{stamp}:00," + ",".join(f"{value:.4f}" for value in row) for stamp, row in zip(stamps, series.T, strict=True)
    ]
    return {"Content-Type": "text/csv"}, ("\n".join(lines) + "\n").encode()


def _npy(array: np.ndarray) -> tuple[dict[str, str], bytes]:
    stream = io.BytesIO()
    np.save(stream, array)
    return {"Content-Type": "application/x-npy"}, stream.getvalue()


def _nifti(volume: np.ndarray) -> tuple[dict[str, str], bytes]:
    image = nib.Nifti1Image(volume, np.eye(4))
    return {"Content-Type": "application/octet-stream"}, gzip.compress(image.to_bytes(), mtime=0)


def kinds() -> list[Kind]:
    """All kinds; their shares add up to 1."""
    rng = np.random.default_rng(SEED)
    series = rng.normal(size=(4, 7, LOOKBACK)).cumsum(2).astype(np.float32)
    wide = rng.normal(size=(1, 21, LOOKBACK)).astype(np.float32)
    mask = np.zeros((48, 48, 48), np.uint8)
    mask[12:36, 16:32, 8:40] = 1
    volume = rng.random((1, 1, 32, 32, 32)).astype(np.float32)
    gap = series[:1].copy()
    gap[0, 3, 50] = np.nan
    etth1, kao = "/v2/models/hot-etth1/infer", "/v2/models/kao-etth1/infer"
    weather, adrenal = "/v2/models/hot-weather/infer", "/v2/models/hot-adrenal/infer"
    forecast, classify = "/v1/models/hot-etth1/forecast?horizon=24", "/v1/models/hot-adrenal/classify"
    return [
        Kind("binary", 0.30, etth1, *_binary("series", series[:1])),
        Kind("binary, 4 rows", 0.05, etth1, *_binary("series", series)),
        Kind("json", 0.12, kao, *_json("series", series[:1])),
        Kind("json, gzip, 21 variates", 0.04, weather, *_zipped(*_json("series", wide))),
        Kind("binary volume", 0.10, adrenal, *_binary("volume", volume)),
        Kind("csv", 0.12, forecast, *_csv(series[0])),
        Kind("csv, intervals", 0.03, forecast + "&level=80", *_csv(series[1])),
        Kind("npy series", 0.04, forecast, *_npy(series[2])),
        Kind("nifti", 0.08, classify, *_nifti(mask)),
        Kind("binary, short", 0.02, etth1, *_binary("series", series[:1], short=4), status=400),
        Kind("binary, NaN", 0.01, etth1, *_binary("series", gap), status=400),
        Kind(
            "json, cut",
            0.01,
            kao,
            {"Content-Type": "application/json"},
            b'{"inputs": [{"name": "series", "da',
            status=400,
        ),
        Kind("unknown model", 0.01, "/v2/models/nobody/infer", *_json("series", series[:1]), status=404),
        Kind(
            "csv, no numbers", 0.01, forecast, {"Content-Type": "text/csv"}, b"date,a\n2024-01-01,x\n" * 120, status=422
        ),
        Kind("nifti, cut", 0.01, classify, {}, _nifti(mask)[1][:300], status=400),
        Kind("hangs up, waiting", 0.03, etth1, *_binary("series", series), leaves="waiting"),
        Kind("hangs up, volume", 0.01, classify, *_nifti(mask), leaves="waiting"),
        Kind("hangs up, sending", 0.01, etth1, *_binary("series", series), leaves="sending"),
    ]

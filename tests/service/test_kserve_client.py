"""KServe's own clients against a real server, in an interpreter of their own: they ask for an older pandas."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests.service.process import Server

SCRIPT = Path(__file__).with_name("kserve_calls.py")


@pytest.mark.skipif(
    "KRONSERVE_KSERVE_PYTHON" not in os.environ,
    reason="KRONSERVE_KSERVE_PYTHON is not set: it names the Python of an environment with `pip install kserve`",
)
def test_rest_and_grpc_clients(server: Server, repository: Path, tmp_path: Path):
    series = np.random.default_rng(0).normal(size=(2, 5, 96)).astype(np.float32)
    np.save(tmp_path / "series.npy", series)
    session = ort.InferenceSession(repository / "hot-etth1/1/model.onnx", providers=["CPUExecutionProvider"])
    expected = session.run(["forecast"], {"series": series})[0]
    python, ports = os.environ["KRONSERVE_KSERVE_PYTHON"], [str(server.port), str(server.grpc_port)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, str(SCRIPT), *ports, "hot-etth1", str(tmp_path / "series.npy")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert result.returncode == 0, result.stderr
    seen = json.loads(result.stdout.splitlines()[-1])
    assert seen.pop("grpc ready") == seen.pop("rest ready") == [True, True, True]
    usage = {"prompt_tokens": 5 * 96, "completion_tokens": 5 * 8, "total_tokens": 5 * 104}
    for answer, start in zip(seen.pop("time series"), ("2020-01-05T00:00:00", ""), strict=True):
        assert answer == {"start": start, "shape": [5, 8], "quantiles": ["0.1", "0.9"], "usage": usage}
    assert set(seen) == {f"{protocol} raw={raw}" for protocol in ("grpc", "rest") for raw in (True, False)}
    for answer in seen.values():
        assert (answer["id"], answer["name"], answer["shape"]) == ("request 7", "forecast", [2, 5, 720])
        np.testing.assert_allclose(np.reshape(answer["values"], expected.shape), expected, rtol=1e-4, atol=1e-5)

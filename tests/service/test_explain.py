"""Attention matrices over a real port: given when named, by REST and gRPC, and absent otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from tests.explained import EXPLAINED, reference, sample, write_explained
from tests.service.process import Server, serving

KINDS = list(EXPLAINED)
INPUTS = {"forecaster": "series", "classifier": "volume"}
ORDINARY = {"forecaster": "forecast", "classifier": "logits"}


@pytest.fixture(scope="module")
def explaining(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a forecaster and a classifier that can explain themselves."""
    root = tmp_path_factory.mktemp("explained")
    for kind in KINDS:
        write_explained(root, kind)
    return root / "repository"


@pytest.fixture(scope="module")
def server(explaining: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(explaining, tmp_path_factory.mktemp("server") / "log", "--max-batch", "4") as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def client(request: pytest.FixtureRequest, server: Server) -> Iterator[Client]:
    if request.param == "http":
        speaker = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=4)
        yield Client(speaker, tritonclient.http)
    else:
        speaker = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
        yield Client(speaker, tritonclient.grpc)
    speaker.close()


class Client:
    """One way to infer, whichever protocol carries it."""

    def __init__(self, speaker, module) -> None:
        self.speaker, self.module = speaker, module

    def infer(self, kind: str, x: np.ndarray, outputs: list[str] | None) -> dict[str, np.ndarray]:
        item = self.module.InferInput(INPUTS[kind], list(x.shape), "FP32")
        item.set_data_from_numpy(x)
        wanted = None if outputs is None else [self.module.InferRequestedOutput(name) for name in outputs]
        result = self.speaker.infer(kind, [item], outputs=wanted)
        response = result.get_response()
        found = response["outputs"] if isinstance(response, dict) else response.outputs
        names = [output["name"] if isinstance(output, dict) else output.name for output in found]
        return {name: result.as_numpy(name) for name in names}


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_come_when_named(client: Client, explaining: Path, kind: str):
    x = sample(kind, 3)
    expected = reference(explaining / kind / "1", kind, x)
    ordinary = client.infer(kind, x, None)
    assert list(ordinary) == [ORDINARY[kind]]
    everything = client.infer(kind, x, [*expected, ORDINARY[kind]])
    assert list(everything) == [*expected, ORDINARY[kind]]
    for name, matrices in expected.items():
        np.testing.assert_allclose(everything[name], matrices, rtol=0, atol=2e-6)
    np.testing.assert_allclose(everything[ORDINARY[kind]], ordinary[ORDINARY[kind]], rtol=1e-5, atol=1e-5)
    (name, matrices) = list(expected.items())[-1]
    alone = client.infer(kind, x, [name])
    assert list(alone) == [name]
    np.testing.assert_allclose(alone[name], matrices, rtol=0, atol=2e-6)


def test_each_request_of_a_batch_gets_its_own_rows(server: Server, explaining: Path):
    """Requests of 1 to 6 rows, past the batch limit too, with and without matrices, all at once."""
    client = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
    speaking = Client(client, tritonclient.grpc)

    def ask(number: int) -> None:
        x = sample("forecaster", 1 + number % 6)
        names = [None, ["attention.0.0"], ["attention.1.1", "forecast"]][number % 3]
        found = speaking.infer("forecaster", x, names)
        expected = reference(explaining / "forecaster" / "1", "forecaster", x)
        assert list(found) == (names or ["forecast"])
        for name in found.keys() & expected.keys():
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=2e-6)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(60)))
    client.close()


def test_metadata_tells_which_outputs_are_on_request(server: Server):
    metadata = httpx.get(f"{server.url}/v2/models/classifier").json()
    names = [f"attention.{block}.{mode}" for block in (0, 1) for mode in (0, 1, 2)]
    assert [output["name"] for output in metadata["outputs"]] == ["logits", *names]
    assert metadata["outputs"][1] == {"name": "attention.0.0", "datatype": "FP32", "shape": [-1, 2, 2, 2]}
    assert metadata["parameters"]["outputs_on_request"] == names


def test_the_tasks_answer_as_ever(server: Server):
    x = sample("forecaster", 1)[0]
    answer = httpx.post(f"{server.url}/v1/models/forecaster/forecast", json={"target": x[0].tolist()})
    assert answer.status_code == 200, answer.text
    assert not any("attention" in key for key in answer.json())
    unknown = httpx.post(
        f"{server.url}/v2/models/forecaster/infer",
        json={
            "inputs": [{"name": "series", "shape": [1, *x.shape], "datatype": "FP32", "data": x.ravel().tolist()}],
            "outputs": [{"name": "attention.2.0"}],
        },
    )
    assert unknown.status_code == 400
    assert "attention.1.1" in unknown.json()["error"]

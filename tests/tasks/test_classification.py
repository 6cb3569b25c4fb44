"""The classification task against torch's softmax."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InferenceFailed
from app.manifest import Reorient, Resize
from app.readers.volume import Volume
from app.tasks.classification import finish, prepare, probabilities
from tests.tasks.volumes import spec

TURNED = np.array([[0, 0, 2.0, 0], [-1, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]])


def voxels(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def test_prepare_keeps_what_the_answer_repeats() -> None:
    volume = Volume(voxels(4, 6, 8), "nifti", (1.0, 2.0, 3.0), TURNED)
    prepared = prepare(volume, spec(Reorient(), Resize(shape=(2, 2, 2))), input_name="x")
    assert prepared.tensors["x"].shape == (1, 1, 2, 2, 2)
    assert prepared.tensors["x"].dtype == np.float32
    assert prepared.input == {"format": "nifti", "shape": [4, 6, 8], "spacing": [1.0, 2.0, 3.0]}
    assert prepared.preprocessing[1] == {"op": "resize", "method": "area", "from": [8, 4, 6], "to": [2, 2, 2]}


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=5))
def test_probabilities_equal_torch(logits: list[float]) -> None:
    array = np.array(logits, np.float32)
    truth = torch.from_numpy(array).double().softmax(-1).numpy()
    np.testing.assert_allclose(probabilities(array), truth, rtol=1e-12, atol=0)
    assert probabilities(array).sum() == pytest.approx(1, abs=1e-12)
    warm = torch.from_numpy(array).double().div(2.5).softmax(-1).numpy()
    np.testing.assert_allclose(probabilities(array, 2.5), warm, rtol=1e-12, atol=0)


def test_finish() -> None:
    prepared = prepare(Volume(voxels(2, 2, 2), "npy"), spec())
    logits = np.log(np.array([[0.2, 0.7, 0.1]], np.float32))
    answer = finish(prepared, {"logits": logits})
    assert (answer.index, answer.label) == (1, "other")
    assert answer.probability == pytest.approx(0.7, abs=1e-6)
    assert answer.probabilities == pytest.approx({"normal": 0.2, "other": 0.7, "third": 0.1}, abs=1e-6)
    assert answer.input == {"format": "npy", "shape": [2, 2, 2], "spacing": None}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_graph_that_answers_nonsense_has_failed(value: float) -> None:
    prepared = prepare(Volume(voxels(2, 2, 2), "npy"), spec())
    with pytest.raises(InferenceFailed):
        finish(prepared, {"logits": np.array([[0, value, 0]], np.float32)})


def test_probabilities_are_those_of_the_manifests_temperature() -> None:
    logits = np.array([[2.0, 0.0, -1.0]], np.float32)
    prepared = prepare(Volume(voxels(2, 2, 2), "npy"), spec(temperature=2.0))
    truth = torch.from_numpy(logits).double().div(2).softmax(-1)[0].tolist()
    assert list(finish(prepared, {"logits": logits}).probabilities.values()) == pytest.approx(truth)

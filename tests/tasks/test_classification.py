"""The classification task against torch's pooling, nibabel's canonical order and scipy's softmax."""

from __future__ import annotations

from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InferenceFailed, UnusableInput
from app.manifest import Binarise, Reorient, Resize, VolumeClassification
from app.readers.volumes import Volume
from app.tasks.classification import MAX_AXIS, finish, prepare, preprocess, probabilities, resize_area


def voxels(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def spec(*steps: Any) -> VolumeClassification:
    return VolumeClassification(labels=("normal", "other", "third"), preprocessing=steps)


@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 3, 4), (4, 1, 2)])
def test_integer_factors_are_average_pooling(factors: tuple[int, int, int]) -> None:
    target = (4, 5, 3)
    source = voxels(*(size * factor for size, factor in zip(target, factors, strict=True)))
    pooled = torch.nn.functional.avg_pool3d(torch.from_numpy(source).double()[None], factors)[0].numpy()
    np.testing.assert_allclose(resize_area(source, Resize(shape=target)), pooled, rtol=0, atol=1e-15)


def test_masks_at_integer_factors_are_exactly_average_pooling_in_float32() -> None:
    mask = voxels(64, 64, 64) > 0.5
    resized, _ = preprocess(mask, spec(Resize(shape=(32, 32, 32))))
    pooled = torch.nn.functional.avg_pool3d(torch.from_numpy(mask).float()[None], 2).numpy()
    np.testing.assert_array_equal(resized, pooled, strict=True)


@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 9)] * 3))
def test_any_factor_is_the_mean_over_the_common_refinement(
    source: tuple[int, int, int], target: tuple[int, int, int]
) -> None:
    array = voxels(*source).astype(np.float64)
    refined = array
    for axis, size in enumerate(target):
        refined = refined.repeat(size, axis=axis)  # (source * target) cells an axis: both grids' edges fall on them
    truth = refined.reshape(target[0], source[0], target[1], source[1], target[2], source[2]).mean(axis=(1, 3, 5))
    resized = resize_area(array, Resize(shape=target))
    np.testing.assert_allclose(resized, truth, rtol=0, atol=1e-13)
    assert resized.mean() == pytest.approx(array.mean(), abs=1e-13)


def test_a_constant_stays_exactly_constant() -> None:
    assert (resize_area(np.full((7, 5, 11), 3, np.uint8), Resize(shape=(4, 4, 4))) == 3).all()


def test_an_axis_that_no_scanner_has() -> None:
    with pytest.raises(UnusableInput, match="axis"):
        resize_area(np.zeros((1, 1, MAX_AXIS + 1), np.uint8), Resize(shape=(2, 2, 2)))


AFFINES = [
    np.diag([1.0, 1, 1, 1]),
    np.diag([-1.0, -2, 3, 1]),
    np.array([[0, 0, 2.0, 0], [-1, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]]),
    np.array([[0.9, 0.1, 0, 5], [0.1, -0.2, -0.9, 0], [0, 1.9, -0.1, 0], [0, 0, 0, 1]]),
]


@pytest.mark.parametrize("affine", AFFINES)
def test_reorientation_is_nibabels_closest_canonical(affine: npt.NDArray[np.float64]) -> None:
    array = voxels(3, 4, 5)
    turned, applied = preprocess(array, spec(Reorient()), affine)
    canonical = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    np.testing.assert_array_equal(turned[0], canonical.get_fdata(dtype=np.float32))
    assert applied == [{"op": "reorient", "from": "".join(nib.aff2axcodes(affine)), "to": "RAS"}]


def test_without_an_affine_nothing_is_turned_and_the_answer_says_so() -> None:
    array = voxels(3, 4, 5)
    same, applied = preprocess(array, spec(Reorient()))
    np.testing.assert_array_equal(same[0], array)
    assert applied[0]["op"] == "reorient"
    assert applied[0]["applied"] is False


def test_binarise() -> None:
    array = np.array([[[-1, 0, 0.5, 0.51, 2]]])
    assert preprocess(array, spec(Binarise()))[0].tolist() == [[[[0, 0, 1, 1, 1]]]]
    result, applied = preprocess(array, spec(Binarise(threshold=0.5)))
    assert result.tolist() == [[[[0, 0, 0, 1, 1]]]]
    assert applied == [{"op": "binarise", "threshold": 0.5}]


def test_steps_run_in_the_manifests_order() -> None:
    array = np.zeros((2, 2, 2))
    array[0, 0, 0] = 1
    first, _ = preprocess(array, spec(Binarise(threshold=0.5), Resize(shape=(1, 1, 1))))
    last, _ = preprocess(array, spec(Resize(shape=(1, 1, 1)), Binarise(threshold=0.5)))
    assert (first.item(), last.item()) == (0.125, 0.0)


def test_prepare_keeps_what_the_answer_repeats() -> None:
    volume = Volume(voxels(4, 6, 8), "nifti", (1.0, 2.0, 3.0), AFFINES[2])
    prepared = prepare(volume, spec(Reorient(), Resize(shape=(2, 2, 2))), input_name="x")
    assert prepared.tensors["x"].shape == (1, 1, 2, 2, 2)
    assert prepared.tensors["x"].dtype == np.float32
    assert prepared.input == {"format": "nifti", "shape": [4, 6, 8], "spacing": [1.0, 2.0, 3.0]}
    assert prepared.preprocessing[1] == {"op": "resize", "method": "area", "from": [8, 4, 6], "to": [2, 2, 2]}


def test_values_past_float32() -> None:
    with pytest.raises(UnusableInput, match="float32"):
        preprocess(np.full((1, 1, 1), 1e39), spec())


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=5))
def test_probabilities_equal_torch(logits: list[float]) -> None:
    array = np.array(logits, np.float32)
    truth = torch.from_numpy(array).double().softmax(-1).numpy()
    np.testing.assert_allclose(probabilities(array), truth, rtol=1e-12, atol=0)
    assert probabilities(array).sum() == pytest.approx(1, abs=1e-12)


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

"""The manifest's steps against SimpleITK, torch's pooling and interpolation, and nibabel's canonical order."""

from __future__ import annotations

import tracemalloc
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app.errors import UnusableInput
from app.manifest import Binarise, Clip, Crop, Normalise, Pad, Reorient, Resample, Resize, VolumeClassification
from app.readers.volume import Volume
from app.tasks.preprocessing import MAX_AXIS, preprocess, resize_area
from tests.tasks.volumes import run, spec, volume


def voxels(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 3, 4), (4, 1, 2)])
def test_integer_factors_are_average_pooling(factors: tuple[int, int, int]) -> None:
    target = (4, 5, 3)
    source = voxels(*(size * factor for size, factor in zip(target, factors, strict=True)))
    pooled = torch.nn.functional.avg_pool3d(torch.from_numpy(source).double()[None], factors)[0].numpy()
    np.testing.assert_allclose(resize_area(source, Resize(shape=target)), pooled, rtol=0, atol=1e-15)


def test_masks_at_integer_factors_are_exactly_average_pooling_in_float32() -> None:
    mask = voxels(64, 64, 64) > 0.5
    resized, _ = preprocess(volume(mask), spec(Resize(shape=(32, 32, 32))))
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
    turned, applied = preprocess(volume(array, affine), spec(Reorient()))
    canonical = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    np.testing.assert_array_equal(turned[0], canonical.get_fdata(dtype=np.float32))
    assert applied == [{"op": "reorient", "from": "".join(nib.aff2axcodes(affine)), "to": "RAS"}]


def test_without_an_affine_nothing_is_turned_and_the_answer_says_so() -> None:
    array = voxels(3, 4, 5)
    same, applied = preprocess(volume(array), spec(Reorient()))
    np.testing.assert_array_equal(same[0], array)
    assert applied[0]["op"] == "reorient"
    assert applied[0]["applied"] is False


def test_binarise() -> None:
    array = np.array([[[-1, 0], [0.5, 0.51]], [[2, 0], [0, 0]]])
    assert run(array, Binarise()).tolist() == [[[0, 0], [1, 1]], [[1, 0], [0, 0]]]
    result, applied = preprocess(volume(array), spec(Binarise(threshold=0.5)))
    assert result.tolist() == [[[[0, 0], [0, 1]], [[1, 0], [0, 0]]]]
    assert applied == [{"op": "binarise", "threshold": 0.5}]
    with pytest.raises(UnusableInput, match="more, as intensities do"):
        run(array, Binarise(intensities="refuse"))
    assert run(np.where(array > 0, 255, 0), Binarise(intensities="refuse")).sum() == 3
    with pytest.raises(UnusableInput, match="the mask is empty"):
        run(array, Binarise(threshold=3))


def test_steps_run_in_the_manifests_order() -> None:
    array = np.zeros((2, 2, 2))
    array[0, 0, 0] = 1
    assert run(array, Binarise(threshold=0.5), Resize(shape=(1, 1, 1))).item() == 0.125
    with pytest.raises(UnusableInput, match="empty"):
        run(array, Resize(shape=(1, 1, 1)), Binarise(threshold=0.5))


@pytest.mark.parametrize("size", [1e200, 1e-200, 1e-310, np.inf])
def test_voxel_sizes_that_cannot_be_resampled(size: float) -> None:
    found = Volume(voxels(2, 2, 2), "nrrd", (size, 1.0, 1.0))
    with pytest.raises(UnusableInput, match="cannot be resampled"):
        preprocess(found, spec(Resample(spacing=(1.0, 1.0, 1.0))))


def image(array: npt.NDArray[Any], spacing: tuple[float, float, float]) -> Any:
    """The array as SimpleITK has it: axes i, j, k."""
    found = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    found.SetSpacing(spacing)
    return found


def resampled(array: npt.NDArray[Any], old: Any, new: Any, shape: Any, origin: Any, method: int) -> npt.NDArray[Any]:
    """By SimpleITK, its border drawn out: one voxel more on every side, of which the grid sees half."""
    padded = image(np.pad(array, 1, "edge"), old)
    padded.SetOrigin([-size for size in old])
    grid = sitk.Image([int(size) for size in shape], sitk.sitkFloat64)
    grid.SetSpacing([float(size) for size in new])
    grid.SetOrigin([float(place) for place in origin])
    return sitk.GetArrayFromImage(sitk.Resample(padded, grid, sitk.Transform(), method)).T


METHODS = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor}


@pytest.mark.parametrize("method", ["linear", "nearest"])
@pytest.mark.parametrize("new", [(1.0, 1.0, 1.0), (0.7, 2.3, 1.5), (5.0, 0.4, 3.1)])
def test_resampling_is_simpleitks(method: Any, new: tuple[float, float, float]) -> None:
    array, old = voxels(9, 7, 5).astype(np.float64), (1.0, 1.5, 2.0)
    result, applied = preprocess(volume(array, np.diag([*old, 1])), spec(Resample(spacing=new, method=method)))
    truth = resampled(array, old, new, result.shape[1:], (0, 0, 0), METHODS[method])
    np.testing.assert_allclose(result[0], truth, rtol=0, atol=1e-6)
    assert [abs(n * b - size * a) <= b for n, b, size, a in zip(result.shape[1:], new, array.shape, old, strict=True)]
    assert applied == [
        {"op": "resample", "method": method, "from": list(old), "to": list(new), "shape": list(result.shape[1:])}
    ]


@pytest.mark.parametrize("method", ["linear", "nearest"])
@pytest.mark.parametrize("shape", [(9, 7, 5), (4, 14, 5), (3, 3, 11)])
def test_resizing_is_simpleitks_and_torchs(method: Any, shape: tuple[int, int, int]) -> None:
    array = voxels(9, 7, 5).astype(np.float64)
    result = run(array, Resize(shape=shape, method=method))
    new = [source / target for source, target in zip(array.shape, shape, strict=True)]
    # A hair inside: at exact halves of nearest, ITK decides by the rounding of its coordinates.
    origin = [(size - 1) / 2 + (1e-9 if method == "nearest" else 0) for size in new]
    truth = resampled(array, (1.0, 1.0, 1.0), new, shape, origin, METHODS[method])
    np.testing.assert_allclose(result, truth, rtol=0, atol=1e-6)
    if method == "linear":
        found = torch.nn.functional.interpolate(torch.from_numpy(array)[None, None], shape, mode="trilinear")
        np.testing.assert_allclose(result, found[0, 0].numpy(), rtol=0, atol=1e-6)


def test_resampling_follows_the_axes_that_reorienting_turned() -> None:
    """Voxels of 2 x 1 x 3 mm along the file's axes are 1 x 3 x 2 mm once those are turned."""
    result, applied = preprocess(
        volume(voxels(8, 6, 4), AFFINES[2]), spec(Reorient(), Resample(spacing=(1.0, 1.0, 1.0)))
    )
    canonical = nib.as_closest_canonical(nib.Nifti1Image(voxels(8, 6, 4), AFFINES[2]))
    assert applied[1]["from"] == [float(size) for size in canonical.header.get_zooms()]
    assert result.shape[1:] == tuple(
        round(size * zoom) for size, zoom in zip(canonical.shape, canonical.header.get_zooms(), strict=True)
    )


def test_clipping() -> None:
    array = voxels(6, 5, 4).astype(np.float64)
    truth = sitk.GetArrayFromImage(sitk.Clamp(image(array, (1, 1, 1)), sitk.sitkFloat64, -0.5, 0.75)).T
    np.testing.assert_allclose(run(array, Clip(low=-0.5, high=0.75)), truth, rtol=0, atol=1e-7)
    low, high = np.quantile(array, [0.05, 0.9])
    result, applied = preprocess(volume(array), spec(Clip(low=5, high=90, of="percentiles")))
    np.testing.assert_allclose(result[0], np.clip(array, low, high), rtol=0, atol=1e-7)
    assert applied[0] == {"op": "clip", "of": "percentiles", "low": low, "high": high}


def test_normalising() -> None:
    array = voxels(6, 5, 4).astype(np.float64) * 20 + 3
    scaled = sitk.GetArrayFromImage(sitk.RescaleIntensity(image(array, (1, 1, 1)), 0, 1)).T
    np.testing.assert_allclose(run(array, Normalise(method="minmax")), scaled, rtol=0, atol=1e-6)
    # ITK divides by the sample's deviation, n - 1.
    standard = sitk.GetArrayFromImage(sitk.Normalize(image(array, (1, 1, 1)))).T * np.sqrt(120 / 119)
    np.testing.assert_allclose(run(array, Normalise()), standard, rtol=0, atol=1e-6)
    np.testing.assert_allclose(run(array, Normalise(mean=3, deviation=20)), (array - 3) / 20, rtol=0, atol=1e-6)
    mask = run(array, Binarise(threshold=4), Clip(low=1, high=99, of="percentiles"))
    assert (mask.min(), mask.max()) == (0, 1)
    with pytest.raises(UnusableInput, match="constant after"):
        run(array, Clip(low=1000, high=2000), Normalise())


@pytest.mark.parametrize("shape", [(4, 4, 4), (9, 3, 5), (12, 7, 8)])
def test_cropping_and_padding_are_simpleitks(shape: tuple[int, int, int]) -> None:
    array = voxels(8, 7, 5).astype(np.float64)
    over = [max(0, have - want) for have, want in zip(array.shape, shape, strict=True)]
    cut = sitk.Crop(image(array, (1, 1, 1)), [size // 2 for size in over], [size - size // 2 for size in over])
    np.testing.assert_allclose(run(array, Crop(shape=shape)), sitk.GetArrayFromImage(cut).T, rtol=0, atol=1e-7)
    less = [max(0, want - have) for have, want in zip(array.shape, shape, strict=True)]
    wide = sitk.ConstantPad(
        image(array, (1, 1, 1)), [size // 2 for size in less], [size - size // 2 for size in less], -9
    )
    np.testing.assert_allclose(
        run(array, Pad(shape=shape, value=-9)), sitk.GetArrayFromImage(wide).T, rtol=0, atol=1e-7
    )
    assert run(array, Crop(shape=shape), Pad(shape=shape)).shape == shape


@pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.int16, np.float16, np.int32])
@pytest.mark.parametrize("value", [0.1, -0.25, 3001.0, 1e5])
def test_padding_is_the_value_that_the_answer_names(kind: Any, value: float) -> None:
    array = np.arange(8).reshape(2, 2, 2).astype(kind)
    result, ((entry),) = preprocess(volume(array), spec(Pad(shape=(2, 2, 4), value=value)))
    assert entry["value"] == value
    assert (result[0, :, :, 0] == np.float32(value)).all()
    np.testing.assert_array_equal(result[0, :, :, 1:3], array)


def test_resampling_holds_no_more_than_it_makes() -> None:
    """A few bytes with huge voxels are refused where they would make many, and take 8 bytes of each where they may."""
    small = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    with pytest.raises(UnusableInput, match="more than 16777216 voxels"):
        run(small, Resample(spacing=(1, 1, 1)), affine=np.diag([129.0, 129, 129, 1]))
    tracemalloc.start()
    result = run(small, Resample(spacing=(1, 1, 1)), affine=np.diag([40.0, 40, 40, 1]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert result.shape == (80, 80, 80)
    assert peak < 10 * result.size


@pytest.mark.parametrize(
    ("found", "task", "message"),
    [
        (volume(voxels(4, 4, 1)), spec(), "single slice"),
        (volume(np.full((3, 3, 3), 7)), spec(), "constant"),
        (volume(voxels(4, 4, 4), modality="MR"), spec(modalities=("CT",)), "takes CT; the file is of another"),
        (volume(voxels(4, 4, 4)), spec(Resample(spacing=(1, 1, 1))), "does not say which it has"),
        (volume(voxels(4, 4, 4), np.eye(4) * 1e4), spec(Resample(spacing=(1, 1, 1))), "more than"),
        (volume(voxels(4, 4, 4)), spec(Pad(shape=(9999, 9999, 9999))), "more than"),
    ],
)
def test_inputs_that_cannot_be_what_the_model_expects(found: Volume, task: VolumeClassification, message: str) -> None:
    with pytest.raises(UnusableInput, match=message):
        preprocess(found, task)


@pytest.mark.parametrize(
    "step",
    [
        {"op": "resample", "spacing": [1, 0, 1]},
        {"op": "clip", "low": 1, "high": 1},
        {"op": "clip", "low": -1, "high": 50, "of": "percentiles"},
        {"op": "normalise", "mean": 1},
        {"op": "normalise", "method": "minmax", "mean": 1, "deviation": 1},
    ],
)
def test_steps_that_mean_nothing_are_no_manifest(step: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        VolumeClassification.model_validate({"labels": ["a", "b"], "preprocessing": [step]})


def test_values_past_float32() -> None:
    with pytest.raises(UnusableInput, match="float32"):
        preprocess(volume(voxels(2, 2, 2).astype(np.float64) * 1e39), spec())

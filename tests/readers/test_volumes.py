"""Volumes against nibabel and numpy, and files that lie."""

from __future__ import annotations

import contextlib
import gzip
import io
import struct
import tracemalloc
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequest, KronserveError, PayloadTooLarge, UnusableInput
from app.readers.volumes import read_json_volume, read_volume

LIMIT = 1 << 20
AFFINE = np.array([[0, -2.0, 0, 10], [1.5, 0, 0, -20], [0, 0, 3.0, 5], [0, 0, 0, 1]])


def voxels(dtype: str = "u1", shape: tuple[int, ...] = (5, 6, 7)) -> npt.NDArray[Any]:
    return np.random.default_rng(3).integers(0, 100, shape).astype(dtype)


def nifti(array: npt.NDArray[Any], kind: Any = nib.Nifti1Image) -> bytes:
    data: bytes = kind(array, AFFINE).to_bytes()
    return data


def patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
@pytest.mark.parametrize("packed", [False, True])
def test_nifti_equals_nibabel(kind: Any, dtype: str, packed: bool) -> None:
    data = nifti(voxels(dtype), kind)
    truth = kind.from_bytes(data)
    volume = read_volume(gzip.compress(data) if packed else data, LIMIT)
    np.testing.assert_array_equal(volume.data, truth.get_fdata())
    np.testing.assert_array_equal(volume.affine, truth.affine)
    assert volume.format == "nifti"
    assert volume.spacing == (1.5, 2.0, 3.0)


def test_big_endian_nifti() -> None:
    image = nib.Nifti1Image(voxels("i2"), AFFINE, nib.Nifti1Header(endianness=">"))
    assert image.to_bytes()[:4] == (348).to_bytes(4, "big")
    np.testing.assert_array_equal(read_volume(image.to_bytes(), LIMIT).data, voxels())


@pytest.mark.parametrize(("slope", "intercept"), [(2.5, -1024.0), (1.0, 3.0), (1.0, 0.0), (0.0, 7.0), (np.nan, 0.0)])
def test_slope_and_intercept(slope: float, intercept: float) -> None:
    image = nib.Nifti1Image(voxels("i2"), AFFINE)
    data = image.to_bytes()
    data = patched(data, 112, np.float32([slope, intercept]).tobytes())
    np.testing.assert_array_equal(read_volume(data, LIMIT).data, nib.Nifti1Image.from_bytes(data).get_fdata())


def test_a_file_that_does_not_know_its_orientation_has_no_affine() -> None:
    data = patched(nifti(voxels()), 252, bytes(4))  # qform_code and sform_code
    volume = read_volume(data, LIMIT)
    assert volume.affine is None
    assert volume.spacing == (1.5, 2.0, 3.0)


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(compressed: bool = True, **arrays: Any) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(order: Any) -> None:
    volume = read_volume(npy(np.asarray(voxels("i2"), order=order)), LIMIT)
    np.testing.assert_array_equal(volume.data, voxels("i2"), strict=True)
    assert (volume.format, volume.spacing, volume.affine) == ("npy", None, None)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("others", [{}, {"mask": np.zeros(3)}])
@pytest.mark.parametrize("name", ["volume", "image"])
def test_npz(compressed: bool, others: dict[str, Any], name: str) -> None:
    volume = read_volume(npz(compressed, **{name: voxels()}, **others), LIMIT)
    np.testing.assert_array_equal(volume.data, voxels(), strict=True)
    assert volume.format == "npz"


def test_npz_with_one_array_of_any_name() -> None:
    np.testing.assert_array_equal(read_volume(npz(arr_0=voxels()), LIMIT).data, voxels())


@pytest.mark.parametrize("names", [("a", "b"), ("volume", "image"), ()])
def test_npz_that_leaves_a_choice(names: tuple[str, ...]) -> None:
    data = npz(**{name: voxels() for name in names})
    with pytest.raises((UnusableInput, InvalidRequest)):
        read_volume(data, LIMIT)


def test_json() -> None:
    volume = read_json_volume(b'{"volume": [[[0, 1], [2, 3]], [[4, 5], [6, 7.5]]]}', LIMIT)
    assert volume.data.tolist() == [[[0, 1], [2, 3]], [[4, 5], [6, 7.5]]]
    assert volume.format == "json"
    with pytest.raises(InvalidRequest, match="spacing"):
        read_json_volume(b'{"volume": [[[1]]], "spacing": [1, 1, 1]}', LIMIT)
    with pytest.raises(UnusableInput, match="three axes"):
        read_json_volume(b'{"volume": [[1]]}', LIMIT)


def test_one_time_of_json_as_of_npy() -> None:
    series = np.random.default_rng(4).random((3, 4, 5, 2))
    document = orjson.dumps({"volume": series.tolist()})
    np.testing.assert_array_equal(read_json_volume(document, LIMIT, 1).data, series[..., 1])
    single = orjson.dumps({"volume": series[..., 0].tolist()})
    np.testing.assert_array_equal(read_json_volume(single, LIMIT, 0).data, series[..., 0])
    for array, body, time in ((series, document, None), (series, document, 2), (series[..., 0], single, 5)):
        with pytest.raises(UnusableInput) as expected:
            read_volume(npy(array), LIMIT, time)
        with pytest.raises(UnusableInput) as found:
            read_json_volume(body, LIMIT, time)
        assert (found.value.message, found.value.field) == (expected.value.message, "t")


def test_trailing_axes_of_one_are_dropped() -> None:
    assert read_volume(nifti(voxels(shape=(5, 6, 7, 1, 1))), LIMIT).data.shape == (5, 6, 7)
    assert read_volume(npy(voxels(shape=(5, 6, 1))), LIMIT).data.shape == (5, 6, 1)


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 7, 2), (1, 5, 6, 7), (0, 6, 7), (5, 6, 0)])
def test_shapes_that_are_no_volume(shape: tuple[int, ...]) -> None:
    with pytest.raises(UnusableInput, match="shape"):
        read_volume(npy(voxels(shape=shape)), LIMIT)
    if 0 not in shape:
        with pytest.raises(UnusableInput, match="shape"):
            read_volume(nifti(voxels(shape=shape)), LIMIT)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_counted_and_placed(value: float) -> None:
    array = voxels("f4")
    array[1, 2, 3] = array[4, 0, 0] = value
    for data in (npy(array), nifti(array), npz(volume=array)):
        with pytest.raises(UnusableInput, match=r"2 voxels .* \[1, 2, 3\]"):
            read_volume(data, LIMIT)


@pytest.mark.parametrize("dtype", ["c8", "U3", "i2,i2"])
def test_elements_that_are_no_numbers(dtype: str) -> None:
    with pytest.raises(UnusableInput):
        read_volume(npy(np.zeros((2, 2, 2), dtype)), LIMIT)


def test_complex_and_colour_nifti() -> None:
    for array in (np.zeros((2, 2, 2), "c8"), np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])):
        with pytest.raises(UnusableInput, match="not single numbers"):
            read_volume(nib.Nifti1Image(array, AFFINE).to_bytes(), LIMIT)


def test_a_small_gzip_that_claims_to_be_huge_is_refused_by_its_header() -> None:
    claim = patched(nifti(voxels()), 42, np.int16([30000, 30000, 30000]).tobytes())
    bomb = gzip.compress(claim + bytes(64 << 20), 9)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLarge, match="header claims"):
            read_volume(bomb, LIMIT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < LIMIT


def test_a_gzip_bomb_behind_an_honest_header() -> None:
    bomb = gzip.compress(nifti(voxels()) + bytes(64 << 20), 9)
    with pytest.raises(PayloadTooLarge, match="expands"):
        read_volume(bomb, LIMIT)
    padded = gzip.compress(nifti(voxels()) + bytes(512))
    np.testing.assert_array_equal(read_volume(padded, LIMIT).data, voxels())


def test_arrays_past_the_limit() -> None:
    array = np.zeros((128, 128, 65), np.uint8)
    for data in (npy(array), npz(volume=array), nifti(array), gzip.compress(nifti(array))):
        with pytest.raises(PayloadTooLarge):
            read_volume(data, LIMIT)
    scaled = patched(nifti(np.zeros((64, 64, 64), np.uint8)), 112, np.float32([2, 0]).tobytes())
    with pytest.raises(PayloadTooLarge, match="rescaled"):
        read_volume(scaled, LIMIT)


def test_an_axis_of_none_beside_one_longer_than_arrays_can_be() -> None:
    data = bytearray(nifti(voxels(), nib.Nifti2Image))
    data[16:48] = struct.pack("<4q", 3, 1 << 62, 0, 4)
    with pytest.raises(UnusableInput, match="no voxels"):
        read_volume(bytes(data), LIMIT)


@pytest.mark.parametrize("size", [4, 100, 347, 400, -1])
def test_truncated_nifti(size: int) -> None:
    data = nifti(voxels())[:size]
    for sent in (data, gzip.compress(data)):
        with pytest.raises(InvalidRequest, match="truncated"):
            read_volume(sent, LIMIT)
    with pytest.raises(InvalidRequest):
        read_volume(gzip.compress(nifti(voxels()))[:-5], LIMIT)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (40, np.int16([0]).tobytes()),
        (40, np.int16([9]).tobytes()),
        (42, np.int16([-5]).tobytes()),
        (70, np.int16([77]).tobytes()),
        (108, np.float32([-1]).tobytes()),
        (108, np.float32([np.nan]).tobytes()),
        (108, np.float32([352.5]).tobytes()),
        (344, b"ni1\0"),
        (112, np.float32([2, np.inf]).tobytes()),
    ],
)
def test_broken_nifti_headers(at: int, value: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_volume(patched(nifti(voxels()), at, value), LIMIT)


def test_a_singular_affine() -> None:
    image = nib.Nifti1Image(voxels(), AFFINE)
    data = patched(image.to_bytes(), 280, np.float32([0, 0, 0, 0]).tobytes())
    with pytest.raises(UnusableInput, match="singular"):
        read_volume(data, LIMIT)


@pytest.mark.parametrize("data", [b"", b"DICM", b"\x89PNG\r\n", b"PK\x05\x06" + bytes(18)])
def test_other_formats(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_volume(data, LIMIT)


WHOLE = [nifti(voxels()), nifti(voxels("f4"), nib.Nifti2Image), npy(voxels()), npz(volume=voxels())]


@given(st.data())
def test_damaged_files_raise_only_our_errors(data: st.DataObject) -> None:
    sent = bytearray(data.draw(st.sampled_from(WHOLE)))
    for _ in range(data.draw(st.integers(0, 4))):
        sent[data.draw(st.integers(0, min(len(sent) - 1, 600)))] = data.draw(st.integers(0, 255))
    sent = sent[: data.draw(st.integers(0, len(sent)))] if data.draw(st.booleans()) else sent
    whole = gzip.compress(sent) if data.draw(st.booleans()) else bytes(sent)
    try:
        volume = read_volume(whole, 10_000)
    except KronserveError:
        return
    assert volume.data.ndim == 3
    assert np.isfinite(volume.data).all()


@given(st.binary(max_size=300), st.sampled_from([b"", b"PK\x03\x04", b"\x1f\x8b\x08", (348).to_bytes(4, "little")]))
def test_arbitrary_bytes_raise_only_our_errors(data: bytes, magic: bytes) -> None:
    for read in (read_volume, read_json_volume):
        with contextlib.suppress(KronserveError):
            read(magic + data, 10_000)


def test_a_qform_without_handedness() -> None:
    """Found by the fuzzer: qfac, pixdim[0], is neither 1 nor -1, and only the qform says where the axes lie."""
    image = nib.Nifti1Image(voxels(), None)
    image.set_qform(AFFINE, 1)
    image.set_sform(None, 0)
    data = patched(image.to_bytes(), 76, np.float32(3).tobytes())
    with pytest.raises(InvalidRequest, match="orientation"):
        read_volume(data, LIMIT)

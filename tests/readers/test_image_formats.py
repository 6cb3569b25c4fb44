"""NRRD, MetaImage and NIfTI pairs against SimpleITK, pynrrd and nibabel; zips of one volume; times of a series."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequest, KronserveError, PayloadTooLarge, UnusableInput
from app.readers.volumes import NamedFile, grouped, read_group, read_volume

LIMIT = 1 << 20
DIRECTION = (0.8, -0.48, 0.36, 0.6, 0.64, -0.48, 0.0, 0.6, 0.8)
VOXELS = np.random.default_rng(3).integers(-90, 90, (5, 6, 7)).astype(np.int16)


def image(array: np.ndarray = VOXELS) -> Any:
    found = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    found.SetDirection(DIRECTION)
    found.SetSpacing((1.5, 2.0, 0.75))
    found.SetOrigin((10.0, -20.0, 5.0))
    return found


def affine() -> np.ndarray:
    found = np.eye(4)
    found[:3, :3] = np.array(DIRECTION).reshape(3, 3) * np.array([1.5, 2.0, 0.75])
    found[:3, 3] = (10, -20, 5)
    return np.diag([-1, -1, 1, 1]) @ found


def written(name: str, folder: Path, array: np.ndarray = VOXELS, compressed: bool = False) -> bytes:
    sitk.WriteImage(image(array), str(folder / name), useCompression=compressed)
    return (folder / name).read_bytes()


@pytest.mark.parametrize("dtype", ["u1", "i2", "u4", "f4", "f8"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("name", "kind"), [("a.mha", "metaimage"), ("a.nrrd", "nrrd"), ("a.nii", "nifti")])
def test_files_of_simpleitk(tmp_path: Path, name: str, kind: str, dtype: str, compressed: bool) -> None:
    array = np.abs(VOXELS).astype(dtype)
    volume = read_volume(written(name, tmp_path, array, compressed), LIMIT)
    np.testing.assert_array_equal(volume.data, array)
    np.testing.assert_allclose(volume.affine, affine(), atol=1e-5)
    assert volume.spacing == pytest.approx((1.5, 2.0, 0.75))
    assert volume.format == kind


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("space", ["right-anterior-superior", "left-anterior-superior", None])
def test_files_of_pynrrd(encoding: str, space: str | None) -> None:
    header: dict[str, Any] = {"encoding": encoding}
    if space is None:
        header["spacings"] = [1.0, 2.0, 3.0]
    else:
        header |= {"space": space, "space directions": np.diag([1.0, 2, 3]), "space origin": [4, 5, 6]}
    stream = io.BytesIO()
    nrrd.write(stream, VOXELS, header)
    volume = read_volume(stream.getvalue(), LIMIT)
    np.testing.assert_array_equal(volume.data, VOXELS)
    assert volume.spacing == (1, 2, 3)
    if space is None:
        assert volume.affine is None
    else:
        x = 1 if space.startswith("right") else -1
        np.testing.assert_array_equal(volume.affine, [[x, 0, 0, 4 * x], [0, 2, 0, 5], [0, 0, 3, 6], [0, 0, 0, 1]])


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
def test_pairs(kind: Any) -> None:
    pair = kind(VOXELS, np.diag([1, 2, 3, 1]))
    pair.header.set_slope_inter(2, -5)
    files = kind.make_file_map({"image": io.BytesIO(), "header": io.BytesIO()})
    pair.to_file_map(files)
    header, voxels = (files[name].fileobj.getvalue() for name in ("header", "image"))
    truth = kind.from_file_map(files).get_fdata()
    named = [
        NamedFile(voxels, "scans/Brain.img"),
        NamedFile(b"\x93NUMPY", "b.npy"),
        NamedFile(header, "scans/brain.hdr"),
    ]
    groups = grouped(named)
    assert [[file.name for file in group] for group in groups] == [["b.npy"], ["scans/brain.hdr", "scans/Brain.img"]]
    np.testing.assert_array_equal(read_group(groups[1], LIMIT).data, truth)
    np.testing.assert_array_equal(read_volume(zipped({"a.hdr": header, "a.img": voxels}), LIMIT).data, truth)
    with pytest.raises(InvalidRequest, match="belong together"):
        read_volume(header, LIMIT)
    with pytest.raises(InvalidRequest, match="truncated"):
        read_group([named[2], NamedFile(voxels[:-1], "brain.img")], LIMIT)


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def test_a_zip_of_one_file(tmp_path: Path) -> None:
    whole = written("a.nrrd", tmp_path)
    litter = {"__MACOSX/a.nrrd": b"x", ".DS_Store": b"x", "folder/": b"", "folder/a.nrrd": whole}
    np.testing.assert_array_equal(read_volume(zipped(litter), LIMIT).data, VOXELS)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.nrrd", "b.nrrd"], "2 volumes"),
        (["a.nrrd", "read me"], "no volume"),
        ([""], "without a name"),
        (["/a.nrrd"], "absolute"),
        (["C:\\a.nrrd"], "absolute"),
        (["b/../../a.nrrd"], "parent"),
        (["..\\a.nrrd"], "parent"),
        (["a.zip"], "inside"),
        (["a.nii.gz"], "inside"),
        (["link"], "symbolic"),
        ([".DS_Store"], "holds no file"),
        ([], "not a volume"),
    ],
)
def test_zips_that_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    whole = written("a.nrrd", tmp_path)
    content = {"read me": b"text", "a.zip": zipped({"a.nrrd": whole}), "a.nii.gz": gzip.compress(whole)}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o120777 if name == "link" else 0o100644) << 16
            archive.writestr(entry, content.get(name, whole))
    with pytest.raises((InvalidRequest, UnusableInput), match=message) as caught:
        read_volume(stream.getvalue(), LIMIT)
    assert not any(name in caught.value.message for name in names if len(name) > 4)


def test_an_archive_inside_a_gzip_stream_is_refused(tmp_path: Path) -> None:
    whole = written("a.nrrd", tmp_path)
    np.testing.assert_array_equal(read_volume(gzip.compress(whole), LIMIT).data, VOXELS)
    for nested in (gzip.compress(gzip.compress(whole)), gzip.compress(zipped({"a": whole}))):
        with pytest.raises(InvalidRequest, match="inside"):
            read_volume(nested, LIMIT)


def test_times_of_a_series(tmp_path: Path) -> None:
    series = np.stack([VOXELS, VOXELS + 1, VOXELS + 2], axis=-1)
    stream = io.BytesIO()
    np.save(stream, series)
    packed = io.BytesIO()
    np.savez_compressed(packed, volume=series)
    found = nib.Nifti1Image(series, np.eye(4))
    four = sitk.JoinSeries(
        [sitk.GetImageFromArray(np.ascontiguousarray(part.T)) for part in np.moveaxis(series, -1, 0)]
    )
    sitk.WriteImage(four, str(tmp_path / "a.mha"))
    sitk.WriteImage(four, str(tmp_path / "a.nrrd"))
    files = [stream.getvalue(), packed.getvalue(), found.to_bytes(), gzip.compress(found.to_bytes())]
    files += [(tmp_path / name).read_bytes() for name in ("a.mha", "a.nrrd")]
    for data in files:
        for time in range(3):
            np.testing.assert_array_equal(read_volume(data, LIMIT, time).data, VOXELS + time)
        for time in (None, 3):
            with pytest.raises(UnusableInput) as caught:
                read_volume(data, LIMIT, time)
            assert caught.value.field == "t"
    with pytest.raises(UnusableInput, match="time 0 only"):
        read_volume(nib.Nifti1Image(VOXELS, np.eye(4)).to_bytes(), LIMIT, 1)


@pytest.mark.parametrize(
    ("name", "old", "new", "error"),
    [
        ("a.mha", b"LOCAL", b"a.raw", InvalidRequest),
        ("a.mha", b"DimSize = 5", b"DimSize = x", InvalidRequest),
        ("a.mha", b"DimSize = 5", b"DimSize =-5", InvalidRequest),
        ("a.mha", b"DimSize = 5 6 7", b"DimSize = 9 9 9", InvalidRequest),
        ("a.mha", b"DimSize = 5 6 7", b"DimSize = 9999999 6 7", PayloadTooLarge),
        ("a.mha", b"MET_SHORT", b"MET_OTHER", UnusableInput),
        ("a.mha", b"TransformMatrix = 0.8", b"TransformMatrix = nan", InvalidRequest),
        ("a.nrrd", b"sizes: 5 6 7", b"sizes: 9 9 9", InvalidRequest),
        ("a.nrrd", b"sizes: 5 6 7", b"sizes: 9999999 6 7", PayloadTooLarge),
        ("a.nrrd", b"sizes: 5 6 7", b"sizes: a b c", InvalidRequest),
        ("a.nrrd", b"type: short", b"type: block", UnusableInput),
        ("a.nrrd", b"encoding: raw", b"encoding: bz2", UnusableInput),
        ("a.nrrd", b"encoding: raw", b"data file: /etc/passwd\nencoding: raw", InvalidRequest),
    ],
)
def test_headers_that_lie(tmp_path: Path, name: str, old: bytes, new: bytes, error: type[KronserveError]) -> None:
    whole = written(name, tmp_path)
    assert old in whole
    with pytest.raises(error):
        read_volume(whole.replace(old, new), LIMIT)


@given(st.data())
def test_damaged_files_raise_only_our_errors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp()
    names = ["d.mha", "d.nrrd"]
    whole = [(folder / name).read_bytes() if (folder / name).exists() else written(name, folder) for name in names]
    sent = bytearray(data.draw(st.sampled_from(whole)))
    for _ in range(data.draw(st.integers(0, 4))):
        sent[data.draw(st.integers(0, min(len(sent) - 1, 500)))] = data.draw(st.integers(0, 255))
    try:
        volume = read_volume(bytes(sent), 10_000)
    except KronserveError:
        return
    assert volume.data.ndim == 3

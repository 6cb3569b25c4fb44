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


def pair(array: np.ndarray, kind: Any = nib.Nifti1Pair) -> tuple[bytes, bytes, np.ndarray]:
    """The header, the voxels, and what nibabel reads of them."""
    made = kind(array, np.diag([1, 2, 3, 1]))
    made.header.set_slope_inter(2, -5)
    files = kind.make_file_map({"image": io.BytesIO(), "header": io.BytesIO()})
    made.to_file_map(files)
    header, voxels = (files[name].fileobj.getvalue() for name in ("header", "image"))
    return header, voxels, kind.from_file_map(files).get_fdata()


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair])
def test_pairs(kind: Any) -> None:
    header, voxels, truth = pair(VOXELS, kind)
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


@pytest.mark.parametrize("other", ["scan.txt", "scan.mat", "scan", "scan.img.bak", "p2/scan.img"])
@pytest.mark.parametrize("first", [True, False])
def test_the_voxels_of_a_pair_are_in_its_own_img(other: str, first: bool) -> None:
    header, voxels, truth = pair(VOXELS)
    two = [NamedFile(header, "scan.hdr"), NamedFile(voxels, "scan.img")]
    more = NamedFile(b"\1" * len(voxels), other)
    groups = grouped([more, *two] if first else [*two, more])
    assert sorted([file.name for file in group] for group in groups) == sorted([["scan.hdr", "scan.img"], [other]])
    np.testing.assert_array_equal(read_group(groups[1 if first else 0], LIMIT).data, truth)


def test_two_pairs_of_one_name() -> None:
    pairs = {"p1/": pair(VOXELS), "p2/": pair(VOXELS + 7)}

    def files_of(folders: list[str]) -> list[NamedFile]:
        both = zip(folders, pairs.values(), strict=True)
        return [NamedFile(two[at], f"{folder}scan.{('hdr', 'img')[at]}") for folder, two in both for at in (0, 1)]

    for group, (*_, truth) in zip(grouped(files_of(list(pairs))), pairs.values(), strict=True):
        np.testing.assert_array_equal(read_group(group, LIMIT).data, truth)
    together = files_of(["", ""])
    for files in (together, together[:3], together[1:]):
        with pytest.raises(UnusableInput, match="one name") as caught:
            grouped(files)
        assert caught.value.field == "file"
        assert "scan" not in caught.value.message


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
        ("a.mha", b"DimSize = 5 6 7", b"DimSize = 0 888888888888888888888 7", UnusableInput),
        ("a.mha", b"MET_SHORT", b"MET_OTHER", UnusableInput),
        ("a.mha", b"DimSize", b"ElementNumberOfChannels = 1 2\nDimSize", InvalidRequest),
        ("a.mha", b"TransformMatrix = 0.8", b"TransformMatrix = nan", InvalidRequest),
        ("a.nrrd", b"sizes: 5 6 7", b"sizes: 9 9 9", InvalidRequest),
        ("a.nrrd", b"sizes: 5 6 7", b"sizes: 9999999 6 7", PayloadTooLarge),
        ("a.nrrd", b"sizes: 5 6 7", b"sizes: 4611686018427387904 0 7", UnusableInput),
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


@pytest.mark.parametrize("unit", ["micron", "meter", "mm", "unknown"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_units_of_nifti(tmp_path: Path, unit: str, kind: Any) -> None:
    made = kind(VOXELS, np.array([[0, -50, 0, 7], [40, 0, 0, 8], [0, 0, 30, 9], [0, 0, 0, 1.0]]))
    made.header.set_xyzt_units(unit, "sec")
    nib.save(nib.Nifti1Image.from_image(made), tmp_path / "a.nii")  # SimpleITK reads no NIfTI-2
    truth = sitk.ReadImage(str(tmp_path / "a.nii"))
    volume = read_volume(made.to_bytes(), LIMIT)
    assert volume.spacing == pytest.approx(truth.GetSpacing())
    assert volume.affine is not None
    np.testing.assert_allclose(np.diag([-1, -1, 1]) @ volume.affine[:3, 3], truth.GetOrigin(), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(volume.affine[:3, :3], axis=0), truth.GetSpacing(), rtol=1e-6)


def nrrd_of(array: np.ndarray, *fields: str) -> bytes:
    sizes = " ".join(map(str, array.shape))
    head = ["NRRD0005", "type: short", "encoding: raw", "endian: little", f"dimension: {array.ndim}", f"sizes: {sizes}"]
    return "\n".join([*head, *fields, "\n"]).encode() + array.astype("<i2").tobytes(order="F")


@pytest.mark.parametrize(
    ("unit", "millimetres"),
    [
        *dict.fromkeys(("um", "\u00b5m", "\u03bcm", "Microns"), 1e-3).items(),
        *{"mm": 1, "cm": 10, "m": 1e3, "æm": 1, "": 1}.items(),
    ],
)
def test_units_of_nrrd(unit: str, millimetres: float) -> None:
    """ITK leaves them out, so that the specification alone is followed."""
    units = f': "mm" "{unit}" "{unit}"'
    place = ["space: RAS", "space directions: (0,50,0) (40,0,0) (0,0,30)", "space origin: (7,8,9)"]
    volume = read_volume(nrrd_of(VOXELS, *place, "space units" + units), LIMIT)
    plain = read_volume(nrrd_of(VOXELS, *place), LIMIT)
    assert volume.affine is not None
    assert plain.affine is not None
    np.testing.assert_allclose(volume.affine, np.diag([1, millimetres, millimetres, 1]) @ plain.affine)
    assert volume.spacing == pytest.approx((50 * millimetres, 40, 30 * millimetres))
    volume = read_volume(nrrd_of(VOXELS, "spacings: 50 40 30", "units" + units), LIMIT)
    assert volume.spacing == pytest.approx((50, 40 * millimetres, 30 * millimetres))
    if unit == "\u00b5m":  # as an older writer has it
        latin = nrrd_of(VOXELS, "spacings: 50 40 30", "units" + units).replace("\u00b5".encode(), b"\xb5")
        assert read_volume(latin, LIMIT).spacing == pytest.approx((50, 0.04, 0.03))


@pytest.mark.parametrize("at", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["list", "time", "List"])
def test_the_times_of_an_nrrd_are_along_any_axis(at: int, kind: str) -> None:
    series = np.stack([VOXELS, VOXELS + 1, VOXELS + 2], axis=at)

    def along(one: str, others: list[str]) -> str:
        return " ".join([*others[:at], one, *others[at:]])

    kinds = "kinds: " + along(kind, ["domain", "space", "domain"])
    place = ["space: RAS", "space directions: " + along("none", ["(1,0,0)", "(0,2,0)", "(0,0,3)"])]
    for fields in (place, ["spacings: " + along("nan", ["1", "2", "3"])]):
        data = nrrd_of(series, kinds, *fields)
        for time in range(3):
            volume = read_volume(data, LIMIT, time)
            np.testing.assert_array_equal(volume.data, VOXELS + time)
            assert volume.spacing == (1, 2, 3)
        with pytest.raises(UnusableInput, match="t=0 to 2"):
            read_volume(data, LIMIT)


@pytest.mark.parametrize(
    ("shape", "kinds", "error"),
    [
        ((3, 6, 7), "RGB-color domain domain", UnusableInput),
        ((3, 6, 7, 5), "RGB-color domain domain domain", UnusableInput),
        ((6, 7, 5, 3), "domain domain domain vector", UnusableInput),
        ((3, 6, 7), "list domain domain", UnusableInput),
        ((6, 7, 3), "domain domain time", UnusableInput),
        ((6, 7, 3, 2), "domain domain time list", UnusableInput),
        ((6, 7, 3, 2, 2), "domain domain domain time list", UnusableInput),
        ((6, 7, 5), "domain domain", InvalidRequest),
    ],
)
@pytest.mark.parametrize("time", [None, 0])
def test_kinds_of_nrrd_that_are_no_volume(
    shape: tuple[int, ...], kinds: str, error: type[KronserveError], time: int | None
) -> None:
    with pytest.raises(error, match="kinds"):
        read_volume(nrrd_of(np.zeros(shape), f"kinds: {kinds}"), LIMIT, time)


@pytest.mark.parametrize("kinds", ["scalar domain domain domain", "domain domain domain stub", "list ??? none space"])
def test_an_axis_of_one_is_of_any_kind(kinds: str) -> None:
    at = next(at for at, kind in enumerate(kinds.split()) if kind in ("scalar", "stub", "list"))
    data = nrrd_of(np.expand_dims(VOXELS, at), f"kinds: {kinds}")
    np.testing.assert_array_equal(read_volume(data, LIMIT).data, VOXELS)


def test_a_metaimage_of_directions_without_a_spacing(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    whole = written("a.mha", tmp_path)
    head, mark, rest = whole.partition(b"ElementSpacing = 1.5 2 0.75\n")
    assert mark
    path.write_bytes(head + rest)
    truth = sitk.ReadImage(str(path))
    volume = read_volume(head + rest, LIMIT)
    assert volume.affine is not None
    directions = np.diag([-1, -1, 1]) @ np.array(truth.GetDirection()).reshape(3, 3)
    np.testing.assert_allclose(volume.affine[:3, :3], directions, atol=1e-6)
    np.testing.assert_allclose(volume.affine[:3, 3], affine()[:3, 3])
    assert volume.spacing == pytest.approx(truth.GetSpacing())

"""DICOM compressed as JPEG, JPEG-LS and JPEG 2000: what was compressed, and pydicom's and SimpleITK's arrays of it."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    MPEG2MPML,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

from app.errors import InvalidRequest, KronserveError, UnusableInput
from app.readers import dicom_jpeg
from app.readers.dicom_jpeg import packed, unpacked
from app.readers.dicom_jpeg_process import images_of
from app.readers.volumes import read_volume
from tests.readers import dicom_files as made
from tests.readers.jpeg_lossless import encode

LIMIT = 1 << 22
DATA = Path(pydicom.__file__).parent / "data"
FILES = ["693_J2KI.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm", "JPEGLSNearLossless_08.dcm",
         "JPEGLSNearLossless_16.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"]  # fmt: skip
"""Every file of pydicom's test data that is of these syntaxes, without colour, and not broken."""


ARRAY = np.random.default_rng(4).integers(-500, 500, (3, 40, 34)).astype(np.int16)
"""Slices that are large enough for OpenJPEG's encoder."""


def compressed(pixels: np.ndarray, number: int, syntax: str, frames: list[bytes] | None = None) -> Dataset:
    """A slice with its frames as given, or compressed by pydicom's own encoder."""
    one = made.dataset(pixels, number)
    if frames is None:
        one.compress(syntax, generate_instance_uid=False)
    else:
        one.file_meta.TransferSyntaxUID = syntax
        one.PixelData = encapsulate(frames)
        one["PixelData"].is_undefined_length = True
    return one


def without_loss(syntax: str) -> list[Dataset]:
    """ARRAY's slices."""
    return [
        compressed(pixels, at, syntax, [encode(pixels.view(np.uint16))] if syntax == JPEGLosslessSV1 else None)
        for at, pixels in enumerate(ARRAY)
    ]


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_what_was_compressed_without_loss_comes_back(syntax: str) -> None:
    files = without_loss(syntax)
    volume = read_volume(made.zipped([made.written(one) for one in reversed(files)]), LIMIT)
    np.testing.assert_array_equal(volume.data, ARRAY.T * made.SLOPE + made.INTERCEPT)


def test_pydicoms_files_are_equal_to_pydicoms_array_and_to_simpleitks() -> None:
    datasets, files = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, name in enumerate(FILES):
            (path,) = DATA.rglob(name)
            datasets.append((path, pydicom.dcmread(path)))
            one = pydicom.dcmread(path)
            files.append(packed(one, number, 1, one.Rows * one.Columns * one.BitsAllocated // 8))
        found = unpacked([file for file in files if file is not None], True)
        assert len(found) == len(FILES)
        for (path, one), pixels in zip(datasets, found, strict=True):
            np.testing.assert_array_equal(pixels[0], one.pixel_array)
            if path.name != "J2K_pixelrep_mismatch.dcm":  # a sign that its header denies: pydicom mends it
                other = sitk.GetArrayFromImage(sitk.ReadImage(path))[0]
                rescaled = pixels[0] * float(one.get("RescaleSlope", 1)) + float(one.get("RescaleIntercept", 0))
                np.testing.assert_allclose(rescaled, other, atol=1e-9)


def jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "jpeg", quality=95)
    return stream.getvalue()


def test_baseline_jpeg_is_what_pillow_makes_of_it() -> None:
    """Two decoders may round a cosine apart; a frame of another slice would be hundreds away."""
    array = (np.add.outer(np.arange(3) * 9, np.add.outer(np.arange(24) * 3, np.arange(32) * 4)) % 250).astype(np.uint8)
    frames = [jpeg(pixels) for pixels in array]
    files = [compressed(pixels, at, JPEGBaseline8Bit, [frames[at]]) for at, pixels in enumerate(array)]
    volume = read_volume(made.zipped([made.written(one) for one in files]), LIMIT)
    truth = np.stack([np.asarray(PIL.Image.open(io.BytesIO(frame))) for frame in frames])
    np.testing.assert_allclose((volume.data.T - made.INTERCEPT) / made.SLOPE, truth, atol=1)


def test_compressed_and_other_slices_of_one_series() -> None:
    files = [made.dataset(ARRAY[0], 0), *without_loss(JPEG2000Lossless)[1:]]
    volume = read_volume(made.zipped([made.written(one) for one in files]), LIMIT)
    np.testing.assert_array_equal(volume.data, ARRAY.T * made.SLOPE + made.INTERCEPT)


def test_large_slices_are_decoded_within_the_memory_that_they_are_allowed() -> None:
    """OpenJPEG holds a frame as 32-bit numbers, more than once."""
    pixels = (np.add.outer(np.arange(2000), np.arange(1500)) % 4096).astype(np.int16)
    first = compressed(pixels, 0, JPEG2000Lossless)
    (frame,) = generate_frames(first.PixelData, number_of_frames=1)
    files = [made.written(first), made.written(compressed(pixels, 1, JPEG2000Lossless, [frame]))]
    volume = read_volume(made.zipped(files), 1 << 28)
    np.testing.assert_array_equal(volume.data[..., 1], pixels.T * made.SLOPE + made.INTERCEPT)


def resized(frame: bytes, rows: int, columns: int) -> bytes:
    """The same image, of which its own header says another size."""
    if frame.startswith(b"\xff\x4f"):
        return frame[:8] + struct.pack(">II", columns, rows) + frame[16:]
    at = frame.index(b"\xff\xc3") if b"\xff\xc3" in frame else frame.index(b"\xff\xf7")
    return frame[: at + 5] + struct.pack(">HH", rows, columns) + frame[at + 9 :]


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_images_that_are_not_of_the_size_that_the_file_says(syntax: str) -> None:
    """No decoder sees them: most of these would take gigabytes."""
    whole = without_loss(syntax)[1]
    (frame,) = generate_frames(whole.PixelData, number_of_frames=1)
    for rows, columns in ((60000, 60000), (40, 35), (0, 34)):
        bad = compressed(ARRAY[1], 1, syntax, [resized(frame, rows, columns)])
        file = packed(bad, 1, 1, bad.Rows * bad.Columns * 2)
        assert file is not None
        question = {"several": False, "files": [file.header | {"length": len(file.pixels)}]}
        with pytest.raises(InvalidRequest, match=rf"40 rows, 34 columns.*image {rows}, {columns}"):
            images_of(question, file.pixels)


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_broken_images(syntax: str) -> None:
    """A header that is as it should be and nonsense behind it; half a header, or none, which no decoder sees."""
    (frame,) = generate_frames(without_loss(syntax)[1].PixelData, number_of_frames=1)
    nonsense = bytes(200) if syntax == JPEG2000Lossless else frame[-300:]
    whole = made.written(without_loss(syntax)[0])
    bad = made.written(compressed(ARRAY[1], 1, syntax, [frame[:100] + nonsense]))
    with pytest.raises(InvalidRequest, match=r"^slice 2: .*broken"):
        read_volume(made.zipped([whole, bad]), LIMIT)
    for none in (b"\xff\xd8", b"\xff\xd8\xff\xff", b"\xff\xd8\xff\xc3\0", b"\xff\x4f\xff\x51\0", b"\0" * 64):
        file = packed(compressed(ARRAY[0], 0, syntax, [none]), 0, 1, ARRAY[0].nbytes)
        assert file is not None
        with pytest.raises(InvalidRequest):
            images_of({"several": False, "files": [file.header | {"length": len(file.pixels)}]}, file.pixels)


def uses(monkeypatch: pytest.MonkeyPatch, decoder: str | None) -> None:
    found = dicom_jpeg.find_spec
    monkeypatch.setattr(dicom_jpeg, "find_spec", lambda name: None if name == decoder else found(name))


@pytest.mark.parametrize("syntax", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_without_the_extra_the_refusal_names_it(syntax: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [made.written(compressed(pixels, at, syntax, [b"\0\0"])) for at, pixels in enumerate(made.voxels(2))]
    uses(monkeypatch, {JPEGLosslessSV1: "gdcm", JPEGLSLossless: "jpeg_ls", JPEG2000Lossless: "openjpeg"}[syntax])
    with pytest.raises(UnusableInput, match=r"kronserve\[dicom-jpeg\]"):
        read_volume(made.zipped(files), LIMIT)


@pytest.mark.parametrize(
    ("syntax", "changes", "message"),
    [(JPEGExtended12Bit, {"BitsStored": 12, "HighBit": 11}, "12 bits"), (MPEG2MPML, {}, "MPEG2")],
)
def test_what_is_not_decoded(syntax: str, changes: dict[str, Any], message: str) -> None:
    files = []
    for number, pixels in enumerate(made.voxels(2)):
        one = compressed(pixels, number, syntax, [b"\0\0"])
        for keyword, value in changes.items():
            setattr(one, keyword, value)
        files.append(made.written(one))
    with pytest.raises(UnusableInput, match=message):
        read_volume(made.zipped(files), LIMIT)


@pytest.mark.parametrize(
    "changes",
    [{"BitsStored": None}, {"HighBit": [1, 2]}, {"PixelRepresentation": None}, {"ExtendedOffsetTable": None}],
)
def test_headers_that_do_not_say_what_the_pixels_are(changes: dict[str, Any]) -> None:
    files = []
    for number, pixels in enumerate(ARRAY):
        one = compressed(pixels, number, JPEG2000Lossless, [b"\0\0"])
        for keyword, value in changes.items():
            setattr(one, keyword, value)
        files.append(made.written(one))
    with pytest.raises(InvalidRequest, match="laid out"):
        read_volume(made.zipped(files), LIMIT)


def test_several_transfer_syntaxes_are_none() -> None:
    (whole,) = made.series(order=[0])
    known = b"1.2.840.10008.1.2.1\0"
    with pytest.raises((InvalidRequest, UnusableInput)):
        read_volume(whole.replace(known, rb"1.2.840.10008\1.2.4"), LIMIT)


def test_one_slice_is_refused_before_a_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("app.readers.dicom.unpacked", never)
    with pytest.raises(KronserveError, match="one DICOM slice"):
        read_volume(made.written(without_loss(JPEG2000Lossless)[0]), LIMIT)

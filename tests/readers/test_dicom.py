"""DICOM series against SimpleITK's reader, and series that are no volume."""

from __future__ import annotations

import contextlib
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from app.errors import InvalidRequest, KronserveError, PayloadTooLarge, UnusableInput
from app.readers.volumes import NamedFile, grouped, read_group, read_volume
from tests.readers import dicom_files as made

LIMIT = 1 << 20


def simpleitk(files: list[bytes], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (i, j, k) and the affine to RAS, as SimpleITK's own series reader has them."""
    for number, data in enumerate(files):
        (folder / f"{number}.dcm").write_bytes(data)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).T, np.diag([-1, -1, 1, 1]) @ affine


def test_a_series_is_what_simpleitk_makes_of_it(tmp_path: Path) -> None:
    files = made.series()
    volume = read_volume(made.zipped(files), LIMIT)
    truth, affine = simpleitk(files, tmp_path)
    np.testing.assert_array_equal(volume.data, truth)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-6)
    assert volume.spacing == pytest.approx((made.SPACING[1], made.SPACING[0], made.STEP))
    assert (volume.format, volume.modality) == ("dicom", "MR")
    np.testing.assert_array_equal(volume.data, made.voxels().T * made.SLOPE + made.INTERCEPT)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_other_transfer_syntaxes(syntax: Any) -> None:
    volume = read_volume(made.zipped(made.series(syntax=syntax)), LIMIT)
    np.testing.assert_array_equal(volume.data, made.voxels().T * made.SLOPE + made.INTERCEPT)


def test_big_endian_and_run_lengths() -> None:
    files = []
    for number, pixels in enumerate(made.voxels()):
        big = made.dataset(pixels.astype(">i2"), number, syntax=ExplicitVRBigEndian)
        run_lengths = made.dataset(pixels, number)
        run_lengths.compress(RLELossless, generate_instance_uid=False)
        files.append(made.written(run_lengths if number % 2 else big))
    volume = read_volume(made.zipped(files), LIMIT)
    np.testing.assert_array_equal(volume.data, made.voxels().T * made.SLOPE + made.INTERCEPT)


def test_files_of_a_form_are_told_apart() -> None:
    files = [NamedFile(data, f"{number}") for number, data in enumerate(made.series())]
    other = NamedFile(b"\x93NUMPY", "a.npy")
    groups = grouped([files[0], other, *files[1:]])
    assert groups == [files, [other]]
    np.testing.assert_array_equal(
        read_group(groups[0], LIMIT).data[..., 0], read_volume(made.zipped(made.series()), LIMIT).data[..., 0]
    )


def multi_frame() -> Dataset:
    """An enhanced object: geometry in functional groups, frames in an order of their own."""
    order = [3, 0, 5, 1, 4, 2]
    array = made.voxels()[order]
    one = made.dataset(array[0], 0, PixelSpacing=None, ImageOrientationPatient=None, ImagePositionPatient=None)
    del one.RescaleSlope, one.RescaleIntercept
    one.NumberOfFrames, one.PixelData = len(order), array.tobytes()
    shared, measures, plane, values = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, plane.ImageOrientationPatient = list(made.SPACING), [*made.ROW, *made.COLUMN]
    values.RescaleSlope, values.RescaleIntercept = made.SLOPE, made.INTERCEPT
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
    shared.PixelValueTransformationSequence = Sequence([values])
    one.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for number in order:
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = list(made.ORIGIN + made.NORMAL * made.STEP * number)
        group.PlanePositionSequence = Sequence([position])
        groups.append(group)
    one.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return one


def test_a_multi_frame_file_is_a_volume() -> None:
    volume = read_volume(made.written(multi_frame()), LIMIT)
    series = read_volume(made.zipped(made.series()), LIMIT)
    np.testing.assert_array_equal(volume.data, series.data)
    np.testing.assert_allclose(volume.affine, series.affine, atol=1e-9)
    without = multi_frame()
    del without.PerFrameFunctionalGroupsSequence
    with pytest.raises(UnusableInput, match="where"):
        read_volume(made.written(without), LIMIT)


MOVED = list(made.ORIGIN + made.NORMAL * 3)
MIXED = made.series(3) + made.series(order=[4], SeriesInstanceUID="1.2.3")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (MIXED, "slice 4 is of another series"),
        (made.series(order=[0, 1, 2, 2, 3]), "same place"),
        (made.series(order=[0, 1, 2, 4, 5]), "5 mm lie behind slice 3 of 5"),
        (made.series(order=[0]), "one DICOM slice is no volume"),
        ([*made.series(3), made.written(made.dataset(made.voxels()[0, :5], 4))], "other rows, columns"),
        (made.series(3) + made.series(order=[4], PixelSpacing=[1, 1]), "pixel spacing"),
        (made.series(3) + made.series(order=[4], ImageOrientationPatient=[1, 0, 0, 0, 1, 0]), "another plane"),
        (made.series(2, ImagePositionPatient=None), "where its slices lie"),
        (made.series(2, ImageOrientationPatient=None), "where its slices lie"),
        (made.series(2, PixelSpacing=None), "where its slices lie"),
        (made.series(2, PixelSpacing=[0, 1]), "spacing or rescaling"),
        (made.series(2, PhotometricInterpretation="RGB"), "colour"),
        (made.series(2, PixelData=None), "no pixels"),
        (made.series(2, Rows=None), "laid out"),
        (made.series(2, Rows=8), "broken or truncated"),
    ],
)
def test_series_that_are_no_volume(files: list[bytes], message: str) -> None:
    with pytest.raises(KronserveError, match=message) as caught:
        read_volume(made.zipped(files), LIMIT)
    assert caught.value.status in (400, 422)
    assert "Doe" not in caught.value.message
    assert made.SERIES not in caught.value.message


@pytest.mark.parametrize("packed", [False, True])
def test_frames_that_the_file_does_not_say_it_has_are_not_decoded(packed: bool) -> None:
    """A header that claims one frame, within the limit, and pixels of hundreds."""
    files = []
    for number in range(2):
        one = made.dataset(np.full((128, 128), number, np.int16), number)
        if packed:
            one.compress(RLELossless, generate_instance_uid=False)
            one.PixelData = encapsulate(list(generate_frames(one.PixelData, number_of_frames=1)) * 600)
        else:
            one.PixelData *= 4
        files.append(made.written(one))
    read_volume(made.zipped(made.series()), LIMIT)  # what is imported at first use
    tracemalloc.start()
    volume = read_volume(made.zipped(files), LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert volume.data.shape == (128, 128, 2)
    np.testing.assert_array_equal(volume.data[0, 0], np.arange(2) * made.SLOPE + made.INTERCEPT)
    assert peak < 8 * LIMIT  # all frames are 19 MiB, of each file


def test_claims_past_the_limit_are_refused_before_decoding() -> None:
    with pytest.raises(PayloadTooLarge, match="claims"):
        read_volume(made.zipped(made.series(2, Rows=60000, Columns=60000)), LIMIT)
    with pytest.raises(PayloadTooLarge):
        read_volume(made.zipped(made.series(6)), 500)


def test_a_deflated_file_that_expands_past_the_limit() -> None:
    bomb = made.dataset(np.zeros((2000, 2000), np.int16), 0, syntax=DeflatedExplicitVRLittleEndian)
    data = made.written(bomb)
    assert len(data) < 20_000
    with pytest.raises(PayloadTooLarge, match="expands past"):
        read_volume(data, LIMIT)


def test_broken_files() -> None:
    (whole,) = made.series(order=[0])
    for data in (whole[:140], whole[:400], whole[:-20], whole[:200] + bytes(100) + whole[300:]):
        with pytest.raises((InvalidRequest, UnusableInput)):
            read_volume(data, LIMIT)


@pytest.mark.parametrize("uid", [b"1.2.840.10008.1.2.q", b"1.2.840.10008.1.1\0\0", b"1.2.840.10008.1.2.9"])
def test_a_transfer_syntax_that_is_none(uid: bytes) -> None:
    """Another service's UID, or a text that is no UID, where the way of packing the pixels should be named."""
    (whole,) = made.series(order=[0])
    known = b"1.2.840.10008.1.2.1\0"
    assert whole.count(known) == 1
    with pytest.raises((InvalidRequest, UnusableInput)):
        read_volume(whole.replace(known, uid.ljust(len(known), b"\0")), LIMIT)


def test_nothing_of_the_patient_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    files = made.series(3)
    damaged = files[0].replace(b"MR", b"\xffR", 1)
    for data in (made.zipped(files), damaged, damaged[:-30]):
        with contextlib.suppress(KronserveError):
            read_volume(data, LIMIT)
    assert "Doe" not in caplog.text
    assert pydicom.config.settings.reading_validation_mode == pydicom.config.IGNORE

"""A volume from the files of one DICOM series, or from one multi-frame file, through pydicom.

Slices are placed by where they lie in the patient (PS3.3, C.7.6.2.1.1): their numbers are not to be trusted. Only the
attributes that pixels and geometry need are read; no other, and no value of any, is repeated in an answer or an error.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from app.errors import InvalidRequest, PayloadTooLarge, UnusableInput
from app.readers.bounded import Buffer, inflate_raw
from app.readers.dicom_jpeg import Packed, packed, unpacked
from app.readers.volume import Volume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PREAMBLE = 128
MAGIC = b"DICM"

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_RLE = "1.2.840.10008.1.2.5"
_EXPLICIT_LITTLE = b"1.2.840.10008.1.2.1\0\0\0"
_META_SCANNED = 4096
"""Bytes in which the transfer syntax is looked for; the group before the data set is some hundred bytes."""

_READ = (
    "Modality", "SeriesInstanceUID", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows",
    "Columns", "PixelSpacing", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PlanarConfiguration", "ImagePositionPatient", "ImageOrientationPatient", "RescaleSlope",
    "RescaleIntercept", "ModalityLUTSequence", "GridFrameOffsetVector", "DoseGridScaling",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelData", "FloatPixelData",
    "DoubleFloatPixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
)  # fmt: skip

SAME_PLACE = 1e-3
"""Millimetres within which two slices lie at the same place."""

UNEVEN = 0.05
"""How far the distance of two slices may be from the usual one, as a part of it."""


@dataclass(frozen=True, eq=False)
class _Slice:
    """pixels (rows, columns) after rescaling; where its first pixel lies, in mm, LPS."""

    pixels: npt.NDArray[Any]
    position: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Plane:
    """What all slices of a series share."""

    series: str
    modality: str
    shape: tuple[int, int]
    orientation: npt.NDArray[np.float64]
    """(2, 3): directions in which columns and rows are counted."""
    spacing: tuple[float, float]
    """mm between rows, and between columns."""


def is_dicom(head: bytes) -> bool:
    """Whether bytes begin a DICOM file (PS3.10)."""
    return head[PREAMBLE : PREAMBLE + len(MAGIC)] == MAGIC


def read_dicom(files: Sequence[Buffer], limit: int) -> Volume:
    """The volume of one series: its slices in any order, or one multi-frame file.

    Args:
        limit: most bytes of the decoded volume, and of a deflated file.

    Raises:
        InvalidRequest: a broken file. UnusableInput: no pixels, in colour, of an encoding that is not decoded here, or
        slices that make no volume: of several series, repeated, missing, of different planes.
        PayloadTooLarge: past `limit`.
    """
    series, several = _Series(limit), len(files) > 1
    waiting: list[tuple[Packed, Dataset, int]] = []
    for number, data in enumerate(files):
        with _told(number, several):
            dataset, frames, size = _opened(data, series.left)
            compressed = packed(dataset, number, frames, size)
            if compressed is None:
                series.add(number, dataset, _decoded(dataset), frames)
            else:
                series.left -= size
                del dataset.PixelData
                waiting.append((compressed, dataset, frames))
    if waiting:
        _check_count(len(series.slices) + sum(frames for *_, frames in waiting))
        # All of them together: one process for a series.
        decoded = unpacked([compressed for compressed, *_ in waiting], several)
        for (compressed, dataset, frames), pixels in zip(waiting, decoded, strict=True):
            with _told(compressed.number, several):
                series.left += compressed.size
                series.add(compressed.number, dataset, pixels, frames)
    assert series.plane is not None
    return _stacked(series.slices, series.plane)


class _Series:
    """Slices that make one volume; `left` are the bytes that may come."""

    def __init__(self, limit: int) -> None:
        self.left, self.slices = limit, list[_Slice]()
        self.plane: _Plane | None = None

    def add(self, number: int, dataset: Dataset, pixels: npt.NDArray[Any], frames: int) -> None:
        """The slices of the file with this number, whose pixels are as they are stored."""
        pixels = pixels.reshape(frames, int(dataset.Rows), int(dataset.Columns))
        try:
            found, own = _placed(dataset, pixels, self.left)
        except (UnusableInput, PayloadTooLarge):
            raise
        except Exception as exc:
            raise UnusableInput("the DICOM file does not say where its slices lie") from exc
        if self.plane is not None:
            _check_same(self.plane, own, number)
        self.plane = self.plane or own
        self.left -= sum(one.pixels.nbytes for one in found)
        self.slices += found


@contextmanager
def _told(number: int, several: bool) -> Iterator[None]:
    """Errors that name the slice, where there are others."""
    try:
        yield
    except (InvalidRequest, PayloadTooLarge, UnusableInput) as error:
        if several and not error.message.startswith("slice "):
            error.message = f"slice {number + 1}: {error.message}"
        raise


def _opened(data: Buffer, limit: int) -> tuple[Dataset, int, int]:
    """A file's attributes, its number of frames, and how many bytes of pixels it claims: no more than `limit`."""
    dataset = _parsed(_inflated(data, limit))
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise UnusableInput("the DICOM file has no pixels")
    if "ModalityLUTSequence" in dataset:
        raise UnusableInput("the DICOM file rescales by a table, which is not read here")
    try:
        frames = int(dataset.get("NumberOfFrames") or 1)
        rows, columns = int(dataset.Rows), int(dataset.Columns)
        samples = int(dataset.get("SamplesPerPixel", 1))
        photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
        bits = int(dataset.BitsAllocated)
    except Exception as exc:
        raise InvalidRequest("the DICOM file does not say how its pixels are laid out") from exc
    if samples != 1 or not photometric.startswith("MONOCHROME"):
        raise UnusableInput("the DICOM file is in colour; a volume has one number a voxel")
    if frames < 1 or rows < 1 or columns < 1:
        raise InvalidRequest("the DICOM file has no rows, columns or frames")
    claimed = frames * rows * columns * max(1, bits // 8)
    if claimed > limit:
        raise PayloadTooLarge(f"the DICOM file claims {claimed} bytes of pixels, more than the limit of {limit}")
    return dataset, frames, claimed


def _placed(dataset: Dataset, pixels: npt.NDArray[Any], limit: int) -> tuple[list[_Slice], _Plane]:
    frames = len(pixels)
    shared = _group(dataset.get("SharedFunctionalGroupsSequence"), 0)
    own = [_group(dataset.get("PerFrameFunctionalGroupsSequence"), frame) for frame in range(frames)]
    planes, slices = [], []
    for frame in range(frames):
        places = (own[frame], shared, dataset)
        orientation = _numbers(_first(places, "PlaneOrientationSequence", "ImageOrientationPatient"), 6).reshape(2, 3)
        spacing = _numbers(_first(places, "PixelMeasuresSequence", "PixelSpacing"), 2)
        position = _numbers(_first(places, "PlanePositionSequence", "ImagePositionPatient"), 3)
        if frames > 1 and not _has(own[frame], "PlanePositionSequence"):
            position = position + _offset(dataset, frame) * np.cross(*orientation)
        slope = float(_first(places, "PixelValueTransformationSequence", "RescaleSlope") or 1)
        intercept = float(_first(places, "PixelValueTransformationSequence", "RescaleIntercept") or 0)
        slope *= float(dataset.get("DoseGridScaling") or 1)
        if not (np.isfinite([slope, intercept]).all() and (spacing > 0).all()):
            raise UnusableInput("the DICOM file's spacing or rescaling is broken")
        slices.append(_Slice(_rescaled(pixels[frame], slope, intercept, limit // frames), position))
        planes.append(
            _Plane(
                str(dataset.get("SeriesInstanceUID", "")),
                str(dataset.get("Modality", "")),
                (pixels.shape[1], pixels.shape[2]),
                orientation,
                (float(spacing[0]), float(spacing[1])),
            )
        )
    for number, plane in enumerate(planes):
        _check_same(planes[0], plane, number)
    return slices, planes[0]


def _stacked(slices: list[_Slice], plane: _Plane) -> Volume:
    """Order slices along the normal of their plane; axes become (column, row, slice), as nibabel has them."""
    _check_count(len(slices))
    normal = np.cross(*plane.orientation)
    along = np.array([slice_.position @ normal for slice_ in slices])
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order])
    if (steps < SAME_PLACE).any():
        raise UnusableInput("two DICOM slices lie at the same place: of two series, or of two times?")
    usual = float(np.median(steps))
    uneven = np.abs(steps - usual) > UNEVEN * usual
    if uneven.any():
        after = int(uneven.argmax()) + 1
        raise UnusableInput(
            f"slices are missing: {float(steps[after - 1]):.3g} mm lie behind slice {after} of {len(slices)} in order, "
            f"{usual:.3g} mm behind most"
        )
    first, last = slices[order[0]].position, slices[order[-1]].position
    affine = np.eye(4)
    affine[:3, 0] = plane.orientation[0] * plane.spacing[1]
    affine[:3, 1] = plane.orientation[1] * plane.spacing[0]
    affine[:3, 2] = (last - first) / (len(slices) - 1)
    affine[:3, 3] = first
    affine[:2] *= -1  # LPS to RAS
    data = np.stack([slices[at].pixels.T for at in order], axis=-1)
    step = float(np.linalg.norm(affine[:3, 2]))
    return Volume(data, "dicom", (plane.spacing[1], plane.spacing[0], step), affine, plane.modality or None)


def _check_count(slices: int) -> None:
    if slices < 2:
        raise UnusableInput("one DICOM slice is no volume; send the whole series, as a zip or as several files")


def _check_same(plane: _Plane, other: _Plane, number: int) -> None:
    if other.series != plane.series:
        raise UnusableInput(f"slice {number + 1} is of another series; one volume is made of one series")
    if other.shape != plane.shape or not np.allclose(other.spacing, plane.spacing, rtol=1e-3):
        raise UnusableInput(f"slice {number + 1} has other rows, columns or pixel spacing than the first")
    if not np.allclose(other.orientation, plane.orientation, atol=1e-3):
        raise UnusableInput(f"slice {number + 1} lies in another plane than the first")


def _rescaled(pixels: npt.NDArray[Any], slope: float, intercept: float, limit: int) -> npt.NDArray[Any]:
    if (slope, intercept) == (1.0, 0.0):
        return pixels
    if pixels.size * 8 > limit:
        raise PayloadTooLarge("the rescaled DICOM volume takes more bytes than the limit")
    return pixels * np.float64(slope) + intercept


def _group(sequence: Any, at: int) -> Any:
    return sequence[at] if sequence is not None and at < len(sequence) else None


def _has(group: Any, sequence: str) -> bool:
    return group is not None and sequence in group


def _first(places: Sequence[Any], sequence: str, keyword: str) -> Any:
    """The value of a functional group (of the frame, or shared), or of the data set itself."""
    for place in places[:-1]:
        if _has(place, sequence) and keyword in place[sequence][0]:
            return place[sequence][0][keyword].value
    return places[-1].get(keyword)


def _numbers(value: Any, count: int) -> npt.NDArray[np.float64]:
    numbers = np.array([float(number) for number in value], np.float64)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise UnusableInput("the DICOM file does not say where its slices lie")
    return numbers


def _offset(dataset: Dataset, frame: int) -> float:
    """mm of a frame along the normal, of objects that place frames by a vector of offsets (RT dose)."""
    offsets = dataset.get("GridFrameOffsetVector")
    if offsets is None:
        raise UnusableInput("the DICOM file has several frames, and does not say where they lie")
    return float(offsets[frame])


def _inflated(data: Buffer, limit: int) -> bytes:
    """A deflated file as an explicit little-endian one; pydicom would expand it without a bound."""
    raw = bytes(data)
    head = raw[:_META_SCANNED]
    at = head.find(_DEFLATED)
    if not is_dicom(head) or at < 0:
        return raw
    length_at = PREAMBLE + len(MAGIC)
    if head[length_at : length_at + 6] != b"\x02\0\0\0UL":
        raise InvalidRequest("the deflated DICOM file does not say how long its header is")
    end = length_at + 12 + int.from_bytes(head[length_at + 8 : length_at + 12], "little")
    if at + len(_DEFLATED) > end or end > len(raw):
        raise InvalidRequest("the deflated DICOM file's header is broken")
    body = inflate_raw(memoryview(raw)[end:], limit)
    return raw[:at] + _EXPLICIT_LITTLE + raw[at + len(_DEFLATED) : end] + bytes(body)


def _parsed(raw: bytes) -> Dataset:
    pydicom = _library()
    try:
        dataset: Dataset = pydicom.dcmread(io.BytesIO(raw), specific_tags=list(_READ))
        for sequence in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
            dataset.get(sequence)  # parsed at first use: a broken one fails here
    except Exception as exc:  # pydicom promises no exceptions of its own for broken files
        raise InvalidRequest("the DICOM file is broken") from exc
    return dataset


def _decoded(dataset: Dataset) -> npt.NDArray[Any]:
    """As many frames as the file says it has: what lies behind them was not held against the limit."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    options: dict[str, Any] = {"allow_excess_frames": False}
    if isinstance(syntax, _library().uid.UID) and syntax.is_transfer_syntax and syntax.is_compressed:
        if syntax != _RLE:
            raise UnusableInput(
                f"pixels compressed as {syntax.name} are not decoded here; send them uncompressed or as RLE"
            )
        options["decoding_plugin"] = "pydicom"  # and no native code that happens to be installed
    dataset.pixel_array_options(**options)
    try:
        return np.asarray(dataset.pixel_array)
    except MemoryError as exc:
        raise PayloadTooLarge("the DICOM file's pixels take too much memory") from exc
    except Exception as exc:
        raise InvalidRequest("the DICOM file's pixels are broken or truncated") from exc


def _library() -> Any:
    """pydicom, silent: its warnings and its log repeat values of the files."""
    import pydicom
    import pydicom.config

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"pydicom(\..*)?")
    return pydicom

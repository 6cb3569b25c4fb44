"""DICOM series made for a test: tilted, in any order, with whatever is wrong that the test wants."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import MRImageStorage

ROW = np.array([0.8, 0.6, 0.0])
COLUMN = np.array([-0.48, 0.64, 0.6])
NORMAL = np.cross(ROW, COLUMN)
SPACING = (0.7, 1.3)
"""mm between rows, and between columns."""
STEP, ORIGIN = 2.5, np.array([12.0, -30.0, 7.5])
SLOPE, INTERCEPT = 2.0, -1024.0
SERIES = "1.2.826.0.1.3680043.8.498.1"
PATIENT = "Doe^Jane"


def voxels(slices: int = 6) -> npt.NDArray[np.int16]:
    """Stored values (slices, rows, columns)."""
    return np.random.default_rng(4).integers(-500, 500, (slices, 7, 9)).astype(np.int16)


def dataset(pixels: npt.NDArray[Any], number: int, **changes: Any) -> Dataset:
    """One slice; its instance number runs against its place."""
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = MRImageStorage
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = f"{SERIES}.{number + 1}"
    one.file_meta.TransferSyntaxUID = changes.pop("syntax", pydicom.uid.ExplicitVRLittleEndian)
    one.SeriesInstanceUID, one.Modality, one.PatientName = SERIES, "MR", PATIENT
    one.InstanceNumber = 1000 - number
    one.ImagePositionPatient = list(ORIGIN + NORMAL * STEP * number)
    one.ImageOrientationPatient = [*ROW, *COLUMN]
    one.PixelSpacing = list(SPACING)
    one.RescaleSlope, one.RescaleIntercept = SLOPE, INTERCEPT
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.Rows, one.Columns = pixels.shape[-2:]
    one.BitsAllocated = one.BitsStored = pixels.dtype.itemsize * 8
    one.HighBit = one.BitsStored - 1
    one.PixelRepresentation = int(pixels.dtype.kind == "i")
    one.PixelData = pixels.tobytes()
    for keyword, value in changes.items():
        if value is None:
            delattr(one, keyword)
        else:
            setattr(one, keyword, value)
    return one


def written(one: Dataset) -> bytes:
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, one, enforce_file_format=True)
    return stream.getvalue()


def series(slices: int = 6, order: list[int] | None = None, **changes: Any) -> list[bytes]:
    """Files of a series, shuffled unless an order is given."""
    array = voxels(slices)
    numbers = order or np.random.default_rng(2).permutation(slices).tolist()
    return [written(dataset(array[number], number, **changes)) for number in numbers]


def zipped(files: list[bytes], names: list[str] | None = None) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, data in enumerate(files):
            archive.writestr(names[number] if names else f"scan/{number:04d}.dcm", data)
    return stream.getvalue()

"""The process behind `dicom_jpeg`: compressed frames to arrays, their own headers held against the file's."""

from __future__ import annotations

import base64
import struct
import warnings
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import generate_frames

from app.errors import InvalidRequest
from app.readers.isolated import Answer, answer

_BROKEN = "the DICOM file's pixels are broken or truncated"
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Second bytes of the markers that begin a frame: of JPEG, and of JPEG-LS."""

_JPEG2000 = b"\xff\x4f\xff\x51"
_JPEG2000_BEGINS = 512
"""Bytes in which a JPEG 2000 codestream begins; some writers put a file's header before it."""


def images_of(question: dict[str, Any], data: bytes) -> Answer:
    """The frames of every file in `question["files"]`, whose pixels lie in `data` one after another.

    Raises:
        InvalidRequest: broken, or of another size than the file's header says.
    """
    arrays: dict[str, np.ndarray] = {}
    at = 0
    for file in question["files"]:
        pixels, at = data[at : at + file["length"]], at + file["length"]
        try:
            arrays[str(file["number"])] = _frames(file, pixels)
        except InvalidRequest as error:
            if question["several"]:
                error.message = f"slice {file['number'] + 1}: {error.message}"
            raise
    return {}, arrays


def _frames(file: dict[str, Any], pixels: bytes) -> np.ndarray:
    header = dict(file["header"])
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = header.pop("TransferSyntaxUID")
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    for key, value in header.items():
        setattr(one, key, value)
    for key, text in file["tables"].items():
        setattr(one, key, base64.b64decode(text))
    one.PixelData = pixels
    one["PixelData"].is_undefined_length = True
    frames, shape = header["NumberOfFrames"], (header["Rows"], header["Columns"])
    try:
        tables = [getattr(one, key) for key in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths") if key in one]
        found = generate_frames(pixels, number_of_frames=frames, extended_offsets=tuple(tables) or None)
        for _, frame in zip(range(frames), found, strict=False):
            check_frame(frame, shape, header["BitsAllocated"])
        one.pixel_array_options(decoding_plugin=file["plugin"], allow_excess_frames=False)
        array = np.asarray(one.pixel_array).reshape(frames, *shape)
    except (InvalidRequest, MemoryError):
        raise
    except Exception as exc:  # neither pydicom nor the decoders promise any of their own
        raise InvalidRequest(_BROKEN) from exc
    return array


def check_frame(frame: bytes, shape: tuple[int, int], bits: int) -> None:
    """InvalidRequest unless a frame says itself that it has the file's rows, columns and one number a pixel."""
    try:
        precision, rows, columns, components = (_jpeg2000 if _JPEG2000 in frame[:_JPEG2000_BEGINS] else _jpeg)(frame)
    except struct.error as exc:
        raise InvalidRequest(_BROKEN) from exc
    if (rows, columns) != shape or components != 1 or not 1 <= precision <= bits:
        raise InvalidRequest(
            f"the DICOM file says {shape[0]} rows, {shape[1]} columns, 1 component and up to {bits} bits, its "
            f"compressed image {rows}, {columns}, {components} and {precision}"
        )


def _jpeg(frame: bytes) -> tuple[int, int, int, int]:
    """Precision, rows, columns and components of the frame header (ITU-T T.81, B.2.2; T.87, C.2.2)."""
    at = 2
    while frame[:2] == b"\xff\xd8" and at + 4 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF:  # fill bytes
            at += 1
            continue
        if marker in _FRAMES:
            precision, rows, columns, components = struct.unpack_from(">BHHB", frame, at + 4)
            return precision, rows, columns, components
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    raise InvalidRequest(_BROKEN)


def _jpeg2000(frame: bytes) -> tuple[int, int, int, int]:
    """The same of JPEG 2000's image and tile size (ITU-T T.800, A.5.1), of its first component."""
    at = frame.index(_JPEG2000) + 8
    columns, rows, left, top = struct.unpack_from(">4I", frame, at)
    components, precision = struct.unpack_from(">HB", frame, at + 32)
    return (precision & 0x7F) + 1, rows - top, columns - left, components


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    answer(images_of)

"""Lossless JPEG written by the book (ITU-T T.81, annex H), to hold a decoder against what it was made from."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt


def encode(pixels: npt.NDArray[np.uint16], precision: int = 16) -> bytes:
    """One image (rows, columns) with the predictor 1, the value to the left.

    All 17 categories of differences have codes of five bits, which are their own numbers.
    """
    rows, columns = pixels.shape
    predicted = np.empty(pixels.shape, np.int64)
    predicted[:, 1:] = pixels[:, :-1]
    predicted[1:, 0] = pixels[:-1, 0]
    predicted[0, 0] = 1 << (precision - 1)
    bits = []
    for difference in (pixels - predicted).ravel().tolist():
        difference = (difference + 32768) % 65536 - 32768  # modulo 2^16
        category = abs(difference).bit_length()
        bits.append(f"{category:05b}")
        if 0 < category < 16:
            bits.append(f"{difference if difference > 0 else difference + (1 << category) - 1:0{category}b}")
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\x00")
    frame = struct.pack(">BHHBBBB", precision, rows, columns, 1, 1, 0x11, 0)
    codes = bytes([0]) + bytes([0, 0, 0, 0, 17, *[0] * 11]) + bytes(range(17))
    return (
        b"".join(
            (b"\xff\xd8", _segment(0xC3, frame), _segment(0xC4, codes), _segment(0xDA, bytes([1, 1, 0, 1, 0, 0])), scan)
        )
        + b"\xff\xd9"
    )


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content

"""Write the two files that the README's requests send: an hourly series and a mask that looks like an adrenal gland.

Both are synthetic and hold the same numbers at every run. Needs numpy and nibabel.

    python examples/make_example_data.py [FOLDER]
"""

from __future__ import annotations

import argparse
import gzip
from datetime import datetime, timedelta
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

SEED = 20240229
START = datetime(2024, 3, 1)
STEPS = 168
"""One week: more than the lookback of 96 that is used."""

VARIATES = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
"""Loads and oil temperature of a transformer, as ETTh1 names them."""


def hourly_series() -> str:
    """CSV: a daily and a half-daily cycle, a slow drift and noise for each variate."""
    rng = np.random.default_rng(SEED)
    hours = np.arange(STEPS)
    columns = []
    for level, amplitude in zip((8.0, 2.0, 6.0, 1.0, 3.0, 1.0, 12.0), (4.0, 1.0, 3.5, 0.7, 0.8, 0.3, 3.0), strict=True):
        phase = rng.uniform(0, 2 * np.pi, 2)
        daily = np.sin(2 * np.pi * hours / 24 + phase[0])
        half_daily = 0.4 * np.sin(2 * np.pi * hours / 12 + phase[1])
        drift = 0.3 * rng.standard_normal(STEPS).cumsum() / np.sqrt(STEPS)
        noise = 0.1 * rng.standard_normal(STEPS)
        columns.append(level + amplitude * (daily + half_daily + drift + noise))
    lines = [",".join(("date", *VARIATES))]
    for hour, values in enumerate(zip(*columns, strict=True)):
        stamp = START + timedelta(hours=hour)
        lines.append(",".join((f"{stamp:%Y-%m-%d %H:%M:%S}", *(f"{value:.3f}" for value in values))))
    return "\n".join(lines) + "\n"


def adrenal_mask(size: int = 64) -> npt.NDArray[np.uint8]:
    """A body with two limbs, drawn as tubes around three segments of a Y; uint8 (size, size, size), 0 or 1."""
    junction = np.array([0.5, 0.55, 0.5])
    segments = (  # end point, radius at the junction, radius at the end; the unit is the cube's edge
        (np.array([0.5, 0.85, 0.56]), 0.09, 0.06),
        (np.array([0.28, 0.18, 0.4]), 0.06, 0.035),
        (np.array([0.74, 0.2, 0.44]), 0.06, 0.035),
    )
    axis = (np.arange(size) + 0.5) / size
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1)
    mask = np.zeros((size, size, size), np.bool_)
    for end, near, far in segments:
        direction = end - junction
        along = np.clip((points - junction) @ direction / (direction @ direction), 0, 1)
        distance = np.linalg.norm(points - junction - along[..., np.newaxis] * direction, axis=-1)
        mask |= distance < near + (far - near) * along
    return mask.astype(np.uint8)


def compressed_nifti(mask: npt.NDArray[np.uint8]) -> bytes:
    """The mask as .nii.gz, 1 mm voxels in RAS, without a time stamp in the gzip header."""
    image = nib.Nifti1Image(mask, np.eye(4))
    return gzip.compress(image.to_bytes(), mtime=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "output")
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("series.csv", hourly_series().encode()),
        ("volume.nii.gz", compressed_nifti(adrenal_mask())),
    ):
        (folder / name).write_bytes(content)
        print(f"{folder / name}  {len(content)} bytes")


if __name__ == "__main__":
    main()

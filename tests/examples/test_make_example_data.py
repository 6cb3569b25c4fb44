"""The example files as the README's reader makes them."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "make_example_data.py"


def make(folder: Path) -> Path:
    subprocess.run([sys.executable, SCRIPT, folder], check=True, capture_output=True)
    return folder


def test_the_files_are_what_the_endpoints_take_and_the_same_each_time(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    assert sorted(path.name for path in first.iterdir()) == ["series.csv", "volume.nii.gz"]
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()

    series = pd.read_csv(first / "series.csv", parse_dates=["date"])
    assert series.shape == (168, 8)
    assert (series["date"].diff().dropna() == pd.Timedelta("1h")).all()
    assert series.iloc[:, 1:].std().min() > 0.1

    mask = nib.Nifti1Image.from_bytes(gzip.decompress((first / "volume.nii.gz").read_bytes()))
    voxels = np.asarray(mask.dataobj)
    assert voxels.shape == (64, 64, 64)
    assert voxels.dtype == np.uint8
    assert set(np.unique(voxels).tolist()) == {0, 1}
    assert 2000 < voxels.sum() < 6000

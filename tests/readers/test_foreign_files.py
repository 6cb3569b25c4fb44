"""Files that no one here wrote: all of nibabel's and pydicom's own test data, each a volume equal to what its library
reads, or refused with a reason."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from app.errors import KronserveError, UnusableInput
from app.readers.volumes import NamedFile, kind_of, read_group, read_volume

LIMIT = 64 << 20
NIBABEL = [path for path in sorted(Path(nib.__file__).parent.rglob("tests/data/*")) if path.suffix not in (".py", ".m")]
PYDICOM = sorted(Path(pydicom.__file__).parent.glob("data/**/*"))
FILES = [path for path in (*NIBABEL, *PYDICOM) if path.is_file()]
VOLUMES = {
    "anatomical.nii", "example4d.nii.gz", "example_nifti2.nii.gz", "functional.nii", "reoriented_anat_moved.nii",
    "standard.nii.gz",
}  # fmt: skip
"""Those that must be read, at time 0 where they have several."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_equal_or_refused_with_a_reason(path: Path) -> None:
    data = path.read_bytes()
    try:
        volume = read_volume(data, LIMIT, 0)
    except KronserveError as error:
        refusal = error
    else:
        refusal = None
    if refusal is not None:
        assert 400 <= refusal.status < 500, refusal.message
        assert len(refusal.message) > 10
        assert path.name not in VOLUMES
        return
    if path.name.endswith((".nii", ".nii.gz")):
        image = nib.load(path)
        truth = np.asarray(image.dataobj)
        np.testing.assert_array_equal(volume.data, truth[..., 0] if truth.ndim == 4 else truth)
        np.testing.assert_allclose(volume.affine, image.affine)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path)
            frames = dataset.pixel_array * float(dataset.get("DoseGridScaling", 1))
        assert volume.format == "dicom"
        ordered = frames if np.array_equal(volume.data, frames.T) else frames[::-1]
        np.testing.assert_array_equal(volume.data, ordered.T)


def test_the_files_are_there() -> None:
    assert {path.name for path in FILES} >= VOLUMES
    assert len(PYDICOM) > 100


def test_series_of_pydicoms_test_data(tmp_path: Path) -> None:
    """Every series of several files: one is a volume as SimpleITK reads it, the others say why they are none."""
    series: dict[str, list[Path]] = {}
    for path in PYDICOM:
        if path.is_file() and "dicomdirtests" in path.parts and "DICOMDIR" not in path.name:
            uid = pydicom.dcmread(path, stop_before_pixels=True, force=True).get("SeriesInstanceUID", "")
            series.setdefault(str(uid), []).append(path)
    read: list[list[Path]] = []
    for paths in series.values():
        group = [NamedFile(path.read_bytes()) for path in reversed(paths)]
        if len(group) < 2 or any(kind_of(file.data) != "dicom" for file in group):
            continue
        try:
            volume = read_group(group, LIMIT)
        except UnusableInput:
            continue
        read.append(paths)
        ordered = sitk.ImageSeriesReader.GetGDCMSeriesFileNames
        for path in paths:
            shutil.copy(path, tmp_path)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(ordered(str(tmp_path)))
        np.testing.assert_array_equal(volume.data, sitk.GetArrayFromImage(reader.Execute()).T)
    assert len(read) == 1

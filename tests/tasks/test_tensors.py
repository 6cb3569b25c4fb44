"""Inputs are finite, or refused: against numpy's own test, however many values there are and however large."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from app.engine import device
from app.engine.runtime import Model
from app.errors import InvalidRequest
from app.settings import Settings
from app.tasks.tensors import FEW, VERY_FEW, check_inputs
from tests.tiny_models import write_identity_model


@pytest.mark.parametrize("size", [3, VERY_FEW, VERY_FEW + 1, FEW, FEW + 1])
@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_values_that_are_not_finite_are_refused_and_large_ones_are_not(
    tmp_path: Path, cache: Path, datatype: str, size: int
) -> None:
    write_identity_model(tmp_path / "m" / "1", datatype, "width")
    settings = Settings(repository=tmp_path, cache_dir=cache, device="cpu", max_batch=1, max_axis=2 * FEW)
    model = Model(tmp_path / "m" / "1", device.choose(settings), settings)
    dtype = np.dtype(f"f{int(datatype[2:]) // 8}")
    largest = np.finfo(dtype).max
    for values in ([0, 1], [largest, largest], [-largest, largest], [largest, np.nan], [np.nan], [np.inf, -np.inf]):
        for fill in (0, largest):
            tensor = np.full((1, size), fill, dtype)
            tensor[0, -len(values) :] = values
            if np.isfinite(tensor).all():
                assert check_inputs(model, {"x": tensor})["x"] is tensor
            else:
                with pytest.raises(InvalidRequest, match="NaN or infinity"):
                    check_inputs(model, {"x": tensor})

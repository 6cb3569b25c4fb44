"""The data folder, or a skip that says why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _single_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data() -> Path:
    folder = os.environ.get("KRONSERVE_DATA")
    if not folder:
        pytest.skip("KRONSERVE_DATA is not set: it names the folder of the real data sets")
    return Path(folder)

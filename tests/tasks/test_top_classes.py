"""Classes of an output against a plain sort in Python."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from app.engine.runtime import Model
from app.errors import InvalidRequest
from app.manifest import VolumeClassification
from app.tasks.top_classes import top_classes

LABELS = ("cat", "dog", "owl")


def model(*, batched: bool = True, labels: tuple[str, ...] = ()) -> Model:
    """What the function reads of a model."""
    manifest = SimpleNamespace(task=VolumeClassification(labels=labels)) if labels else None
    return cast("Model", SimpleNamespace(batched=batched, manifest=manifest, output_names=("y", "z")))


def largest_first(row: list[Any], count: int) -> list[int]:
    def rank(index: int) -> tuple[bool, Any, int]:
        missing = isinstance(row[index], float) and math.isnan(row[index])
        return missing, 0 if missing else -row[index], index

    return sorted(range(len(row)), key=rank)[:count]


@given(
    st.sampled_from(["<f4", "<f2", "<i8", "<u8", "u1"]).flatmap(
        lambda dtype: arrays(dtype, array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5))
    ),
    st.integers(1, 7),
    st.booleans(),
)
def test_equal_a_plain_sort(tensor: np.ndarray, count: int, batched: bool):
    texts = top_classes(model(batched=batched), "y", tensor, count)
    rows = tensor.reshape(len(tensor), int(np.prod(tensor.shape[1:]))) if batched else tensor.reshape(1, -1)
    assert texts.shape[-1] == min(count, rows.shape[1])
    for row, given_texts in zip(rows, texts if batched else [texts], strict=True):
        parts = [text.decode().split(":") for text in given_texts]
        assert [int(index) for _, index in parts] == largest_first(row.tolist(), count)
        for value, index in parts:
            np.testing.assert_array_equal(tensor.dtype.type(value), row[int(index)])


def test_labels_belong_to_the_classifiers_output_alone():
    logits = np.array([[0.25, -1.5, 3.0]], np.float32)
    labelled = model(labels=LABELS)
    assert top_classes(labelled, "y", logits, 2).tolist() == [[b"3.0:2:owl", b"0.25:0:cat"]]
    assert top_classes(labelled, "z", logits, 1).tolist() == [[b"3.0:2"]]
    assert top_classes(labelled, "y", logits[:, :2], 1).tolist() == [[b"0.25:0"]]


def test_outputs_without_an_order_are_refused():
    for tensor in (np.array([[True]]), np.array([[b"x"]], object)):
        with pytest.raises(InvalidRequest, match="'y'"):
            top_classes(model(), "y", tensor, 1)

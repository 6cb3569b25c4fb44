"""Padded batches in buffers of their own, on the CPU provider: the buffers differ from a GPU's in their place alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from app.engine.buckets import Buckets
from tests.tiny_models import write_identity_model

LIMIT = 12
NAMES = ("forecast",)


class Recording:
    """A session that notes the rows of every run, and the CUDA graph that was asked for."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.rows: list[int] = []
        self.graphs: list[str | None] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, names: list[str], inputs: dict[str, np.ndarray], options: ort.RunOptions | None = None) -> Any:
        self.rows.append(len(inputs["series"]))
        self.graphs.append(_graph(options))
        return self._session.run(names, inputs, options)

    def run_with_iobinding(self, binding: ort.IOBinding, options: ort.RunOptions) -> None:
        self.graphs.append(_graph(options))
        self._session.run_with_iobinding(binding, options)


def _graph(options: ort.RunOptions | None) -> str | None:
    try:
        return None if options is None else options.get_run_config_entry("gpu_graph_id")
    except RuntimeError:  # no such entry
        return None


@pytest.fixture
def session(repository: Path) -> Recording:
    path = repository / "hot-etth1" / "1" / "model.onnx"
    return Recording(ort.InferenceSession(path, providers=["CPUExecutionProvider"]))


def series(rows: int, variates: int = 3) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, variates, 96)).astype(np.float32)


def prepared(session: Recording, *, graphs: bool = False) -> Buckets:
    buckets = Buckets(session, LIMIT, graphs=graphs)
    for size in buckets.sizes:
        buckets.prepare({"series": np.zeros((size, 3, 96), np.float32)}, NAMES)
    session.rows.clear()
    session.graphs.clear()
    return buckets


def expected(session: Recording, batch: np.ndarray) -> np.ndarray:
    return session._session.run(list(NAMES), {"series": batch})[0]


@pytest.mark.parametrize("variates", [3, 5], ids=["prepared", "another width"])
@pytest.mark.parametrize("graphs", [False, True])
def test_rows_are_the_session_s_own(session: Recording, variates: int, graphs: bool):
    buckets = prepared(session, graphs=graphs)
    for rows in range(1, LIMIT + 1):
        batch = series(rows, variates)
        (found,) = buckets.run({"series": batch}, NAMES)
        np.testing.assert_allclose(found, expected(session, batch), rtol=1e-5, atol=1e-5)
    assert buckets.run({"series": series(0, variates)}, NAMES)[0].shape == (0, variates, 720)


def test_few_shapes_are_met(session: Recording):
    buckets = Buckets(session, LIMIT, graphs=False)
    assert buckets.sizes == (1, 2, 4, 8, 12)
    for rows in range(LIMIT + 1):
        buckets.run({"series": series(rows)}, NAMES)
    assert set(session.rows) == set(buckets.sizes)


def test_prepared_buckets_are_run_in_their_buffers_alone(session: Recording):
    buckets = prepared(session)
    for rows in range(LIMIT + 1):
        buckets.run({"series": series(rows)}, NAMES)
    assert session.rows == []


def test_an_answer_outlives_the_next_batch(session: Recording):
    buckets = prepared(session)
    (first,) = buckets.run({"series": series(2)}, NAMES)
    kept = first.copy()
    buckets.run({"series": series(1) * 100}, NAMES)
    buckets.run({"series": series(2) * 100}, NAMES)
    np.testing.assert_array_equal(first, kept)


def test_what_an_earlier_batch_left_is_not_seen(session: Recording):
    """Three rows run in the bucket of four, whose last row held another's values."""
    buckets = prepared(session)
    buckets.run({"series": np.full((4, 3, 96), np.nan, np.float32)}, NAMES)
    (found,) = buckets.run({"series": series(3)}, NAMES)
    np.testing.assert_allclose(found, expected(session, series(3)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("graphs", [False, True])
def test_threads_take_turns_in_a_bucket(session: Recording, graphs: bool):
    buckets = prepared(session, graphs=graphs)

    def run(seed: int) -> bool:
        batch = series(2) + seed
        (found,) = buckets.run({"series": batch}, NAMES)
        return bool(np.allclose(found, expected(session, batch), rtol=1e-4, atol=1e-4))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(64)))


def test_every_bucket_has_a_graph_of_its_own_and_other_shapes_none(session: Recording):
    buckets = prepared(session, graphs=True)
    for rows in (*buckets.sizes, 3):
        buckets.run({"series": series(rows)}, NAMES)
    of_sizes, again = session.graphs[:-1], session.graphs[-1]
    assert len(set(of_sizes)) == len(buckets.sizes)
    assert again == of_sizes[buckets.sizes.index(4)]
    assert "-1" not in session.graphs
    session.graphs.clear()
    buckets.run({"series": series(2, 5)}, NAMES)
    assert session.graphs == ["-1"]


def test_a_lower_limit_drops_the_larger_buckets(session: Recording):
    buckets = prepared(session)
    buckets.limit_to(4)
    assert buckets.sizes == (1, 2, 4)
    buckets.run({"series": series(4)}, NAMES)
    assert session.rows == []
    (found,) = buckets.run({"series": series(8)}, NAMES)
    assert (len(found), session.rows) == (8, [8])


def test_strings_are_run_without_buffers(tmp_path: Path):
    write_identity_model(tmp_path / "1", "BYTES")
    session = ort.InferenceSession(tmp_path / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    (entry,), (exit_,) = session.get_inputs(), session.get_outputs()
    buckets = Buckets(session, 4, graphs=False)
    texts = np.array([["a", "", "c"]] * 3, dtype=object)
    buckets.prepare({entry.name: texts[:2]}, [exit_.name])
    np.testing.assert_array_equal(buckets.run({entry.name: texts}, [exit_.name])[0], texts)

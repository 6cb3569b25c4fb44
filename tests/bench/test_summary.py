"""Medians and the report from results with known figures."""

from __future__ import annotations

from typing import Any

from bench import summary
from bench.cells import cells
from bench.report import render
from bench.summary import QUANTITIES, TOTALS


def _block(rate: float, peer: float, limit: float) -> dict[str, Any]:
    def server(value: float) -> dict[str, Any]:
        known = {
            "rate": value,
            "share": value / limit,
            "p50": 0.01,
            "p99": 0.02,
            "other_cores": 0.2,
            "rss": 100.0,
            "pss": 90.0,
        }
        return dict.fromkeys(QUANTITIES) | dict.fromkeys(TOTALS, 1) | known

    return {
        "cell": "binary-forecaster-8",
        "payload": "binary",
        "model": "forecaster",
        "concurrency": 8,
        "limit": limit,
        "lone_seconds": 0.002,
        "servers": {"kronserve": server(rate), "naive": server(peer)},
    }


BLOCKS = [_block(90.0, 60.0, 100.0), _block(80.0, 95.0, 100.0), _block(95.0, 50.0, 100.0)]


def test_medians_totals_and_spread() -> None:
    (cell,) = summary.by_cell(BLOCKS).values()
    ours = cell["servers"]["kronserve"]
    assert (ours["rate"], ours["share"], ours["good"]) == (90.0, 0.9, 3)
    assert abs(ours["spread"] - 0.15) < 1e-12
    assert cell["servers"]["naive"]["share"] == 0.6
    assert ours["refused_p99"] is None


def test_report_names_the_best_peer_and_its_distance() -> None:
    versions = ("kronserve", "commit", "python", "onnxruntime", "uvicorn", "generator")
    about: dict[str, Any] = dict.fromkeys(("processor", "cores", "memory_gib", "system", *versions), "?")
    about |= {"peers": {}, "load_average_at_start": 0.0}
    results = {"machine": about, "settings": {"rounds": 3, "seconds": 1}, "servers": {}, "blocks": BLOCKS, "mixed": []}
    text = render(results | {"servers": {"triton": {"left_out": "NotInstallable: no wheel"}}})
    assert "| binary forecaster, c = 8 | 0.900 | 0.150 | naive | 0.600 | 1.50 |" in text
    assert "median 0.20, most 0.20; above 0.1 in 6 of 6 measurements" in text
    assert "- triton: NotInstallable: no wheel" in text


def test_grpc_over_rest_is_the_median_of_the_rounds_own_ratios() -> None:
    def entry(rest: float, grpc: float) -> dict[str, Any]:
        cost = {"cpu_per_request": 0.002}
        rates = {"rest": {"rate": rest} | cost, "grpc": {"rate": grpc} | cost}
        return {"model": "forecaster", "connections": 8} | rates

    (found,) = summary.over_grpc([entry(100.0, 90.0), entry(200.0, 100.0), entry(50.0, 50.0)]).values()
    assert found == {
        "rest_rate": 100.0,
        "grpc_rate": 90.0,
        "ratio": 0.9,
        "rest_cpu_per_request": 0.002,
        "grpc_cpu_per_request": 0.002,
    }


def test_cells_are_chosen_by_pattern() -> None:
    chosen = [str(cell) for cell in cells(["binary-*-8", "npy-forecaster-32"])]
    assert chosen == ["binary-forecaster-8", "npy-forecaster-32", "binary-classifier-8"]
    assert len(cells(["*"])) == 24

"""Medians over the rounds, which is all that the report and the plot show."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from bench.servers import SERVERS

QUANTITIES = (
    "rate",
    "share",
    "p50",
    "p99",
    "refused_p99",
    "cpu_per_request",
    "server_cores",
    "generator_cores",
    "rss",
    "pss",
)
TOTALS = ("good", "refused", "failed")

CellKey = tuple[str, str, int]
"""Payload, model, concurrency."""


def median(values: Iterable[float | None]) -> float | None:
    """The median of the values that are there."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def by_cell(blocks: list[dict[str, Any]]) -> dict[CellKey, dict[str, Any]]:
    """{cell: {"limit", "lone_seconds", "servers": {name: {quantity: median, total: sum, "spread"}}}}.

    `spread` is the largest minus the smallest share over the rounds.
    """
    grouped: dict[CellKey, list[dict[str, Any]]] = defaultdict(list)
    for block in blocks:
        grouped[block["payload"], block["model"], block["concurrency"]].append(block)
    return {key: _cell(found) for key, found in grouped.items()}


def _cell(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    names = [name for name in SERVERS if any(name in block["servers"] for block in blocks)]
    servers = {}
    for name in names:
        found = [block["servers"][name] for block in blocks if name in block["servers"]]
        servers[name] = {quantity: median(entry[quantity] for entry in found) for quantity in QUANTITIES}
        servers[name] |= {total: sum(entry[total] for entry in found) for total in TOTALS}
        shares = [entry["share"] for entry in found]
        servers[name]["spread"] = max(shares) - min(shares)
    return {
        "limit": median(block["limit"] for block in blocks),
        "lone_seconds": median(block["lone_seconds"] for block in blocks),
        "servers": servers,
    }


def mixed(entries: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """{(situation, server, model): medians of the alone and mixed rates and latencies, and the share of the limit}."""
    grouped: dict[tuple[str, str, str], list[tuple[dict[str, Any], float]]] = defaultdict(list)
    for entry in entries:
        for situation, models in entry["situations"].items():
            for model, found in models.items():
                grouped[situation, entry["server"], model].append((found, entry["limits"][model]))
    summary = {}
    for key, pairs in grouped.items():
        summary[key] = {
            f"{when}_{what}": median(found[when][what] for found, _ in pairs)
            for when in ("alone", "mixed")
            for what in ("rate", "p50", "p99")
        }
        summary[key]["mixed_share"] = median(found["mixed"]["rate"] / limit for found, limit in pairs)
        summary[key]["connections"] = pairs[0][0]["connections"]
    return summary


def over_grpc(entries: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, float | None]]:
    """{(model, connections): medians of rates and CPU of both, and of gRPC's rate over REST's of the same round}."""
    grouped: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        grouped[entry["model"], entry["connections"]].append(entry)
    return {
        key: {
            **{
                f"{way}_{what}": median(entry[way][what] for entry in found)
                for way in ("rest", "grpc")
                for what in ("rate", "cpu_per_request")
            },
            "ratio": median(entry["grpc"]["rate"] / entry["rest"]["rate"] for entry in found),
        }
        for key, found in grouped.items()
    }

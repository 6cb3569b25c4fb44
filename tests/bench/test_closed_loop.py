"""The closed loop against a real socket server whose answers are known."""

from __future__ import annotations

from bench.closed_loop import run
from tests.bench.conftest import BODY, Counting


def test_statuses_are_counted_apart_and_closed_connections_replaced(answering: Counting) -> None:
    found = run(f"http://127.0.0.1:{answering.server_address[1]}/any", BODY, ["X-Any: 1"], 4, 0.5)
    good, refused = found["statuses"]["200"], found["statuses"]["429"]
    # What was sent and not yet read when the load ended is at most one answer per connection.
    assert 0 <= answering.sent.total() - good["count"] - refused["count"] <= 4
    assert good["count"] >= 2 * refused["count"] > 0
    assert found["broken"] > 0
    assert 0 < good["p50"] <= good["p99"]

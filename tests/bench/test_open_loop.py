"""The open loop: what falls due is sent, or counted as unsent, whatever the server does."""

from __future__ import annotations

import socket

from bench.open_loop import run
from tests.bench.conftest import BODY, Counting


def test_every_request_that_fell_due_is_accounted_for(answering: Counting) -> None:
    found = run(f"http://127.0.0.1:{answering.server_address[1]}/any", BODY, ["X-Any: 1"], 4, 0.5, rate=400.0)
    good, refused = found["statuses"]["200"], found["statuses"]["429"]
    assert 0 < found["offered"] <= 400 * found["seconds"] + 1
    # Broken ones had been sent or not; at the end, one may be under way on each connection.
    lost = found["offered"] - found["unsent"] - good["count"] - refused["count"]
    assert 0 <= lost <= found["broken"] + 4
    assert found["bare_refusals"] == refused["count"] > 0, "Retry-After: 0 says nothing"
    assert found["broken"] > 0
    assert 0 < good["p50"] <= good["p99"]


def test_what_finds_no_connection_is_unsent_and_never_waits() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = run(f"http://127.0.0.1:{silent.getsockname()[1]}/any", b"", [], 3, 0.2, rate=1000.0)
    assert found["statuses"] == {}
    assert found["unsent"] == found["offered"] - 3 > 0

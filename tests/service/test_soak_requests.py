"""What the soak sends is answered as it says; otherwise half an hour of it would prove nothing."""

from __future__ import annotations

import asyncio

import pytest

from bench.chaos import read_answer
from bench.soak_requests import kinds
from tests.service.process import Server


def test_shares_are_those_of_a_whole():
    assert sum(kind.share for kind in kinds()) == pytest.approx(1.0)
    assert len({kind.name for kind in kinds()}) == len(kinds())


@pytest.mark.parametrize("kind", [kind for kind in kinds() if not kind.leaves], ids=lambda kind: kind.name)
async def test_each_kind_gets_its_status(server: Server, kind):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    for _ in range(2):  # the connection stays
        writer.write(kind.bytes())
        status, body, _ = await asyncio.wait_for(read_answer(reader), 60)
        assert status == kind.status, body[:200]
        assert body
    writer.close()
    await writer.wait_closed()

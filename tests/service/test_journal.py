"""Lines about requests: one each, with the caller's id, as JSON, and nothing of what was sent."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub as Stub

from app.journal import Journal
from tests.service.conftest import write_add_model
from tests.service.process import Server, patiently, serving

SECRET = 848_151_623
BODY = json.dumps(
    {"inputs": [{"name": name, "shape": [1, 3], "datatype": "INT32", "data": [SECRET, 2, 3]} for name in ("a", "b")]}
).encode()
ROUTE = "/v2/models/{model}/infer"


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("journal")
    write_add_model(folder / "repository" / "add" / "1")
    options = ("--log-requests", "true", "--log-format", "json", "--log-level", "error")
    with serving(folder / "repository", folder / "log", *options) as server:
        yield server


def line_of(server: Server, request_id: str) -> dict[str, Any]:
    """The one line with this id; every line of the log is JSON."""

    def found() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
        return [line for line in lines if line.get("request_id") == request_id]

    patiently(lambda: len(found()) == 1)
    return found()[0]


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "in chunks"])
def test_a_line_and_the_id_in_the_answer(talkative: Server, chunked: bool):
    name = f"caller-{chunked}"
    content: Any = iter([BODY]) if chunked else BODY
    answer = httpx.post(f"{talkative.url}/v2/models/add/infer", content=content, headers={"X-Request-Id": name})
    assert (answer.status_code, answer.headers["x-request-id"]) == (200, name)
    line = line_of(talkative, name)
    assert (line["protocol"], line["route"], line["status"], line["level"]) == ("http", ROUTE, 200, "INFO")
    assert 0 < line["seconds"] < 60
    assert line["model"] == "add"
    assert "key" not in line


def test_errors_have_one_too_without_the_caller_s_path(talkative: Server):
    for path, status in (("/v2/models/848151623/infer", 404), ("/nowhere/848151623", 404)):
        answer = httpx.post(talkative.url + path, content=BODY)
        assert answer.status_code == status
        assert line_of(talkative, answer.headers["x-request-id"])["status"] == status
    assert str(SECRET) not in talkative.log.read_text()


@pytest.mark.parametrize("forged", ["two words", "x" * 129, 'é"', ""])
def test_ids_that_could_forge_a_line_are_replaced(talkative: Server, forged: str):
    headers = {"X-Request-Id": forged.encode("latin-1")}
    answer = httpx.get(f"{talkative.url}/v2", headers=headers)  # type: ignore[arg-type]
    assert len(answer.headers["x-request-id"]) == 32
    line_of(talkative, answer.headers["x-request-id"])


async def test_grpc(talkative: Server):
    async with grpc.aio.insecure_channel(f"127.0.0.1:{talkative.grpc_port}") as channel:
        metadata = (("x-request-id", "by-grpc"),)
        await Stub(channel).ServerLive(pb.ServerLiveRequest(), metadata=metadata)
    line = line_of(talkative, "by-grpc")
    assert (line["protocol"], line["route"], line["status"]) == ("grpc", "ServerLive", "OK")


def test_silent_by_default_but_an_id_is_still_sent_back(server: Server):
    answer = httpx.get(f"{server.url}/v2", headers={"X-Request-Id": "quiet"})
    assert answer.headers["x-request-id"] == "quiet"
    assert "x-request-id" not in httpx.get(f"{server.url}/v2").headers
    assert "quiet" not in server.log.read_text()


def test_slow_ones_alone(caplog: pytest.LogCaptureFixture):
    journal = Journal(every=False, slow=1.0)
    with caplog.at_level(logging.INFO):
        journal.answered("http", ROUTE, 200, 0.999, None)
        journal.answered("http", ROUTE, 200, 1.0, b"late")
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"http {ROUTE} 200 1000.0 ms late model=- key=-"
    assert journal.request_id(None) is not None, "known before it is known to be slow"

"""Traces of a real server in a real OTLP collector: joined to the caller's, nested in time, nothing of a payload."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub as Stub

from app.main import create_app
from app.settings import Settings
from tests.service.conftest import write_add_model
from tests.service.otlp_collector import Collector, collecting, failed, values
from tests.service.process import Server, patiently, serving

SECRET = "krs_traced_secret"  # noqa: S105
PAYLOAD = 848_151_623
FILE = "patient-name.csv"
INPUTS = [{"name": name, "shape": [1, 3], "datatype": "INT32", "data": [PAYLOAD, 2, 3]} for name in ("a", "b")]
BODY = json.dumps({"inputs": INPUTS, "outputs": [{"name": "sum"}]}).encode()
INFER = "/v2/models/add/infer"
PHASES = ["decode", "queue", "compute", "encode"]
SHORT = {"X-Request-Timeout": "1e-9"}
"""Passes in any queue."""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def traced(collector: Collector, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("traces")
    write_add_model(folder / "repository" / "add" / "1")
    shutil.copytree(repository / "hot-etth1", folder / "repository" / "hot-etth1")
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    (folder / "keys.toml").write_text(f'[keys.one]\nsha256 = "{digest}"\nscopes = ["inference", "read"]\n')
    options = (
        "--traces",
        "true",
        "--log-requests",
        "true",
        "--log-format",
        "json",
        "--keys",
        str(folder / "keys.toml"),
    )
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        patch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        patch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")  # FastAPI's own spans would hold paths and queries
        server = stack.enter_context(serving(folder / "repository", folder / "log", *options))
        patch.undo()
        yield server


class Caller:
    """A span of the caller's own, and the headers that tell of it."""

    def __init__(self, *, sampled: bool = True) -> None:
        self.trace_id, self.span_id = secrets.token_hex(16), secrets.token_hex(8)
        self.traceparent = f"00-{self.trace_id}-{self.span_id}-{int(sampled):02x}"
        self.headers = {"Authorization": f"Bearer {SECRET}", "traceparent": self.traceparent}

    def spans(self, collector: Collector) -> tuple[Span, list[Span]]:
        """The server's span and its children, earliest first."""

        def arrived() -> bool:
            return any(span.kind == Span.SPAN_KIND_SERVER for span in collector.spans(self.trace_id))

        patiently(arrived)
        spans = collector.spans(self.trace_id)
        (server,) = [span for span in spans if span.kind == Span.SPAN_KIND_SERVER]
        return server, [span for span in spans if span is not server]


def post(server: Server, caller: Caller, path: str, content: Any, **headers: str) -> httpx.Response:
    return httpx.post(server.url + path, content=content, headers={**caller.headers, **headers}, timeout=60)


def binary(server: Server, caller: Caller) -> int:
    series = np.zeros((1, 3, 96), np.float32)
    return post(
        server, caller, "/v2/models/hot-etth1/infer", series.tobytes(), **{"Inference-Header-Content-Length": "0"}
    ).status_code


def whole(server: Server, caller: Caller) -> int:
    return post(server, caller, INFER, BODY).status_code


def chunked(server: Server, caller: Caller) -> int:
    return post(server, caller, INFER, iter([BODY])).status_code


def table() -> bytes:
    lines = [f"2024-01-{1 + n // 24:02d}T{n % 24:02d}:00:00,{PAYLOAD + n}" for n in range(120)]
    return "\n".join(["date,load", *lines]).encode()


def file(server: Server, caller: Caller) -> int:
    return httpx.post(
        f"{server.url}/v1/models/hot-etth1/versions/1/forecast?horizon=2",
        files={"file": (FILE, table(), "text/csv")},
        headers=caller.headers,
        timeout=60,
    ).status_code


def message() -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="add", raw_input_contents=[np.full(3, PAYLOAD, "<i4").tobytes()] * 2)
    for name in ("a", "b"):
        request.inputs.add(name=name, datatype="INT32", shape=[1, 3])
    return request


def by_grpc(server: Server, caller: Caller, request: pb.ModelInferRequest | None = None) -> str:
    metadata = [(name.lower(), value) for name, value in caller.headers.items()]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        try:
            Stub(channel).ModelInfer(request or message(), metadata=metadata, timeout=60)
        except grpc.RpcError as error:
            return str(error.code().name)
    return "OK"


HTTP = {"http.request.method": "POST", "url.scheme": "http", "http.response.status_code": 200}
RPC = "inference.GRPCInferenceService/ModelInfer"
ROUTE = "/v2/models/{model}/infer"
FILE_ROUTE = "/v1/models/{model}/versions/{version}/forecast"
WAYS: dict[str, tuple[Callable[[Server, Caller], int | str], str, str, dict[str, str | int]]] = {
    "binary": (binary, "hot-etth1", f"POST {ROUTE}", {**HTTP, "http.route": ROUTE}),
    "JSON": (whole, "add", f"POST {ROUTE}", {**HTTP, "http.route": ROUTE}),
    "JSON in chunks": (chunked, "add", f"POST {ROUTE}", {**HTTP, "http.route": ROUTE}),
    "file": (file, "hot-etth1", f"POST {FILE_ROUTE}", {**HTTP, "http.route": FILE_ROUTE}),
    "gRPC": (
        by_grpc,
        "add",
        RPC,
        {"rpc.system.name": "grpc", "rpc.method": RPC, "rpc.response.status_code": "OK"},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_in_is_joined_to_the_caller_and_nests(traced: Server, collector: Collector, way: str):
    call, model, name, attributes = WAYS[way]
    caller = Caller()
    assert call(traced, caller) in (200, "OK")
    server, children = caller.spans(collector)
    assert server.parent_span_id.hex() == caller.span_id
    assert server.name == name
    of_model = {"kronserve.model.name": model, "kronserve.model.version": "1"}
    assert values(server.attributes) == attributes | of_model
    assert [child.name for child in children] == PHASES
    earlier = server.start_time_unix_nano
    for child in children:
        assert child.parent_span_id == server.span_id
        assert child.kind == Span.SPAN_KIND_INTERNAL
        # Each begins when or after the one before it ended; times are rounded to nanoseconds.
        assert earlier - 1 <= child.start_time_unix_nano <= child.end_time_unix_nano
        earlier = child.end_time_unix_nano
    assert earlier - 1 <= server.end_time_unix_nano
    assert values(children[2].attributes) == {**of_model, "kronserve.batch.rows": 1}
    assert not any(failed(span) for span in (server, *children))


def test_each_pass_of_a_long_forecast_waits_and_runs(traced: Server, collector: Collector):
    caller = Caller()
    described = httpx.get(f"{traced.url}/v2/models/hot-etth1", headers=caller.headers).json()
    caller = Caller()
    path = f"/v1/models/hot-etth1/forecast?horizon={described['parameters']['task']['horizon'] + 1}"
    assert post(traced, caller, path, table(), **{"Content-Type": "text/csv"}).status_code == 200
    _, children = caller.spans(collector)
    assert [child.name for child in children] == ["decode", "queue", "compute", "queue", "compute", "encode"]
    ends = [child.end_time_unix_nano for child in children[:-1]]
    assert all(end - 1 <= child.start_time_unix_nano for end, child in zip(ends, children[1:], strict=True))


def test_the_resource_is_this_service_and_what_the_variables_add(traced: Server, collector: Collector):
    caller = Caller()
    whole(traced, caller)
    caller.spans(collector)
    for request in collector.requests():
        for resource in request.resource_spans:
            found = values(resource.resource.attributes)
            assert (found["service.name"], found["deployment.environment.name"]) == ("kronserve", "test")
            assert {scope.scope.name for scope in resource.scope_spans} == {"kronserve"}


def test_a_caller_that_does_not_sample_is_followed_and_its_ids_are_in_the_log(traced: Server, collector: Collector):
    unsampled, after = Caller(sampled=False), Caller()
    for call in (whole, chunked, file, by_grpc):
        call(traced, unsampled)
    whole(traced, after)
    after.spans(collector)  # which were made later, and are here
    assert collector.spans(unsampled.trace_id) == []
    patiently(lambda: len(lines(traced, unsampled.trace_id)) == 4)


def lines(server: Server, trace_id: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in server.log.read_text().splitlines()]
    return [line for line in found if line.get("trace_id") == trace_id]


def test_the_line_of_a_request_names_its_span(traced: Server, collector: Collector):
    for call in (whole, chunked, by_grpc):
        caller = Caller()
        call(traced, caller)
        server, _ = caller.spans(collector)
        patiently(lambda caller=caller: len(lines(traced, caller.trace_id)) == 1)
        (line,) = lines(traced, caller.trace_id)
        assert line["span_id"] == server.span_id.hex()
        assert line["request_id"]


NO_PARENTS = [None, "00-nothing", f"00-{'0' * 32}-{'1' * 16}-01", f"ff-{'1' * 52}", "0" * 10_000, "\xff"]


@pytest.mark.parametrize("given", NO_PARENTS)
def test_without_a_valid_parent_a_trace_begins_here(traced: Server, collector: Collector, given: str | None):
    name = secrets.token_hex(8)
    headers = {"Authorization": f"Bearer {SECRET}", "X-Request-Id": name}
    if given is not None:
        headers |= {"traceparent": given, "tracestate": given, "baggage": given}
    raw = [(header, value.encode("latin-1")) for header, value in headers.items()]
    assert httpx.post(traced.url + INFER, content=BODY, headers=raw).status_code == 200

    def line() -> dict[str, Any]:
        found = [json.loads(line) for line in traced.log.read_text().splitlines() if name in line]
        return found[0] if found else {}

    patiently(lambda: "trace_id" in line())
    patiently(lambda: len(collector.spans(line()["trace_id"])) == 1 + len(PHASES))
    assert collector.spans(line()["trace_id"])[0].parent_span_id == b""
    assert "traceparent" not in traced.log.read_text()  # what strangers send would fill the log


CHUNKED = pytest.mark.parametrize("pieces", [False, True], ids=["whole", "in chunks"])


@CHUNKED
def test_a_malformed_request_ends_in_decoding_and_is_not_the_server_s_fault(
    traced: Server, collector: Collector, pieces: bool
):
    caller = Caller()
    assert post(traced, caller, INFER, iter([b"{"]) if pieces else b"{").status_code == 400
    server, children = caller.spans(collector)
    assert [(child.name, failed(child)) for child in children] == [("decode", True)]
    assert values(children[0].attributes) == {"error.type": "400"}
    assert not failed(server)
    assert values(server.attributes)["http.response.status_code"] == 400


@CHUNKED
def test_a_deadline_that_passes_ends_in_the_queue(traced: Server, collector: Collector, pieces: bool):
    caller = Caller()
    assert post(traced, caller, INFER, iter([BODY]) if pieces else BODY, **SHORT).status_code == 504
    server, children = caller.spans(collector)
    assert [(child.name, failed(child)) for child in children] == [("decode", False), ("queue", True)]
    assert failed(server)
    assert values(server.attributes)["error.type"] == "504"


def test_failures_over_grpc(traced: Server, collector: Collector):
    caller, late = Caller(), Caller()
    assert by_grpc(traced, caller, pb.ModelInferRequest(model_name="nobody")) == "NOT_FOUND"
    server, _ = caller.spans(collector)
    assert not failed(server)
    assert values(server.attributes)["rpc.response.status_code"] == "NOT_FOUND"
    request = message()
    request.parameters["timeout"].int64_param = 1
    while by_grpc(traced, late, request) == "OK":  # taken within a microsecond
        late = Caller()
    server, children = late.spans(collector)
    assert failed(server)
    assert [(child.name, failed(child)) for child in children] == [("decode", False), ("queue", True)]


def test_refusals_and_unknown_paths_are_traced_without_what_they_said(traced: Server, collector: Collector):
    caller, lost = Caller(), Caller()
    headers = {"traceparent": caller.traceparent, "Authorization": "Bearer krs_guess"}
    assert httpx.post(traced.url + INFER, content=BODY, headers=headers).status_code == 401
    server, children = caller.spans(collector)
    assert (values(server.attributes)["http.response.status_code"], children) == (401, [])
    assert httpx.get(f"{traced.url}/{FILE}?q={PAYLOAD}", headers=lost.headers).status_code == 404
    server, _ = lost.spans(collector)
    assert server.name == "GET"
    assert values(server.attributes) == HTTP | {"http.request.method": "GET", "http.response.status_code": 404}


def test_probes_and_scrapes_are_not_traced(traced: Server, collector: Collector):
    probe, after = Caller(), Caller()
    for path in ("/v2/health/live", "/v2/health/ready", "/metrics"):
        assert httpx.get(traced.url + path, headers=probe.headers).status_code == 200
    whole(traced, after)
    after.spans(collector)
    assert collector.spans(probe.trace_id) == []


def test_no_span_holds_a_key_a_file_s_name_or_a_payload(traced: Server, collector: Collector):
    """In everything that the tests before this one have caused too."""
    for call in (binary, whole, chunked, file, by_grpc):
        caller = Caller()
        call(traced, caller)
        caller.spans(collector)
    everything = b"".join(collector.bodies)
    assert b"kronserve.batch.rows" in everything
    for secret in (SECRET, hashlib.sha256(SECRET.encode()).hexdigest(), "krs_", FILE, "patient", str(PAYLOAD), "127.0"):
        assert secret.encode() not in everything, secret


def all_answered(server: Server, callers: list[Caller]) -> bool:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        return {client.post(INFER, content=BODY, headers=caller.headers).status_code for caller in callers} == {200}


def test_the_last_spans_are_sent_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_add_model(tmp_path / "repository" / "add" / "1")
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "named")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
        with serving(tmp_path / "repository", tmp_path / "log", "--traces", "true", "--grpc-port", "") as server:
            callers = [Caller() for _ in range(20)]
            assert all_answered(server, callers)
            assert collector.bodies == []
            assert server.stop() == 0
        for caller in callers:
            assert len(collector.spans(caller.trace_id)) == 1 + len(PHASES)
        (resource,) = collector.requests()[0].resource_spans
        assert values(resource.resource.attributes)["service.name"] == "named"


@pytest.mark.parametrize("answers", [False, True], ids=["nobody there", "a collector that never answers"])
def test_without_a_collector_everything_is_answered_and_the_end_is_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
):
    write_add_model(tmp_path / "repository" / "add" / "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if answers:
            silent.listen(64)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
        monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "32")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
        options = ("--traces", "true", "--shutdown-grace", "0", "--grpc-port", "")
        with serving(tmp_path / "repository", tmp_path / "log", *options) as server:
            assert all_answered(server, [Caller() for _ in range(50)])  # more spans than are held
            assert server.stop() == 0
            assert "the last spans could not be sent" in server.log.read_text()


def test_without_the_extra_the_start_stops_and_names_it(tmp_path: Path):
    missing = "import sys; sys.modules['opentelemetry.sdk'] = None"
    code = f"{missing}; from app.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "serve", "--repository", str(tmp_path), "--port", "0", "--traces", "true"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "--traces (KRONSERVE_TRACES) needs opentelemetry.sdk" in result.stderr
    assert "kronserve[otel]" in result.stderr
    assert "Traceback" not in result.stderr


def test_another_protocol_than_there_is_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ValueError, match=r"KRONSERVE_TRACES.*OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'"):
        create_app(Settings(repository=tmp_path, traces=True))

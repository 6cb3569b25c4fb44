"""Keys before a real server: REST whole and in chunks, gRPC, the documents, the start, the log."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub as Stub

from tests.service.process import Server, serving

SECRETS = {name: f"krs_{name}_secret" for name in ("reader", "caller", "keeper", "slow", "single")}
SCOPES = {"reader": "read", "keeper": "admin"}
MORE = {"slow": "requests_per_second = 1", "single": "concurrent = 1"}
INPUTS = [{"name": name, "shape": [1, 3], "datatype": "INT32", "data": [1, 2, 3]} for name in ("a", "b")]
SUM = json.dumps({"inputs": INPUTS}).encode()
INFER = "/v2/models/add/infer"


@pytest.fixture(scope="module")
def guarded(mixed_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "keys.toml"
    file.write_text(
        "\n".join(
            f'[keys.{name}]\nsha256 = "{hashlib.sha256(secret.encode()).hexdigest()}"\n'
            f'scopes = ["{SCOPES.get(name, "inference")}"]\n{MORE.get(name, "")}'
            for name, secret in SECRETS.items()
        )
    )
    with serving(mixed_repository, folder / "log", "--keys", str(file)) as server:
        yield server


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRETS[name]}"}


def infer(server: Server, headers: dict[str, str], *, chunked: bool = False) -> httpx.Response:
    content: Any = iter([SUM]) if chunked else SUM
    return httpx.post(server.url + INFER, content=content, headers=headers, timeout=60)


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "in chunks"])
def test_inference_needs_a_key_of_its_scope(guarded: Server, chunked: bool):
    assert infer(guarded, bearer("caller"), chunked=chunked).status_code == 200
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"Basic {SECRETS['caller']}"}):
        answer = infer(guarded, headers, chunked=chunked)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json().keys() == {"error"}
    for name in ("reader", "keeper"):
        answer = infer(guarded, bearer(name), chunked=chunked)
        assert answer.status_code == 403
        assert SECRETS[name] not in answer.text


def test_health_is_open_and_the_rest_is_read_or_admin(guarded: Server):
    load, index = "/v2/repository/models/offset/load", "/v2/repository/index"
    with httpx.Client(base_url=guarded.url, timeout=60) as client:
        assert client.get("/v2/health/ready").status_code == 200
        for path in ("/v2", "/v2/models/add", "/metrics", "/openapi.json", "/v1/models", "/v2/models/stats"):
            assert client.get(path).status_code == 401, path
            assert client.get(path, headers=bearer("reader")).status_code == 200, path
            assert client.get(path, headers=bearer("caller")).status_code == 403, path
        assert client.post(index, headers=bearer("reader")).status_code == 200
        assert client.post(load, headers=bearer("reader")).status_code == 403
        assert client.post(load, headers=bearer("caller")).status_code == 403
        assert client.post(load, headers=bearer("keeper")).status_code == 200
        document = client.get("/openapi.json", headers=bearer("reader")).json()
    operation = document["paths"]["/v2/models/{model}/infer"]["post"]
    assert operation["security"] == [{"key": []}]
    assert {"401", "403"} <= operation["responses"].keys()
    assert "security" not in document["paths"]["/v2/health/live"]["get"]


def test_two_keys_are_none(guarded: Server):
    headers = [("Authorization", f"Bearer {SECRETS[name]}") for name in ("caller", "reader")]
    assert httpx.post(guarded.url + INFER, content=SUM, headers=headers).status_code == 401


def test_rate_is_limited(guarded: Server):
    answers = [infer(guarded, bearer("slow")) for _ in range(12)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    httpx.get(f"{guarded.url}/v2/models/add")
    page = httpx.get(f"{guarded.url}/metrics", headers=bearer("reader")).text
    for route, status in (("/v2/models/{model}/infer", 429), ("/v2/models/{model}", 401)):
        assert f'kronserve_http_requests_total{{route="{route}",status="{status}"}}' in page
    for reason, least in (("key_rate", len(refused)), ("key_unknown", 1)):
        sample = f'kronserve_rejected_requests_total{{model="",reason="{reason}",version=""}} '
        assert float(page.split(sample)[1].split()[0]) >= least


def test_concurrency_is_limited_and_given_back_when_a_client_leaves(guarded: Server):
    """One request holds the key's only place without ever ending its body; then its client goes."""
    with socket.create_connection(("127.0.0.1", guarded.port)) as connection:
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRETS['single']}\r\n"
        connection.sendall(f"{head}Content-Length: 100\r\n\r\n".encode() + b"{")
        for _ in range(1000):
            if (answer := infer(guarded, bearer("single"))).status_code == 429:
                break
        assert answer.status_code == 429
    for _ in range(1000):
        if (answer := infer(guarded, bearer("single"))).status_code == 200:
            break
    assert answer.status_code == 200


async def test_grpc_has_the_same_gate(guarded: Server):
    request = pb.ModelInferRequest(model_name="add", raw_input_contents=[bytes(12), bytes(12)])
    for name in ("a", "b"):
        request.inputs.add(name=name, datatype="INT32", shape=[1, 3])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{guarded.grpc_port}") as channel:
        stub = Stub(channel)

        async def code(method: str, message: Any, *names: str) -> grpc.StatusCode:
            metadata = [("authorization", f"Bearer {SECRETS[name]}") for name in names]
            return await getattr(stub, method)(message, metadata=metadata).code()

        assert await code("ModelInfer", request, "caller") == grpc.StatusCode.OK
        assert await code("ModelInfer", request) == grpc.StatusCode.UNAUTHENTICATED
        assert await code("ModelInfer", request, "caller", "caller") == grpc.StatusCode.UNAUTHENTICATED
        assert await code("ModelInfer", request, "reader") == grpc.StatusCode.PERMISSION_DENIED
        assert await code("ServerReady", pb.ServerReadyRequest()) == grpc.StatusCode.OK
        assert await code("ServerMetadata", pb.ServerMetadataRequest()) == grpc.StatusCode.UNAUTHENTICATED
        assert await code("ServerMetadata", pb.ServerMetadataRequest(), "reader") == grpc.StatusCode.OK
        load = pb.RepositoryModelLoadRequest(model_name="offset")
        assert await code("RepositoryModelLoad", load, "caller") == grpc.StatusCode.PERMISSION_DENIED
        assert await code("RepositoryModelLoad", load, "keeper") == grpc.StatusCode.OK


async def test_grpc_reads_no_message_of_who_has_no_key(guarded: Server):
    """Eight times 60 MB at once: refused from the head of the call, as HTTP refuses before the body. So are those that
    ask, without a key, whether the server is there; they are answered."""
    methods, message = ("ModelInfer", "ServerLive", "ServerReady"), bytes(60 << 20)
    await test_grpc_has_the_same_gate(guarded)  # what the first calls import and grow is not counted
    before = guarded.peak_bytes()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{guarded.grpc_port}") as channel:
        for name in methods:
            calls = [channel.unary_unary(f"/inference.GRPCInferenceService/{name}")(message) for _ in range(8)]
            expected = grpc.StatusCode.UNAUTHENTICATED if name == "ModelInfer" else grpc.StatusCode.OK
            assert {await call.code() for call in calls} == {expected}
    assert guarded.peak_bytes() - before < 60 << 20


def test_ten_thousand_guesses_beside_an_honest_caller(guarded: Server):
    """All of them are told 401 while every honest request is answered; no key is in the log."""
    statuses: list[bytes] = []

    def guess() -> None:
        with socket.create_connection(("127.0.0.1", guarded.port), timeout=60) as connection:
            stream = connection.makefile("rb")
            for block in range(100):
                requests = [
                    f"GET /v2 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer krs_{block}_{n}\r\n\r\n" for n in range(100)
                ]
                connection.sendall("".join(requests).encode())
                for _ in requests:
                    statuses.append(stream.readline().split()[1])
                    length = 0
                    while (line := stream.readline()) != b"\r\n":
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.split(b":")[1])
                    stream.read(length)

    thread = threading.Thread(target=guess)
    thread.start()
    honest = [infer(guarded, bearer("caller")).status_code for _ in range(100)]
    thread.join()
    assert set(honest) == {200}
    assert (len(statuses), set(statuses)) == (10_000, {b"401"})
    log = guarded.log.read_text()
    assert not [secret for secret in SECRETS.values() if secret in log]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--host", "0.0.0.0"], "--keys"),
        (["--host", "::"], "--open"),
        (["--host", "0.0.0.0", "--keys", "missing.toml"], "cannot be read"),
        (["--keys", "empty.toml"], "empty.toml: keys"),
    ],
)
def test_the_start_is_refused_and_says_why(mixed_repository: Path, tmp_path: Path, options: list[str], said: str):
    (tmp_path / "empty.toml").write_text("")
    start = "import sys; from app.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", start, "serve", "--repository", str(mixed_repository), "--port", "0", *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert result.returncode == 2
    assert said in result.stderr


def test_open_on_every_address_when_told_so(mixed_repository: Path, tmp_path: Path):
    with serving(mixed_repository, tmp_path / "log", "--host", "0.0.0.0", "--open", "true") as server:
        x = np.zeros((1, 3), np.int32).ravel().tolist()
        body = {"inputs": [{**item, "data": x} for item in INPUTS]}
        assert httpx.post(server.url + INFER, json=body).status_code == 200

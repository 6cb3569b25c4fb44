"""HTTPS and gRPC over TLS with a certificate that clients verify."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
import tritonclient.grpc as triton
import trustme

from tests.service.conftest import write_add_model
from tests.service.process import Server, serving

BODY = json.dumps(
    {"inputs": [{"name": name, "shape": [1, 3], "datatype": "INT32", "data": [1, 2, 3]} for name in ("a", "b")]}
).encode()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def secure(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tls")
    write_add_model(folder / "repository" / "add" / "1")
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    for link in issued.cert_chain_pems:
        link.write_to_path(str(folder / "certificate.pem"), append=True)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    options = ("--tls-certificate", str(folder / "certificate.pem"), "--tls-key", str(folder / "key.pem"))
    with serving(folder / "repository", folder / "log", *options, trust=trust) as server:
        yield server


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "in chunks"])
def test_https(secure: Server, chunked: bool):
    assert secure.trust is not None
    with httpx.Client(base_url=secure.url, verify=secure.trust) as client:
        for _ in range(3):
            answer = client.post("/v2/models/add/infer", content=iter([BODY]) if chunked else BODY)
            assert answer.json()["outputs"][0]["data"] == [2, 4, 6]
            assert answer.headers["strict-transport-security"] == "max-age=31536000"


def test_plain_http_and_strangers_certificates_get_nothing(secure: Server):
    with pytest.raises(httpx.TransportError):
        httpx.get(secure.url.replace("https", "http") + "/v2")
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(secure.url + "/v2")


def test_grpc(secure: Server, authority: trustme.CA):
    credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    address = f"localhost:{secure.grpc_port}"
    with triton.InferenceServerClient(address, ssl=True, creds=credentials) as client:
        assert client.is_model_ready("add")
    with triton.InferenceServerClient(address) as client, pytest.raises(Exception, match="UNAVAILABLE"):
        client.is_server_live()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tls-key", "key.pem"], "come together"),
        (["--tls-key", "key.pem", "--tls-certificate", "missing.pem"], "--tls-certificate"),
    ],
)
def test_half_a_certificate_stops_the_start(tmp_path: Path, options: list[str], said: str):
    write_add_model(tmp_path / "repository" / "add" / "1")
    command = [str(Path(sys.executable).with_name("kronserve")), "serve", "--repository", str(tmp_path / "repository")]
    result = subprocess.run([*command, "--port", "0", *options], capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert said in result.stderr
    assert "Traceback" not in result.stderr

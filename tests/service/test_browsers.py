"""What web pages may do with the service, and what browsers are told about its answers."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from app import configuration
from app.main import create_app
from app.settings import Settings
from tests.service.conftest import write_add_model
from tests.service.process import Server, serving

INPUTS = [{"name": name, "shape": [1, 3], "datatype": "INT32", "data": [1, 2, 3]} for name in ("a", "b")]
BODY = json.dumps({"inputs": INPUTS, "outputs": [{"name": "sum"}]}).encode()
INFER = "/v2/models/add/infer"
SECURITY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
}
PAGE = "https://app.example.org"
SECRET = "krs_page_secret"  # noqa: S105
CALLS: list[tuple[str, str, bytes | None, int]] = [
    ("GET", "/v2", None, 200),
    ("GET", "/v2/health/ready", None, 503),
    ("GET", "/metrics", None, 200),
    ("GET", "/openapi.json", None, 200),
    ("GET", "/nowhere", None, 404),
    ("DELETE", "/v2", None, 405),
    ("POST", INFER, BODY, 200),
    ("POST", INFER, b"{", 400),
    ("POST", "/v2/models/nobody/infer", BODY, 404),
    ("POST", "/v1/models/add/forecast", BODY, 422),
]


def security_of(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: headers[name] for name in SECURITY if name in headers}


@pytest.mark.parametrize(("method", "path", "body", "status"), CALLS)
@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "in chunks"])
def test_every_answer_is_data_and_nothing_else(
    server: Server, method: str, path: str, body: bytes | None, status: int, chunked: bool
):
    content: Any = iter([body]) if chunked and body is not None else body
    answer = httpx.request(method, server.url + path, content=content, headers={"Origin": PAGE})
    if path != "/v2/health/ready":  # a broken bundle in this repository keeps it from being ready, or not
        assert answer.status_code == status, answer.text
    assert security_of(answer.headers) == SECURITY
    assert "strict-transport-security" not in answer.headers
    repeated = [name for name, _ in answer.headers.multi_items()]
    assert len(repeated) == len(set(repeated))


@pytest.mark.parametrize(
    "sent", [b"no http\r\n\r\n", b"GET /v2 HTTP/1.1\r\nX: " + b"a" * (1 << 17)], ids=["no HTTP", "a head without end"]
)
def test_refusals_of_the_parser_too(server: Server, sent: bytes):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(sent)
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(1 << 16)
    lines = received.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    assert security_of(dict(line.lower().split(": ", 1) for line in lines)) == {
        name: value.lower() for name, value in SECURITY.items()
    }


def test_docs_come_from_this_host_alone(server: Server):
    with httpx.Client(base_url=server.url) as client:
        page = client.get("/docs")
        assert page.headers["content-type"].startswith("text/html")
        policy = page.headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "unsafe-eval" not in policy
        assert "://" not in page.text
        loaded = re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text)
        assert len(loaded) == 3
        for path in loaded:
            asset = client.get(f"/{path}")
            assert asset.status_code == 200, path
            assert asset.headers["x-content-type-options"] == "nosniff"
            kind = "text/css" if path.endswith(".css") else "text/javascript"
            assert asset.headers["content-type"].split(";")[0] == kind  # as nosniff demands
        assert client.get("/docs/nothing.js").status_code == 404
        assert client.get("/redoc").status_code == 404


def test_no_page_of_another_origin_is_allowed_anything_by_default(server: Server):
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    for answer in (
        httpx.options(server.url + INFER, headers=asked),
        httpx.post(server.url + INFER, content=BODY, headers={"Origin": PAGE}),
        httpx.get(server.url + "/v2", headers={"Origin": PAGE}),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "in chunks"])
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_another_page_would_have_done_is_refused(server: Server, site: str, chunked: bool):
    """As a form on it sends: no preflight, and the answer would be dropped, but a model unloaded."""
    headers = {"Origin": PAGE, "Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors", "Content-Type": "text/plain"}
    for path, body in (("/v2/repository/models/add/unload", b"{}"), (INFER, BODY), ("/v1/models/add/forecast", BODY)):
        answer = httpx.post(server.url + path, content=iter([body]) if chunked else body, headers=headers)
        assert answer.status_code == 403, path
        assert "KRONSERVE_CORS_ORIGINS" in answer.json()["error"]
    assert httpx.get(server.url + "/v2/models/add/ready", headers=headers).status_code == 200


@pytest.mark.parametrize("site", ["same-origin", "none"])
def test_own_pages_and_what_is_typed_into_a_browser_are_answered(server: Server, site: str):
    headers = {"Origin": server.url, "Sec-Fetch-Site": site}
    assert httpx.post(server.url + INFER, content=BODY, headers=headers).status_code == 200


@pytest.fixture(scope="module")
def allowing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with keys that pages of two origins may call."""
    folder = tmp_path_factory.mktemp("browsers")
    write_add_model(folder / "repository" / "add" / "1")
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    (folder / "keys.toml").write_text(f'[keys.page]\nsha256 = "{digest}"\nscopes = ["inference", "read"]\n')
    options = ("--keys", str(folder / "keys.toml"), "--cors-origins", f"http://localhost:3000, {PAGE}")
    with serving(folder / "repository", folder / "log", *options) as server:
        yield server


def preflight(server: Server, path: str, **changes: str) -> httpx.Response:
    asked = {
        "Origin": PAGE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,inference-header-content-length,traceparent",
    }
    return httpx.options(server.url + path, headers=asked | changes)


@pytest.mark.parametrize("path", [INFER, "/v1/models/add/forecast", "/v2", "/v1/timeseries/forecast", "/metrics"])
@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000"])
def test_the_question_before_a_request_needs_no_key(allowing: Server, path: str, origin: str):
    answer = preflight(allowing, path, Origin=origin)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert "POST" in answer.headers["access-control-allow-methods"].split(", ")
    allowed = {name.lower() for name in answer.headers["access-control-allow-headers"].split(", ")}
    assert {"authorization", "content-type", "inference-header-content-length", "traceparent"} <= allowed
    assert "Origin" in answer.headers["vary"]
    assert "access-control-allow-credentials" not in answer.headers
    assert security_of(answer.headers) == SECURITY


@pytest.mark.parametrize(
    "changes",
    [
        {"Origin": "https://app.example.org.evil.example"},
        {"Origin": "http://app.example.org"},
        {"Origin": "null"},
        {"Access-Control-Request-Method": "DELETE"},
        {"Access-Control-Request-Headers": "x-unknown"},
    ],
)
def test_what_is_not_allowed_is_refused_as_every_error_is(allowing: Server, changes: dict[str, str]):
    answer = preflight(allowing, INFER, **changes)
    assert answer.status_code == 400
    assert answer.json().keys() == {"error"}
    assert int(answer.headers["content-length"]) == len(answer.content)
    if "Origin" in changes:
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("chunked", [False, True], ids=["whole", "in chunks"])
def test_a_page_reads_its_answer_and_the_headers_that_matter(allowing: Server, chunked: bool):
    headers = {"Origin": PAGE, "Authorization": f"Bearer {SECRET}", "X-Request-Id": "from-a-page"}
    headers |= {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}
    content: Any = iter([BODY]) if chunked else BODY
    answer = httpx.post(allowing.url + INFER, content=content, headers=headers)
    assert answer.json()["outputs"][0]["data"] == [2, 4, 6]
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert "Origin" in answer.headers["vary"]
    shown = {name.lower() for name in answer.headers["access-control-expose-headers"].split(", ")}
    assert {"x-request-id", "retry-after", "inference-header-content-length"} <= shown
    assert answer.headers["x-request-id"] == "from-a-page"


def test_a_page_reads_errors_too_and_strangers_nothing(allowing: Server):
    refused = httpx.post(allowing.url + INFER, content=BODY, headers={"Origin": PAGE})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)
    headers = {"Origin": "https://elsewhere.example", "Authorization": f"Bearer {SECRET}"}
    stranger = httpx.post(allowing.url + INFER, content=BODY, headers=headers)
    assert "access-control-allow-origin" not in stranger.headers
    forged = httpx.post(allowing.url + INFER, content=BODY, headers=headers | {"Sec-Fetch-Site": "cross-site"})
    assert forged.status_code == 403


async def test_every_origin_when_told_so(tmp_path: Path):
    transport = httpx.ASGITransport(app=create_app(Settings(repository=tmp_path, cors_origins="*")))
    async with httpx.AsyncClient(transport=transport, base_url="http://kronserve") as client:
        asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
        for answer in (await client.options(INFER, headers=asked), await client.get("/v2", headers={"Origin": PAGE})):
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
            assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("listed", ["app.example.org", f"{PAGE}/", f"*,{PAGE}", "https://App.example.org", "null"])
def test_what_no_browser_sends_as_an_origin_stops_the_start(listed: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ending:
        configuration.config(["--cors-origins", listed])
    assert ending.value.code == 2
    assert "--cors-origins (KRONSERVE_CORS_ORIGINS)" in capsys.readouterr().err

"""What must not hurt a real server: bombs, floods, bad neighbours, disconnects, SIGTERM under load."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import io
import re
import socket
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import onnxruntime as ort
import orjson
import pytest

from tests.service.process import Server, patiently, serving

MIB = 1 << 20


def csv_of(values: np.ndarray, start: str = "2024-01-01") -> str:
    """Wide hourly CSV of [variates, time]."""
    stamps = np.datetime64(start, "h") + np.arange(values.shape[1])
    lines = ["date," + ",".join(f"v{n}" for n in range(len(values)))]
    lines += [
        f"{str(stamp).replace('T', ' ')}:00:00," + ",".join(repr(float(v)) for v in column)
        for stamp, column in zip(stamps, values.T, strict=True)
    ]
    return "\n".join(lines) + "\n"


def forecast(url: str, values: np.ndarray, horizon: int = 24) -> dict[str, list[float]]:
    answer = httpx.post(
        f"{url}/v1/models/hot-etth1/forecast?horizon={horizon}",
        content=csv_of(values),
        headers={"Content-Type": "text/csv"},
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["forecast"]


def metric(server: Server, name: str) -> float:
    """Sum of the samples whose line on /metrics begins with `name`."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def metric_of_status(server: Server, status: int) -> float:
    """HTTP answers of this status, over all routes."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith("kronserve_http_requests_total{") and f'status="{status}"' in line
    )


def good_request_works(server: Server) -> None:
    assert len(forecast(server.url, np.random.default_rng(1).normal(size=(2, 96)))["v0"]) == 24


@pytest.mark.parametrize(("scale", "offset"), [(1e-6, 0.0), (1e6, 0.0), (1.0, 1e6), (1e-6, 5.0), (-3.0, -1e4)])
def test_unit_of_a_variate_is_the_unit_of_its_forecast(server: Server, scale: float, offset: float):
    """One variate in another unit: its forecast follows the unit, the others' do not change."""
    rng = np.random.default_rng(7)
    values = np.cumsum(rng.normal(size=(3, 96)), axis=1)
    changed = values.copy()
    changed[1] = changed[1] * abs(scale) + offset
    before, after = forecast(server.url, values), forecast(server.url, changed)
    # What the decimals of a shifted series lose is lost before the server: 2^-52 of the offset over the spread.
    tolerance = 1e-5 + 1e3 * abs(offset) * 2**-52 / abs(scale)
    spread = np.std(before["v1"])
    np.testing.assert_allclose(
        (np.array(after["v1"]) - offset) / abs(scale), before["v1"], rtol=0, atol=tolerance * max(spread, 1.0)
    )
    for other in ("v0", "v2"):
        np.testing.assert_allclose(after[other], before[other], rtol=0, atol=1e-5 * max(np.std(before[other]), 1.0))


def test_body_of_200_mb_is_413_at_once_and_memory_stays(server: Server):
    """Milliseconds on a quiet machine; the bound leaves room for one that is busy with everything else."""
    good_request_works(server)
    before = server.resident_bytes()
    for path in ("/v2/models/hot-etth1/infer", "/v1/models/hot-etth1/forecast", "/v1/models/hot-adrenal/classify"):
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        block = bytes(MIB)
        started = time.monotonic()
        connection.request("POST", path, body=(block for _ in range(200)), headers={"Content-Length": str(200 * MIB)})
        answer = connection.getresponse()
        assert answer.status == 413
        assert "error" in answer.read().decode()
        assert time.monotonic() - started < 5
        connection.close()
    assert server.resident_bytes() - before < 32 * MIB
    good_request_works(server)


def test_endless_chunked_body_is_413(server: Server):
    before = server.resident_bytes()
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request(
        "POST",
        "/v2/models/hot-etth1/infer",
        body=(bytes(MIB) for _ in range(150)),
        encode_chunked=True,
        headers={"Transfer-Encoding": "chunked"},
    )
    answer = connection.getresponse()
    assert answer.status == 413
    connection.close()
    assert server.resident_bytes() - before < 220 * MIB


def test_expect_continue_is_refused_before_the_upload(server: Server):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /v2/models/hot-etth1/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 209715200\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        connection.settimeout(5)
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def bombs() -> dict[str, tuple[str, bytes, dict[str, str]]]:
    zeros = bytes(MIB)
    deflate = zlib.compressobj(9, wbits=31)
    packed = b"".join(deflate.compress(zeros) for _ in range(2000)) + deflate.flush()
    header = bytearray(352)
    header[0:4] = (348).to_bytes(4, "little")
    header[40:48] = np.array([3, 2000, 2000, 2000], "<i2").tobytes()
    header[70:74] = np.array([2, 8], "<i2").tobytes()
    header[108:112] = np.array([352], "<f4").tobytes()
    header[344:348] = b"n+1\0"
    npz = io.BytesIO()
    np.savez_compressed(npz, volume=np.zeros((700, 700, 700), np.uint8))
    infer, classify = "/v2/models/hot-etth1/infer", "/v1/models/hot-adrenal/classify"
    return {
        "gzip body of 2 GB": (infer, packed, {"Content-Encoding": "gzip"}),
        "gzip CSV of 2 GB": (
            "/v1/models/hot-etth1/forecast",
            packed,
            {"Content-Encoding": "gzip", "Content-Type": "text/csv"},
        ),
        "gzip of zeros as a volume": (classify, packed, {}),
        "NIfTI that claims 8 GB": (classify, gzip.compress(bytes(header) + zeros), {}),
        "npz of 343 MB": (classify, npz.getvalue(), {}),
    }


@pytest.fixture(scope="module")
def all_bombs() -> dict[str, tuple[str, bytes, dict[str, str]]]:
    return bombs()


@pytest.mark.parametrize(
    "name",
    ["gzip body of 2 GB", "gzip CSV of 2 GB", "gzip of zeros as a volume", "NIfTI that claims 8 GB", "npz of 343 MB"],
)
def test_bombs_are_refused_with_bounded_memory(server: Server, all_bombs, name: str):
    path, body, headers = all_bombs[name]
    before = server.resident_bytes()
    answer = httpx.post(server.url + path, content=body, headers=headers, timeout=20)
    assert answer.status_code in (400, 413), answer.text
    assert answer.json()["error"]
    assert server.resident_bytes() - before < 300 * MIB
    good_request_works(server)


def test_memory_of_a_wide_request_is_given_back(server: Server):
    """1,000 variates take hundreds of megabytes while they run, and none afterwards."""
    series = np.random.default_rng(0).normal(size=(1, 1000, 96)).astype("<f4")
    before = server.resident_bytes()
    for _ in range(3):
        answer = httpx.post(
            f"{server.url}/v2/models/hot-etth1/infer",
            content=series.tobytes(),
            headers={"Inference-Header-Content-Length": "0"},
            timeout=60,
        )
        assert answer.status_code == 200
    assert server.resident_bytes() - before < 64 * MIB


def test_corrupt_bundle_is_reported_and_the_others_serve(server: Server):
    models = {(row["name"], row["version"]): row for row in httpx.get(f"{server.url}/v1/models").json()["models"]}
    assert models["broken", "1"]["state"] == "unavailable"
    assert "SHA-256" in models["broken", "1"]["reason"]
    assert models["hot-etth1", "1"]["state"] == "ready"
    assert httpx.get(f"{server.url}/v2/models/broken/ready").status_code == 503


async def test_64_clients_one_of_them_bad(server: Server, repository: Path):
    """Every good answer equals ONNX Runtime's own, on both endpoints, while one client sends rubbish."""
    rng = np.random.default_rng(3)
    series = rng.normal(size=(64, 4, 96)).astype(np.float32)
    volumes = (rng.random(size=(64, 64, 64, 64)) > 0.7).astype(np.uint8)
    options = {"providers": ["CPUExecutionProvider"]}
    forecaster = ort.InferenceSession(repository / "hot-etth1/1/model.onnx", **options)
    classifier = ort.InferenceSession(repository / "hot-adrenal/1/model.onnx", **options)
    expected_forecasts = forecaster.run(None, {"series": series})[0]
    pooled = volumes.reshape(64, 1, 32, 2, 32, 2, 32, 2).mean(axis=(3, 5, 7), dtype=np.float64).astype(np.float32)
    logits = np.concatenate([classifier.run(None, {"volume": part})[0] for part in np.split(pooled, 8)]).astype(
        np.float64
    )
    manifest = orjson.loads((repository / "hot-adrenal/1/manifest.json").read_bytes())
    logits /= manifest["task"].get("temperature", 1.0)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    def npy(array: np.ndarray) -> bytes:
        stream = io.BytesIO()
        np.save(stream, array)
        return stream.getvalue()

    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=64)) as client:

        async def good_tensor(n: int) -> None:
            body = {
                "inputs": [
                    {"name": "series", "shape": [1, 4, 96], "datatype": "FP32", "data": series[n].ravel().tolist()}
                ]
            }
            answer = await client.post("/v2/models/hot-etth1/infer", json=body)
            assert answer.status_code == 200, answer.text
            got = np.array(answer.json()["outputs"][0]["data"]).reshape(4, 720)
            np.testing.assert_allclose(got, expected_forecasts[n], rtol=1e-4, atol=1e-4)

        async def good_volume(n: int) -> None:
            answer = await client.post("/v1/models/hot-adrenal/classify", content=npy(volumes[n]))
            assert answer.status_code == 200, answer.text
            got = list(answer.json()["predictions"][0]["probabilities"].values())
            np.testing.assert_allclose(got, probabilities[n], atol=1e-5)

        async def bad(n: int) -> None:
            body = {"inputs": [{"name": "series", "shape": [1, 4, 96], "datatype": "FP32", "data": [1.0] * (n + 1)}]}
            answer = await client.post("/v2/models/hot-etth1/infer", json=body)
            assert answer.status_code == 400
            answer = await client.post("/v1/models/hot-adrenal/classify", content=b"rubbish")
            assert answer.status_code == 400

        async def client_of(n: int) -> None:
            for _ in range(3):
                await (bad if n == 0 else good_tensor if n % 2 else good_volume)(n)

        await asyncio.gather(*(client_of(n) for n in range(64)))


async def test_clients_that_leave_are_counted_and_harm_nobody(server: Server):
    """Half of them in the middle of the upload, half while they wait for the answer."""
    series = np.zeros((4, 21, 96), "<f4")
    header = b'{"inputs":[{"name":"series","shape":[4,21,96],"datatype":"FP32","parameters":{"binary_data_size":%d}}]}'
    header = header % series.nbytes
    head = b"POST /v2/models/hot-etth1/infer HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: %d\r\n" % len(
        header
    )
    head += b"Content-Length: %d\r\n\r\n" % (len(header) + series.nbytes)
    cancelled = metric(server, 'kronserve_inference_requests_total{outcome="cancelled"}')

    async def leave(whole: bool) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head + header + (series.tobytes() if whole else b""))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(leave(n % 2 == 0) for n in range(200)))
    good_request_works(server)
    assert metric(server, "kronserve_queue_requests") == 0
    assert metric(server, 'kronserve_inference_requests_total{outcome="cancelled"}') > cancelled


def test_clients_that_leave_in_the_middle_of_an_upload_are_no_defect_of_ours(server: Server):
    paths = ("/v1/models/hot-etth1/forecast", "/v1/models/hot-adrenal/classify", "/v2/models/hot-etth1/infer")
    failed, gone = metric_of_status(server, 500), metric_of_status(server, 499)
    for path in paths:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
            connection.sendall(head.encode() + bytes(1000))
    patiently(lambda: metric_of_status(server, 499) >= gone + len(paths))
    assert metric_of_status(server, 500) == failed
    assert "Traceback" not in server.log.read_text()


async def test_sigterm_under_load_answers_what_was_accepted_and_exits_0(mixed_repository: Path, tmp_path: Path):
    with serving(mixed_repository, tmp_path / "log", "--queue-budget", "60") as server:
        series = np.random.default_rng(0).normal(size=(16, 21, 96)).astype(np.float32)
        body = {
            "inputs": [{"name": "series", "shape": [16, 21, 96], "datatype": "FP32", "data": series.ravel().tolist()}]
        }
        answered: list[int] = []
        refused = 0

        async def send(client: httpx.AsyncClient) -> None:
            nonlocal refused
            while True:
                try:
                    answer = await client.post("/v2/models/hot-etth1/infer", json=body)
                except httpx.TransportError:
                    refused += 1  # the listening socket is gone
                    return
                answered.append(answer.status_code)

        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            sending = [asyncio.create_task(send(client)) for _ in range(16)]
            while len(answered) < 32:  # noqa: ASYNC110  (other tasks fill it)
                await asyncio.sleep(0.01)
            status = await asyncio.to_thread(server.stop)
            await asyncio.gather(*sending)
        assert status == 0
        assert set(answered) == {200}
        assert refused == 16, "each client's last request met a closed door"
        counters = dict(re.findall(r"(\w+)=(\d+)", server.log.read_text().split("left: ")[1]))
        assert int(counters["succeeded"]) == int(counters["submitted"]) == len(answered)


def test_not_ready_but_accepting_during_the_shutdown_delay(mixed_repository: Path, tmp_path: Path):
    with serving(mixed_repository, tmp_path / "log", "--shutdown-delay", "3") as server:
        server.process.terminate()
        until = time.monotonic() + 2.5
        while (ready := httpx.get(f"{server.url}/v2/health/ready").status_code) == 200 and time.monotonic() < until:
            time.sleep(0.02)
        assert ready == 503
        good_request_works(server)
        assert server.process.wait(20) == 0


def test_live_before_ready(mixed_repository: Path, tmp_path: Path):
    """The port answers while models load; a model asked for too early is 503, not 404."""
    options = ("--cache-dir", str(tmp_path / "cache"), "--plan-seconds", "5")  # nothing remembered: loading takes time
    with serving(mixed_repository, tmp_path / "log", *options, wait_ready=False) as server:
        assert httpx.get(f"{server.url}/v2/health/live").status_code == 200
        assert httpx.get(f"{server.url}/v2/health/ready").status_code == 503
        early = httpx.get(f"{server.url}/v2/models/hot-etth1/ready")
        inference = httpx.post(f"{server.url}/v2/models/hot-etth1/infer", json={"inputs": []})
        task = httpx.post(f"{server.url}/v1/models/hot-etth1/forecast", content=csv_of(np.zeros((1, 96))))
        for answer in (early, inference, task):
            assert answer.status_code == 503, answer.text
            assert "load" in answer.json()["error"]
        assert httpx.get(f"{server.url}/v2/health/ready").status_code == 503, "it was still loading all the while"


ROW = {"name": "series", "shape": [1, 1, 96], "datatype": "FP32", "data": list(range(96))}


@contextlib.asynccontextmanager
async def queue_filled(
    server: Server, client: httpx.AsyncClient, **parameters: int
) -> AsyncIterator[asyncio.Task[httpx.Response]]:
    """While one request of many rows waits, which is more work than may; it is given up in the end.

    After its first turn only a batch of it counts for small requests. So its rows are wide: each is more than may wait.
    """
    series = np.zeros((100, 840, 96), "<f4")
    described = {"name": "series", "shape": series.shape, "datatype": "FP32"}
    described["parameters"] = {"binary_data_size": series.nbytes}
    header = orjson.dumps({"parameters": parameters, "inputs": [described]})
    large = asyncio.create_task(
        client.post(
            "/v2/models/hot-etth1/infer",
            content=header + series.tobytes(),
            headers={"Inference-Header-Content-Length": str(len(header))},
        )
    )
    await asyncio.to_thread(patiently, lambda: metric(server, "kronserve_estimated_wait_seconds") > 0.01)
    try:
        yield large
    finally:
        large.cancel()


async def test_full_queue_is_429_and_says_when_to_come_back(mixed_repository: Path, tmp_path: Path):
    """One request of many rows is more work than may wait; the next one is told so, another model's is answered."""
    with serving(mixed_repository, tmp_path / "log", "--queue-budget", "0.001", "--max-batch", "1") as server:
        small = {"inputs": [{"name": name, "shape": [1, 3], "datatype": "INT32", "data": [1, 2, 3]} for name in "ab"]}
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client, queue_filled(server, client) as large:
            for path, body in (
                ("/v2/models/hot-etth1/infer", orjson.dumps({"inputs": [ROW]})),
                ("/v1/models/hot-etth1/forecast", csv_of(np.random.default_rng(0).normal(size=(1, 96))).encode()),
            ):
                refused = await client.post(path, content=body)
                assert refused.status_code == 429, refused.text
                assert int(refused.headers["retry-after"]) >= 1
                assert "queue is full" in refused.json()["error"]
            sample = 'kronserve_rejected_requests_total{model="hot-etth1",reason="queue_wait",version="1"}'
            assert metric(server, sample) == 2
            neighbour = await client.post("/v2/models/add/infer", json=small)
            assert neighbour.status_code == 200, neighbour.text
            assert neighbour.json()["outputs"][0]["data"] == [2, 4, 6]
            assert metric(server, "kronserve_estimated_wait_seconds") > 0.01, "the queue was full all the while"
            large.cancel()
            await asyncio.to_thread(patiently, lambda: metric(server, "kronserve_estimated_wait_seconds") == 0)
            assert (await client.post("/v2/models/hot-etth1/infer", json={"inputs": [ROW]})).status_code == 200


async def test_a_queue_full_of_bulk_work_admits_what_is_urgent(mixed_repository: Path, tmp_path: Path):
    with serving(mixed_repository, tmp_path / "log", "--queue-budget", "0.001", "--max-batch", "1") as server:
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=60) as client,
            queue_filled(server, client, priority=5),
        ):
            for priority, status in ((9, 429), (5, 429), (4, 200), (0, 200), (None, 200)):
                parameters = {} if priority is None else {"parameters": {"priority": priority}}
                answer = await client.post("/v2/models/hot-etth1/infer", json={"inputs": [ROW], **parameters})
                assert answer.status_code == status, (priority, answer.text)
            assert metric(server, "kronserve_estimated_wait_seconds") > 0.01, "the queue was full all the while"


def test_bad_setting_stops_the_start_and_is_named(tmp_path: Path):
    with pytest.raises(AssertionError, match="--max-queue"), serving(tmp_path, tmp_path / "log", "--max-queue", "none"):
        pass


def test_metrics_count_what_was_asked(server: Server):
    succeeded, batches = 'kronserve_inference_requests_total{outcome="succeeded"}', "kronserve_batch_rows_count"
    before = metric(server, succeeded), metric(server, batches)
    for _ in range(5):
        good_request_works(server)
    assert metric(server, succeeded) - before[0] == 5
    assert metric(server, batches) - before[1] == 5
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"no http\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")
    assert metric(server, 'kronserve_http_requests_total{route="unparsed",status="400"}') >= 1
    assert metric(server, "kronserve_queue_requests") == 0


def test_header_of_150_mb_is_431_and_memory_stays(server: Server):
    before = server.peak_bytes()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nX-Long: ")
        with contextlib.suppress(ConnectionError):  # it is closed on a client that does not stop
            for _ in range(150):
                connection.sendall(b"a" * MIB)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(4096).startswith(b"HTTP/1.1 431 ")
    assert server.peak_bytes() - before < 32 * MIB
    good_request_works(server)

"""POST /v1/models/hot-etth1/forecast through HTTP: media types in and out, units, timestamps, refusals."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import os
import threading
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import orjson
import pandas as pd
import pytest

from app.readers.regularity import settle
from app.settings import Settings
from tests.conftest import speaking_to

pytestmark = pytest.mark.asyncio(loop_scope="session")

URL = "/v1/models/hot-etth1/forecast"
LOOKBACK, HORIZON = 96, 720
NAMES = [f"sensor {index}" for index in range(3)]


def values(variates: int = 3, steps: int = 120) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(11)
    hours = np.arange(steps)
    phase = rng.uniform(0, 6, (variates, 1))
    return 5 + np.sin(2 * np.pi * hours / 24 + phase) + 0.1 * rng.standard_normal((variates, steps))


def table(array: npt.NDArray[np.float64], name: str = "date", freq: str = "h") -> bytes:
    frame = pd.DataFrame(array.T, columns=NAMES[: len(array)])
    frame.insert(0, name, pd.date_range("2018-02-20 16:00", periods=len(frame), freq=freq))
    return frame.to_csv(index=False).encode()


def npy(array: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


async def ask(client: httpx.AsyncClient, body: bytes, media_type: str = "text/csv", **options: Any) -> httpx.Response:
    headers = {"content-type": media_type, **options.pop("headers", {})}
    return await client.post(options.pop("url", URL), content=body, headers=headers, **options)


async def forecast(client: httpx.AsyncClient, array: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    response = await ask(client, npy(array), "application/x-npy")
    assert response.status_code == 200, response.text
    return np.array(list(response.json()["forecast"].values()))


async def test_the_answer_is_what_the_graph_says_of_the_scaled_window(
    client: httpx.AsyncClient, repository: Path
) -> None:
    array = values()
    window = array[:, -LOOKBACK:]
    mean, scale = window.mean(axis=1, keepdims=True), window.std(axis=1, keepdims=True)
    session = ort.InferenceSession(repository / "hot-etth1" / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    scaled = ((window - mean) / scale).astype(np.float32)[np.newaxis]
    (truth,) = session.run(None, {session.get_inputs()[0].name: scaled})
    np.testing.assert_allclose(await forecast(client, array), truth[0] * scale + mean, rtol=1e-4, atol=1e-4)


async def test_csv_in_json_out(client: httpx.AsyncClient) -> None:
    response = await ask(client, table(values()))
    assert response.status_code == 200
    answer = response.json()
    assert set(answer) == {"model", "version", "horizon", "rolled", "frequency", "timestamps", "forecast", "input"}
    assert (answer["model"], answer["version"], answer["horizon"]) == ("hot-etth1", "1", HORIZON)
    assert answer["frequency"] == "h"
    truth = pd.date_range("2018-02-20 16:00", periods=120 + HORIZON, freq="h")[120:]
    assert answer["timestamps"] == [stamp.isoformat() for stamp in truth]
    assert list(answer["forecast"]) == NAMES
    assert {len(steps) for steps in answer["forecast"].values()} == {HORIZON}


async def test_every_way_in_gives_the_same_forecast(client: httpx.AsyncClient) -> None:
    array = values()
    truth = await forecast(client, array)
    document = orjson.dumps({"target": array.tolist(), "names": NAMES, "start": "2018-02-20T16:00", "freq": "h"})
    ways = [
        await ask(client, table(array)),
        await ask(client, document, "application/json; charset=utf-8"),
        await ask(client, gzip.compress(document), "application/json", headers={"content-encoding": "gzip"}),
        await ask(client, npy(array), "application/octet-stream"),
        await ask(client, table(array), "text/plain"),
        await ask(client, npy(array[:, -LOOKBACK:]), "application/x-npy"),
        await ask(client, npy(array), "application/x-npy", url="/v1/models/hot-etth1/versions/1/forecast"),
        await client.post(URL, files={"file": ("a.csv", table(array), "text/csv")}),
        await client.post(URL, files={"file": ("a.json", document, "application/octet-stream")}),
        await client.post(URL, files={"file": ("a", npy(array), "application/octet-stream")}),
    ]
    for response in ways:
        assert response.status_code == 200, response.text
        got = np.array(list(response.json()["forecast"].values()))
        np.testing.assert_allclose(got, truth, rtol=0, atol=1e-5)
    assert ways[1].json()["timestamps"] == ways[0].json()["timestamps"]
    assert ways[3].json()["timestamps"] is None


async def test_csv_out(client: httpx.AsyncClient) -> None:
    body = table(values(), "Timestamp")
    response = await ask(client, body, params={"horizon": 5}, headers={"accept": "text/csv"})
    assert response.headers["content-type"].startswith("text/csv")
    rows = list(csv.reader(io.StringIO(response.text)))
    assert rows[0] == ["Timestamp", *NAMES]
    assert [row[0] for row in rows[1:3]] == ["2018-02-25T16:00:00", "2018-02-25T17:00:00"]
    plain = (await ask(client, body, params={"horizon": 5})).json()["forecast"]
    got = np.array([[float(cell) for cell in row[1:]] for row in rows[1:]]).T
    np.testing.assert_array_equal(got, np.array(list(plain.values())))
    untimed = await ask(client, npy(values()), "application/x-npy", headers={"accept": "text/csv"})
    assert untimed.text.splitlines()[0] == "step,variate_0,variate_1,variate_2"
    assert untimed.text.splitlines()[1].startswith("1,")


async def test_npy_out(client: httpx.AsyncClient) -> None:
    array = values()
    response = await ask(
        client, npy(array), "application/x-npy", params={"horizon": 7}, headers={"accept": "application/x-npy"}
    )
    assert response.headers["content-type"] == "application/x-npy"
    got = np.load(io.BytesIO(response.content))
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, (await forecast(client, array))[:, :7])


@pytest.mark.parametrize("accept", ["*/*", "application/*", "image/png, */*;q=0.1", "text/csv;q=0.5, application/json"])
async def test_json_is_the_default(client: httpx.AsyncClient, accept: str) -> None:
    response = await ask(client, table(values()), headers={"accept": accept})
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("accept", ["image/png", "text/html", "application/json;q=0"])
async def test_media_types_that_are_not_given(client: httpx.AsyncClient, accept: str) -> None:
    response = await ask(client, table(values()), headers={"accept": accept})
    assert response.status_code == 406
    assert "application/json" in response.json()["error"]


@pytest.mark.parametrize(("unit", "offset"), [(1e-6, 0.0), (1e6, 0.0), (1.0, 1e4), (1e6, -3e7)])
async def test_the_forecast_follows_each_variates_unit(client: httpx.AsyncClient, unit: float, offset: float) -> None:
    array = values()
    changed = array.copy()
    changed[1] = changed[1] * unit + offset
    before, after = await forecast(client, array), await forecast(client, changed)
    np.testing.assert_allclose(after[1], before[1] * unit + offset, rtol=0, atol=1e-5 * unit)
    np.testing.assert_allclose(after[[0, 2]], before[[0, 2]], rtol=0, atol=1e-5)


async def test_a_constant_variate_stays_constant(client: httpx.AsyncClient) -> None:
    array = values()
    array[2] = 273.15
    answer = await forecast(client, array)
    assert (answer[2] == 273.15).all()
    assert np.ptp(answer[0]) > 0


@pytest.mark.parametrize("variates", [1, 2, 40])
async def test_any_number_of_variates(client: httpx.AsyncClient, variates: int) -> None:
    assert (await forecast(client, values(variates))).shape == (variates, HORIZON)


async def test_horizons_are_prefixes_wherever_they_are_given(client: httpx.AsyncClient) -> None:
    array = values()
    whole = await forecast(client, array)
    body = {"target": array.tolist(), "horizon": 4}
    inside = await ask(client, orjson.dumps(body), "application/json")
    both = await ask(client, orjson.dumps(body), "application/json", params={"horizon": 4})
    for response in (inside, both):
        np.testing.assert_array_equal(np.array(list(response.json()["forecast"].values())), whole[:, :4])


async def test_faults_before_the_lookback_do_not_matter_and_are_counted(client: httpx.AsyncClient) -> None:
    whole = (await ask(client, table(values()))).json()
    assert whole["input"] == {"rows": 120, "used": 96, "faults": 0, "filled_steps": 0, "filled_values": 0}
    early = await ask(client, broken_table(7, 2, ""))
    assert early.json()["input"]["faults"] == 1
    np.testing.assert_allclose(early.json()["forecast"]["sensor 1"], whole["forecast"]["sensor 1"], atol=1e-6)


async def test_missing_values_and_steps_are_filled_on_request(client: httpx.AsyncClient) -> None:
    rows = table(values()).decode().splitlines()
    cells = rows[100].split(",")
    rows[100] = ",".join([cells[0], "", *cells[2:]])
    del rows[110]
    body = "\n".join(rows).encode()
    assert (await ask(client, body)).status_code == 422
    answer = (await ask(client, body, params={"fill": "linear"})).json()
    assert answer["input"] == {"rows": 119, "used": 96, "faults": 0, "filled_steps": 1, "filled_values": 1}
    array = values()
    array[:, 109] = array[:, [108, 110]].mean(axis=1)
    array[0, 99] = array[0, [98, 100]].mean()
    np.testing.assert_allclose(list(answer["forecast"].values()), await forecast(client, array), atol=1e-5)


async def test_a_long_file_is_forecast_series_by_series(client: httpx.AsyncClient) -> None:
    frames = []
    for number, length in enumerate((96, 130, 100)):
        array = values(1, length) + number
        stamps = pd.date_range("2020-01-01", periods=length, freq="D")
        frames.append(pd.DataFrame({"unique_id": f"s{number}", "ds": stamps, "y": array[0]}))
    body = pd.concat(frames).sample(frac=1, random_state=1).sort_values("ds", kind="stable").to_csv(index=False)
    answer = (await ask(client, body.encode(), params={"horizon": 5})).json()
    by_id = {one["id"]: one for one in answer["series"]}
    assert set(by_id) == {"s0", "s1", "s2"}
    for frame, one in ((frame, by_id[frame["unique_id"].iloc[0]]) for frame in frames):
        truth = await forecast(client, frame["y"].to_numpy()[np.newaxis])
        np.testing.assert_allclose(one["forecast"]["y"], truth[0, :5], atol=1e-5)
        assert one["timestamps"][0] == (frame["ds"].iloc[-1] + pd.Timedelta(days=1)).isoformat()
    text = (await ask(client, body.encode(), params={"horizon": 2, "id": "s1,s0"}, headers={"accept": "text/csv"})).text
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["unique_id", "ds", "y"]
    assert [row[0] for row in rows[1:]] == ["s1", "s1", "s0", "s0"]
    stacked = await ask(client, body.encode(), headers={"accept": "application/x-npy"})
    assert np.load(io.BytesIO(stacked.content)).shape == (3, 1, HORIZON)
    short = pd.concat([*frames, frames[0][:50].assign(unique_id="short")]).to_csv(index=False)
    refused = await ask(client, short.encode())
    assert refused.status_code == 422
    assert "series 'short'" in refused.json()["error"]


async def test_records_are_read_as_csv_is(client: httpx.AsyncClient) -> None:
    frame = pd.read_csv(io.BytesIO(table(values())))
    answer = await ask(client, frame.to_json(orient="records").encode(), "application/json", params={"horizon": 3})
    assert answer.status_code == 200, answer.text
    truth = (await ask(client, table(values()), params={"horizon": 3})).json()
    assert answer.json()["timestamps"] == truth["timestamps"]
    for name, steps in truth["forecast"].items():
        np.testing.assert_allclose(answer.json()["forecast"][name], steps, atol=1e-5)


async def test_horizons_past_the_head_roll_forward(client: httpx.AsyncClient) -> None:
    array = values()
    answer = (await ask(client, table(array), params={"horizon": HORIZON + 30})).json()
    assert answer["rolled"] is True
    got = np.array(list(answer["forecast"].values()))
    first = await forecast(client, array)
    np.testing.assert_allclose(got[:, :HORIZON], first, atol=1e-6)
    second = await forecast(client, np.concatenate([array, first], axis=1))
    np.testing.assert_allclose(got[:, HORIZON:], second[:, :30], atol=1e-4)
    assert answer["timestamps"] == [
        stamp.isoformat() for stamp in pd.date_range("2018-02-20 16:00", periods=120 + HORIZON + 30, freq="h")[120:]
    ]


async def test_frequencies(client: httpx.AsyncClient) -> None:
    monthly = await ask(client, table(values(), freq="ME"), params={"horizon": 2})
    assert monthly.json()["frequency"] == "ME"
    assert monthly.json()["timestamps"] == ["2028-02-29T16:00:00", "2028-03-31T16:00:00"]
    given = await ask(client, table(values(), freq="10min"), params={"horizon": 1, "freq": "10min"})
    assert given.json()["timestamps"] == ["2018-02-21T12:00:00"]
    untimed = await ask(client, npy(values()), "application/x-npy", params={"freq": "hour"})
    assert (untimed.json()["frequency"], untimed.json()["timestamps"]) == ("h", None)


def broken_table(row: int, column: int, cell: str) -> bytes:
    rows = [line.split(",") for line in table(values()).decode().splitlines()]
    rows[row][column] = cell
    return "\n".join(",".join(cells) for cells in rows).encode()


@pytest.mark.parametrize(
    ("body", "media_type", "params", "status", "field", "message"),
    [
        (broken_table(107, 2, ""), "text/csv", {}, 422, "sensor 1", "row 107"),
        (broken_table(107, 2, "NaN"), "text/csv", {}, 422, "sensor 1", "row 107"),
        (broken_table(7, 2, "broken"), "text/csv", {}, 422, "sensor 1", "'broken'"),
        (broken_table(107, 0, "2018-02-20T16:00:00"), "text/csv", {}, 422, "date", "row 107"),
        (broken_table(0, 2, "sensor 0"), "text/csv", {}, 422, "names", "two variates"),
        (table(values()), "text/csv", {"freq": "D"}, 422, "date", "does not follow"),
        (table(values()), "text/csv", {"freq": "fortnight"}, 422, "freq", "fortnight"),
        (table(values()), "text/csv", {"horizon": 0}, 422, "horizon", "1 to 720"),
        (table(values()), "text/csv", {"fill": "zero"}, 400, "fill", "ffill"),
        (table(values()), "text/csv", {"columns": "absent"}, 422, "columns", "absent"),
        (table(values()), "text/csv", {"horizon": 5761}, 422, "horizon", "rolls forward to 5760"),
        (table(values(steps=95)), "text/csv", {}, 422, None, "lookback of this model is 96"),
        (b'{"target": [[1, 2], [3]]}', "application/json", {}, 400, "target", "1 elements"),
        (b'{"target": [[1, NaN]]}', "application/json", {}, 400, None, "JSON"),
        (b'{"target": [[1, null]]}', "application/json", {}, 422, "variate_0", "missing"),
        (b'{"target": ', "application/json", {}, 400, None, "JSON"),
        (b'{"target": [1], "horizon": 3}', "application/json", {"horizon": 4}, 422, "horizon", "beside"),
        (npy(values())[:-1], "application/x-npy", {}, 400, None, "claims"),
        (npy(np.full((2, 96), np.nan)), "application/x-npy", {}, 422, "variate_0", "row 1"),
        (npy(np.zeros((1, 1, 96))), "application/x-npy", {}, 422, "array", "3 dimensions"),
        (npy(np.zeros((3000, 96))), "application/x-npy", {}, 413, None, "variates"),
        (b"", "text/csv", {}, 400, None, "empty"),
        (b"PAR1", "application/vnd.apache.parquet", {}, 400, None, "parquet"),
        (b"PAR1", "image/png", {}, 415, None, "text/csv"),
        (bytes(5 << 20), "text/csv", {}, 413, None, "limit"),
    ],
)
async def test_refusals(
    client: httpx.AsyncClient,
    body: bytes,
    media_type: str,
    params: dict[str, Any],
    status: int,
    field: str | None,
    message: str,
) -> None:
    response = await ask(client, body, media_type, params=params)
    assert response.status_code == status, response.text
    answer = response.json()
    assert answer.get("field") == field
    assert message in answer["error"]
    assert (await ask(client, table(values()))).status_code == 200


@pytest.mark.parametrize("task", ["forecast", "evaluate"])
async def test_long_texts_as_timestamps_or_steps_are_refused_unread(client: httpx.AsyncClient, task: str) -> None:
    """Even if what they begin with is a timestamp, and blanks are all that follows."""
    url, document = URL.replace("forecast", task), {"target": values(1).tolist(), "freq": "h"}
    for start in ("2020-01-01" + " " * 60, "1" + " " * 200_000 + "x", " " * 240_000):
        response = await ask(client, orjson.dumps({**document, "start": start}), "application/json", url=url)
        assert (response.status_code, response.json()["field"]) == (422, "start")
        assert "at most 64" in response.json()["error"]
        assert len(response.text) < 200
    for until in ("2018-02-25" + " " * 60, "1" + " " * 15_000 + "x"):
        response = await ask(client, table(values()), url=url, params={"until": until})
        assert (response.status_code, response.json()["field"]) == (422, "until")
        assert "at most 64" in response.json()["error"]
        assert len(response.text) < 200
    response = await ask(client, orjson.dumps({**document, "freq": "h" + " " * 240_000}), "application/json", url=url)
    assert (response.status_code, response.json()["field"]) == (422, "freq")
    assert len(response.text) < 200


async def test_a_horizon_that_is_no_number(client: httpx.AsyncClient) -> None:
    response = await ask(client, table(values()), params={"horizon": "week"})
    assert 400 <= response.status_code < 500
    assert "horizon" in response.json()["error"]


async def test_unknown_models_and_other_tasks(client: httpx.AsyncClient) -> None:
    for url, status in (
        ("/v1/models/absent/forecast", 404),
        ("/v1/models/hot-etth1/versions/99/forecast", 404),
        ("/v1/models/hot-adrenal/forecast", 422),
    ):
        response = await ask(client, table(values()), url=url)
        assert response.status_code == status
        assert response.json()["error"]


async def test_encodings_and_forms_that_are_refused(client: httpx.AsyncClient) -> None:
    body = table(values())
    bomb = await ask(client, gzip.compress(bytes(64 << 20)), headers={"content-encoding": "gzip"})
    assert bomb.status_code == 413
    assert (await ask(client, body, headers={"content-encoding": "zstd"})).status_code == 415
    assert (await ask(client, body, headers={"content-encoding": "gzip"})).status_code == 400
    two = await client.post(URL, files=[("file", ("a.csv", body)), ("file", ("b.csv", body))])
    assert (two.status_code, two.json()["field"]) == (400, "file")
    other = await client.post(URL, files={"data": ("a.csv", body)})
    assert (other.status_code, other.json()["field"]) == (400, "file")
    assert (await ask(client, body, "multipart/form-data; boundary=x")).status_code == 400


async def test_bad_neighbours_do_not_touch_good_requests(client: httpx.AsyncClient) -> None:
    arrays = [values(2, 96) * (1 + index) for index in range(24)]
    truths = [await forecast(client, array) for array in arrays]
    bad = [ask(client, npy(np.full((2, 96), np.inf)), "application/x-npy") for _ in arrays]
    good = [forecast(client, array) for array in arrays]
    answers = await asyncio.gather(*(request for pair in zip(good, bad, strict=True) for request in pair))
    for truth, answer, refusal in zip(truths, answers[::2], answers[1::2], strict=True):
        np.testing.assert_allclose(answer, truth, rtol=0, atol=1e-4)
        assert refusal.status_code == 422


async def test_the_document_describes_bodies_and_answers(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/v1/models/{model}/forecast"]["post"]
    assert set(operation["requestBody"]["content"]) == {
        "text/csv",
        "application/json",
        "application/x-npy",
        "application/vnd.apache.parquet",
        "application/vnd.apache.arrow.file",
        "application/vnd.apache.arrow.stream",
        "multipart/form-data",
    }
    assert set(operation["responses"]["200"]["content"]) == {"text/csv", "application/json", "application/x-npy"}
    assert {"400", "404", "406", "413", "415", "422", "429", "503", "504"} <= set(operation["responses"])
    names = {parameter["name"] for parameter in operation["parameters"]}
    assert names >= {"model", "horizon", "freq", "fill", "columns", "id", "until", "dates", "decimal", "tz"}


@pytest.fixture(scope="session")
def ett() -> pd.DataFrame:
    folder = os.environ.get("KRONSERVE_DATA")
    if not folder:
        pytest.skip("KRONSERVE_DATA is not set: it names the folder of the real data sets")
    return pd.read_csv(Path(folder) / "ETTh1.csv")


TEST_START = (12 + 4) * 30 * 24  # rows: training has 12 months of 30 days, validation 4


@pytest.mark.real_data
async def test_96_rows_of_ett_give_720_hours(client: httpx.AsyncClient, ett: pd.DataFrame) -> None:
    window = ett.iloc[TEST_START - LOOKBACK : TEST_START]
    answer = (await ask(client, window.to_csv(index=False).encode())).json()
    truth = ett["date"].iloc[TEST_START : TEST_START + HORIZON]
    assert [stamp.replace("T", " ") for stamp in answer["timestamps"]] == truth.tolist()
    assert list(answer["forecast"]) == list(ett.columns[1:])
    assert {len(steps) for steps in answer["forecast"].values()} == {HORIZON}


@pytest.mark.real_data
async def test_the_first_day_is_forecast_better_than_by_repeating_the_last_one(
    client: httpx.AsyncClient, ett: pd.DataFrame
) -> None:
    table = ett.iloc[:, 1:].to_numpy(np.float64).T
    unit = table[:, :TEST_START].std(axis=1, keepdims=True)
    errors = []
    for start in range(TEST_START, TEST_START + 2800, 140):
        window, truth = table[:, start - LOOKBACK : start], table[:, start : start + 24]
        guesses = (await forecast(client, window))[:, :24], window[:, -24:]
        errors.append([(((guess - truth) / unit) ** 2).mean() for guess in guesses])
    model, last_day = np.mean(errors, axis=0)
    assert model < last_day


async def test_no_path_is_redirected_and_every_one_has_the_error_shape(client: httpx.AsyncClient) -> None:
    for path in (f"{URL}/", "/v1/models/", "/metrics/", "/docs/", "/v1/models/hot-etth1/nothing/"):
        for method in ("GET", "POST"):
            response = await client.request(method, path, headers={"host": "elsewhere.example"})
            assert response.status_code == 404, path
            assert response.json() == {"error": "Not Found"}
    for path in ("/v2/", "/v2/health/ready/", "/v2/models/hot-etth1/"):
        assert (await client.get(path)).status_code == 200


async def test_repeated_accept_headers_are_one_list(client: httpx.AsyncClient) -> None:
    headers = [("content-type", "text/csv"), ("accept", "image/png"), ("accept", "text/csv")]
    response = await client.post(URL, content=table(values()), headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/csv")


@pytest.mark.real_data
async def test_whole_files_are_forecast_as_they_are(repository: Path, cache: Path) -> None:
    """ETTh1, and Weather with its Latin-1 header, a repeated row and a gap far from its end."""
    folder = os.environ.get("KRONSERVE_DATA")
    if not folder:
        pytest.skip("KRONSERVE_DATA is not set: it names the folder of the real data sets")
    etth1 = (Path(folder) / "ETTh1.csv").read_bytes()
    with zipfile.ZipFile(Path(folder) / "weather.zip") as archive:
        weather = archive.read("weather/weather.csv")
    async with speaking_to(Settings(repository=repository, cache_dir=cache, device="cpu")) as client:
        for body, rows, variates, after in (
            (etth1, 17420, 7, "2018-06-26T20:00:00"),
            (weather, 52696, 21, "2021-01-01T00:10:00"),
        ):
            response = await ask(client, body)
            assert response.status_code == 200, response.text
            answer = response.json()
            assert (answer["input"]["rows"], len(answer["forecast"])) == (rows, variates)
            assert answer["timestamps"][0] == after


async def test_what_takes_longer_than_its_bytes_tell_is_not_done_in_the_loop(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many series, steps to fill, columns that a process reads: a small file may still hold up the others."""
    found: list[bool] = []

    def noted(*args: Any, **options: Any) -> Any:
        found.append(threading.current_thread() is threading.main_thread())
        return settle(*args, **options)

    monkeypatch.setattr("app.api.forecast.settle", noted)
    monkeypatch.setattr("app.api.timeseries.settle", noted)
    plain, evaluated = table(values(1)), URL.replace("forecast", "evaluate")
    frame = pd.read_csv(io.BytesIO(plain))
    long = frame.assign(Item_ID="a").to_csv(index=False).encode()
    records = orjson.dumps(frame.assign(unique_id="a").to_dict("records")).replace(b"unique_id", b"uniq\\u0075e_id")
    parquet = io.BytesIO()
    frame.to_parquet(parquet)
    one = {"name": "x", "series": values(1)[0].tolist(), "frequency": "hour"}
    inputs = {"model": "hot-etth1", "inputs": [one] * 4, "options": {"horizon": 2}}
    assert (await ask(client, plain)).status_code == 200  # pandas is there
    found.clear()
    for body, media_type, url, options in (
        (plain, "text/csv", URL, {"freq": "h"}),
        (plain, "text/csv", evaluated, {"horizon": 2}),
        (plain, "text/csv", URL, {"fill": "ffill"}),
        (plain, "text/csv", evaluated, {"horizon": 2, "fill": "ffill"}),
        (long, "text/csv", URL, {}),
        (long.replace(b"Item_ID", b"which"), "text/csv", URL, {"id_column": "which"}),
        (records, "application/json", URL, {}),
        (parquet.getvalue(), "application/vnd.apache.parquet", URL, {}),
        (orjson.dumps(inputs), "application/json", "/v1/timeseries/forecast", {}),
    ):
        response = await client.post(url, content=body, params=options, headers={"content-type": media_type})
        assert response.status_code == 200, response.text
    assert found == [True] * 2 + [False] * 10


async def test_left_out_steps_cost_no_more_than_what_is_sent_may(
    client: httpx.AsyncClient, repository: Path, cache: Path
) -> None:
    seconds = table(values(steps=150), freq="s")
    response = await ask(client, seconds, params={"freq": "us", "fill": "ffill"})
    assert response.status_code == 422
    assert response.json()["field"] == "fill"
    rows = [f"{name},2020-01-0{day},1\n" for name in range(200) for day in (1, 9)]
    body = ("unique_id,ds,y\n" + "".join(rows)).encode()
    settings = Settings(repository=repository, cache_dir=cache, device="cpu", max_decoded_bytes=100_000)
    async with speaking_to(settings) as small:
        response = await ask(small, body, params={"freq": "h", "fill": "ffill"})
    assert response.status_code == 413
    assert "left-out steps" in response.json()["error"]

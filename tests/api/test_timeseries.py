"""KServe's time-series API: its shapes, its orientation, its refusals."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")

URL = "/v1/timeseries/forecast"
RNG = np.random.default_rng(2)
ONE = (5 + np.sin(np.arange(120) / 4) + 0.1 * RNG.standard_normal(120)).tolist()
TWO = [ONE, (np.array(ONE[::-1]) * 3).tolist()]


def univariate(**changes: Any) -> dict[str, Any]:
    one = {"type": "univariate_time_series", "name": "load", "series": ONE, "frequency": "hour"}
    return {**one, "start_timestamp": "2020-01-01T00:00:00", **changes}


def body(*inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {"model": "hot-etth1", "inputs": list(inputs), "options": {"horizon": 12, **options}, "metadata": {"x": 1}}


async def plain(client: httpx.AsyncClient, target: Any) -> np.ndarray:
    answer = await client.post("/v1/models/hot-etth1/forecast", json={"target": target, "horizon": 12})
    return np.array(list(answer.json()["forecast"].values()))


async def test_one_variate(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, json=body(univariate(), quantiles=[0.1, 0.5, 0.9]))
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["status"], answer["model"], answer["error"]) == ("completed", "hot-etth1", None)
    assert isinstance(answer["created_at"], int)
    assert answer["id"]
    (output,) = answer["outputs"]
    assert (output["type"], output["status"]) == ("time_series_forecast", "completed")
    (content,) = output["content"]
    assert (content["type"], content["name"], content["frequency"]) == ("univariate_time_series", "load", "hour")
    assert content["start_timestamp"] == (pd.Timestamp("2020-01-01") + pd.Timedelta(hours=120)).isoformat()
    np.testing.assert_allclose(content["mean_forecast"], (await plain(client, ONE))[0], atol=1e-5)
    assert list(content["quantiles"]) == ["0.1", "0.5", "0.9"]
    assert (np.diff([content["quantiles"][key] for key in content["quantiles"]], axis=0) >= 0).all()


async def test_several_inputs_of_different_widths(client: httpx.AsyncClient) -> None:
    several = univariate(type="multivariate_time_series", name="both", series=TWO, start_timestamp=None)
    answer = (await client.post(URL, json=body(several, univariate(), several))).json()
    contents = [output["content"][0] for output in answer["outputs"]]
    assert [content["name"] for content in contents] == ["both", "load", "both"]
    assert len({output["id"] for output in answer["outputs"]}) == 3
    np.testing.assert_allclose(contents[0]["mean_forecast"], await plain(client, TWO), atol=1e-5)
    np.testing.assert_allclose(contents[1]["mean_forecast"], (await plain(client, ONE))[0], atol=1e-5)
    assert contents[0]["start_timestamp"] == ""  # KServe's own type takes no null
    assert contents[0]["quantiles"] is None


@pytest.mark.parametrize(
    "frequency", ["second", "S", "minute", "T", "hour", "H", "day", "D", "month", "M", "year", "Y"]
)
async def test_frequencies(client: httpx.AsyncClient, frequency: str) -> None:
    answer = await client.post(URL, json=body(univariate(frequency=frequency)))
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("asked", "status", "field"),
    [
        ({**body(univariate()), "model": "absent"}, 404, None),
        ({**body(univariate()), "model": "hot-adrenal"}, 422, None),
        ({"model": "hot-etth1"}, 400, "inputs"),
        (body(), 400, "inputs"),
        (body(univariate(), horizon=0), 400, "options.horizon"),
        (body(univariate(), horizon="24"), 400, "options.horizon"),
        (body(univariate(), horizon=True), 400, "options.horizon"),
        (body(univariate(), horizon=99999), 422, "options.horizon"),
        (body(univariate(), quantiles=[2.0]), 422, "options.quantiles"),
        (body(univariate(), quantiles=["0.1"]), 400, "options.quantiles.0"),
        (body(univariate(), quantiles=[0.5] * 101), 400, "options.quantiles"),
        (body(univariate(series=TWO)), 400, "inputs.0.series"),
        (body(univariate(series=[])), 400, "inputs.0.series"),
        (body(univariate(type="multivariate_time_series", series=[[], []])), 400, "inputs.0.series"),
        (body(univariate(series=["5.0"] * 120)), 422, "inputs.0.series"),
        (body(univariate(series=[True] * 120)), 422, "inputs.0.series"),
        (body(univariate(type="multivariate_time_series", series=[ONE] * 1025)), 413, "inputs.0"),
        (body(univariate(series=[[1.0], [1.0, 2.0]])), 400, "inputs.0.series"),
        (body(univariate(series=ONE[:50])), 422, "inputs.0"),
        (body(univariate(), univariate(series=[None, *ONE[1:96]])), 422, "inputs.1"),
        (body(univariate(frequency="fortnight")), 422, "inputs.0.frequency"),
        (body(univariate(start_timestamp="soon")), 422, "inputs.0.start_timestamp"),
    ],
)
async def test_refusals(client: httpx.AsyncClient, asked: dict[str, Any], status: int, field: str | None) -> None:
    response = await client.post(URL, json=asked)
    assert response.status_code == status, response.text
    assert response.json().get("field") == field
    assert response.json()["error"]


async def test_an_element_that_is_no_number_is_named(client: httpx.AsyncClient) -> None:
    answer = await client.post(URL, json=body(univariate(series=[*ONE, "7"])))
    assert answer.json()["error"] == "inputs.0.series[120] is text, not a number"


async def test_the_past_of_all_inputs_together_is_bounded(client: httpx.AsyncClient) -> None:
    """Whatever their numbers of variates: 4,096 forecasts of the past for 138 inputs are fewer than 30 for each."""
    long = (5 + np.sin(np.arange(830) / 4) + 0.1 * RNG.standard_normal(830)).tolist()
    others = [univariate(series=long, name=str(number)) for number in range(137)]
    wide = univariate(type="multivariate_time_series", series=[long, long[::-1]])
    short = {**wide, "series": [long[-120:], long[::-1][-120:]]}

    async def widths(*inputs: dict[str, Any]) -> np.ndarray:
        outputs = (await client.post(URL, json=body(*inputs, quantiles=[0.1, 0.9], horizon=2))).json()["outputs"]
        quantiles = outputs[0]["content"][0]["quantiles"]
        return np.subtract(quantiles["0.9"], quantiles["0.1"])

    plain = await widths(short)  # from the bundle's validation errors alone
    np.testing.assert_allclose(await widths(wide, *others), plain, rtol=1e-4)
    assert (np.abs(await widths(wide, *others[:2]) / plain - 1) > 0.05).all()


async def test_answers_of_more_numbers_than_one_holds_are_refused(client: httpx.AsyncClient) -> None:
    series = [ONE] * 300
    asked = body(univariate(type="multivariate_time_series", series=series), horizon=1200)
    asked["options"]["quantiles"] = [round(0.01 * number, 2) for number in range(1, 50)]
    response = await client.post(URL, json=asked)
    assert (response.status_code, response.json()["field"]) == (422, "options.quantiles")
    assert "18000000 numbers" in response.json()["error"]


@pytest.mark.parametrize("start", ["2020-01-01" + " " * 60, "1" + " " * 185_000 + "x"])
async def test_a_long_text_as_a_timestamp_is_refused_unread(client: httpx.AsyncClient, start: str) -> None:
    response = await client.post(URL, json=body(univariate(), univariate(start_timestamp=start)))
    assert (response.status_code, response.json()["field"]) == (422, "inputs.1.start_timestamp")
    assert "start" in response.json()["error"]
    assert "at most 64" in response.json()["error"]
    assert len(response.text) < 200
    response = await client.post(URL, json=body(univariate(frequency="h" + " " * 185_000)))
    assert (response.status_code, response.json()["field"]) == (422, "inputs.0.frequency")
    assert len(response.text) < 200


async def test_what_is_no_json(client: httpx.AsyncClient) -> None:
    for content in (b"", b"{", b"[1]", b'"x"', b"[" * 200_000, b'{"a":[' + b"{}," * 200_000 + b"1]}"):
        assert (await client.post(URL, content=content)).status_code == 400


async def test_the_names_of_the_models_that_forecast(client: httpx.AsyncClient) -> None:
    names = (await client.get("/v1/timeseries/models")).json()
    assert "hot-etth1" in names
    assert "hot-adrenal" not in names
    assert len(names) == len(set(names))

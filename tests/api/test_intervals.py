"""Prediction intervals and backtests through HTTP, on the shipped forecaster."""

from __future__ import annotations

import csv
import io
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")

URL = "/v1/models/hot-etth1"
NAMES = ["HUFL", "OT"]


def values(steps: int) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(4)
    hours = np.arange(steps)
    return 5 + np.sin(2 * np.pi * hours / 24 + np.array([[0.0], [2.0]])) + 0.3 * rng.standard_normal((2, steps))


def table(steps: int, names: list[str] = NAMES, freq: str = "h") -> bytes:
    frame = pd.DataFrame(values(steps).T, columns=names)
    frame.insert(0, "date", pd.date_range("2018-01-01", periods=steps, freq=freq))
    return frame.to_csv(index=False).encode()


async def ask(client: httpx.AsyncClient, body: bytes, path: str = "forecast", **params: Any) -> httpx.Response:
    headers = {"content-type": "text/csv", "accept": params.pop("accept", "*/*")}
    return await client.post(f"{URL}/{path}", content=body, params=params, headers=headers)


@pytest.mark.parametrize(
    ("body", "calibration"),
    [
        (table(96), "validation"),
        (table(2400), "validation and history"),
        (table(2400, ["x", "y"]), "history"),
        (table(2400, freq="D"), "history"),
        (table(120, ["x", "y"]), "other data"),
    ],
)
async def test_the_answer_says_what_intervals_were_calibrated_on(
    client: httpx.AsyncClient, body: bytes, calibration: str
) -> None:
    response = await ask(client, body, horizon=48, level="80,95", quantiles="0.5")
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["intervals"]["calibration"] == calibration
    assert (answer["intervals"]["origins"] > 30) is ("history" in calibration)
    assert list(answer["quantiles"]) == ["0.025", "0.1", "0.5", "0.9", "0.975"]
    plain = (await ask(client, body, horizon=48)).json()
    assert answer["quantiles"]["0.5"] == answer["forecast"]
    for name, steps in plain["forecast"].items():
        np.testing.assert_allclose(answer["forecast"][name], steps, atol=1e-4)
        ordered = np.array([answer["quantiles"][key][name] for key in answer["quantiles"]])
        assert (np.diff(ordered, axis=0) >= 0).all()
        assert (ordered[-1] > ordered[0]).all()


async def test_intervals_of_the_own_past_hold(client: httpx.AsyncClient) -> None:
    """Cut a series at many points: intervals of 80 % cover about 80 % of what came, on data no one has seen."""
    whole = values(3600)
    inside = []
    for end in range(2400, 3500, 60):
        frame = pd.DataFrame(whole[:, :end].T, columns=["x", "y"])
        frame.insert(0, "date", pd.date_range("2018-01-01", periods=end, freq="h"))
        answer = (await ask(client, frame.to_csv(index=False).encode(), horizon=24, level="80")).json()
        low, high = (np.array(list(answer["quantiles"][key].values())) for key in ("0.1", "0.9"))
        truth = whole[:, end : end + 24]
        inside.append((truth >= low) & (truth <= high))
    assert np.mean(inside) == pytest.approx(0.8, abs=0.05)


def with_gap(begin: int, end: int) -> bytes:
    frame = pd.read_csv(io.BytesIO(table(2400)))
    frame.loc[begin : end - 1, NAMES] = np.nan
    return frame.to_csv(index=False).encode()


@pytest.mark.parametrize("fill", ["ffill", "linear"])
async def test_filled_values_tell_nothing_of_how_far_forecasts_miss(client: httpx.AsyncClient, fill: str) -> None:
    async def width(body: bytes) -> npt.NDArray[np.float64]:
        answer = (await ask(client, body, horizon=24, level="80", fill=fill)).json()
        low, high = (np.array(list(answer["quantiles"][key].values())) for key in ("0.1", "0.9"))
        return high - low

    ratio = await width(with_gap(1200, 2280)) / await width(table(2400))
    assert 0.7 < ratio.mean() < 1.4
    alone = (await ask(client, with_gap(1, 2399), horizon=24, level="80", fill=fill)).json()["intervals"]
    assert (alone["calibration"], alone["origins"]) == ("validation", 0)
    nothing = await ask(client, with_gap(600, 2352), horizon=816, level="80", fill=fill)
    assert (nothing.status_code, nothing.json()["field"]) == (422, "fill")


@pytest.mark.parametrize("unit", [1e-3, 1e4])
async def test_intervals_follow_the_unit_of_a_series_that_often_stands_still(
    client: httpx.AsyncClient, unit: float
) -> None:
    rain = np.maximum(values(2400)[:1] - 5.5, 0) * ((np.arange(2400) + 60) % 150 < 40)

    async def quantiles(target: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        body = {"target": target.tolist(), "names": [NAMES[0]], "freq": "h"}
        answer = (await client.post(f"{URL}/forecast", json=body, params={"level": "95", "horizon": "48"})).json()
        assert answer["intervals"]["calibration"] == "validation and history"
        return np.array([next(iter(answer["quantiles"][key].values())) for key in ("0.025", "0.975")])

    np.testing.assert_allclose(await quantiles(rain * unit), await quantiles(rain) * unit, rtol=1e-3, atol=1e-4 * unit)


async def test_quantiles_past_float_range_are_refused(client: httpx.AsyncClient) -> None:
    noise = np.random.default_rng(1).standard_normal(1700)
    target = np.concatenate([noise[:900] * 1e-3, noise[900:] * 1e200])
    params = {"quantiles": "0.1,0.9", "horizon": "720"}
    response = await client.post(f"{URL}/forecast", json={"target": target.tolist()}, params=params)
    assert (response.status_code, response.json()["field"]) == (422, "quantiles")


async def test_quantiles_in_csv_and_npy(client: httpx.AsyncClient) -> None:
    answer = (await ask(client, table(120), horizon=5, quantiles="0.1,0.9")).json()
    text = (await ask(client, table(120), horizon=5, quantiles="0.1,0.9", accept="text/csv")).text
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["date", "HUFL", "OT", "HUFL:0.1", "OT:0.1", "HUFL:0.9", "OT:0.9"]
    assert float(rows[1][4]) == answer["quantiles"]["0.1"]["OT"][0]
    stacked = np.load(
        io.BytesIO((await ask(client, table(120), horizon=5, quantiles="0.1,0.9", accept="application/x-npy")).content)
    )
    assert stacked.shape == (3, 2, 5)
    np.testing.assert_array_equal(stacked[2, 0], answer["quantiles"]["0.9"]["HUFL"])


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"quantiles": "2"}, "quantiles"),
        ({"level": "many"}, "level"),
    ],
)
async def test_intervals_that_are_not_given(client: httpx.AsyncClient, params: dict[str, Any], field: str) -> None:
    response = await ask(client, table(120), **params)
    assert (response.status_code, response.json()["field"]) == (422, field)


async def test_past_the_head_the_own_past_alone_says_how_wide(client: httpx.AsyncClient) -> None:
    response = await ask(client, table(2352), horizon=816, level="80,95")
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["rolled"] is True
    assert answer["intervals"]["calibration"] == "history"
    assert answer["intervals"]["origins"] > 100
    plain = (await ask(client, table(2352), horizon=816)).json()["forecast"]
    for name, steps in plain.items():
        np.testing.assert_allclose(answer["forecast"][name], steps, atol=1e-4)
        ordered = np.array([answer["quantiles"][key][name] for key in ("0.025", "0.1", "0.9", "0.975")])
        assert ordered.shape == (4, 816)
        assert (np.diff(ordered, axis=0) >= 0).all()
        assert (ordered[2] > ordered[1]).all()
    # Up to the head they are those of a request that asks no further, made from other points of the same past.
    own = (await ask(client, table(2352), horizon=720, level="80,95")).json()["quantiles"]
    for key in own:
        for name in NAMES:
            away = [
                np.abs(np.array(found[key][name][:720]) - plain[name][:720]) for found in (own, answer["quantiles"])
            ]
            np.testing.assert_allclose(away[1], away[0], rtol=0.1, atol=0.02)


@pytest.mark.parametrize(
    ("steps", "horizon", "words"),
    [(1630, 816, "must have 1631 regular steps; it has 1630"), (96, 5760, "must have 6575 regular steps; it has 96")],
)
async def test_past_the_head_a_short_history_is_refused(
    client: httpx.AsyncClient, steps: int, horizon: int, words: str
) -> None:
    response = await ask(client, table(steps), horizon=horizon, level="80")
    assert (response.status_code, response.json()["field"]) == (422, "horizon")
    assert words in response.json()["error"]
    assert (await ask(client, table(steps), horizon=horizon)).status_code == 200


async def test_past_the_head_too_many_series_are_refused(client: httpx.AsyncClient) -> None:
    """Of 4096 forecasts of the past, 69 series have 59 each: not 30 of two passes."""
    stamps = pd.date_range("2018-01-01", periods=1631, freq="h").astype(str).to_numpy()
    numbers = values(1631)[0].round(2)
    frame = pd.DataFrame(
        {
            "unique_id": np.repeat([f"s{at}" for at in range(69)], 1631),
            "ds": np.tile(stamps, 69),
            "y": np.tile(numbers, 69),
        }
    )
    response = await ask(client, frame.to_csv(index=False).encode(), horizon=816, level="80")
    assert (response.status_code, response.json()["field"]) == (422, "horizon")
    assert "series 's0'" in response.json()["error"]
    assert "for 69 series of 1 variates" in response.json()["error"]


async def test_a_backtest_compares_with_the_last_season(client: httpx.AsyncClient) -> None:
    response = await ask(client, table(1200), "evaluate", horizon="24,96", windows=40)
    assert response.status_code == 200, response.text
    (series,) = response.json()["series"]
    assert (series["id"], series["season"], list(series["horizons"])) == (None, 24, ["24", "96"])
    assert 30 <= series["windows"] <= 40
    for found in series["horizons"].values():
        # Repeating a noisy day doubles the noise's variance; a model that averages days comes near to the noise.
        assert found["model"]["mae"] > 0
        assert found["seasonal_naive"]["mase"] == pytest.approx(1, abs=0.1)
        assert 0 < found["coverage"]["validation"]["0.8"] <= found["coverage"]["validation"]["0.95"] <= 1
    short = await ask(client, table(96 + 24 + 9, freq="min"), "evaluate", horizon=24)
    assert (short.json()["series"][0]["season"], short.json()["series"][0]["windows"]) == (1, 10)
    later = await ask(client, table(300), "evaluate", horizon=24, season=270)
    assert (later.json()["series"][0]["season"], later.json()["series"][0]["windows"]) == (270, 7)
    long = pd.DataFrame(
        {"unique_id": "s", "ds": pd.date_range("2018-01-01", periods=300, freq="h"), "y": values(300)[0]}
    )
    several = pd.concat([long, long.assign(unique_id="t")]).to_csv(index=False).encode()
    answer = (await ask(client, several, "evaluate", horizon=24)).json()
    assert [one["id"] for one in answer["series"]] == ["s", "t"]
    assert answer["series"][0]["horizons"] == answer["series"][1]["horizons"]


async def test_a_backtest_counts_no_filled_values(client: httpx.AsyncClient) -> None:
    lines = table(200).splitlines(keepends=True)
    gap = b"".join(lines[:151] + lines[191:])  # rows 151 to 190; the one forecast is of 151 to 200
    options = {"season": 1, "windows": 1, "fill": "ffill"}
    answer = await ask(client, gap, "evaluate", horizon="50", **options)
    assert answer.json()["series"][0]["input"] == {
        "rows": 160, "used": 200, "faults": 0, "filled_steps": 40, "filled_values": 0
    }  # fmt: skip
    refused = await ask(client, gap, "evaluate", horizon="40,50", **options)
    assert (refused.status_code, refused.json()["field"]) == (422, "fill")


async def test_a_backtest_rolls_past_the_head(client: httpx.AsyncClient) -> None:
    response = await ask(client, table(2400), "evaluate", horizon="720,816", windows=150)
    assert response.status_code == 200, response.text
    found = response.json()["series"][0]["horizons"]
    assert list(found["720"]["coverage"]) == ["validation", "validation and history"]
    assert list(found["816"]["coverage"]) == ["history"]
    assert found["816"]["coverage"]["history"]["0.8"] == pytest.approx(0.8, abs=0.1)
    assert found["816"]["model"]["mae"] == pytest.approx(found["720"]["model"]["mae"], rel=0.2)


@pytest.mark.parametrize(
    ("body", "params", "status", "field"),
    [
        (table(120), {}, 422, None),
        (table(1200), {"horizon": "5761"}, 422, "horizon"),
        (table(1200), {"horizon": "soon"}, 422, "horizon"),
        (table(1200), {"horizon": ",".join(str(one) for one in range(1, 52))}, 422, "horizon"),
        (table(1200), {"windows": 0}, 400, "windows"),
        (table(300), {"horizon": "24", "season": 277}, 422, "season"),
        (table(1200), {"fill": "linear"}, 422, "fill"),
        (b"", {}, 400, None),
    ],
)
async def test_backtests_that_are_not_made(
    client: httpx.AsyncClient, body: bytes, params: dict[str, Any], status: int, field: str | None
) -> None:
    response = await ask(client, body, "evaluate", **params)
    assert (response.status_code, response.json().get("field")) == (status, field)

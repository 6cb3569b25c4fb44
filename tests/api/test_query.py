"""Query parameters of /v1/models/{model}/TASK: what a path does not know, or has one value of, is never passed over."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")

LISTS = {
    "forecast": {"columns", "id", "quantiles", "level"},
    "evaluate": {"columns", "id", "horizon"},
    "classify": set[str](),
}
"""What may be repeated."""

BODY = b"a,b\n1,2\n"


async def ask(client: httpx.AsyncClient, task: str, query: str, model: str = "hot-etth1") -> httpx.Response:
    headers = {"content-type": "text/csv"}
    return await client.post(f"/v1/models/{model}/{task}?{query}", content=BODY, headers=headers)


async def refusal(client: httpx.AsyncClient, task: str, query: str, model: str = "hot-etth1") -> dict[str, Any]:
    response = await ask(client, task, query, model)
    assert response.status_code == 400, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize("task", LISTS)
@pytest.mark.parametrize("path", ["", "/versions/1"])
async def test_unknown_names_are_refused(client: httpx.AsyncClient, task: str, path: str) -> None:
    model = ("hot-adrenal" if task == "classify" else "hot-etth1") + path
    for query in ("foo=1", "foo", "foo=1&foo=2"):
        answer = await refusal(client, task, query, model)
        assert answer["field"] == "foo"
        assert "unknown query parameter 'foo'" in answer["error"]


@pytest.mark.parametrize(
    ("task", "name", "meant"),
    [
        ("forecast", "Quantiles", "quantiles"),
        ("forecast", "HORIZON", "horizon"),
        ("forecast", "date", "dates"),
        ("forecast", "ids", "id"),
        ("evaluate", "window", "windows"),
        ("classify", "T", "t"),
    ],
)
async def test_a_slip_of_the_name_is_told(client: httpx.AsyncClient, task: str, name: str, meant: str) -> None:
    answer = await refusal(client, task, f"{name}=1")
    assert answer["field"] == name
    assert answer["error"].endswith(f"did you mean {meant!r}?")


async def test_any_other_unknown_name_is_answered_with_those_known(client: httpx.AsyncClient) -> None:
    assert (await refusal(client, "classify", "horizon=3"))["error"].endswith("known are explain, t")
    known = (await refusal(client, "forecast", "windows=3"))["error"]
    assert "horizon" in known
    assert "season" not in known
    # Some of what a JSON body may have.
    for name in ("target", "start"):
        assert (await refusal(client, "forecast", f"{name}=1"))["field"] == name


async def test_a_long_name_is_not_repeated_whole(client: httpx.AsyncClient) -> None:
    answer = await refusal(client, "forecast", "x" * 10_000)
    assert answer["field"] == "x" * 40
    assert len(answer["error"]) < 300


@pytest.mark.parametrize("task", LISTS)
async def test_every_documented_parameter_is_known_and_only_lists_are_repeated(
    client: httpx.AsyncClient, task: str
) -> None:
    document = (await client.get("/openapi.json")).json()
    for path in (f"/v1/models/{{model}}/{task}", f"/v1/models/{{model}}/versions/{{version}}/{task}"):
        parameters = document["paths"][path]["post"]["parameters"]
        names = {one["name"] for one in parameters if one["in"] == "query"}
        assert names >= LISTS[task]
        # Before a model is looked for, so that one that is absent tells what was let through.
        for name in names:
            value = {"fill": "ffill", "dates": "dmy", "decimal": "comma", "explain": "attention"}.get(name, "1")
            assert (await ask(client, task, f"{name}={value}", "absent")).status_code == 404
            twice = await ask(client, task, f"{name}={value}&{name}={value}", "absent")
            if name in LISTS[task]:
                assert twice.status_code == 404
            else:
                assert (twice.status_code, twice.json()["field"]) == (400, name)
                assert f"query parameter {name!r} is given more than once" in twice.json()["error"]

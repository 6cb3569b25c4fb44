"""Run with an interpreter that has kserve: its REST and gRPC clients ask a server, and print what they read as JSON.

Of its time-series API, which has no client, the answer is read by its own type.

usage: kserve_calls.py HTTP_PORT GRPC_PORT MODEL SERIES.npy
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.rest.timeseries.types import ForecastRequest, ForecastResponse


def request(model: str, series: np.ndarray, *, raw: bool) -> InferRequest:
    tensor = InferInput("series", list(series.shape), "FP32")
    tensor.set_data_from_numpy(series, binary_data=raw)
    return InferRequest(model, [tensor], request_id="request 7")


def read(response: Any) -> dict[str, Any]:
    output = response.outputs[0]
    values = output.as_numpy()
    return {"id": response.id, "name": output.name, "shape": list(values.shape), "values": values.ravel().tolist()}


def forecast(base: str, model: str, series: np.ndarray, start: str | None) -> dict[str, Any]:
    several = {"type": "multivariate_time_series", "name": "s", "series": series.tolist(), "frequency": "hour"}
    options = {"horizon": 8, "quantiles": [0.1, 0.9]}
    asked = ForecastRequest.model_validate(
        {"model": model, "inputs": [{**several, "start_timestamp": start}], "options": options}
    )
    answer = httpx.post(f"{base}/v1/timeseries/forecast", json=asked.model_dump(mode="json"))
    read = ForecastResponse.model_validate(answer.raise_for_status().json())
    content = read.outputs[0].content[0]
    return {
        "start": content.start_timestamp,
        "shape": np.shape(content.mean_forecast),
        "quantiles": list(content.quantiles),
        "usage": read.usage.model_dump(),
    }


async def main(http_port: str, grpc_port: str, model: str, file: str) -> None:
    series = np.load(file)
    seen: dict[str, Any] = {}
    async with InferenceGRPCClient(f"127.0.0.1:{grpc_port}") as client:
        seen["grpc ready"] = [
            await client.is_server_live(),
            await client.is_server_ready(),
            await client.is_model_ready(model),
        ]
        for raw in (True, False):
            seen[f"grpc raw={raw}"] = read(await client.infer(request(model, series, raw=raw)))
    base = f"http://127.0.0.1:{http_port}"
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        seen["rest ready"] = [
            await client.is_server_live(base),
            await client.is_server_ready(base),
            await client.is_model_ready(base, model),
        ]
        for raw in (True, False):
            seen[f"rest raw={raw}"] = read(await client.infer(base, request(model, series, raw=raw), model_name=model))
    seen["time series"] = [forecast(base, model, series[0], start) for start in ("2020-01-01T00:00:00", None)]
    print(json.dumps(seen))


asyncio.run(main(*sys.argv[1:]))

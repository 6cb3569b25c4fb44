"""Peer: the FastAPI service that one writes around ONNX Runtime in an afternoon.

- POST /v2/models/M/infer: the Open Inference Protocol's JSON through pydantic models; FastAPI runs the plain function
  in its thread pool and serialises the answer with pydantic.
- POST /raw/M: the tensor's bytes in, the output's bytes out; the best that binary can be in this manner.

One session per model. `--intra-op 0` is ONNX Runtime's default, an intra-op thread per core, spinning; 1 lets each
request run on the thread that brought it, which gained nothing. uvicorn with uvloop and httptools, one process.
"""

from __future__ import annotations

import argparse
from math import prod

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class InferRequest(BaseModel):
    inputs: list[Tensor]


class InferResponse(BaseModel):
    model_name: str
    outputs: list[Tensor]


def create_app(graphs: dict[str, str], intra_op: int) -> FastAPI:
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op
    if intra_op == 1:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    sessions = {name: ort.InferenceSession(graph, options) for name, graph in graphs.items()}
    app = FastAPI()

    @app.get("/health")
    def health() -> bool:
        return True

    @app.post("/v2/models/{model}/infer")
    def infer(model: str, request: InferRequest) -> InferResponse:
        session, tensor = sessions[model], request.inputs[0]
        data = np.array(tensor.data, np.float32).reshape(tensor.shape)
        output = session.run(None, {tensor.name: data})[0]
        name = session.get_outputs()[0].name
        answer = Tensor(name=name, shape=list(output.shape), datatype="FP32", data=output.ravel().tolist())
        return InferResponse(model_name=model, outputs=[answer])

    @app.post("/raw/{model}")
    async def raw(model: str, request: Request) -> Response:
        session, body = sessions[model], await request.body()
        node = session.get_inputs()[0]
        shape = _shape(node.shape, len(body) // 4)
        feed = {node.name: np.frombuffer(body, np.float32).reshape(shape)}
        output = (await run_in_threadpool(session.run, None, feed))[0]
        return Response(output.tobytes(), media_type="application/octet-stream")

    return app


def _shape(graph_shape: list[int | str], elements: int) -> list[int]:
    """One sample: the batch axis is 1; one more dynamic axis follows from the number of elements."""
    fixed = prod(size for size in graph_shape[1:] if isinstance(size, int))
    return [1, *(size if isinstance(size, int) else elements // fixed for size in graph_shape[1:])]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=GRAPH")
    parser.add_argument("--intra-op", type=int, default=0)
    arguments = parser.parse_args()
    models = dict(item.split("=", 1) for item in arguments.model)
    uvicorn.run(create_app(models, arguments.intra_op), port=arguments.port, access_log=False, log_level="warning")

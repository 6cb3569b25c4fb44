"""Peer: LitServe, every model a LitAPI.

POST /M takes the tensor's bytes (application/octet-stream) or the Open Inference Protocol's JSON. By default LitServe
parses JSON in its API process with the standard library and sends Python lists through a queue to the worker; here
the body travels as bytes and the worker parses and serialises with orjson, the faster way that a user of LitServe
has. The API reads the raw body through a FastAPI dependency, since LitServe itself knows JSON and forms only.

`--workers` processes per model, each with a session of `--intra-op` threads; `--batch` requests at most per run.
Short trials on two cores found nothing better than the defaults: batches of 4 (a third less), LitServe's ZeroMQ
queue, two API servers, one worker with batches of 8 on two threads (less than half). Batching does not pay on a CPU;
the option is there.
"""

# No postponed annotations here: LitServe hands the request's annotation to FastAPI as it stands.
import argparse
from math import prod
from typing import Annotated, Any

import litserve
import numpy as np
import onnxruntime as ort
import orjson
from fastapi import Depends, Request, Response

JSON, BINARY = "application/json", "application/octet-stream"


async def read(request: Request) -> tuple[str, bytes]:
    return request.headers.get("content-type", BINARY), await request.body()


class Served(litserve.LitAPI):
    """One model; tensors keep their batch axis of 1, so a batch is their concatenation."""

    def __init__(self, name: str, graph: str, intra_op: int, batch: int) -> None:
        super().__init__(api_path=f"/{name}", max_batch_size=batch, batch_timeout=0.0)
        self.graph, self.intra_op, self.name = graph, intra_op, name

    def setup(self, device: str) -> None:  # noqa: ARG002  (LitServe's signature)
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.intra_op
        if self.intra_op == 1:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = ort.InferenceSession(self.graph, options)
        self.input, self.output = self.session.get_inputs()[0], self.session.get_outputs()[0].name

    def decode_request(self, request: Annotated[tuple[str, bytes], Depends(read)]) -> tuple[str, np.ndarray]:
        content_type, body = request
        if content_type == JSON:
            tensor = orjson.loads(body)["inputs"][0]
            return JSON, np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        axes = self.input.shape[1:]
        fixed = prod(size for size in axes if isinstance(size, int))
        shape = [1, *(size if isinstance(size, int) else len(body) // 4 // fixed for size in axes)]
        return BINARY, np.frombuffer(body, np.float32).reshape(shape)

    def batch(self, inputs: list[tuple[str, np.ndarray]]) -> Any:
        return [kind for kind, _ in inputs], np.concatenate([tensor for _, tensor in inputs])

    def predict(self, x: Any) -> Any:
        kinds, tensor = x
        return kinds, self.session.run([self.output], {self.input.name: tensor})[0]

    def unbatch(self, output: Any) -> Any:
        kinds, tensor = output
        return [(kind, tensor[row : row + 1]) for row, kind in enumerate(kinds)]

    def encode_response(self, output: Any) -> Response:
        kind, tensor = output
        if kind != JSON:
            return Response(tensor.tobytes(), media_type=BINARY)
        answer = {"name": self.output, "datatype": "FP32", "shape": tensor.shape, "data": tensor.ravel()}
        body = orjson.dumps({"model_name": self.name, "outputs": [answer]}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(body, media_type=JSON)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=GRAPH")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--intra-op", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--api-servers", type=int, default=1)
    parser.add_argument("--fast-queue", action="store_true")
    a = parser.parse_args()
    apis = [Served(*item.split("=", 1), a.intra_op, a.batch) for item in a.model]
    server = litserve.LitServer(
        apis, accelerator="cpu", workers_per_device=a.workers, timeout=False, fast_queue=a.fast_queue
    )
    server.run(
        host="127.0.0.1",
        port=a.port,
        num_api_servers=a.api_servers,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )

"""Peer: NVIDIA Triton Inference Server, the binary from the nvidia-pytriton wheel, with its python backend.

The wheel has no ONNX Runtime backend, so `triton_model.py` calls onnxruntime from Triton's python backend: one
process per model instance, tensors through shared memory. Triton's own C++ HTTP endpoint speaks the Open Inference
Protocol, JSON and binary. Dynamic batching without a delay, preferred sizes left to Triton; as many instances per
model as there are cores, each with one intra-op thread. Short trials on two cores (batches of 2, 4 and 8, three
instances, one instance with two threads) found nothing better than batches of up to 4 on two instances.

This script writes Triton's model repository from the ONNX graphs and becomes tritonserver.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import onnxruntime as ort

CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: {batch}
input [{{ name: "{input}", data_type: TYPE_FP32, dims: {input_dims} }}]
output [{{ name: "{output}", data_type: TYPE_FP32, dims: {output_dims} }}]
instance_group [{{ kind: KIND_CPU, count: {instances} }}]
dynamic_batching {{ }}
parameters [
  {{ key: "graph", value: {{ string_value: "{graph}" }} }},
  {{ key: "intra_op", value: {{ string_value: "{intra_op}" }} }}
]
"""


def write_model(repository: Path, name: str, graph: str, batch: int, instances: int, intra_op: int) -> None:
    """REPOSITORY/NAME/{config.pbtxt, 1/model.py}."""
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (entry,), (exit_,) = session.get_inputs(), session.get_outputs()

    def dims(node: ort.NodeArg) -> str:
        return str([size if isinstance(size, int) else -1 for size in node.shape[1:]])

    version = repository / name / "1"
    version.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("triton_model.py"), version / "model.py")
    (repository / name / "config.pbtxt").write_text(
        CONFIG.format(
            name=name,
            batch=batch,
            input=entry.name,
            input_dims=dims(entry),
            output=exit_.name,
            output_dims=dims(exit_),
            instances=instances,
            graph=graph,
            intra_op=intra_op,
        )
    )


def lay_out(work: Path) -> tuple[Path, Path]:
    """The binary, and a folder of backends in which the python backend has the stub of this interpreter's version."""
    packages = Path(sysconfig.get_paths()["purelib"])
    server = packages / "pytriton" / "tritonserver"
    backend = work / "backends" / "python"
    shutil.copytree(server / "backends" / "python", backend)
    stubs = server / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(stubs / "triton_python_backend_stub", backend)
    return server / "bin" / "tritonserver", backend.parent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=GRAPH")
    parser.add_argument("--work", type=Path, required=True, help="a folder that is emptied first")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--instances", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--intra-op", type=int, default=1)
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    for item in arguments.model:
        model, path = item.split("=", 1)
        write_model(arguments.work / "models", model, path, arguments.batch, arguments.instances, arguments.intra_op)
    binary, backends = lay_out(arguments.work)
    libraries = Path(sysconfig.get_paths()["purelib"]) / "nvidia_pytriton.libs"
    library_paths = [str(libraries), str(sysconfig.get_config_var("LIBDIR")), os.environ.get("LD_LIBRARY_PATH", "")]
    environment = os.environ | {
        "LD_LIBRARY_PATH": ":".join(path for path in library_paths if path),
        # The stub embeds the interpreter that it finds on PATH: this virtual environment's.
        "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ.get('PATH', '')}",
        "OMP_NUM_THREADS": "1",
    }
    command = [str(binary), f"--model-repository={arguments.work / 'models'}", f"--backend-directory={backends}"]
    command += ["--http-address=127.0.0.1", f"--http-port={arguments.port}", "--allow-grpc=false"]
    command += ["--allow-metrics=false", "--log-info=false"]
    os.execve(binary, command, environment)  # noqa: S606

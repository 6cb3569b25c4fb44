"""What the exporter's graphs are worth: nodes and speed beside a stock torch.onnx.export, and int8 beside float32.

    python -m bench.graphs            writes bench/results/graphs.md; minutes

The stock graph is what torch.onnx.export(dynamo=True) makes, with its own optimisation, of the direct formulation
(`bench.direct`). One thread, batch 1 and 8; the graphs take turns run by run, so that a drifting machine slows all
alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxscript import ir
from safetensors.numpy import load, save_file
from safetensors.torch import save
from torch import nn

from app.manifest import Forecasting
from bench.direct import directly
from bench.machine import processor
from export.bundle import Request, export_bundle
from export.checkpoint import Checkpoint, load_module, read_checkpoint
from export.precision import to_int8
from export.signature import signature
from export.trace import trace, with_functions
from export.weights import refer_to
from models.config import ClassifierConfig, Config, ForecasterConfig, build

RESULTS = Path(__file__).parent / "results" / "graphs.md"
BATCHES = (1, 8)
VARIATES = 7
"""Of a forecaster's row, where no data set says how many."""

PAPER: dict[str, Config] = {
    "forecaster, HOT paper's size": ForecasterConfig(),
    "classifier, HOT paper's size": ClassifierConfig(volume=(28, 28, 28), dim=128, heads=8, hidden=512),
}
"""With random weights, which cost the same time as trained ones."""


def checkpoints(repository: Path) -> dict[str, tuple[Checkpoint, int]]:
    """The shipped HOT bundles and the paper's sizes, each with the variates of a row if it is a forecaster."""
    found = {}
    for folder in sorted(repository.glob("hot-*/1")):
        source = read_checkpoint(folder)
        task = source.manifest.task if source.manifest is not None else None
        variates = len(task.variates) if isinstance(task, Forecasting) else 0
        found[folder.parent.name] = replace(source, manifest=None), variates or VARIATES
    for name, config in PAPER.items():
        torch.manual_seed(0)
        found[name] = Checkpoint(config, Path(name), save(build(config).state_dict()), {}, None), VARIATES
    return found


def stock(module: nn.Module, config: Config, path: Path) -> Path:
    """torch.onnx.export as it comes, with the same dynamic axes."""
    sig = signature(config)
    sizes = [size if size > 0 else 3 + 2 * axis for axis, size in enumerate(sig.input_shape)]
    dynamic = {
        axis: torch.export.Dim(name)
        for axis, (name, size) in enumerate(zip(sig.input_axes, sig.input_shape, strict=True))
        if size < 0
    }
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (torch.zeros(sizes),),
            path,
            dynamo=True,
            opset_version=20,
            input_names=[sig.input],
            output_names=[sig.output],
            dynamic_shapes=(dynamic,),
            verbose=False,
        )
    return path


def int8(checkpoint: Checkpoint, folder: Path) -> Path:
    """The exporter's graph with every projection in int8, unjudged."""
    assert isinstance(checkpoint.config, Config)
    model = trace(load_module(checkpoint), signature(checkpoint.config))
    lowered = ir.serde.deserialize_model(ir.serde.serialize_model(model))
    folder.mkdir()
    save_file(to_int8(lowered, load(checkpoint.weights)), folder / "weights.safetensors")
    refer_to(lowered, folder / "weights.safetensors")
    onnx.save(with_functions(lowered), folder / "model.onnx")
    return folder / "model.onnx"


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def nodes(path: Path) -> tuple[int, int]:
    """Of the file, and of what ONNX Runtime makes of it before it runs."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path.with_suffix(".optimised"))
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimised.bin")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return sum(_counted(onnx.load(path, load_external_data=False)).values()), sum(_counted(optimised).values())


def _counted(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node if node.op_type != "Constant")


def race(runs: list[Callable[[], object]], seconds: float) -> list[float]:
    """Median seconds of each, taken in turns."""
    for run in runs:
        for _ in range(3):
            run()
    taken: list[list[float]] = [[] for _ in runs]
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for run, times in zip(runs, taken, strict=True):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in taken]


def measure(name: str, checkpoint: Checkpoint, variates: int, work: Path, seconds: float) -> list[str]:
    """The table's rows of one model."""
    config = checkpoint.config
    assert isinstance(config, ForecasterConfig | ClassifierConfig)
    work.mkdir(parents=True)
    own, _ = export_bundle(checkpoint, Request("own", "1", work))
    combine = config.attention.removeprefix("hot-")
    paths = [
        stock(directly(load_module(checkpoint), combine), config, work / "stock.onnx"),
        own / "model.onnx",
        int8(checkpoint, work / "int8"),
    ]
    sessions, counts = [session(path) for path in paths], [nodes(path) for path in paths[:2]]
    rows = []
    for batch in BATCHES:
        shape = [batch, *(size if size > 0 else variates for size in signature(config).input_shape[1:])]
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        feeds = {sessions[0].get_inputs()[0].name: x}
        answers = [s.run(None, feeds)[0] for s in sessions]
        assert np.abs(answers[0] - answers[1]).max() < 1e-4 * np.abs(answers[0]).max(), "both compute the same"
        times = race([partial(s.run, None, feeds) for s in sessions], seconds)
        rows.append(
            f"| {name} | {batch} | {counts[0][0]} -> {counts[0][1]} | {counts[1][0]} -> {counts[1][1]} | "
            + " | ".join(f"{1e3 * value:.3f}" for value in times)
            + f" | **{times[0] / times[1]:.2f}** | {times[1] / times[2]:.2f} |"
        )
    return rows


HEAD = """# The exporter's graphs

`python -m bench.graphs` on {processor}, {cores} cores, no GPU; one thread; ONNX Runtime {runtime}, torch {torch}. The
three graphs took turns for {seconds:g} s a row; medians in milliseconds.

- Nodes: in the file, and after ONNX Runtime's own optimisation, which inlines the functions.
- stock: torch.onnx.export(dynamo=True) of the direct formulation (project every token, then pool; einsum).
- this: `kronserve export`. int8: the same with every projection in int8, not judged on a metric.
- gain: stock over this. int8 gain: this over int8.

A forecaster's row has the variates of its data set, {variates} at the HOT paper's size, where the weights are random.

| model | batch | nodes, stock | nodes | stock | this | int8 | gain | int8 gain |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.graphs", description="Nodes and speed of exported graphs.")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each model and batch; default: %(default)s")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for number, (name, (checkpoint, variates)) in enumerate(checkpoints(options.repository).items()):
            rows += measure(name, checkpoint, variates, Path(work) / str(number), options.seconds)
    head = HEAD.format(
        processor=processor(),
        cores=len(os.sched_getaffinity(0)),
        runtime=ort.__version__,
        torch=torch.__version__,
        seconds=options.seconds,
        variates=VARIATES,
    )
    options.out.write_text(head + "\n".join(rows) + "\n", encoding="utf-8")
    print("\n".join(rows))


if __name__ == "__main__":
    main()

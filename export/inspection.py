"""What a bundle is, read from its manifest and its graph. Needs onnx, not torch."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from pydantic import ValidationError

from app.manifest import Manifest, Parity, Precision, fault
from export.cost import cost_of_one_row
from export.graph_checks import GraphError
from export.report import precision_lines


class BundleError(Exception):
    """The folder is not a readable bundle."""


def describe(folder: Path) -> dict[str, Any]:
    """The manifest, and under `graph` the operators, functions, parameters and inline constants of model.onnx.

    Under `cost`: what a run on one row takes. BundleError: not a readable bundle.
    """
    try:
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
        graph = onnx.load(folder / "model.onnx", load_external_data=False)
    except OSError as error:
        raise BundleError(f"{error.filename}: {error.strerror}") from error
    except ValidationError as error:
        raise BundleError(f"{folder / 'manifest.json'} is not valid: {fault(error)}") from error
    except DecodeError as error:
        raise BundleError(f"{folder / 'model.onnx'} is not ONNX: {error}") from error
    try:
        of_one_row = cost_of_one_row(folder, manifest).as_dict()
    except GraphError as error:
        raise BundleError(f"{folder}: {error}") from error
    external = [tensor for tensor in graph.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    inline = [tensor for tensor in graph.graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
    return {
        **manifest.model_dump(mode="json"),
        "graph": {
            "ir_version": graph.ir_version,
            "opsets": {entry.domain or "ai.onnx": entry.version for entry in graph.opset_import},
            "nodes": len(graph.graph.node),
            "operators": dict(
                Counter(_qualified(node.domain, node.op_type) for node in graph.graph.node).most_common()
            ),
            "functions": {_qualified(body.domain, body.name): len(body.node) for body in graph.functions},
            "parameters": sum(math.prod(tensor.dims) for tensor in external),
            "inline_constants_bytes": sum(len(tensor.raw_data) for tensor in inline),
        },
        "cost": of_one_row,
    }


def _qualified(domain: str, name: str) -> str:
    return f"{domain}.{name}" if domain else name


def _tensor(spec: dict[str, Any]) -> str:
    axes = spec["axes"] or [""] * len(spec["shape"])
    sizes = [axis if size < 0 else f"{axis} {size}".strip() for axis, size in zip(axes, spec["shape"], strict=True)]
    return f"{spec['name']} {spec['datatype']} [{', '.join(sizes)}]{' on request' if spec['on_request'] else ''}"


def _without_tables(task: dict[str, Any]) -> dict[str, Any]:
    """The task as one line takes it: of intervals, what they were measured on; --json has their numbers."""
    found = task.get("intervals")
    return task if found is None else {**task, "intervals": f"{found['split']}, {found['windows']} windows"}


def render(description: dict[str, Any]) -> str:
    """The description as lines for a terminal."""
    graph, provenance, parity = description["graph"], description["provenance"], description["parity"]
    operators = ", ".join(f"{name} {count}" for name, count in graph["operators"].items())
    functions = ", ".join(f"{name} ({nodes} nodes)" for name, nodes in graph["functions"].items())
    rows = [
        ("model", f"{description['name']} version {description['version']}"),
        ("description", description["description"]),
        ("task", _pairs(_without_tables(description["task"]))),
        ("inputs", "; ".join(map(_tensor, description["inputs"]))),
        ("outputs", "; ".join(map(_tensor, description["outputs"]))),
        ("config", _pairs(provenance["config"])),
        ("parameters", f"{graph['parameters']:,}"),
        ("graph", f"{graph['nodes']} nodes, opset {provenance['opset']}, IR {graph['ir_version']}"),
        ("cost", _cost(description["cost"])),
        ("precision", "; ".join(precision_lines(Precision.model_validate(description["precision"])))),
        ("operators", operators),
        ("functions", functions),
        ("inline", f"{graph['inline_constants_bytes']:,} bytes of folded constants"),
        ("weights", f"sha256 {provenance['weights_sha256']}"),
        ("trained on", provenance["training"].get("dataset", "")),
        ("created", provenance["created"]),
        ("versions", _pairs(provenance["versions"])),
        ("checks", ", ".join(f"{check['name']}" for check in description["checks"] if check["passed"])),
        ("parity", _parity(description["parity"])),
        ("on request", _parity(description["explain_parity"])),
        ("from float64", ", ".join(f"{side} {distance:.2e}" for side, distance in parity["rounding"].items())),
        ("metrics", _pairs(description["metrics"])),
        ("data licence", description["data_licence"]),
        ("intended use", description["intended_use"]),
    ]
    return "\n".join(f"{label:<14}{text}" for label, text in rows if text)


def _parity(parity: dict[str, Any] | None) -> str:
    if parity is None:
        return ""
    worst = Parity.model_validate(parity).worst
    return (
        f"worst relative error {worst.error:.2e} of {worst.allowed or parity['tolerance']:.2g} allowed, "
        f"{worst.output + ' for ' if worst.output else ''}{worst.inputs} inputs of shape {list(worst.shape)}, "
        f"{len(parity['cases'])} comparisons"
    )


def _cost(cost: dict[str, Any]) -> str:
    return (
        f"{cost['flops'] / 1e6:,.1f} MFLOP for an input of {cost['shape']}; {cost['weights_bytes'] / 1e6:,.2f} MB of "
        f"weights, at most {cost['activations_bytes'] / 1e6:,.2f} MB of activations"
    )


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items() if value not in ("", None, [], {}))

"""What a bundle is, read from its manifest and its graph. Needs onnx, not torch."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from pydantic import ValidationError

from app.manifest import Manifest, Parity


class BundleError(Exception):
    """The folder is not a readable bundle."""


def describe(folder: Path) -> dict[str, Any]:
    """The manifest, and under `graph` the operators, functions, parameters and inline constants of model.onnx."""
    try:
        manifest = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
        graph = onnx.load(folder / "model.onnx", load_external_data=False)
    except OSError as error:
        raise BundleError(f"{error.filename}: {error.strerror}") from error
    except (ValidationError, DecodeError) as error:
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
    }


def _qualified(domain: str, name: str) -> str:
    return f"{domain}.{name}" if domain else name


def _tensor(spec: dict[str, Any]) -> str:
    axes = spec["axes"] or [""] * len(spec["shape"])
    sizes = [axis if size < 0 else f"{axis} {size}".strip() for axis, size in zip(axes, spec["shape"], strict=True)]
    return f"{spec['name']} {spec['datatype']} [{', '.join(sizes)}]{' on request' if spec['on_request'] else ''}"


def render(description: dict[str, Any]) -> str:
    """The description as lines for a terminal."""
    graph, provenance, parity = description["graph"], description["provenance"], description["parity"]
    worst = max(parity["cases"], key=lambda case: case["relative"])
    operators = ", ".join(f"{name} {count}" for name, count in graph["operators"].items())
    functions = ", ".join(f"{name} ({nodes} nodes)" for name, nodes in graph["functions"].items())
    rows = [
        ("model", f"{description['name']} version {description['version']}"),
        ("description", description["description"]),
        ("task", _pairs(description["task"])),
        ("inputs", "; ".join(map(_tensor, description["inputs"]))),
        ("outputs", "; ".join(map(_tensor, description["outputs"]))),
        ("config", _pairs(provenance["config"])),
        ("parameters", f"{graph['parameters']:,}"),
        ("graph", f"{graph['nodes']} nodes, opset {provenance['opset']}, IR {graph['ir_version']}"),
        ("operators", operators),
        ("functions", functions),
        ("inline", f"{graph['inline_constants_bytes']:,} bytes of folded constants"),
        ("weights", f"sha256 {provenance['weights_sha256']}"),
        ("trained on", provenance["training"].get("dataset", "")),
        ("created", provenance["created"]),
        ("versions", _pairs(provenance["versions"])),
        (
            "parity",
            f"worst relative error {worst['relative']:.2e} of {parity['tolerance']:g} allowed, {worst['inputs']} "
            f"inputs of shape {worst['shape']}, {len(parity['cases'])} shapes",
        ),
        ("on request", _explain_parity(description["explain_parity"])),
        ("from float64", ", ".join(f"{side} {distance:.2e}" for side, distance in parity["rounding"].items())),
        ("metrics", _pairs(description["metrics"])),
        ("data licence", description["data_licence"]),
        ("intended use", description["intended_use"]),
    ]
    return "\n".join(f"{label:<14}{text}" for label, text in rows if text)


def _explain_parity(parity: dict[str, Any] | None) -> str:
    if parity is None:
        return ""
    worst = Parity.model_validate(parity).worst
    return (
        f"worst relative error {worst.relative:.2e} of {worst.allowed or parity['tolerance']:.2g} allowed, "
        f"{worst.output} for {worst.inputs} inputs of shape {list(worst.shape)}"
    )


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items() if value not in ("", None, [], {}))

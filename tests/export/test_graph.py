"""What is in model.onnx: operators, references to the weights, names; and what must not be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from safetensors.numpy import load_file

from export import ops
from models.config import ForecasterConfig
from tests.export.conftest import Exported


def _load(exported: Exported) -> onnx.ModelProto:
    return onnx.load(exported.graph, load_external_data=False)


def _external(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {
        tensor.name: tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL
    }


def test_attention_is_one_node_per_block_with_its_function(exported: Exported) -> None:
    model = _load(exported)
    order = 2 if isinstance(exported.config, ForecasterConfig) else 3
    name = f"Hot{exported.config.attention.removeprefix('hot-').capitalize()}{order}"
    assert [node.op_type for node in model.graph.node if node.domain] == [name] * exported.config.depth
    (function,) = model.functions
    assert (function.domain, function.name) == (ops.DOMAIN, name)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 20, ops.DOMAIN: 1}
    assert {entry.version for entry in function.opset_import} == {20}


def test_attention_scale_is_one_over_the_root_of_the_head_width(exported: Exported) -> None:
    width = exported.config.dim // exported.config.heads
    for node in _load(exported).graph.node:
        if node.domain == ops.DOMAIN:
            (attribute,) = node.attribute
            assert attribute.name == "scale"
            np.testing.assert_allclose(attribute.f, width**-0.5, rtol=1e-7)


def test_every_weight_is_referenced_where_it_lies(exported: Exported) -> None:
    raw, stored = (
        (exported.folder / "weights.safetensors").read_bytes(),
        load_file(exported.folder / "weights.safetensors"),
    )
    external = _external(_load(exported))
    assert external.keys() == stored.keys() == exported.module.state_dict().keys()
    for name, tensor in external.items():
        place = {entry.key: entry.value for entry in tensor.external_data}
        assert place["location"] == "weights.safetensors"
        offset, length = int(place["offset"]), int(place["length"])
        values = np.frombuffer(raw[offset : offset + length], np.float32).reshape(tuple(tensor.dims))
        np.testing.assert_array_equal(values, stored[name])
        np.testing.assert_array_equal(values, exported.module.state_dict()[name].numpy())


def test_no_weight_is_copied_into_the_graph(exported: Exported) -> None:
    model = _load(exported)
    inline = [tensor for tensor in model.graph.initializer if tensor.name not in _external(model)]
    # What is folded: shapes, axes, scalars, and the rotary table of one mode.
    assert max(onnx.numpy_helper.to_array(tensor).size for tensor in inline) <= 64
    assert len({tensor.name for tensor in model.graph.initializer}) == len(model.graph.initializer)
    largest = max(np.prod(tensor.dims) for tensor in _external(model).values())
    assert not [
        node.name
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.HasField("t") and np.prod(attribute.t.dims) * 4 > largest
    ]


def test_projections_are_one_gemm_each_with_the_bias_inside(exported: Exported) -> None:
    model, config = _load(exported), exported.config
    order = 2 if isinstance(config, ForecasterConfig) else 3
    counts = Counter(node.op_type for node in model.graph.node)
    # Per block: a query and a key per mode, value, output, and the three of SwiGLU; then the head.
    assert counts["Gemm"] == config.depth * (2 * order + 2 + 3) + 1
    assert "MatMul" not in counts
    producers = {output: node for node in model.graph.node for output in node.output}
    consumers = Counter(name for node in model.graph.node for name in node.input)
    biases = [name for name in _external(model) if name.endswith(("out.bias", "value.bias", "head.bias"))]
    assert len(biases) == 2 * config.depth + 1
    for node in model.graph.node:
        for name in node.input:
            if name in biases:
                assert node.op_type == "Gemm"
    assert all(consumers[name] == 1 for name in biases)
    # Between two projections of the feed-forward part the tokens stay rows: no Reshape feeds a Gemm there.
    for node in model.graph.node:
        if node.op_type == "Gemm" and node.input[1].endswith("mlp.w2.weight"):
            assert producers[node.input[0]].op_type == "Mul"


def test_dynamic_axes_have_their_names(exported: Exported) -> None:
    model = _load(exported)

    def axes(values: list[onnx.ValueInfoProto]) -> list[tuple[str, list[int | str]]]:
        return [
            (value.name, [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim])
            for value in values
        ]

    config = exported.config
    if isinstance(config, ForecasterConfig):
        assert axes(list(model.graph.input)) == [("series", ["batch", "variate", config.lookback])]
        assert axes(list(model.graph.output)) == [("forecast", ["batch", "variate", config.horizon])]
    else:
        assert axes(list(model.graph.input)) == [("volume", ["batch", 1, *config.volume])]
        assert axes(list(model.graph.output)) == [("logits", ["batch", config.classes])]


def test_nothing_tells_where_it_was_made(exported: Exported) -> None:
    for name in ("model.onnx", "manifest.json"):
        content = (exported.folder / name).read_bytes()
        for trace in (b".py", b'File "', b"site-packages", b"pkg.torch", bytes(Path.home()), bytes(Path.cwd())):
            assert trace not in content, (name, trace)
        assert str(exported.folder.parent.parent).encode() not in content
    model = _load(exported)
    for part in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.functions):
        assert not part.metadata_props
        assert not part.doc_string


def test_small_file(exported: Exported) -> None:
    assert exported.graph.stat().st_size < 60_000

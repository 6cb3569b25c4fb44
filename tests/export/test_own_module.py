"""A user's own network and weights in the formats that users have: the bundle answers as the network does."""

from __future__ import annotations

import json
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import load, save_file
from torch import Tensor, nn

from app.integrity import read_manifest
from app.manifest import Forecasting, TensorClassification
from export.bundle import Request, export_bundle, task
from export.checkpoint import Checkpoint, ExportError, load_module, read_checkpoint
from export.cli import export
from export.own_module import read_own_module
from export.verification import verify_bundle
from export.weight_files import read_weights
from export.weights import EXPORTED, layout
from models.config import ForecasterConfig, build, to_dict
from tests.export import own_networks

PLACE = "tests.export.own_networks"
State = dict[str, Tensor]


def _module(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(3)
    module = make()
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * 0.2)
    return module.eval()


def _answer(bundle: Path, x: Tensor) -> np.ndarray:
    session = ort.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def _safetensors(state: State, path: Path) -> Path:
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


def _torch(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("make", "shape", "batch"),
    [
        (own_networks.differences, "N,12", (3, 4, 12)),
        (own_networks.slices, "2,6,4", (3, 2, 6, 4)),
        (own_networks.counting, "N,12", (3, 4, 12)),
        (own_networks.making, "N,12", (3, 4, 12)),
    ],
)
def test_a_network_of_ones_own_is_exported_and_proven(
    make: Callable[[], nn.Module], shape: str, batch: tuple[int, ...], tmp_path: Path
) -> None:
    module = _module(make)
    weights = _torch(module.state_dict(), tmp_path / "best.pt")
    options = ["--module", f"{PLACE}:{make.__name__}", "--weights", str(weights), "--input-shape", shape]
    target = ["--name", "own", "--version", "1", "--repository", str(tmp_path / "r")]
    assert export([*options, *target]) == 0
    bundle = tmp_path / "r" / "own" / "1"
    x = torch.randn(batch, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        np.testing.assert_allclose(_answer(bundle, x), module(x).numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(ExportError, match="--module and --weights"):
        read_checkpoint(bundle)


def test_the_task_is_read_from_the_shapes(tmp_path: Path) -> None:
    weights = _torch(own_networks.differences().state_dict(), tmp_path / "w.pt")
    source = read_own_module(f"{PLACE}:differences", weights, (-1, 12))
    manifest = export_bundle(source, Request("m", "1", tmp_path / "r"))[1]
    assert manifest.task == Forecasting(lookback=12, horizon=5)
    assert [spec.shape for spec in (*manifest.inputs, *manifest.outputs)] == [(-1, -1, 12), (-1, -1, 5)]
    assert manifest.provenance.config["factory"] == f"{PLACE}:differences"
    weights = _torch(own_networks.slices().state_dict(), tmp_path / "w.pt")
    source = read_own_module(f"{PLACE}:slices", weights, (2, 6, 4))
    manifest = export_bundle(source, Request("m", "2", tmp_path / "r"))[1]
    assert manifest.task == TensorClassification(labels=("class 0", "class 1", "class 2"))
    assert [spec.name for spec in manifest.inputs] == ["image"]


def test_a_network_with_our_config_needs_no_shape(tmp_path: Path) -> None:
    weights = _safetensors(own_networks.configured().state_dict(), tmp_path / "w.safetensors")
    source = read_own_module(f"{PLACE}:configured", weights, None)
    assert isinstance(source.config, ForecasterConfig)
    assert load_module(source) is source.built


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("single", r"^Single does not run in float64 on .*own_networks\.py, line \d+: .*dtype=x\.dtype, no \.float"),
        ("placed", r"^Placed does not run in float32 on inputs of shape \[1, 321, 12\]: IndexError: "),
    ],
)
def test_a_network_that_the_proof_cannot_run_is_said_in_one_line(name: str, message: str, tmp_path: Path) -> None:
    state = getattr(own_networks, name)().state_dict()
    source = read_own_module(f"{PLACE}:{name}", _torch(state, tmp_path / "w.pt"), (-1, 12))
    before = torch.get_default_dtype()
    with pytest.raises(ExportError, match=message) as failure:
        export_bundle(source, Request("m", "1", tmp_path / "r"))
    assert len(str(failure.value).splitlines()) == 1
    assert torch.get_default_dtype() == before
    assert not (tmp_path / "r").exists()


def test_an_answer_of_mere_rounding_is_allowed_what_pytorch_is_off_by(tmp_path: Path) -> None:
    """float32 resolves none of it, in PyTorch or anywhere."""
    torch.manual_seed(0)
    source = read_own_module(
        f"{PLACE}:drifting", _torch(own_networks.drifting().state_dict(), tmp_path / "w.pt"), (-1, 12)
    )
    folder, manifest = export_bundle(source, Request("m", "1", tmp_path / "r"))
    for case in manifest.parity.cases:
        assert case.allowed is not None if case.inputs == "zero" else case.error <= (case.allowed or 1e-5)
        assert case.allowed is None or case.exact <= case.allowed
        assert case.allowed is None or case.inputs in ("zero", "scaled by 1e-6")
    assert not [check for check in verify_bundle(folder) if check.failed]


def test_a_graph_that_onnx_s_evaluator_cannot_run_is_proven_by_the_rest(tmp_path: Path) -> None:
    source = read_own_module(
        f"{PLACE}:largest", _torch(own_networks.largest().state_dict(), tmp_path / "w.pt"), (-1, 12)
    )
    folder, manifest = export_bundle(source, Request("m", "1", tmp_path / "r"))
    (check,) = [check for check in manifest.checks if check.passed is not True]
    assert (check.name, check.passed) == ("model.onnx: reference evaluator", None)
    assert "not compared" in check.detail
    x = torch.randn(2, 3, 12)
    np.testing.assert_array_equal(_answer(folder, x), x.sort(-1, descending=True).values[..., :5].numpy())


def test_a_forecaster_may_take_values_as_they_are_sent(tmp_path: Path) -> None:
    weights = _torch(own_networks.counting().state_dict(), tmp_path / "w.pt")
    target = ["--repository", str(tmp_path / "r"), "--name", "m"]
    own = ["--module", f"{PLACE}:counting", "--weights", str(weights), "--input-shape", "N,12", *target]
    told = []
    for version, option in enumerate(([], ["--no-standardise"], ["--standardise"]), 1):
        assert export([*own, "--version", str(version), *option]) == 0
        manifest = read_manifest(tmp_path / "r" / "m" / str(version))
        assert manifest is not None
        assert isinstance(manifest.task, Forecasting)
        told.append(manifest.task.standardise)
    assert told == [True, False, True]
    source = read_own_module(
        f"{PLACE}:slices", _torch(own_networks.slices().state_dict(), tmp_path / "s.pt"), (2, 6, 4)
    )
    with pytest.raises(ExportError, match="standardise belong to forecasters"):
        export_bundle(source, Request("m", "4", tmp_path / "r", standardise=False))


def test_a_buffer_may_be_infinite_where_the_network_makes_it_so(tmp_path: Path) -> None:
    def loaded(name: str, place: int, value: float) -> nn.Module:
        state = own_networks.masked().state_dict()
        state[name].view(-1)[place] = value
        return load_module(read_own_module(f"{PLACE}:masked", _torch(state, tmp_path / "w.pt"), (-1, 3)))

    assert torch.equal(loaded("mask", 0, 0.5).get_buffer("mask")[0], torch.tensor([0.5, -torch.inf, -torch.inf]))
    for name, place, value in (
        ("mask", 1, torch.nan),
        ("mask", 1, torch.inf),
        ("mask", 0, -torch.inf),
        ("bias", 0, torch.inf),
    ):
        with pytest.raises(ExportError, match=f"{name} holds NaN or infinity"):
            loaded(name, place, value)


def test_one_logit_is_no_classifier(tmp_path: Path) -> None:
    weights = _torch(own_networks.one_logit().state_dict(), tmp_path / "w.pt")
    source = read_own_module(f"{PLACE}:one_logit", weights, (2, 2, 2))
    with pytest.raises(ExportError, match="at least two logits, not 1"):
        task(source, Request("m", "1", tmp_path))


@pytest.mark.parametrize("file", ["models.py", "train.py", "app/__init__.py", "nets.py"])
def test_a_module_under_the_name_of_ours_is_refused(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nets.py` is free itself, and imports from such a one."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("from models import plain\n")
    (tmp_path / "models.py").write_text("")
    monkeypatch.chdir(tmp_path)
    name = file.partition("/")[0].removesuffix(".py")
    taken = "models" if name == "nets" else name
    with pytest.raises(ExportError, match=rf"cannot be imported, because '{taken}' is .* Kronserve's own .* rename it"):
        read_own_module(f"{name}:plain", tmp_path / "w.pt", (-1, 12))


WRAPPED = ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model._orig_mod.")


@pytest.mark.parametrize("form", ["safetensors", "pt", "pth", "lightning", "averaged", *WRAPPED])
def test_every_format_gives_the_same_weights(form: str, tmp_path: Path) -> None:
    module = _module(own_networks.differences)
    state = module.state_dict()
    path = {
        "safetensors": lambda: _safetensors(state, tmp_path / "w.safetensors"),
        "pt": lambda: _torch(state, tmp_path / "w.pt"),
        "pth": lambda: _torch({"model": state, "epoch": 3}, tmp_path / "w.pth"),
        "lightning": lambda: _torch({"state_dict": state, "hyper_parameters": {"lr": 1e-3}}, tmp_path / "w.ckpt"),
        "averaged": lambda: _torch(torch.optim.swa_utils.AveragedModel(module).state_dict(), tmp_path / "w.pt"),
        **{
            prefix: lambda prefix=prefix: _torch({prefix + name: state[name] for name in state}, tmp_path / "w.pt")
            for prefix in WRAPPED
        },
    }[form]()
    assert load(read_weights(path, authors=False)).keys() == state.keys()
    loaded = load_module(read_own_module(f"{PLACE}:differences", path, (-1, 12))).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize("make", [own_networks.wrapping_a_module, own_networks.with_the_authors_names])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_networks_own_names_stay(make: Callable[[], nn.Module], prefix: str, tmp_path: Path) -> None:
    """Be they what a parallel run or the HOT authors' code has in its names."""
    state = _module(make).state_dict()
    stored = {f"{prefix}{name}": value for name, value in state.items()}
    for path in (_torch(stored, tmp_path / "w.pt"), _safetensors(stored, tmp_path / "w.safetensors")):
        loaded = load_module(read_own_module(f"{PLACE}:{make.__name__}", path, (-1, 12))).state_dict()
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_a_prefix_that_not_every_name_has_stays(tmp_path: Path) -> None:
    for names in ({"module.weight", "scale"}, {"model.weight", "n_averaged"}):
        path = _torch(dict.fromkeys(names, torch.ones(1)), tmp_path / "w.pt")
        assert load(read_weights(path)).keys() == names


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = own_networks.differences().state_dict()
    state["read.scale"] = state.pop("read.bias")
    state["lift.weight"] = torch.zeros(8, 2)
    source = read_own_module(f"{PLACE}:differences", _torch(state, tmp_path / "w.pt"), (-1, 12))
    with pytest.raises(ExportError) as failure:
        load_module(source)
    for part in ("does not fit its module", "missing read.bias", "unexpected read.scale", "(8, 2) instead of (8, 1)"):
        assert part in str(failure.value)


class _Spy:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('run')",)


@pytest.mark.parametrize(("name", "dtype"), [("turning", "complex64"), ("turning_finely", "complex128")])
def test_a_tensor_of_a_datatype_that_is_not_exported_is_named(
    name: str, dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = _torch(getattr(own_networks, name)().state_dict(), tmp_path / "w.pt")
    options = ["--module", f"{PLACE}:{name}", "--weights", str(weights), "--input-shape", "N,12"]
    assert export([*options, "--name", "own", "--version", "1", "--repository", str(tmp_path / "r")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        f"{weights}: the tensor phases is torch.{dtype}; what can be exported is {', '.join(EXPORTED)}"
    )
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("dtype", ["C64", "U16", "F4"])
def test_a_safetensors_file_of_such_a_tensor_is_refused_as_well(dtype: str, tmp_path: Path) -> None:
    path, size = tmp_path / "w.safetensors", {"C64": 16, "U16": 4, "F4": 1}[dtype]
    header = json.dumps({"phases": {"dtype": dtype, "shape": [2], "data_offsets": [0, size]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    for read in (read_weights, layout):
        with pytest.raises(ExportError, match=r"the tensor phases is [\w.]+; what can be exported is float32, "):
            read(path)


def test_a_sparse_tensor_is_refused(tmp_path: Path) -> None:
    path = _torch({"weight": torch.eye(3), "mask": torch.eye(3).to_sparse()}, tmp_path / "w.pt")
    with pytest.raises(ExportError, match=r"the tensor mask is torch\.sparse_coo; save it as to_dense"):
        read_weights(path)


@pytest.mark.parametrize("dtype", EXPORTED)
def test_every_datatype_that_is_said_to_be_exported_is(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = own_networks.Weighing(getattr(torch, dtype))
    monkeypatch.setattr(own_networks, "weighing", lambda: module)
    path = tmp_path / "w.safetensors"
    path.write_bytes(read_weights(_torch(module.state_dict(), tmp_path / "w.pt")))
    assert str(layout(path)["weights"].dtype.numpy()) == dtype
    source = read_own_module(f"{PLACE}:weighing", path, (-1, 12))
    folder, _ = export_bundle(source, Request("m", "1", tmp_path / "r"))
    x = torch.randn(2, 3, 12)
    np.testing.assert_allclose(_answer(folder, x), module(x).numpy(), rtol=1e-5, atol=1e-6)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_bytes(pickle.dumps({"weight": _Spy()}, protocol=2))
    with pytest.raises(ExportError, match="nothing in it is run"):
        read_weights(path)
    with pytest.raises(ExportError, match="nothing in it is run"):
        read_weights(_torch({"weight": _Spy()}, path))


def test_what_is_no_weight_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"rubbish")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "w.safetensors").write_bytes(b"rubbish")
    faults = {
        tmp_path / "w.onnx": "a file ending in",
        tmp_path / "empty.pt": "not a readable PyTorch file: it is empty or cut short",
        tmp_path / "gone.pt": "No such file",
        tmp_path / "w.safetensors": "not a readable safetensors file",
        tmp_path / "w.pt": r"(not a readable PyTorch file|nothing in it is run)",
        _torch({"epoch": 3}, tmp_path / "e.pt"): "holds no state dict",
        _torch([torch.zeros(1)], tmp_path / "l.pt"): "holds no state dict",
    }
    for path, message in faults.items():
        with pytest.raises(ExportError, match=message):
            read_weights(path)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("differences", None, "say what one sample is with --input-shape"),
        ("differences", (-1, 13), r"does not run on \[2, 3, 13\]"),
        ("differences", (2, 6, 12), "does not run on"),
        ("pair", (-1, 12), r"gives tuple .* not \[2, variates, horizon\]"),
        ("text", (-1, 12), "gave a str, not a torch.nn.Module"),
        ("fails", (-1, 12), "TypeError"),
        ("leaves", (-1, 12), "calls sys.exit"),
        ("nothing", (-1, 12), "AttributeError"),
    ],
)
def test_a_factory_that_does_not_serve_is_said(
    name: str, shape: tuple[int, ...] | None, message: str, tmp_path: Path
) -> None:
    weights = _torch(own_networks.differences().state_dict(), tmp_path / "w.pt")
    with pytest.raises(ExportError, match=message):
        read_own_module(f"{PLACE}:{name}", weights, shape)
    with pytest.raises(ExportError, match="ModuleNotFoundError"):
        read_own_module(f"no.such.package:{name}", weights, shape)
    with pytest.raises(ExportError, match=r"package\.module:function"):
        read_own_module(PLACE, weights, shape)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("decides_by_its_values", r"depends on the values it is given \(own_networks\.py, line \d+: return x.* if x"),
        ("beyond_onnx", r"DispatchError: No ONNX function found for .*bessel_j0"),
    ],
)
def test_a_network_that_cannot_be_traced_is_said_in_one_line(
    name: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    weights = ["--module", f"{PLACE}:{name}", "--weights", str(_torch({}, tmp_path / "w.pt"))]
    target = ["--input-shape", "N,12", "--name", "m", "--version", "1", "--repository", str(tmp_path / "r")]
    assert export([*weights, *target]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert re.search(f"^kronserve export: .* cannot be traced to ONNX: .*{message}", line)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either CHECKPOINT or --module"),
        (["folder", "--module", "a:b"], "give either CHECKPOINT or --module"),
        (["--module", "a:b"], "--module needs --weights"),
        (["folder", "--input-shape", "N,12"], "belongs to --module"),
        (["--module", "a:b", "--weights", "w.pt", "--input-shape", "12"], "neither N,LOOKBACK"),
    ],
)
def test_options_that_contradict_each_other(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        export([*options, "--name", "m", "--version", "1"])
    assert message in capsys.readouterr().err


# The names of the authors' forecaster with one block, as its constructor makes them.
AUTHORS = {
    "emb.0.weight": "embed.weight",
    "emb.0.bias": "embed.bias",
    "emb.2.weight": "embed_norm.weight",
    "emb.2.bias": "embed_norm.bias",
    "blocks.0.norm1.weight": "blocks.0.attention_norm.weight",
    "blocks.0.norm1.bias": "blocks.0.attention_norm.bias",
    "blocks.0.norm2.weight": "blocks.0.mlp_norm.weight",
    "blocks.0.norm2.bias": "blocks.0.mlp_norm.bias",
    "blocks.0.attention.query_proj.weight": "blocks.0.attention.query.weight",
    "blocks.0.attention.query_proj.bias": "blocks.0.attention.query.bias",
    "blocks.0.attention.key_proj.weight": "blocks.0.attention.key.weight",
    "blocks.0.attention.key_proj.bias": "blocks.0.attention.key.bias",
    "blocks.0.attention.value_proj.weight": "blocks.0.attention.value.weight",
    "blocks.0.attention.value_proj.bias": "blocks.0.attention.value.bias",
    "blocks.0.attention.out_proj.weight": "blocks.0.attention.out.weight",
    "blocks.0.attention.out_proj.bias": "blocks.0.attention.out.bias",
    "blocks.0.attention.q_norm.weight": "blocks.0.attention.query_norm.weight",
    "blocks.0.attention.q_norm.bias": "blocks.0.attention.query_norm.bias",
    "blocks.0.attention.k_norm.weight": "blocks.0.attention.key_norm.weight",
    "blocks.0.attention.k_norm.bias": "blocks.0.attention.key_norm.bias",
    "blocks.0.feedforward.w1.weight": "blocks.0.mlp.w1.weight",
    "blocks.0.feedforward.w2.weight": "blocks.0.mlp.w2.weight",
    "blocks.0.feedforward.w3.weight": "blocks.0.mlp.w3.weight",
    "head.0.weight": "head_norm.weight",
    "head.0.bias": "head_norm.bias",
    "head.2.weight": "head.weight",
    "head.2.bias": "head.bias",
}


def test_the_authors_names_are_translated(tmp_path: Path) -> None:
    config = ForecasterConfig(lookback=12, horizon=5, dim=8, depth=1, heads=2, hidden=12)
    module = _module(lambda: build(config))
    state = module.state_dict()
    assert set(AUTHORS.values()) == state.keys()
    theirs = {name: state[own] for name, own in AUTHORS.items()}
    theirs["blocks.0.attention.rotary_emb.inv_freq"] = torch.ones(2)  # computed here
    path = _torch({"state_dict": theirs}, tmp_path / "hot.ckpt")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(to_dict(config)))
    source: Checkpoint = read_checkpoint(tmp_path / "checkpoint", read_weights(path))
    loaded = load_module(source).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)

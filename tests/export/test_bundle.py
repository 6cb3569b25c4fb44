"""Bundles appear whole or not at all, say where they come from, and can be exported again from themselves."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.manifest import Binarise, Forecasting, Intervals, Manifest, Resize, VolumeClassification
from export.bundle import Request, export_bundle, task
from export.checkpoint import Checkpoint, ExportError, load_module, read_checkpoint
from export.cli import export
from models.config import to_dict
from tests.export.conftest import CONFIGS, Exported
from tests.full_disk import no_file_above
from tests.manifests import rewrite_manifest

Writer = Callable[[str], Path]


def _edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "weights.safetensors")
    change(weights)
    save_file(weights, folder / "weights.safetensors")


def test_manifest_describes_the_bundle(exported: Exported) -> None:
    manifest = Manifest.model_validate_json((exported.folder / "manifest.json").read_bytes())
    assert manifest == exported.manifest
    assert sorted(path.name for path in exported.folder.iterdir()) == [
        "manifest.json",
        "manifest.json.sha256",
        "model.onnx",
        "weights.safetensors",
    ]
    for name, file in manifest.files.items():
        content = (exported.folder / name).read_bytes()
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert manifest.provenance.config == json.loads(json.dumps(to_dict(exported.config)))
    assert manifest.provenance.weights_sha256 == manifest.files["weights.safetensors"].sha256
    assert manifest.provenance.versions["torch"] == torch.__version__
    assert {spec.name: spec.shape[0] for spec in manifest.inputs + manifest.outputs}.keys() in (
        {"series", "forecast"},
        {"volume", "logits"},
    )


@pytest.mark.parametrize("kind", ["forecaster-sum", "classifier-product"])
def test_exporting_a_bundle_again_gives_the_same_weights_and_graph(
    exports: Callable[[str], Exported], kind: str, tmp_path: Path
) -> None:
    exported = exports(kind)
    bundle = Path(shutil.copytree(exported.folder, tmp_path / "before" / kind / "1"))
    metrics = {"split": "test", "values": {"mse": 1.0}}
    rewrite_manifest(bundle, metrics=metrics)
    described = replace(Request("again", "2", tmp_path), description="the same once more")
    folder, manifest = export_bundle(read_checkpoint(bundle), described)
    assert manifest.metrics == metrics, "measured with these weights"
    assert folder == tmp_path / "again" / "2"
    for name in ("weights.safetensors", "model.onnx"):
        assert (folder / name).read_bytes() == (exported.folder / name).read_bytes()
    assert manifest.task == exported.manifest.task
    assert manifest.provenance.weights_sha256 == exported.manifest.provenance.weights_sha256
    assert (manifest.name, manifest.version, manifest.description) == ("again", "2", "the same once more")


MEASURED = Intervals(split="val", windows=9, steps=(1,), probabilities=(0.1, 0.9), errors={"": ((-1.0, 1.0),)})
TRAINED = {
    "dataset": "etth1",
    "data_sha256": "0" * 64,
    "validation": {"average": {"mse": 1.0}},
    "recipe": {"description": "words", "seed": 3},
}


def _measured(exported: Exported, folder: Path, **task: object) -> Path:
    """A copy of a bundle whose manifest says what was measured with its weights."""
    bundle = Path(shutil.copytree(exported.folder, folder / exported.folder.parent.name / "1"))
    before = exported.manifest
    rewrite_manifest(
        bundle,
        task=before.task.model_copy(update=task).model_dump(mode="json"),
        provenance=before.provenance.model_copy(update={"training": TRAINED}).model_dump(mode="json"),
        metrics={"split": "test", "values": {"mse": 1.0}},
        description="a forecaster",
        data_licence="CC0",
    )
    return bundle


def test_what_was_measured_with_other_weights_is_left_out(
    exports: Callable[[str], Exported], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported = exports("forecaster-sum")
    bundle = _measured(exported, tmp_path, intervals=MEASURED, variates=("a", "b"))
    own = (bundle / "weights.safetensors").read_bytes()
    assert read_checkpoint(bundle, own) == read_checkpoint(bundle)
    other = tmp_path / "other.safetensors"
    save_file({name: value * 0.9 for name, value in load_file(bundle / "weights.safetensors").items()}, other)
    assert export([str(bundle), "--weights", str(other), "--name", "m", "--version", "none"]) == 1
    note, _ = capsys.readouterr().err.splitlines()
    assert note == (
        f"kronserve export: note: {other} are other weights than those of {bundle}; left out, being of those: "
        "intervals, metrics, licence of the data, record of the training"
    )
    fresh = read_checkpoint(bundle, other.read_bytes())
    assert task(fresh, Request("m", "1", tmp_path)) == exported.manifest.task.model_copy(
        update={"variates": ("a", "b")}
    )
    assert fresh.manifest is not None
    assert (fresh.manifest.metrics, fresh.manifest.data_licence) == ({}, "")
    assert fresh.manifest.description == "a forecaster"
    assert fresh.training == {"recipe": {"description": "words"}}


def test_a_temperature_belongs_to_its_weights(exports: Callable[[str], Exported], tmp_path: Path) -> None:
    bundle = _measured(exports("classifier-sum"), tmp_path, temperature=2.5)
    own = (bundle / "weights.safetensors").read_bytes()
    kept, fresh = read_checkpoint(bundle, own), read_checkpoint(bundle, own + b" ")
    assert task(kept, Request("m", "1", tmp_path)).temperature == 2.5  # type: ignore[union-attr]
    assert task(fresh, Request("m", "1", tmp_path)).temperature == 1  # type: ignore[union-attr]
    assert "temperature" in fresh.left_out


def test_a_runs_record_belongs_to_its_weights(checkpoint: Writer) -> None:
    folder = checkpoint("forecaster-sum")
    forecasting = Forecasting(lookback=24, horizon=16, variates=("a",)).model_dump(mode="json")
    (folder / "training.json").write_text(json.dumps({**TRAINED, "task": forecasting}))
    own = (folder / "weights.safetensors").read_bytes()
    assert read_checkpoint(folder, own) == read_checkpoint(folder)
    fresh = read_checkpoint(folder, own + b" ")
    assert fresh.training == {"task": forecasting, "recipe": {"description": "words"}}
    assert fresh.left_out == ("record of the training",)


def test_failed_evaluation_leaves_the_version_that_was_there(
    exports: Callable[[str], Exported], tmp_path: Path
) -> None:
    source = read_checkpoint(exports("forecaster-sum").folder)
    (tmp_path / "model" / "1").mkdir(parents=True)
    (tmp_path / "model" / "1" / "before").touch()

    def fails(folder: Path) -> dict[str, object]:
        assert (folder / "manifest.json").is_file()
        raise ExportError("no data")

    with pytest.raises(ExportError, match="no data"):
        export_bundle(source, Request("model", "1", tmp_path, force=True), fails)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["1"]
    assert (tmp_path / "model" / "1" / "before").exists()


def test_a_version_is_replaced_only_by_force(exports: Callable[[str], Exported], tmp_path: Path) -> None:
    source = read_checkpoint(exports("forecaster-sum").folder)
    (tmp_path / "model" / "1").mkdir(parents=True)
    (tmp_path / "model" / "1" / "before").touch()
    with pytest.raises(ExportError, match="exists"):
        export_bundle(source, Request("model", "1", tmp_path))
    assert (tmp_path / "model" / "1" / "before").exists()
    export_bundle(source, Request("model", "1", tmp_path, force=True), lambda _: {"split": "test"})
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["1"]
    assert not (tmp_path / "model" / "1" / "before").exists()
    manifest = Manifest.model_validate_json((tmp_path / "model" / "1" / "manifest.json").read_bytes())
    assert manifest.metrics == {"split": "test"}


def test_a_version_that_is_a_link_is_said_at_once(exports: Callable[[str], Exported], tmp_path: Path) -> None:
    source = read_checkpoint(exports("forecaster-sum").folder)
    (tmp_path / "store").mkdir()
    (tmp_path / "model").mkdir()
    for version, place in (("1", tmp_path / "store"), ("2", tmp_path / "nowhere")):
        (tmp_path / "model" / version).symlink_to(place)
        with pytest.raises(ExportError, match=f"{version} is a link to {place}"):
            export_bundle(source, Request("model", version, tmp_path, force=True))
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["1", "2"]


def test_how_a_bundle_is_served_stays(exports: Callable[[str], Exported], tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(exports("forecaster-sum").folder, tmp_path / "before" / "1"))
    rewrite_manifest(bundle, serving={"max_batch": 4})
    assert export_bundle(read_checkpoint(bundle), Request("m", "1", tmp_path))[1].serving.max_batch == 4


def test_what_was_measured_holds_for_one_way_to_give_values(exports: Callable[[str], Exported], tmp_path: Path) -> None:
    exported = exports("forecaster-sum")
    bundle = read_checkpoint(_measured(exported, tmp_path, intervals=MEASURED))
    assert task(bundle, Request("m", "1", tmp_path, standardise=True)) == task(bundle, Request("m", "1", tmp_path))
    with pytest.raises(ExportError, match="measured the other way"):
        task(bundle, Request("m", "1", tmp_path, standardise=False))
    other = task(read_checkpoint(exported.folder), Request("m", "1", tmp_path, standardise=False))
    assert isinstance(other, Forecasting)
    assert not other.standardise


def test_renamed_variates_keep_their_own_intervals(exports: Callable[[str], Exported], tmp_path: Path) -> None:
    each = {"a": ((-1.0, 1.0),), "b": ((-2.0, 2.0),), "": ((-3.0, 3.0),)}
    measured = MEASURED.model_copy(update={"errors": each})
    bundle = _measured(exports("forecaster-sum"), tmp_path, intervals=measured, variates=("a", "b"))
    renamed = task(read_checkpoint(bundle), Request("m", "1", tmp_path, variates=("b", "c")))
    assert isinstance(renamed, Forecasting)
    assert renamed.intervals is not None
    assert renamed.intervals.errors == {"b": each["a"], "c": each["b"], "": each[""]}
    with pytest.raises(ExportError, match="3 for 2 that the bundle has intervals of"):
        task(read_checkpoint(bundle), Request("m", "1", tmp_path, variates=("x", "y", "z")))


def test_a_version_that_cannot_be_replaced_stays(
    exports: Callable[[str], Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = read_checkpoint(exports("forecaster-sum").folder)
    (tmp_path / "model" / "1").mkdir(parents=True)
    (tmp_path / "model" / "1" / "before").touch()

    def fails(folder: Path, target: Path) -> None:
        assert (folder / "manifest.json").is_file()
        assert not target.exists()
        raise OSError("the disk went away")

    monkeypatch.setattr("export.bundle.os.rename", fails)
    with pytest.raises(OSError, match="went away"):
        export_bundle(source, Request("model", "1", tmp_path, force=True))
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["1"]
    assert [path.name for path in (tmp_path / "model" / "1").iterdir()] == ["before"]


def test_what_the_file_system_refuses_is_one_line(
    checkpoint: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, file = str(checkpoint("forecaster-sum")), tmp_path / "own.csv"
    file.write_text("date,a\n")
    assert export([source, "--name", "m", "--version", "1", "--repository", str(file)]) == 1
    assert capsys.readouterr().err == f"kronserve export: {file} is not a folder\n"
    with no_file_above(1000):
        assert export([source, "--name", "m", "--version", "1", "--repository", str(tmp_path / "r")]) == 1
    assert capsys.readouterr().err == f"kronserve export: {tmp_path / 'r'}: File too large\n"
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("name", "version"),
    [("../up", "1"), (".hidden", "1"), ("", "1"), ("a b", "1"), ("m", "0"), ("m", "01"), ("m", "x")],
)
def test_name_and_version_are_checked_first(checkpoint: Writer, tmp_path: Path, name: str, version: str) -> None:
    with pytest.raises(ExportError, match=r"^(name|version) "):
        export_bundle(read_checkpoint(checkpoint("forecaster-sum")), Request(name, version, tmp_path / "repository"))
    assert not (tmp_path / "repository").exists()


def test_every_tensor_that_does_not_fit_is_named(checkpoint: Writer) -> None:
    folder = checkpoint("forecaster-product")

    def change(weights: dict[str, torch.Tensor]) -> None:
        del weights["head.bias"]
        weights["head.scale"] = torch.ones(1)
        weights["embed.weight"] = torch.zeros(2, 2)
        weights["head.weight"] = weights["head.weight"].half()
        weights["embed.bias"][3] = float("nan")

    _edit(folder, change)
    with pytest.raises(ExportError) as failure:
        load_module(read_checkpoint(folder))
    for part in (
        "missing head.bias",
        "unexpected head.scale",
        "embed.weight has shape (2, 2) instead of (16, 1, 4)",
        "head.weight is torch.float16 instead of torch.float32",
        "save module.float().state_dict()",
        "embed.bias holds NaN",
    ):
        assert part in str(failure.value)


@pytest.mark.parametrize("damage", ["empty", "cut", "header", "length"])
def test_a_damaged_safetensors_file_is_refused(checkpoint: Writer, tmp_path: Path, damage: str) -> None:
    folder = checkpoint("forecaster-sum")
    path = folder / "weights.safetensors"
    content = path.read_bytes()
    broken = {
        "empty": b"",
        "cut": content[: len(content) // 2],
        "header": content[:20] + b"\xff" * 20 + content[40:],
        "length": b"\xff" * 8 + content[8:],
    }
    path.write_bytes(broken[damage])
    with pytest.raises(ExportError, match="safetensors"):
        export_bundle(read_checkpoint(folder), Request("broken", "1", tmp_path / "repository"))
    assert not (tmp_path / "repository").exists()


def test_what_a_checkpoint_lacks_is_named(checkpoint: Writer, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no such folder"):
        read_checkpoint(tmp_path / "nowhere")
    folder = checkpoint("classifier-sum")
    config = folder / "config.json"
    values = json.loads(config.read_text())
    for broken, message in (
        ({**values, "colour": 1}, "unknown keys colour"),
        ({**values, "kind": "oracle"}, "unknown kind 'oracle'"),
        ([], "must hold a JSON object"),
    ):
        config.write_text(json.dumps(broken))
        with pytest.raises(ExportError, match=message):
            read_checkpoint(folder)
    config.write_text("{")
    with pytest.raises(ExportError, match="is not JSON"):
        read_checkpoint(folder)
    config.unlink()
    with pytest.raises(ExportError, match=r"neither config\.json .* nor manifest\.json"):
        read_checkpoint(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(ExportError, match=r"weights\.safetensors: no such file"):
        read_checkpoint(folder)


def _source(kind: str, training: dict[str, object]) -> Checkpoint:
    return Checkpoint(CONFIGS[kind], Path("weights.safetensors"), b"", training, None)


def test_the_task_is_the_trainings_own_or_made_of_the_config() -> None:
    request = Request("m", "1", Path("repository"))
    assert task(_source("forecaster-sum", {}), request) == Forecasting(lookback=24, horizon=16)
    assert task(_source("classifier-product", {}), request) == VolumeClassification(
        labels=("class 0", "class 1", "class 2"), preprocessing=(Resize(shape=(8, 12, 16)),)
    )
    trained = VolumeClassification(labels=("no", "yes"), preprocessing=(Binarise(), Resize(shape=(8, 8, 8))))
    source = _source("classifier-sum", {"task": trained.model_dump(mode="json")})
    assert task(source, request) == trained
    renamed = task(source, replace(request, labels=("benign", "malignant")))
    assert renamed == trained.model_copy(update={"labels": ("benign", "malignant")})
    hourly = task(_source("forecaster-sum", {}), replace(request, frequency="h", variates=("a", "b")))
    assert hourly == Forecasting(lookback=24, horizon=16, frequency="h", variates=("a", "b"))
    weekly = task(_source("forecaster-sum", {}), replace(request, frequency="W"))
    assert weekly == Forecasting(lookback=24, horizon=16, frequency="W-SUN"), "as the service names it"


@pytest.mark.parametrize(
    ("kind", "training", "options", "message"),
    [
        ("classifier-product", {}, {"labels": ("a", "b")}, r"2 labels \(a, b\) for 3 classes"),
        ("forecaster-sum", {}, {"labels": ("a", "b")}, "labels belong to classifiers"),
        ("classifier-sum", {}, {"frequency": "h"}, "belong to forecasters"),
        ("forecaster-sum", {}, {"frequency": "bogus"}, "frequency 'bogus' is not one like s, 10min, h"),
        ("forecaster-sum", {}, {"frequency": ""}, "frequency '' is not one like"),
        ("forecaster-sum", {}, {"variates": ("a", "b", "a")}, "variates: 'a' is there twice"),
        ("classifier-product", {}, {"labels": ("a", "b", "b")}, "labels: 'b' is there twice"),
        ("forecaster-sum", {"task": {"kind": "telling fortunes"}}, {}, "training.json: task"),
        ("forecaster-sum", {"task": {"kind": "forecasting", "lookback": 24, "horizon": 8}}, {}, "24, 8 are not"),
        ("forecaster-sum", {"task": {"kind": "volume-classification", "labels": ["a", "b"]}}, {}, "does not fit"),
        ("classifier-sum", {"task": {"kind": "volume-classification", "labels": ["a", "b"]}}, {}, "end in a resize"),
    ],
)
def test_a_task_that_is_not_the_models_is_refused(
    kind: str, training: dict[str, object], options: dict[str, object], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        task(_source(kind, training), replace(Request("m", "1", Path("repository")), **options))


def test_an_opset_that_cannot_be_written_is_refused(checkpoint: Writer, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="opset 12 is not supported"):
        export_bundle(read_checkpoint(checkpoint("forecaster-sum")), Request("m", "1", tmp_path, opset=12))


def test_weights_replaced_during_the_export_do_not_mix(checkpoint: Writer, tmp_path: Path) -> None:
    folder = checkpoint("forecaster-sum")
    before = (folder / "weights.safetensors").read_bytes()
    source = read_checkpoint(folder)
    _edit(folder, lambda weights: weights["head.bias"].add_(1))
    bundle, _ = export_bundle(source, Request("m", "1", tmp_path / "repository"))
    assert (bundle / "weights.safetensors").read_bytes() == before != (folder / "weights.safetensors").read_bytes()

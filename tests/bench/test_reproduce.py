"""docs/results.md is what `make reproduce` writes: bundles' own metrics, kept measurements."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from bench import reproduce
from bench.operators import report
from bench.operators.report import RESULTS
from bench.reproduce import DOCUMENT, ROOT, forecasting_table, replaced, shipped, tables, volumes_table


def _of_manifests() -> dict[str, dict[str, object]]:
    """What the bundles' manifests say, in the form of an evaluation."""
    found = {}
    for name, bundle in shipped().items():
        manifest = json.loads((bundle / "manifest.json").read_text())
        found[name] = manifest["metrics"]
        assert found[name]["split"] == "test", name
    return found


def test_the_document_states_the_bundles_metrics_and_the_measured_costs() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert replaced(document, tables(_of_manifests())) == document


def test_costs_measured_anew_are_printed_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `make reproduce` does, but for the evaluation of the bundles, whose metrics are those of their manifests."""
    measured = json.loads(RESULTS.read_text())
    first = next(row for row in measured["rows"] if row["fits"])
    first["bare"]["seconds"] = 77.0
    monkeypatch.setattr(report, "RESULTS", tmp_path / "operators.json")
    monkeypatch.setattr(reproduce, "DOCUMENT", tmp_path / "results.md")
    monkeypatch.setattr(reproduce, "evaluate_all", lambda _: _of_manifests())
    monkeypatch.setattr("sys.argv", ["bench.reproduce", "--write"])
    report.RESULTS.write_text(json.dumps(measured))
    shutil.copy(DOCUMENT, reproduce.DOCUMENT)
    reproduce.main()
    written = reproduce.DOCUMENT.read_text(encoding="utf-8")
    assert replaced(written, tables(_of_manifests())) == written
    (row,) = (line for line in written.splitlines() if "| 77s |" in line)
    assert row in capsys.readouterr().out


def test_make_writes_the_document_after_measuring() -> None:
    """It measures into bench/results, with which the document must go on agreeing."""
    listed = subprocess.run(["make", "--dry-run", "reproduce"], cwd=ROOT, capture_output=True, text=True, check=True)
    commands = listed.stdout
    assert 0 < commands.index("-m bench.operators") < commands.index("-m bench.reproduce --write")


def test_every_shipped_bundle_is_in_a_table() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert shipped()
    assert all(f"| **{name}** |" in document for name in shipped())


def test_rows() -> None:
    values = {str(h): {"mse": h / 1000, "mae": 0.5} for h in (96, 192, 336, 720)}
    table = forecasting_table("etth1", {"mine": {"dataset": "etth1", "values": values}}).splitlines()
    average = (0.096 + 0.192 + 0.336 + 0.720) / 4
    assert table[2].startswith("| **mine** | 0.0960 / 0.5000 | 0.1920 / 0.5000 |")
    assert table[2].endswith(f"| {average:.4f} / 0.5000 |")
    # The published averages as the literature rounds them.
    for name, mse, mae in (("iTransformer", 0.454, 0.447), ("PatchTST", 0.469, 0.454), ("DLinear", 0.456, 0.452)):
        last = next(row for row in table if row.startswith(f"| {name} |")).split("|")[-2]
        found = [float(part) for part in last.split("/")]
        assert found == pytest.approx([mse, mae], abs=1.1e-3)
    rows = volumes_table("adrenalmnist3d", {"v": {"dataset": "adrenalmnist3d", "values": {"auc": 0.5, "acc": 0.25}}})
    assert "| **v** | 0.5000 | 0.2500 |" in rows


def test_only_marked_places_are_replaced() -> None:
    document = "a\n<!-- one -->\nold\n<!-- / -->\nb\n<!-- two -->\nkept\n<!-- / -->\n"
    expected = "a\n<!-- one -->\nnew\n<!-- / -->\nb\n<!-- two -->\nkept\n<!-- / -->\n"
    assert replaced(document, {"one": "new", "three": "nowhere"}) == expected


def test_every_operator_was_measured_on_every_map_or_does_not_fit() -> None:
    rows = json.loads(RESULTS.read_text())["rows"]
    for row in rows:
        assert row["bare"]["madd"] > 0
        assert ("bytes" in row["bare"]) is ("seconds" in row["module"]) is row["fits"]
    assert [row["operator"] for row in rows if not row["fits"]] == ["full, naive"]

"""Changes of the repository while it serves: loads, failed loads, replaced and removed versions, the watch."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from app.engine.bundle_folders import fingerprint
from app.engine.device import Device
from app.engine.repository import IndexRow, Repository
from app.errors import LoadFailed, Unavailable, UnknownModel
from app.settings import Settings
from tests.engine.fakes import Line
from tests.tiny_models import write_offset_model

CPU = Device("cpu", "test", 1, (("CPUExecutionProvider", {}),))


def open_repository(root: Path, *, policy: str = "all") -> tuple[Repository, Line]:
    line = Line()
    settings = Settings(
        repository=root / "models",
        cache_dir=root / "cache",
        plan_seconds=0.01,
        max_batch=4,
        version_policy=policy,
    )
    return Repository(settings, CPU, line), line


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "m"
    write_offset_model(folder / "1", 1)
    return folder


def answer(repository: Repository, version: str | None = None) -> float:
    model = repository.get("m", version)
    (y,) = model.run({"x": np.zeros((1, 3), np.float32)}, ["y"], alone=False)
    return float(y[0, 0])


def rewrite(folder: Path, offset: float) -> None:
    shutil.rmtree(folder)
    write_offset_model(folder, offset)


def spoil(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"no graph")


def test_load_brings_a_new_version_and_keeps_the_others(tmp_path: Path, models: Path):
    repository, line = open_repository(tmp_path)
    repository.load_all()
    first = repository.get("m")
    write_offset_model(models / "2", 2)
    assert answer(repository) == 1
    repository.load("m")
    assert (answer(repository), answer(repository, "1")) == (2, 1)
    assert repository.get("m", "1") is first, "an unchanged version is not loaded again"
    assert line.known == [first, repository.get("m", "2")]


def test_changed_version_is_replaced(tmp_path: Path, models: Path):
    repository, line = open_repository(tmp_path)
    repository.load_all()
    rewrite(models / "1", 7)
    repository.load("m")
    assert answer(repository) == 7
    assert line.known == [repository.get("m")]


def test_failed_load_leaves_what_served_and_says_why_each_time(tmp_path: Path, models: Path):
    repository, line = open_repository(tmp_path)
    repository.load_all()
    serving = repository.get("m")
    spoil(models / "1")
    write_offset_model(models / "2", 2)
    spoil(models / "2")
    for _ in range(2):
        with pytest.raises(LoadFailed, match=r"m/1: .*cannot load.*; m/2: .*cannot load"):
            repository.load("m")
        assert repository.get("m") is serving
        assert line.known == [serving]
    assert [(row.version, row.state) for row in repository.index()] == [("1", "READY"), ("2", "UNAVAILABLE")]


def test_versions_that_are_gone_leave_once_the_wanted_ones_serve(tmp_path: Path, models: Path):
    repository, line = open_repository(tmp_path)
    repository.load_all()
    shutil.rmtree(models / "1")
    with pytest.raises(UnknownModel):
        repository.load("m")
    assert answer(repository) == 1, "an empty folder is no reason to stop"
    write_offset_model(models / "2", 2)
    spoil(models / "2")
    with pytest.raises(LoadFailed):
        repository.load("m")
    assert answer(repository) == 1
    rewrite(models / "2", 2)
    repository.load("m")
    assert repository.versions("m") == ["2"]
    assert line.known == [repository.get("m")]


def test_latest_version_replaces_the_one_before(tmp_path: Path, models: Path):
    repository, line = open_repository(tmp_path, policy="latest:1")
    repository.load_all()
    write_offset_model(models / "2", 2)
    repository.load("m")
    assert repository.versions("m") == ["2"]
    assert len(line.known) == 1
    assert repository.index() == [
        IndexRow("m", "1", "UNAVAILABLE", "not loaded"),
        IndexRow("m", "2", "READY"),
    ]


def test_unload_and_load_again(tmp_path: Path, models: Path):
    repository, line = open_repository(tmp_path)
    repository.load_all()
    repository.unload("m")
    assert line.known == []
    with pytest.raises(Unavailable, match="unloaded"):
        repository.get("m")
    assert [(row.state, row.reason) for row in repository.index()] == [("UNAVAILABLE", "it was unloaded")]
    assert not repository.all_broken, "it is as somebody wanted it"
    for _ in range(3):
        repository.look()
    assert line.known == [], "the watch leaves alone what an operator unloaded"
    repository.load("m")
    assert answer(repository) == 1
    for change in (repository.load, repository.unload):
        with pytest.raises(UnknownModel):
            change("nobody")


def test_watch_loads_what_stayed_the_same_for_two_looks(tmp_path: Path, models: Path):
    repository, line = open_repository(tmp_path)
    repository.load_all()
    repository.look()
    write_offset_model(models / "2", 2)
    (models / ".3").mkdir()
    (models / "notes").mkdir()
    write_offset_model(models.parent / ".hidden" / "1", 5)
    repository.look()
    assert repository.versions("m") == ["1"], "seen once"
    repository.look()
    assert repository.versions("m") == ["1", "2"]
    rewrite(models / "1", 7)
    shutil.rmtree(models / "2")
    for _ in range(2):
        repository.look()
    assert repository.versions("m") == ["1"]
    assert answer(repository) == 7
    shutil.rmtree(models)
    repository.look()
    assert answer(repository) == 7, "missed once"
    repository.look()
    with pytest.raises(UnknownModel):
        repository.get("m")
    assert line.known == []
    assert [entry.name for entry in repository] == []


def test_watch_never_loads_a_version_that_is_still_growing(tmp_path: Path, models: Path):
    repository, _ = open_repository(tmp_path)
    repository.load_all()
    write_offset_model(tmp_path / "2", 2)
    whole = (tmp_path / "2" / "model.onnx").read_bytes()
    (models / "2").mkdir()
    for size in range(0, len(whole), 40):
        (models / "2" / "model.onnx").write_bytes(whole[:size])
        repository.look()
        assert [(row.version, row.reason) for row in repository.index()] == [("1", ""), ("2", "not loaded")]
    (models / "2" / "model.onnx").write_bytes(whole)
    repository.look()
    repository.look()
    assert answer(repository) == 2


def test_watch_tries_a_broken_version_once_per_change(tmp_path: Path, models: Path, caplog: pytest.LogCaptureFixture):
    repository, _ = open_repository(tmp_path)
    repository.load_all()
    spoil(models / "1")
    for _ in range(5):
        repository.look()
    assert caplog.text.count("cannot load m/1") == 1
    assert answer(repository) == 1
    rewrite(models / "1", 3)
    for _ in range(2):
        repository.look()
    assert answer(repository) == 3


def test_renumbered_version_serves_without_a_gap(tmp_path: Path, models: Path):
    repository, _ = open_repository(tmp_path)
    repository.load_all()
    (models / "1").rename(models / "2")
    repository.look()
    assert repository.versions("m") == ["1"]
    repository.look()
    assert repository.versions("m") == ["2"]


@pytest.mark.parametrize("policy", ["all", "latest:1"])
def test_watch_takes_back_what_it_let_go(tmp_path: Path, models: Path, policy: str):
    """A rollback: the newer version leaves, and the older one, which may have left before, serves again."""
    repository, line = open_repository(tmp_path, policy=policy)
    repository.load_all()
    write_offset_model(models / "2", 2)
    for _ in range(2):
        repository.look()
    assert answer(repository) == 2
    (models / "2").rename(models / ".2")
    for _ in range(2):
        repository.look()
    assert (answer(repository), repository.versions("m")) == (1, ["1"])
    (models / ".2").rename(models / "2")
    for _ in range(2):
        repository.look()
    assert answer(repository) == 2
    assert [model.version for model in line.known][-1] == "2"


def test_unreadable_repository_changes_nothing(tmp_path: Path, models: Path):
    repository, _ = open_repository(tmp_path)
    repository.load_all()
    models.parent.rename(tmp_path / "away")
    for change in (repository.look, lambda: repository.load("m")):
        with pytest.raises(LoadFailed, match="cannot be read"):
            change()
    assert answer(repository) == 1
    assert [row.state for row in repository.index()] == ["READY"]


def test_a_folder_that_cannot_be_read_is_not_gone(tmp_path: Path, models: Path, caplog: pytest.LogCaptureFixture):
    """Root may read every folder; one that is a link to itself nobody can."""
    repository, _ = open_repository(tmp_path)
    repository.load_all()
    models.rename(tmp_path / "away")
    models.symlink_to(models)
    write_offset_model(models.parent / "other" / "1", 2)
    for _ in range(3):
        repository.look()
    assert answer(repository) == 1
    assert repository.versions("other") == ["1"]
    with pytest.raises(LoadFailed, match="the folder of model 'm' cannot be read"):
        repository.load("m")
    started, _ = open_repository(tmp_path)
    started.load_all()
    assert [entry.name for entry in started] == ["other"]
    assert "m cannot be read; it is left out" in caplog.text


def test_what_no_look_has_found_is_gone_after_two_looks_as_well(tmp_path: Path, models: Path):
    repository, _ = open_repository(tmp_path)
    repository.load_all()
    write_offset_model(models / "2", 2)
    repository.load("m")
    shutil.rmtree(models)
    for served in (["1", "2"], []):
        repository.look()
        assert repository.versions("m") == served


def test_a_file_in_a_folder_of_a_bundle_belongs_to_it(tmp_path: Path, models: Path):
    (models / "1" / "weights").mkdir()
    (models / "1" / "weights" / "part").write_bytes(b"1")
    before = fingerprint(models / "1")
    (models / "1" / "weights" / "part").write_bytes(b"23")
    assert fingerprint(models / "1") != before


def test_unreadable_policy_is_told_at_the_start(tmp_path: Path, models: Path):
    with pytest.raises(ValueError, match="version policy 'newest'"):
        open_repository(tmp_path, policy="newest")

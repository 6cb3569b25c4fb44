"""The loop on tiny synthetic data: resumption bit for bit, early stopping, what it writes."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Generator, Tensor, nn

from app.manifest import Forecasting, VolumeClassification
from models.config import ClassifierConfig, ForecasterConfig, build, from_dict
from tests.train import synthetic
from train.classification import ClassificationObjective, random_affine, transform
from train.datasets.series import Series, split_bounds
from train.forecasting import ForecastObjective, random_subset
from train.loop import ResumeError, Trainer
from train.objective import Objective
from train.recipe import Augmentation, Recipe

CPU = torch.device("cpu")
KINDS = {
    "forecaster": synthetic.forecaster_recipe,
    "classifier": synthetic.classifier_recipe,
    "kanet": synthetic.kanet_recipe,
}


def objective(recipe: Recipe) -> Objective:
    if isinstance(recipe.model, ForecasterConfig):
        return ForecastObjective(synthetic.series(), recipe.model, recipe.augmentation, CPU)
    return ClassificationObjective(synthetic.volumes(), recipe.model, recipe.augmentation, CPU)


def train(recipe: Recipe, folder: Path, resume: bool = False, using: Objective | None = None) -> dict[str, Any]:
    return Trainer(recipe, using or objective(recipe), folder, CPU, resume).run(progress=False)


class Interrupted(Exception):
    pass


class Interrupting:
    """An objective that fails like a killed process after a number of training steps."""

    def __init__(self, inner: Objective, steps: int) -> None:
        self.inner, self.steps, self.size = inner, steps, inner.size

    def loss(self, module: nn.Module, indices: Tensor, generator: Generator) -> Tensor:
        if not self.steps:
            raise Interrupted
        self.steps -= 1
        return self.inner.loss(module, indices, generator)

    def samples(self, indices: Tensor) -> Tensor:
        return self.inner.samples(indices)

    def validate(self, module: nn.Module) -> tuple[float, dict[str, Any]]:
        return self.inner.validate(module)

    def facts(self) -> dict[str, Any]:
        return self.inner.facts()


class Scripted(Interrupting):
    """The true loss, with validation scores from a list."""

    def __init__(self, inner: Objective, scores: list[float]) -> None:
        super().__init__(inner, steps=10_000)
        self.scores = iter(scores)

    def validate(self, module: nn.Module) -> tuple[float, dict[str, Any]]:
        score = next(self.scores)
        return score, {"scripted": score}


def without_times(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(kind: str, tmp_path: Path) -> None:
    recipe = KINDS[kind]()
    whole = train(recipe, tmp_path / "whole")
    steps_an_epoch = -(-objective(recipe).size // recipe.optimisation.batch)
    with pytest.raises(Interrupted):  # in the middle of epoch 3
        train(recipe, tmp_path / "parts", using=Interrupting(objective(recipe), 2 * steps_an_epoch + 1))
    assert len(without_times(tmp_path / "parts")) == 2
    torch.manual_seed(987)  # the process that resumes has a random state of its own
    resumed = train(recipe, tmp_path / "parts", resume=True)
    assert resumed == whole
    assert without_times(tmp_path / "parts") == without_times(tmp_path / "whole")
    for name in ("weights.safetensors", "training.json", "config.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    for seed in (1, 2):
        train(synthetic.forecaster_recipe(seed=seed, epochs=1), tmp_path / str(seed))
    assert (tmp_path / "1/weights.safetensors").read_bytes() != (tmp_path / "2/weights.safetensors").read_bytes()


def test_another_recipe_does_not_resume(tmp_path: Path) -> None:
    train(synthetic.forecaster_recipe(epochs=1), tmp_path)
    with pytest.raises(ResumeError, match="another recipe, seed, data set or split"):
        train(synthetic.forecaster_recipe(epochs=2), tmp_path, resume=True)


@pytest.mark.parametrize("horizon", [8, 96, 100, 200])
def test_every_step_of_the_head_is_trained_and_measured(horizon: int) -> None:
    """Also where the head ends between two of the benchmark's horizons."""
    config = ForecasterConfig(lookback=12, horizon=horizon, patch=4, dim=8, depth=1, heads=2, hidden=8)
    values = np.random.default_rng(0).normal(size=(900, 2))
    data = Series("noise", ("a", "b"), values, split_bounds(900, (400, 250, 250)), "h", "none", "0" * 64)
    task, module = ForecastObjective(data, config, Augmentation(), CPU), build(config)
    task.loss(module, torch.arange(4), Generator()).backward()
    head = module.get_parameter("head.weight")
    assert head.shape[0] == horizon
    assert head.grad is not None
    assert (head.grad.abs().sum(dim=1) > 0).all()
    with torch.no_grad():
        _, metrics = task.validate(module)
    assert set(metrics) == {*(str(h) for h in (96, 192) if h < horizon), str(horizon), "average"}


def test_other_rows_of_the_same_file_do_not_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(synthetic.forecaster_recipe(epochs=1), tmp_path)
    before = (tmp_path / "training.json").read_bytes()
    made = synthetic.series()
    monkeypatch.setattr(synthetic, "series", lambda: replace(made, bounds=split_bounds(200, (100, 50, 50))))
    with pytest.raises(ResumeError, match="another recipe, seed, data set or split"):
        train(synthetic.forecaster_recipe(epochs=1), tmp_path, resume=True)
    assert (tmp_path / "training.json").read_bytes() == before


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    recipe = synthetic.forecaster_recipe(epochs=2)
    first = train(recipe, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert train(recipe, tmp_path, resume=True) == first
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_rise_of_one_step_begins_at_the_peak(tmp_path: Path) -> None:
    recipe = synthetic.forecaster_recipe(epochs=1, batch=51, warmup=0.5, learning_rate=0.25)
    trainer = Trainer(recipe, objective(recipe), tmp_path, CPU)
    assert trainer.batches == 2
    assert trainer.schedule.get_last_lr() == [pytest.approx(0.25)]
    assert trainer.run(progress=False)["epochs_run"] == 1


def test_stops_early_and_keeps_the_best_epoch(tmp_path: Path) -> None:
    recipe = synthetic.forecaster_recipe(epochs=9, patience=3)
    training = train(recipe, tmp_path, using=Scripted(objective(recipe), [5.0, 3.0, 4.0, 3.0, 3.5, 1.0]))
    assert training["best_epoch"] == 2
    assert training["epochs_run"] == 5
    assert training["validation"] == {"scripted": 3.0}
    assert training["finished"]
    # The saved weights are those of epoch 2: a run that stops there has the same ones.
    with pytest.raises(StopIteration):
        train(recipe, tmp_path / "two", using=Scripted(objective(recipe), [5.0, 3.0]))
    assert (tmp_path / "two/weights.safetensors").read_bytes() == (tmp_path / "weights.safetensors").read_bytes()


def test_every_epoch_shows_its_score_and_the_curve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = synthetic.forecaster_recipe(epochs=3)
    Trainer(recipe, Scripted(objective(recipe), [5.0, 1.0, 3.0]), tmp_path, CPU).run(progress=True)
    shown = [line[line.index("epoch") :] for line in capsys.readouterr().err.splitlines() if "validation" in line]
    assert [line.split("validation ")[1] for line in shown] == [
        "5.0000  best 5.0000 in epoch 1  ▁",
        "1.0000  best 1.0000 in epoch 2  █▁",
        "3.0000  best 1.0000 in epoch 2  █▁▅",
    ]
    assert shown[2].startswith("epoch 3/3  train ")


def test_training_learns(tmp_path: Path) -> None:
    """After 20 epochs the sines are forecast far better than by their mean (scaled variance 1)."""
    recipe = synthetic.forecaster_recipe(epochs=20, learning_rate=1e-2, average=0.0)
    training = train(recipe, tmp_path)
    losses = [line["train_loss"] for line in without_times(tmp_path)]
    assert losses[-1] < 0.5 * losses[0]
    assert training["validation"]["average"]["mse"] < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_is_a_checkpoint(kind: str, tmp_path: Path) -> None:
    recipe = KINDS[kind](epochs=2)
    train(recipe, tmp_path)
    config = from_dict(json.loads((tmp_path / "config.json").read_text()))
    assert config == recipe.model
    module = build(config)
    module.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    training = json.loads((tmp_path / "training.json").read_text())
    _, metrics = objective(recipe).validate(module.eval().requires_grad_(False))
    assert metrics == training["validation"], "training.json's figures are those of the saved weights"
    assert training["recipe"]["model"] == json.loads((tmp_path / "config.json").read_text())
    assert set(training) >= {"seed", "dataset", "data_sha256", "data_licence", "versions", "best_epoch", "task"}
    if isinstance(recipe.model, ForecasterConfig):
        task = Forecasting.model_validate(training["task"])
        assert (task.lookback, task.horizon, task.frequency) == (12, 8, "h")
        assert list(task.variates) == training["variates"] == ["a", "b"]
    else:
        labels = VolumeClassification.model_validate(training["task"])
        assert list(labels.labels) == training["labels"] == ["large", "small"]
        assert [step.op for step in labels.preprocessing] == ["reorient", "binarise", "resize"]
    assert not list(tmp_path.glob(".*")), "no temporary file is left"


def test_the_forecast_loss_is_the_mean_over_horizons() -> None:
    """Against a loop over windows in numpy, with a module that repeats the last value."""

    class LastValue(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[..., -1:].expand(*x.shape[:-1], 8)

    recipe = synthetic.forecaster_recipe()
    assert isinstance(recipe.model, ForecasterConfig)
    task = ForecastObjective(synthetic.series(), recipe.model, Augmentation(), CPU)
    task.horizons = (2, 8)
    rows = synthetic.series().scaled("train", 12)
    assert task.size == 120 - 12 - 8 + 1
    chosen = [0, 7, task.size - 1]
    errors = np.stack([rows[w + 12 : w + 20] - rows[w + 11] for w in chosen])
    expected = (np.square(errors[:, :2]).mean() + np.square(errors).mean()) / 2
    loss = task.loss(LastValue(), torch.tensor(chosen), torch.Generator())
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_of_squares_or_sizes_or_both() -> None:
    class Zero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.new_zeros(*x.shape[:-1], 8)

    recipe = synthetic.forecaster_recipe()
    assert isinstance(recipe.model, ForecasterConfig)
    rows, losses = synthetic.series().scaled("train", 12), []
    for name in ("mse", "mae", "mse+mae"):
        task = ForecastObjective(synthetic.series(), recipe.model, Augmentation(), CPU, name)
        losses.append(task.loss(Zero(), torch.tensor([3]), torch.Generator()).item())
    target = rows[15:23]
    assert losses[:2] == pytest.approx([np.square(target).mean(), np.abs(target).mean()], rel=1e-5)
    assert losses[2] == pytest.approx(sum(losses[:2]), rel=1e-6)


def test_batch_statistics_are_those_of_the_saved_weights_over_plain_samples(tmp_path: Path) -> None:
    """Of the first normalisation, whose input is the stem's convolution of the training volumes."""
    recipe = synthetic.kanet_recipe(epochs=2)
    task = objective(recipe)
    train(recipe, tmp_path, using=task)
    state = load_file(tmp_path / "weights.safetensors")
    maps = nn.functional.conv3d(task.samples(torch.arange(task.size)), state["stem.0.weight"], stride=2, padding=1)
    expected = maps.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(state["stem.1.running_mean"].double(), expected.mean(dim=1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(state["stem.1.running_var"].double(), expected.var(dim=1), rtol=1e-4, atol=1e-6)


def test_random_subsets_of_variates_are_fair() -> None:
    generator = torch.Generator().manual_seed(0)
    subsets = [random_subset(3, generator).tolist() for _ in range(3000)]
    assert all(len(set(subset)) == len(subset) and set(subset) <= {0, 1, 2} for subset in subsets)
    sizes = np.bincount([len(subset) for subset in subsets], minlength=4)
    np.testing.assert_allclose(sizes[1:] / 3000, 1 / 3, atol=0.05)
    singles = np.bincount([subset[0] for subset in subsets if len(subset) == 1], minlength=3)
    np.testing.assert_allclose(singles / singles.sum(), 1 / 3, atol=0.05)


def test_subsets_of_variates_reach_the_module() -> None:
    seen = []

    class Recording(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.shape[1])
            return x[..., :8]

    recipe = synthetic.forecaster_recipe()
    assert isinstance(recipe.model, ForecasterConfig)
    generator = torch.Generator().manual_seed(0)
    for share, expected in ((0.0, {2}), (1.0, {1, 2})):
        seen.clear()
        task = ForecastObjective(synthetic.series(), recipe.model, Augmentation(variates=share), CPU)
        for _ in range(20):
            task.loss(Recording(), torch.tensor([0, 1]), generator)
        assert set(seen) == expected


def test_a_model_for_other_classes_is_refused() -> None:
    recipe = synthetic.classifier_recipe()
    assert isinstance(recipe.model, ClassifierConfig)
    with pytest.raises(ValueError, match="the model has 3 classes, synthetic has 2"):
        ClassificationObjective(
            synthetic.volumes(), dataclasses.replace(recipe.model, classes=3), recipe.augmentation, CPU
        )


def test_affine_maps_move_and_keep_volumes() -> None:
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(2, 1, 8, 8, 8, generator=generator)
    still = transform(volume, random_affine(2, Augmentation(), generator))
    torch.testing.assert_close(still, volume)
    # A shift by a quarter of the side along the last axis (x comes first in the map) moves by 2 of 8 voxels.
    shift = torch.eye(3, 4).expand(2, 3, 4).clone()
    shift[:, 0, 3] = 0.5
    torch.testing.assert_close(transform(volume, shift)[..., :6], volume[..., 2:])
    maps = random_affine(500, Augmentation(rotation=15.0, scale=0.2, shift=0.1), generator)
    size = torch.linalg.det(maps[:, :, :3].double()) ** (1 / 3)
    assert 0.8 <= size.min() < 0.85
    assert 1.15 < size.max() <= 1.2
    turns = maps[:, :, :3] / size[:, None, None].float()
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3).expand(500, 3, 3), rtol=0, atol=1e-5)
    assert 0.19 < maps[:, :, 3].abs().max() <= 0.2

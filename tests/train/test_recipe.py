"""Recipes: the shipped ones, and errors that name the key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.config import ClassifierConfig, ForecasterConfig, KANetConfig, build
from train.recipe import RecipeError, read_recipe

FOLDER = Path(__file__).parents[2] / "train" / "recipes"

GOOD = """
name = "mine"
dataset = "etth1"
[model]
kind = "forecaster"
[optimisation]
epochs = 3
batch = 8
"""


@pytest.mark.parametrize(
    ("name", "kind", "dataset"),
    [
        ("hot-etth1", ForecasterConfig, "etth1"),
        ("kao-etth1", ForecasterConfig, "etth1"),
        ("hot-weather", ForecasterConfig, "weather"),
        ("hot-adrenal", ClassifierConfig, "adrenalmnist3d"),
        ("kan-adrenal", KANetConfig, "adrenalmnist3d"),
    ],
)
def test_shipped_recipes_build(name: str, kind: type, dataset: str) -> None:
    recipe = read_recipe(FOLDER / f"{name}.toml")
    assert (recipe.name, recipe.dataset) == (name, dataset)
    assert isinstance(recipe.model, kind)
    assert sum(p.numel() for p in build(recipe.model).parameters()) > 10_000
    json.dumps(recipe.to_dict(), allow_nan=False)


def test_defaults_fill_what_is_not_said(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    recipe = read_recipe(path)
    assert recipe.optimisation.learning_rate == 1e-3
    assert recipe.model == ForecasterConfig()
    assert recipe.augmentation.rotation == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch = 8", "batchsize = 8", r"\[optimisation\]: unknown key batchsize; known: epochs, batch, learning_rate"),
        ("batch = 8", "", r"\[optimisation\]: missing key batch"),
        ("batch = 8", 'batch = "8"', r"\[optimisation\]: batch must be int, got '8'"),
        ("batch = 8", "batch = 0", "must be at least 1"),
        ("batch = 8", "batch = 8\naverage = 1.0", "average must be in"),
        ('kind = "forecaster"', 'kind = "forecaster"\ndimm = 4', r"\[model\]: unknown keys dimm"),
        ('kind = "forecaster"', 'kind = "forecaster"\nlookback = 95', r"\[model\]: lookback 95 is not divisible"),
        ('dataset = "etth1"', 'data = "etth1"', "unknown key data; known: name, dataset"),
        ('dataset = "etth1"', "", "missing key dataset"),
        ('dataset = "etth1"', "dataset = 1", "dataset must be str"),
        ("[model]", "[model", r"mine\.toml: .*line 4"),
        ("batch = 8", 'batch = 8\nloss = "huber"', r"\[optimisation\]: loss must be one of mse, mae, mse\+mae"),
        ("batch = 8", "batch = 8\n[augmentation]\nflip = true", r"\[augmentation\]: unknown key flip"),
    ],
)
def test_errors_name_the_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(RecipeError, match=message):
        read_recipe(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml: no such file"):
        read_recipe(tmp_path / "none.toml")

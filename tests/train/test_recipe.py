"""Recipes: the shipped ones, and errors that name the key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

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
        ("batch = 8", "batch = 0", r"\[optimisation\]: batch must be in \[1, 2147483647\], got 0"),
        ("batch = 8", "batch = 1_000_000_000_000_000_000_000", "batch must be in"),
        ("batch = 8", "batch = 8\naverage = 1.0", "average must be in"),
        ("batch = 8", "batch = 8\nlearning_rate = -1", r"learning_rate must be in \(0, inf\), got -1"),
        ("batch = 8", "batch = 8\nlearning_rate = nan", "learning_rate must be in .*, got nan"),
        ("batch = 8", "batch = 8\nlearning_rate = inf", "learning_rate must be in .*, got inf"),
        ("batch = 8", "batch = 8\nwarmup = 2.0", r"warmup must be in \[0, 1\), got 2"),
        ("batch = 8", "batch = 8\nwarmup = 1", "warmup must be in"),
        ("batch = 8", "batch = 8\nweight_decay = -1", r"weight_decay must be in \[0, inf\), got -1"),
        ("batch = 8", "batch = 8\nclip = 0", r"clip must be in \(0, inf\), got 0"),
        ("batch = 8", "batch = 8\nseed = -1", r"seed must be in \[0, 4294967295\], got -1"),
        ("batch = 8", "batch = 8\n[augmentation]\nvariates = 5.0", r"\[augmentation\]: variates must be in \[0, 1\]"),
        ("batch = 8", "batch = 8\n[augmentation]\nlabel_smoothing = 2", "label_smoothing must be in"),
        ("batch = 8", "batch = 8\n[augmentation]\nrotation = nan", "rotation must be in"),
        *(
            ('kind = "forecaster"', f'kind = "{kind}"\n{keys}', rf"\[model\]: {message}")
            for kind, keys, message in [
                ("forecaster", "heads = 3\ndim = 8", "dim 8 is not divisible by heads 3"),
                ("forecaster", "rotary = [7]", r"rotary \(7,\) names a mode outside"),
                ("forecaster", "rotary = 1", "rotary must be a list of whole numbers, got 1"),
                ("forecaster", 'rotary = ["a"]', "rotary must be a list of whole numbers"),
                ("forecaster", "heads = 8\ndim = 1_000_000_000_000_000_000", "."),
                ("volume-classifier", "volume = 32", "volume must be a list of whole numbers"),
                ("volume-classifier", "volume = [32.0, 32, 32]", "volume must be a list of whole numbers"),
                (
                    "volume-classifier",
                    'dim = 4\nheads = 1\nposition = "sinusoidal"',
                    "sinusoidal positions .* width of 6",
                ),
                ("kanet", "size = 32", "size must be a list of whole numbers"),
                ("kanet", "modules = 3", "modules must be a list"),
                ("kanet", "modules = [3]", "a module is"),
            ]
        ),
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


def test_whole_numbers_stand_for_floats(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace("batch = 8", "batch = 8\nwarmup = 0\nclip = 2\nweight_decay = 0"))
    options = read_recipe(path).optimisation
    assert (options.warmup, options.clip, options.weight_decay) == (0.0, 2.0, 0.0)
    assert isinstance(options.warmup, float), "torch takes no other"


def test_reading_a_recipe_draws_nothing() -> None:
    before = torch.get_rng_state()
    read_recipe(FOLDER / "hot-etth1.toml")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml: no such file"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match=f"{tmp_path}: Is a directory"):
        read_recipe(tmp_path)

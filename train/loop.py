"""The training loop: one for every task.

AdamW under a one-cycle learning rate, clipped gradients, validation after every epoch, early stopping. Every epoch ends
with a complete state on disk: a resumed run takes the same steps as an uninterrupted one (bit for bit on a CPU).
"""

from __future__ import annotations

import copy
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from models.config import build, to_dict
from train import checkpoint
from train.curve import epoch_line
from train.objective import Objective
from train.recipe import Recipe

STATISTICS_BATCH = 64
"""Samples of one batch of the statistics' pass."""


class ResumeError(Exception):
    """The folder's state belongs to another recipe or another data set, or cannot be read."""


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder and those above it; what was made for the block goes again if the block fails and leaves it empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty
            for path in missing:
                path.rmdir()
        raise


class Trainer:
    """One run of a recipe in a folder.

    device: where the module and its gradients live. resume: continue from the folder's state if it has one.
    ResumeError: that state belongs to another recipe or other data, or cannot be read.
    """

    def __init__(
        self, recipe: Recipe, objective: Objective, folder: Path, device: torch.device, resume: bool = False
    ) -> None:
        self.recipe, self.objective, self.folder, self.device = recipe, objective, folder, device
        options = recipe.optimisation
        torch.manual_seed(options.seed)
        self.module = build(recipe.model).to(device)
        self.averaged = self.module
        if options.average:
            self.averaged = build(recipe.model).to(device)
            self.averaged.load_state_dict(self.module.state_dict())
        self.optimiser = torch.optim.AdamW(
            self.module.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.batches = -(-objective.size // options.batch)
        steps, warmup = self.batches * options.epochs, options.warmup
        if warmup * steps == 1:
            warmup *= 1 - 1e-9  # of a rise that takes exactly one step, torch divides by the length, 0
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, options.learning_rate, total_steps=steps, pct_start=warmup
        )
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self.best_epoch = 0
        self.best_score = float("inf")
        self.best_metrics: dict[str, Any] = {}
        self.best_state: dict[str, Tensor] = {}
        if resume and (folder / checkpoint.RESUME).exists():
            self._restore(self._state(folder / checkpoint.RESUME))

    @property
    def finished(self) -> bool:
        """All epochs are done, or the score has not improved for `patience` of them."""
        options = self.recipe.optimisation
        return self.epoch >= options.epochs or self.epoch - self.best_epoch >= options.patience

    def run(self, progress: bool = True) -> dict[str, Any]:
        """Train to the end; training.json's content. The progress bar goes to stderr.

        FloatingPointError: the loss or the score is not finite. OSError: the folder cannot be written. A run that ends
        before anything was written leaves no folder.
        """
        with _made(self.folder):
            return self._run(progress)

    def _run(self, progress: bool) -> dict[str, Any]:
        remaining = (self.recipe.optimisation.epochs - self.epoch) * self.batches
        with tqdm(total=remaining, unit="step", disable=not progress, file=sys.stderr, dynamic_ncols=True) as bar:
            while not self.finished:
                self._one_epoch(bar)
                if progress:
                    scores = [line["score"] for line in self.history]
                    epochs, loss = self.recipe.optimisation.epochs, self.history[-1]["train_loss"]
                    bar.write(epoch_line(self.epoch, epochs, loss, scores, self.best_epoch), file=sys.stderr)
        training = self._training()
        checkpoint.write_json(self.folder / checkpoint.TRAINING, training)
        return training

    def _one_epoch(self, bar: tqdm[Any]) -> None:
        options, begun = self.recipe.optimisation, time.monotonic()
        self.module.train()
        # The order and the augmentation depend on the seed and the epoch alone, not on what ran before.
        generator = torch.Generator().manual_seed(options.seed * 100_003 + self.epoch)
        order = torch.randperm(self.objective.size, generator=generator)
        total = 0.0
        for indices in torch.split(order, options.batch):
            loss = self.objective.loss(self.module, indices, generator)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.module.parameters(), options.clip)
            self.optimiser.step()
            self.schedule.step()
            self._average()
            value = loss.item()
            if not np.isfinite(value):
                raise FloatingPointError(f"the training loss became {value} in epoch {self.epoch + 1}")
            total += value * len(indices)
            bar.update()
            bar.set_description(f"epoch {self.epoch + 1}/{options.epochs} loss {value:.4f} best {self.best_score:.4f}")
        self.epoch += 1
        validated = self._validated()
        with torch.no_grad():
            score, metrics = self.objective.validate(validated)
        if not np.isfinite(score):
            raise FloatingPointError(f"the validation score became {score} in epoch {self.epoch}")
        self.history.append(
            {
                "epoch": self.epoch,
                "train_loss": total / self.objective.size,
                "score": score,
                "validation": metrics,
                "learning_rate": self.schedule.get_last_lr()[0],
                "seconds": round(time.monotonic() - begun, 2),
            }
        )
        if score < self.best_score:
            self.best_epoch, self.best_score, self.best_metrics = self.epoch, score, metrics
            self.best_state = copy.deepcopy({k: v.detach().cpu() for k, v in validated.state_dict().items()})
        self._save()

    @torch.no_grad()
    def _validated(self) -> nn.Module:
        """The averaged weights in inference mode, with batch statistics of their own: over all training samples,
        without augmentation.

        The running ones are of other weights, and of augmented samples, whose blurred masks have other moments.
        """
        module = copy.deepcopy(self.averaged).eval()
        layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean over the batches
            layer.train()
        if layers:
            for indices in torch.split(torch.arange(self.objective.size), STATISTICS_BATCH):
                module(self.objective.samples(indices))
        return module.eval()

    @torch.no_grad()
    def _average(self) -> None:
        """Move the averaged weights towards the present ones; faster at first, so that the start is soon forgotten."""
        if self.averaged is self.module:
            return
        steps = self.schedule.last_epoch
        decay = min(self.recipe.optimisation.average, (1 + steps) / (10 + steps))
        for mean, value in zip(self.averaged.parameters(), self.module.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)

    def _training(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_dict(),
            "seed": self.recipe.optimisation.seed,
            **self.objective.facts(),
            "best_epoch": self.best_epoch,
            "epochs_run": self.epoch,
            "finished": self.finished,
            "validation": self.best_metrics,
            "parameters": sum(parameter.numel() for parameter in self.module.parameters()),
            "device": self.device.type,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        }

    def _save(self) -> None:
        if self.best_epoch == self.epoch:
            checkpoint.write_json(self.folder / checkpoint.CONFIG, to_dict(self.recipe.model))
            checkpoint.write_weights(self.folder / checkpoint.WEIGHTS, self.best_state)
            checkpoint.write_json(self.folder / checkpoint.TRAINING, self._training())
        checkpoint.write_lines(self.folder / checkpoint.METRICS, self.history)
        state = {
            "identity": self._identity(),
            "epoch": self.epoch,
            "module": self.module.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": self.history,
            "best": (self.best_epoch, self.best_score, self.best_metrics, self.best_state),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        checkpoint.write_state(self.folder / checkpoint.RESUME, state)

    def _identity(self) -> dict[str, Any]:
        facts = self.objective.facts()
        return {"recipe": self.recipe.to_dict(), "data_sha256": facts["data_sha256"], "splits": facts.get("splits")}

    @staticmethod
    def _state(path: Path) -> dict[str, Any]:
        try:
            return checkpoint.read_state(path)
        except OSError:
            raise
        except Exception as error:  # bytes that are no pickle make its reader stumble in any way
            raise ResumeError(f"{path} cannot be read; start anew in another --out") from error

    def _restore(self, state: dict[str, Any]) -> None:
        if state["identity"] != self._identity():
            raise ResumeError(
                f"{self.folder} holds a run of another recipe, seed, data set or split; choose another --out"
            )
        self.epoch, self.history = state["epoch"], state["history"]
        self.module.load_state_dict(state["module"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self.best_epoch, self.best_score, self.best_metrics, self.best_state = state["best"]
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)
        checkpoint.write_lines(self.folder / checkpoint.METRICS, self.history)

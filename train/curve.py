"""The validation curve as one line of a terminal."""

from __future__ import annotations

from collections.abc import Sequence

_LEVELS = "▁▂▃▄▅▆▇█"


def curve(scores: Sequence[float]) -> str:
    """One block an epoch, the lowest for the best (smallest) score and the highest for the worst."""
    best, worst = min(scores), max(scores)
    span = (worst - best) or 1.0
    return "".join(_LEVELS[round((score - best) / span * (len(_LEVELS) - 1))] for score in scores)


def epoch_line(epoch: int, epochs: int, train_loss: float, scores: Sequence[float], best_epoch: int) -> str:
    """What an epoch gave, beside the curve of all epochs so far."""
    best = f"best {scores[best_epoch - 1]:.4f} in epoch {best_epoch}"
    return f"epoch {epoch}/{epochs}  train {train_loss:.4f}  validation {scores[-1]:.4f}  {best}  {curve(scores)}"

"""Prediction intervals: split-conformal errors of the bundle, brought to the level that the series' own past asks for.

The bundle holds quantiles of validation errors for each variate and step, in units of the deviation of the window. They
give the shape of an interval: how it widens, and how lopsided it is. How wide it must be differs from one stretch of
time to another, and from one series to another. So where the request's history is long enough, the model forecasts from
points in it whose outcome is known, and intervals are stretched by the factor that would have covered these outcomes as
often as asked: conformal prediction with the scaled error as the score (Vovk et al. 2005; for the scaling Romano et al.
2019).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from app.errors import UnusableInput
from app.manifest import Forecasting, Intervals
from app.readers.calendar import same_step
from app.readers.series import Series
from app.tasks.forecasting import Array
from app.tasks.past import MIN_KNOWN

BANDS = (1, 24, 96, 192, 336, 528)
"""First steps of the bands in which the factor of a series' own errors is estimated; past the head, every half of a
pass of the model is one."""

TINY = 1e-9

CACHED = 1 << 17
"""Errors that are gone through at a time: they stay in a processor's cache."""

MAX_PROBABILITIES = 100
"""Quantiles and levels of one request."""


def parse_probabilities(quantiles: Sequence[str] | None, levels: Sequence[str] | None) -> tuple[float, ...]:
    """Ascending probabilities from quantiles (0 to 1) and from levels of central intervals (percent).

    Raises:
        UnusableInput: not numbers, outside of what the ends of a validation split can tell, or too many.
    """
    wanted: set[float] = set()
    found: tuple[float, ...]
    for field, texts in (("quantiles", quantiles), ("level", levels)):
        if sum(given.count(",") + 1 for given in texts or ()) > MAX_PROBABILITIES:
            raise UnusableInput(f"{field} may hold {MAX_PROBABILITIES} numbers at most", field=field)
        for text in (part for given in texts or () for part in given.split(",")):
            try:
                number = float(text)
            except ValueError:
                raise UnusableInput(f"{field} must be numbers, not {text[:20]!r}", field=field) from None
            if field == "quantiles":
                found = (number,)
                if not 0.005 <= number <= 0.995:
                    raise UnusableInput(f"quantiles lie between 0.005 and 0.995, not at {number:g}", field=field)
            else:
                if not 0 <= number <= 99:
                    raise UnusableInput(f"a level lies between 0 and 99 percent, not at {number:g}", field=field)
                found = (0.5 - number / 200, 0.5 + number / 200)
            wanted.update(round(one, 6) for one in found)
    return tuple(sorted(wanted))


def is_known(series: Series, spec: Forecasting) -> bool:
    """Whether a series has the variates and the step that the bundle was calibrated on."""
    assert spec.intervals is not None
    known = all(name and name in spec.intervals.errors for name in series.names)  # "" names all of them together
    if series.frequency is None or spec.frequency is None:
        return known and series.frequency is None
    return known and same_step(series.frequency, spec.frequency)


@dataclass(frozen=True, eq=False)
class Shapes:
    """How validation errors spread about the forecasts of one series, in units of the window's deviation.

    up, down: by level of the central interval, how far it reaches to either side (variates, horizon); from the head on,
    as at its last step.
    """

    head: int
    probabilities: tuple[float, ...]
    up: dict[float, Array]
    down: dict[float, Array]

    def offsets(self, errors: Array | None) -> Array:
        """How far each quantile lies from the forecast: (probabilities, variates, horizon).

        errors: those of the series' own past, as `PastForecasts.errors` gives them; None: the validation errors alone,
        which say nothing of steps past the head.
        """
        away = []
        factors: dict[float, Array] = {}
        for probability in self.probabilities:
            level = _level(probability)
            up, down = self.up[level], self.down[level]
            if level not in factors:
                factors[level] = np.ones(up.shape)
                if errors is not None and level:
                    factors[level] = _factors(errors[:, :, : up.shape[1]], up, down, level, self.head)
            if not level:
                away.append(np.zeros(up.shape))  # the middle is the forecast itself
            else:
                away.append(factors[level] * (up if probability > 0.5 else -down))
        return _nested(np.array(away), np.asarray(self.probabilities))


def shapes(series: Series, spec: Forecasting, horizon: int, probabilities: Sequence[float]) -> Shapes:
    """The bundle's errors for a series' variates, by name, or of all variates where it does not know a name."""
    assert spec.intervals is not None
    up, down = {}, {}
    for level in {_level(probability) for probability in probabilities}:
        up[level] = np.maximum(_shape(series.names, spec.intervals, horizon, 0.5 + level / 2), TINY)
        down[level] = np.maximum(-_shape(series.names, spec.intervals, horizon, 0.5 - level / 2), TINY)
    return Shapes(spec.horizon, tuple(probabilities), up, down)


def _level(probability: float) -> float:
    return round(abs(2 * probability - 1), 6)


def _shape(names: Sequence[str], intervals: Intervals, horizon: int, probability: float) -> Array:
    """Validation errors at a probability (variates, horizon), interpolated between the steps that are stored."""
    steps = np.arange(1, horizon + 1)
    known = [name if name in intervals.errors else "" for name in names]
    rows = {}
    for name in set(known):
        at_steps = [np.interp(probability, intervals.probabilities, row) for row in intervals.errors[name]]
        rows[name] = np.interp(steps, intervals.steps, at_steps)
    return np.array([rows[name] for name in known])


def _factors(errors: Array, up: Array, down: Array, level: float, head: int) -> Array:
    """What intervals from -down to up must be stretched by to cover the past at `level`, by band of steps.

    1 where the past tells nothing.
    """
    origins, _, horizon = errors.shape
    factors = np.ones(up.shape)
    told = np.flatnonzero(telling(errors))
    count = max(1, CACHED // (origins * horizon))
    for part in (told[start : start + count] for start in range(0, len(told), count)):
        mine = errors[:, part]
        scores = np.maximum(mine / up[part], -mine / down[part])
        known = np.isfinite(scores)
        scores[~known] = np.inf  # so that what is not known comes last
        for start, stop in pairwise(_bands(head, horizon)):
            own = scores[:, :, start:stop].transpose(1, 0, 2).reshape(len(part), -1)
            sizes = known[:, :, start:stop].sum(axis=(0, 2))
            some = np.flatnonzero(sizes)
            # (n + 1) in place of n: the forecast to come is one more of them.
            rank = np.minimum(1.0, level * (sizes[some] + 1) / sizes[some]) * (sizes[some] - 1)
            lower = np.floor(rank).astype(np.intp)
            upper = np.minimum(lower + 1, sizes[some] - 1)
            own.partition(np.unique([lower, upper]), axis=1)
            found = own[some, lower] + (own[some, upper] - own[some, lower]) * (rank - lower)
            factors[part[some], start:stop] = np.maximum(found, 0.0)[:, np.newaxis]
    return factors


def telling(errors: Array, head: int | None = None) -> npt.NDArray[np.bool_]:
    """Of which variates errors of the past (origins, variates, horizon) are known from enough origins to say how far
    forecasts miss; with `head`, past the model's own horizon, too."""
    known = np.isfinite(errors)
    enough: npt.NDArray[np.bool_] = known.any(axis=2).sum(axis=0) >= MIN_KNOWN
    return enough if head is None else enough & known[:, :, head:].any(axis=(0, 2))


def _bands(head: int, horizon: int) -> list[int]:
    """The bands' first steps, from 0, and the end of the last."""
    starts = {step - 1 for step in BANDS if step <= head} | set(range(head, horizon, max(1, head // 2)))
    return [*sorted(start for start in starts if start < horizon), horizon]


def _nested(found: Array, probabilities: npt.NDArray[np.float64]) -> Array:
    """Quantiles in their order: none may lie inside one that is nearer to the middle."""
    above = np.flatnonzero(probabilities > 0.5)
    below = np.flatnonzero(probabilities < 0.5)[::-1]
    found[above] = np.maximum.accumulate(found[above], axis=0)
    found[below] = np.minimum.accumulate(found[below], axis=0)
    return found

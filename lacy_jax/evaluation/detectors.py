"""Bootstrap intervals and calibration curves, in numpy on the host.

AUROC and average precision are in `lacy_jax.training.validation`, because training uses them too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lacy_jax.formatting import exact

_CHUNK = 1 << 22  # Bootstrap draws in memory at once, so that memory does not grow with resamples x units.


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with a bootstrap interval.

    Attributes:
      estimate: the figure on the whole sample; nan if there is nothing to count.
      low, high: ends of the 95 % percentile interval; nan with fewer than two units.
    """

    estimate: float
    low: float
    high: float

    @property
    def ends(self) -> list[float] | None:
        """[low, high] for JSON; None if they are undefined."""
        low, high = finite(self.low), finite(self.high)
        return None if low is None or high is None else [low, high]


def bootstrap_ratio(
    numerator: ArrayLike, denominator: ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of sum(numerator) / sum(denominator) over units (people, documents).

    Whole units are drawn, so that facts of one text, which depend on each other, do not count as independent evidence. A
    resample with a denominator of zero is left out.

    Args:
      numerator, denominator: [n], for example true and stated facts of each person.
      resamples: number of bootstrap samples.
      seed: seed of the draws.

    Raises:
      ValueError: the two differ in length.
    """
    top, bottom = _units(numerator, denominator)

    def statistic(weights: np.ndarray) -> np.ndarray:
        return _divide(weights @ top, weights @ bottom)

    return _bootstrap(statistic, len(top), resamples, seed)


def bootstrap_ratio_difference(
    numerator: ArrayLike,
    denominator: ArrayLike,
    other_numerator: ArrayLike,
    other_denominator: ArrayLike,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Paired bootstrap of one ratio minus another over the SAME units, in the same order.

    Pairing removes the effect of easy and hard people on both methods, so that a small but steady difference shows.
    See `bootstrap_ratio` for the arguments; all four arrays are [n].

    Raises:
      ValueError: lengths differ.
    """
    top, bottom = _units(numerator, denominator)
    other_top, other_bottom = _units(other_numerator, other_denominator)
    if len(top) != len(other_top):
        raise ValueError(
            f"paired bootstrap needs the same units on both sides, got {len(top)} and {len(other_top)}"
        )

    def statistic(weights: np.ndarray) -> np.ndarray:
        return _divide(weights @ top, weights @ bottom) - _divide(weights @ other_top, weights @ other_bottom)

    return _bootstrap(statistic, len(top), resamples, seed)


def bootstrap_seeds_and_units(
    numerator: ArrayLike,
    denominator: ArrayLike,
    other_numerator: ArrayLike | None = None,
    other_denominator: ArrayLike | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Hierarchical bootstrap of a ratio, or of one ratio minus another: seeds and, crossed with them, units are drawn.

    The units (people) are drawn once for both sides, which pairs them; the seeds of the two sides are drawn apart,
    because two methods trained with the same seed share nothing that would make them alike. With few seeds the interval
    is too narrow rather than too wide: three draws of three seeds cannot show what a fourth would do.

    Args:
      numerator, denominator: [seeds, n]; `bootstrap_ratio` of their sums over both.
      other_numerator, other_denominator: [other seeds, n], to be subtracted; None = nothing is.
      resamples, seed: see `bootstrap_ratio`.

    Raises:
      ValueError: the numbers of units differ.
    """
    pairs = [(np.asarray(numerator, float), np.asarray(denominator, float))]
    if other_numerator is not None and other_denominator is not None:
        pairs.append((np.asarray(other_numerator, float), np.asarray(other_denominator, float)))
    if len({array.shape[1] for pair in pairs for array in pair}) != 1:
        raise ValueError(f"seeds and units: got shapes {[array.shape for pair in pairs for array in pair]}")

    def statistic(units: np.ndarray, seeds: list[np.ndarray]) -> np.ndarray:
        ratios = [
            _divide(((units @ top.T) * drawn).sum(1), ((units @ bottom.T) * drawn).sum(1))
            for (top, bottom), drawn in zip(pairs, seeds, strict=True)
        ]
        return ratios[0] - ratios[1] if len(ratios) > 1 else ratios[0]

    def draws(n: int) -> np.ndarray:
        return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)

    rng = np.random.default_rng(seed)
    counts, n = [len(top) for top, _ in pairs], pairs[0][0].shape[1]
    estimate = float(statistic(np.ones((1, n)), [np.ones((1, count)) for count in counts])[0])
    return _interval(estimate, statistic(draws(n), [draws(count) for count in counts]))


def calibration_curve(probability: ArrayLike, event: ArrayLike, *, bins: int = 10) -> dict[str, Any]:
    """Reliability of a predicted probability, in `bins` equal-width bins of [0, 1].

    Args:
      probability: [n] in [0, 1].
      event: [n] bool.

    Returns:
      "edges" [bins + 1]; per bin "count", "mean_probability" and "event_rate" (None in an empty bin); "ece",
      the expected calibration error sum_b count_b / n * |event_rate_b - mean_probability_b|; "brier", the
      mean squared error; both None if n = 0.

    Raises:
      ValueError: the lengths differ, or a probability is outside [0, 1] or nan.
    """
    p, y = _units(probability, event)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError("probabilities must lie in [0, 1]")
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.minimum((p * bins).astype(int), bins - 1)  # p = 1 belongs to the last bin.
    count = np.bincount(index, minlength=bins)
    mean_p = _divide(np.bincount(index, p, bins), count)
    rate = _divide(np.bincount(index, y, bins), count)
    n = len(p)
    return {
        "edges": edges.tolist(),
        "count": count.tolist(),
        "mean_probability": [finite(x) for x in mean_p],
        "event_rate": [finite(x) for x in rate],
        "ece": float(np.nansum(count * np.abs(mean_p - rate)) / n) if n else None,
        "brier": float(np.mean((p - y) ** 2)) if n else None,
    }


def top_share(score: ArrayLike, share: float) -> np.ndarray:
    """[n] bool: the floor(share * n) highest scores; of equal scores the earliest (arXiv:2602.12005 §5.1).

    nan ranks below every number.
    """
    score = np.asarray(score, np.float64).ravel()
    chosen = np.zeros(score.shape, bool)
    order = np.argsort(-score, kind="stable")  # nan sorts last.
    chosen[order[: math.floor(exact(share) * score.size)]] = True
    return chosen


def finite(value: Any) -> float | None:
    """A float for JSON, which has neither nan nor inf: both become None."""
    return float(value) if np.isfinite(value) else None


def _units(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    if len(a) != len(b):
        raise ValueError(f"lengths differ: {len(a)} and {len(b)}")
    return a, b


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, nan where b is 0."""
    return np.divide(a, b, out=np.full(np.shape(a), np.nan), where=np.asarray(b) != 0)


def _bootstrap(statistic: Callable[[np.ndarray], np.ndarray], n: int, resamples: int, seed: int) -> Interval:
    """`statistic` takes unit weights [r, n] (how often each unit was drawn) and returns [r] values."""
    if n == 0:
        return Interval(np.nan, np.nan, np.nan)
    estimate = float(statistic(np.ones((1, n)))[0])
    if n == 1:  # The spread of a single unit is unknown; an interval of zero width would be misleading.
        return Interval(estimate, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // n)
    parts = [
        statistic(
            rng.multinomial(n, np.full(n, 1 / n), size=min(at_once, resamples - done)).astype(np.float64)
        )
        for done in range(0, resamples, at_once)
    ]
    return _interval(estimate, np.concatenate(parts))


def _interval(estimate: float, values: np.ndarray) -> Interval:
    values = values[np.isfinite(values)]
    if not values.size:
        return Interval(estimate, np.nan, np.nan)
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(estimate, float(low), float(high))

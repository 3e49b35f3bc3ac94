"""Had the figures settled? A trend over a run, and where its warm-up ends. Pure; knows nothing of runs or tables."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

BATCH = 5  # values


@dataclass(frozen=True, slots=True)
class Trend:
    """How far values moved over a run: rank correlation with time, its p-value, last third's median / first third's."""

    rho: float
    p: float
    ratio: float


def trend(at_s: ArrayLike, values: ArrayLike, most: int = 50_000) -> Trend | None:
    """Whether `values` (n,) move with `at_s` (n,). None below 36 values. Beyond `most`, every k-th is taken."""
    at, array = np.asarray(at_s, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if array.size < 36 or at.min() == at.max() or array.min() == array.max():
        return None
    order = np.argsort(at, kind="stable")[:: max(1, math.ceil(array.size / most))]
    at, array = at[order], array[order]
    third = array.size // 3
    first, last = float(np.median(array[:third])), float(np.median(array[-third:]))
    found = scipy_stats.spearmanr(at, array)
    return Trend(float(found.statistic), float(found.pvalue), last / first if first else math.inf)


def mser5(values: ArrayLike) -> int | None:
    """How many of the first `values` (n,), in order of time, are warm-up: a multiple of 5. None if they never settled.

    Of the means of each 5 values, so many of the first are left out that the standard error of the rest's mean is
    least (left-over values at the end do not count). A least one in the second half says that the run had not settled;
    the last 5 means are not asked, so few are alike by chance. None also below 50 values. Of settled, independent
    values chance alone calls 7 to 18 % of runs of 50 to 200, and 1 % of those of 500, not settled. Raises ValueError
    if a value is no finite number: turns without an answer must be left out. Sources: White 1997, "An effective
    truncation heuristic for bias reduction in simulation output", Simulation 69; for batches of 5 White, Cobb & Spratt
    2000, "A comparison of five steady-state truncation heuristics for simulation", Winter Simulation Conference.
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} of {array.size} values are no finite numbers")
    batches = array.size // BATCH
    if batches < 10:
        return None
    means = array[: batches * BATCH].reshape(batches, BATCH).mean(axis=1)
    means -= np.median(means)  # sums of squares of small numbers lose nothing
    # Summed from the end, so that a huge start does not drown the rest.
    total, squares = np.cumsum(means[::-1])[::-1], np.cumsum(means[::-1] ** 2)[::-1]
    rest = np.arange(batches, 0, -1)
    spread = np.maximum(0.0, squares - total**2 / rest)
    left_out = int(np.argmin((spread / rest**2)[: batches - 4]))
    return left_out * BATCH if 2 * left_out < batches else None

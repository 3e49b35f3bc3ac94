"""Summaries, and quantiles with intervals clustered by session. Pure; knows nothing of runs or tables.

Quantiles come from raw values, never from a histogram's buckets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special

SESSIONS_NEEDED = 20

Floats = NDArray[np.float64]


def summarise(values_ms: ArrayLike) -> dict[str, float]:
    """Mean, population standard deviation, p50, p95, p99, least and greatest of `values_ms` (n,), in ms.

    Percentiles are numpy's linear ones. Source: S2, "Measurement Phase". Raises ValueError if there is no value.
    """
    values = np.asarray(values_ms, dtype=np.float64)
    if values.size == 0:
        raise ValueError("no values to summarise")
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return {
        "mean_ms": float(values.mean()),
        "std_ms": float(values.std()),
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "p99_ms": float(p99),
        "min_ms": float(values.min()),
        "max_ms": float(values.max()),
    }


def turns_needed(q: float, confidence: float = 0.95) -> int:
    """The fewest values whose extremes bracket the q-quantile with this confidence: 6, 36, 72, 368, 3688 at 0.95.

    With n values, all lie on one side of the quantile with probability max(q, 1 - q) ** n.
    """
    return math.ceil(math.log((1 - confidence) / 2) / math.log(max(q, 1 - q)))


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile and its interval, in the unit of the values, or the reason why one of them cannot be told.

    value: None if there are too few values for this q; `too_few` then says so ("n=41 < 72").
    low, high: None where there is no interval; `no_interval` then says why ("12 sessions < 20").
    open_high: the interval reaches the greatest (open_low: the least) value seen: it may lie further out.
    """

    q: float
    n: int
    sessions: int
    value: float | None
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    too_few: str = ""
    no_interval: str = ""


def quantile_interval(
    values: ArrayLike, sessions: ArrayLike | Sequence[str], q: float, confidence: float = 0.95
) -> Quantile:
    """The q-quantile of `values` (n,) with a confidence interval clustered by `sessions` (n,), labels or codes.

    Turns of one session resemble each other, so sessions, not turns, are what was sampled. The share of values up to
    the quantile is a ratio of session totals; its standard error comes from how much sessions differ (they may have
    unequal numbers of turns), t with sessions - 1 degrees of freedom, and at least what independent turns would have;
    the interval of the share is read back through the order of the values. Sources: Woodruff 1952, "Confidence
    intervals for medians and other position measures", JASA 47; for the clustered ratio estimator Cochran, "Sampling
    Techniques", 9A.
    """
    array = np.asarray(values, dtype=np.float64)
    codes = session_codes(sessions)
    if array.shape != codes.shape:
        raise ValueError(f"{array.size} values, {codes.size} session labels")
    turns_in = np.bincount(codes) if codes.size else np.zeros(0, dtype=np.intp)
    met = turns_in > 0
    clusters = int(met.sum())
    needed = turns_needed(q, confidence)
    if array.size < needed:
        reason = f"n={array.size} < {needed}"
        return Quantile(q, array.size, clusters, None, too_few=reason, no_interval=reason)
    value = float(np.quantile(array, q))
    if clusters < SESSIONS_NEEDED:
        reason = f"{clusters} sessions < {SESSIONS_NEEDED}"
        return Quantile(q, array.size, clusters, value, no_interval=reason)
    below = np.bincount(codes, weights=array <= value)[met]
    sizes = turns_in[met]
    residual = below - (below.sum() / array.size) * sizes
    error = math.sqrt(clusters / (clusters - 1) * float(residual @ residual)) / array.size
    reach = float(special.stdtrit(clusters - 1, (1 + confidence) / 2)) * error
    # Sessions that differ less than coin tosses would: chance, or a drift they all lived through. No better knowledge.
    tosses = float(special.ndtri((1 + confidence) / 2)) * math.sqrt(q * (1 - q) / array.size)
    reach = max(reach, tosses)
    low, high = np.quantile(array, (max(0.0, q - reach), min(1.0, q + reach)))
    return Quantile(q, array.size, clusters, value, float(low), float(high), q - reach <= 0, q + reach >= 1)


def session_codes(sessions: ArrayLike | Sequence[str]) -> NDArray[np.int64]:
    """A whole number (n,) for each label: the same for turns of one session."""
    labels: Any = np.asarray(sessions)
    if labels.dtype.kind in "iu" and (labels.size == 0 or 0 <= labels.min() <= labels.max() <= 4 * labels.size):
        codes = labels
    else:
        codes = pd.factorize(labels)[0]
    return np.asarray(codes, dtype=np.int64)

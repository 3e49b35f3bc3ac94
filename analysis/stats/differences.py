"""Do two runs differ, and by how much? Intervals and tests by session, and what it takes to see a change. Pure.

Knows nothing of runs or tables, nor of which direction is the better one. Two runs are taken to be independent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from analysis.stats.quantiles import SESSIONS_NEEDED, quantile_interval, session_codes
from analysis.stats.shares import bound, design_effect

PERMUTATIONS = 2_000
UNITS_MOST = 2_000  # what is exchanged: sessions; of more than these, groups of sessions
SEED = 1

Floats = NDArray[np.float64]
Labels = ArrayLike | Sequence[str]


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure before and after, and after - before with its interval, in the unit of the values.

    before, after: None where that side cannot tell it. low, high: None where there is no interval; `reason` then says
    why ("after: 12 sessions < 20"). open_low, open_high: the limit rests on the most extreme value seen: the truth may
    lie further out.
    """

    before: float | None
    after: float | None
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    reason: str = ""

    @property
    def value(self) -> float | None:
        """after - before; None where one of them is unknown."""
        return None if self.before is None or self.after is None else self.after - self.before

    @property
    def relative(self) -> float | None:
        """(after - before) / before; None unless before is positive."""
        return None if self.value is None or not self.before or self.before < 0 else self.value / self.before


@dataclass(frozen=True, slots=True)
class _Estimate:
    """One side's figure with its interval, or the reason why there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    reason: str = ""


def quantile_difference(
    before: ArrayLike,
    before_sessions: Labels,
    after: ArrayLike,
    after_sessions: Labels,
    q: float,
    *,
    confidence: float = 0.95,
) -> Difference:
    """How far the q-quantile of `after` (m,) lies from that of `before` (n,), with an interval clustered by session.

    Each side's interval is `quantile_interval`'s (Woodruff, clustered); the two are joined by MOVER, which squares and
    adds the distances between each figure and that limit of it which matters: a skewed tail keeps its skew, and where
    intervals are symmetric it is the usual sum of variances. Source: Zou & Donner 2008, "Construction of confidence
    limits about effect measures: a general approach", Statistics in Medicine 27. Raises ValueError for NaN.
    """
    return _difference(
        *(
            _of_quantile(_checked(values), session_codes(sessions), q, confidence)
            for values, sessions in ((before, before_sessions), (after, after_sessions))
        )
    )


def mean_difference(
    before: ArrayLike, before_sessions: Labels, after: ArrayLike, after_sessions: Labels, *, confidence: float = 0.95
) -> Difference:
    """How far the mean of `after` (m,) lies from that of `before` (n,), with an interval clustered by session.

    Each side: the ratio estimator of session totals, t with sessions - 1 degrees of freedom, never narrower than
    independent turns would give (Cochran, "Sampling Techniques", 9A); joined as in `quantile_difference`.
    """
    return _difference(
        *(
            _of_mean(_checked(values), session_codes(sessions), confidence)
            for values, sessions in ((before, before_sessions), (after, after_sessions))
        )
    )


def share_difference(
    before: ArrayLike, before_sessions: Labels, after: ArrayLike, after_sessions: Labels, *, confidence: float = 0.95
) -> Difference:
    """How far the share of true flags in `after` (m,) lies from that in `before` (n,), clustered by session.

    Each side: exact bounds of its effective number of turns (`bound`, `design_effect`), which hold for shares of 0 and
    1 and, with an assumed design effect of 2, for few sessions; joined by MOVER, as Newcombe 1998, Statistics in
    Medicine 17, joins two Wilson intervals.
    """
    return _difference(
        *(
            _of_share(_checked(flags), session_codes(sessions), confidence)
            for flags, sessions in ((before, before_sessions), (after, after_sessions))
        )
    )


def _checked(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError("NaN or infinity among the values: leave them out first, and count them")
    return array


def _of_quantile(values: Floats, codes: NDArray[np.int64], q: float, confidence: float) -> _Estimate:
    found = quantile_interval(values, codes, q, confidence)
    reason = found.too_few or found.no_interval
    return _Estimate(found.value, found.low, found.high, found.open_low, found.open_high, reason)


def _of_mean(values: Floats, codes: NDArray[np.int64], confidence: float) -> _Estimate:
    if values.size == 0:
        return _Estimate(None, reason="n=0")
    mean = float(values.mean())
    sums, sizes = _totals(values - mean, codes)
    clusters = sizes.size
    if clusters < SESSIONS_NEEDED:
        return _Estimate(mean, reason=f"{clusters} sessions < {SESSIONS_NEEDED}")
    error = math.sqrt(clusters / (clusters - 1) * float(sums @ sums)) / values.size
    reach = float(special.stdtrit(clusters - 1, (1 + confidence) / 2)) * error
    tosses = float(special.ndtri((1 + confidence) / 2)) * float(values.std()) / math.sqrt(values.size)
    reach = max(reach, tosses)
    return _Estimate(mean, mean - reach, mean + reach)


def _of_share(flags: Floats, codes: NDArray[np.int64], confidence: float) -> _Estimate:
    if flags.size == 0:
        return _Estimate(None, reason="n=0")
    share, turns = float(flags.mean()), flags.size / design_effect(flags, codes)
    low, high = (bound(share * turns, turns, (1 - confidence) / 2, side) for side in ("above", "below"))
    return _Estimate(share, min(low, share), max(high, share))


def _difference(before: _Estimate, after: _Estimate) -> Difference:
    reasons = [f"{name}: {side.reason}" for name, side in (("before", before), ("after", after)) if side.reason]
    if before.value is None or after.value is None:
        return Difference(before.value, after.value, reason=", ".join(reasons))
    if before.low is None or before.high is None or after.low is None or after.high is None:
        return Difference(before.value, after.value, reason=", ".join(reasons))
    value = after.value - before.value
    return Difference(
        before.value,
        after.value,
        low=value - math.hypot(after.value - after.low, before.high - before.value),
        high=value + math.hypot(after.high - after.value, before.value - before.low),
        open_low=after.open_low or before.open_high,
        open_high=after.open_high or before.open_low,
    )


# ------------------------------------------------------------------------------------------------- permutation test


def permutation_p(
    before: ArrayLike,
    before_sessions: Labels,
    after: ArrayLike,
    after_sessions: Labels,
    q: float | None = None,
) -> float | None:
    """Two-sided p of "it does not matter which run a session came from": whole sessions are exchanged between the runs.

    With q: the share of turns up to the q-quantile of both runs together, in one run less that in the other; without:
    the mean (of flags: the share). Divided by its clustered standard error, since a test of the bare difference finds
    runs different that differ only in their number of turns a session, or in their spread (Chung & Romano 2013, Annals
    of Statistics 41). Exact where there are at most 2,000 ways to exchange, else 2,000 random ones, always the same,
    and p = (1 + as extreme) / 2,001, never 0 (Phipson & Smyth 2010). Of more than 2,000 sessions, groups of equally
    many are exchanged. Valid for any number of sessions, but with three a side p is never below 0.1. None if a run
    has fewer than two sessions.
    """
    values = (_checked(before), _checked(after))
    pooled = np.concatenate(values)
    if pooled.size == 0:
        return None
    if q is None:
        middle = float(pooled.mean())
        scores = [side - middle for side in values]
    else:
        middle = float(np.quantile(pooled, q))
        scores = [(side <= middle).astype(np.float64) for side in values]
    totals = [
        _totals(side, session_codes(sessions))
        for side, sessions in zip(scores, (before_sessions, after_sessions), strict=True)
    ]
    most = math.ceil(sum(sums.size for sums, _ in totals) / UNITS_MOST)
    (before_sums, before_sizes), (after_sums, after_sizes) = (_grouped(sums, sizes, most) for sums, sizes in totals)
    if min(before_sums.size, after_sums.size) < 2:
        return None
    sums, sizes = np.concatenate([before_sums, after_sums]), np.concatenate([before_sizes, after_sizes])
    exchanges, exact = _exchanges(before_sums.size, sums.size)
    found = _studentised(exchanges, sums, sizes)
    observed = _studentised(np.arange(sums.size)[None, :] < before_sums.size, sums, sizes)[0]
    extreme = int(np.count_nonzero(found >= observed * (1 - 1e-9)))
    return extreme / len(found) if exact else (1 + extreme) / (1 + len(found))


def _totals(values: Floats, codes: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Sum and number of the values of each session that has any."""
    sizes = np.bincount(codes)
    met = sizes > 0
    sums = np.bincount(codes, weights=values)
    return np.asarray(sums[met], dtype=np.float64), np.asarray(sizes[met], dtype=np.float64)


def _grouped(sums: Floats, sizes: Floats, each: int) -> tuple[Floats, Floats]:
    """Sessions put together at random into groups of `each` (the last may be smaller)."""
    if each == 1:
        return sums, sizes
    group = np.empty(sums.size, dtype=np.int64)
    group[np.random.default_rng(SEED).permutation(sums.size)] = np.arange(sums.size) // each
    return _totals_of_groups(group, sums), _totals_of_groups(group, sizes)


def _totals_of_groups(group: NDArray[np.int64], totals: Floats) -> Floats:
    return np.asarray(np.bincount(group, weights=totals), dtype=np.float64)


@lru_cache(maxsize=2)
def _exchanges(first: int, units: int) -> tuple[NDArray[np.bool_], bool]:
    """Which of the units are the first run's, (ways, units); and whether these are all the ways there are."""
    if math.comb(units, first) <= PERMUTATIONS:
        ways = np.zeros((math.comb(units, first), units), dtype=bool)
        for row, chosen in enumerate(combinations(range(units), first)):
            ways[row, list(chosen)] = True
        return ways, True
    ways = np.tile(np.arange(units) < first, (PERMUTATIONS, 1))
    return np.random.default_rng(SEED).permuted(ways, axis=1), False


def _studentised(first: NDArray[np.bool_], sums: Floats, sizes: Floats) -> Floats:
    """|difference of the runs' means| / its clustered standard error, for each way (row of `first`) to part the units.

    The sum of squared residuals of a run is its sum of s^2 - 2 r s n + r^2 n^2, with r the run's mean: five sums a run.
    """
    columns = np.column_stack([sums, sizes, sums * sums, sums * sizes, sizes * sizes])
    of_first = first @ columns
    error2, means = 0.0, []
    for total, units in (
        (of_first, first.sum(axis=1)),
        (columns.sum(axis=0) - of_first, (~first).sum(axis=1)),
    ):
        s, n, ss, sn, nn = total.T
        mean = s / n
        residual2 = ss - 2 * mean * sn + mean * mean * nn
        residual2[residual2 < 1e-12 * (ss + mean * mean * nn)] = 0.0  # what is left of them is rounding
        error2 = error2 + units / (units - 1) * residual2 / (n * n)
        means.append(mean)
    apart = np.abs(means[0] - means[1])
    apart[apart < 1e-12 * (np.abs(means[0]) + np.abs(means[1]))] = 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(apart == 0, 0.0, apart / np.sqrt(error2))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several, in their order: the smallest times m, the next times m - 1 ..., at most 1.

    Those at or below alpha may be called differences, and the chance of even one false call stays below alpha, however
    the figures depend on each other. Source: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    adjusted, greatest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        greatest = max(greatest, min(1.0, p_values[place] * (len(p_values) - rank)))
        adjusted[place] = greatest
    return adjusted


# ------------------------------------------------------------------------------------------------------------- power


def sessions_for_difference(
    relative: float,
    cv: float,
    icc: float,
    turns_a_session: float,
    *,
    q: float = 0.5,
    margin: float = 0.0,
    power: float = 0.8,
    alpha: float = 0.05,
) -> int:
    """Sessions a run needs so that a q-quantile changed by `relative` (0.10: +10 %) is found with this power.

    Assumes: lognormal turns with coefficient of variation `cv`, of which the logarithms resemble each other within a
    session with intra-class correlation `icc`; equally many turns a session and sessions a run; found is what lies
    beyond `margin`, at the two-sided level alpha (of one figure: Holm's correction of many needs more). Normal
    approximation with t's quantile; at least 20. Turns up to the quantile correlate less than their latencies: the
    bivariate normal's share of pairs, by Owen's T (Owen 1956). Raises ValueError for a change within the margin.
    """
    if not (abs(relative) > margin >= 0 and relative > -1):
        raise ValueError(f"a change of {relative:+.1%} lies within the margin of {margin:.1%}: it is never called one")
    if not (cv > 0 and 0 <= icc <= 1 and turns_a_session >= 1 and 0 < q < 1):
        raise ValueError(f"cv {cv}, icc {icc}, {turns_a_session} turns a session, q {q}: no runs have these")
    effect = abs(math.log1p(relative) - math.log1p(math.copysign(margin, relative)))
    spread, z = math.sqrt(math.log1p(cv * cv)), float(special.ndtri(q))
    both_up_to = q - 2 * float(special.owens_t(z, math.sqrt((1 - icc) / (1 + icc))))
    alike = (both_up_to - q * q) / (q * (1 - q))
    of_share = q * (1 - q) * (1 + (turns_a_session - 1) * alike) / turns_a_session
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / spread
    of_session = 2 * of_share / density**2
    sessions = SESSIONS_NEEDED
    for _ in range(20):  # t's quantile depends on the answer; it settles in a few rounds
        reach = float(special.stdtrit(sessions - 1, 1 - alpha / 2)) + float(special.ndtri(power))
        needed = max(SESSIONS_NEEDED, math.ceil(of_session * (reach / effect) ** 2))
        if needed == sessions:
            break
        sessions = needed
    return sessions

"""What more sessions do: the knee of latency, and the scaling law of throughput. Pure; knows nothing of runs or tables.

A knee is told of what was measured, never of what lies beyond.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

Floats = NDArray[np.float64]

KNEE_LEVELS = 5
STEEPER = 3.0  # times: what bends less is no knee
CHANCE = 0.05  # how often noise about a straight line may pass for a knee
DRAWS = 1_999

USL_LEVELS = 4
RESAMPLES = 499
CONFIDENCE = 0.95
FARTHEST = 2.0  # times the greatest level measured: no peak is claimed beyond
_EXACT = 1e-12  # tolerance: at scipy's 1e-8 a fit stops too far from a bound of 0


@dataclass(frozen=True, slots=True)
class Knee:
    """Where latency begins to rise steeply.

    at: sessions. slope_before_s, slope_after_s: seconds of latency for each further session.
    improvement: share of the straight line's squared residuals that the bend explains, up to 1.
    """

    at: float
    slope_before_s: float
    slope_after_s: float
    improvement: float


def knee(levels: ArrayLike, latencies_s: ArrayLike) -> Knee | None:
    """The knee of `latencies_s` (n,), seconds, against `levels` (n,), sessions: two lines that meet, by least squares.

    Several latencies of one level count as their median; NaN and infinities are left out. The knee lies from the
    second level to the last but one: one between the last two is told too low. None, no knee, below 5 levels (two
    lines that meet explain nearly any 4), where the second line is not 3 times as steep as the first and rising, and
    where a straight line would do: on these levels, normal noise about it must seem as bent in at most 5 % of cases
    (2,000 simulated, fixed seed; the usual F test is too generous, since the place of the bend is searched for).
    A smooth curve has a knee too, where two lines follow it best. Sources: Hudson 1966, "Fitting segmented curves
    whose join points have to be estimated", JASA 61; for the test Davies 1987, Biometrika 74.
    """
    sessions, medians = _medians(levels, latencies_s)
    if sessions.size < KNEE_LEVELS:
        return None
    line = np.linalg.qr(np.stack((np.ones_like(sessions), sessions), axis=1)).Q
    bent = medians - line @ (line.T @ medians)
    if float(np.linalg.norm(bent)) <= 1e-9 * float(np.linalg.norm(medians)):  # straight, as far as floats can tell
        return None
    inner = sessions[1:-1]
    grid = np.unique(np.linspace(inner[:-1], inner[1:], 17))
    bends = _bends(sessions, line, grid)
    noise = np.random.default_rng(0).standard_normal((DRAWS, sessions.size))
    by_chance = _explained(noise - (noise @ line) @ line.T, bends)
    explained = _explained(bent[np.newaxis], bends)[0]
    if explained <= 0 or 1 + np.count_nonzero(by_chance >= explained) > CHANCE * (1 + DRAWS):
        return None
    best = int(np.argmax(bent @ bends))
    around = float(grid[max(0, best - 1)]), float(grid[min(best + 1, grid.size - 1)])
    refined = optimize.minimize_scalar(
        lambda at: -float((bent @ _bends(sessions, line, np.array([at])))[0]), bounds=around, method="bounded"
    )
    # A bounded search never looks at its bounds themselves.
    at = max((float(refined.x), float(grid[best])), key=lambda x: bent @ _bends(sessions, line, np.array([x]))[:, 0])
    design = np.stack((np.ones_like(sessions), sessions, np.maximum(0.0, sessions - at)), axis=1)
    _, before, more = (float(x) for x in np.linalg.lstsq(design, medians)[0])
    improvement = _explained(bent[np.newaxis], _bends(sessions, line, np.array([at])))[0]
    if before + more < STEEPER * abs(before):
        return None
    return Knee(at, before, before + more, float(improvement))


def _medians(levels: ArrayLike, values: ArrayLike) -> tuple[Floats, Floats]:
    sessions, array = _pairs(levels, values)
    met, which = np.unique(sessions, return_inverse=True)
    return met, np.array([np.median(array[which == one]) for one in range(met.size)])


def _pairs(levels: ArrayLike, values: ArrayLike) -> tuple[Floats, Floats]:
    sessions, array = np.asarray(levels, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if sessions.shape != array.shape:
        raise ValueError(f"{sessions.size} levels, {array.size} values")
    told = np.isfinite(sessions) & np.isfinite(array)
    return sessions[told], array[told]


def _bends(sessions: Floats, line: Floats, at: Floats) -> Floats:
    """What a bend upwards at each of `at` (k,) adds to a straight line: unit vectors (levels, k)."""
    hinges = np.maximum(0.0, sessions[:, np.newaxis] - at)
    hinges -= line @ (line.T @ hinges)
    return np.asarray(hinges / np.linalg.norm(hinges, axis=0), dtype=np.float64)


def _explained(residuals: Floats, bends: Floats) -> Floats:
    """Share of the squared `residuals` (rows, levels) that the best bend upwards explains; 0 where all bend down."""
    best = np.maximum(0.0, (residuals @ bends).max(axis=1))
    return np.asarray(best**2 / (residuals**2).sum(axis=1), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Usl:
    """The Universal Scalability Law of a system: X(N) = gamma N / (1 + alpha (N - 1) + beta N (N - 1)).

    gamma: throughput of one session, in the unit given. alpha: contention, the share that cannot go on at the same
    time. beta: coherence, what keeping each other informed costs. Intervals at 95 %.
    peak: sessions at the greatest throughput; None where none can be claimed: `no_peak` then says why.
    """

    gamma: float
    alpha: float
    beta: float
    alpha_interval: tuple[float, float]
    beta_interval: tuple[float, float]
    peak: float | None
    no_peak: str = ""


def usl(levels: ArrayLike, throughput: ArrayLike) -> Usl | None:
    """Fit the law to `throughput` (n,) of `levels` (n,), sessions. NaN and infinities are left out.

    Only for a closed loop of HTTP requests, where each session asks again as soon as it was answered: conversations
    speak at the pace of speech, so that their throughput grows with their number whatever the server does.
    Deviations count in relation to throughput, whose noise grows with it. Intervals are percentiles of a bootstrap of
    the residuals (of those relative deviations, 499 times, fixed seed), enlarged by sqrt(n / (n - 3)) for the three
    parameters and by t / z for how few levels there are. A peak is claimed only where beta's interval excludes 0 and
    the peak lies between the least level and twice the greatest. None below 4 levels, where the fit does not converge,
    and where nothing came through at some level: the law knows no such thing. Raises ValueError if a level is no
    positive number of sessions. Source: Gunther 2007, "Guerrilla Capacity Planning", 4-6.
    """
    sessions, measured = _pairs(levels, throughput)
    if sessions.size and sessions.min() <= 0:
        raise ValueError(f"a level of {sessions.min():g} sessions: levels are positive numbers")
    if np.unique(sessions).size < USL_LEVELS or measured.min() <= 0:
        return None
    start = (float((measured / sessions).max()), 0.05, 0.001)
    found = _fit(sessions, measured, start)
    if found is None:
        return None
    law = _law(sessions, *found)
    free = sessions.size - len(found)
    few = float(special.stdtrit(free, (1 + CONFIDENCE) / 2) / special.ndtri((1 + CONFIDENCE) / 2))
    residuals = measured / law - 1
    residuals = (residuals - residuals.mean()) * math.sqrt(sessions.size / free) * few
    drawn = np.random.default_rng(0).choice(residuals, (RESAMPLES, sessions.size))
    # As a factor exp(r), about 1 + r, and 150 at most: enlarged residuals must not make a throughput negative.
    factors = np.exp(np.clip(drawn, -5, 5))
    fits = [fit for row in factors if (fit := _fit(sessions, law * row, found)) is not None]
    if len(fits) < 0.95 * RESAMPLES:  # those that converge would pass for all
        return None
    ends = np.quantile(fits, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2), axis=0)
    alpha, beta = ((float(ends[0, k]), float(ends[1, k])) for k in (1, 2))
    peak, no_peak = _peak(found[1], found[2], beta, (float(sessions.min()), float(sessions.max())))
    return Usl(*found, alpha, beta, peak, no_peak)


def _fit(sessions: Floats, measured: Floats, start: tuple[float, float, float]) -> tuple[float, float, float] | None:
    try:
        found, _ = optimize.curve_fit(
            _law,
            sessions,
            measured,
            p0=start,
            sigma=measured,
            bounds=(0.0, math.inf),
            jac=_slopes,
            x_scale="jac",
            ftol=_EXACT,
            xtol=_EXACT,
            gtol=_EXACT,
        )
    except RuntimeError:  # it did not converge
        return None
    gamma, alpha, beta = (float(x) for x in found)
    others = float(sessions.max()) - 1
    # A fit stops just inside its bounds: what changes throughput by less than 0.01 % is 0.
    alpha = alpha if alpha * others > 1e-4 else 0.0
    return gamma, alpha, beta if beta * others**2 > 1e-4 * (1 + alpha * others) else 0.0


def _law(sessions: Floats, gamma: float, alpha: float, beta: float) -> Floats:
    return np.asarray(gamma * sessions / (1 + alpha * (sessions - 1) + beta * sessions * (sessions - 1)))


def _slopes(sessions: Floats, gamma: float, alpha: float, beta: float) -> Floats:
    """Derivatives of the law with respect to its parameters (n, 3)."""
    each = _law(sessions, 1.0, alpha, beta)
    by_alpha = -gamma * each**2 * (sessions - 1) / sessions
    return np.stack((each, by_alpha, by_alpha * sessions), axis=1)


def _peak(
    alpha: float, beta: float, beta_interval: tuple[float, float], measured: tuple[float, float]
) -> tuple[float | None, str]:
    low, high = beta_interval
    least, most = measured
    if not min(beta, low) > 0:
        return None, f"beta's 95 % interval, up to {high:.2g}, holds 0: throughput may go on growing"
    peak = math.sqrt(max(0.0, 1 - alpha) / beta)
    if peak < least:
        return None, f"throughput falls from the least level measured, {least:g}, on"
    if peak > FARTHEST * most:
        return None, f"a peak at {peak:.0f} sessions lies beyond twice the {most:g} measured"
    return peak, ""

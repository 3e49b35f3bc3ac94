"""Differences of two runs against hand-computed truth, exact enumeration, and simulations whose truth is known."""

import math
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t as student
from scipy.stats import ttest_ind

from analysis.comparison import Figure, Sample, Samples, Verdict, judge
from analysis.stats import (
    holm,
    mean_difference,
    permutation_p,
    quantile_difference,
    quantile_interval,
    sessions_for_difference,
    share_difference,
)

Drawn = tuple[NDArray[np.float64], NDArray[np.int64]]


def draw(
    rng: np.random.Generator, sessions: int, each: int, *, cv: float = 0.4, icc: float = 0.2, median: float = 1.0
) -> Drawn:
    """Lognormal turns of a known median; logarithms of one session correlate by `icc`."""
    of = np.repeat(np.arange(sessions), each)
    z = math.sqrt(icc) * rng.standard_normal(sessions)[of] + math.sqrt(1 - icc) * rng.standard_normal(of.size)
    return median * np.exp(math.sqrt(math.log1p(cv * cv)) * z), of


# ---- Holm


def test_holm_as_computed_by_hand() -> None:
    """Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, none smaller than the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


# ---- the permutation test


def _by_hand(first: list[list[float]], second: list[list[float]]) -> float:
    """|difference of means| / clustered standard error, turn by turn."""
    means, error2 = [], 0.0
    for run in (first, second):
        n = sum(map(len, run))
        mean = sum(map(sum, run)) / n
        residual2 = sum((sum(session) - mean * len(session)) ** 2 for session in run)
        error2 += len(run) / (len(run) - 1) * residual2 / n**2
        means.append(mean)
    return abs(means[0] - means[1]) / math.sqrt(error2)


@pytest.mark.parametrize("q", [None, 0.5, 0.8])
def test_a_small_permutation_test_is_the_exact_enumeration(q: float | None) -> None:
    rng = np.random.default_rng(5)
    runs = [
        [list(rng.lognormal(level, 0.5, n)) for n in sizes] for level, sizes in ((0, (2, 5, 3)), (0.6, (4, 1, 6, 2)))
    ]
    sessions = [*runs[0], *runs[1]]
    scored = sessions
    if q is not None:
        middle = np.quantile(np.concatenate(sessions), q)
        scored = [[float(value <= middle) for value in session] for session in sessions]
    found = []
    for chosen in combinations(range(7), 3):
        rest = [place for place in range(7) if place not in chosen]
        found.append(_by_hand([scored[place] for place in chosen], [scored[place] for place in rest]))
    expected = sum(value >= found[0] * (1 - 1e-9) for value in found) / 35
    flat = [np.concatenate(run) for run in runs]
    labels = [np.repeat(np.arange(len(run)), [len(session) for session in run]) for run in runs]
    assert permutation_p(flat[0], labels[0], flat[1], labels[1], q) == pytest.approx(expected)
    assert 0 < expected < 1


def test_a_sampled_permutation_test_agrees_with_welchs() -> None:
    """Of normal means, one turn a session, theory knows the p."""
    rng = np.random.default_rng(8)
    for shift in (0.0, 0.3, 0.6):
        before, after = rng.normal(0, 1, 60), rng.normal(shift, 1, 50)
        p = permutation_p(before, np.arange(60), after, np.arange(50))
        assert p == pytest.approx(ttest_ind(before, after, equal_var=False).pvalue, abs=0.025)


def test_a_run_against_itself_has_a_p_of_one() -> None:
    values, sessions = draw(np.random.default_rng(1), 30, 10)
    assert permutation_p(values, sessions, values, sessions, 0.95) == 1.0
    assert permutation_p(np.ones(40), np.arange(40), np.ones(30), np.arange(30)) == 1.0


def test_runs_without_any_likeness_have_the_least_p() -> None:
    assert permutation_p(np.ones(40), np.arange(40), np.zeros(30), np.arange(30)) == 1 / 2_001


def test_a_session_alone_cannot_be_exchanged() -> None:
    assert permutation_p([1.0, 2.0], [0, 0], [1.0, 2.0], [0, 1]) is None
    assert permutation_p([], [], [], []) is None


def test_few_sessions_are_exchanged_in_every_way() -> None:
    """Three a side: 20 ways, two of them as extreme, so that p is never below 0.1."""
    assert permutation_p([0.0, 0.1, 0.2], [0, 1, 2], [9.0, 9.1, 9.2], [0, 1, 2]) == pytest.approx(0.1)


def test_many_sessions_are_exchanged_in_groups() -> None:
    rng = np.random.default_rng(2)
    before, sessions = draw(rng, 6_000, 3)
    same, slower = draw(rng, 6_000, 3), draw(rng, 6_000, 3, median=1.03)
    p_same, p_slower = (permutation_p(before, sessions, *after, 0.5) for after in (same, slower))
    assert p_same is not None
    assert p_slower is not None
    assert p_slower < 0.01
    assert p_same > 0.05


def test_more_turns_a_session_are_no_difference() -> None:
    """200 sessions of 5 turns, 40 of 100: without its standard error the test would call most such pairs different."""
    rng = np.random.default_rng(3)
    p = [permutation_p(*draw(rng, 200, 5, icc=0.05), *draw(rng, 40, 100, icc=0.05), 0.5) for _ in range(200)]
    assert sum(value is not None and value < 0.05 for value in p) <= 18  # 5 % of 200, and 2.6 standard errors


# ---- intervals


def test_the_interval_of_a_mean_as_computed_by_hand() -> None:
    """One turn a session: two t intervals, squared and added."""
    rng = np.random.default_rng(4)
    before, after = rng.normal(5, 1, 30), rng.normal(6, 2, 25)
    reach = [
        float(student.ppf(0.975, n - 1)) * side.std(ddof=1) / math.sqrt(n) for side, n in ((before, 30), (after, 25))
    ]
    found = mean_difference(before, np.arange(30), after, np.arange(25))
    value = after.mean() - before.mean()
    assert (found.value, found.relative) == (pytest.approx(value), pytest.approx(value / before.mean()))
    assert (found.low, found.high) == (
        pytest.approx(value - math.hypot(*reach)),
        pytest.approx(value + math.hypot(*reach)),
    )


def test_the_interval_of_a_quantile_squares_and_adds_the_limits_that_matter() -> None:
    rng = np.random.default_rng(6)
    sides = [draw(rng, 30, 20), draw(rng, 40, 10, median=1.5)]
    before, after = (quantile_interval(*side, 0.95) for side in sides)
    found = quantile_difference(*sides[0], *sides[1], 0.95)
    assert None not in (before.value, before.low, before.high, after.value, after.low, after.high)
    value = after.value - before.value
    assert found.low == pytest.approx(value - math.hypot(after.value - after.low, before.high - before.value))
    assert found.high == pytest.approx(value + math.hypot(after.high - after.value, before.value - before.low))


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_intervals_of_quantile_differences_hold_the_truth(q: float) -> None:
    """The truth is exact: the quantile of a lognormal, 1.2 times as large in the second run."""
    rng = np.random.default_rng(7)
    truth = 0.2 * math.exp(math.sqrt(math.log1p(0.16)) * {0.5: 0.0, 0.95: 1.6448536}[q])
    held = 0
    for _ in range(300):
        found = quantile_difference(*draw(rng, 30, 20), *draw(rng, 25, 30, median=1.2), q)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
    assert 0.92 * 300 <= held <= 0.99 * 300


def test_an_extreme_limit_is_open() -> None:
    """Of 370 turns the p99's upper limit is the greatest seen: of the run before, the difference's lower limit."""
    rng = np.random.default_rng(9)
    few, many = draw(rng, 37, 10, icc=0.0), draw(rng, 100, 100, icc=0.0)
    found = quantile_difference(*few, *many, 0.99)
    assert (found.open_low, found.open_high) == (True, False)
    found = quantile_difference(*many, *few, 0.99)
    assert (found.open_low, found.open_high) == (False, True)


def test_shares_of_all_and_none_have_intervals_too() -> None:
    """Clopper and Pearson's bound of 0 failures in 400 turns: 1 - 0.025^(1/400) at most."""
    ones, of = np.ones(400), np.arange(400)
    found = share_difference(ones, of, ones, of)
    assert (found.low, found.high) == (pytest.approx(-(1 - 0.025 ** (1 / 400))), pytest.approx(1 - 0.025 ** (1 / 400)))
    lost = share_difference(ones, of, np.zeros(400), of)
    assert lost.value == -1
    assert lost.high == pytest.approx(-1 + math.hypot(*[1 - 0.025 ** (1 / 400)] * 2))


def test_few_sessions_widen_the_interval_of_a_share() -> None:
    """12 sessions cannot tell how alike their turns are: 240 turns count as 120."""
    ones, of = np.ones(240), np.arange(240) % 12
    assert share_difference(ones, of, ones, of).high == pytest.approx(1 - 0.025 ** (1 / 120))


def test_what_cannot_be_told_says_why() -> None:
    rng = np.random.default_rng(10)
    enough, few = draw(rng, 30, 10), draw(rng, 12, 20)
    assert quantile_difference(*enough, *few, 0.5).reason == "after: 12 sessions < 20"
    assert quantile_difference(*few, *enough, 0.5).reason == "before: 12 sessions < 20"
    assert mean_difference(*few, *few).reason == "before: 12 sessions < 20, after: 12 sessions < 20"
    found = quantile_difference(*enough, enough[0][:41], enough[1][:41], 0.95)
    assert (found.after, found.value, found.low, found.reason) == (None, None, None, "after: n=41 < 72")
    for call in (mean_difference, share_difference):
        assert call(*enough, [], []).reason == "after: n=0"
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            quantile_difference([bad], [0], [1.0], [0], 0.5)


def test_nothing_is_relative_to_nothing() -> None:
    found = mean_difference(np.zeros(30), np.arange(30), np.ones(30), np.arange(30))
    assert (found.value, found.relative) == (1.0, None)


# ---- power


def test_sessions_needed_as_computed_by_hand() -> None:
    """One turn a session: the variance of a median is 0.25 / (n density^2), the density that of log turns there."""
    spread = math.sqrt(math.log1p(0.16))
    n = 2 * 0.25 * 2 * math.pi * spread**2 * ((1.959964 + 0.8416212) / math.log(1.1)) ** 2
    assert sessions_for_difference(0.10, 0.4, 0.0, 1) == pytest.approx(n, abs=3)  # t's quantile: a little more
    # Turns that are all alike are one; at the median those of correlation 0.5 are alike by 2/pi asin(0.5) = 1/3.
    assert sessions_for_difference(0.10, 0.4, 1.0, 50) == sessions_for_difference(0.10, 0.4, 0.0, 1)
    assert sessions_for_difference(0.10, 0.4, 0.5, 3) == pytest.approx(n * (1 + 2 / 3) / 3, abs=3)
    assert sessions_for_difference(2.0, 0.4, 0.0, 100) == 20


@pytest.mark.parametrize("bad", [{"relative": 0.04}, {"relative": 0.0}, {"relative": -1.0}, {"cv": 0.0}, {"icc": 1.5}])
def test_power_of_what_cannot_be_is_refused(bad: dict[str, float]) -> None:
    given = {"relative": 0.10, "cv": 0.4, "icc": 0.2, "turns_a_session": 10.0, **bad}
    with pytest.raises(ValueError, match=r"lies within the margin|no runs have these"):
        sessions_for_difference(**given, margin=0.05)


TTFA = Figure("requests", "TTFA", "ttfa_s", 0.50, "ms")


def _called(rng: np.random.Generator, sessions: int, factor: float, margin: float) -> Verdict:
    before, after = (Sample(*draw(rng, sessions, 10, cv=0.3, icc=0.3, median=300 * times)) for times in (1.0, factor))
    key = (TTFA.of, TTFA.sample)
    return judge({key: before}, {key: after}, [TTFA], margin=margin)[0].verdict


def test_ten_percent_are_found_with_the_sessions_that_the_power_analysis_names() -> None:
    needed = sessions_for_difference(0.10, 0.3, 0.3, 10, margin=0.05)
    assert needed // 4 >= 20
    rng = np.random.default_rng(11)
    found = sum(_called(rng, needed, 1.10, 0.05) == "worse" for _ in range(200))
    assert 0.70 * 200 <= found <= 0.95 * 200
    found = sum(_called(rng, needed // 4, 1.10, 0.05) == "worse" for _ in range(200))
    assert found < 0.5 * 200


# ---- false alarms


def test_two_draws_of_one_truth_are_no_regression() -> None:
    """200 pairs, eight figures that hang together, no margin to hide behind: at most 5 % of the pairs are called."""
    rng = np.random.default_rng(12)
    quantiles = (0.5, 0.95)
    figures = [Figure("requests", name, name, q, "ms") for name in ("ttfc_s", "ttfa_s", "e2e_s") for q in quantiles] + [
        Figure("requests", "RTF", "rtf", 0.5, "rtf"),
        Figure("requests", "success", "success", None, "%", True),
    ]

    def run() -> Samples:
        first, sessions = draw(rng, 25, 12, icc=0.4, median=3e5)
        second = first + rng.lognormal(8, 0.5, first.size)
        made = {"ttfc_s": first, "ttfa_s": second, "e2e_s": second + rng.lognormal(12, 0.3, first.size)}
        made |= {"rtf": second / 1e6, "success": (rng.random(first.size) < 0.98).astype(float)}
        return {("requests", name): Sample(values, sessions) for name, values in made.items()}

    called = 0
    for _ in range(200):
        verdicts = {judged.verdict for judged in judge(run(), run(), figures, margin=0.0, share_margin=0.0)}
        assert "not comparable" not in verdicts
        called += not verdicts.isdisjoint({"worse", "better"})
    assert 0 < called <= 0.05 * 200  # never is no test at all

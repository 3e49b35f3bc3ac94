"""Figures against hand-computed truth, and intervals against simulated truth."""

import math

import numpy as np
import pytest

from analysis.stats import asps, cps, quantile_interval, rps, rtf, summarise, trend, turns_needed


def test_summary_has_the_sources_keys_and_numpys_definitions() -> None:
    assert summarise([10.0, 20.0, 30.0, 40.0]) == {
        "mean_ms": 25.0,
        "std_ms": pytest.approx(math.sqrt(125.0)),  # population, not sample
        "p50_ms": 25.0,
        "p95_ms": pytest.approx(38.5),  # linear: 30 + 0.85 * 10
        "p99_ms": pytest.approx(39.7),
        "min_ms": 10.0,
        "max_ms": 40.0,
    }
    assert list(summarise([1])) == ["mean_ms", "std_ms", "p50_ms", "p95_ms", "p99_ms", "min_ms", "max_ms"]


def test_nothing_has_no_summary() -> None:
    with pytest.raises(ValueError, match="no values"):
        summarise([])


def test_rtf_as_the_source_defines_it() -> None:
    assert rtf(500.0, 24_000) == 0.5
    assert rtf(500.0, 8_000, sample_rate=16_000) == 1.0
    with pytest.raises(ValueError, match="0 samples"):
        rtf(500.0, 0)


def test_rates() -> None:
    assert asps([1.5, 2.5], 8.0) == 0.5
    assert rps(10, 4.0) == 2.5
    assert cps([12, 67], 79.0) == 1.0
    for wall in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="wall time"):
            rps(1, wall)


@pytest.mark.parametrize(("q", "n"), [(0.5, 6), (0.9, 36), (0.95, 72), (0.99, 368), (0.999, 3_688), (0.05, 72)])
def test_turns_needed(q: float, n: int) -> None:
    assert turns_needed(q) == n


def test_too_few_turns_are_no_quantile() -> None:
    found = quantile_interval(np.arange(41.0), np.arange(41), 0.95)
    assert (found.value, found.low, found.high) == (None, None, None)
    assert found.too_few == "n=41 < 72"
    assert quantile_interval([], [], 0.5).too_few == "n=0 < 6"


def test_too_few_sessions_are_no_interval() -> None:
    found = quantile_interval(np.arange(240.0), np.arange(240) % 12, 0.95)
    assert found.value == pytest.approx(227.05)
    assert (found.low, found.high, found.no_interval) == (None, None, "12 sessions < 20")


def test_labels_serve_as_well_as_codes() -> None:
    values = np.random.default_rng(3).standard_normal(400)
    codes = np.arange(400) % 25
    labels = [f"session {code}" for code in codes]
    assert quantile_interval(values, labels, 0.5) == quantile_interval(values, codes, 0.5)
    assert quantile_interval(values, codes * 10**12, 0.5) == quantile_interval(values, codes, 0.5)
    with pytest.raises(ValueError, match="3 values, 2 session"):
        quantile_interval([1, 2, 3], [1, 2], 0.5)


def test_like_sessions_widen_the_interval() -> None:
    draw = np.random.default_rng(5)
    sessions = np.repeat(np.arange(40), 10)
    alike = draw.standard_normal(40)[sessions] + 0.1 * draw.standard_normal(400)
    shuffled = draw.permutation(alike)
    clustered, plain = quantile_interval(alike, sessions, 0.5), quantile_interval(shuffled, sessions, 0.5)
    assert clustered.low is not None
    assert plain.low is not None
    assert clustered.high - clustered.low > 1.8 * (plain.high - plain.low)


def test_sessions_all_alike_inside_are_not_taken_for_certainty() -> None:
    """Every session has as many turns below the median as above: between sessions nothing differs."""
    found = quantile_interval(np.arange(100.0), np.arange(100) % 25, 0.5)
    assert found.low is not None
    assert (found.low, found.high) == (pytest.approx(39.8, abs=0.2), pytest.approx(59.2, abs=0.2))


def test_an_interval_that_reaches_the_extreme_says_so() -> None:
    values = np.arange(100.0)
    found = quantile_interval(values, np.repeat(np.arange(20), 5), 0.95)
    assert found.open_high
    assert found.high == 99.0
    assert not quantile_interval(np.arange(4_000.0), np.arange(4_000) % 40, 0.5).open_high


def test_trend() -> None:
    at = np.arange(300.0)
    noise = np.random.default_rng(2).normal(0, 5, 300)
    rising = trend(at, 100 + at / 3 + noise)
    assert rising is not None
    assert rising.rho > 0.9
    assert rising.ratio == pytest.approx((100 + 249.5 / 3) / (100 + 49.5 / 3), rel=0.03)
    steady = trend(at, 100 + noise)
    assert steady is not None
    assert steady.p > 0.01
    assert trend(at[:35], noise[:35]) is None
    assert trend(at, np.ones(300)) is None
    assert trend(np.arange(200_000.0), np.arange(200_000.0) % 7) is not None

"""Knees and laws against latencies and throughputs made from known ones."""

import math

import numpy as np
import pytest

from analysis.stats import knee, usl

DOUBLED = np.array([1, 2, 4, 8, 16, 32, 64.0])


def stick(levels: np.ndarray, at: float, before: float = 0.001, after: float = 0.021) -> np.ndarray:
    return 0.3 + before * levels + (after - before) * np.maximum(0.0, levels - at)


def law(levels: np.ndarray, gamma: float, alpha: float, beta: float) -> np.ndarray:
    return gamma * levels / (1 + alpha * (levels - 1) + beta * levels * (levels - 1))


@pytest.mark.parametrize("at", [4.0, 16.0, 20.0, 31.0])
def test_a_knee_is_found_where_two_lines_meet(at: float) -> None:
    found = knee(DOUBLED, stick(DOUBLED, at))
    assert found is not None
    assert found.at == pytest.approx(at, rel=1e-4)
    assert found.slope_before_s == pytest.approx(0.001, rel=1e-3)
    assert found.slope_after_s == pytest.approx(0.021, rel=1e-3)
    assert found.improvement == pytest.approx(1.0)


def test_a_knee_between_the_last_two_levels_is_told_too_low_not_too_high() -> None:
    found = knee(DOUBLED, stick(DOUBLED, 50.0))
    assert found is not None
    assert found.at == pytest.approx(32.0)


def test_a_knee_is_found_through_noise() -> None:
    draw = np.random.default_rng(31)
    found = [knee(DOUBLED, stick(DOUBLED, 20.0) * draw.normal(1, 0.05, 7)) for _ in range(200)]
    at = [one.at for one in found if one is not None]
    assert len(at) >= 195
    assert np.quantile(at, 0.05) > 14
    assert np.quantile(at, 0.95) < 26


@pytest.mark.parametrize("levels", [DOUBLED[:5], DOUBLED, np.arange(10.0, 101.0, 10.0)])
def test_noise_about_a_straight_line_seldom_passes_for_a_knee(levels: np.ndarray) -> None:
    draw = np.random.default_rng(37)
    rounds = 300
    found = sum(
        knee(levels, 0.3 + 0.01 * levels + draw.normal(0, 0.02, levels.size)) is not None for _ in range(rounds)
    )
    assert found / rounds <= 0.05


@pytest.mark.parametrize(
    "latencies",
    [
        np.full(7, 0.3),
        0.1 + 0.2 * DOUBLED,
        0.1 + 0.2 * DOUBLED + 1e-15 * DOUBLED**2,  # bent by less than floats tell apart
        stick(DOUBLED, 16.0, before=0.01, after=0.029),  # bends, but not 3 times as steep
        stick(DOUBLED, 16.0, before=0.021, after=0.001),  # flattens
        stick(DOUBLED, 16.0, before=-0.03, after=-0.001),  # falls less and less
        stick(DOUBLED, 16.0, before=-0.005, after=0.01),  # a valley
    ],
)
def test_what_does_not_turn_steep_has_no_knee(latencies: np.ndarray) -> None:
    assert knee(DOUBLED, latencies) is None


def test_a_knee_needs_five_levels() -> None:
    assert knee([], []) is None
    assert knee([8] * 9, [0.3] * 9) is None
    assert knee(DOUBLED[:4], stick(DOUBLED[:4], 4.0)) is None
    assert knee(DOUBLED[:5], stick(DOUBLED[:5], 4.0)) is not None


def test_levels_without_a_latency_are_left_out_and_order_does_not_matter() -> None:
    plain = knee(DOUBLED, stick(DOUBLED, 20.0))
    holed = knee([12, *DOUBLED, math.nan, 6], [math.nan, *stick(DOUBLED, 20.0), 0.5, math.inf])
    assert plain == holed
    assert plain == knee(DOUBLED[::-1], stick(DOUBLED, 20.0)[::-1])
    with pytest.raises(ValueError, match="7 levels, 2 values"):
        knee(DOUBLED, [1, 2])


def test_many_turns_of_a_level_count_as_their_median() -> None:
    """One turn in five hangs for a minute; medians do not."""
    medians = stick(DOUBLED, 20.0)
    turns = np.concatenate([medians + offset for offset in (-0.1, -0.05, 0.0, 0.05, 60.0)])
    assert knee(np.tile(DOUBLED, 5), turns) == knee(DOUBLED, medians)


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_the_law_is_recovered_from_exact_throughputs(scale: float) -> None:
    found = usl(DOUBLED, law(DOUBLED, 10.0 * scale, 0.05, 0.002))
    assert found is not None
    assert found.gamma == pytest.approx(10.0 * scale, rel=1e-4)
    assert found.alpha == pytest.approx(0.05, rel=1e-4)
    assert found.beta == pytest.approx(0.002, rel=1e-4)
    assert found.peak == pytest.approx(math.sqrt(0.95 / 0.002), rel=1e-4)
    assert found.no_peak == ""


@pytest.mark.parametrize("alpha", [0.0, 0.05])
def test_no_peak_is_claimed_of_throughput_that_only_grows(alpha: float) -> None:
    found = usl(DOUBLED, law(DOUBLED, 10.0, alpha, 0.0))
    assert found is not None
    assert found.alpha == pytest.approx(alpha, abs=1e-4)
    assert found.beta_interval[0] == 0.0
    assert found.peak is None
    assert found.no_peak.startswith("beta's 95 % interval")


def test_throughput_that_stays_the_same_has_no_peak() -> None:
    found = usl(DOUBLED, np.full(7, 5.0))
    assert found is not None
    assert (found.alpha, found.beta) == (pytest.approx(1.0, abs=1e-3), pytest.approx(0.0, abs=1e-6))
    assert found.peak is None


def test_no_peak_is_claimed_beyond_twice_what_was_measured() -> None:
    """The truth peaks at 21.8 sessions: 16 is twice 8, 32 twice 16."""
    near, far = (usl(levels, law(levels, 10.0, 0.05, 0.002)) for levels in (DOUBLED[:5], DOUBLED[:4]))
    assert near is not None
    assert far is not None
    assert near.peak == pytest.approx(21.79, abs=0.01)
    assert far.peak is None
    assert far.no_peak == "a peak at 22 sessions lies beyond twice the 8 measured"


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 0.5), (0.1, 0.9)])  # the second peaks at 1 session; 4 is the least
def test_throughput_that_only_falls_has_no_peak(alpha: float, beta: float) -> None:
    found = usl(DOUBLED[2:], law(DOUBLED[2:], 10.0, alpha, beta))
    assert found is not None
    assert found.peak is None
    assert found.no_peak == "throughput falls from the least level measured, 4, on"


def test_noise_is_not_taken_for_a_peak_and_the_intervals_hold_the_truth() -> None:
    """3 % of noise. Of 100 such runs with beta 0, 1 claimed a peak; of 100 with beta 0.002, 95 intervals held it."""
    draw = np.random.default_rng(41)
    levels = DOUBLED[:6]
    grows = [usl(levels, law(levels, 10.0, 0.05, 0.0) * draw.normal(1, 0.03, 6)) for _ in range(3)]
    peaks = [usl(levels, law(levels, 10.0, 0.05, 0.002) * draw.normal(1, 0.03, 6)) for _ in range(3)]
    assert [found.peak for found in grows if found] == [None] * 3
    assert [17 < (found.peak or 0) < 28 for found in peaks if found] == [True] * 3
    assert sum(found.beta_interval[0] <= 0.002 <= found.beta_interval[1] for found in peaks if found) >= 2
    assert all(found.beta_interval[0] < found.beta < found.beta_interval[1] for found in peaks if found)


def test_few_levels_make_intervals_wider() -> None:
    """Same law, same noise: 4 levels leave one degree of freedom, 7 leave four."""
    noise = 1 + 0.03 * np.array([1, -1, 1, -1, 1, -1, 1])
    few, many = (usl(DOUBLED[-n:], law(DOUBLED, 10.0, 0.05, 0.002)[-n:] * noise[-n:]) for n in (4, 7))
    assert few is not None
    assert many is not None
    assert np.diff(few.beta_interval) > 2 * np.diff(many.beta_interval)


def test_the_law_needs_four_levels_at_which_something_came_through() -> None:
    assert usl([], []) is None
    assert usl([1, 2, 4, 4, 4], [10, 19, 35, 35, 35]) is None
    assert usl([1, 2, 4, math.nan, 8], [10, 19, 35, 50, math.nan]) is None
    assert usl(DOUBLED, [10, 19, 35, 60, 80, 50, 0]) is None
    with pytest.raises(ValueError, match="a level of 0 sessions"):
        usl([0, 1, 2, 4], [0, 10, 19, 35])
    with pytest.raises(ValueError, match="7 levels, 1 values"):
        usl(DOUBLED, [1])


def test_a_level_without_a_figure_is_left_out() -> None:
    exact = law(DOUBLED, 10.0, 0.05, 0.002)
    assert usl([*DOUBLED, 128], [*exact, math.nan]) == usl(DOUBLED, exact)

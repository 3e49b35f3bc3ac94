"""Where a warm-up ends, against warm-ups whose end is known."""

import numpy as np
import pytest

from analysis.stats import mser5

RESTLESS = np.tile((1.0, 2.0), 500)  # batch means 1.4, 1.6, 1.4, ...: settled, and not constant


def after(warm_up: float, turns: int, total: int = 500) -> np.ndarray:
    return np.concatenate((np.full(turns, warm_up), RESTLESS[: total - turns]))


@pytest.mark.parametrize(("turns", "left_out"), [(0, 0), (5, 5), (35, 35), (33, 35), (36, 40), (240, 240)])
def test_a_step_is_cut_at_the_batch_that_ends_it(turns: int, left_out: int) -> None:
    assert mser5(after(9.0, turns)) == left_out


def test_a_huge_start_does_not_drown_the_rest() -> None:
    assert mser5(after(1e12, 50)) == 50


def test_a_step_in_the_second_half_is_not_settled() -> None:
    assert mser5(after(9.0, 250)) is None
    assert mser5(after(9.0, 300)) is None


def test_a_ramp_never_settles() -> None:
    assert mser5(np.arange(50.0)) is None
    assert mser5(-np.arange(1_000.0)) is None


def test_constant_values_need_no_warm_up() -> None:
    assert mser5(np.full(100, 0.1)) == 0


def test_below_50_values_nothing_is_told() -> None:
    assert mser5([]) is None
    assert mser5(RESTLESS[:49]) is None
    assert mser5(RESTLESS[:50]) == 0


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(fault: float) -> None:
    with pytest.raises(ValueError, match="1 of 60 values are no finite numbers"):
        mser5([*RESTLESS[:59], fault])


def test_cumulative_sums_find_what_the_definition_finds() -> None:
    draw = np.random.default_rng(17)
    found = []
    for _ in range(100):
        values = draw.lognormal(0, 0.5, 303) + 2 * np.exp(-np.arange(303) / draw.uniform(1, 60))
        means = values[:300].reshape(60, 5).mean(axis=1)
        errors = [means[cut:].var() / (60 - cut) for cut in range(56)]
        cut = int(np.argmin(errors))
        found.append(mser5(values))
        assert found[-1] == (5 * cut if cut < 30 else None)
    assert len(set(found)) > 10  # the cases differ


def test_a_slow_start_is_left_out_and_settled_turns_are_kept() -> None:
    """Latency starts 3 standard deviations too high and halves its excess every 20 turns: after 100, 3 % are left."""
    draw = np.random.default_rng(23)
    cold = [mser5(draw.normal(3 * 0.5 ** (np.arange(2_000) / 20), 1)) for _ in range(200)]
    warm = [mser5(draw.normal(0, 1, 2_000)) for _ in range(200)]
    assert sum(cut is None for cut in cold + warm) <= 4
    assert 20 <= float(np.median([cut for cut in cold if cut is not None])) <= 100
    assert float(np.quantile([cut for cut in warm if cut is not None], 0.9)) <= 100

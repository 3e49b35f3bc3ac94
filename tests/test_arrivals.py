"""One seeded schedule, dealt out to workers: nothing twice, nothing left out, no drift."""

import itertools

import numpy as np
import pytest

from workers.arrivals import schedule


def first(count: int, kind: str, rate: float, seed: int = 1, share: tuple[int, int] = (0, 1)) -> list[float]:
    """The first starts of a worker's share: its index, of how many."""
    return list(itertools.islice(schedule(kind, rate, seed, *share), count))


@pytest.mark.parametrize("kind", ["constant", "poisson"])
@pytest.mark.parametrize("workers", [1, 2, 3, 7, 16])
def test_the_shares_make_up_the_schedule_exactly(kind: str, workers: int) -> None:
    alone = first(workers * 60, kind, 12.5, seed=7)
    shares = [first(60, kind, 12.5, 7, (index, workers)) for index in range(workers)]
    assert sorted(itertools.chain.from_iterable(shares)) == alone
    for index, share in enumerate(shares):
        assert share == alone[index::workers]


@pytest.mark.parametrize("kind", ["constant", "poisson"])
def test_same_seed_same_schedule(kind: str) -> None:
    assert first(200, kind, 3.0, seed=42) == first(200, kind, 3.0, seed=42)


def test_another_seed_is_another_schedule() -> None:
    assert first(200, "poisson", 3.0, seed=42) != first(200, "poisson", 3.0, seed=43)


@pytest.mark.parametrize("rate", [0.1, 5.0, 333.0])
def test_constant_is_on_the_beat_without_drift(rate: float) -> None:
    starts = first(100_000, "constant", rate)
    # To the last bit: the millionth start is where it belongs, whatever was rounded before it.
    assert starts == [k / rate for k in range(100_000)]


@pytest.mark.parametrize("rate", [0.5, 20.0])
def test_poisson_has_its_rate_and_no_memory(rate: float) -> None:
    count = 40_000
    starts = np.array(first(count, "poisson", rate, seed=3))
    gaps = np.diff(starts, prepend=0.0)
    assert (gaps > 0).all()
    # Mean and deviation of an exponential are both 1 / rate; 4 standard errors of each.
    assert gaps.mean() * rate == pytest.approx(1.0, abs=4 / count**0.5)
    assert gaps.std() * rate == pytest.approx(1.0, abs=4 * (2 / count) ** 0.5)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 4 / count**0.5
    # Late as early: no drift.
    halves = starts[count // 2] - starts[0], starts[-1] - starts[count // 2]
    assert halves[0] == pytest.approx(halves[1], rel=0.04)


def test_counts_in_a_second_are_poisson() -> None:
    """Variance equals mean; a schedule that evened itself out would not test a queue."""
    starts = first(20_000, "poisson", 10.0, seed=11)
    counts = np.bincount(np.array(starts).astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.15)


def test_each_worker_of_many_still_has_an_even_share() -> None:
    for index in range(4):
        share = first(5_000, "poisson", 40.0, 5, (index, 4))
        assert share[-1] == pytest.approx(5_000 / 10.0, rel=0.05)

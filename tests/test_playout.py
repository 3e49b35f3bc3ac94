"""Stalls worked out by hand, and the closed form against a player that is simulated sample by sample."""

import numpy as np
import pytest

from workers.audio.playout import NO_STALLS, STALL_MIN_S, Stalls, lateness, minimal_prebuffer_s, stalls

PREBUFFERS_S = (0.0, 0.02, 0.06, 0.1, 0.2)
Arrivals = list[tuple[float, float]]  # (arrival, seconds of audio)


def late(arrivals: Arrivals) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    at = [arrival for arrival, _ in arrivals]
    durations = [duration for _, duration in arrivals]
    return lateness(at, np.concatenate([[0.0], np.cumsum(durations)[:-1]]))


def simulated(arrivals: Arrivals, prebuffer_s: float) -> Stalls:
    """A player: starts so long after the first chunk came, waits for whatever is not there, never skips."""
    free_at = arrivals[0][0] + prebuffer_s
    waits = []
    for arrival, duration_s in arrivals:
        starts_at = max(arrival, free_at)
        waits.append(starts_at - free_at)
        free_at = starts_at + duration_s
    return Stalls(sum(wait >= STALL_MIN_S for wait in waits), sum(waits), max(waits))


def paced(count: int, chunk_s: float = 0.04, begin: float = 500.0) -> Arrivals:
    return [(begin + k * chunk_s, chunk_s) for k in range(count)]


def shifted(arrivals: Arrivals, first: int, by_s: float) -> Arrivals:
    """The same, with a hole before chunk `first`: it and all after it come later."""
    return [(at + (by_s if k >= first else 0.0), duration) for k, (at, duration) in enumerate(arrivals)]


def assert_stalls(found: Stalls, underruns: int, total_s: float, longest_s: float) -> None:
    assert found.underruns == underruns
    assert found.total_s == pytest.approx(total_s, abs=1e-9)
    assert found.longest_s == pytest.approx(longest_s, abs=1e-9)


def test_in_time_or_early_is_no_stall() -> None:
    # Halves and eighths: exact in binary, so that on time is exactly on time.
    for arrivals in (paced(50, 0.125), [(7.0, 0.125)] * 50, [(7.0 + k * 0.0625, 0.125) for k in range(50)]):
        assert stalls(late(arrivals), PREBUFFERS_S) == [NO_STALLS] * 5
        assert minimal_prebuffer_s(late(arrivals)) == 0.0


def test_one_hole_of_300_ms_is_one_stall_of_300_ms() -> None:
    found = stalls(late(shifted(paced(50), 20, 0.3)), PREBUFFERS_S)
    for stall, left in zip(found, (0.3, 0.28, 0.24, 0.2, 0.1), strict=True):
        assert_stalls(stall, 1, left, left)
    assert minimal_prebuffer_s(late(shifted(paced(50), 20, 0.3))) == pytest.approx(0.3)


def test_a_hole_that_is_caught_up_stalls_once_all_the_same() -> None:
    """The server stalls for 300 ms and then sends what it owes at once: the player has fallen behind for good."""
    arrivals = [(max(at, 501.1), duration) if at > 500.8 else (at, duration) for at, duration in paced(50)]
    assert_stalls(stalls(late(arrivals), (0.0,))[0], 1, 501.1 - 500.84, 501.1 - 500.84)


def test_by_hand_at_each_prebuffer() -> None:
    """Chunks of 100 ms, late by 0, 10, 50, 50, 130, 90 and 250 ms."""
    lateness_s = (0.0, 0.01, 0.05, 0.05, 0.13, 0.09, 0.25)
    arrivals = [(10.0 + k * 0.1 + late_s, 0.1) for k, late_s in enumerate(lateness_s)]
    assert late(arrivals) == pytest.approx(lateness_s)
    expected = [
        # waits of 10, 40, 0, 80, 0 and 120 ms
        (4, 0.25, 0.12),
        # 20 ms ahead: 30, 80, 120
        (3, 0.23, 0.12),
        # 60 ms ahead: 70, 120
        (2, 0.19, 0.12),
        # 100 ms ahead: 30, 120
        (2, 0.15, 0.12),
        # 200 ms ahead: the last 50
        (1, 0.05, 0.05),
    ]
    for found, (underruns, total_s, longest_s) in zip(stalls(late(arrivals), PREBUFFERS_S), expected, strict=True):
        assert_stalls(found, underruns, total_s, longest_s)
    assert minimal_prebuffer_s(late(arrivals)) == pytest.approx(0.25)


@pytest.mark.parametrize(("wait_s", "underruns"), [(0.0005, 0), (0.0011, 1), (0.0, 0)])
def test_waits_below_a_millisecond_are_no_underrun(wait_s: float, underruns: int) -> None:
    found = stalls(late([(1.0, 0.02), (1.02 + wait_s, 0.02)]), (0.0,))[0]
    assert_stalls(found, underruns, wait_s, wait_s)


@pytest.mark.parametrize(("shortest_s", "underruns"), [(0.001, 3), (0.02, 2), (0.05, 1), (0.1, 0)])
def test_what_is_too_short_for_an_underrun_counts_as_time(shortest_s: float, underruns: int) -> None:
    """Waits of 10, 30 and 60 ms: S3's glitch is one of 20 ms or more."""
    lateness_s = (0.0, 0.01, 0.04, 0.1, 0.1)
    arrivals = [(10.0 + k * 0.1 + late_s, 0.1) for k, late_s in enumerate(lateness_s)]
    assert_stalls(stalls(late(arrivals), (0.0,), shortest_s)[0], underruns, 0.1, 0.06)


def test_the_shortest_underrun_is_measured_beyond_the_prebuffer() -> None:
    """A wait of 30 ms is one of 10 ms with 20 ms ahead."""
    arrivals = [(1.0, 0.1), (1.13, 0.1)]
    found = stalls(late(arrivals), (0.0, 0.02), 0.02)
    assert_stalls(found[0], 1, 0.03, 0.03)
    assert_stalls(found[1], 0, 0.01, 0.01)


def test_one_chunk_and_none() -> None:
    assert stalls(late([(1.0, 5.0)]), PREBUFFERS_S) == [NO_STALLS] * 5
    assert minimal_prebuffer_s(np.empty(0)) == 0.0
    assert stalls(np.empty(0), PREBUFFERS_S) == [NO_STALLS] * 5


def test_when_it_began_does_not_matter() -> None:
    arrivals = shifted(paced(20), 5, 0.125)
    moved = [(at + 86_400.0, duration) for at, duration in arrivals]
    for here, there in zip(stalls(late(arrivals), PREBUFFERS_S), stalls(late(moved), PREBUFFERS_S), strict=True):
        assert here == pytest.approx(there)


@pytest.fixture(scope="module")
def random_streams() -> list[Arrivals]:
    rng = np.random.default_rng(20261120)
    streams = []
    for _ in range(300):
        count = int(rng.integers(1, 60))
        durations = rng.choice([0.02, 0.04, 0.08, 0.1], count)
        gaps = rng.exponential(rng.choice([0.01, 0.04, 0.08]), count) + (rng.random(count) < 0.05) * 0.3
        streams.append(list(zip((1000 + np.cumsum(gaps)).tolist(), durations.tolist(), strict=True)))
    return streams


def test_like_a_player(random_streams: list[Arrivals]) -> None:
    for arrivals in random_streams:
        for prebuffer_s, found in zip(PREBUFFERS_S, stalls(late(arrivals), PREBUFFERS_S), strict=True):
            assert found == pytest.approx(simulated(arrivals, prebuffer_s), abs=1e-9)


def test_the_minimal_prebuffer_is_enough_and_no_less_is(random_streams: list[Arrivals]) -> None:
    for arrivals in random_streams:
        late_s = late(arrivals)
        enough = minimal_prebuffer_s(late_s)
        assert stalls(late_s, (enough,)) == [NO_STALLS]
        assert simulated(arrivals, enough).total_s == pytest.approx(0.0, abs=1e-9)
        if enough > 0.002:
            assert simulated(arrivals, enough - 0.002).underruns >= 1


def test_a_larger_prebuffer_never_stalls_more(random_streams: list[Arrivals]) -> None:
    for arrivals in random_streams:
        totals = [found.total_s for found in stalls(late(arrivals), PREBUFFERS_S)]
        assert totals == sorted(totals, reverse=True)

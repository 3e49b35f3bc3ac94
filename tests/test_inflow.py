"""Lag, and what the reference browser client would play: from streams made by hand."""

import numpy as np
import pytest

from workers.audio.inflow import ClientPlayout, Inflow

CHUNK_S = 0.08


def slowed(step_s: float, count: int) -> Inflow:
    """A server that takes `step_s` a chunk, heard by a client that sends a chunk each 80 ms from instant 100 on."""
    inflow, done_at = Inflow(), 100.0
    for k in range(count):
        done_at = max(done_at, 100.0 + (k + 1) * CHUNK_S) + step_s
        inflow.came(done_at, CHUNK_S, int((done_at - 100.0) / CHUNK_S + 1e-9) * CHUNK_S)
    return inflow


def test_a_server_that_takes_100_ms_a_chunk_falls_behind_by_a_fifth_of_the_time() -> None:
    lag = slowed(0.100, 300).lag()
    assert lag.growth_s_per_min == pytest.approx(60 * 0.20, rel=0.01)  # 30 s of work for 24 s of audio
    assert lag.max_s == pytest.approx(300 * 0.02, abs=0.1)
    assert lag.p50_s == pytest.approx(150 * 0.02, abs=0.1)


def test_a_punctual_server_has_no_lag_and_no_growth() -> None:
    inflow = slowed(0.010, 300)
    lag = inflow.lag()
    assert lag.max_s == pytest.approx(0.0, abs=1e-4)
    assert lag.growth_s_per_min == pytest.approx(0.0, abs=1e-3)
    assert inflow.received_s == pytest.approx(300 * CHUNK_S)
    assert inflow.interarrival_s() == pytest.approx((0.08, 0.08), abs=1e-6)


def test_the_series_has_about_one_lag_a_second() -> None:
    inflow = slowed(0.100, 300)
    assert 28 <= len(inflow.lag_at) <= 31
    assert list(inflow.lag_series_s) == sorted(inflow.lag_series_s)
    assert np.diff(inflow.lag_at).min() >= 1.0


def test_the_lag_at_an_instant_is_that_of_what_had_come_by_then() -> None:
    inflow = Inflow()
    assert inflow.lag_at_instant(5.0) is None
    for at, sent_s in ((1.0, 0.5), (2.0, 1.5), (3.0, 2.5)):
        inflow.came(at, 0.25, sent_s)
    assert inflow.lag_at_instant(0.9) is None
    assert inflow.lag_at_instant(1.0) == pytest.approx(0.25)
    assert inflow.lag_at_instant(2.9) == pytest.approx(1.0)
    assert inflow.lag_at_instant(99.0) == pytest.approx(1.75)


def test_nothing_and_one_message_make_no_figures_up() -> None:
    inflow = Inflow()
    assert inflow.lag() == (None, None, None, None)
    assert inflow.interarrival_s() == (None, None)
    inflow.came(1.0, CHUNK_S, 0.08)
    assert inflow.lag().growth_s_per_min is None
    inflow.came(2.0, 0.0, 1.0)  # a header: no audio
    assert inflow.received_s == CHUNK_S


def fed(*arrivals: tuple[float, float]) -> ClientPlayout:
    playout = ClientPlayout()
    for at, length_s in arrivals:
        playout.came(at, length_s)
    return playout


def steady(begin: float, count: int) -> list[tuple[float, float]]:
    return [(begin + k * CHUNK_S, CHUNK_S) for k in range(count)]


def test_a_steady_stream_never_stalls_and_drops_nothing() -> None:
    playout = fed(*steady(0.0, 500))
    assert (playout.stalls, playout.stalled_s, playout.dropped_s) == (0, 0.0, 0.0)


def test_a_late_chunk_within_the_partial_buffer_is_not_heard() -> None:
    """It begins 10 ms after the first chunk: the second may come 90 ms after it."""
    late = [(0.0, CHUNK_S), *steady(0.0895, 50)]
    assert fed(*late).stalls == 0
    late = [(0.0, CHUNK_S), *steady(0.0915, 50)]
    playout = fed(*late)
    assert playout.stalls == 1
    # Dry at 0.090; 80 ms are there again at 0.0915, and it begins 15 ms after that: the partial buffer has grown by 5.
    assert playout.stalled_s == pytest.approx(0.0915 + 0.015 - 0.090)


def test_a_pause_stalls_once_for_as_long_as_it_is() -> None:
    playout = fed(*steady(0.0, 10), *steady(10 * CHUNK_S + 2.0, 50))
    assert playout.stalls == 1
    assert playout.stalled_s == pytest.approx(2.0 + 0.015 - 0.010)
    assert playout.dropped_s == 0.0


def test_a_burst_is_dropped_down_to_its_buffer() -> None:
    """190 ms and more are too many (80 + 10 + 100): what is left is 90 ms; from then on 170 are."""
    playout = fed((0.0, CHUNK_S), (0.001, CHUNK_S), (0.002, CHUNK_S))
    assert playout.dropped_s == pytest.approx(0.24 - 0.09)
    playout.came(0.003, CHUNK_S)
    assert playout.dropped_s == pytest.approx(0.24 - 0.09 + 0.17 - 0.09)


def test_a_server_slower_than_time_stalls_again_and_again() -> None:
    playout = fed(*[(k * 0.1, CHUNK_S) for k in range(100)])
    assert playout.stalls > 10
    assert playout.stalled_s == pytest.approx(100 * 0.02, abs=0.2)


def test_a_session_of_hours_keeps_a_bounded_number_of_arrivals() -> None:
    """And its figures are still those of the whole: 100 ms a chunk, which is a fifth of the time behind."""
    inflow, count = Inflow(), 100_000
    for k in range(count):
        at = 0.1 * (k + 1)
        inflow.came(at, CHUNK_S, at)
    lag = inflow.lag()
    assert lag.growth_s_per_min == pytest.approx(60 * 0.2, rel=0.01)
    assert lag.p50_s == pytest.approx(0.02 * count / 2, rel=0.02)
    assert inflow.interarrival_s() == pytest.approx((0.1, 0.1), abs=1e-5)
    assert inflow.lag_at_instant(0.1 * count) == pytest.approx(0.02 * count, abs=0.3)
    assert len(inflow._at) <= 20_000

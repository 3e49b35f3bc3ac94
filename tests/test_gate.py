"""Which windows are loud: against a walk over every sample, and by hand at the edges."""

import numpy as np
import numpy.typing as npt
import pytest

from workers.audio.gate import QUIET, first_loud_sample, loud_windows

Samples = npt.NDArray[np.int16]


def slow(chunk: Samples, rate: int, threshold: int) -> tuple[int, int]:
    window = max(1, rate // 100)
    loud = [k // window for k, sample in enumerate(chunk.tolist()) if abs(sample) >= threshold]
    return (loud[0], loud[-1]) if loud else (-1, -1)


@pytest.mark.parametrize("rate", [50, 8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("seed", range(6))
def test_like_a_walk_over_every_sample(rate: int, seed: int) -> None:
    """Widths that windows divide and widths that they do not."""
    rng = np.random.default_rng([rate, seed])
    for _ in range(30):
        count = int(rng.integers(1, 9))
        width = int(rng.choice([1, 2, 159, 160, 161, 320, 441, 480, 960, 1_001, int(rng.integers(1, 3_000))]))
        loudness = rng.choice([0.0, 0.001, 0.01, 1.0])
        rows = []
        for _ in range(count):
            row = rng.integers(-99, 100, width)
            spikes = rng.random(width) < loudness
            rows.append(np.where(spikes, rng.integers(-32768, 32768, width), row).astype(np.int16))
        threshold = int(rng.choice([1, 50, 328, 32767]))
        found = loud_windows(b"".join(row.tobytes() for row in rows), 2 * width, rate, threshold)
        assert found == [slow(row, rate, threshold) for row in rows]
        assert all(type(one) is int for pair in found for one in pair)


@pytest.mark.parametrize(
    ("samples", "threshold", "expected"),
    [
        ([-32768], 32768, (0, 0)),
        ([-32768], 328, (0, 0)),
        ([32767], 32767, (0, 0)),
        ([32767], 32768, QUIET),
        ([328], 328, (0, 0)),
        ([-328], 328, (0, 0)),
        ([327, -327], 328, QUIET),
        ([0], 1, QUIET),
    ],
)
def test_at_the_edges(samples: list[int], threshold: int, expected: tuple[int, int]) -> None:
    assert loud_windows(np.array(samples, np.int16).tobytes(), 2 * len(samples), 16_000, threshold) == [expected]


def test_every_place_in_a_chunk_that_windows_do_not_divide() -> None:
    for place in range(399):
        chunk = np.zeros(399, np.int16)
        chunk[place] = 1_000
        assert loud_windows(chunk.tobytes() * 2, 798, 16_000, 328) == [(place // 160, place // 160)] * 2
        assert first_loud_sample(chunk.tobytes(), 328) == place


def test_loud_and_quiet_together() -> None:
    """One chunk's noise is no other's."""
    quiet, loud = bytes(640), (np.ones(320, np.int16) * 5_000).tobytes()
    assert loud_windows(quiet + loud + quiet + loud, 640, 16_000, 328) == [QUIET, (0, 1), QUIET, (0, 1)]
    assert loud_windows(quiet + quiet, 640, 16_000, 328) == [QUIET, QUIET]


def test_the_first_loud_sample_of_none() -> None:
    assert first_loud_sample(bytes(640), 328) == 0
    assert first_loud_sample(np.array([0, 5, -32768], np.int16).tobytes(), 32768) == 2


@pytest.mark.parametrize("width", [1_920, 1_764])  # whole windows, and a shorter last one
def test_noise_with_peaks_above_the_threshold_is_no_voice(width: int) -> None:
    """-50 dBFS of hiss peaks at -38; a voice of the same peaks is stronger than half the threshold."""
    noise = (np.random.default_rng(1).normal(0.0, 32768 * 10 ** (-50 / 20), 4 * width)).astype(np.int16)
    assert np.abs(noise).max() > 328
    voice = noise.copy()
    voice[width + 480 : width + 960] += (1_000 * np.sin(np.arange(480) / 20)).astype(np.int16)
    assert loud_windows(noise.tobytes(), 2 * width, 24_000, 328) != [QUIET] * 4
    assert loud_windows(noise.tobytes(), 2 * width, 24_000, 328, 164.0) == [QUIET] * 4
    assert loud_windows(voice.tobytes(), 2 * width, 24_000, 328, 164.0) == [QUIET, (2, 3), QUIET, QUIET]

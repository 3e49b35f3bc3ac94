"""What is wrong with audio that came whole, at the edges of each rule."""

import numpy as np
import pytest

from workers import defects
from workers.audio.track import Track, amplitude
from workers.failures import TurnFailed

RATE = 1000


def track(seconds: float, value: int = 9000) -> Track:
    found = Track(amplitude(-40.0), keep=False)
    found.sample_rate = RATE
    if seconds:
        found.hear(np.full(round(seconds * RATE), value, np.int16), 100.0, 0.0)
    return found


def kind(heard: Track, chars: int = 100, speed: float = 1.0, shortest: float = 0.015, longest: float = 0.4) -> str:
    """What is found; the outcome is `answered` whatever it is: the server did answer."""
    try:
        defects.check(heard, chars, speed, shortest, longest)
    except TurnFailed as failure:
        return failure.kind if failure.outcome == "answered" else failure.outcome
    return "good"


def test_no_audio() -> None:
    assert kind(track(0.0)) == "no_audio"


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "silence_only"), (327, "silence_only"), (328, "good"), (-32768, "good")]
)
def test_silence_only(value: int, expected: str) -> None:
    assert kind(track(6.0, value)) == expected


@pytest.mark.parametrize(
    ("seconds", "chars", "speed", "expected"),
    [
        # 100 characters: 1.5 s to 2 + 40 s
        (1.5, 100, 1.0, "good"),
        (1.499, 100, 1.0, "too_short"),
        (42.0, 100, 1.0, "good"),
        (42.001, 100, 1.0, "too_long"),
        # twice the speed: half of each
        (0.75, 100, 2.0, "good"),
        (0.749, 100, 2.0, "too_short"),
        (22.001, 100, 2.0, "too_long"),
        # half the speed
        (2.999, 100, 0.5, "too_short"),
        (82.0, 100, 0.5, "good"),
        # a short text may have its silences
        (2.4, 1, 1.0, "good"),
        (2.401, 1, 1.0, "too_long"),
    ],
)
def test_absurd_for_its_text(seconds: float, chars: int, speed: float, expected: str) -> None:
    assert kind(track(seconds), chars, speed) == expected


def test_the_limits_are_the_scenarios() -> None:
    assert kind(track(10.0), 10, longest=0.4) == "too_long"
    assert kind(track(10.0), 10, longest=1.0) == "good"
    assert kind(track(0.5), 100, shortest=0.0) == "good"


def test_the_line_names_the_figures() -> None:
    with pytest.raises(TurnFailed, match=r"50\.0 s of audio for 12 characters"):
        defects.check(track(50.0), 12, 1.0, 0.015, 0.4)

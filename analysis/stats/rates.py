"""Rates and ratios: RTF, ASPS, RPS, CPS. Pure."""

import numpy as np
from numpy.typing import ArrayLike


def rtf(latency_ms: float, audio_samples: int, sample_rate: int = 24_000) -> float:
    """Real-time factor: latency / duration of the audio; below 1 is faster than real time. Source: S2, S4.

    Raises ValueError if there is no audio: that is a failed synthesis, not an infinitely slow one.
    """
    if audio_samples <= 0 or sample_rate <= 0:
        raise ValueError(f"no audio to compare with: {audio_samples} samples at {sample_rate} Hz")
    return latency_ms / (audio_samples / sample_rate * 1000)


def asps(audio_s: ArrayLike, wall_s: float) -> float:
    """Audio seconds per second: seconds of audio received in `wall_s` of wall time. Source: S4."""
    return _rate(float(np.sum(np.asarray(audio_s, dtype=np.float64))), wall_s)


def rps(requests: int, wall_s: float) -> float:
    """Requests per second. Source: S4."""
    return _rate(requests, wall_s)


def cps(characters: ArrayLike, wall_s: float) -> float:
    """Input characters per second. Source: S4."""
    return _rate(float(np.sum(np.asarray(characters, dtype=np.float64))), wall_s)


def _rate(amount: float, wall_s: float) -> float:
    if not wall_s > 0:
        raise ValueError(f"no rate over {wall_s} s of wall time")
    return amount / wall_s

"""Voices made, not recorded: the first and the last voiced sample are known, since they were put there. Pure.

A pitch period is a sum of decaying formants that begins at its peak, so the first sample is as loud as any. The last
period is mirrored in time, so the last one is, too. Around them there is digital silence.
"""

import wave
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

RATE = 16_000
PEAK = 12_000
_FORMANTS = ((700.0, 130.0, 1.0), (1220.0, 140.0, 0.6), (2600.0, 160.0, 0.3))  # Hz, bandwidth, weight
_PITCH_HZ = 125.0
_SYLLABLE_S, _DIP_S, _DIP = 0.24, 0.06, 0.3

Samples = npt.NDArray[np.int16]


class Clip(NamedTuple):
    """A query. onset: position of the first voiced sample; offset: one past the last voiced sample."""

    samples: Samples
    onset: int
    offset: int


def voiced(seconds: float) -> Samples:
    """A vowel with syllables, int16, shape (n,), 16 kHz; n is a whole number of pitch periods. Both ends are loud."""
    length = round(RATE / _PITCH_HZ)
    time_s = np.arange(length) / RATE
    period = sum(
        weight * np.exp(-np.pi * width * time_s) * np.cos(2 * np.pi * hertz * time_s)
        for hertz, width, weight in _FORMANTS
    )
    periods = np.tile(np.asarray(period), (max(4, round(seconds * _PITCH_HZ)), 1))
    began_s = np.arange(len(periods)) / _PITCH_HZ
    in_dip = (began_s % _SYLLABLE_S) >= _SYLLABLE_S - _DIP_S
    periods[in_dip] *= _DIP
    periods[:2], periods[-2:] = period, period
    periods[-1] = periods[-1][::-1]
    scale = PEAK / np.abs(periods).max()
    return np.round(periods * scale).astype(np.int16).ravel()


def clip(voice_s: float, lead: int, tail: int) -> Clip:
    """A query with `lead` samples of digital silence before the voice, and `tail` after it."""
    voice = voiced(voice_s)
    samples = np.concatenate([np.zeros(lead, np.int16), voice, np.zeros(tail, np.int16)])
    return Clip(samples, lead, lead + len(voice))


def write_wav(path: Path, samples: Samples) -> None:
    """16 kHz, mono, s16."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())


def write_queries(folder: Path, count: int, voice_s: float, seed: int = 1) -> dict[str, Clip]:
    """Queries as a user drops them into a folder, by file name; their ends lie anywhere within a chunk."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    made = {}
    for number in range(count):
        lead, tail = int(random.integers(160, 960)), int(random.integers(0, 640))
        name = f"query_{number}.wav"
        made[name] = clip(voice_s + 0.2 * number, lead, tail)
        write_wav(folder / name, made[name].samples)
    return made

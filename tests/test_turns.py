"""Where speech begins and ends. Truth by construction: silence or noise of a known length around a known voice."""

import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import soxr

from workers.audio import turns
from workers.audio.turns import Span

Floats = npt.NDArray[np.float64]

AUDIO_FILES = Path(__file__).resolve().parent.parent / "audio_files"
RATES = (8_000, 16_000, 22_050, 24_000, 48_000)
GATE = 328  # -40 dBFS


def full_scale(dbfs: float) -> float:
    return float(32768 * 10 ** (dbfs / 20))


def padded(voice: Floats, rate: int, noise_dbfs: float | None, seed: int = 0) -> tuple[turns.Samples, Span]:
    """The voice between two pauses of about half a second, and where it is."""
    rng = np.random.default_rng(seed)
    before, after = (int(rate * pause_s) for pause_s in rng.uniform(0.45, 0.55, 2))
    signal = np.concatenate([np.zeros(before), voice, np.zeros(after)])
    if noise_dbfs is not None:
        signal += rng.normal(0, full_scale(noise_dbfs), len(signal))
    return np.clip(np.rint(signal), -32768, 32767).astype(np.int16), Span(before, before + len(voice))


def heard(signal: turns.Samples, rate: int, early_s: float = 0.0) -> tuple[int | None, int | None]:
    """Onset and offset as a level gate and then the careful look find them, as positions in the whole signal."""
    loud = np.flatnonzero(np.abs(signal.astype(int)) >= GATE)
    around = int(turns.SNIPPET_S * rate)
    opened, closed = int(loud[0]) - int(early_s * rate), int(loud[-1]) + 1
    begin = turns.onset(signal[opened - around : opened + around], rate, around)
    end = turns.offset(signal[closed - around : closed + around], rate, around)
    return (
        None if begin is None else opened - around + begin,
        None if end is None else closed - around + end,
    )


def tone(rate: int, seconds: float, hertz: float, dbfs: float, harmonics: int = 1) -> Floats:
    t = np.arange(int(rate * seconds)) / rate
    parts = [np.cos(2 * np.pi * hertz * h * t + h) / h for h in range(1, harmonics + 1) if hertz * h < rate / 2]
    signal = np.sum(parts, axis=0)
    return np.asarray(signal / np.abs(signal).max() * full_scale(dbfs))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("dbfs", "noise_dbfs"), [(-6, None), (-30, None), (-6, -60), (-18, -60), (-30, -75)])
@pytest.mark.parametrize(("hertz", "harmonics"), [(110, 12), (210, 8), (440, 1)])
def test_an_abrupt_voice_is_found_within_half_a_millisecond(
    rate: int, dbfs: float, noise_dbfs: float | None, hertz: float, harmonics: int
) -> None:
    for seed, early_s in ((1, 0.0), (2, 0.012)):
        signal, truth = padded(tone(rate, 0.7, hertz, dbfs, harmonics), rate, noise_dbfs, seed)
        begin, end = heard(signal, rate, early_s)
        assert begin is not None
        assert end is not None
        assert abs(begin - truth.onset) <= 0.0005 * rate
        assert abs(end - truth.offset) <= 0.0005 * rate


def test_digital_silence_is_left_at_the_very_sample() -> None:
    signal, truth = padded(tone(16_000, 0.5, 300, -12), 16_000, None)
    assert heard(signal, 16_000) == truth
    assert turns.speech(signal, 16_000) == [truth]


def faded(signal: Floats, rate: int) -> Floats:
    ramp = np.minimum(1, np.arange(len(signal)) / (0.002 * rate))
    return np.asarray(signal * np.minimum(ramp, ramp[::-1]))


def no_voices(rate: int) -> Iterator[tuple[str, Floats]]:
    rng = np.random.default_rng(7)
    t = np.arange(int(0.4 * rate)) / rate
    loud = full_scale(-6)
    yield "a click", np.array([loud])
    yield "two clicks", np.concatenate([[loud], np.zeros(int(0.1 * rate)), [loud]])
    yield "15 ms of a tone", faded(loud * np.sin(2 * np.pi * 1000 * t[: int(0.015 * rate)]), rate)
    yield "18 ms of noise", loud / 4 * rng.normal(size=int(0.018 * rate))
    yield "50 Hz hum", loud * np.sin(2 * np.pi * 50 * t)
    yield "60 Hz hum", loud * np.sin(2 * np.pi * 60 * t)
    yield "white noise", loud / 4 * rng.normal(size=len(t))
    yield "soft white noise", full_scale(-34) * rng.normal(size=len(t))
    yield "a step of the DC offset", np.full(len(t), loud)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("noise_dbfs", [None, -65])
def test_what_is_no_voice_is_not_taken_for_one(rate: int, noise_dbfs: float | None) -> None:
    for name, sound in no_voices(rate):
        signal, _ = padded(sound, rate, noise_dbfs)
        assert heard(signal, rate) == (None, None), name


@pytest.mark.parametrize("rate", RATES)
def test_a_short_tone_counts_as_speech(rate: int) -> None:
    signal, truth = padded(tone(rate, 0.08, 440, -12), rate, -65)
    begin, end = heard(signal, rate)
    assert begin == pytest.approx(truth.onset, abs=0.0005 * rate)
    assert end == pytest.approx(truth.offset, abs=0.0005 * rate)


@pytest.mark.parametrize("noise_dbfs", [None, -65])
def test_a_weak_fricative_belongs_to_the_voice(noise_dbfs: float | None) -> None:
    """80 ms of hiss at -50 dBFS, under the gate, as an f or an h before its vowel and an s after it."""
    rate = 16_000
    rng = np.random.default_rng(3)
    hiss = np.diff(rng.normal(size=int(0.08 * rate) + 1)) * full_scale(-50)
    for seed in range(5):
        signal, truth = padded(np.concatenate([hiss, tone(rate, 0.4, 180, -12, 8), hiss]), rate, noise_dbfs, seed)
        begin, end = heard(signal, rate)
        assert begin == pytest.approx(truth.onset, abs=0.004 * rate)
        assert end == pytest.approx(truth.offset, abs=0.004 * rate)


def test_a_plosives_closure_is_inside_the_voice_and_an_earlier_word_is_not() -> None:
    rate = 16_000
    rng = np.random.default_rng(4)
    hiss = np.diff(rng.normal(size=int(0.06 * rate) + 1)) * full_scale(-56)
    vowel = tone(rate, 0.4, 150, -12, 8)
    closed, truth = padded(np.concatenate([hiss, np.zeros(int(0.06 * rate)), vowel]), rate, None)
    assert heard(closed, rate)[0] == pytest.approx(truth.onset, abs=0.002 * rate)
    parted, truth = padded(np.concatenate([hiss, np.zeros(int(0.15 * rate)), vowel]), rate, None)
    assert heard(parted, rate)[0] == truth.offset - len(vowel)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_a_snippet_may_be_short_on_either_side(share: float) -> None:
    """At the beginning of a stream there is nothing before, at its end nothing after."""
    rate = 16_000
    signal, truth = padded(tone(rate, 0.7, 200, -12, 5), rate, None)
    few = int(share * turns.SNIPPET_S * rate)
    before = signal[truth.onset - few : truth.onset + 4800]
    assert turns.onset(before, rate, few) == few
    after = signal[truth.offset - 4800 : truth.offset + few]
    assert turns.offset(after, rate, 4800) == 4800


@pytest.mark.parametrize("samples", [0, 1, 7, 159, 160, 161, 1000])
@pytest.mark.parametrize("rate", RATES)
def test_scraps_of_any_size_are_no_speech(samples: int, rate: int) -> None:
    for signal in (np.zeros(samples, np.int16), np.full(samples, -32768, np.int16)):
        for coarse in (0, samples // 2, samples):
            assert turns.onset(signal, rate, coarse) is None
            assert turns.offset(signal, rate, coarse) is None
        assert turns.speech(signal, rate) == []


def test_speech_bridges_pauses_and_parts_at_longer_ones() -> None:
    rate = 16_000
    vowel = tone(rate, 0.4, 150, -12, 8)
    signal = np.concatenate([np.zeros(4000), vowel, np.zeros(4000), vowel, np.zeros(6400), vowel, np.zeros(1600)])
    first_end = 4000 + 2 * len(vowel) + 4000
    assert turns.speech(signal.astype(np.int16), rate) == [
        Span(4000, first_end),
        Span(first_end + 6400, first_end + 6400 + len(vowel)),
    ]


def test_a_click_beside_the_voice_is_no_part_of_it() -> None:
    rate = 16_000
    signal, truth = padded(tone(rate, 0.7, 200, -12, 5), rate, None)
    signal[truth.onset - 3200] = signal[truth.offset + 6000] = 20_000
    assert turns.speech(signal, rate) == [pytest.approx(truth, abs=0.0005 * rate)]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("noise_dbfs", [None, -60])
@pytest.mark.parametrize("pause_s", [0.08, 0.12, 0.15, 0.2, 0.24])
def test_a_place_that_a_click_made_loud_is_not_taken_for_the_voices(
    rate: int, noise_dbfs: float | None, pause_s: float
) -> None:
    """The voice beside it is, as far as the snippet shows it: its edge is no silence between the two."""
    voice = tone(rate, 0.7, 200, -12, 5)
    click, pause = np.full(int(0.0025 * rate), full_scale(-9)), np.zeros(int(pause_s * rate))
    signal, truth = padded(np.concatenate([click, pause, voice, pause, click]), rate, noise_dbfs)
    begin, end = heard(signal, rate)
    beside = len(click) + len(pause)
    assert begin == pytest.approx(truth.onset + beside, abs=0.0015 * rate)
    assert end == pytest.approx(truth.offset - beside, abs=0.0015 * rate)


def test_a_click_far_from_the_voice_is_none() -> None:
    rate = 16_000
    parts = [[full_scale(-9)], np.zeros(int(0.31 * rate)), tone(rate, 0.7, 200, -12, 5)]
    signal, _ = padded(np.concatenate([*parts, *parts[1::-1]]), rate, None)
    assert heard(signal, rate) == (None, None)


def test_a_soft_recording_has_a_voice_too() -> None:
    signal, truth = padded(tone(16_000, 0.7, 200, -46, 5), 16_000, None)
    assert turns.speech(signal, 16_000) == [pytest.approx(truth, abs=16)]


@cache
def spoken() -> list[tuple[Floats, int]]:
    """Real and synthetic voices, (samples, rate): the default queries, and recordings where they are."""
    voices = []
    for path in sorted(AUDIO_FILES.glob("*.wav")):
        samples, rate = soundfile.read(path)
        voices.append((samples, rate))
    return voices


def tight(voice: Floats, least: float) -> Floats:
    """From the first sample to the last that reaches `least`: truth by a criterion that is not the code's."""
    loud = np.flatnonzero(np.abs(voice) >= least)
    return voice[loud[0] : loud[-1] + 1]


def test_real_speech_is_found_within_10_ms_mostly_and_30_ms_nearly_always() -> None:
    """A voice begins and ends, by a hand's criterion, where it reaches -35 dB of its peak or 9 dB over the noise."""
    errors_s: list[float] = []
    missed = 0
    cases = itertools.product(spoken(), RATES, (-6, -18, -30), (None, -65, -55))
    for seed, ((voice, recorded), rate, dbfs, noise_dbfs) in enumerate(cases):
        at_rate = voice if rate == recorded else soxr.resample(voice, recorded, rate)
        at_rate = at_rate / np.abs(at_rate).max() * full_scale(dbfs)
        least = max(full_scale(dbfs - 35), 0.0 if noise_dbfs is None else full_scale(noise_dbfs + 9))
        signal, truth = padded(tight(at_rate, least), rate, noise_dbfs, seed)
        for found, true in zip(heard(signal, rate), truth, strict=True):
            if found is None:
                missed += 1
            else:
                errors_s.append(abs(found - true) / rate)
    assert len(errors_s) > 800
    assert missed <= 0.01 * len(errors_s)
    assert np.median(errors_s) <= 0.010
    assert np.quantile(errors_s, 0.99) <= 0.030

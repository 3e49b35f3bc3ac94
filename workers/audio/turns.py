"""Where speech begins and ends, to the sample. Pure; knows nothing of sockets, files or whose voice it is.

Whether: voiced by WebRTC's detector for 30 ms, or loud and sustained, as a test tone is. A click, a hum or a hiss is
no speech.
Where: from a place that is certainly loud, back through the evidence. Each millisecond counts for the voice by how
much its power exceeds the noise around it, capped so that no single click outweighs a pause, less what noise alone
would show; the place where the sum is highest is where the voice left the noise (Page 1954, CUSUM). The end is the
same seen in a mirror.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import soxr
import webrtcvad

Samples = npt.NDArray[np.int16]
_Floats = npt.NDArray[np.float32]

SNIPPET_S = 0.3  # what `onset` and `offset` want to see on each side of their coarse position
BRIDGED_S = 0.3  # a shorter pause is a pause within speech
GATE_DBFS = -40.0  # peak at which a voice is certainly there

_STEP_S = 0.001  # one piece of evidence
_BACK_S = 0.25  # a voice does not begin longer before it is loud
_AHEAD_S = 0.1  # the coarse position may be early by so much
_CLOSURE_S = 0.12  # the longest silence inside a word, before a plosive
_ENOUGH = 1.7  # power over the noise's (2.3 dB) that speaks for a voice as much as against it
_CAP = 10.0
_CHANCE = 2.0  # what noise alone may add to the evidence
_QUIETEST_DBFS = -76.0  # noise is taken to be at least as loud: codecs turn digital silence into hiss
_DYNAMIC_DB = 42.0  # what is weaker than the loudest by more is not the voice
_STILL = 0.05  # of the liveliest window's standard deviation
_PEAKS = 4.0  # standard deviations that noise hardly exceeds

_WINDOW_S = 0.01
_VOICED_WINDOWS = 3
_DETECTED_DBFS = -9.0
_LOUD_WINDOWS = 6
_LOUD_DBFS = -35.0
_ACTIVE = 10 ** (-25.0 / 20)  # of the loudest peak
_VOICE_HZ = (90.0, 3800.0)  # what every rate carries
_ABOVE_HUM = 0.1  # share of the power that a voice has at least above the lower of these
_FLAT = 0.42  # spectral flatness: a tone has 0, white noise 0.56


class Span(NamedTuple):
    """Sample positions [onset, offset): offset is one past the last voiced sample."""

    onset: int
    offset: int


def onset(samples: Samples, rate: int, coarse: int) -> int | None:
    """The first sample of the voice that is loud at `coarse`; None where that is no voice.

    samples: int16, mono, about SNIPPET_S before `coarse` and as much after. Weak beginnings (f, h) are found up to
    0.25 s before `coarse`, under noise as far as they stand out of it. After a click at `coarse` that stands alone the
    voice is the one that is loud next.
    """
    heard = _centred(samples, rate)
    begin = _edge(heard, rate, coarse)
    return begin if begin is not None and _is_speech(heard[begin:], rate) else None


def offset(samples: Samples, rate: int, coarse: int) -> int | None:
    """One past the last sample of the voice that is loud until `coarse`; None where that is no voice."""
    heard = _centred(samples, rate)
    before_end = _edge(heard[::-1], rate, len(heard) - coarse)
    if before_end is None:
        return None
    end = len(heard) - before_end
    # Whole windows, counted from the end: a click is then in as few as it can be.
    return end if _is_speech(heard[end % _samples(rate, _WINDOW_S) : end], rate) else None


def speech(samples: Samples, rate: int) -> list[Span]:
    """All stretches of speech in a whole signal (int16, mono); pauses under BRIDGED_S belong to them."""
    heard = _centred(samples, rate)
    peaks = np.abs(_windows(heard, _samples(rate, _WINDOW_S))).max(axis=1, initial=0.0)
    if not peaks.size:
        return []
    # A quiet recording has a voice too: the gate follows its level, down to what stands out of its own noise.
    gate = max(min(_amplitude(GATE_DBFS), peaks.max() * 0.05), 4.0 * float(np.quantile(peaks, 0.05)), 8.0)
    loud = np.flatnonzero(peaks >= min(gate, peaks.max() * 0.5))
    islands = np.split(loud, np.flatnonzero(np.diff(loud) > _CLOSURE_S / _WINDOW_S) + 1)
    loud = np.concatenate([island for island in islands if len(island) >= _VOICED_WINDOWS] or [loud[:0]])  # no clicks
    around, window = _samples(rate, SNIPPET_S), _samples(rate, _WINDOW_S)
    spans: list[Span] = []
    for stretch in filter(len, np.split(loud, np.flatnonzero(np.diff(loud) > BRIDGED_S / _WINDOW_S) + 1)):
        first, last = int(stretch[0]) * window, (int(stretch[-1]) + 1) * window
        before, after = max(0, first - around), min(len(heard), last + around)
        leading = _edge(heard[before : first + around], rate, first - before)
        begin = first if leading is None else before + leading
        trailing = _edge(heard[max(0, last - around) : after][::-1], rate, after - last)
        end = last if trailing is None else after - trailing
        if end <= begin or not _is_speech(heard[begin:end], rate):
            continue
        if spans and begin - spans[-1].offset < BRIDGED_S * rate:
            begin = spans.pop().onset
        spans.append(Span(begin, end))
    return spans


def _centred(samples: Samples, rate: int) -> _Floats:
    """Without its DC offset: the mean where it is stillest, since a voice's own mean is not 0."""
    heard = samples.astype(np.float32)
    windows = _windows(heard, _samples(rate, _WINDOW_S))
    if not windows.size:
        return heard
    spreads = windows.std(axis=1)
    stillest = int(spreads.argmin())
    still = windows[stillest] if spreads[stillest] < _STILL * spreads.max() else heard
    heard -= still.mean()
    return heard


def _edge(heard: _Floats, rate: int, coarse: int) -> int | None:
    """Where the voice that is loud at `coarse`, or next, leaves the noise before it; a sample position."""
    step = _samples(rate, _STEP_S)
    # Whole steps, counted from the loud end, so that the mirrored question gets the mirrored answer.
    start = min(len(heard), coarse + _samples(rate, _AHEAD_S))
    sharp = np.diff(heard, prepend=heard[:1])  # hiss stands out of a rumble here, as a murmur does where it is not
    evidence = np.zeros(start // step, np.float32)
    for band in (heard, sharp):
        power = np.square(_windows(band[start % step : start], step)).mean(axis=1)
        noise = _noise(band[: max(coarse, step)], rate, float(np.square(band).max(initial=0.0)))
        np.maximum(evidence, power / noise, out=evidence)
    backwards = np.minimum(evidence, _CAP)[::-1] - _ENOUGH
    backwards = backwards[: round((_AHEAD_S + _BACK_S) / _STEP_S)]
    total = np.cumsum(backwards)
    if not total.size:
        return 0
    highs = np.flatnonzero(total >= np.maximum.accumulate(total))
    silence = np.flatnonzero(np.diff(highs) > _CLOSURE_S / _STEP_S)
    high = float(total[highs[silence[0]] if silence.size else highs[-1]])
    if high <= _CAP:  # nothing near `coarse` lasts
        loud = np.abs(heard[start:]) >= _amplitude(GATE_DBFS)
        return _edge(heard, rate, start + int(loud.argmax())) if loud.any() else None
    steps = int(np.argmax(total >= high - _CHANCE)) + 1
    begin = start - steps * step
    level = _PEAKS * np.sqrt(_noise(heard[: max(coarse, step)], rate, float(np.square(heard).max(initial=0.0))))
    near = max(0, begin - step)
    above = np.abs(heard[near : begin + 2 * step]) > level
    first = int(above.argmax())
    return near + first if above[first] else begin


def _noise(before: _Floats, rate: int, loudest: float) -> float:
    """Power of the noise: of the quietest 30 ms before, but never less than what no voice is weaker than."""
    power = np.sort(np.square(_windows(before, _samples(rate, _WINDOW_S))).mean(axis=1))[:3]
    # The quietest 3 of 30 windows of an even noise lie 1.7 standard deviations under its mean.
    below = 1.7 * np.sqrt(2 / _samples(rate, _WINDOW_S))
    quietest = float(power.mean() / (1 - below)) if power.size else 0.0
    return max(quietest, _amplitude(_QUIETEST_DBFS) ** 2, loudest / 2 * 10 ** (-_DYNAMIC_DB / 10))


def _is_speech(heard: _Floats, rate: int) -> bool:
    """Whether this, from its first sample to its last, is a voice, or as steady and coloured as one."""
    windows = _windows(heard, _samples(rate, _WINDOW_S))
    heard = windows.ravel()  # a length of small factors, which the spectrum below is fast for
    peaks = np.abs(windows).max(axis=1, initial=0.0)
    # Only what is about as loud as the loudest counts: the detector goes on for a while after a click.
    active = peaks >= peaks.max(initial=0.0) * _ACTIVE
    if int(active.sum()) < _VOICED_WINDOWS or not _is_coloured(heard, rate):
        return False
    if int((peaks >= _amplitude(_LOUD_DBFS)).sum()) >= _LOUD_WINDOWS:
        return True
    voiced = _voiced(heard, rate)
    shared = min(len(voiced), len(active))
    return int((voiced[:shared] & active[:shared]).sum()) >= _VOICED_WINDOWS


def _is_coloured(heard: _Floats, rate: int) -> bool:
    """No hum, which is all below a voice, and no hiss, which is the same all over it."""
    power = np.square(np.abs(np.fft.rfft(heard * np.hanning(len(heard)))))
    low, high = (round(hertz * len(heard) / rate) for hertz in _VOICE_HZ)
    audible = power[low:high]
    if not audible.size or power[low:].sum() < _ABOVE_HUM * power.sum():
        return False
    flatness = np.exp(np.log(audible + 1e-9).mean()) / (audible.mean() + 1e-9)
    return bool(flatness < _FLAT)


def _voiced(heard: _Floats, rate: int) -> npt.NDArray[np.bool_]:
    """Which 10 ms windows WebRTC's detector takes for a voice."""
    if rate not in (8000, 16000, 32000, 48000):
        heard, rate = soxr.resample(heard, rate, 16000, "LQ"), 16000
    # The detector knows no voice that is recorded too softly.
    heard = heard * (_amplitude(_DETECTED_DBFS) / max(1.0, float(np.abs(heard).max(initial=0.0))))
    pcm = np.clip(heard, -32768, 32767).astype("<i2")
    size = rate // 100
    detector = webrtcvad.Vad(2)
    starts = range(0, len(pcm) - size + 1, size)
    return np.array([detector.is_speech(pcm[at : at + size].tobytes(), rate) for at in starts], np.bool_)


def _windows(heard: _Floats, size: int) -> _Floats:
    """(n,) as (n // size, size); what is left over at the end is left out."""
    whole: _Floats = heard[: len(heard) // size * size].reshape(-1, size)
    return whole


def _samples(rate: int, seconds: float) -> int:
    return max(1, round(rate * seconds))


def _amplitude(dbfs: float) -> float:
    return float(32768 * 10 ** (dbfs / 20))

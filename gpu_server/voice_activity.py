"""Hear when a speaker begins and ends. Knows nothing of sockets, of what is said or of the clock: time is passed in."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import webrtcvad

SAMPLE_RATE = 16_000  # Hz
FRAME_S = 0.02  # what webrtcvad judges at a time
FRAME_BYTES = round(FRAME_S * SAMPLE_RATE) * 2
Detector = Literal["webrtc", "energy"]

_AGGRESSIVENESS = 2  # webrtcvad's, 0-3
_QUIETEST_POWER = 60.0**2  # mean square, of 32,767: -55 dBFS; below it nobody speaks
_FADED = 10**-3.5  # of the loudest power of an utterance: what is left of it 35 dB below is background
_SILENCE = bytes(FRAME_BYTES)


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """Enough voiced audio in a row; `at` is the arrival of the chunk that held its first."""

    at: float


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    """Silence for long enough; `last_voiced_at` is the arrival of the chunk that held the last voiced audio."""

    last_voiced_at: float


class VoiceActivity:
    """One speaker's voice, from 16 kHz s16le mono.

    Most of a call is silence, so an energy gate looks first: it costs a microsecond. Above it webrtcvad says where
    speech begins; from there on energy alone decides, since webrtcvad takes a steady voice, such as a tone's, for
    background after five frames, and goes on for a few into digital silence. `energy` leaves webrtcvad out.
    """

    def __init__(self, start_s: float, stop_s: float, detector: Detector = "webrtc") -> None:
        self.speaking = False
        self._start_frames = max(1, round(start_s / FRAME_S))
        self._stop_frames = max(1, round(stop_s / FRAME_S))
        self._detector = detector
        self._webrtc = self._fresh()
        self._rest = b""
        self._rest_at = 0.0
        self._voiced_frames = 0
        self._silent_frames = 0
        self._first_voiced_at = 0.0
        self._last_voiced_at = 0.0
        self._loudest_power = 0.0

    def hear(self, pcm: bytes, at: float) -> tuple[SpeechStarted | SpeechStopped, ...]:
        """Take the next audio, which arrived `at`; say what it made certain."""
        if not self._rest and len(pcm) == FRAME_BYTES:
            found = self._judge(pcm, at)
            return () if found is None else (found,)
        changes = []
        rest_bytes, rest_at = len(self._rest), self._rest_at
        pcm = self._rest + pcm
        end = len(pcm) - len(pcm) % FRAME_BYTES
        for start in range(0, end, FRAME_BYTES):
            frame = pcm[start : start + FRAME_BYTES]
            # A frame that two chunks share counts as the earlier one's where the later one's part of it is silent.
            shared = start < rest_bytes and _power(frame[rest_bytes - start :]) < _QUIETEST_POWER
            if (found := self._judge(frame, rest_at if shared else at)) is not None:
                changes.append(found)
        if end < len(pcm):
            self._rest, self._rest_at = pcm[end:], at
        else:
            self._rest = b""
        return tuple(changes)

    def _judge(self, frame: bytes, at: float) -> SpeechStarted | SpeechStopped | None:
        if self._voiced(frame):
            return self._note_voice(at)
        if not self.speaking:
            self._voiced_frames = 0
            return None
        self._silent_frames += 1
        if self._silent_frames < self._stop_frames:
            return None
        self.speaking = False
        self._voiced_frames = 0
        self._webrtc = self._fresh()  # without what it has learned to be background
        self._loudest_power = 0.0
        return SpeechStopped(self._last_voiced_at)

    def _note_voice(self, at: float) -> SpeechStarted | None:
        self._last_voiced_at = at
        self._silent_frames = 0
        if self.speaking:
            return None
        if self._voiced_frames == 0:
            self._first_voiced_at = at
        self._voiced_frames += 1
        if self._voiced_frames < self._start_frames:
            return None
        self.speaking = True
        return SpeechStarted(self._first_voiced_at)

    def _fresh(self) -> webrtcvad.Vad | None:
        return webrtcvad.Vad(_AGGRESSIVENESS) if self._detector == "webrtc" else None

    def _voiced(self, frame: bytes) -> bool:
        if frame == _SILENCE or (power := _power(frame)) < _QUIETEST_POWER:
            return False
        if self._webrtc is None:
            return True
        if self.speaking:
            self._loudest_power = max(self._loudest_power, power)
            return power > self._loudest_power * _FADED
        return bool(self._webrtc.is_speech(frame, SAMPLE_RATE))


def _power(pcm: bytes) -> float:
    samples = np.frombuffer(pcm, "<i2", count=len(pcm) // 2).astype(np.float32)
    return float(samples @ samples) / max(1, len(samples))

"""Voice activity: where speech begins and ends, from audio whose voiced part is known."""

import numpy as np
import pytest

from gpu_server.voice_activity import SpeechStarted, SpeechStopped, VoiceActivity
from tests.agent_client import RATE, silence, tone

Change = SpeechStarted | SpeechStopped


def hear(vad: VoiceActivity, pcm: bytes, chunk_samples: int) -> list[tuple[int, Change]]:
    """What chunk number made certain, when chunk k arrives at k."""
    step = 2 * chunk_samples
    chunks = [pcm[start : start + step] for start in range(0, len(pcm), step)]
    return [(k, change) for k, chunk in enumerate(chunks) for change in vad.hear(chunk, float(k))]


@pytest.mark.parametrize("detector", ["webrtc", "energy"])
def test_start_and_stop_name_the_first_and_the_last_voiced_chunk(detector: str) -> None:
    vad = VoiceActivity(0.06, 0.3, detector)  # type: ignore[arg-type]
    pcm = silence(0.2) + tone(0.4) + silence(0.6)  # in 20 ms chunks: voiced are 10-29
    assert hear(vad, pcm, 320) == [(12, SpeechStarted(10.0)), (44, SpeechStopped(29.0))]
    assert not vad.speaking


@pytest.mark.parametrize("chunk_samples", [80, 160, 320, 512, 480, 1600, 333])
def test_the_last_voiced_chunk_is_found_however_the_audio_is_cut(chunk_samples: int) -> None:
    vad = VoiceActivity(0.06, 0.3, "energy")
    before, voiced = 8000, 6400  # samples; both whole frames, so that the truth is exact
    pcm = bytes(2 * before) + tone(voiced / RATE) + silence(0.8)
    (started_in, started), (stopped_in, stopped) = hear(vad, pcm, chunk_samples)
    assert isinstance(started, SpeechStarted)
    assert isinstance(stopped, SpeechStopped)
    frame_end = before + 320
    assert before // chunk_samples <= started.at <= -(-frame_end // chunk_samples)
    assert stopped.last_voiced_at == (before + voiced - 1) // chunk_samples
    assert started_in < stopped_in


def test_a_pause_shorter_than_the_hangover_ends_nothing() -> None:
    vad = VoiceActivity(0.06, 0.3, "energy")
    pcm = tone(0.3) + silence(0.28) + tone(0.3) + silence(0.4)
    assert [type(change) for _, change in hear(vad, pcm, 320)] == [SpeechStarted, SpeechStopped]
    vad = VoiceActivity(0.06, 0.3, "energy")
    pcm = tone(0.3) + silence(0.3) + tone(0.3) + silence(0.4)
    assert [type(change) for _, change in hear(vad, pcm, 320)] == [SpeechStarted, SpeechStopped] * 2


def test_a_click_and_faint_noise_are_no_speech() -> None:
    faint = np.random.default_rng(1).normal(0, 20, RATE).astype("<i2").tobytes()
    pcm = silence(0.1) + tone(0.04) + silence(0.5) + faint
    for detector in ("webrtc", "energy"):
        assert hear(VoiceActivity(0.06, 0.3, detector), pcm, 320) == []  # type: ignore[arg-type]


def test_a_message_of_seconds_may_hold_a_whole_utterance() -> None:
    pcm = silence(0.2) + tone(0.5) + silence(1.0)
    changes = VoiceActivity(0.06, 0.3).hear(pcm, 5.0)
    assert changes == (SpeechStarted(5.0), SpeechStopped(5.0))


def test_a_tone_is_a_voice_every_time() -> None:
    for frequency_hz in (150, 350, 700, 1000, 2000):
        pcm = (tone(0.5, frequency_hz) + silence(0.5)) * 10
        assert len(hear(VoiceActivity(0.06, 0.3, "webrtc"), pcm, 320)) == 20


def test_background_well_below_the_voice_ends_it_too() -> None:
    background = np.random.default_rng(2).normal(0, 80, RATE).astype("<i2").tobytes()  # -52 dBFS; the voice: -14
    changes = hear(VoiceActivity(0.06, 0.3, "webrtc"), tone(0.5) + background, 320)
    assert changes[:2] == [(2, SpeechStarted(0.0)), (39, SpeechStopped(24.0))]

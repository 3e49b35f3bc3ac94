"""The tone engine: known length, known pitch, audible at once."""

import asyncio
from contextlib import aclosing
from itertools import pairwise

import numpy as np
import pytest

from gpu_server.engines.tone import ToneEngine, tone_s
from gpu_server.speech import Pcm, SpeechRequest


def say(request: SpeechRequest, forced_s: float | None = None) -> list[Pcm]:
    async def scenario() -> list[Pcm]:
        return [chunk async for chunk in ToneEngine(forced_s).stream(request)]

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("text", "speed", "forced_s", "expected"),
    [("x", 1.0, None, 0.2), ("x" * 100, 1.0, None, 6.0), ("x" * 100, 2.0, None, 3.0), ("x" * 100, 1.0, 0.5, 0.5)],
)
def test_length_follows_from_the_text(text: str, speed: float, forced_s: float | None, expected: float) -> None:
    request = SpeechRequest(text, speed=speed)
    assert tone_s(request, forced_s) == pytest.approx(expected)
    assert sum(len(chunk) for chunk in say(request, forced_s)) == round(expected * 24_000)


def test_audible_from_the_first_sample_and_seamless() -> None:
    chunks = say(SpeechRequest("Hello there."))
    assert abs(int(chunks[0][0])) > 10_000
    assert {len(chunk) for chunk in chunks[:-1]} == {960}
    steepest = max(int(np.abs(np.diff(chunk.astype(int))).max()) for chunk in chunks)
    assert all(abs(int(after[0]) - int(before[-1])) <= steepest + 1 for before, after in pairwise(chunks))


def test_each_voice_has_its_pitch() -> None:
    pitches = set()
    for voice in ToneEngine.voices:
        pcm = np.concatenate(say(SpeechRequest("x" * 50, voice)))
        pitches.add(int(np.abs(np.fft.rfft(pcm)).argmax()))
    assert len(pitches) == len(ToneEngine.voices)


def test_same_request_same_audio() -> None:
    first, second = (np.concatenate(say(SpeechRequest("Hello."))) for _ in range(2))
    assert np.array_equal(first, second)


def test_closing_the_stream_ends_it() -> None:
    async def scenario() -> int:
        async with aclosing(ToneEngine(3600.0).stream(SpeechRequest("x"))) as chunks:
            await anext(chunks)
        return len([chunk async for chunk in chunks])

    assert asyncio.run(scenario()) == 0

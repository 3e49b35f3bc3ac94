"""Play a tone as long as its text: exact, repeatable, free. Knows nothing of speech."""

import asyncio

import numpy as np

from gpu_server.speech import SAMPLE_RATE, Chunks, SpeechRequest

FREQUENCY_HZ = {"default": 440.0, "alto": 660.0, "tenor": 330.0, "bass": 220.0}
CHARACTER_S = 0.06
SHORTEST_S = 0.2
CHUNK_SAMPLES = SAMPLE_RATE * 40 // 1000
AMPLITUDE = 12_000


class ToneEngine:
    """An engine whose audio is known before it is made.

    The tone starts at its peak, so the very first sample is audible; `forced_s` replaces the length that
    follows from the text.
    """

    name = "tone"
    sample_rate = SAMPLE_RATE
    voices = tuple(FREQUENCY_HZ)

    def __init__(self, forced_s: float | None = None) -> None:
        self._forced_s = forced_s

    async def warm_up(self) -> None:
        """Nothing to load."""

    async def stream(self, request: SpeechRequest) -> Chunks:
        total = round(tone_s(request, self._forced_s) * SAMPLE_RATE)
        step = 2 * np.pi * FREQUENCY_HZ[request.voice] / SAMPLE_RATE
        for start in range(0, total, CHUNK_SAMPLES):
            samples = np.arange(start, min(start + CHUNK_SAMPLES, total))
            yield (AMPLITUDE * np.cos(step * samples)).astype(np.int16)
            await asyncio.sleep(0)  # A long text must not keep the loop from its other streams.

    def close(self) -> None:
        """Nothing to free."""


def tone_s(request: SpeechRequest, forced_s: float | None = None) -> float:
    """How long the tone for this request is, seconds."""
    if forced_s is not None:
        return forced_s
    return max(SHORTEST_S, CHARACTER_S * len(request.text) / request.speed)

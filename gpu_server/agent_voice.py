"""Speak a sentence at the rate a call wants. Knows nothing of calls, messages or real time."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np
import soxr

from gpu_server.audio_out import s16le
from gpu_server.pace import Pace, paced
from gpu_server.speech import Chunks, Engine, SpeechRequest

_REPEATABLE = ("tone",)  # engines whose cost nobody measures, and whose same text always sounds the same
_KEPT_SENTENCES = 256

Speech = AsyncGenerator[bytes, None]  # s16le mono


class AgentVoice:
    """An engine, its audio resampled to `sample_rate` and released at `pace`."""

    def __init__(self, engine: Engine, sample_rate: int, pace: Pace | None) -> None:
        self._engine = engine
        self._sample_rate = sample_rate
        self._pace = pace
        self._kept: OrderedDict[str, bytes] | None = None
        if engine.name in _REPEATABLE and pace is None:
            self._kept = OrderedDict()

    async def speak(self, text: str) -> Speech:
        """Yield the samples as they are made. Closing the generator stops the work."""
        if self._kept is not None and text in self._kept:
            self._kept.move_to_end(text)
            kept, step = self._kept[text], 2 * self._sample_rate  # a second at a time, so that nobody hoards
            for start in range(0, len(kept), step):
                yield kept[start : start + step]
            return
        made = []
        async with aclosing(self._resampled(text)) as pieces:
            async for piece in pieces:
                if self._kept is not None:
                    made.append(piece)
                yield piece
        if self._kept is not None:
            self._kept[text] = b"".join(made)
            if len(self._kept) > _KEPT_SENTENCES:
                self._kept.popitem(last=False)

    async def rehearse(self, text: str) -> None:
        """Speak it to nobody, if that makes it cheap to speak again: callers who come all at once would all make it."""
        if self._kept is not None:
            async for _ in self.speak(text):
                pass

    async def _resampled(self, text: str) -> Speech:
        chunks = self._engine.stream(SpeechRequest(text))
        if self._pace is not None:
            chunks = paced(chunks, self._pace, time.monotonic(), self._engine.sample_rate)
        async with aclosing(chunks):
            if self._sample_rate == self._engine.sample_rate:
                async for chunk in chunks:
                    yield s16le(chunk)
            else:
                async with aclosing(self._at_rate(chunks)) as pieces:
                    async for piece in pieces:
                        yield piece

    async def _at_rate(self, chunks: Chunks) -> Speech:
        # In float: soxr dithers int16 output at random, and the same text would not give the same bytes.
        resampler = soxr.ResampleStream(self._engine.sample_rate, self._sample_rate, 1, dtype="float32")
        async for chunk in chunks:
            if len(made := resampler.resample_chunk(chunk.astype(np.float32))):
                yield _rounded(made)
        if len(made := resampler.resample_chunk(np.empty(0, np.float32), last=True)):
            yield _rounded(made)


async def made_ahead(speech: Speech) -> Speech:
    """Yield what is made, which never waits for whoever takes it. Closing the generator stops the work."""
    made: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def make() -> None:
        try:
            async with aclosing(speech):
                async for pcm in speech:
                    made.put_nowait(pcm)
        finally:
            made.put_nowait(None)

    making = asyncio.create_task(make())
    try:
        while (pcm := await made.get()) is not None:
            yield pcm
        await making
    finally:
        making.cancel()
        await asyncio.gather(making, return_exceptions=True)


def _rounded(samples: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> bytes:
    return np.clip(np.rint(samples), -32768, 32767).astype("<i2").tobytes()

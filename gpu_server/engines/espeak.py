"""Speak with libespeak-ng, streaming, off the event loop. Knows nothing of HTTP, queues of requests or pacing."""

import asyncio
import functools
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import soxr

from gpu_server.engines.libespeak import Libespeak, Timbre
from gpu_server.speech import SAMPLE_RATE, Chunks, Pcm, SpeechRequest

# Variants without flutter and without roughness: with either, the library's state from the utterance before makes
# the same text sound different each time, and no run could be repeated.
VOICES = {
    "default": Timbre("en-us+miguel"),
    "alto": Timbre("en-us+shelby"),
    "soprano": Timbre("en-us+shelby", pitch=80),
    "tenor": Timbre("en-us+Diogo", pitch=80),
    "bass": Timbre("en-us+Henrique", pitch=10),
}
WORDS_PER_MINUTE = 175
PIECE_CHARACTERS = 120

_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\bDr\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bSt\.)(?<!\bMrs\.)\s+")


class EspeakEngine:
    """libespeak-ng behind one thread.

    A text goes to the library in pieces of whole sentences, each only when the one before has been taken: a slow
    listener holds no lock, a listener who left costs no more work, and a short text waits behind a piece of a long
    one, not behind all of it.
    """

    name = "espeak"
    sample_rate = SAMPLE_RATE
    voices = tuple(VOICES)

    def __init__(self) -> None:
        self._library = _libespeak()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="espeak")

    async def warm_up(self) -> None:
        """Say a word in every voice: their data is read from disk at first use."""
        for voice in self.voices:
            async for _ in self.stream(SpeechRequest("Ready.", voice)):
                pass

    async def stream(self, request: SpeechRequest) -> Chunks:
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Pcm | BaseException | None] = asyncio.Queue()
        stopped = threading.Event()
        resampler = soxr.ResampleStream(self._library.sample_rate, SAMPLE_RATE, 1, dtype="float32")

        def hand_over(item: Pcm | BaseException | None) -> None:
            if not stopped.is_set():
                loop.call_soon_threadsafe(arrived.put_nowait, item)

        def take(pcm: Pcm) -> bool:
            hand_over(_resampled(resampler, pcm))
            return not stopped.is_set()

        def speak(piece: str, last: bool) -> None:
            try:
                if not stopped.is_set():
                    self._library.speak(piece, VOICES[request.voice], WORDS_PER_MINUTE * request.speed, take)
                    if last:
                        hand_over(_resampled(resampler, np.empty(0, np.int16), last=True))
                hand_over(None)
            except BaseException as error:  # Raised where the stream is read, not in a thread nobody watches.
                hand_over(error)

        texts = list(pieces(request.text))
        try:
            for number, piece in enumerate(texts, start=1):
                self._thread.submit(speak, piece, number == len(texts))
                while (item := await arrived.get()) is not None:
                    if isinstance(item, BaseException):
                        raise item
                    if item.size:
                        yield item
        finally:
            stopped.set()

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)


def pieces(text: str, at_least: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cut a text between sentences into pieces of `at_least` characters (the last may be shorter)."""
    start = 0
    for end in _SENTENCE_END.finditer(text):
        if end.start() - start >= at_least:
            yield text[start : end.start()]
            start = end.end()
    if text[start:].strip():
        yield text[start:]


@functools.cache
def _libespeak() -> Libespeak:
    return Libespeak()


def _resampled(resampler: soxr.ResampleStream, pcm: Pcm, last: bool = False) -> Pcm:
    # In float: soxr dithers int16 output at random, and the same text would not give the same bytes.
    resampled = resampler.resample_chunk(pcm.astype(np.float32), last=last)
    rounded: Pcm = np.clip(np.rint(resampled), -32768, 32767).astype(np.int16)
    return rounded

"""What callers can say: clips, encoded once as messages on the wire. Knows nothing of sockets or calls."""

import itertools
import os
from collections.abc import Iterable
from math import ceil
from typing import NamedTuple

import numpy as np

from workers.audio import opus, turns
from workers.audio.clips import Clip, resampled
from workers.audio.containers import Samples
from workers.clients.codecs import Codec
from workers.clients.websocket import frame


class Query(NamedTuple):
    """A clip as it goes out. onset_s, offset_s: of its voice, from its first sample; last_voiced: chunk with the last.

    chunks: on the wire already where the codec's audio is the same in every session, else int16 at `rate`.
    """

    name: str
    chunks: list[bytes]
    onset_s: float
    offset_s: float
    last_voiced: int
    samples: Samples
    rate: int
    pauses: tuple[tuple[float, float], ...] = ()  # where the voice rests: begin and end, from the first sample


class Repertoire:
    """All clips for one codec, and the silence between them."""

    def __init__(self, clips: list[Clip], codec: Codec, chunk_s: float) -> None:
        self._samples = round(codec.send_rate * chunk_s)
        self.silence = self._wire(codec, np.zeros(self._samples, np.int16))
        self.queries = [self._encoded(resampled(clip, codec.send_rate), codec) for clip in clips]

    @classmethod
    def of_opus(cls, clips: Iterable[Clip], codec: Codec, pages: opus.Pages) -> "Repertoire":
        """The same of clips at opus.RATE, as Ogg-Opus: `codec` takes pages instead of samples."""
        made = cls([], codec, opus.CHUNK_S)
        made.silence = frame(*codec.audio(pages.silence), os.urandom(4))
        made.queries = [_opus_query(clip, codec) for clip in clips]
        return made

    def _encoded(self, clip: Clip, codec: Codec) -> Query:
        count = ceil(len(clip.samples) / self._samples)
        padded = np.zeros(count * self._samples, np.int16)
        padded[: len(clip.samples)] = clip.samples
        chunks = [self._wire(codec, chunk) for chunk in padded.reshape(count, -1)]
        last_voiced = min(count, ceil(round(clip.offset_s * clip.rate) / self._samples)) - 1
        return Query(clip.name, chunks, clip.onset_s, clip.offset_s, last_voiced, clip.samples, clip.rate)

    @staticmethod
    def _wire(codec: Codec, chunk: Samples) -> bytes:
        pcm = chunk.tobytes()
        if not codec.shares_audio:
            return pcm
        # Masked once, with a key of its own: what is sent again is masked already.
        return frame(*codec.audio(pcm), os.urandom(4))

    def named(self, name: str) -> Query:
        """The clip of this name, with or without `.wav`. Raises KeyError that says which there are."""
        wanted = name.removesuffix(".wav")
        for query in self.queries:
            if query.name.removesuffix(".wav") == wanted:
                return query
        raise KeyError(f"no clip is called {name!r}; there are {', '.join(query.name for query in self.queries)}")


def _opus_query(clip: Clip, codec: Codec) -> Query:
    messages = [frame(*codec.audio(payload), os.urandom(4)) for payload in opus.encoded(clip.samples)]
    last_voiced = min(len(messages), ceil((round(clip.offset_s * clip.rate) + opus.LOOK_AHEAD) / opus.CHUNK)) - 1
    spans = turns.speech(clip.samples, clip.rate)
    pauses = tuple((a.offset / clip.rate, b.onset / clip.rate) for a, b in itertools.pairwise(spans))
    return Query(clip.name, messages, clip.onset_s, clip.offset_s, last_voiced, clip.samples, clip.rate, pauses)

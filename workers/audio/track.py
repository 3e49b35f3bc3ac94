"""Hear one answer: when its audio came, when a listener first hears something. Knows nothing of sockets or HTTP.

Playout at prebuffer 0: a chunk plays when it has arrived and what came before it has played. The first audible sample
is the first one of at least the threshold's amplitude; a listener hears it at its chunk's playout plus its place in it.
"""

from array import array

import numpy as np

from workers.audio.containers import Decoded, Samples


def amplitude(dbfs: float) -> int:
    """int16 amplitude of a level in dB relative to full scale."""
    return max(1, round(32768 * 10 ** (dbfs / 20)))


class Track:
    """What was heard of one answer. Instants are monotonic seconds, as the arrivals given."""

    __slots__ = (
        "_keep",
        "_playhead",
        "_playhead_width_s",
        "_plays_from",
        "_threshold",
        "chunk_at",
        "chunk_media_s",
        "first_audio_at",
        "first_audio_width_s",
        "first_chunk_at",
        "first_chunk_width_s",
        "kept",
        "largest_gap_s",
        "last_chunk_at",
        "latest_s",
        "sample_count",
        "sample_rate",
    )

    def __init__(self, threshold: int, keep: bool) -> None:
        self._threshold, self._keep = threshold, keep
        self.kept: list[Samples] = []
        self.sample_rate = 0
        self.sample_count = 0
        self.chunk_at, self.chunk_media_s = array("d"), array("d")
        self.first_chunk_at = self.first_audio_at = self.last_chunk_at = 0.0
        self.first_chunk_width_s = self.first_audio_width_s = 0.0
        self._playhead = self._playhead_width_s = self._plays_from = 0.0
        # Kept as chunks come: two comparisons a chunk cost less than arrays at the end of a turn.
        self.largest_gap_s = 0.0  # longest wait between two arrivals
        self.latest_s = 0.0  # most that a chunk came after its place in a playout begun when the first one came

    @property
    def audio_s(self) -> float:
        return self.sample_count / self.sample_rate if self.sample_rate else 0.0

    @property
    def samples(self) -> Samples:
        """All samples heard so far, where they were kept."""
        return np.concatenate(self.kept) if self.kept else np.empty(0, np.int16)

    def hear(self, samples: Samples, at: float, width_s: float) -> None:
        """Audio payload arrived at `at`, or up to `width_s` earlier, and holds `samples`.

        None yet where a packet is still incomplete: such an arrival is heard of, but no chunk that anyone could play.
        """
        if not self.first_chunk_at:
            self.first_chunk_at, self.first_chunk_width_s = at, width_s
        elif at - self.last_chunk_at > self.largest_gap_s:
            self.largest_gap_s = at - self.last_chunk_at
        self.last_chunk_at = at
        if not len(samples):
            return
        media_s = self.sample_count / self.sample_rate
        if not self.sample_count:
            self._plays_from = at
        elif at - self._plays_from - media_s > self.latest_s:
            self.latest_s = at - self._plays_from - media_s
        self.chunk_at.append(at)
        self.chunk_media_s.append(media_s)
        self.sample_count += len(samples)
        if not self.first_audio_at:
            self._listen(samples, at, width_s)
        if self._keep:
            self.kept.append(samples)

    def _listen(self, samples: Samples, at: float, width_s: float) -> None:
        if at > self._playhead:
            self._playhead, self._playhead_width_s = at, width_s
        # int16's -32768 has no positive counterpart: compare both signs instead of taking the absolute value.
        loud = (samples >= self._threshold) | (samples <= -self._threshold)
        first = int(loud.argmax())
        if loud[first]:
            self.first_audio_at = self._playhead + first / self.sample_rate
            self.first_audio_width_s = self._playhead_width_s
        self._playhead += len(samples) / self.sample_rate

    def hear_decoded(self, decoded: Decoded, arrivals: list[tuple[int, float, float]]) -> None:
        """A compressed answer after its end; arrivals: (bytes received by then, instant, width in seconds)."""
        self.sample_rate = decoded.sample_rate
        audio_end = decoded.packets[-1].byte_end if decoded.packets else arrivals[-1][0]
        packets = iter([*decoded.packets, None])
        packet = next(packets)
        played = ready = 0
        for byte_end, at, width_s in arrivals:
            if byte_end <= decoded.header_bytes:
                continue
            while packet is not None and packet.byte_end <= byte_end:
                ready = packet.sample_end
                packet = next(packets)
            if byte_end >= audio_end:
                ready = len(decoded.samples)
            self.hear(decoded.samples[played:ready], at, width_s)
            played = max(played, ready)
            if byte_end >= audio_end:
                return  # what follows is a tag, no audio

"""Stretches of an agent's speech, and what is still to be found out about where one begins. Pure."""

from array import array
from typing import Final

import numpy as np
import numpy.typing as npt

from workers.audio.gate import first_loud_sample
from workers.audio.pieces import Block, Piece, joined, place_in_stream, placed, samples_of

CONTEXT_S: Final = 0.3  # what the ear gets before and after the place in question
NEW_RUN_S: Final = 0.05  # a longer hole parts two runs of audio: their samples are not neighbours
RING_S: Final = 0.6  # so long before the latest chunk is remembered at least

_NOT_AGAIN_S = 0.1  # after a place that the ear said no to, for this long,
_NOT_THE_SAME_S = 0.5  # and for this long where it has been loud ever since
_SAME_SOUND_S = 0.05  # quiet for longer is an end of that
_HELD_S = 4.0  # of what came after a place are held until the ear has answered


class Stretch:
    """A stretch of the agent's speech. Instants at playout, monotonic seconds; widths: early by at most that."""

    __slots__ = (
        "arrived_at",
        "audible_at",
        "audible_width_s",
        "by",
        "cut_off",
        "first_chunk_at",
        "first_chunk_width_s",
        "last_loud_at",
        "onset_arrival_at",
        "onset_at",
        "onset_position",
        "onset_width_s",
    )

    def __init__(self, piece: Piece, audible_at: float) -> None:
        self.first_chunk_at = self.first_chunk_width_s = 0.0  # of the run of audio it stands in
        self.onset_at = self.onset_width_s = self.onset_arrival_at = 0.0
        self.onset_position = 0  # samples of the stream before it
        self.by: str | None = None  # who found the onset; None: not yet known
        self.cut_off = False  # cleared while it was audible
        self.last_loud_at = audible_at
        self.begin(audible_at, piece)

    def begin(self, audible_at: float, piece: Piece) -> None:
        """It is in this piece that it begins to be audible."""
        self.audible_at, self.audible_width_s, self.arrived_at = audible_at, piece.width_s, piece.at

    def place(self, pieces: list[Piece], position: int, rate: int, by: str) -> None:
        """Its voice begins with this sample of `pieces`."""
        self.onset_at, piece = placed(pieces, position, rate)
        self.onset_position = place_in_stream(pieces, max(0, position))
        self.onset_width_s, self.onset_arrival_at, self.by = piece.width_s, piece.at, by
        if not self.first_chunk_at:
            self.first_chunk_at, self.first_chunk_width_s = pieces[0].at, pieces[0].width_s


class Utterance:
    """Chunks of one stretch of audio without a meant pause, for the playout model.

    at: when each came, monotonic seconds; the first: when it played. Of several in one read, which bear the last one's
    stamp, the others: the earliest instant at which they may have come. What a late reader merged is no stall.
    """

    __slots__ = ("_lengths", "at")

    def __init__(self, plays_at: float, length_s: float) -> None:
        self.at = array("d", (plays_at,))
        self._lengths = [(0, length_s)]  # (the first chunk of this length, length)

    def came(self, at: float, empty_at: float, in_one_read: bool) -> None:
        """One more chunk. in_one_read: with the one before it."""
        if in_one_read and len(self.at) > 1:
            self.at[-1] = max(empty_at, self.at[-2])
        self.at.append(at)

    def resized(self, length_s: float) -> None:
        """Chunks from here on are of another length."""
        self._lengths.append((len(self.at), length_s))

    @property
    def media_s(self) -> npt.NDArray[np.floating]:
        """Media position of each chunk (s)."""
        if len(self._lengths) == 1:
            return np.arange(len(self.at)) * self._lengths[0][1]
        firsts = np.array([first for first, _ in self._lengths] + [len(self.at)])
        lengths_s = np.repeat([length_s for _, length_s in self._lengths], np.diff(firsts))
        ends_s: npt.NDArray[np.floating] = np.cumsum(lengths_s)
        starts_s: npt.NDArray[np.floating] = ends_s - lengths_s
        return starts_s

    @property
    def ends_short(self) -> bool:
        """Whether its last chunk is shorter than all others, which are of one length."""
        lengths = [(first, length_s) for first, length_s in self._lengths if first < len(self.at)]
        return len(lengths) == 2 and lengths[1][0] == len(self.at) - 1 >= 3 and lengths[1][1] < lengths[0][1]


# What was the latest stretch before another, with its last loud window (serial, sample after it) and its tail (rate,
# blocks): should the ear say that the other was none.
Before = tuple[Stretch | None, tuple[int, int], tuple[int, list[Block]] | None]


class Question:
    """Whether a stretch began with a voice, and where: for the ear, until it has answered."""

    __slots__ = ("asked", "before", "coarse", "pieces", "rate", "room", "stretch", "wanted")

    def __init__(self, stretch: Stretch, pieces: list[Piece], coarse: int, rate: int, before: Before) -> None:
        """pieces: around the place that is loud, and what came since. coarse: that place, in their samples."""
        self.stretch, self.pieces, self.coarse, self.rate, self.before = stretch, pieces, coarse, rate, before
        after = sum(len(piece.pcm) for piece in pieces) - 2 * coarse
        self.wanted = int(CONTEXT_S * rate) * 2 - after  # bytes that it still waits for
        self.room = int(_HELD_S * rate) * 2 - after  # bytes that it may hold yet
        self.asked = False

    def more(self, pieces: list[Piece]) -> None:
        """What came since."""
        self.pieces += pieces
        size = sum(len(piece.pcm) for piece in pieces)
        self.wanted -= size
        self.room -= size

    def snippet(self) -> tuple[bytes, int]:
        """What the ear gets: the samples around the place, and how many of all lie before them.

        Nothing is put where nothing came: the ear would take silence of ours for the agent's room.
        """
        return around(joined(self.pieces), self.coarse, self.rate)

    def answered(self, position: int, threshold: int) -> None:
        """The voice begins with this sample of its pieces."""
        self.stretch.place(self.pieces, position, self.rate, "ear")
        # The gate's place may be inside the voice, or a click before it.
        heard = joined(self.pieces)[2 * position : 2 * (self.coarse + int(CONTEXT_S * self.rate))]
        loud = position + first_loud_sample(heard, threshold)
        self.stretch.begin(*placed(self.pieces, loud, self.rate))

    def next_loud(self, threshold: int, known_until: float) -> tuple[int | None, float]:
        """The sample with which the stretch is loud anew, before `known_until`; or None, and the instant before which
        nothing will be.
        """
        pieces, rate = self.pieces, self.rate
        rejected_at = placed(pieces, self.coarse, rate)[0]
        samples = samples_of(pieces)[self.coarse :]
        loud = self.coarse + np.flatnonzero((samples >= threshold) | (samples <= -threshold))
        sizes = np.array([len(piece.pcm) // 2 for piece in pieces])
        starts = np.cumsum(sizes) - sizes
        index = np.searchsorted(starts, loud, "right") - 1
        at = np.array([piece.play_at for piece in pieces])[index] + (loud - starts[index]) / rate
        quiet_s = np.diff(at, prepend=rejected_at)
        anew = (at >= rejected_at + _NOT_AGAIN_S) & (quiet_s > _SAME_SOUND_S) | (at >= rejected_at + _NOT_THE_SAME_S)
        anew &= at < known_until
        if anew.any():
            return int(loud[anew.argmax()]), 0.0
        ends_at = pieces[-1].play_at + len(pieces[-1].pcm) / (2 * rate)
        goes_on = at.size and ends_at - at[-1] <= _SAME_SOUND_S
        return None, rejected_at + (_NOT_THE_SAME_S if goes_on else _NOT_AGAIN_S)

    def begun_at(self, position: int) -> "tuple[Question, Piece]":
        """The stretch begins with this sample instead: the question about that, and the piece it is in."""
        stretch, pieces, rate = self.stretch, self.pieces, self.rate
        begins_at, piece = placed(pieces, position, rate)
        stretch.begin(begins_at, piece)
        stretch.last_loud_at = max(stretch.last_loud_at, begins_at)
        # From the run's first piece or, where that is longer ago, from one long enough before.
        first = pieces.index(piece)
        while first and begins_at - pieces[first].play_at < RING_S:
            last = pieces[first - 1]
            if pieces[first].play_at - last.play_at - len(last.pcm) / (2 * rate) > NEW_RUN_S:
                stretch.first_chunk_at, stretch.first_chunk_width_s = pieces[first].at, pieces[first].width_s
                break
            first -= 1
        coarse = position - sum(len(piece.pcm) // 2 for piece in pieces[:first])
        return Question(stretch, pieces[first:], coarse, rate, self.before), piece


def around(pcm: bytes, position: int, rate: int) -> tuple[bytes, int]:
    """CONTEXT_S of samples (int16 bytes) before a position and as many after it, and how many lie before them."""
    context = int(CONTEXT_S * rate)
    skipped = max(0, position - context)
    return pcm[2 * skipped : 2 * (position + context)], skipped

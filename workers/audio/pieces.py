"""What came, at playout: blocks of chunks as they are kept, pieces as they are looked at. Pure."""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from workers.audio.containers import Samples


class Block:
    """Chunks of one size that came one after the other: one by one they would cost much more.

    pcm: int16 mono bytes of all. instants: of each two, it came at the first and not before the second (seconds).
    played: of each that was looked at so far two, when it plays and the width of that. serial: the first one's number.
    position: samples of the stream before the first one.
    """

    __slots__ = ("_taken", "instants", "pcm", "played", "position", "serial", "size")

    def __init__(
        self,
        pcm: bytes,
        instants: "array[float]",
        serial: int,
        played: "array[float] | None" = None,
        *,
        position: int = 0,
    ) -> None:
        self.pcm, self.instants, self.serial, self.position = pcm, instants, serial, position
        self.size = 2 * len(pcm) // len(instants)
        self.played = array("d") if played is None else played
        self._taken = 0

    def take(self) -> "Block | None":
        """Those that were looked at since the last time, if any."""
        begin, end = self._taken, len(self.played) // 2
        self._taken = end
        if end - begin == len(self.instants) // 2:
            return self
        if begin == end:
            return None
        both = slice(2 * begin, 2 * end)
        pcm = self.pcm[begin * self.size : end * self.size]
        position = self.position + begin * self.size // 2
        return Block(pcm, self.instants[both], self.serial + begin, self.played[both], position=position)

    def pieces(self) -> "list[Piece]":
        """Each by itself."""
        size, pairs = self.size, zip(self.played[::2], self.played[1::2], self.instants[::2], strict=True)
        return [
            Piece(
                self.pcm[k * size : (k + 1) * size],
                play_at,
                at,
                width_s,
                self.serial + k,
                self.position + k * size // 2,
            )
            for k, (play_at, width_s, at) in enumerate(pairs)
        ]


class Piece(NamedTuple):
    """One chunk at playout: int16 mono bytes, when it plays, when it came and how narrowly that is known.

    position: samples of the stream before it.
    """

    pcm: bytes
    play_at: float
    at: float
    width_s: float
    serial: int
    position: int = 0


def pieces_of(blocks: Iterable[Block]) -> list[Piece]:
    """The chunks of these blocks."""
    return [piece for block in blocks for piece in block.pieces()]


def joined(pieces: Iterable[Piece]) -> bytes:
    """The bytes of pieces, one after the other, without the holes between them."""
    return b"".join(piece.pcm for piece in pieces)


def samples_of(pieces: Sequence[Piece]) -> Samples:
    """The samples of pieces, one after the other, without the holes between them."""
    return np.frombuffer(joined(pieces), np.int16) if pieces else np.empty(0, np.int16)


def placed(pieces: Sequence[Piece], position: int, rate: int) -> tuple[float, Piece]:
    """When a sample (of `samples_of`) plays, and the piece it is in."""
    starts = [0]
    for piece in pieces[:-1]:
        starts.append(starts[-1] + len(piece.pcm) // 2)
    position = max(0, position)
    index = bisect_right(starts, position) - 1
    return pieces[index].play_at + (position - starts[index]) / rate, pieces[index]


def place_in_stream(pieces: Sequence[Piece], position: int) -> int:
    """Samples of the stream before a sample (of `samples_of`)."""
    for piece in pieces:
        if position < len(piece.pcm) // 2:
            return piece.position + position
        position -= len(piece.pcm) // 2
    return pieces[-1].position + len(pieces[-1].pcm) // 2 + position


def until(at: float, piece: Piece, rate: int) -> Piece:
    """What of a piece had played at `at`."""
    return piece._replace(pcm=piece.pcm[: 2 * round((at - piece.play_at) * rate)])

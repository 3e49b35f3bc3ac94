"""One request while an engine speaks it: what to say, and how far it is. Knows nothing of models, threads or HTTP."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu_server.speech import Pcm

HOPS = (4, 8, 25, 50)  # tokens of the first, second … piece of audio; the last goes on
LOOKAHEAD = 3  # tokens that must be there beyond those of a piece
TOKENS_S = 25  # speech tokens a second of audio


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the text, spoken in one go. expected: speech tokens that it should take; most: where it is stopped."""

    text: str
    expected: int
    most: int


@dataclass(slots=True, eq=False)
class Request:
    """What is asked for, and its state. Instants are the loop's clock."""

    segments: Sequence[Segment]
    voice: str
    seed: int
    arrived_at: float
    deliver: Callable[[Pcm | Exception | None], None]  # called by the loop; None: that was all
    whole: bool = False  # nobody hears it before its end: it is never urgent, and made in one piece a segment
    number: int = -1  # of the segment being spoken
    slot: int | None = None
    tokens: list[int] = field(default_factory=list)  # of this segment
    drawn: int = 0  # tokens of this segment, with those that are no speech
    ended: bool = False  # no more tokens of this segment come
    made: int = 0  # tokens of this segment that are audio, or on their way to be
    hops: int = 0
    sounding: bool = False
    audio_s: float = 0.0
    first_at: float | None = None  # first audio handed over
    over: bool = False
    runaway: bool = False  # a segment was stopped far beyond its text
    state: Any = None  # the stages' own, of this segment

    @property
    def segment(self) -> Segment:
        return self.segments[self.number]

    @property
    def deadline(self) -> float:
        """When a listener who began at the first audio runs dry; before that, the past: it is late already."""
        return self.arrived_at if self.first_at is None else self.first_at + self.audio_s

    @property
    def has_more(self) -> bool:
        """Whether segments follow the one being spoken."""
        return self.number + 1 < len(self.segments)

    @property
    def next_hop(self) -> int:
        """Tokens that the next piece takes; 0 while they are not there."""
        left = len(self.tokens) - self.made
        if self.whole:
            return left if self.ended else 0
        hop = HOPS[min(self.hops, len(HOPS) - 1)]
        if self.ended:
            return min(left, hop)
        return hop if left >= hop + LOOKAHEAD else 0

    @property
    def is_last_piece(self) -> bool:
        """Whether the next piece is the segment's last one."""
        return self.ended and self.made + self.next_hop == len(self.tokens)

    def begin_segment(self, slot: int) -> None:
        self.number += 1
        self.slot, self.tokens, self.ended = slot, [], False
        self.made = self.hops = self.drawn = 0
        self.state = None

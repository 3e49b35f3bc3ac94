"""Hear one agent: at playout, as its audio comes. Knows nothing of sockets, messages, turns or the clock.

Playout at prebuffer 0: a chunk plays when it has arrived and what came before it has played; an interruption clears
what has not yet played. A level gate opens a *stretch* of speech; the ear (VAD, backdated) then says where its voice
really begins, or that it is none. A stretch ends with half a second without anything loud.

Audio that comes later than the end of what played before leaves a hole. It is a stall where the speech before it broke
off; it is a pause that the server meant where that had ended: with quiet, with the server's word, or with a chunk
shorter than all others.
"""

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from workers.audio.containers import Samples
from workers.audio.gate import WINDOW_S, first_loud_sample

STRETCH_GAP_S = 0.5  # quiet for longer parts two stretches of speech
_ANSWER_GAP_S = 0.2  # the same, where the user's last word lies in it: what follows is the answer
CONTEXT_S = 0.3  # what the ear gets before and after the place in question
_RING_S, _RING_MOST_S = 0.6, 0.9  # so long before the latest chunk is remembered: at least, at most
_HOLE_S = 0.005  # later than that is a hole, which may be meant
_CATCH_UP_S = 0.5  # after a longer hole an agent begins anew, it does not make up for what is late
_NEW_RUN_S = 0.05  # a longer hole parts two runs of audio: their samples are not neighbours
_ENDED_QUIET_S = 0.1  # quiet before a hole: the utterance had ended
_TAIL_S = 0.25  # quiet after which what surrounds the end of the voice is put aside for the ear
_NOT_AGAIN_S = 0.2  # after the ear said no, for this long

Ask = Callable[[str, list[Any], Callable[[Any], None]], None]


class Piece(NamedTuple):
    """One chunk at playout: int16 mono bytes, when it plays, when it came and how narrowly that is known."""

    pcm: bytes
    play_at: float
    at: float
    width_s: float
    serial: int


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
        "onset_width_s",
    )

    def __init__(self, piece: Piece, audible_at: float) -> None:
        self.audible_at, self.audible_width_s = audible_at, piece.width_s
        self.arrived_at = piece.at
        self.first_chunk_at = self.first_chunk_width_s = 0.0  # of the run of audio it stands in
        self.last_loud_at = audible_at
        self.onset_at = self.onset_width_s = self.onset_arrival_at = 0.0
        self.by: str | None = None  # who found the onset; None: not yet known
        self.cut_off = False  # cleared while it was audible


class Utterance:
    """Chunks of one stretch of audio without a meant pause, for the playout model."""

    __slots__ = ("at", "latest_s", "media_s")

    def __init__(self, plays_at: float) -> None:
        self.at, self.media_s = array("d", (plays_at,)), array("d", (0.0,))
        self.latest_s = 0.0


class Hearing:
    """One agent's voice as a listener at prebuffer 0 hears it."""

    def __init__(
        self,
        threshold: int,
        ask: Ask,
        later: Callable[[float, Callable[[], None]], object],
        on_change: Callable[[], None],
    ) -> None:
        """threshold: int16 amplitude of the gate. ask(verb, arguments, then): the ear. later(instant, action): a timer.
        on_change: something a waiting caller may want to know."""
        self._threshold, self._ask, self._later, self._on_change = threshold, ask, later, on_change
        self.keep: list[Piece] | None = None  # every piece heard since the turn began, where they are kept
        self.rate = 0
        self.bytes_received = 0
        self._busy = False  # somebody wants the pieces: `keep`, or the ear
        self.playhead = self._playhead_width_s = 0.0
        self._hole_s = 0.0  # the playout's last wait, as far as it has not caught up with it
        self._serial = 0
        self._ring: deque[Any] = deque()  # pieces, as plain tuples
        self._ring_bytes = self._ring_most_bytes = 0
        self._run_began_at = self._run_width_s = 0.0
        self._quiet_from: float | None = None  # playout instant of the end of the last loud window
        self._last_loud: tuple[int, int] = (0, 0)  # serial, sample after the window
        self._usual_bytes = self._last_bytes = self._before_bytes = 0
        self._length_s = 0.0  # of a chunk of `_last_bytes`
        self._window = 1  # samples
        self._alike = True  # all chunks of this utterance but the last are of one size
        self._said_stopped = False
        self._deaf_until = 0.0
        self._asking: tuple[Stretch, list[Piece], int, int] | None = (
            None  # stretch, snippet, coarse, bytes still wanted
        )
        self._tail: tuple[int, list[Any]] | None = None  # rate and pieces around the end of the last loud window
        self._recent: Stretch | None = None  # the latest stretch
        # What was the latest before it, with its last loud window and tail: should the ear say that it was none.
        self._before: tuple[Stretch | None, tuple[int, int], tuple[int, list[Any]] | None] = (None, (0, 0), None)
        self._cleared = False  # what comes next is new
        self.begin_turn()

    def begin_turn(self, keep: bool = False) -> None:
        """Count anew; a stretch under way goes on, and stays known as one that began before. keep: the pieces."""
        self.keep = [] if keep else None
        self._busy = keep or self._asking is not None
        self.stretches: list[Stretch] = []
        self.older = self._recent
        self.utterances: list[Utterance] = []
        self._utterance: Utterance | None = None
        self._utterance_is_older = False  # it goes on with what was said before this turn
        self.chunks = 0
        self._bytes_before = self.bytes_received
        self.last_chunk_at = self.largest_gap_s = 0.0
        self.cleared = 0
        self.user_offset_at = 0.0  # for whoever speaks to say

    @property
    def audio_bytes(self) -> int:
        """Of this turn."""
        return self.bytes_received - self._bytes_before

    @property
    def last_loud_at(self) -> float:
        """The end of the last loud window at playout, 0.0 before the first."""
        return self._recent.last_loud_at if self._recent is not None else 0.0

    @property
    def last_began_at(self) -> float:
        """The first audible sample of the latest stretch at playout, 0.0 before the first."""
        return self._recent.audible_at if self._recent is not None else 0.0

    # ---- as audio comes

    def hear(self, pcm: bytes, rate: int, at: float, width_s: float, loud: tuple[int, int]) -> None:
        """A chunk arrived at `at`, or up to `width_s` earlier; `loud`: its first and last loud window (gate.py).

        Called fifty times a second for each of a thousand calls: what can be told later is told later.
        """
        size = len(pcm)
        if rate != self.rate or size != self._last_bytes:
            self._another_kind(rate, size)
        self.bytes_received += size
        self.chunks += 1
        waited_s = at - self.last_chunk_at
        if waited_s > self.largest_gap_s and self.chunks > 1:
            self.largest_gap_s = waited_s
        self.last_chunk_at = at
        play_at = self.playhead
        if at > play_at:
            if at - play_at > _HOLE_S:
                self._after_hole(at, width_s)
            before_s = self._hole_s if self._utterance is not None else 0.0
            self._hole_s = before_s + at - play_at if at - play_at < _CATCH_UP_S else 0.0
            play_at = at
            self._playhead_width_s = width_s
        elif self._hole_s and self._utterance is None:
            # The hole was silence already: a player leaves out as much of the silence that follows.
            silent_from = max(at, play_at if self._quiet_from is None else self._quiet_from)
            skipped_s = max(0.0, min(self._hole_s, play_at - silent_from))
            self._hole_s -= skipped_s
            play_at -= skipped_s
            self._playhead_width_s = width_s
        self.playhead = play_at + self._length_s
        # Not by its name: a tuple is made in a fifth of the time.
        piece: Any = (pcm, play_at, at, self._playhead_width_s, self._serial)
        self._serial += 1
        self._ring.append(piece)
        self._ring_bytes += size
        if self._ring_bytes > self._ring_most_bytes:
            self._trim()
        if self._busy:
            self._attend(piece)
        if self._utterance is not None:
            self._note(self._utterance, at)
        if loud[0] >= 0:
            self._hear_loud(piece, loud)
        elif self._quiet_from is None:
            self._quiet_from = play_at
        elif play_at - self._quiet_from > _TAIL_S and (self._tail is None or self._utterance is not None):
            self._fall_silent()
        self._before_bytes = size

    def _another_kind(self, rate: int, size: int) -> None:
        """The chunk's rate or size is not that of the last one."""
        if rate != self.rate:
            if self.rate:
                self._break_run()
                self._end_utterance()
            self.rate, self._window = rate, max(1, int(rate * WINDOW_S))
        self._last_bytes, self._length_s = size, size / (2 * rate)
        self._ring_most_bytes = round(_RING_MOST_S * rate) * 2 + size

    def _trim(self) -> None:
        least_bytes = _RING_S * 2 * self.rate + self._last_bytes  # so long before the latest one
        ring = self._ring
        while self._ring_bytes - len(ring[0][0]) >= least_bytes:
            self._ring_bytes -= len(ring.popleft()[0])

    def _fall_silent(self) -> None:
        if self._tail is None:
            self._tail = (self.rate, list(self._ring))
        self._end_utterance()  # late silence is no stall

    def _attend(self, piece: Any) -> None:
        if self.keep is not None:
            self.keep.append(Piece(*piece))
        if self._asking is not None:
            self._more_for_the_ear(Piece(*piece))

    def _hear_loud(self, piece: Any, loud: tuple[int, int]) -> None:
        size, play_at = len(piece[0]), piece[1]
        after = min(size // 2, (loud[1] + 1) * self._window)
        ends_at = play_at + after / self.rate
        self._quiet_from = ends_at if 2 * after < size else None
        if self._utterance is None:
            self._utterance, self._usual_bytes, self._alike = Utterance(play_at), size, True
            self._said_stopped = False
            self._utterance_is_older = self.older is not None and not self.stretches
        if play_at < self._deaf_until:
            return
        recent = self._recent
        begins_at = play_at + loud[0] * self._window / self.rate
        quiet_s = begins_at - recent.last_loud_at if recent is not None else STRETCH_GAP_S
        if (
            recent is None
            or self._cleared
            or (
                quiet_s > _ANSWER_GAP_S
                and (quiet_s > STRETCH_GAP_S or recent.last_loud_at < self.user_offset_at <= begins_at)
            )
        ):
            recent = self._open(Piece(*piece), loud[0] * self._window)
        recent.last_loud_at = ends_at
        self._last_loud = (piece[4], after)
        self._tail = None

    def _open(self, piece: Piece, near: int) -> Stretch:
        self._ask_for_onset()  # of the one before, if it still waits for more
        inside = near + first_loud_sample(piece.pcm[2 * near :], self._threshold)
        stretch = Stretch(piece, piece.play_at + inside / self.rate)
        if not self._run_began_at:
            self._run_began_at, self._run_width_s = self._ring[0][2], self._ring[0][3]
        stretch.first_chunk_at, stretch.first_chunk_width_s = self._run_began_at, self._run_width_s
        if self._utterance is not None and self._utterance_is_older:
            self._utterance, self._utterance_is_older = Utterance(piece.play_at), False
        self._before = (self._recent, self._last_loud, self._tail or (self.rate, list(self._ring)))
        self._cleared = False
        self.stretches.append(stretch)
        self._recent = stretch
        snippet = [Piece(*before) for before in self._ring]
        coarse = sum(len(before.pcm) for before in snippet[:-1]) // 2 + inside
        wanted = int(CONTEXT_S * self.rate) * 2 - (len(piece.pcm) - 2 * inside)
        self._asking = (stretch, snippet, coarse, wanted)
        self._busy = True
        if wanted <= 0:
            self._ask_for_onset()
        else:
            self._later(self.playhead + CONTEXT_S, lambda: self._ask_if_still(stretch))
        return stretch

    def _note(self, utterance: Utterance, at: float) -> None:
        before_bytes = self._before_bytes
        media_s = utterance.media_s[-1] + before_bytes / (2 * self.rate)
        utterance.at.append(at)
        utterance.media_s.append(media_s)
        late_s = at - utterance.at[0] - media_s
        if late_s > utterance.latest_s:  # noqa: PLR1730 - once a chunk: a call costs
            utterance.latest_s = late_s
        if before_bytes != self._usual_bytes:
            self._alike = False

    def _after_hole(self, at: float, width_s: float) -> None:
        """The playout ran dry before this chunk came."""
        if self._utterance is not None and self._meant():
            self._end_utterance()
        if at - self.playhead > _NEW_RUN_S:
            self._break_run()
            self._run_began_at, self._run_width_s = at, width_s

    def _meant(self) -> bool:
        """Whether the audio before the hole had come to an end of its own."""
        utterance = self._utterance
        alike = self._alike and utterance is not None and len(utterance.at) > 3
        quiet = self._quiet_from is not None and self.playhead - self._quiet_from >= _ENDED_QUIET_S
        return self._said_stopped or quiet or (alike and self._before_bytes < self._usual_bytes)

    def _break_run(self) -> None:
        """What comes next does not follow on what came before."""
        self._ask_for_onset()
        if self._tail is None and self._recent is not None:
            self._tail = (self.rate, list(self._ring))
        self._ring.clear()
        self._ring_bytes = 0

    def _end_utterance(self) -> None:
        self.utterances = self.utterances_so_far()
        self._utterance = None

    def clear(self, at: float) -> bool:
        """The server threw away at `at` what had not yet played; whether anything audible was cut off by that."""
        was_audible = self._recent is not None and self._recent.last_loud_at > at - 0.05
        self.cleared += 1
        self._cleared = self._said_stopped = True
        self._run_began_at = 0.0
        if self.playhead > at:
            self.playhead = at
            while self.stretches and self.stretches[-1].audible_at >= at:
                gone = self.stretches.pop()
                if self._asking is not None and self._asking[0] is gone:
                    self._asking = None
                self._recent = self.stretches[-1] if self.stretches else self.older
                self._last_loud = (-1, 0)  # was in what is gone
            if self._recent is not None and self._recent.last_loud_at > at:
                self._recent.last_loud_at, self._recent.cut_off = at, True
            if self.keep is not None:
                self.keep[:] = [_until(at, piece, self.rate) for piece in self.keep if piece.play_at < at]
        self._break_run()
        self._end_utterance()
        return was_audible

    def agent_said_stop(self) -> None:
        """The server says that its agent has stopped speaking: a hole from here on was meant."""
        self._said_stopped = True

    def utterances_so_far(self) -> list[Utterance]:
        """The utterances of this turn, the one under way included."""
        if self._utterance is None or self._utterance_is_older:
            return self.utterances
        return [*self.utterances, self._utterance]

    # ---- with the ear

    def _more_for_the_ear(self, piece: Piece) -> None:
        assert self._asking is not None
        stretch, snippet, coarse, wanted = self._asking
        snippet.append(piece)
        wanted -= len(piece.pcm)
        self._asking = (stretch, snippet, coarse, wanted)
        if wanted <= 0:
            self._ask_for_onset()

    def _ask_if_still(self, stretch: Stretch) -> None:
        if self._asking is not None and self._asking[0] is stretch:
            self._ask_for_onset()

    def _ask_for_onset(self) -> None:
        if self._asking is None:
            return
        stretch, snippet, coarse, _ = self._asking
        self._asking, self._busy = None, self.keep is not None
        # Nothing is put where nothing came: the ear would take silence of ours for the agent's room.
        pcm, rate = b"".join(piece.pcm for piece in snippet), self.rate

        def then(answer: Any) -> None:
            if isinstance(answer, Exception):  # the ear was lost: the gate's word has to do
                _place(stretch, snippet, coarse, rate, "gate")
            elif answer is None:
                self._forget(stretch)
            else:
                _place(stretch, snippet, int(answer), rate, "ear")
                # Not the first loud sample where the ear had just said no to something before it.
                loud = int(answer) + first_loud_sample(pcm[2 * int(answer) :], self._threshold)
                stretch.audible_at = min(stretch.audible_at, _at(snippet, loud, rate)[0])
            self._on_change()

        self._ask("onset", [pcm, rate, coarse], then)

    def _forget(self, stretch: Stretch) -> None:
        """It was no speech."""
        if stretch in self.stretches:
            self.stretches.remove(stretch)
        if self.older is stretch:
            self.older = self._before[0]
        if self._recent is stretch:
            self._recent, self._last_loud, self._tail = self._before
            self._deaf_until = self.playhead + _NOT_AGAIN_S

    def ask_for_offset(self, then: Callable[[float | None], None]) -> None:
        """Where the agent's voice really ended, for the latest stretch; None where only the gate can tell."""
        recent = self._recent
        rate, pieces = (self.rate, list(self._ring)) if self._tail is None else self._tail
        tail = [Piece(*piece) for piece in pieces]
        serial, after = self._last_loud
        before = [piece for piece in tail if piece.serial <= serial]
        if recent is None or recent.cut_off or not before or before[-1].serial != serial:
            then(None)
            return
        coarse = sum(len(piece.pcm) for piece in before[:-1]) // 2 + after
        pcm = b"".join(piece.pcm for piece in tail)
        gate_says = recent.last_loud_at

        def answered(answer: Any) -> None:
            then(gate_says + (answer - coarse) / rate if isinstance(answer, int) else None)

        self._ask("offset", [pcm, rate, coarse], answered)


def _until(at: float, piece: Piece, rate: int) -> Piece:
    """What of a piece had played at `at`."""
    return piece._replace(pcm=piece.pcm[: 2 * round((at - piece.play_at) * rate)])


def _place(stretch: Stretch, snippet: list[Piece], position: int, rate: int, by: str) -> None:
    """Turn a position in a snippet's samples into instants of the stretch."""
    stretch.onset_at, piece = _at(snippet, position, rate)
    stretch.onset_width_s, stretch.onset_arrival_at, stretch.by = piece.width_s, piece.at, by
    if not stretch.first_chunk_at:
        stretch.first_chunk_at, stretch.first_chunk_width_s = snippet[0].at, snippet[0].width_s


def _at(snippet: list[Piece], position: int, rate: int) -> tuple[float, Piece]:
    """When a sample of a snippet plays, and the piece it is in."""
    starts = [0]
    for piece in snippet[:-1]:
        starts.append(starts[-1] + len(piece.pcm) // 2)
    position = max(0, position)
    index = bisect_right(starts, position) - 1
    return snippet[index].play_at + (position - starts[index]) / rate, snippet[index]


def samples_of(pieces: list[Piece]) -> Samples:
    """The samples of pieces, one after the other, without the holes between them."""
    return np.frombuffer(b"".join(piece.pcm for piece in pieces), np.int16) if pieces else np.empty(0, np.int16)

"""Hear one agent: at playout, as its audio comes. Knows nothing of sockets, messages, turns or the clock.

Playout at prebuffer 0: a chunk plays when it has arrived and what came before it has played; an interruption clears
what has not yet played. A level gate opens a *stretch* of speech; the ear (VAD, backdated) then says where its voice
really begins, or that it is none: then the stretch begins with what was loud next. It ends with half a second without
anything loud.

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
_NOT_AGAIN_S = 0.1  # after a place that the ear said no to, for this long,
_NOT_THE_SAME_S = 0.5  # and for this long where it has been loud ever since
_SAME_SOUND_S = 0.05  # quiet for longer is an end of that
_HELD_S = 4.0  # of what came after a place are held until the ear has answered

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


# What was the latest stretch before another, with its last loud window (serial, sample after it) and its tail (rate,
# pieces): should the ear say that the other was none.
_Before = tuple[Stretch | None, tuple[int, int], tuple[int, list[Any]] | None]


class Utterance:
    """Chunks of one stretch of audio without a meant pause, for the playout model."""

    __slots__ = ("at", "latest_s", "media_s")

    def __init__(self, plays_at: float) -> None:
        self.at, self.media_s = array("d", (plays_at,)), array("d", (0.0,))
        self.latest_s = 0.0


class _Question:
    """Whether a stretch began with a voice, and where: for the ear, until it has answered."""

    __slots__ = ("asked", "before", "coarse", "pieces", "rate", "room", "stretch", "wanted")

    def __init__(self, stretch: Stretch, pieces: list[Piece], coarse: int, rate: int, before: _Before) -> None:
        """pieces: around the place that is loud, and what came since. coarse: that place, in their samples."""
        self.stretch, self.pieces, self.coarse, self.rate, self.before = stretch, pieces, coarse, rate, before
        after = sum(len(piece.pcm) for piece in pieces) - 2 * coarse
        self.wanted = int(CONTEXT_S * rate) * 2 - after  # bytes that it still waits for
        self.room = int(_HELD_S * rate) * 2 - after  # bytes that it may hold yet
        self.asked = False


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
        self._asking: _Question | None = None  # the latest, as long as it may want what comes
        self._unanswered: list[_Question] = []
        self._tail: tuple[int, list[Any]] | None = None  # rate and pieces around the end of the last loud window
        self._recent: Stretch | None = None  # the latest stretch
        self._cleared = False  # what comes next is new
        self.begin_turn()

    def begin_turn(self, keep: bool = False) -> None:
        """Count anew; a stretch under way goes on, and stays known as one that began before. keep: the pieces."""
        self.keep = [] if keep else None
        self._busy = keep or self._asking is not None
        self.stretches: list[Stretch] = []
        self.older = self._recent
        self._turn_from = self._serial
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
                self._asking, self._busy = None, self.keep is not None  # pieces of one question are of one rate
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
        before = (self._recent, self._last_loud, self._tail or (self.rate, list(self._ring)))
        self._cleared = False
        self.stretches.append(stretch)
        self._recent = stretch
        snippet = [Piece(*before) for before in self._ring]
        coarse = sum(len(before.pcm) for before in snippet[:-1]) // 2 + inside
        self._attend_to(_Question(stretch, snippet, coarse, self.rate, before))
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
                if self._asking is not None and self._asking.stretch is gone:
                    self._asking, self._busy = None, self.keep is not None
                self._recent = self.stretches[-1] if self.stretches else self.older
                self._last_loud = (-1, 0)  # was in what is gone
            if self._recent is not None and self._recent.last_loud_at > at:
                self._recent.last_loud_at, self._recent.cut_off = at, True
            if self.keep is not None:
                self.keep[:] = [_until(at, piece, self.rate) for piece in self.keep if piece.play_at < at]
        self._break_run()
        self._end_utterance()
        self.utterances = [utterance for utterance in self.utterances if utterance.at[0] < at]
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

    def _attend_to(self, question: _Question) -> None:
        """Ask it as soon as there is enough, and hold what comes until it is answered."""
        self._asking, self._busy = question, True
        self._unanswered.append(question)
        if question.wanted <= 0:
            self._ask_for_onset()
        else:
            self._later(self.playhead + CONTEXT_S, lambda: self._ask_if_still(question))

    def _more_for_the_ear(self, piece: Piece) -> None:
        question = self._asking
        assert question is not None
        question.pieces.append(piece)
        question.wanted -= len(piece.pcm)
        question.room -= len(piece.pcm)
        if question.wanted <= 0 and not question.asked:
            self._ask_for_onset()
        if question.room <= 0 and self._asking is question:
            self._asking, self._busy = None, self.keep is not None

    def _ask_if_still(self, question: _Question) -> None:
        if self._asking is question:
            self._ask_for_onset()

    def _ask_for_onset(self) -> None:
        if self._asking is not None and not self._asking.asked:
            self._ask_about(self._asking)

    def _ask_about(self, question: _Question) -> None:
        question.asked = True
        stretch, rate = question.stretch, question.rate
        # Nothing is put where nothing came: the ear would take silence of ours for the agent's room.
        pcm = _pcm(question.pieces)[: 2 * (question.coarse + int(CONTEXT_S * rate))]

        def then(answer: Any) -> None:
            self._unanswered.remove(question)
            if answer is None:
                self._said_no(question)
            else:
                if self._asking is question:
                    self._asking, self._busy = None, self.keep is not None
                if isinstance(answer, Exception):  # the ear was lost: the gate's word has to do
                    _place(stretch, question.pieces, question.coarse, rate, "gate")
                else:
                    _place(stretch, question.pieces, int(answer), rate, "ear")
                    # The gate's place may be inside the voice, or a click before it.
                    loud = int(answer) + first_loud_sample(pcm[2 * int(answer) :], self._threshold)
                    _begin(stretch, *_at(question.pieces, loud, rate))
            self._on_change()

        self._ask("onset", [pcm, rate, question.coarse], then)

    def _said_no(self, question: _Question) -> None:
        """It was no speech. What was loud after it may be: all of it may have come before it plays."""
        latest, stretch = self._asking is question, question.stretch
        if latest:
            self._asking, self._busy = None, self.keep is not None
        if stretch not in self.stretches and stretch is not self.older and stretch is not self._recent:
            return
        next_at, not_before = self._next_loud(question)
        if next_at is None:
            self._forget(question, not_before)
            return
        again = self._begun_at(question, next_at)
        if latest:
            self._attend_to(again)
        else:
            self._unanswered.append(again)
            self._ask_about(again)

    def _next_loud(self, question: _Question) -> tuple[int | None, float]:
        """The sample with which the stretch is loud anew; or None, and the instant before which nothing will be."""
        pieces, rate, stretch = question.pieces, question.rate, question.stretch
        rejected_at = _at(pieces, question.coarse, rate)[0]
        samples = samples_of(pieces)[question.coarse :]
        loud = question.coarse + np.flatnonzero((samples >= self._threshold) | (samples <= -self._threshold))
        sizes = np.array([len(piece.pcm) // 2 for piece in pieces])
        starts = np.cumsum(sizes) - sizes
        index = np.searchsorted(starts, loud, "right") - 1
        at = np.array([piece.play_at for piece in pieces])[index] + (loud - starts[index]) / rate
        quiet_s = np.diff(at, prepend=rejected_at)
        anew = (at >= rejected_at + _NOT_AGAIN_S) & (quiet_s > _SAME_SOUND_S) | (at >= rejected_at + _NOT_THE_SAME_S)
        if self._recent is not stretch or self._cleared or stretch.cut_off:
            anew &= at < stretch.last_loud_at  # what comes later is another's
        if anew.any():
            return int(loud[anew.argmax()]), 0.0
        ends_at = pieces[-1].play_at + len(pieces[-1].pcm) / (2 * rate)
        goes_on = at.size and ends_at - at[-1] <= _SAME_SOUND_S
        return None, rejected_at + (_NOT_THE_SAME_S if goes_on else _NOT_AGAIN_S)

    def _begun_at(self, question: _Question, position: int) -> _Question:
        """The stretch begins with this sample instead: the question about that."""
        stretch, pieces, rate = question.stretch, question.pieces, question.rate
        begins_at, piece = _at(pieces, position, rate)
        _begin(stretch, begins_at, piece)
        stretch.last_loud_at = max(stretch.last_loud_at, begins_at)
        if stretch is self.older and piece.serial >= self._turn_from:
            self.older = question.before[0]
            self.stretches.insert(0, stretch)
        # From the run's first piece or, where that is longer ago, from one long enough before.
        first = pieces.index(piece)
        while first and begins_at - pieces[first].play_at < _RING_S:
            last = pieces[first - 1]
            if pieces[first].play_at - last.play_at - len(last.pcm) / (2 * rate) > _NEW_RUN_S:
                stretch.first_chunk_at, stretch.first_chunk_width_s = pieces[first].at, pieces[first].width_s
                break
            first -= 1
        coarse = position - sum(len(piece.pcm) // 2 for piece in pieces[:first])
        return _Question(stretch, pieces[first:], coarse, rate, question.before)

    def _forget(self, question: _Question, not_before: float) -> None:
        """There was no speech in it."""
        stretch = question.stretch
        if stretch in self.stretches:
            self.stretches.remove(stretch)
        if self.older is stretch:
            self.older = question.before[0]
        for later in self._unanswered:
            if later.before[0] is stretch:
                later.before = question.before
        if self._recent is stretch:
            self._recent, self._last_loud, self._tail = question.before
            self._deaf_until = not_before

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


def _begin(stretch: Stretch, audible_at: float, piece: Piece) -> None:
    """It is in this piece that it begins to be audible."""
    stretch.audible_at, stretch.audible_width_s, stretch.arrived_at = audible_at, piece.width_s, piece.at


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
    return np.frombuffer(_pcm(pieces), np.int16) if pieces else np.empty(0, np.int16)


def _pcm(pieces: list[Piece]) -> bytes:
    return b"".join(piece.pcm for piece in pieces)

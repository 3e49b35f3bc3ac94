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
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from workers.audio.gate import WINDOW_S, first_loud_sample
from workers.audio.pieces import Block, Piece, pieces_of, until
from workers.audio.stretches import CONTEXT_S, NEW_RUN_S, RING_S, Before, Question, Stretch, Utterance, around

STRETCH_GAP_S = 0.5  # quiet for longer parts two stretches of speech
_ANSWER_GAP_S = 0.2  # the same, where the user's last word lies in it: what follows is the answer
_RING_MOST_S = 0.9  # so long before the latest chunk is remembered at most
_HOLE_S = 0.005  # later than that is a hole, which may be meant
_CATCH_UP_S = 0.5  # after a longer hole an agent begins anew, it does not make up for what is late
_STANDS_S = 0.3  # so long silence has waited its turn: what it waited for is drained,
_SILENT_S = 1.0  # where it is no pause within an answer,
_OLD_RUN_S = 2.0  # and no silence that an answer begins with
_ENDED_QUIET_S = 0.1  # quiet before a hole: the utterance had ended
_UNHEARD_S = 0.5
_TAIL_S = 0.25  # quiet after which what surrounds the end of the voice is put aside for the ear

Ask = Callable[[str, list[Any], Callable[[Any], None]], None]


class Hearing:
    """One agent's voice as a listener at prebuffer 0 hears it."""

    def __init__(
        self,
        threshold: int,
        ask: Ask,
        later: Callable[[float, Callable[[], None]], object],
        on_change: Callable[[], None],
        *,
        unheard_s: float = _UNHEARD_S,
    ) -> None:
        """threshold: int16 amplitude of the gate. ask(verb, arguments, then): the ear. later(instant, action): a timer.
        on_change: something a waiting caller may want to know. unheard_s: what came may be handed over so much later.
        """
        self._unheard_s = unheard_s
        self._threshold, self._ask, self._later, self._on_change = threshold, ask, later, on_change
        self.keep: list[Piece] | None = None  # every piece heard since the turn began, where they are kept
        self.rate = 0
        self.bytes_received = 0
        self.playhead = self._playhead_width_s = 0.0
        self._hole_s = 0.0  # the playout's last wait, as far as it has not caught up with it
        self._serial = 0
        self._ring: deque[Block] = deque()
        self._ring_bytes = self._ring_most_bytes = 0
        self._run_began_at = self._run_width_s = 0.0
        self._quiet_from: float | None = None  # playout instant of the end of the last loud window
        self._last_loud: tuple[int, int] = (0, 0)  # serial, sample after the window
        self._last_bytes, self._length_s = 0, 0.0  # of the last chunk
        self._window = 1  # samples
        self._said_stopped = False
        self._deaf_until = 0.0
        self._asking: Question | None = None  # the latest, as long as it may want what comes
        self._unanswered: list[Question] = []
        self._tail: tuple[int, list[Block]] | None = None  # rate and blocks around the end of the last loud window
        self._recent: Stretch | None = None  # the latest stretch
        self._cleared = False  # what comes next is new
        self.begin_turn()

    def begin_turn(self, keep: bool = False) -> None:
        """Count anew; a stretch under way goes on, and stays known as one that began before. keep: the pieces."""
        self.keep = [] if keep else None
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

    def hear(self, pcm: bytes, rate: int, instants: "array[float]", loud: Sequence[tuple[int, int]]) -> None:
        """Chunks of one size came, one after the other; all their bytes are in `pcm`.

        instants: two of each, it came at the first, but not before the second. loud: of each, its first and its last
        loud window (gate.py). Whether chunks come in one call or in several changes nothing that is heard.
        """
        # A thousand calls have fifty chunks a second each: a microsecond in this loop is a twentieth of a core.
        count = len(loud)
        size = len(pcm) // count
        if rate != self.rate or size != self._last_bytes:
            self._another_kind(rate, size)
        block = Block(pcm, instants, self._serial, position=self.bytes_received // 2)
        played = block.played.append
        self._serial += count
        self.bytes_received += len(pcm)
        self.chunks += count
        last_at = self.last_chunk_at or instants[0]
        length_s, playhead = self._length_s, self.playhead
        pairs = iter(instants)
        for k, (at, empty_at) in enumerate(zip(pairs, pairs, strict=True)):
            if at - last_at > self.largest_gap_s:  # noqa: PLR1730 - a call costs
                self.largest_gap_s = at - last_at
            play_at = playhead
            if at > play_at or self._hole_s:
                if at - play_at > _HOLE_S:
                    self._remember(block)
                    self._after_hole(at, at - empty_at)
                play_at = self._play_from(play_at, at, at - empty_at)
            if loud[k][0] >= 0 and self._utterance is None and play_at > at:
                self._remember(block)
                play_at = self._drained(play_at, at)
            self.playhead = playhead = play_at + length_s
            played(play_at)
            played(self._playhead_width_s)
            if self._utterance is not None:
                self._utterance.came(at, empty_at, in_one_read=at == last_at)
            last_at = at
            if loud[k][0] >= 0:
                self._hear_loud(block, k, play_at, loud[k])
            elif self._quiet_from is None:
                self._quiet_from = play_at
            elif play_at - self._quiet_from > _TAIL_S and (self._tail is None or self._utterance is not None):
                self._remember(block)
                self._fall_silent()
        self.last_chunk_at = last_at
        self._remember(block)

    def _play_from(self, play_at: float, at: float, width_s: float) -> float:
        """When a chunk plays that came at `at`, where what came before has played at `play_at`, or may catch up."""
        if at > play_at:
            before_s = self._hole_s if self._utterance is not None else 0.0
            self._hole_s = before_s + at - play_at if at - play_at < _CATCH_UP_S else 0.0
            play_at = at
            self._playhead_width_s = width_s
        elif self._utterance is None:
            # The hole was silence already: a player leaves out as much of the silence that follows.
            silent_from = max(at, play_at if self._quiet_from is None else self._quiet_from)
            skipped_s = max(0.0, min(self._hole_s, play_at - silent_from))
            self._hole_s -= skipped_s
            play_at -= skipped_s
            self._playhead_width_s = width_s
        return play_at

    def _drained(self, play_at: float, at: float) -> float:
        """When the first loud chunk plays, which came at `at`, where silence is still to be played before it.

        Silence that has waited its turn for a while, all of it alike, stands in a queue that a player drains: an agent
        that never stops sending would else be heard late for good because its first chunks came together. One that
        sends faster than it speaks fills the queue, and is heard from it.
        """
        quiet_from = self._quiet_from
        if quiet_from is None or at - quiet_from < _SILENT_S or at - self._run_began_at < _OLD_RUN_S:
            return play_at
        least_s, width_s = play_at - at, self._playhead_width_s
        for block in reversed(self._ring):
            for k in range(len(block.played) - 2, -1, -2):
                came_at, waited_s = block.instants[k], block.played[k] - block.instants[k]
                if block.played[k] < quiet_from:
                    return play_at
                if waited_s < least_s:
                    least_s, width_s = waited_s, came_at - block.instants[k + 1]
                if at - came_at >= _STANDS_S:
                    if play_at - at - waited_s > _HOLE_S:
                        return play_at
                    self._hole_s = max(0.0, self._hole_s - least_s)
                    self._playhead_width_s = width_s
                    return play_at - least_s
        return play_at

    def _another_kind(self, rate: int, size: int) -> None:
        """The chunks' rate or size is not that of the last one."""
        if rate != self.rate:
            if self.rate:
                self._break_run()
                self._end_utterance()
                self._asking = None  # pieces of one question are of one rate
            self.rate, self._window = rate, max(1, int(rate * WINDOW_S))
        self._last_bytes, self._length_s = size, size / (2 * rate)
        if self._utterance is not None:
            self._utterance.resized(self._length_s)
        self._ring_most_bytes = round(_RING_MOST_S * rate) * 2 + size

    def _remember(self, block: Block) -> None:
        """Put those of its chunks that were looked at into the ring."""
        part = block.take()
        if part is None:
            return
        if not self._run_began_at:
            self._run_began_at = part.instants[0]
            self._run_width_s = part.instants[0] - part.instants[1]
        self._ring.append(part)
        self._ring_bytes += len(part.pcm)
        if self._ring_bytes > self._ring_most_bytes:
            self._trim()
        if self.keep is not None:
            self.keep += part.pieces()
        if self._asking is not None:
            self._more_for_the_ear(self._asking, part)

    def _trim(self) -> None:
        least_bytes = RING_S * 2 * self.rate + self._last_bytes  # so long before the latest one
        ring = self._ring
        while self._ring_bytes - len(ring[0].pcm) >= least_bytes:
            self._ring_bytes -= len(ring.popleft().pcm)

    def _fall_silent(self) -> None:
        if self._tail is None:
            self._tail = (self.rate, list(self._ring))
        self._end_utterance()  # late silence is no stall

    def _hear_loud(self, block: Block, k: int, play_at: float, loud: tuple[int, int]) -> None:
        """Chunk k is loud, from its window loud[0] to its window loud[1]."""
        half = block.size // 2
        after = min(half, (loud[1] + 1) * self._window)
        ends_at = play_at + after / self.rate
        self._quiet_from = ends_at if after < half else None
        if self._utterance is None:
            self._utterance, self._said_stopped = Utterance(play_at, self._length_s), False
            self._utterance_is_older = self.older is not None and not self.stretches
        if play_at < self._deaf_until:
            return
        recent = self._recent
        if recent is None or self._cleared or self._parted(recent, play_at + loud[0] * self._window / self.rate):
            self._remember(block)
            recent = self._open(loud[0] * self._window)
        recent.last_loud_at = ends_at
        self._last_loud = (block.serial + k, after)
        self._tail = None

    def _parted(self, recent: Stretch, begins_at: float) -> bool:
        """Whether what is loud again at `begins_at` is another stretch."""
        quiet_s = begins_at - recent.last_loud_at
        return quiet_s > _ANSWER_GAP_S and (
            quiet_s > STRETCH_GAP_S or recent.last_loud_at < self.user_offset_at <= begins_at
        )

    def _open(self, near: int) -> Stretch:
        """A stretch begins in the latest chunk, in the window from sample `near` on."""
        self._ask_for_onset()  # of the one before, if it still waits for more
        pieces = pieces_of(self._ring)
        piece = pieces[-1]
        inside = near + first_loud_sample(piece.pcm[2 * near :], self._threshold)
        stretch = Stretch(piece, piece.play_at + inside / self.rate)
        stretch.first_chunk_at, stretch.first_chunk_width_s = self._run_began_at, self._run_width_s
        if self._utterance is not None and self._utterance_is_older:
            self._utterance, self._utterance_is_older = Utterance(piece.play_at, self._length_s), False
        before: Before = (self._recent, self._last_loud, self._tail or (self.rate, list(self._ring)))
        self._cleared = False
        self.stretches.append(stretch)
        self._recent = stretch
        coarse = sum(len(one.pcm) for one in pieces[:-1]) // 2 + inside
        self._attend_to(Question(stretch, pieces, coarse, self.rate, before))
        return stretch

    # ---- utterances, for the playout model

    def _after_hole(self, at: float, width_s: float) -> None:
        """The playout ran dry before this chunk came."""
        if self._utterance is not None and self._meant():
            self._end_utterance()
        if at - self.playhead > NEW_RUN_S:
            self._break_run()
            self._run_began_at, self._run_width_s = at, width_s

    def _meant(self) -> bool:
        """Whether the audio before the hole had come to an end of its own."""
        short = self._utterance is not None and self._utterance.ends_short
        quiet = self._quiet_from is not None and self.playhead - self._quiet_from >= _ENDED_QUIET_S
        return self._said_stopped or quiet or short

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

    def utterances_so_far(self) -> list[Utterance]:
        """The utterances of this turn, the one under way included."""
        if self._utterance is None or self._utterance_is_older:
            return self.utterances
        return [*self.utterances, self._utterance]

    # ---- what the server says of itself

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
                    self._asking = None
                self._recent = self.stretches[-1] if self.stretches else self.older
                self._last_loud = (-1, 0)  # was in what is gone
            if self._recent is not None and self._recent.last_loud_at > at:
                self._recent.last_loud_at, self._recent.cut_off = at, True
            if self.keep is not None:
                self.keep[:] = [until(at, piece, self.rate) for piece in self.keep if piece.play_at < at]
        self._break_run()
        self._end_utterance()
        self.utterances = [utterance for utterance in self.utterances if utterance.at[0] < at]
        return was_audible

    def agent_said_stop(self) -> None:
        """The server says that its agent has stopped speaking: a hole from here on was meant."""
        self._said_stopped = True

    # ---- with the ear

    def _attend_to(self, question: Question) -> None:
        """Ask it as soon as there is enough, and hold what comes until it is answered."""
        self._asking = question
        self._unanswered.append(question)
        if question.wanted <= 0:
            self._ask_for_onset()
        else:
            self._later(self.playhead + CONTEXT_S + self._unheard_s, lambda: self._ask_if_still(question))

    def _more_for_the_ear(self, question: Question, block: Block) -> None:
        question.more(block.pieces())
        if question.wanted <= 0 and not question.asked:
            self._ask_about(question)
        if question.room <= 0 and self._asking is question:
            self._asking = None

    def _ask_if_still(self, question: Question) -> None:
        if self._asking is question:
            self._ask_for_onset()

    def _ask_for_onset(self) -> None:
        if self._asking is not None and not self._asking.asked:
            self._ask_about(self._asking)

    def _ask_about(self, question: Question) -> None:
        question.asked = True
        pcm, skipped = question.snippet()

        def then(answer: Any) -> None:
            self._unanswered.remove(question)
            if answer is None:
                self._said_no(question)
            else:
                if self._asking is question:
                    self._asking = None
                if isinstance(answer, Exception):  # the ear was lost: the gate's word has to do
                    question.stretch.place(question.pieces, question.coarse, question.rate, "gate")
                else:
                    question.answered(skipped + int(answer), self._threshold)
            self._on_change()

        self._ask("onset", [pcm, question.rate, question.coarse - skipped], then)

    def _said_no(self, question: Question) -> None:
        """It was no speech. What was loud after it may be: all of it may have come before it plays."""
        latest, stretch = self._asking is question, question.stretch
        if latest:
            self._asking = None
        if stretch not in self.stretches and stretch is not self.older and stretch is not self._recent:
            return
        over = self._recent is not stretch or self._cleared or stretch.cut_off  # what comes later is another's
        next_at, not_before = question.next_loud(self._threshold, stretch.last_loud_at if over else float("inf"))
        if next_at is None:
            self._forget(question, not_before)
            return
        again, piece = question.begun_at(next_at)
        if stretch is self.older and piece.serial >= self._turn_from:
            self.older = question.before[0]
            self.stretches.insert(0, stretch)
        if latest:
            self._attend_to(again)
        else:
            self._unanswered.append(again)
            self._ask_about(again)

    def _forget(self, question: Question, not_before: float) -> None:
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
        rate, blocks = (self.rate, self._ring) if self._tail is None else self._tail
        serial, after = self._last_loud
        before, coarse = 0, -1  # samples
        for block in blocks:
            if block.serial <= serial < block.serial + len(block.played) // 2:
                coarse = before + (serial - block.serial) * (block.size // 2) + after
            before += len(block.pcm) // 2
        if recent is None or recent.cut_off or coarse < 0:
            then(None)
            return
        pcm, skipped = around(b"".join([block.pcm for block in blocks]), coarse, rate)
        coarse -= skipped
        gate_says = recent.last_loud_at

        def answered(answer: Any) -> None:
            then(gate_says + (answer - coarse) / rate if isinstance(answer, int) else None)

        self._ask("offset", [pcm, rate, coarse], answered)

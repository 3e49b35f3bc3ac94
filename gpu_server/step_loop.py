"""Run what the scheduler decides, step after step, in a thread of its own. Knows nothing of models or HTTP.

One turn of the loop: take what came from outside, give out slots, draw a token for every running request, make the
audio that is due, hand over what is ready. Tokens are looked at one step late, so that the device never waits for us.
"""

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol

from gpu_server.request import Request
from gpu_server.scheduler import QueueFull, Scheduler
from gpu_server.speech import Pcm

SAMPLE_RATE = 24_000
BEGIN_AT_ONCE = 16


class Drawn(Protocol):
    """Tokens on their way from the device."""

    def tokens(self) -> list[int]:
        """Wait for them: one a slot from 0 on, or one for each request that began."""


class Sounded(Protocol):
    """Audio on its way from the device."""

    def ready(self) -> bool:
        """Whether `pieces` would not wait."""

    def pieces(self) -> list[Pcm]:
        """Wait for it: what was made of each request, in the order asked."""


class Stages(Protocol):
    """The model, as the loop needs it. One thread calls it."""

    slots: int
    end_token: int
    speech_tokens: int  # tokens from here on are no speech
    closing: Sequence[int]  # tokens that follow the last one drawn
    never_ends: bool  # of random weights: the expected length is the length

    def begin(self, requests: list[Request]) -> Drawn:
        """Read their segments' texts into their slots and draw the first token of each."""

    def step(self, busy: int) -> Drawn:
        """Draw a token for each of the slots 0 … busy - 1."""

    def free(self, slot: int) -> None:
        """Nobody has the slot any more."""

    def shape(self, request: Request) -> Hashable:
        """Next pieces of equal shapes can be made together."""

    def sound(self, requests: list[Request]) -> Sounded:
        """Make the next piece of each: `next_hop` tokens from `made` on."""

    def close(self) -> None:
        """Give the device's memory back."""


class _Step(NamedTuple):
    drawn: Drawn
    of: list[tuple[int, Request, int]]  # place among the tokens, whose, which segment


class _Piece(NamedTuple):
    sounded: Sounded
    requests: list[Request]
    last: list[bool]


class StepLoop:
    """The thread. `submit` and `cancel` may be called from any other."""

    def __init__(self, stages: Stages, most_waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._stages, self._clock = stages, clock
        self._scheduler = Scheduler(stages.slots, most_waiting, stages.shape)
        self._lock = threading.Lock()  # over the scheduler's lists, between `submit` and the loop
        self._came: queue.SimpleQueue[Request | None] = queue.SimpleQueue()  # cancelled, or None: look again
        self._steps: deque[_Step] = deque()
        self._pieces: deque[_Piece] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="step-loop", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Speak it. Raises QueueFull, also once the loop is being closed."""
        with self._lock:
            if self._closing:
                raise QueueFull("the engine is being closed")
            self._scheduler.submit(request)
        self._came.put(None)

    def cancel(self, request: Request) -> None:
        """Nobody listens any more: its slot is free by the next step."""
        self._came.put(request)

    def counts(self) -> tuple[int, int]:
        """Requests that run, and that wait."""
        with self._lock:
            return len(self._scheduler.running) + len(self._scheduler.ended), len(self._scheduler.waiting)

    def close(self) -> None:
        """Stop; who is being spoken to, or waits, is told."""
        with self._lock:
            begun, self._closing = self._thread.ident is not None, True
        self._came.put(None)
        if begun:
            self._thread.join()
        else:
            self._stop()

    # ---- the thread

    def _run(self) -> None:
        while not self._closing:
            self._take(wait=self._is_idle())
            self.turn()
        self._stop()

    def _stop(self) -> None:
        for request in self._everybody():
            self._end(request, RuntimeError("the engine was closed"))
        self._stages.close()

    def turn(self) -> None:
        """One turn of the loop, without waiting for anything from outside."""
        self._admit()
        self._step()
        self._sound()
        self._hand_over()

    def _is_idle(self) -> bool:
        with self._lock:
            return self._scheduler.idle and not self._steps and not self._pieces

    def _take(self, *, wait: bool) -> None:
        while True:
            try:
                request = self._came.get(block=wait)
            except queue.Empty:
                return
            wait = False
            if request is not None and not request.over:
                self._drop(request)

    def _admit(self) -> None:
        with self._lock:
            admitted = self._scheduler.admit(BEGIN_AT_ONCE)
        if not admitted:
            return
        try:
            drawn = self._stages.begin(admitted)
        except Exception as error:
            self._fail(admitted, error)
            return
        of = [(place, request, request.number) for place, request in enumerate(admitted)]
        self._steps.append(_Step(drawn, of))

    def _step(self) -> None:
        """Draw, then look at what was drawn before: the device works on meanwhile."""
        before = len(self._steps)
        running = dict(self._scheduler.running)
        if running:
            try:
                drawn = self._stages.step(self._scheduler.busy)
            except Exception as error:
                self._fail(list(running.values()), error)
                self._steps.clear()
                return
            of = [(slot, request, request.number) for slot, request in running.items()]
            self._steps.append(_Step(drawn, of))
        for _ in range(before if running else len(self._steps)):
            self._read(self._steps.popleft())

    def _read(self, step: _Step) -> None:
        try:
            tokens = step.drawn.tokens()
        except Exception as error:  # of the device, on the way here
            self._fail([request for _, request, number in step.of if self._wants(request, number)], error)
            return
        for place, request, number in step.of:
            if not self._wants(request, number):
                continue  # it drew one too many
            token = tokens[place]
            segment, stages = request.segment, self._stages
            if token != stages.end_token and token < stages.speech_tokens:
                request.tokens.append(token)
            request.drawn += 1
            most = segment.expected if stages.never_ends else segment.most
            if token == stages.end_token or request.drawn >= most:
                request.runaway |= token != stages.end_token and not stages.never_ends
                request.tokens.extend(stages.closing)
                with self._lock:
                    stages.free(self._scheduler.end_tokens(request))
                if not request.tokens:
                    self._end_segment(request)

    @staticmethod
    def _wants(request: Request, number: int) -> bool:
        """Whether it still waits for tokens of that segment."""
        return not (request.over or request.ended or request.number != number)

    def _sound(self) -> None:
        together = self._scheduler.next_pieces(self._clock())
        if not together:
            return
        last = [request.is_last_piece for request in together]
        try:
            sounded = self._stages.sound(together)
        except Exception as error:
            self._fail(together, error)
            return
        for request in together:
            request.made += request.next_hop
            request.hops += 1
            request.sounding = True
        self._pieces.append(_Piece(sounded, together, last))

    def _hand_over(self) -> None:
        nothing_else = not self._scheduler.running and not self._steps
        while self._pieces and (nothing_else or self._pieces[0].sounded.ready()):
            piece = self._pieces.popleft()
            try:
                made = piece.sounded.pieces()
            except Exception as error:
                self._fail(piece.requests, error)
                continue
            for request, pcm, last in zip(piece.requests, made, piece.last, strict=True):
                request.sounding = False
                if request.over:
                    continue
                if len(pcm):
                    if request.first_at is None:
                        request.first_at = self._clock()
                    request.audio_s += len(pcm) / SAMPLE_RATE
                    self._deliver(request, pcm)
                if last and not request.over:
                    self._end_segment(request)

    def _end_segment(self, request: Request) -> None:
        with self._lock:
            self._scheduler.end_segment(request)
        if not request.has_more:
            self._end(request, None)

    def _end(self, request: Request, error: Exception | None) -> None:
        request.over = True
        request.state = None
        self._deliver(request, error)

    def _deliver(self, request: Request, item: Pcm | Exception | None) -> None:
        try:
            request.deliver(item)
        except Exception as error:  # whoever asked is no longer fit to listen
            print(f"gpu_server: a listener failed: {type(error).__name__}: {error}", file=sys.stderr)
            if not request.over:
                self._drop(request)

    def _drop(self, request: Request) -> None:
        with self._lock:
            slot = self._scheduler.drop(request)
        request.state = None
        if slot is not None:
            self._stages.free(slot)

    def _fail(self, requests: list[Request], error: Exception) -> None:
        print(f"gpu_server: {len(requests)} requests failed: {type(error).__name__}: {error}", file=sys.stderr)
        for request in requests:
            if not request.over:
                self._drop(request)
                self._deliver(request, error)

    def _everybody(self) -> list[Request]:
        scheduler = self._scheduler
        return [*scheduler.running.values(), *scheduler.ended, *scheduler.waiting]

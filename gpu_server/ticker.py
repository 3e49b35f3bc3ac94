"""Call many callers back, each at its own instants, from one timer. Knows nothing of audio or sockets.

A timer for each of a thousand streams would be most of their cost.
"""

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import Callable

Tick = Callable[[float], float | None]  # gets the time it is, returns when it wants to be called again


class Ticker:
    """One a process. A callback that is no longer wanted returns None when its time comes.

    `observe` gets the lateness of the most overdue callback, each time some are called: what a busy process adds.
    """

    def __init__(self, observe: Callable[[float], None]) -> None:
        self._observe = observe
        self._due: list[tuple[float, int, Tick]] = []
        self._order = itertools.count()  # so that no two entries are ever compared by their callbacks
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    def call_at(self, instant: float, tick: Tick) -> None:
        """Call `tick` at a monotonic instant or up to two milliseconds later, never before."""
        heapq.heappush(self._due, (instant, next(self._order), tick))
        if instant < self._timer_at:
            self._wake_at(instant)

    def _wake_at(self, instant: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Whole milliseconds: uvloop rounds to them, and would turn the last half one into a busy loop.
        wait_s = max(0, math.ceil((instant - time.monotonic()) * 1000)) / 1000
        self._timer_at = instant
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._timer_at = math.inf
        due = self._due
        now = time.monotonic()
        if due and due[0][0] <= now:
            self._observe(now - due[0][0])
        try:
            while due and due[0][0] <= now:
                _, _, tick = heapq.heappop(due)
                following = tick(now)
                if following is not None:
                    heapq.heappush(due, (following, next(self._order), tick))
                now = time.monotonic()
        finally:  # One callback that fails must not silence all others.
            if due and due[0][0] < self._timer_at:
                self._wake_at(due[0][0])

"""How a run's iterations reach the users of a worker: they ask, wait, and say when they are through.

What is said goes to the master's end (master_dealing.py); how, hooks.py knows. Knows nothing of Locust.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Literal

import gevent
from gevent.event import AsyncResult

from workers.iterations import Iteration

Said = Literal["ask", "over", "back"]
Say = Callable[[Said, Iteration], None]

_ANY = Iteration(None, None)


class Dealing:
    """A worker's end: its users wait for iterations, and say when they are through."""

    def __init__(self, say: Say | None = None) -> None:
        """say: tells the master; None in a run without iterations, where each user begins what it likes."""
        self._say = say
        self._waiting: deque[AsyncResult[Iteration]] = deque()
        self._ends_at: dict[str | None, float] = {}
        self._closed = False

    def next(self) -> Iteration:
        """Park the calling user until an iteration falls to it. Raises GreenletExit where the run ends."""
        if self._closed:
            raise gevent.GreenletExit
        if self._say is None:
            return _ANY
        place: AsyncResult[Iteration] = AsyncResult()
        self._waiting.append(place)
        try:
            self._say("ask", _ANY)
            found: Iteration = place.get()
            return found
        except BaseException:
            if place in self._waiting:
                self._waiting.remove(place)
            elif place.successful():  # it came as the user was stopped
                self._say("back", place.value)
            raise

    def granted(self, iteration: Iteration, left_s: float | None) -> None:
        """The master has dealt one to this worker: the user that has waited longest begins."""
        assert self._say is not None
        if left_s is not None:
            self._ends_at[iteration.mode] = time.monotonic() + left_s
        if self._waiting and not self._closed:
            self._waiting.popleft().set(iteration)
        else:
            self._say("back", iteration)

    def over(self, iteration: Iteration) -> None:
        """A user is through with what `next` gave it."""
        if self._say is not None:
            self._say("over", iteration)

    def iteration_ended(self, iteration: Iteration) -> bool:
        """Whether its part has lasted long enough: the user ends its turn, and asks again."""
        return time.monotonic() >= self.ends_at(iteration)

    def ends_at(self, iteration: Iteration) -> float:
        """When its part will have lasted long enough (monotonic seconds); infinite where it ends by number."""
        return self._ends_at.get(iteration.mode, float("inf")) if iteration.number is None else float("inf")

    def stop(self) -> None:
        """Nobody here begins anything more; who waits goes on waiting, until Locust stops it or `close`."""
        self._closed = True

    def close(self) -> None:
        """Who waits has waited in vain."""
        self._closed = True
        while self._waiting:
            self._waiting.popleft().set_exception(gevent.GreenletExit())

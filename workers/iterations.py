"""Which iteration a user of a run with a mode may begin, and when: parts that follow each other. Pure.

Users ask, iterations are dealt out to them, and come back when they are over. A part begins when nothing of the one
before is under way. Knows nothing of Locust, of messages or of the clock.
"""

from collections import Counter, deque
from collections.abc import Collection, Sequence
from typing import NamedTuple

PARTS_OF_FULL = ("text", "audio", "turn_taking", "interruption", "throughput")


class Iteration(NamedTuple):
    """What a user may begin. number: from 0 on, in its part; None in a part that lasts, and in a run without parts."""

    mode: str | None
    number: int | None


class Part(NamedTuple):
    """`iterations` of a mode; or, where that is None, as many as begin within `lasts_s` of the first."""

    mode: str
    iterations: int | None
    at_a_time: int
    lasts_s: float | None = None


class Grant(NamedTuple):
    """A worker's longest waiting user may begin. left_s: what is left of its part, where that part lasts."""

    worker: str
    iteration: Iteration
    left_s: float | None


def parts_of(mode: str, iterations: int | None, duration: float | None, concurrency: int) -> list[Part]:
    """What a run of this mode is made of. full: all modes, one iteration at a time but for throughput."""
    if mode == "throughput":
        return [Part(mode, None, concurrency, duration)]
    if mode != "full":
        return [Part(mode, iterations, concurrency)]
    return [part for one in PARTS_OF_FULL for part in parts_of(one, iterations, duration, _at_a_time(one, concurrency))]


def _at_a_time(mode: str, concurrency: int) -> int:
    return concurrency if mode == "throughput" else 1


class Dealer:
    """Deals a run's iterations out to the workers whose users ask.

    What a lost worker had is lost: its place is free again, but it is not made anew. Instants in seconds of any clock.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.lost: list[tuple[str, Iteration]] = []
        self._parts = deque(parts)
        self._began_at: float | None = None  # the part that is on
        self._dealt = 0
        self._again: deque[Iteration] = deque()  # given back by users that were gone
        self._asking: deque[str] = deque()  # workers; one with two users waiting is in it twice
        self._held: Counter[tuple[str, Iteration]] = Counter()
        self._gone: set[str] = set()

    @property
    def all_over(self) -> bool:
        return not self._parts

    @property
    def mode(self) -> str | None:
        """Of the part that is on."""
        return self._parts[0].mode if self._parts else None

    @property
    def under_way(self) -> int:
        return self._held.total()

    def ask(self, worker: str, now: float) -> list[Grant]:
        """One more user of this worker waits; who may begin now."""
        self._gone.discard(worker)
        self._asking.append(worker)
        return self.deal(now)

    def over(self, worker: str, iteration: Iteration, now: float) -> list[Grant]:
        """A user is through with it, well or not; who may begin now. One that was lost meanwhile is over already."""
        self._take_from(worker, iteration)
        return self.deal(now)

    def give_back(self, worker: str, iteration: Iteration, now: float) -> list[Grant]:
        """It was dealt to a user that has gone, and never began: another begins it."""
        if self._take_from(worker, iteration) and iteration.number is not None:
            self._again.append(iteration)
        return self.deal(now)

    def here(self, workers: Collection[str], now: float) -> list[Grant]:
        """Only these workers are there: what others had is lost, and their users wait."""
        known = {worker for worker, _ in self._held} | set(self._asking)
        self._gone = known - set(workers)
        for (worker, iteration), count in list(self._held.items()):
            if worker in self._gone:
                self.lost += [(worker, iteration)] * count
                del self._held[worker, iteration]
        return self.deal(now)

    def deal(self, now: float) -> list[Grant]:
        """Who may begin at this instant; parts that are over make way."""
        grants: list[Grant] = []
        while self._parts:
            part = self._parts[0]
            while self.under_way < part.at_a_time and not self._spent(part, now):
                worker = next((one for one in self._asking if one not in self._gone), None)
                if worker is None:
                    break
                self._asking.remove(worker)
                grants.append(self._grant(part, worker, now))
            if self.under_way or not self._spent(part, now):
                break
            self._parts.popleft()
            self._began_at, self._dealt = None, 0
        return grants

    def _grant(self, part: Part, worker: str, now: float) -> Grant:
        began_at = self._began_at = now if self._began_at is None else self._began_at
        if part.iterations is None:
            iteration = Iteration(part.mode, None)
        elif self._again:
            iteration = self._again.popleft()
        else:
            iteration = Iteration(part.mode, self._dealt)
            self._dealt += 1
        self._held[worker, iteration] += 1
        return Grant(worker, iteration, None if part.lasts_s is None else began_at + part.lasts_s - now)

    def _spent(self, part: Part, now: float) -> bool:
        if part.iterations is not None:
            return self._dealt >= part.iterations and not self._again
        return self._began_at is not None and part.lasts_s is not None and now >= self._began_at + part.lasts_s

    def _take_from(self, worker: str, iteration: Iteration) -> bool:
        """Whether the worker had it."""
        if not self._held[worker, iteration]:
            self._held.pop((worker, iteration), None)
            return False
        self._held[worker, iteration] -= 1
        if not self._held[worker, iteration]:
            del self._held[worker, iteration]
        return True

"""Decide who gets a slot and whose audio is made next. Knows nothing of models, threads, clocks or sound.

Earliest playout deadline first, for both. A request that has sent nothing yet is due since it came; one that has sent
audio is due when its listener runs dry. A long text is spoken in segments and asks for its slot anew for each, so that
it cannot keep out those who came later, who cannot keep it out either: its deadline comes nearer, theirs was later.
"""

from collections.abc import Callable, Hashable

from gpu_server.request import Request

AT_ONCE = 16  # pieces of audio made together at most
LATE_S = 0.3  # a piece that is not due sooner waits for others to be made with


class QueueFull(Exception):
    """Every slot is taken and nobody more may wait."""


class Scheduler:
    """Who runs and who waits. Not thread-safe: the loop that owns it asks."""

    def __init__(self, slots: int, queue: int, shape: Callable[[Request], Hashable], at_once: int = AT_ONCE) -> None:
        """shape: pieces of one shape can be made together."""
        self.slots, self.queue = slots, queue
        self._shape, self._at_once = shape, at_once
        self._free = set(range(slots))
        self.running: dict[int, Request] = {}  # by slot, while they draw tokens
        self.waiting: list[Request] = []
        self.ended: list[Request] = []  # all tokens of the segment there, audio still to be made

    @property
    def busy(self) -> int:
        """Slots in use, counted up to the highest one."""
        return max(self.running) + 1 if self.running else 0

    @property
    def idle(self) -> bool:
        return not (self.running or self.waiting or self.ended)

    @property
    def queued(self) -> int:
        """Requests that have had no slot yet."""
        return sum(request.number < 0 for request in self.waiting)

    def submit(self, request: Request) -> None:
        """Take a request in. Raises QueueFull."""
        if self.queued >= self.queue + len(self._free):
            raise QueueFull(f"{len(self.running)} streams busy, {self.queued} requests waiting")
        self.waiting.append(request)

    def admit(self, most: int | None = None) -> list[Request]:
        """Give free slots, the lowest first, to those who wait, the most urgent first; each begins its next segment."""
        admitted = []
        for request in sorted(self.waiting, key=lambda request: request.deadline)[:most]:
            if not self._free:
                break
            slot = min(self._free)
            self._free.remove(slot)
            self.waiting.remove(request)
            request.begin_segment(slot)
            self.running[slot] = request
            admitted.append(request)
        return admitted

    def end_tokens(self, request: Request) -> int:
        """The segment has all its tokens: its slot, which is returned, is free again."""
        slot = request.slot
        assert slot is not None
        request.ended, request.slot = True, None
        del self.running[slot]
        self._free.add(slot)
        self.ended.append(request)
        return slot

    def next_pieces(self, now: float) -> list[Request]:
        """Requests whose next pieces are to be made together now; none where all can wait."""
        ready = [request for request in (*self.running.values(), *self.ended) if self._is_ready(request)]
        if not ready:
            return []
        ready.sort(key=lambda request: (request.whole, request.deadline))
        first = ready[0]
        shape = self._shape(first)
        together = [request for request in ready if self._shape(request) == shape][: self._at_once]
        can_wait = self.running and (first.whole or first.deadline > now + LATE_S)
        return [] if can_wait and len(together) < self._at_once else together

    @staticmethod
    def _is_ready(request: Request) -> bool:
        return not request.sounding and request.next_hop > 0

    def end_segment(self, request: Request) -> None:
        """All audio of the segment is made: the next one waits for a slot, or the request is over."""
        self.ended.remove(request)
        if request.has_more and not request.over:
            self.waiting.append(request)

    def drop(self, request: Request) -> int | None:
        """Forget a request whose listener left, or that failed; the slot that it held, which is free at once."""
        request.over = True
        if request in self.waiting:
            self.waiting.remove(request)
        if request in self.ended:
            self.ended.remove(request)
        slot = request.slot
        if slot is not None and self.running.get(slot) is request:
            del self.running[slot]
            self._free.add(slot)
            request.slot = None
            return slot
        return None

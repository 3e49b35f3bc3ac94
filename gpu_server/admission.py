"""Decide who speaks now, who waits and who is sent away. Knows nothing of speech or HTTP."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class QueueFull(Exception):
    """Every stream is busy and nobody more may wait."""


class Admission:
    """At most `streams` inside, at most `queue` waiting, first come first served."""

    def __init__(self, streams: int, queue: int) -> None:
        self.streams = streams
        self.queue = queue
        self.active = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold one stream for the length of the block. Raises QueueFull at once; a cancelled wait leaves no trace."""
        await self._enter()
        try:
            yield
        finally:
            self._leave()

    async def _enter(self) -> None:
        if self.active < self.streams:
            self.active += 1
            return
        if len(self._waiting) >= self.queue:
            raise QueueFull(f"{self.active} streams busy, {len(self._waiting)} requests waiting")
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not turn.cancelled():
                self._leave()  # The turn came in the same instant as the cancellation: pass it on.
            raise

    def _leave(self) -> None:
        """Give this stream to the first in line, who then counts as active, or free it."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # A cancelled one has not yet had its chance to leave the line.
                turn.set_result(None)
                return
        self.active -= 1

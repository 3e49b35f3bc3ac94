"""Let at most so many calls at a time into a stage of the agent. Knows nothing of what a stage does."""

import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gpu_server.admission import Admission


class Stage:
    """The slots of one stage, for all calls together; without a limit nobody waits."""

    def __init__(self, slots: int | None) -> None:
        # Any number may wait: a call is in one line of a stage at most, and calls are limited themselves.
        self.admission = None if slots is None else Admission(slots, sys.maxsize)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[float | None]:
        """Hold a slot for the length of the block; yields the instant it was given, None where there is no limit.

        First come first served; a cancelled wait leaves no trace.
        """
        if self.admission is None:
            yield None
            return
        async with self.admission.slot():
            yield time.monotonic()

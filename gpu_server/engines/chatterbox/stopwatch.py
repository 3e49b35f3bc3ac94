"""Time what a device computes, without making anybody wait for it. Knows nothing of what is computed."""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Seconds spent inside `over`, on the device's own clock where it has one."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spent_s = 0.0
        self._under_way: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def over(self) -> Iterator[None]:
        if not self._cuda:
            began_at = time.perf_counter()
            yield
            self._spent_s += time.perf_counter() - began_at
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._under_way.append((begin, end))
        self._collect()

    @property
    def spent_s(self) -> float:
        """What has ended until now."""
        self._collect()
        return self._spent_s

    def _collect(self) -> None:
        while self._under_way and self._under_way[0][1].query():
            begin, end = self._under_way.popleft()
            self._spent_s += begin.elapsed_time(end) / 1000

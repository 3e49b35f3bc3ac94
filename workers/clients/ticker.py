"""Call back at exact instants. One timerfd a worker; knows nothing of sockets.

gevent's own timers wait in whole milliseconds (0.55 ms late at the median, 1.1 ms at p99); a timerfd armed for an
absolute instant wakes the loop within about 0.1 ms. Callbacks run in gevent's hub: they must not block.
"""

import ctypes
import errno
import heapq
import itertools
import os
import sys
import time
from collections.abc import Callable

import gevent
from gevent.event import Event

_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK_CLOEXEC = 0o2004000
_TFD_TIMER_ABSTIME = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


_libc = ctypes.CDLL(None, use_errno=True)  # Python has os.timerfd_create only from 3.13 on


def _new_timer() -> int:
    if not sys.platform.startswith("linux"):
        raise OSError(errno.ENOSYS, "load is generated on Linux only (timerfd, epoll): use a container")
    fd: int = _libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create failed")
    return fd


def _arm(fd: int, at: float, period_s: float = 0.0) -> None:
    at = max(at, 1e-9)  # the past is one nanosecond after boot: an it_value of zero would disarm the timer
    whole = int(at)
    value = _Itimerspec(_Timespec(0, int(period_s * 1e9)), _Timespec(whole, max(1, int((at - whole) * 1e9))))
    _libc.timerfd_settime(fd, _TFD_TIMER_ABSTIME, ctypes.byref(value), None)


class Call:
    """A callback that is due; `cancel()` it when it is no longer wanted."""

    __slots__ = ("action", "at")

    def __init__(self, at: float, action: Callable[[], object]) -> None:
        self.at = at
        self.action: Callable[[], object] | None = action

    def cancel(self) -> None:
        self.action = None


class Beat:
    """An action at every multiple of `period_s`, from `start` to `stop`; beats that were missed are one.

    A periodic timerfd: arming one anew for each beat costs a system call, which is most of what a beat costs.
    """

    def __init__(self, period_s: float, action: Callable[[], object]) -> None:
        self._period_s, self._action = period_s, action
        self._fd = _new_timer()
        self._watcher = gevent.get_hub().loop.io(self._fd, 1)
        self.going = False

    def start(self) -> None:
        """Begin; harmless while it goes."""
        if not self.going:
            self.going = True
            self._watcher.start(self._fire)
            now = time.monotonic()
            _arm(self._fd, now - now % self._period_s + self._period_s, self._period_s)

    def stop(self) -> None:
        if self.going:
            self.going = False
            self._watcher.stop()
            _libc.timerfd_settime(self._fd, 0, ctypes.byref(_Itimerspec()), None)

    def _fire(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        try:
            self._action()
        except Exception:  # gevent would stop this watcher
            gevent.get_hub().handle_error(self, *sys.exc_info())

    def close(self) -> None:
        self.stop()
        os.close(self._fd)


class Ticker:
    """A heap of due calls behind one timerfd.

    Made lazily, after Locust has forked its worker processes: a timerfd shared with a parent fires for only one.
    """

    def __init__(self) -> None:
        self._fd = _new_timer()
        self._heap: list[tuple[float, int, Call]] = []
        self._order = itertools.count()
        self._armed_for = float("inf")
        self._watcher = gevent.get_hub().loop.io(self._fd, 1)
        self._watcher.start(self._fire)

    def call_at(self, at: float, action: Callable[[], object]) -> Call:
        """Run `action` in the hub at the monotonic instant `at` (seconds), or at once where that has passed."""
        call = Call(at, action)
        heapq.heappush(self._heap, (at, next(self._order), call))
        if at < self._armed_for:
            self._arm(at)
        return call

    def sleep_until(self, at: float) -> None:
        """Park the calling greenlet until the monotonic instant `at` (seconds)."""
        if at <= time.monotonic():
            return
        woken = Event()
        call = self.call_at(at, woken.set)
        try:
            woken.wait()
        finally:
            call.cancel()

    def _arm(self, at: float) -> None:
        self._armed_for = at
        _arm(self._fd, at)

    def _fire(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # re-armed for later between the wake-up and this read
        heap = self._heap
        now = time.monotonic()
        self._armed_for = float("inf")
        while heap and heap[0][0] <= now:
            action = heapq.heappop(heap)[2].action
            if action is None:
                continue
            try:
                action()
            except Exception:  # gevent would stop this watcher, and every other call were lost
                gevent.get_hub().handle_error(self, *sys.exc_info())
        while heap and heap[0][2].action is None:
            heapq.heappop(heap)
        if heap and heap[0][0] < self._armed_for:
            self._arm(heap[0][0])

    def close(self) -> None:
        self._watcher.stop()
        os.close(self._fd)

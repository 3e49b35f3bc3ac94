"""Look at a worker's sockets: one epoll, one beat, one ticker, one anchor between wall and monotonic clock.

Knows nothing of what is read. All of it runs in gevent's hub, where nothing may block.
"""

import errno
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from typing import Final, Protocol

import gevent
from gevent import monkey

from workers.clients.ticker import Beat, Ticker

READ_BYTES: Final = 64 * 1024
POLL_EVERY_S: Final = 0.0005
READ, WRITE, BROKEN = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR | select.EPOLLHUP | select.EPOLLRDHUP
# Each arrival is told once (EPOLLET): the kernel need not look again at what was read.
_WATCHED = READ | select.EPOLLRDHUP | select.EPOLLET
_BATCH = 4096  # events a poll
_SO_TIMESTAMPNS = 35


class Watched(Protocol):
    """One socket's owner, as the switchboard sees it."""

    def read(self, polled_at: float) -> None:
        """Bytes are there, and nothing else; at `polled_at` there were none."""

    def on_ready(self, events: int, polled_at: float) -> None:
        """There is something else than bytes, or more of what a look has left."""

    def fail(self, error: OSError | None) -> None:
        """The connection is over."""


class Switchboard:
    """The links of one worker."""

    def __init__(self) -> None:
        self._epoll = monkey.get_original("select", "epoll")()
        self._links: dict[int, Watched] = {}
        self.unread: set[int] = set()  # of those in which a look left something
        # One buffer for all: a new one of this size for each read costs more than the read.
        self.scratch_view = memoryview(bytearray(READ_BYTES))
        self.scratch = (self.scratch_view,)
        self.ticker = Ticker()
        self.polled_at = time.monotonic()
        self.offset_s = 0.0  # monotonic - wall: what makes a kernel stamp (CLOCK_REALTIME) an instant of ours
        self._beat = Beat(POLL_EVERY_S, self._on_beat)
        self.awaiting = 0  # links that expect bytes
        self._on_each_beat: tuple[Callable[[], object], ...] = ()
        self._watcher = gevent.get_hub().loop.io(self._epoll.fileno(), 1)
        self._watcher.start(self.poll)
        # The kernel stamps packets only while some socket asks for it, and begins a moment after the first one asks.
        self._stamping = socket.socket()
        self.kernel_clock = ask_for_stamps(self._stamping)

    def register(self, link: Watched, fd: int) -> None:
        self._links[fd] = link
        self._epoll.register(fd, _WATCHED)

    def watch_writes(self, fd: int, wanted: bool) -> None:
        self._epoll.modify(fd, _WATCHED | WRITE if wanted else _WATCHED)

    def unregister(self, fd: int) -> None:
        self.unread.discard(fd)
        if self._links.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def expect(self, change: int) -> None:
        """`change` more (or fewer) links await bytes. While any does, the sockets are polled twice a millisecond."""
        self.awaiting += change
        if self.awaiting > 0:
            self._start_beat()

    def each_beat(self, action: Callable[[], object]) -> None:
        """Call `action` twice a millisecond, before the sockets are polled."""
        self._on_each_beat += (action,)
        self._start_beat()

    def no_more(self, action: Callable[[], object]) -> None:
        """Call it on no beat any more."""
        self._on_each_beat = tuple(one for one in self._on_each_beat if one != action)

    def _start_beat(self) -> None:
        if not self._beat.going:
            self._beat.start()
            # The beat polls often enough, and the kernel says when bytes came: being woken for each is not needed.
            self._watcher.stop()

    def _on_beat(self) -> None:
        if self._on_each_beat:
            for action in self._on_each_beat:
                action()
        elif self.awaiting <= 0 and not self.unread:
            self._beat.stop()
            self._watcher.start(self.poll)
            return
        if time.monotonic() - self.polled_at >= POLL_EVERY_S * 0.5:
            self.poll()

    def poll(self) -> None:
        """Read whatever is there. A drained socket that `epoll` does not name was still empty when it was asked."""
        before = time.monotonic()
        self._anchor()
        ready = self._epoll.poll(0, _BATCH)
        if self.unread:  # told before
            ready += [(fd, READ | BROKEN) for fd in self.unread.difference(fd for fd, _ in ready)]
        links, last = self._links, self.polled_at
        for fd, events in ready:
            link = links.get(fd)
            if link is None:
                continue  # closed by an earlier one of this very batch
            try:
                if events == READ:
                    link.read(last)
                else:
                    link.on_ready(events, last)
            except Exception:  # a receiver's bug: gevent would stop this watcher, and the whole worker were deaf
                gevent.get_hub().handle_error(link, *sys.exc_info())
                try:
                    link.fail(OSError(errno.EIO, "its receiver failed"))
                except Exception:  # the rest of this batch is told once
                    gevent.get_hub().handle_error(link, *sys.exc_info())
        if len(ready) < _BATCH:  # else some that were ready may not have been named
            self.polled_at = before

    def _anchor(self) -> None:
        # Between the two readings the process may be put to sleep: take the pair again when it was.
        for _ in range(4):
            first = time.monotonic_ns()
            wall = time.time_ns()
            second = time.monotonic_ns()
            if second - first < 5_000:
                break
        self.offset_s = ((first + second) // 2 - wall) / 1e9


_here: dict[int, Switchboard] = {}


def switchboard() -> Switchboard:
    """This process's switchboard, made on first use: Locust forks after the locustfile is imported."""
    pid = os.getpid()
    if pid not in _here:
        _here.clear()
        _here[pid] = Switchboard()
    return _here[pid]


def ask_for_stamps(sock: socket.socket) -> bool:
    """Have the kernel stamp what comes; whether it will."""
    if os.environ.get("CICADA_CLOCK") == "user":
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    except OSError:  # a platform without stamps: rows will say clock=user
        return False
    return True

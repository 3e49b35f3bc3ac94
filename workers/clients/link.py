"""Move bytes between sockets and their owners, and say when they came. Knows nothing of protocols or audio.

Who owns what: greenlets call `connect`, `send`, `close`. Everything else here runs in gevent's hub, where nothing may
block: it reads bytes, stamps them and hands them to the link's receiver.

When bytes came. The kernel stamps each segment (SO_TIMESTAMPNS). Segments that nobody has read yet are merged into one
buffer that keeps only the *last* stamp, so an arrival is an interval: [socket last known empty, stamp]. While bytes
are awaited the switchboard polls at least every half millisecond, so the interval is that narrow unless this process
was late, and then it says by how much.
"""

import errno
import os
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Protocol

import gevent
import gevent.socket
from gevent import monkey
from gevent.event import Event

from workers.clients.ticker import Beat, Ticker

READ_BYTES = 64 * 1024  # a larger buffer costs 2 us more for each read, however little comes
POLL_EVERY_S = 0.0005
_BATCH = 4096  # events a poll
_READS = 8  # of one link in a row: a peer that never stops sending must not keep the others waiting
_UNHEARD_MS = 20_000  # bytes that no host has acknowledged for so long end a link that sends all the time
_SO_TIMESTAMPNS = 35
_ANCILLARY_BYTES = socket.CMSG_SPACE(16)
_timespec = struct.Struct("@qq").unpack_from
_READ, _WRITE, _BROKEN = 0x001, 0x004, 0x008 | 0x010  # EPOLLIN, EPOLLOUT, EPOLLERR | EPOLLHUP


class Arrival(NamedTuple):
    """When bytes came: not before `empty_at`, and the last of them at `at` (monotonic seconds).

    `at - empty_at` is the width of the interval. Whose clock it is, the link's `clock` says: "kernel" or "user".
    """

    at: float
    empty_at: float


class Receiver(Protocol):
    """Who takes a link's bytes. Both run in the hub and must not block."""

    def receive(self, data: bytes, arrival: Arrival) -> None: ...

    def closed(self, error: OSError | None) -> None:
        """The peer has closed (None) or the connection broke."""


class Switchboard:
    """The links of one worker: one epoll, one ticker, one anchor between wall and monotonic clock."""

    def __init__(self) -> None:
        self._epoll = monkey.get_original("select", "epoll")()
        self._links: dict[int, Link] = {}
        self.ticker = Ticker()
        self.polled_at = time.monotonic()
        self._offset_s = 0.0  # monotonic - wall
        self._beat = Beat(POLL_EVERY_S, self._on_beat)
        self.awaiting = 0  # links that expect bytes
        self._on_each_beat: Callable[[], object] | None = None
        self._watcher = gevent.get_hub().loop.io(self._epoll.fileno(), 1)
        self._watcher.start(self.poll)
        # The kernel stamps packets only while some socket asks for it, and begins a moment after the first one asks.
        self._stamping = socket.socket()
        self.kernel_clock = _ask_for_stamps(self._stamping)

    def register(self, link: "Link", fd: int) -> None:
        self._links[fd] = link
        self._epoll.register(fd, _READ)

    def watch_writes(self, fd: int, wanted: bool) -> None:
        self._epoll.modify(fd, _READ | _WRITE if wanted else _READ)

    def unregister(self, fd: int) -> None:
        if self._links.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def expect(self, change: int) -> None:
        """`change` more (or fewer) links await bytes. While any does, the sockets are polled twice a millisecond."""
        self.awaiting += change
        if self.awaiting > 0:
            self._start_beat()

    def each_beat(self, action: Callable[[], object] | None) -> None:
        """Call `action` twice a millisecond, before the sockets are polled; None: no more."""
        self._on_each_beat = action
        self._start_beat()

    def _start_beat(self) -> None:
        if not self._beat.going:
            self._beat.start()
            # The beat polls often enough, and the kernel says when bytes came: being woken for each is not needed.
            self._watcher.stop()

    def _on_beat(self) -> None:
        if self._on_each_beat is not None:
            self._on_each_beat()
        elif self.awaiting <= 0:
            self._beat.stop()
            self._watcher.start(self.poll)
            return
        if time.monotonic() - self.polled_at >= POLL_EVERY_S * 0.5:
            self.poll()

    def poll(self) -> None:
        """Read whatever is there. A socket that `epoll` does not name was empty when it was asked."""
        before = time.monotonic()
        self._anchor()
        ready = self._epoll.poll(0, _BATCH)
        links, last = self._links, self.polled_at
        for fd, events in ready:
            link = links.get(fd)
            if link is None:
                continue  # closed by an earlier one of this very batch
            try:
                link.on_ready(events, last)
            except Exception:  # a receiver's bug: gevent would stop this watcher, and the whole worker were deaf
                gevent.get_hub().handle_error(link, *sys.exc_info())
                link.fail(OSError(errno.EIO, "its receiver failed"))
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
        self._offset_s = ((first + second) // 2 - wall) / 1e9

    def to_monotonic(self, seconds: int, nanoseconds: int) -> float:
        """A kernel stamp (CLOCK_REALTIME) on this process's monotonic clock, in seconds."""
        return seconds + self._offset_s + nanoseconds / 1e9


_here: dict[int, Switchboard] = {}


def switchboard() -> Switchboard:
    """This process's switchboard, made on first use: Locust forks after the locustfile is imported."""
    pid = os.getpid()
    if pid not in _here:
        _here.clear()
        _here[pid] = Switchboard()
    return _here[pid]


def _ask_for_stamps(sock: socket.socket) -> bool:
    if os.environ.get("CICADA_CLOCK") == "user":
        return False
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    except OSError:  # a platform without stamps: rows will say clock=user
        return False
    return True


class _Handshake:
    """Receiver while TLS is being set up: bytes wait for the greenlet that leads the handshake."""

    def __init__(self) -> None:
        self.inbox = bytearray()
        self.changed = Event()
        self.over = False
        self.error: OSError | None = None

    def receive(self, data: bytes, arrival: Arrival) -> None:
        self.inbox += data
        self.changed.set()

    def closed(self, error: OSError | None) -> None:
        self.over, self.error = True, error
        self.changed.set()


class Link:
    """One connection, TCP or TLS: non-blocking, with an outbox, stamped on arrival."""

    __slots__ = (
        "_board",
        "_drained",
        "_empty_at",
        "_expecting",
        "_fd",
        "_gsock",
        "_incoming",
        "_most_unsent_bytes",
        "_outbox",
        "_outgoing",
        "_sock",
        "_tls",
        "bytes_in",
        "clock",
        "ready_at",
        "receiver",
        "shut",
    )

    def __init__(self, board: Switchboard, gsock: gevent.socket.socket) -> None:
        self._board = board
        self._gsock = gsock  # keeps the descriptor alive
        self._sock: socket.socket = gsock._sock
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.clock = "kernel" if _ask_for_stamps(self._sock) else "user"
        self._fd = self._sock.fileno()
        self._empty_at = time.monotonic()
        self._drained = True  # the last look left nothing in the socket
        self._outbox = bytearray()
        self._most_unsent_bytes = sys.maxsize
        self._tls: ssl.SSLObject | None = None
        self.receiver: Receiver | None = None
        self._expecting = False
        self.shut = False
        self.bytes_in = 0
        self.ready_at = 0.0
        board.register(self, self._fd)

    @classmethod
    def connect(
        cls,
        host: str,
        port: int,
        *,
        timeout_s: float,
        tls: ssl.SSLContext | None = None,
        board: Switchboard,
        most_unsent_bytes: int | None = None,
    ) -> "Link":
        """Connect (and shake hands) from a greenlet. Raises OSError, ssl.SSLError, TimeoutError.

        most_unsent_bytes: about how much may wait for a peer that reads nothing before the link breaks with ETIMEDOUT;
        None: any amount.
        """
        deadline = time.monotonic() + timeout_s
        try:
            host.encode("idna")
        except UnicodeError:
            raise socket.gaierror(socket.EAI_NONAME, "this is no host name") from None
        link = cls(board, gevent.socket.create_connection((host, port), timeout_s))
        if most_unsent_bytes is not None:
            link._most_unsent_bytes = most_unsent_bytes
            link._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, most_unsent_bytes)
            link._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNHEARD_MS)
        try:
            if tls is not None:
                link._shake_hands(tls, host, deadline)
        except BaseException:
            link.close()
            raise
        link.ready_at = time.monotonic()
        return link

    def _shake_hands(self, context: ssl.SSLContext, host: str, deadline: float) -> None:
        # TLS state cannot move from an SSLSocket to a MemoryBIO, and an SSLSocket refuses recvmsg: begin with the BIO.
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        shake = self.receiver = _Handshake()
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._put_unless_shut(shake)
                shake.changed.clear()
                if not shake.inbox and not shake.changed.wait(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError("the TLS handshake took too long") from None
                self._incoming.write(bytes(shake.inbox))
                shake.inbox.clear()
        self._put_unless_shut(shake)
        self.receiver = None
        self._tls = tls

    def _put_unless_shut(self, shake: _Handshake) -> None:
        """The next flight of the handshake; raises what ended the connection where nothing is left to read of it."""
        if not self.shut:
            self._put(self._outgoing.read())
        elif not shake.inbox:
            raise shake.error or ConnectionResetError(errno.ECONNRESET, "closed in the TLS handshake")

    def expect(self, receiver: Receiver | None) -> None:
        """Hand arriving bytes to `receiver` from now on; None: nothing is expected."""
        self.receiver = receiver
        if (receiver is not None) != self._expecting:
            self._expecting = receiver is not None
            self._board.expect(1 if self._expecting else -1)

    def send(self, data: bytes) -> float:
        """Hand bytes to the kernel, or to the outbox where it is full; the instant before the first byte went."""
        if self._tls is not None:
            self._tls.write(data)
            data = self._outgoing.read()
        sent_at = time.monotonic()
        if self._outbox:
            self._put(data)
            return sent_at
        try:
            done = self._sock.send(data)
        except BlockingIOError:
            done = 0
        if done < len(data):
            self._keep(data[done:])
        return sent_at

    def _put(self, data: bytes) -> None:
        if self._outbox:
            self._outbox += data
            if len(self._outbox) > self._most_unsent_bytes:
                raise TimeoutError(errno.ETIMEDOUT, "the peer reads nothing of what is sent")
            return
        try:
            done = self._sock.send(data)
        except BlockingIOError:
            done = 0
        if done < len(data):
            self._keep(data[done:])

    def _keep(self, data: bytes) -> None:
        self._outbox += data
        self._board.watch_writes(self._fd, True)

    def on_ready(self, events: int, polled_at: float) -> None:
        """epoll says so; at `polled_at` it had nothing."""
        if events == _READ:
            self._read(polled_at)
            return
        if events & _WRITE and not self._flush():
            return
        if events & (_READ | _BROKEN):
            self._read(polled_at)

    def _flush(self) -> bool:
        try:
            done = self._sock.send(self._outbox)
        except BlockingIOError:
            return True
        except OSError as error:
            self.fail(error)
            return False
        del self._outbox[:done]
        if not self._outbox:
            self._board.watch_writes(self._fd, False)
        return True

    def _read(self, polled_at: float) -> None:
        # What a look left in the socket was there before it, whatever epoll did not say then.
        empty_at = max(polled_at, self._empty_at) if self._drained else self._empty_at
        self._drained = False
        for _ in range(_READS):
            if self.shut:
                return
            asked_at = time.monotonic()
            try:
                data, ancillary, _, _ = self._sock.recvmsg(READ_BYTES, _ANCILLARY_BYTES)
            except BlockingIOError:
                self._empty_at, self._drained = asked_at, True
                return
            except OSError as error:
                self.fail(error)
                return
            if not data:
                self.fail(None)
                return
            # Stamp before anything is decoded. No other kind of control message is ever asked for.
            at = self._board.to_monotonic(*_timespec(ancillary[0][2])) if ancillary else time.monotonic()
            self.bytes_in += len(data)
            drained = len(data) < READ_BYTES
            if drained:
                self._empty_at, self._drained = asked_at, True
            arrival = Arrival(at, empty_at if empty_at < at else at)
            if self._tls is None and self.receiver is not None:
                self.receiver.receive(data, arrival)
            else:
                self._hand_over(data, arrival)
            if drained:
                return

    def _hand_over(self, data: bytes, arrival: Arrival) -> None:
        if self._tls is not None:
            data, ended, error = self._decrypt(self._tls, data)
            self._deliver(data, arrival)
            if ended:
                self.fail(error)
        else:
            self._deliver(data, arrival)

    def _decrypt(self, tls: ssl.SSLObject, data: bytes) -> tuple[bytes, bool, OSError | None]:
        """Plain bytes, whether they were the last, and what broke."""
        self._incoming.write(data)
        plain = bytearray()
        ended, broken = False, None
        try:
            while not ended:
                piece = tls.read(READ_BYTES)
                plain += piece
                ended = not piece  # close_notify
            with suppress(ssl.SSLError):
                tls.unwrap()  # ours, for which the peer may wait; it raises while the peer's TCP end is still to come
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            ended, broken = True, None if isinstance(error, ssl.SSLZeroReturnError) else error
        if self._outgoing.pending:  # close_notify, an alert, or the answer to a key update
            with suppress(OSError):
                self._put(self._outgoing.read())
        return bytes(plain), ended, broken

    def _deliver(self, data: bytes, arrival: Arrival) -> None:
        if not data or self.shut:
            return
        if self.receiver is None:
            self.fail(None)  # bytes nobody asked for: this connection cannot be used for another turn
        else:
            self.receiver.receive(data, arrival)

    def fail(self, error: OSError | None) -> None:
        """The connection is over (None: the peer closed it): close, and tell the receiver."""
        receiver = self.receiver
        self.close()
        if receiver is not None:
            receiver.closed(error)

    def close(self) -> None:
        """Close; harmless when closed already. The receiver is not told: who closes knows."""
        if self.shut:
            return
        self.shut = True
        self.expect(None)
        self._board.unregister(self._fd)
        self._gsock.close()

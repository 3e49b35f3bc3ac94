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
from contextlib import suppress
from typing import Any, Protocol

import gevent.socket
from gevent.event import Event

from workers.clients.inbox import Arrival, Inbox
from workers.clients.switchboard import BROKEN, READ, READ_BYTES, WRITE, Switchboard, ask_for_stamps

_LARGEST_RECORD = 16 * 1024  # of TLS, in plain
_READS = 8  # of one link in a row: a peer that never stops sending must not keep the others waiting
_UNHEARD_MS = 20_000  # bytes that no host has acknowledged for so long end a link that sends all the time
_ANCILLARY_BYTES = socket.CMSG_SPACE(16)
_timespec = struct.Struct("@qq").unpack_from


class Receiver(Protocol):
    """Who takes a link's bytes. Both run in the hub and must not block."""

    def receive(self, data: bytes, arrival: Arrival) -> None: ...

    def closed(self, error: OSError | None) -> None:
        """The peer has closed (None) or the connection broke."""


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
        "inbox",
        "local_address",
        "ready_at",
        "receiver",
        "shut",
    )

    def __init__(self, board: Switchboard, gsock: gevent.socket.socket) -> None:
        self._board = board
        self._gsock = gsock  # keeps the descriptor alive
        self._sock: socket.socket = gsock._sock
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.clock = "kernel" if ask_for_stamps(self._sock) else "user"
        self._fd = self._sock.fileno()
        self.local_address: tuple[str, int] = self._sock.getsockname()[:2]
        self._empty_at = time.monotonic()
        self._drained = True  # the last look left nothing in the socket
        self._outbox = bytearray()
        self._most_unsent_bytes = sys.maxsize
        self._tls: ssl.SSLObject | None = None
        self.receiver: Receiver | None = None
        self.inbox: Inbox | None = None  # where bytes are put instead of being handed over; TLS: sealed
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
        try:  # as in `_put`: a call costs
            done = os.write(self._fd, data)
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
            done = os.write(self._fd, data)  # cheaper than the socket's own way
        except BlockingIOError:
            done = 0
        if done < len(data):
            self._keep(data[done:])

    def _keep(self, data: bytes) -> None:
        self._outbox += data
        self._board.watch_writes(self._fd, True)

    def on_ready(self, events: int, polled_at: float) -> None:
        """There is something else than bytes, or more of what a look has left."""
        if events & WRITE and not self._flush():
            return
        self._board.unread.discard(self._fd)
        if events & (READ | BROKEN):
            self.read(polled_at, to_its_end=events & BROKEN != 0)

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

    def read(self, polled_at: float, to_its_end: bool = False) -> None:
        """Bytes are there; at `polled_at` there were none. Fifty times a second for each of a thousand links.

        to_its_end: the connection's end may be behind them, which is told once.
        """
        board = self._board
        empty_at = self._empty_at  # what a look left in the socket was there before it, whatever epoll did not say then
        if self._drained and polled_at > empty_at:
            empty_at = polled_at
        left = _READS
        while left:
            left -= 1
            try:
                size, ancillary, _, _ = self._sock.recvmsg_into(board.scratch, _ANCILLARY_BYTES)
            except BlockingIOError:
                self._drained = True
                return
            except OSError as error:
                self.fail(error)
                return
            # Stamp before anything is decoded. No other kind of control message is ever asked for.
            if ancillary:
                seconds, nanoseconds = _timespec(ancillary[0][2])
                at = seconds + board.offset_s + nanoseconds / 1e9
            else:
                at = time.monotonic()
            if not size:
                self.fail(None)
                return
            data = board.scratch_view[:size]
            self.bytes_in += size
            self._drained = size < READ_BYTES
            if empty_at > at:  # noqa: PLR1730 - a call costs
                empty_at = at
            if (inbox := self.inbox) is not None and (end := inbox.used + size) <= len(inbox.data):
                inbox.data[inbox.used : end] = data  # as in Inbox.add: a call costs
                inbox.used = end
                inbox.sizes.append(size)
                inbox.instants.append(at)
                inbox.instants.append(empty_at)
            else:
                self._deliver(data, at, empty_at)
            if self.shut or (self._drained and not to_its_end):
                return
            self._empty_at = empty_at
        board.unread.add(self._fd)

    def unseal(self) -> None:
        """Decrypt what is in the inbox. For many reads at a time: what it takes is then fetched once for all of them.

        What a record says came when its last byte did.
        """
        inbox, tls = self.inbox, self._tls
        if inbox is None or tls is None or len(inbox.sizes) == inbox.plain:
            return
        data, sizes, instants = inbox.take(inbox.plain)
        behind, k, last = len(data) - sizes[0], 0, -1  # bytes behind read k; the read of the record before
        records, ended, broken = self._decrypt(tls, data)
        for plain, left in records:
            while left < behind:
                k += 1
                behind -= sizes[k]
            if k == last:
                inbox.extend(plain)
            else:
                inbox.add(plain, instants[2 * k], instants[2 * k + 1])
                last = k
        inbox.plain = len(inbox.sizes)
        if ended:
            self.fail(broken)

    def _decrypt(
        self, tls: ssl.SSLObject, data: bytes | memoryview
    ) -> tuple[list[tuple[bytes, int]], bool, OSError | None]:
        """What each record says, and how much of `data` lay behind it; whether the link is over, and what broke it."""
        incoming, scratch = self._incoming, self._board.scratch_view
        incoming.write(data)
        left = len(data)
        records: list[tuple[bytes, int]] = []
        ended, broken = False, None
        try:
            while left and not ended:
                # With a buffer, it says how many bytes: the stubs know only of the other way.
                size: Any = tls.read(_LARGEST_RECORD, scratch)
                left = incoming.pending
                if size:
                    records.append((scratch[:size].tobytes(), left))
                else:
                    ended = True  # close_notify
            if ended:
                with suppress(ssl.SSLError):
                    tls.unwrap()  # ours, for which the peer may wait; it raises while the peer's TCP end is to come
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            ended, broken = True, None if isinstance(error, ssl.SSLZeroReturnError) else error
        if self._outgoing.pending:  # close_notify, an alert, or the answer to a key update
            with suppress(OSError):
                self._put(self._outgoing.read())
        return records, ended, broken

    def _deliver(self, data: memoryview, at: float, empty_at: float) -> None:
        if self.inbox is not None:
            self.inbox.add(data, at, empty_at)
        elif self._tls is None:
            self._hand_over(data.tobytes(), at, empty_at)
        else:
            records, ended, broken = self._decrypt(self._tls, data)
            if records:  # all of a read are one arrival
                self._hand_over(b"".join([plain for plain, _ in records]), at, empty_at)
            if ended:
                self.fail(broken)

    def _hand_over(self, data: bytes, at: float, empty_at: float) -> None:
        if self.receiver is not None:
            self.receiver.receive(data, Arrival(at, empty_at))
        elif not self.shut:
            self.fail(None)  # bytes nobody asked for: this connection cannot be used for another turn

    def fail(self, error: OSError | None) -> None:
        """The connection is over (None: the peer closed it): close, and tell the receiver."""
        self.unseal()  # it may say why
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
        self._fd = -1  # its number may soon be another's
        self._gsock.close()

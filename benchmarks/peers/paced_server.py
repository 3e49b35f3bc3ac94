"""Stream audio over HTTP at exact instants, and say in the audio itself when each chunk was written: the truth.

`python -m benchmarks.peers.paced_server [--port N]` prints one line with its address. One process, one epoll, slots of
a millisecond; no framework, so that one core holds a thousand streams of 20 ms chunks.

    POST /any?chunks=200&bytes=960&first_ms=50&gap_ms=20    chunked audio/pcm; gap_ms=0: all of it in one write
    GET /figures                                            what this server did since GET /forget, as JSON

Each chunk is `bytes` of loud int16 samples that begin with STAMP: CLOCK_REALTIME and CLOCK_MONOTONIC read just before
the write, and how long the stream's previous write took, all nanoseconds, big-endian (so that an answer never begins
like another format). Headers leave with the first chunk.
"""

import argparse
import json
import select
import socket
import struct
import time
from array import array
from functools import cache
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

STAMP = struct.Struct(">qqq")
SLOT_S = 0.001
LOUD = struct.pack("<h", 12_000)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: audio/pcm; rate=24000\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


class Plan(NamedTuple):
    """How one kind of request is answered. The buffers are shared by all streams: a write copies them."""

    chunks: int
    first_s: float
    gap_s: float
    first: bytearray
    middle: bytearray
    last: bytearray
    whole: bytearray  # everything in one write
    stamp_at: int  # where the stamp lies in a chunk; in the first write, after HEAD


@cache
def plan(target: str) -> Plan:
    """The plan that a request's target asks for."""
    asked = {key: float(values[0]) for key, values in parse_qs(urlsplit(target).query).items()}
    chunks, size = int(asked.get("chunks", 200)), int(asked.get("bytes", 960))
    if chunks < 1 or size < STAMP.size or size % 2:
        raise ValueError(f"chunks must be 1 or more, bytes even and {STAMP.size} or more: {target}")
    opening = f"{size:x}\r\n".encode()
    chunk = opening + LOUD * (size // 2) + b"\r\n"
    first = HEAD + chunk + (END if chunks == 1 else b"")
    whole = HEAD + chunk * chunks + END
    return Plan(
        chunks,
        asked.get("first_ms", 50.0) / 1000,
        asked.get("gap_ms", 20.0) / 1000,
        bytearray(first),
        bytearray(chunk),
        bytearray(chunk + END),
        bytearray(whole),
        len(opening),
    )


class Stream:
    """One connection and the answer under way on it."""

    __slots__ = ("due_at", "inbox", "outbox", "plan", "sent", "sock", "write_ns")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.inbox = b""
        self.outbox = b""  # what the kernel did not take
        self.plan: Plan | None = None
        self.sent = 0
        self.due_at = 0.0
        self.write_ns = 0


class PacedServer:
    """The listening socket, its streams, and the slots in which they are due."""

    def __init__(self, port: int) -> None:
        self._listening = socket.create_server(("127.0.0.1", port), backlog=4096)
        self._listening.setblocking(False)
        self.port: int = self._listening.getsockname()[1]
        self._epoll = select.epoll()
        self._epoll.register(self._listening.fileno(), select.EPOLLIN)
        self._streams: dict[int, Stream] = {}
        self._slots: dict[int, list[Stream]] = {}
        self._slot = int(time.monotonic() / SLOT_S)
        self._forget()

    def _forget(self) -> None:
        self._requests = self._chunks = self._blocked = 0
        self._late_s, self._write_s = array("f"), array("f")

    def serve(self) -> None:
        listening = self._listening.fileno()
        while True:
            for fd, events in self._epoll.poll(SLOT_S):
                if fd == listening:
                    self._accept()
                elif stream := self._streams.get(fd):
                    if events & select.EPOLLOUT:
                        self._flush(stream)
                    if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                        self._read(stream)
            self._run_slots()

    def _run_slots(self) -> None:
        now = int(time.monotonic() / SLOT_S)
        while self._slot < now:
            self._slot += 1
            for stream in self._slots.pop(self._slot, ()):
                if stream.plan is not None:  # else closed meanwhile
                    self._write_chunk(stream, stream.plan)

    def _write_chunk(self, stream: Stream, how: Plan) -> None:
        number = stream.sent
        if how.gap_s <= 0:
            buffer, at = how.whole, len(HEAD) + how.stamp_at
        elif number == 0:
            buffer, at = how.first, len(HEAD) + how.stamp_at
        else:
            buffer, at = (how.last if number == how.chunks - 1 else how.middle), how.stamp_at
        realtime_ns, began_ns = time.time_ns(), time.monotonic_ns()
        STAMP.pack_into(buffer, at, realtime_ns, began_ns, stream.write_ns)
        self._put(stream, buffer)
        stream.write_ns = time.monotonic_ns() - began_ns
        self._late_s.append(began_ns / 1e9 - stream.due_at)
        if number == 0:
            self._write_s.append(stream.write_ns / 1e9)
        stream.sent = number + 1 if how.gap_s > 0 else how.chunks
        self._chunks += stream.sent - number
        if stream.sent == how.chunks:
            stream.plan = None
            self._requests += 1
        else:
            stream.due_at += how.gap_s
            self._slots.setdefault(max(self._slot + 1, int(stream.due_at / SLOT_S)), []).append(stream)

    def _put(self, stream: Stream, data: bytes | bytearray) -> None:
        if stream.outbox:
            stream.outbox += data
            return
        try:
            done = stream.sock.send(data)
        except BlockingIOError:
            done = 0
        except OSError:
            self._close(stream)
            return
        if done < len(data):
            self._blocked += 1
            stream.outbox = bytes(data[done:])
            self._epoll.modify(stream.sock.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _flush(self, stream: Stream) -> None:
        try:
            done = stream.sock.send(stream.outbox)
        except BlockingIOError:
            return
        except OSError:
            self._close(stream)
            return
        stream.outbox = stream.outbox[done:]
        if not stream.outbox:
            self._epoll.modify(stream.sock.fileno(), select.EPOLLIN)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._streams[sock.fileno()] = Stream(sock)
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _read(self, stream: Stream) -> None:
        try:
            data = stream.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(stream)
            return
        stream.inbox += data
        head, separator, body = stream.inbox.partition(b"\r\n\r\n")
        if not separator or len(body) < _content_length(head):
            return
        stream.inbox = b""
        method, target, _ = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
        if method == "POST":
            self._begin(stream, plan(target))
        else:
            if target == "/forget":
                self._forget()
            self._put(stream, _json_answer(self._figures()))

    def _begin(self, stream: Stream, how: Plan) -> None:
        stream.plan, stream.sent, stream.write_ns = how, 0, 0
        stream.due_at = time.monotonic() + how.first_s
        if how.first_s > 0:
            self._slots.setdefault(max(self._slot + 1, int(stream.due_at / SLOT_S)), []).append(stream)
        else:
            self._write_chunk(stream, how)

    def _close(self, stream: Stream) -> None:
        stream.plan = None
        fd = stream.sock.fileno()
        if self._streams.pop(fd, None):
            self._epoll.unregister(fd)
            stream.sock.close()

    def _figures(self) -> dict[str, object]:
        return {
            "requests": self._requests,
            "chunks": self._chunks,
            "blocked_writes": self._blocked,
            "streams": sum(stream.plan is not None for stream in self._streams.values()),
            "chunk_late_ms": _quantiles(self._late_s, 1e3),
            "first_write_us": _quantiles(self._write_s, 1e6),
        }


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


def _json_answer(value: object) -> bytes:
    body = json.dumps(value).encode()
    return f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _quantiles(values: "array[float]", scale: float) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    place = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[int(share * (len(ordered) - 1))] * scale, 3) for name, share in place.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    server = PacedServer(parser.parse_args().port)
    print(f"paced_server: ready on http://127.0.0.1:{server.port}", flush=True)
    try:
        server.serve()
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()

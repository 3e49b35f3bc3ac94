"""Call the bundled agent as a client would, over a real WebSocket. Knows nothing of the server's own code.

The protobuf is written and read by hand here, so that the server's encoder is not checked against itself.
"""

import json
import math
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

RATE = 16_000
CHUNK_S = 0.02
WITHIN_S = 20.0

T = TypeVar("T")


def tone(seconds: float, frequency_hz: float = 700.0, rate: int = RATE) -> bytes:
    """A voice as far as voice activity is concerned: s16le mono."""
    count = round(seconds * rate)
    step = 2 * math.pi * frequency_hz / rate
    return struct.pack(f"<{count}h", *(round(9000 * math.cos(step * k)) for k in range(count)))


def silence(seconds: float) -> bytes:
    return bytes(2 * round(seconds * RATE))


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field_of(number: int, content: bytes | int) -> bytes:
    """One protobuf field: bytes by length, whole numbers as varints."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def audio_message(pcm: bytes, rate: int = RATE, channels: int = 1) -> bytes:
    return field_of(2, field_of(3, pcm) + field_of(4, rate) + field_of(5, channels))


def fields(message: bytes) -> dict[int, Any]:
    """The fields of a protobuf message, by number."""
    found: dict[int, Any] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = number()
        if key & 7 == 0:
            found[key >> 3] = number()
        else:
            assert key & 7 == 2, f"wire type {key & 7}"
            size = number()
            found[key >> 3] = message[at : at + size]
            at += size
    return found


KINDS = {1: "text", 2: "audio", 3: "transcription", 4: "message", 5: "interruption"}


@dataclass
class Came:
    """One message of the agent's."""

    kind: str
    at: float
    body: dict[int, Any]

    @property
    def pcm(self) -> bytes:
        data: bytes = self.body[3]
        return data[44:] if data.startswith(b"RIFF") else data

    @property
    def rtvi(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.body[1])
        return loaded


@dataclass
class Caller:
    """A call under way. Audio goes out in real time; what comes in is collected by a thread."""

    connection: ClientConnection
    came: list[Came] = field(default_factory=list)
    garbage: list[bytes] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    _due_at: float | None = None

    def send_audio(self, pcm: bytes) -> None:
        """One chunk after another, each when it has been spoken, silence and speech on one clock."""
        step = 2 * round(CHUNK_S * RATE)
        for start in range(0, len(pcm), step):
            self._due_at = (self._due_at or time.monotonic()) + CHUNK_S
            time.sleep(max(0.0, self._due_at - time.monotonic()))
            try:
                self.connection.send(audio_message(pcm[start : start + step]))
            except ConnectionClosed:
                return  # What ended it is for the test to look at.

    def say(self, seconds: float = 0.4, then_silence_s: float = 0.4) -> None:
        self.send_audio(tone(seconds) + silence(then_silence_s))

    def stay_silent_until(self, probe: Callable[[], T | None], within_s: float = WITHIN_S) -> T:
        """Send silence until `probe` finds something."""
        deadline = time.monotonic() + within_s
        while (found := probe()) is None:
            assert time.monotonic() < deadline, f"not within {within_s} s; came: {[c.kind for c in self.came]}"
            self.send_audio(silence(CHUNK_S))
        return found

    def until(self, probe: Callable[[], T | None], within_s: float = WITHIN_S) -> T:
        """Send nothing until `probe` finds something."""
        deadline = time.monotonic() + within_s
        while (found := probe()) is None:
            assert time.monotonic() < deadline, f"not within {within_s} s; came: {[c.kind for c in self.came]}"
            time.sleep(0.005)
        return found

    def audio(self) -> list[Came]:
        return [came for came in self.came if came.kind == "audio"]

    def rtvi(self, kind: str) -> list[dict[str, Any]]:
        return [came.rtvi for came in self.came if came.kind == "message" and came.rtvi["type"] == kind]

    def heard(self, chunks: int = 1) -> bool | None:
        return True if len(self.audio()) >= chunks else None

    def bot_stopped(self, times: int = 1) -> bool | None:
        return True if len(self.rtvi("bot-stopped-speaking")) >= times else None

    def close_code(self) -> int | None:
        """None when the other side ended the connection without a close frame."""
        assert self.closed.wait(WITHIN_S), "still open"
        received = self.connection.protocol.close_rcvd
        return None if received is None else received.code

    def collect(self) -> None:
        try:
            for message in self.connection:
                at = time.monotonic()
                assert isinstance(message, bytes)
                try:
                    ((number, body),) = fields(message).items()
                    self.came.append(Came(KINDS[number], at, fields(body)))
                except (IndexError, AssertionError, KeyError, ValueError):
                    self.garbage.append(message)
        except ConnectionClosed:
            pass
        finally:
            self.closed.set()


@contextmanager
def call(port: int, path: str = "/ws/test", headers: Mapping[str, str] | None = None) -> Iterator[Caller]:
    """Open a call; hang up at the end of the block."""
    with connect(
        f"ws://127.0.0.1:{port}{path}",
        additional_headers=dict(headers or {}),
        compression=None,
        max_size=None,
        close_timeout=2,
    ) as connection:
        caller = Caller(connection)
        listening = threading.Thread(target=caller.collect, daemon=True)
        listening.start()
        yield caller
        connection.close()
        listening.join(WITHIN_S)

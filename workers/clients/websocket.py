"""WebSocket messages as bytes (RFC 6455), for a client after its handshake. Knows nothing of sockets or of time.

Server bytes are parsed in bulk: what a read brought is sliced, never walked, and the message that comes again and again
(one whole unfragmented binary message of the same length as the last) is recognised by its head alone. No extension is
ever offered, so the reserved bits must be zero.
"""

import struct
from collections.abc import Sequence
from typing import Final, NoReturn, TypeAlias

import numpy as np

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

Message: TypeAlias = tuple[int, bytes]
"""(opcode, payload): TEXT or BINARY whole, or CLOSE, PING, PONG."""

NO_MASK: Final = bytes(4)
_WORDS: Final = np.dtype("<u4")
_LONG: Final = 512  # from here on numpy is quicker than big integers
_FIN: Final = 0x80
_WHOLE_BINARY: Final = _FIN | BINARY
_LONGEST_CONTROL: Final = 125
_MOST_BYTES: Final = 16 << 20
_CODES: Final = frozenset(range(1000, 1015)) - {1004, 1005, 1006}


class BadFrame(ValueError):
    """Bytes that break RFC 6455. `before`: the messages that were complete before the bad one, in the same read."""

    def __init__(self, line: str, before: Sequence[Message] = ()) -> None:
        super().__init__(line)
        self.before = before


def frame(opcode: int, payload: bytes, mask: bytes = NO_MASK) -> bytes:
    """A client's whole message on the wire. The mask: four bytes, unpredictable where a proxy may listen."""
    size = len(payload)
    if size < 126:
        head = bytes((_FIN | opcode, 0x80 | size))
    elif size < 1 << 16:
        head = struct.pack("!BBH", _FIN | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", _FIN | opcode, 0x80 | 127, size)
    return head + mask + masked(payload, mask)


def masked(payload: bytes, mask: bytes) -> bytes:
    """`payload` xor the four bytes of `mask`, over and over; its own inverse."""
    if mask == NO_MASK:
        return payload
    size = len(payload)
    words, rest = divmod(size, 4)
    if size < _LONG:
        key = int.from_bytes(mask * words + mask[:rest], "little")
        return (int.from_bytes(payload, "little") ^ key).to_bytes(size, "little")
    whole = (np.frombuffer(payload, _WORDS, words) ^ np.frombuffer(mask, _WORDS)).tobytes()
    return whole + masked(payload[-rest:], mask) if rest else whole


def close_reason(payload: bytes) -> tuple[int, str]:
    """Code and text of a CLOSE message; 1005 where it has none (RFC 6455, 7.1.5). Raises BadFrame."""
    if not payload:
        return 1005, ""
    if len(payload) == 1:
        raise BadFrame("a close message of one byte")
    code = int.from_bytes(payload[:2], "big")
    if not (code in _CODES or 3000 <= code <= 4999):
        raise BadFrame(f"close code {code}, which no peer may send")
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        raise BadFrame(f"close code {code} with a reason that is no UTF-8: {payload[2:42]!r}") from None


class Frames:
    """The server's bytes, cut anywhere, as messages. After an error it stays in error; after a CLOSE it is deaf."""

    __slots__ = (
        "_closed",
        "_have",
        "_line",
        "_most",
        "_need",
        "_opcode",
        "_parts",
        "_parts_bytes",
        "_pieces",
        "_usual",
        "_usual_bytes",
    )

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most = most_bytes
        # Where nothing is pending: the head of the last read that was one whole message, and the read's length.
        self._usual, self._usual_bytes = b"", -1
        # The beginning of a frame that has not come whole: its pieces, their length, and the length to wait for.
        self._pieces: list[bytes] = []
        self._have = self._need = 0
        # A message in fragments: its opcode (0: none) and what came of it.
        self._opcode = 0
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._closed = False
        self._line = ""

    @property
    def usual(self) -> tuple[bytes, int]:
        """The head and the whole length of a binary message like the last, where one may come now: else -1."""
        return self._usual, self._usual_bytes

    def feed(self, data: bytes) -> list[Message]:
        """Messages that `data` completes, in order. Raises BadFrame."""
        if len(data) == self._usual_bytes and data.startswith(self._usual):
            return [(BINARY, data[4:])]
        return self._parse(data)

    def _parse(self, data: bytes) -> list[Message]:
        found: list[Message] = []
        if self._line:
            raise BadFrame(self._line)
        if self._closed:
            return found
        if self._pieces:
            self._pieces.append(data)
            self._have += len(data)
            if self._have < self._need:
                return found
            data = b"".join(self._pieces)
            self._pieces.clear()
        try:
            at = self._walk(data, found)
        except BadFrame as error:
            self._line, self._usual_bytes = str(error), -1
            self._parts.clear()
            raise BadFrame(self._line, found) from None
        if at < len(data):
            self._pieces.append(data[at:])
            self._have = len(data) - at
        if self._pieces or self._opcode or self._closed:
            self._usual_bytes = -1
        elif len(found) == 1 and data[0] == _WHOLE_BINARY and data[1] == 126 and len(found[0][1]) == len(data) - 4:
            self._usual, self._usual_bytes = data[:4], len(data)
        return found

    def _walk(self, data: bytes, found: list[Message]) -> int:
        """Append the whole messages in `data`; where the frame begins that is not whole, `_need` being its length."""
        at, end = 0, len(data)
        self._need = 2
        while end - at >= 2:
            first, size = data[at], data[at + 1]
            if first == _WHOLE_BINARY and size == 126 and not self._opcode and end - at >= 4:
                begin, size = at + 4, data[at + 2] << 8 | data[at + 3]
            else:
                self._check(first, size)
                begin, size = _extent(data, at, size)
            if size + self._parts_bytes > self._most:
                _bad(f"a message of {size + self._parts_bytes} bytes or more, above the limit of {self._most}")
            stop = begin + size
            if stop > end:
                self._need = stop - at
                return at
            if first == _WHOLE_BINARY:
                found.append((BINARY, data[begin:stop]))
            elif (message := self._take(first, data[begin:stop])) is not None:
                found.append(message)
                if message[0] == CLOSE:
                    self._closed = True
                    return end
            at = stop
            self._need = 2
        return at

    def _check(self, first: int, size: int) -> None:
        """The first two bytes of a frame, as soon as they are there."""
        opcode = first & 0x0F
        if first & 0x70:
            _bad(f"reserved bits {first >> 4 & 7:#05b} in a frame, though no extension was agreed on")
        if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            _bad(f"unknown opcode {opcode:#x}")
        if size > 127:
            _bad("a masked frame from the server")
        if opcode & 0x8:
            if not first & _FIN:
                _bad(f"a control message ({opcode:#x}) in fragments")
            if size > _LONGEST_CONTROL:
                _bad(f"a control message ({opcode:#x}) of more than {_LONGEST_CONTROL} bytes")
        elif opcode and self._opcode:
            _bad(f"a new message ({opcode:#x}) while one in fragments has not ended")
        elif not opcode and not self._opcode:
            _bad("a continuation of no message")

    def _take(self, first: int, payload: bytes) -> Message | None:
        opcode = first & 0x0F
        if opcode & 0x8:
            return opcode, payload
        if not first & _FIN or self._opcode:
            if payload:
                self._parts.append(payload)
                self._parts_bytes += len(payload)
            self._opcode = self._opcode or opcode
            if not first & _FIN:
                return None
            opcode, payload = self._opcode, b"".join(self._parts)
            self._parts.clear()
            self._opcode = self._parts_bytes = 0
        if opcode == TEXT:
            try:
                payload.decode()
            except UnicodeDecodeError as error:
                _bad(f"a text message that is no UTF-8: {payload[error.start : error.start + 20]!r}")
        return opcode, payload


def _extent(data: bytes, at: int, size: int) -> tuple[int, int]:
    """Where the payload of the frame at `at` begins, and its length: 0 while the length itself is not there."""
    if size < 126:
        return at + 2, size
    begin = at + (4 if size == 126 else 10)
    return begin, int.from_bytes(data[at + 2 : begin], "big") if begin <= len(data) else 0


def _bad(line: str) -> NoReturn:
    raise BadFrame(line)

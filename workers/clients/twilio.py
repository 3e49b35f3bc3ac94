"""Twilio Media Streams, played from Twilio's side: JSON text messages, μ-law at 8 kHz. Knows nothing of sockets.

The messages are those of https://www.twilio.com/docs/voice/media-streams/websocket-messages, checked against
pipecat-ai's TwilioFrameSerializer. That one reads `media.payload` only; others read `chunk` and `timestamp` as well.
"""

import binascii
import hashlib
import json
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from workers.clients.rtvi import Rtvi, one_line
from workers.clients.websocket import BINARY, TEXT, Message
from workers.events import Audio, Event, Fault, Interruption

RATE: Final = 8_000
_BIAS: Final = 33  # G.711 counts in 14 bits; the bias makes every segment begin at a power of two
_CLIP: Final = 8191
_MOST_MARKS: Final = 10_000


def _decoder() -> npt.NDArray[np.int16]:
    """G.711 table 2: (256,) int16 samples of the codes."""
    codes = ~np.arange(256, dtype=np.int32) & 0xFF
    segments, steps = codes >> 4 & 7, codes & 15
    levels = ((2 * steps + _BIAS) << segments) - _BIAS
    samples: npt.NDArray[np.int16] = (np.where(codes & 0x80, -levels, levels) * 4).astype("<i2")
    return samples


def _encoder() -> npt.NDArray[np.uint8]:
    """(65536,) codes of the int16 samples, indexed by their bits as uint16; negatives mirror as in ITU-T G.191."""
    samples = np.arange(65536, dtype=np.uint16).view(np.int16).astype(np.int32)
    levels = np.minimum((np.where(samples < 0, ~samples, samples) >> 2) + _BIAS, _CLIP)
    segments = np.frexp(levels)[1] - 6  # levels run from 33 (segment 0) to 8191 (segment 7)
    codes = segments << 4 | levels >> (segments + 1) & 15
    inverted: npt.NDArray[np.uint8] = (~(codes | np.where(samples < 0, 0x80, 0)) & 0xFF).astype(np.uint8)
    return inverted


_DECODER: Final = _decoder()
_ENCODER: Final = _encoder()


def ulaw(pcm: bytes) -> bytes:
    """int16 samples as G.711 μ-law."""
    return _ENCODER.take(np.frombuffer(pcm, "<u2")).tobytes()


def linear(codes: bytes) -> bytes:
    """G.711 μ-law as int16 samples."""
    return _DECODER.take(np.frombuffer(codes, np.uint8)).tobytes()


@lru_cache(maxsize=4096)
def _payload(pcm: bytes) -> str:
    """A chunk as `media.payload`. All sessions play the same clips: what is dear is done once a worker."""
    return binascii.b2a_base64(ulaw(pcm), newline=False).decode("ascii")


_INTERRUPTION: Final = (Interruption(),)


class Twilio:
    """One call's messages, both ways. The order of `audio` calls is the order on the wire: messages are numbered."""

    name: ClassVar[str] = "twilio"
    path: ClassVar[str] = "/ws"
    usual_rate: ClassVar[int] = RATE
    shares_audio: ClassVar[bool] = False  # each message holds the stream's sid, its number and its place in time

    def __init__(self, stream_id: str, send_rate: int | None = None) -> None:
        """Raises ValueError for a rate other than 8 kHz: Twilio knows no other."""
        if send_rate not in (None, RATE):
            raise ValueError(f"Twilio's media is {RATE} Hz, not {send_rate}")
        self.stream_id, self.send_rate = stream_id, RATE
        digits = hashlib.sha256(stream_id.encode("utf-8", "replace")).hexdigest()
        self.stream_sid, self.call_sid = f"MZ{digits[:32]}", f"CA{digits[32:]}"
        self._number = self._chunks = self._sent = 0  # messages, media messages and samples sent
        self._received = 0  # samples
        self._marks: deque[tuple[int, str]] = deque()  # (samples that come before it, name)
        self._rtvi = Rtvi()

    def opening(self) -> list[Message]:
        start = {
            "accountSid": f"AC{0:032x}",
            "streamSid": self.stream_sid,
            "callSid": self.call_sid,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": RATE, "channels": 1},
            "customParameters": {"stream_id": self.stream_id},
        }
        connected = {"event": "connected", "protocol": "Call", "version": "1.0.0"}
        return [_message(connected), self._numbered("start", start)]

    def audio(self, pcm: bytes) -> Message:
        """One chunk of int16 mono at 8 kHz."""
        self._number += 1
        self._chunks += 1
        text = (
            f'{{"event":"media","sequenceNumber":"{self._number}","media":{{"track":"inbound",'
            f'"chunk":"{self._chunks}","timestamp":"{self._sent * 1000 // RATE}","payload":"{_payload(pcm)}"}},'
            f'"streamSid":"{self.stream_sid}"}}'
        )
        self._sent += len(pcm) >> 1
        return TEXT, text.encode()

    def closing(self) -> list[Message]:
        return [self._numbered("stop", {"accountSid": f"AC{0:032x}", "callSid": self.call_sid})]

    def owed(self, played: int) -> list[Message]:
        """Marks to send back: those before which no more than `played` of the samples received came.

        A mark asks to be told when the audio before it has been played, or was cleared. `played` counts samples of the
        session, cleared ones too.
        """
        echoes = []
        while self._marks and self._marks[0][0] <= played:
            echoes.append(self._numbered("mark", {"name": self._marks.popleft()[1]}))
        return echoes

    def cut(self, data: bytearray, end: int, framing: bytes, count: int) -> None:
        """Nothing: each of these messages has to be parsed."""

    def decode(self, opcode: int, payload: bytes) -> Sequence[Event]:
        """Events of one message. Never raises."""
        if opcode != TEXT:
            line = f"a binary message of {len(payload)} bytes, where only text is due"
            return (Fault("binary_message", line),) if opcode == BINARY else ()
        try:
            message = json.loads(payload.decode())  # from bytes it guesses at encodings first
        except (ValueError, RecursionError) as error:
            return (Fault("bad_json", f"a message that is no JSON ({one_line(error)}): {one_line(payload[:80])}"),)
        return self._events(message) if isinstance(message, dict) else (_unknown(message),)

    def _events(self, message: dict[str, Any]) -> Sequence[Event]:
        if (sid := message.get("streamSid", self.stream_sid)) != self.stream_sid:
            # Under load a server may mix its calls up; Twilio would not play this.
            return (Fault("wrong_stream", f"a message for stream {one_line(sid)}, this is {self.stream_sid}"),)
        match message.get("event"):
            case "media":
                return (self._media(message.get("media")),)
            case "clear":
                self._marks = deque((0, name) for _, name in self._marks)
                return _INTERRUPTION
            case "mark":
                return self._mark(message.get("mark"))
        return self._rtvi.events(message) if message.get("label") == "rtvi-ai" else (_unknown(message.get("event")),)

    def _media(self, media: Any) -> Audio | Fault:
        payload = media.get("payload") if isinstance(media, dict) else None
        if not isinstance(payload, str):
            return Fault("bad_media", f"a media message without a payload: {one_line(media)}")
        try:
            codes = binascii.a2b_base64(payload, strict_mode=True)
        except ValueError as error:
            return Fault("bad_base64", f"a media payload that is no base64 ({error}): {one_line(payload[:40])}")
        if not codes:
            return Fault("empty_audio", "a media message without a sample")
        self._received += len(codes)
        return Audio(linear(codes), RATE)

    def _mark(self, mark: Any) -> Sequence[Event]:
        name = mark.get("name") if isinstance(mark, dict) else None
        if not isinstance(name, str) or len(self._marks) >= _MOST_MARKS:
            return (Fault("bad_mark", f"a mark without a name, or one too many: {one_line(mark)}"),)
        self._marks.append((self._received, name))
        return ()

    def _numbered(self, event: str, about: dict[str, Any]) -> Message:
        self._number += 1
        sid = {"streamSid": self.stream_sid}
        return _message({"event": event, "sequenceNumber": str(self._number), event: about} | sid)


def _message(message: dict[str, Any]) -> Message:
    return TEXT, json.dumps(message, separators=(",", ":")).encode()


def _unknown(event: object) -> Fault:
    return Fault("unknown_message", f"event {one_line(event)[:60]!r}, where media, mark and clear are known")

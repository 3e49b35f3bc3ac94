"""pipecat's protobuf dialect, spoken by NVIDIA's voice-agent bots too. Knows nothing of sockets or clocks.

One `pipecat.Frame` a binary WebSocket message. Audio goes out as raw int16 at the server's input rate; it comes back
raw (stock pipecat) or as a whole WAV file in each message (NVIDIA's bots), told apart by how it begins. Words, hints
and the server's own figures come as RTVI messages (rtvi.py). Checked against pipecat-ai's own serializer (tests/wire).
"""

import re
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from workers.audio.containers import BadAudio, WavStream, mono
from workers.clients.rtvi import CLIENT_READY, Rtvi, one_line
from workers.clients.websocket import BINARY, TEXT, Message
from workers.events import Audio, Event, Fault, Interruption

LOWEST_RATE: Final = 4_000
HIGHEST_RATE: Final = 192_000
_MOST_CHANNELS: Final = 32
_MOST_FILES: Final = 64  # one would do; WavStream reads several, at a cost that grows with their square


def _frame_class() -> Any:
    """The message class of frames.proto, made here so that nobody needs protoc. NVIDIA's older one lacks 4 and 5."""
    kinds = {
        "TextFrame": "id:uint64 name:string text:string",
        "AudioRawFrame": "id:uint64 name:string audio:bytes sample_rate:uint32 num_channels:uint32 pts:uint64",
        "TranscriptionFrame": "id:uint64 name:string text:string user_id:string timestamp:string",
        "MessageFrame": "data:string",
        "InterruptionFrame": "id:uint64 name:string",
    }
    proto = descriptor_pb2.FieldDescriptorProto
    types = {"uint64": proto.TYPE_UINT64, "uint32": proto.TYPE_UINT32}
    types |= {"string": proto.TYPE_STRING, "bytes": proto.TYPE_BYTES}
    file = descriptor_pb2.FileDescriptorProto(name="frames.proto", package="pipecat", syntax="proto3")
    for kind, fields in kinds.items():
        message = file.message_type.add(name=kind)
        for number, field in enumerate(fields.split(), 1):
            name, _, type_name = field.partition(":")
            message.field.add(name=name, number=number, type=types[type_name], label=proto.LABEL_OPTIONAL)
    frame = file.message_type.add(name="Frame")
    frame.oneof_decl.add(name="frame")
    for number, (name, kind) in enumerate(zip(_KINDS, kinds, strict=True), 1):
        field_type = f".pipecat.{kind}"
        one = frame.field.add(name=name, number=number, type=proto.TYPE_MESSAGE, type_name=field_type, oneof_index=0)
        one.label = proto.LABEL_OPTIONAL
    pool = descriptor_pool.DescriptorPool()  # an own one: pipecat itself may be imported beside us
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("pipecat.Frame"))


_KINDS: Final = ("text", "audio", "transcription", "message", "interruption")
_Frame: Final = _frame_class()
_parse: Final = _Frame.FromString

_new: Final = tuple.__new__
_R: Final = b"RIFF"[0]

_INTERRUPTION: Final = (Interruption(),)
_NO_AUDIO: Final = (Fault("empty_audio", "an audio message without a sample"),)


class _Mould(NamedTuple):
    """What is fixed in a message like the last one: same size, same length, rate and channels of its audio.

    Only id and name may differ, which stand before it. Finding several such messages at once with a regular expression
    takes a tenth of the time of parsing them, which for a thousand sessions is an eighth of a core.
    """

    head: bytes  # tag and length of the audio frame
    between: int  # bytes of id and name
    length: bytes  # tag and length of the samples
    size: int  # bytes of samples
    tail: bytes  # rate and channels
    rate: int


_Like: TypeAlias = Callable[..., re.Match[bytes] | None]
_MOST_AT_ONCE: Final = 25  # messages: a pattern for more takes a millisecond to compile


@lru_cache(maxsize=1024)
def _like(mould: _Mould, framing: bytes, count: int) -> _Like:
    """Matches `count` messages of a mould, each behind the same `framing`; its groups are their samples.

    Samples that begin as a WAV file does match nothing.
    """
    before = re.escape(framing + mould.head) + b".{%d}" % mould.between + re.escape(mould.length)
    one = before + b"(?!RIFF)(.{%d})" % mould.size + re.escape(mould.tail)
    return re.compile(one * count, re.DOTALL).fullmatch


def _mould_of(message: bytes, samples: bytes, rate: int) -> _Mould | None:
    """The mould of a message of one channel that holds `samples`; None where they are not where they usually are."""
    tail = b"\x20" + _varint(rate) + b"\x28\x01"
    length = b"\x1a" + _varint(len(samples))
    head = b"\x12" + _varint(len(message) - 1 - len(_varint(len(message) - 3)))
    between = len(message) - len(head) - len(length) - len(samples) - len(tail)
    end = length + samples + tail
    if between < 0 or not message.startswith(head) or not message.endswith(end):
        return None
    return _Mould(head, between, length, len(samples), tail, rate)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


class Pipecat:
    """One session's messages, both ways."""

    name: ClassVar[str] = "pipecat"
    path: ClassVar[str] = "/ws/{stream_id}"
    usual_rate: ClassVar[int] = 16_000
    shares_audio: ClassVar[bool] = True

    def __init__(self, stream_id: str, send_rate: int | None = None, *, client_ready: bool = False) -> None:
        """`client_ready`: say so in RTVI's way, which some bots wait for before they greet."""
        self.stream_id = stream_id
        self.send_rate = send_rate or self.usual_rate
        self._client_ready = client_ready
        self._rate = -1  # of the last audio that was fit to be heard
        self._bytes = -1  # of the last message with such audio
        self._mould: _Mould | None = None  # where two in a row were alike
        self._likes: dict[tuple[bytes, int], _Like] = {}
        self._rtvi = Rtvi()

    def opening(self) -> list[Message]:
        if not self._client_ready:
            return []
        message = _Frame()
        message.message.data = CLIENT_READY
        return [(BINARY, message.SerializeToString())]

    def audio(self, pcm: bytes) -> Message:
        """One chunk of int16 mono at `send_rate`."""
        message = _Frame()
        audio = message.audio
        audio.audio = pcm
        audio.sample_rate = self.send_rate
        audio.num_channels = 1
        return BINARY, message.SerializeToString()

    def closing(self) -> list[Message]:
        return []

    def owed(self, played: int) -> list[Message]:
        """Nothing: this server asks for no answers."""
        return []

    def decode(self, opcode: int, payload: bytes) -> Sequence[Event]:
        """Events of one message. Never raises."""
        if opcode != BINARY:
            return (_text_message(payload),) if opcode == TEXT else ()
        try:
            message = _parse(payload)
        except DecodeError as error:
            line = f"{len(payload)} bytes that are no protobuf ({error}): {payload[:16].hex(' ')}"
            return (Fault("bad_protobuf", line),)
        audio = message.audio
        data = audio.audio
        # Nearly every message is this one; every other is seen to below. Bytes of audio are proof enough that it is
        # audio: a oneof holds one kind only. `tuple.__new__` makes an Audio in half the time its own does.
        if data and data[0] != _R and not len(data) & 1 and audio.sample_rate == self._rate and audio.num_channels == 1:
            if len(payload) != self._bytes:
                self._bytes, self._mould = len(payload), None
            elif self._mould is None:
                self._mould = _mould_of(payload, data, self._rate)
                self._likes.clear()
            return (_new(Audio, (data, self._rate)),)
        kind = message.WhichOneof("frame")
        if kind != "audio":
            return self._other(kind, message, payload)
        event = _heard(data, audio.sample_rate, audio.num_channels)
        if isinstance(event, Audio):
            self._rate = audio.sample_rate if LOWEST_RATE <= audio.sample_rate <= HIGHEST_RATE else -1
            self._bytes, self._mould = len(payload), None
        return (event,)

    def cut(self, data: bytearray, end: int, framing: bytes, count: int) -> Audio | None:
        """All their samples, where each message is audio like the last one."""
        if self._mould is None or count > _MOST_AT_ONCE:
            return None
        like = self._likes.get((framing, count))
        if like is None:
            like = self._likes[framing, count] = _like(self._mould, framing, count)
        match = like(data, 0, end)
        return Audio(b"".join(match.groups()), self._mould.rate) if match is not None else None

    def _other(self, kind: str | None, message: Any, payload: bytes) -> Sequence[Event]:
        match kind:
            case "interruption":
                return _INTERRUPTION
            case "message":
                return self._rtvi.decode(message.message.data)
            case "text":
                return self._rtvi.text("agent", "text frame", message.text.text)
            case "transcription":
                return self._rtvi.text("user", "transcription frame", message.transcription.text)
        tag = f"of kind {payload[0] >> 3}" if payload else "of no byte"
        return (Fault("unknown_message", f"a message {tag}, where 1 to {len(_KINDS)} are known"),)


def _text_message(payload: bytes) -> Fault:
    return Fault("text_message", f"a text message, where only binary ones are due: {one_line(payload[:80])}")


def _heard(data: bytes, rate: int, channels: int) -> Audio | Fault:
    """Audio of any kind: raw or a WAV file, of one channel or several, right or wrong."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return _of_wav(data)
    if not data:
        return _NO_AUDIO[0]
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        return _odd_rate(rate)
    channels = channels or 1  # proto3 leaves out what is not set
    if channels > _MOST_CHANNELS:
        return Fault("odd_channels", f"audio of {channels} channels")
    if len(data) % (2 * channels):
        return _odd_bytes(len(data), channels)
    if channels > 1:
        data = mono(np.frombuffer(data, "<i2").reshape(-1, channels)).tobytes()
    return Audio(data, rate)


# RIFF, size, WAVE, fmt, 16, code, channels, rate, bytes a second, bytes a sample of all channels, bits, data, size
_USUAL_HEADER: Final = struct.Struct("<4sI4s4sIHHIIHH4sI")
_USUAL: Final = (b"fmt ", 16, 1, 1, 16, b"data")


def _of_wav(data: bytes) -> Audio | Fault:
    """A whole WAV file: the header most writers make in one go, any other chunk by chunk. Its own rate counts."""
    if len(data) >= 44:
        _, _, _, fmt, fmt_size, code, channels, rate, _, _, bits, name, size = _USUAL_HEADER.unpack_from(data)
        if (fmt, fmt_size, code, channels, bits, name) == _USUAL and size == len(data) - 44 and not size & 1 and size:
            return Audio(data[44:], rate) if LOWEST_RATE <= rate <= HIGHEST_RATE else _odd_rate(rate)
    if (files := data.count(b"RIFF")) > _MOST_FILES:
        return Fault("bad_wav", f"{files} WAV files in one message")
    stream = WavStream()
    try:
        samples = stream.feed(data)
    except BadAudio as error:
        return Fault("bad_wav", str(error))
    if not len(samples):
        return _NO_AUDIO[0]
    if not LOWEST_RATE <= stream.sample_rate <= HIGHEST_RATE:
        return _odd_rate(stream.sample_rate)
    return Audio(samples.astype("<i2", copy=False).tobytes(), stream.sample_rate)


def _odd_rate(rate: int) -> Fault:
    return Fault("odd_sample_rate", f"audio of {rate} samples a second")


def _odd_bytes(size: int, channels: int) -> Fault:
    of = f" of {channels} channels" if channels > 1 else ""
    return Fault("odd_bytes", f"{size} bytes of audio{of}: not whole samples")

"""Write and read the messages of pipecat's protobuf dialect. Knows nothing of sockets, clocks or dialogue.

The messages are those of pipecat's frames.proto; their descriptor is built here, so that no compiler is needed.
"""

import struct
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from gpu_server.audio_out import wav_header

_Field = descriptor_pb2.FieldDescriptorProto
_U64, _U32, _TEXT, _BYTES = _Field.TYPE_UINT64, _Field.TYPE_UINT32, _Field.TYPE_STRING, _Field.TYPE_BYTES
_NAMED = (("id", 1, _U64), ("name", 2, _TEXT))
_MESSAGES = {
    "TextFrame": (*_NAMED, ("text", 3, _TEXT)),
    "AudioRawFrame": (*_NAMED, ("audio", 3, _BYTES), ("sample_rate", 4, _U32), ("num_channels", 5, _U32)),
    "TranscriptionFrame": (*_NAMED, ("text", 3, _TEXT), ("user_id", 4, _TEXT), ("timestamp", 5, _TEXT)),
    "MessageFrame": (("data", 1, _TEXT),),
    "InterruptionFrame": _NAMED,
}
_KINDS = ("text", "audio", "transcription", "message", "interruption")


def _envelope() -> Any:
    """The class of `pipecat.Frame`, which holds exactly one of the messages above."""
    file = descriptor_pb2.FileDescriptorProto(name="cicada_agent.proto", package="pipecat", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            message.field.add(name=field, number=number, type=kind, label=_Field.LABEL_OPTIONAL)
    envelope = file.message_type.add(name="Frame")
    envelope.oneof_decl.add(name="frame")
    for number, (kind_name, message_name) in enumerate(zip(_KINDS, _MESSAGES, strict=True), start=1):
        envelope.field.add(
            name=kind_name,
            number=number,
            type=_Field.TYPE_MESSAGE,
            type_name=f".pipecat.{message_name}",
            label=_Field.LABEL_OPTIONAL,
            oneof_index=0,
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("pipecat.Frame"))


_Envelope = _envelope()


class Undecodable(Exception):
    """These bytes are no message of this dialect, or hold no audio that can be read."""


class Incoming(NamedTuple):
    """One message of a client. `kind` is None for one that a later dialect may know."""

    kind: str | None
    audio: bytes = b""
    sample_rate: int = 0  # 0: the client did not say
    channels: int = 0
    data: str = ""


def read_message(message: bytes) -> Incoming:
    """Decode one WebSocket message. Raises Undecodable."""
    try:
        envelope = _Envelope.FromString(message)
    except DecodeError as error:
        raise Undecodable(f"{len(message)} bytes that are no protobuf message of pipecat's") from error
    kind = envelope.WhichOneof("frame")
    if kind == "audio":
        audio = envelope.audio
        return Incoming(kind, audio.audio, audio.sample_rate, audio.num_channels)
    if kind == "message":
        return Incoming(kind, data=envelope.message.data)
    return Incoming(kind)


def unpack_wav(data: bytes) -> tuple[bytes, int, int]:
    """The samples, rate (Hz) and channels of a whole WAV file of 16-bit PCM. Raises Undecodable."""
    try:
        return _wav_parts(data)
    except struct.error as error:
        raise Undecodable(f"a WAV of {len(data)} bytes that ends too soon") from error


def _wav_parts(data: bytes) -> tuple[bytes, int, int]:
    rate = channels = 0
    start = 12
    while True:
        name, size = struct.unpack_from("<4sI", data, start)
        start += 8
        if name == b"fmt ":
            code, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", data, start)
            if code != 1 or bits != 16:
                raise Undecodable(f"a WAV of format {code} with {bits} bits; 16-bit PCM is understood")
        elif name == b"data":
            if rate == 0:
                raise Undecodable("a WAV whose data comes before its format")
            return data[start : start + size], rate, channels
        start += size + size % 2


class AudioWriter:
    """Makes audio messages of one kind: raw samples, or each a WAV file of its own as NVIDIA's bot sends them.

    All that surrounds the samples depends on their number alone, so it is made once a length.
    """

    def __init__(self, sample_rate: int, wav: bool) -> None:
        self._sample_rate = sample_rate
        self._wav = wav
        self._around: dict[int, tuple[bytes, bytes]] = {}

    def message(self, pcm: bytes) -> bytes:
        """One message with these s16le mono samples."""
        around = self._around.get(len(pcm))
        if around is None:
            around = self._around[len(pcm)] = self._surroundings(len(pcm))
        return around[0] + pcm + around[1]

    def _surroundings(self, pcm_bytes: int) -> tuple[bytes, bytes]:
        header = wav_header(pcm_bytes, self._sample_rate) if self._wav else b""
        filling = b"\xff" * pcm_bytes
        envelope = _Envelope()
        envelope.audio.audio = header + filling
        envelope.audio.sample_rate = self._sample_rate
        envelope.audio.num_channels = 1
        written: bytes = envelope.SerializeToString()
        # The samples are the one long field: nothing before them holds that many 0xff bytes.
        start = written.index(header + filling) + len(header)
        return written[:start], written[start + pcm_bytes :]


def write_message(data: str) -> bytes:
    """A message that carries a JSON text."""
    envelope = _Envelope()
    envelope.message.data = data
    written: bytes = envelope.SerializeToString()
    return written


def write_interruption(number: int) -> bytes:
    """Tells the client to drop what it has not yet played."""
    envelope = _Envelope()
    envelope.interruption.id = number
    envelope.interruption.name = f"InterruptionFrame#{number}"
    written: bytes = envelope.SerializeToString()
    return written

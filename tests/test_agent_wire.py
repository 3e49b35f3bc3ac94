"""The agent's protobuf messages against bytes of pipecat's own serializer."""

import json
import struct

import pytest

from gpu_server.agent_wire import (
    AudioWriter,
    Incoming,
    Undecodable,
    read_message,
    unpack_wav,
    write_interruption,
    write_message,
)
from tests.agent_client import audio_message, fields

# Made with pipecat-ai 1.14.0: `ProtobufFrameSerializer().serialize(...)` of OutputAudioRawFrame (s16le 1, 32767 at
# 16 kHz), InterruptionFrame, OutputTransportMessageFrame, TextFrame and TranscriptionFrame, each with id 7.
AUDIO = bytes.fromhex("1224080712154f7574707574417564696f5261774672616d6523301a040100ff7f20807d2801")
INTERRUPTION = bytes.fromhex("2a1708071213496e74657272757074696f6e4672616d652330")
MESSAGE = bytes.fromhex(
    "22720a707b226c6162656c223a2022727476692d6169222c202274797065223a2022636c69656e742d7265616479222c20226964223a2022"
    "31222c202264617461223a207b2276657273696f6e223a2022322e322e30222c202261626f7574223a207b226c696272617279223a202278"
    "227d7d7d"
)
TEXT = bytes.fromhex("0a130807120b546578744672616d6523301a026869")
TRANSCRIPTION = bytes.fromhex("1a22080712145472616e736372697074696f6e4672616d6523301a0268692201752a0174")


def test_pipecats_messages_are_read() -> None:
    assert read_message(AUDIO) == Incoming("audio", b"\x01\x00\xff\x7f", 16_000, 1)
    assert json.loads(read_message(MESSAGE).data)["type"] == "client-ready"
    for message, kind in ((TEXT, "text"), (TRANSCRIPTION, "transcription"), (INTERRUPTION, "interruption")):
        assert read_message(message).kind == kind


def test_what_is_written_is_what_pipecat_writes_but_for_the_name() -> None:
    ours, theirs = AudioWriter(16_000, wav=False).message(b"\x01\x00\xff\x7f"), AUDIO
    assert fields(fields(ours)[2]) == {k: v for k, v in fields(fields(theirs)[2]).items() if k > 2}
    theirs_interrupting = fields(fields(INTERRUPTION)[5])
    assert fields(fields(write_interruption(7))[5]) == theirs_interrupting | {2: b"InterruptionFrame#7"}
    assert write_message(read_message(MESSAGE).data) == MESSAGE


@pytest.mark.parametrize("size", [2, 6, 126, 128, 640, 3200, 32_766, 32_768, 70_000])
def test_audio_of_every_length_is_framed_rightly(size: int) -> None:
    pcm = (b"\xff" * size)[:size]
    for wav in (False, True):
        writer = AudioWriter(24_000, wav)
        for _ in range(2):  # the second time from what was kept
            got = fields(fields(writer.message(pcm))[2])
            assert (got[4], got[5]) == (24_000, 1)
            assert got[3] == pcm if not wav else got[3][44:] == pcm


def test_a_message_of_audio_as_wav_is_a_whole_file() -> None:
    file = fields(fields(AudioWriter(16_000, wav=True).message(bytes(3200)))[2])[3]
    assert struct.unpack("<4sI4s4sIHHIIHH4sI", file[:44]) == (
        *(b"RIFF", 3236, b"WAVE", b"fmt ", 16, 1, 1, 16_000, 32_000, 2, 16, b"data", 3200),
    )
    assert unpack_wav(file) == (bytes(3200), 16_000, 1)


@pytest.mark.parametrize("kept", range(1, len(AUDIO)))
def test_a_torn_message_is_undecodable_or_of_no_kind(kept: int) -> None:
    with pytest.raises(Undecodable):
        read_message(AUDIO[:kept])


def test_a_kind_of_a_later_dialect_has_no_name() -> None:
    assert read_message(b"\x32\x02\x08\x01") == Incoming(None)  # field 6
    assert read_message(b"") == Incoming(None)


def test_audio_that_says_nothing_of_itself_is_read() -> None:
    assert read_message(b"\x12\x04\x1a\x02\x01\x00") == Incoming("audio", b"\x01\x00", 0, 0)
    assert read_message(audio_message(b"\1\0", 8000, 2)) == Incoming("audio", b"\1\0", 8000, 2)


@pytest.mark.parametrize("kept", [4, 11, 12, 19, 25, 43])
def test_a_torn_wav_is_undecodable(kept: int) -> None:
    file = fields(fields(AudioWriter(16_000, wav=True).message(bytes(64)))[2])[3]
    with pytest.raises(Undecodable):
        unpack_wav(file[:kept])

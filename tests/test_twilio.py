"""Twilio Media Streams: what pipecat's serializer makes and reads, G.711 to the code, marks, and bad messages."""

import base64
import json
import random
from typing import Any

import numpy as np
import pytest

from tests.test_voice_agent_codec import WIRE, is_sound, mangled
from tests.test_websocket import cut, parse, served
from workers.clients.codecs import CODECS
from workers.clients.twilio import Twilio, linear, ulaw
from workers.clients.websocket import BINARY, PING, TEXT
from workers.events import Audio, Event, Fault, Hint, Interruption

STREAM = "stream-1"  # as in the capture script
PCM = bytes.fromhex(WIRE["telephone_pcm"])
FROM_SERVER = {name: text.encode() for name, text in WIRE["twilio"]["from_server"].items()}
DECODED = bytes.fromhex(WIRE["ulaw"]["decoded"])
EVERY_SAMPLE = np.arange(-32768, 32768).astype("<i2")


def heard(message: object, stream_id: str = STREAM) -> list[Event]:
    payload = message if isinstance(message, bytes) else json.dumps(message).encode()
    return list(Twilio(stream_id).decode(TEXT, payload))


def media(payload: object) -> dict[str, Any]:
    return {"event": "media", "media": {"payload": payload}}


# ---- G.711


def test_every_code_is_the_sample_of_g711():
    assert linear(bytes(range(256))) == DECODED


def test_every_sample_is_the_code_of_g711():
    """The decision values as CPython's audioop has them; below zero the mirror, one's complement (ITU-T G.191)."""
    firsts, codes = np.array([pair.split(":") for pair in WIRE["ulaw"]["encoded_from"].split()], int).T
    expected = codes[np.searchsorted(firsts, np.arange(32768), side="right") - 1].astype(np.uint8)
    positive = np.frombuffer(ulaw(EVERY_SAMPLE[32768:].tobytes()), np.uint8)
    negative = np.frombuffer(ulaw((~EVERY_SAMPLE[32768:]).tobytes()), np.uint8)
    assert (positive == expected).all()
    assert (negative == (expected ^ 0x80)).all()


def test_what_is_decoded_is_encoded_again_and_known_vectors():
    codes = bytes(range(256))
    assert ulaw(linear(codes)) == codes.replace(b"\x7f", b"\xff")  # the two zeros are one sample
    assert ulaw(np.array([0, -1, 32767, -32768, 1000, -1000], "<i2").tobytes()).hex() == "ff7f8000ce4e"
    assert np.frombuffer(linear(bytes.fromhex("ff7f8000ce4e")), "<i2").tolist() == [0, 0, 32124, -32124, 988, -988]


def test_quantizing_is_off_by_no_more_than_half_a_step():
    back = np.frombuffer(linear(ulaw(EVERY_SAMPLE.tobytes())), "<i2").astype(int)
    samples = EVERY_SAMPLE.astype(int)
    allowed = np.maximum(4, (np.abs(samples) + 132) / 32 + 4)
    clipped = np.abs(samples) > 32124
    assert (np.abs(back - samples) <= allowed)[~clipped].all()
    assert (np.abs(back) == 32124)[clipped].all()


# ---- messages


def test_what_pipecats_serializer_has_read_is_what_is_sent():
    """The capture script asserts that pipecat hears the samples of the media messages."""
    codec = Twilio(STREAM)
    sent = [*codec.opening(), codec.audio(PCM), codec.audio(PCM), *codec.closing()]
    assert sent == [(TEXT, text.encode()) for text in WIRE["twilio"]["from_client"]]


def test_messages_are_numbered_and_timed_as_twilios():
    codec = Twilio("abc")
    chunks = [codec.audio(bytes(320)) for _ in range(3)]
    said = [json.loads(payload) for _, payload in [*codec.opening(), *chunks, *codec.closing()]]
    assert [message["event"] for message in said] == ["connected", "start", "media", "media", "media", "stop"]
    start = said[1]["start"]
    assert start["streamSid"] == codec.stream_sid
    assert start["callSid"] == codec.call_sid
    assert start["mediaFormat"] == {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
    assert start["customParameters"] == {"stream_id": "abc"}
    assert {message["streamSid"] for message in said[1:]} == {codec.stream_sid}
    assert [message["media"]["chunk"] for message in said[2:5]] == ["1", "2", "3"]
    assert [message["media"]["timestamp"] for message in said[2:5]] == ["0", "20", "40"]
    assert {base64.b64decode(message["media"]["payload"]) for message in said[2:5]} == {b"\xff" * 160}


def test_numbers_rise_with_every_message():
    codec = Twilio("abc")
    sent = [*codec.opening()[1:], codec.audio(PCM)]
    codec.decode(TEXT, FROM_SERVER["mark"].replace(Twilio(STREAM).stream_sid.encode(), codec.stream_sid.encode()))
    sent += [*codec.owed(0), codec.audio(PCM), *codec.closing()]
    assert [json.loads(payload)["sequenceNumber"] for _, payload in sent] == ["1", "2", "3", "4", "5"]


def test_two_streams_have_two_sids_and_share_no_messages():
    one, other = (CODECS["twilio"](stream, None) for stream in "ab")
    assert not one.shares_audio
    assert one.audio(PCM) != other.audio(PCM)
    assert one.send_rate == 8000
    assert len(Twilio("a").stream_sid) == len(Twilio("a").call_sid) == 34


def test_another_rate_is_refused():
    with pytest.raises(ValueError, match="8000 Hz, not 16000"):
        CODECS["twilio"]("s", 16000)


def test_what_pipecats_serializer_sends():
    (audio,) = heard(FROM_SERVER["media"])
    assert isinstance(audio, Audio)
    assert audio.rate == 8000
    # pipecat's audioop rounds some negative samples by one code; its own codes are what was heard.
    codes = base64.b64decode(json.loads(FROM_SERVER["media"])["media"]["payload"])
    assert audio.pcm == b"".join(DECODED[2 * code : 2 * code + 2] for code in codes)
    difference = np.frombuffer(audio.pcm, "<i2").astype(int) - np.frombuffer(PCM, "<i2")
    assert np.abs(difference).max() <= 1024
    assert heard(FROM_SERVER["clear"]) == [Interruption()]
    assert heard(FROM_SERVER["mark"]) == []


def test_what_pipecats_serializer_sends_cut_at_every_offset():
    stream = b"".join(served(TEXT, message) for message in FROM_SERVER.values())
    for at in range(len(stream) + 1):
        codec = Twilio(STREAM)
        messages, error = parse(cut(stream, [at]))
        assert not error
        kinds = [type(event) for message in messages for event in codec.decode(*message)]
        assert kinds == [Audio, Interruption]


@pytest.mark.parametrize("count", [1, 2, 160, 500_000])
def test_what_is_encoded_is_decoded(count: int):
    codes = np.random.default_rng(count).integers(0, 256, count).astype(np.uint8).tobytes()
    codec = Twilio("s")
    sent = codec.audio(linear(codes))
    assert list(codec.decode(*sent)) == [Audio(linear(codes), 8000)]


def test_marks_are_sent_back_when_what_came_before_them_is_over():
    codec = Twilio(STREAM)

    def mark(name: str) -> None:
        assert list(codec.decode(TEXT, json.dumps({"event": "mark", "mark": {"name": name}}).encode())) == []

    def owed(played: int) -> list[str]:
        messages = [json.loads(payload) for _, payload in codec.owed(played)]
        assert all(message["event"] == "mark" for message in messages)
        assert all(message["streamSid"] == codec.stream_sid for message in messages)
        return [message["mark"]["name"] for message in messages]

    mark("at once")
    assert owed(0) == ["at once"]
    for name in "ab":
        codec.decode(TEXT, FROM_SERVER["media"])
        mark(name)
    assert owed(159) == []
    assert owed(160) == ["a"]
    assert owed(160) == []
    mark("c")
    codec.decode(TEXT, FROM_SERVER["clear"])
    assert owed(160) == ["b", "c"]  # what was cleared will never be played
    codec.decode(TEXT, FROM_SERVER["media"])
    mark("d")
    assert owed(479) == []
    assert owed(480) == ["d"]


def test_marks_without_end_are_a_fault_and_take_no_more_memory():
    codec = Twilio(STREAM)
    events = [event for _ in range(10_010) for event in codec.decode(TEXT, FROM_SERVER["mark"])]
    assert [event.kind for event in events if isinstance(event, Fault)] == ["bad_mark"] * 10


@pytest.mark.parametrize(
    ("message", "kind", "line"),
    [
        (b"{", "bad_json", "no JSON"),
        (b"\xff", "bad_json", "no JSON"),
        (b"", "bad_json", "no JSON"),
        (b"[" * 100_000, "bad_json", "no JSON"),
        ([], "unknown_message", "media, mark and clear"),
        ({}, "unknown_message", "media, mark and clear"),
        ({"event": "dance\n"}, "unknown_message", "dance"),
        ({"event": ["media"]}, "unknown_message", "media"),
        ({"event": "media"}, "bad_media", "without a payload"),
        ({"event": "media", "media": []}, "bad_media", "without a payload"),
        (media(None), "bad_media", "without a payload"),
        (media(5), "bad_media", "without a payload"),
        (media(""), "empty_audio", "without a sample"),
        (media("!!!!"), "bad_base64", "!!!!"),
        (media("abc"), "bad_base64", "abc"),
        (media("ab=="), None, ""),
        (media("ab==cd=="), "bad_base64", "ab=="),
        (media("gr\u00fcn"), "bad_base64", "gr\u00fcn"),
        (media("\ud800"), "bad_base64", "?"),
        ({"event": "mark"}, "bad_mark", "without a name"),
        ({"event": "mark", "mark": {"name": 5}}, "bad_mark", "5"),
        ({"event": "clear", "streamSid": "MZother"}, "wrong_stream", "MZother"),
        (media("AAAA") | {"streamSid": None}, "wrong_stream", "None"),
    ],
)
def test_messages_that_cannot_be_used(message: object, kind: str | None, line: str):
    (event,) = heard(message)
    if kind is None:
        assert isinstance(event, Audio)
        return
    assert isinstance(event, Fault)
    assert event.kind == kind
    assert line in event.line
    assert is_sound(event)


def test_binary_and_control_messages_and_rtvi():
    codec = Twilio("s")
    assert codec.decode(BINARY, b"\xff" * 160)[0][0] == "binary_message"
    assert codec.decode(PING, b"") == ()
    assert heard({"label": "rtvi-ai", "type": "bot-started-speaking"}) == [Hint("agent_started")]


def test_no_message_however_mangled_raises():
    rng = random.Random(711)
    seeds = [*FROM_SERVER.values(), json.dumps({"event": "mark", "mark": {"name": "x"}}).encode()]
    codec = Twilio(STREAM)
    for _ in range(5000):
        payload = mangled(rng, rng.choice(seeds))
        assert all(is_sound(event) for event in codec.decode(rng.choice((TEXT, TEXT, BINARY)), payload)), payload
        codec.owed(rng.randrange(1 << 20))

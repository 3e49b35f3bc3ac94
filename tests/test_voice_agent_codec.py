"""pipecat's protobuf dialect: bytes of its own serializer, its words and figures, and what can be wrong with audio."""

import json
import random
import struct
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_websocket import cut, parse, served
from workers.clients.codecs import CODECS
from workers.clients.voice_agent import Pipecat, _Frame, _like
from workers.clients.websocket import BINARY, PING, TEXT
from workers.events import Audio, Event, Fault, Hint, Interruption, ServerFigure, Text

WIRE = json.loads((Path(__file__).parent / "wire" / "pipecat.json").read_text())
FROM_SERVER = {name: bytes.fromhex(data) for name, data in WIRE["from_server"].items()}
PCM = bytes.fromhex(WIRE["pcm"])
SAMPLES = np.frombuffer(PCM, "<i2")
STEREO = SAMPLES.reshape(-1, 2).mean(axis=1).astype("<i2").tobytes()

EXPECTED: dict[str, list[Event]] = {
    "text": [Text("agent", "Grüße!")],
    "audio": [Audio(PCM, 24000)],
    "audio_wav": [Audio(PCM, 16000)],
    "audio_stereo": [Audio(STEREO, 24000)],
    "audio_empty": [Fault("empty_audio", "an audio message without a sample")],
    "transcription": [Text("user", "two pizzas")],
    "interruption": [Interruption()],
    "bot-ready": [Hint("ready")],
    "bot-started-speaking": [Hint("agent_started")],
    "bot-stopped-speaking": [Hint("agent_stopped")],
    "user-started-speaking": [Hint("user_started")],
    "user-stopped-speaking": [Hint("user_stopped")],
    "vad-user-stopped-speaking": [],
    "user-transcription-interim": [],
    "user-transcription": [Text("user", "two pizzas")],
    "bot-llm-text": [Text("agent", "Coming")],
    "bot-tts-text": [],
    "bot-transcription": [],
    "metrics": [
        ServerFigure("llm", "ttfb", 0.28341794013977051, "NvidiaLLMService#0"),
        ServerFigure("tts", "ttfa", 0.155, "AcmeTTSService#0"),
        ServerFigure("asr", "processing", 9.5e-05, "NemotronASRService#0"),
    ],
    "error": [Fault("server_said_failure", "the server says: the model is gone")],
    "server-message": [],
}


def heard(payload: bytes, opcode: int = BINARY) -> list[Event]:
    return list(Pipecat("s").decode(opcode, payload))


def audio(data: bytes, rate: int = 16000, channels: int = 1) -> bytes:
    message = _Frame()
    message.audio.audio, message.audio.sample_rate, message.audio.num_channels = data, rate, channels
    return bytes(message.SerializeToString())


def told(message: object) -> bytes:
    frame = _Frame()
    frame.message.data = message if isinstance(message, str) else json.dumps(message)
    return bytes(frame.SerializeToString())


@pytest.mark.parametrize("name", FROM_SERVER)
def test_what_pipecat_sends(name: str):
    assert heard(FROM_SERVER[name]) == EXPECTED[name]


def test_what_pipecat_sends_cut_at_every_offset():
    names = ["audio", "user-transcription", "audio_wav", "interruption", "metrics", "bot-ready"]
    stream = b"".join(served(BINARY, FROM_SERVER[name]) for name in names)
    expected = [event for name in names for event in EXPECTED[name]]
    for at in range(len(stream) + 1):
        codec = Pipecat("s")
        messages, error = parse(cut(stream, [at]))
        assert not error
        assert [event for message in messages for event in codec.decode(*message)] == expected


def test_what_pipecat_has_read_is_what_is_sent():
    """The capture script asserts that pipecat's serializer reads these two as they are meant."""
    codec = Pipecat("stream-1", client_ready=True)
    assert codec.opening() == [(BINARY, bytes.fromhex(WIRE["from_client"]["client-ready"]))]
    assert codec.audio(PCM) == (BINARY, bytes.fromhex(WIRE["from_client"]["audio"]))
    assert Pipecat("s").opening() == []
    assert codec.closing() == codec.owed(1 << 40) == []


def test_a_chunk_is_encoded_once_for_all_sessions():
    one, other = (CODECS["pipecat"](stream, None) for stream in "ab")
    assert one.shares_audio
    assert one.audio(PCM) == one.audio(PCM) == other.audio(PCM)
    assert one.path.replace("{stream_id}", "a") == "/ws/a"


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])
@pytest.mark.parametrize("count", [1, 2, 320, 2_500_000])
def test_what_is_encoded_is_decoded(rate: int, count: int):
    pcm = np.random.default_rng(count).integers(-32768, 32768, count).astype("<i2").tobytes()
    codec = CODECS["pipecat"]("s", rate)
    assert list(codec.decode(*codec.audio(pcm))) == [Audio(pcm, rate)]


@pytest.mark.parametrize(
    ("payload", "kind", "line"),
    [
        (audio(PCM, 0), "odd_sample_rate", "0 samples"),
        (audio(PCM, 3999), "odd_sample_rate", "3999"),
        (audio(PCM, 192_001), "odd_sample_rate", "192001"),
        (audio(PCM, 0xFFFFFFFF, 2), "odd_sample_rate", "4294967295"),
        (audio(b""), "empty_audio", "without a sample"),
        (audio(b"", 0, 0), "empty_audio", "without a sample"),
        (audio(b"x"), "odd_bytes", "1 bytes"),
        (audio(PCM + b"x"), "odd_bytes", "641 bytes"),
        (audio(PCM[:-2], channels=2), "odd_bytes", "638 bytes of audio of 2 channels"),
        (audio(PCM, channels=33), "odd_channels", "33 channels"),
        (b"", "unknown_message", "of no byte"),
        (b"\x4a\x00", "unknown_message", "of kind 9"),
        (b"\x0a", "bad_protobuf", "1 bytes"),
        (b"\x00", "bad_protobuf", "1 bytes"),
        (FROM_SERVER["audio"][:-1], "bad_protobuf", "no protobuf"),
        (b"\x0a\x04\x1a\x02\xc3\x28", "bad_protobuf", "no protobuf"),  # a text that is no UTF-8
        (told("{"), "bad_json", "no JSON"),
        (told("[" * 100_000), "bad_json", "no JSON"),
        (told(f"[{'9' * 5000}]"), "bad_json", "no JSON"),
        (told({"type": "error", "data": {"error": "a\nb"}}), "server_said_failure", "says: a b"),
    ],
)
def test_messages_that_cannot_be_used(payload: bytes, kind: str, line: str):
    (fault,) = heard(payload)
    assert isinstance(fault, Fault)
    assert fault.kind == kind
    assert line in fault.line
    assert "\n" not in fault.line
    assert len(fault.line) < 400


def test_text_and_control_messages():
    (fault,) = heard(b'{"hello":\n1}\xff', TEXT)
    assert fault == Fault("text_message", 'a text message, where only binary ones are due: {"hello": 1}\ufffd')
    assert heard(b"ping", PING) == []


def test_unset_channels_mean_one_and_the_last_kind_of_several_counts():
    assert heard(audio(PCM, channels=0)) == [Audio(PCM, 16000)]
    assert heard(FROM_SERVER["audio"] + FROM_SERVER["interruption"]) == [Interruption()]
    assert heard(FROM_SERVER["interruption"] + FROM_SERVER["audio"]) == [Audio(PCM, 24000)]


def test_audio_is_told_apart_whatever_came_before():
    """Audio like the last one is taken without a second look; nothing else may look like it."""
    rng = random.Random(2)
    kinds = product((PCM, b"", b"x", b"RIFF"), (0, 16000), (0, 1, 2))
    wav = riff(chunk(b"fmt ", FMT), chunk(b"data", PCM))
    messages = [*(audio(*kind) for kind in kinds), audio(wav), audio(wav, 0)]
    messages += [FROM_SERVER[name] for name in ("audio", "audio_wav", "audio_stereo", "audio_empty", "interruption")]
    pairs = [(message, heard(message)) for message in messages]
    codec = Pipecat("s")
    for _ in range(2000):
        message, expected = rng.choice(pairs)
        assert list(codec.decode(BINARY, message)) == expected


# ---- WAV in messages

FMT = struct.pack("<HHIIHH", 1, 1, 16000, 32000, 2, 16)


def chunk(name: bytes, body: bytes, size: int | None = None) -> bytes:
    return name + struct.pack("<I", len(body) if size is None else size) + body + b"\0" * (len(body) % 2)


def riff(*chunks: bytes, size: int | None = None) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) if size is None else size) + body


def fmt(code: int, channels: int, bits: int, rate: int = 16000) -> bytes:
    width = channels * bits // 8
    return chunk(b"fmt ", struct.pack("<HHIIHH", code, channels, rate, rate * width, width, bits))


EXTENSIBLE = struct.pack("<HHIIHHHHI", 0xFFFE, 1, 16000, 32000, 2, 16, 22, 16, 4) + struct.pack("<H", 1) + bytes(14)
BYTES_8 = ((SAMPLES.astype(np.int32) >> 8) + 128).astype(np.uint8)


@pytest.mark.parametrize(
    ("wav", "pcm"),
    [
        (riff(chunk(b"fmt ", FMT), chunk(b"data", PCM)), PCM),
        (riff(chunk(b"fmt ", FMT), chunk(b"data", PCM), size=0), PCM),
        (riff(chunk(b"fmt ", FMT), chunk(b"data", PCM, 0)), PCM),
        (riff(chunk(b"fmt ", FMT), chunk(b"data", PCM, 0xFFFFFFFF), size=0xFFFFFFFF), PCM),
        (riff(chunk(b"fmt ", FMT), chunk(b"data", PCM, len(PCM) + 100)), PCM),
        (riff(chunk(b"fmt ", FMT), chunk(b"data", PCM), chunk(b"LIST", b"INFOIART")), PCM),
        (riff(chunk(b"LIST", b"odd"), chunk(b"fmt ", FMT), chunk(b"fact", bytes(4)), chunk(b"data", PCM)), PCM),
        (riff(chunk(b"fmt ", EXTENSIBLE), chunk(b"data", PCM)), PCM),
        (riff(chunk(b"fmt ", FMT + b"\0\0"), chunk(b"data", PCM)), PCM),
        (riff(fmt(1, 2, 16), chunk(b"data", PCM)), STEREO),
        (riff(fmt(1, 1, 8), chunk(b"data", BYTES_8.tobytes())), (SAMPLES >> 8 << 8).astype("<i2").tobytes()),
        (riff(fmt(1, 1, 32), chunk(b"data", (SAMPLES.astype("<i4") << 16).tobytes())), PCM),
        (riff(fmt(3, 1, 32), chunk(b"data", np.array([np.nan, 1, -1], "<f4").tobytes())), b"\0\0\xff\x7f\x01\x80"),
        (riff(chunk(b"fmt ", FMT), chunk(b"data", PCM[:2])), PCM[:2]),
    ],
)
def test_wav_in_a_message(wav: bytes, pcm: bytes):
    assert heard(audio(wav, 24000)) == [Audio(pcm, 16000)]  # the file knows better than the message around it


@pytest.mark.parametrize(
    ("wav", "kind"),
    [
        (riff(chunk(b"data", PCM), chunk(b"fmt ", FMT)), "bad_wav"),
        (riff(fmt(1, 1, 12), chunk(b"data", PCM)), "bad_wav"),
        (riff(fmt(85, 1, 16), chunk(b"data", PCM)), "bad_wav"),
        (riff(fmt(1, 0, 16), chunk(b"data", PCM)), "bad_wav"),
        (riff(chunk(b"fmt ", FMT[:8]), chunk(b"data", PCM)), "bad_wav"),
        (riff(chunk(b"LIST", b"", 1 << 30)), "bad_wav"),
        (riff(fmt(1, 1, 16, 3999), chunk(b"data", PCM)), "odd_sample_rate"),
        (riff(fmt(1, 1, 16, 200_000), chunk(b"data", PCM, 0)), "odd_sample_rate"),
        (riff(chunk(b"fmt ", FMT), chunk(b"data", b"")), "empty_audio"),
        (riff(chunk(b"fmt ", FMT)), "empty_audio"),
        (riff(), "empty_audio"),
    ],
)
def test_wav_that_cannot_be_used(wav: bytes, kind: str):
    (fault,) = heard(audio(wav))
    assert isinstance(fault, Fault)
    assert fault.kind == kind


def test_samples_that_spell_riff_are_samples():
    assert heard(audio(b"RIFF" + PCM)) == [Audio(b"RIFF" + PCM, 16000)]


# ---- RTVI


def rtvi(kind: str, **data: Any) -> bytes:
    return told({"label": "rtvi-ai", "type": kind, "data": data})


def text_frame(text: str) -> bytes:
    frame = _Frame()
    frame.text.text = text
    return bytes(frame.SerializeToString())


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        # As pipecat 1.14 sends them when all its settings are on: each word under four names.
        (
            [
                rtvi("llm-raw-text", text="Hi"),
                rtvi("bot-llm-text", text="Hi"),
                rtvi("bot-tts-text", text="Hi"),
                rtvi("bot-output", text="Hi", spoken=True),
                rtvi("bot-transcription", text="Hi"),
                rtvi("llm-raw-text", text=" you"),
                rtvi("bot-llm-text", text=" you"),
                text_frame(" you"),
            ],
            [Text("agent", "Hi"), Text("agent", " you")],
        ),
        ([text_frame("a"), rtvi("bot-llm-text", text="a"), text_frame("b")], [Text("agent", "a"), Text("agent", "b")]),
        (
            [
                rtvi("user-transcription", text="one", final=False),
                rtvi("user-transcription", text="one", final=True),
                rtvi("user-input", text="one", final=True, input_type="transcription"),
                FROM_SERVER["transcription"],
            ],
            [Text("user", "one")],
        ),
        ([rtvi("user-input", text="two", final=True)], [Text("user", "two")]),
        ([rtvi("bot-llm-text", text="")], []),
        ([rtvi("bot-llm-text", text=5), rtvi("bot-llm-text", text="x")], [Text("agent", "x")]),
        ([rtvi("bot-llm-text", text="\ud800x")], [Text("agent", "?x")]),  # half a surrogate pair: no UTF-8 can hold it
    ],
)
def test_each_word_is_told_once(messages: list[bytes], expected: list[Event]):
    codec = Pipecat("s")
    assert [event for message in messages for event in codec.decode(BINARY, message)] == expected


@pytest.mark.parametrize(
    "message",
    [
        [],
        5,
        None,
        ["text"],
        {},
        {"type": None},
        {"type": ["metrics"]},
        {"type": "metrics"},
        {"type": "metrics", "data": 5},
        {"type": "bot-llm-text", "data": ["x"]},
        {"type": "not-yet-invented", "data": {}},
        {"custom": True},
        *(
            {"type": "metrics", "data": {"ttfb": entries}}
            for entries in (
                5,
                None,
                [5],
                [{}],
                [{"processor": "LLM#0"}],
                [{"processor": 5, "value": 1.0}],
                [{"processor": "LLM#0", "value": 0.0}],  # says only that a figure will come
                [{"processor": "LLM#0", "value": -1}],
                [{"processor": "LLM#0", "value": True}],
                [{"processor": "LLM#0", "value": "0.1"}],
                [{"processor": "LLM#0", "value": float("nan")}],
                [{"processor": "LLM#0", "value": float("inf")}],
                [{"processor": "LLM#0", "value": 10**400}],
            )
        ),
    ],
)
def test_what_is_not_known_is_passed_over(message: object):
    assert heard(told(message)) == []


@pytest.mark.parametrize(
    ("processor", "component"),
    [
        ("NvidiaLLMService#0", "llm"),
        ("CartesiaTTSService#12", "tts"),
        ("DeepgramSTTService#1", "asr"),
        ("NemotronASRService#0", "asr"),
        ("AWSTTSService#0", "tts"),
        ("whisper_stt#0", "asr"),
        ("GeminiLive#3", "GeminiLive"),
        ("", ""),
    ],
)
def test_whose_figure_it_is(processor: str, component: str):
    figures = heard(rtvi("metrics", ttfb=[{"processor": processor, "value": 1}]))
    assert figures == [ServerFigure(component, "ttfb", 1.0, processor)]


# ---- anything


def is_sound(event: Event) -> bool:
    if isinstance(event, Audio):
        return bool(event.pcm) and not len(event.pcm) % 2 and 4000 <= event.rate <= 192_000
    for value in event:
        if isinstance(value, str):
            value.encode()
    return not isinstance(event, Fault) or ("\n" not in event.line and len(event.line) < 400)


def mangled(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(3):
            case 0:
                changed[at : at + 1] = rng.randbytes(1)
            case 1:
                del changed[at : at + rng.randrange(1, 9)]
            case 2:
                changed[at:at] = rng.randbytes(rng.randrange(1, 9))
    return bytes(changed)


def test_no_message_however_mangled_raises():
    rng = random.Random(100)
    wavs = [audio(riff(chunk(b"LIST", b"odd"), chunk(b"fmt ", EXTENSIBLE), chunk(b"data", PCM[:40])))]
    wavs.append(audio(riff(fmt(3, 2, 64), chunk(b"data", PCM[:64]))))
    texts = [told({"type": kind, "data": {"text": "x", "final": True}}) for kind in ("bot-llm-text", "user-input")]
    seeds = [*FROM_SERVER.values(), *wavs, *texts]
    codec = Pipecat("s")
    for _ in range(6000):
        payload = mangled(rng, rng.choice(seeds))
        assert all(is_sound(event) for event in codec.decode(rng.choice((BINARY, BINARY, TEXT)), payload)), payload
    for _ in range(2000):  # within the audio, where the envelope holds
        payload = audio(mangled(rng, riff(fmt(rng.choice((1, 3)), 1, 16), chunk(b"data", PCM[:20]))), 16000)
        assert all(is_sound(event) for event in codec.decode(BINARY, payload)), payload


def test_several_files_in_a_message_but_not_very_many():
    file = riff(chunk(b"fmt ", FMT), chunk(b"data", b"ab"))
    assert heard(audio(file * 3)) == [Audio(b"ababab", 16000)]
    assert heard(audio(file * 20_000)) == [Fault("bad_wav", "20000 WAV files in one message")]


def wire(messages: list[bytes]) -> bytes:
    return b"".join(served(BINARY, message) for message in messages)


def as_parsed(codec: Pipecat, messages: list[bytes]) -> Audio | None:
    """What `cut` should say: all samples, where all are audio of one kind."""
    events = [event for message in messages for event in codec.decode(BINARY, message)]
    kinds = {(event.rate, len(event.pcm)) if isinstance(event, Audio) else None for event in events}
    if len(kinds) != 1 or None in kinds:
        return None
    return Audio(b"".join(event.pcm for event in events if isinstance(event, Audio)), events[0].rate)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_cut_is_what_would_be_decoded(seed: int) -> None:
    """Messages like the last one, with other ids and names of the same length, and some that only look like it."""
    rng = random.Random(seed)
    codec = Pipecat("s")
    size, rate = rng.choice([(320, 8000), (640, 16000), (960, 24000), (3200, 16000)])
    for _ in range(2):  # the first tells the rate, the second how such messages look
        codec.decode(BINARY, audio(rng.randbytes(size), rate))
    framing = served(BINARY, audio(bytes(size), rate))[:4]
    cuts = 0
    for _ in range(100):
        messages = []
        for _ in range(rng.randint(1, 10)):
            pcm = bytearray(rng.randbytes(size))
            kind = rng.random()
            if kind < 0.02:
                pcm[:4] = b"RIFF"
            message = audio(bytes(pcm), rate if kind < 0.97 else 48000 if rate != 48000 else 8000)
            if 0.02 < kind < 0.04:
                message = message[:-1] + b"\x02"  # two channels
            messages.append(message)
        data = bytearray(wire(messages) + b"more")
        found = codec.cut(data, len(data) - 4, framing, len(messages))
        if found is not None:
            cuts += 1
            assert found == as_parsed(Pipecat("s"), messages)
    assert cuts > 40, "it cuts most of them"


def test_nothing_is_cut_before_anything_was_decoded_nor_where_the_count_is_wrong() -> None:
    message = audio(b"\x01\x02" * 320)
    data = bytearray(wire([message] * 3))
    codec = Pipecat("s")
    assert codec.cut(data, len(data), b"", 3) is None
    for _ in range(2):
        codec.decode(BINARY, message)
    framing = bytes(data[:4])
    assert codec.cut(data, len(data), framing, 3) == Audio(b"\x01\x02" * 960, 16000)
    assert codec.cut(data, len(data), framing, 2) is None
    assert codec.cut(data, len(data) - 1, framing, 3) is None
    assert codec.cut(data, len(data), b"\x82\x7e\x00\x00", 3) is None


def test_messages_of_ever_other_lengths_are_only_parsed() -> None:
    """A pattern for each would cost a hundred times what parsing does."""
    codec = Pipecat("s")
    made = _like.cache_info().misses
    for size in range(600, 900, 2):
        (heard,) = codec.decode(BINARY, audio(bytes(size)))
        assert heard == Audio(bytes(size), 16000)
        data = bytearray(served(BINARY, audio(bytes(size))))
        assert codec.cut(data, len(data), bytes(data[:4]), 1) is None
    assert _like.cache_info().misses == made


def test_very_many_at_once_are_parsed() -> None:
    codec, message = Pipecat("s"), audio(bytes(640))
    for _ in range(3):
        codec.decode(BINARY, message)
    data = bytearray(wire([message] * 200))
    assert codec.cut(data, len(data), bytes(data[:4]), 200) is None

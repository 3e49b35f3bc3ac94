"""Dialects: what is asked, what is made of the answer, and that a new one is one codec and one entry."""

import base64
import itertools
import json
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from tests.bad_peer import answer, tone, wav
from tests.test_http_exchange import Caller, Log, answering
from tests.test_link import Peer
from workers.clients.http_connection import target
from workers.clients.http_speech import DIALECTS, Dialect, RawAudio, Say, SpeechEvents, said_failure
from workers.failures import TurnFailed
from workers.settings import build

PLAIN = Say("Hello there.", "default", "wav", 1.0, "tts-1", True)
AUDIO = bytes(range(256)) * 3


# ------------------------------------------------------------------------------------------------ what is asked


@pytest.mark.parametrize(
    ("dialect", "say", "expected"),
    [
        ("synthesize", PLAIN, {"text": "Hello there.", "speaker_id": "default"}),
        ("synthesize", PLAIN._replace(voice="alto"), {"text": "Hello there.", "speaker_id": "alto"}),
        (
            "synthesize",
            PLAIN._replace(format="mp3", speed=1.5, stream=False),
            {"text": "Hello there.", "speaker_id": "default", "format": "mp3", "speed": 1.5, "stream": False},
        ),
        (
            "openai",
            PLAIN._replace(voice="alloy", format="pcm"),
            {"model": "tts-1", "input": "Hello there.", "voice": "alloy", "response_format": "pcm"},
        ),
        (
            "openai",
            PLAIN._replace(speed=0.5, model="kokoro"),
            {
                "model": "kokoro",
                "input": "Hello there.",
                "voice": "default",
                "response_format": "wav",
                "speed": 0.5,
            },
        ),
        (
            "openai_sse",
            PLAIN,
            {
                "model": "tts-1",
                "input": "Hello there.",
                "voice": "default",
                "response_format": "wav",
                "stream_format": "sse",
            },
        ),
    ],
)
def test_the_body_is_exactly_what_the_route_takes(dialect: str, say: Say, expected: dict[str, Any]) -> None:
    assert DIALECTS[dialect].body(say) == expected


def test_the_routes() -> None:
    assert {name: dialect.path for name, dialect in DIALECTS.items()} == {
        "synthesize": "/v1/synthesize",
        "openai": "/v1/audio/speech",
        "openai_sse": "/v1/audio/speech",
    }


@pytest.mark.parametrize("dialect", list(DIALECTS))
def test_a_token_is_a_header_and_never_in_the_body(dialect: str) -> None:
    log = Log()
    with closing(Peer(answering(answer("401 No", "text/plain", b"no"), log=log))) as peer:
        where = target(f"http://127.0.0.1:{peer.port}", DIALECTS[dialect], None, False, "tok-1234")
        caller = Caller(where)
        with closing(caller.connection):
            turn = caller.ask()
    [(head, body)] = log.asked
    assert "Authorization: Bearer tok-1234" in head.split("\r\n")
    assert b"tok-1234" not in body
    assert "tok-1234" not in (turn.error or "")


# ------------------------------------------------------------------------------------------------ raw bodies


def test_a_raw_body_is_the_audio() -> None:
    decoder = RawAudio()
    assert decoder.feed(AUDIO[:7]) + decoder.feed(b"") + decoder.feed(AUDIO[7:]) == AUDIO
    decoder.finish()


# ------------------------------------------------------------------------------------------------ events


def event(kind: str, **fields: Any) -> str:
    return "data: " + json.dumps({"type": kind, **fields})


def delta(audio: bytes) -> str:
    return event("speech.audio.delta", audio=base64.b64encode(audio).decode())


DONE = event("speech.audio.done", usage={"input_tokens": 4, "output_tokens": 99})
INFO = event("speech.audio.info", sample_rate=24000)


def stream(*lines: str, end: str = "\n") -> bytes:
    return "".join(line + end + end for line in lines).encode()


STREAMS = {
    "as OpenAI sends it": stream(delta(AUDIO[:200]), delta(AUDIO[200:500]), delta(AUDIO[500:]), DONE),
    "CRLF": stream(delta(AUDIO[:200]), delta(AUDIO[200:]), DONE, end="\r\n"),
    "travisvn's, with info first": stream(INFO, delta(AUDIO), DONE),
    "with names, comments, ids": stream(
        ": ping", "event: speech.audio.delta\nid: 1\nretry: 3000\n" + delta(AUDIO), ":", "event: end\n" + DONE
    ),
    "with [DONE] alone": stream(delta(AUDIO), "data: [DONE]"),
    "with both ends": stream(delta(AUDIO), DONE, "data: [DONE]"),
    "without the space": stream(delta(AUDIO).replace("data: ", "data:"), DONE.replace("data: ", "data:")),
    "events nobody knows": stream(event("session.updated", x=1), delta(AUDIO), event("response.metrics"), DONE),
    "an empty delta": stream(delta(b""), delta(AUDIO), delta(b""), DONE),
}


def heard(data: bytes, *cuts: int) -> bytes:
    decoder = SpeechEvents()
    pieces = itertools.pairwise((0, *cuts, len(data)))
    audio = b"".join(decoder.feed(data[begin:end]) for begin, end in pieces)
    decoder.finish()
    return audio


@pytest.mark.parametrize("data", STREAMS.values(), ids=STREAMS)
def test_events_are_the_same_wherever_they_are_cut(data: bytes) -> None:
    for cut in range(len(data) + 1):
        assert heard(data, cut) == AUDIO
    assert heard(data, *range(1, len(data))) == AUDIO


def test_audio_is_handed_over_as_soon_as_its_event_is_whole() -> None:
    """Not at the end, and not at the next event: its arrival is the TTFC."""
    decoder = SpeechEvents()
    line = (delta(AUDIO) + "\n").encode()
    assert decoder.feed(stream(INFO)) == b""
    assert decoder.feed(line[:-1]) == b""
    assert decoder.feed(line[-1:]) == AUDIO


def failure(data: bytes) -> TurnFailed:
    with pytest.raises(TurnFailed) as caught:
        heard(data)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return caught.value


@pytest.mark.parametrize(
    "line",
    [
        event("error", error={"message": "the voice is busy", "code": 7}),
        event("error", message="the voice is busy"),
        'data: {"error": {"message": "the voice is busy"}}',
        'data: {"error": "the voice is busy"}',
        'data: {"success": false, "error": "the voice is busy"}',
        event("speech.audio.delta", success=False, error="the voice is busy"),
    ],
)
def test_a_server_that_says_it_failed(line: str) -> None:
    for data in (stream(line), stream(delta(AUDIO), line), stream(line, end="\r\n")):
        failed = failure(data)
        assert (failed.outcome, failed.kind) == ("protocol_error", "server_said_failure")
        assert "the voice is busy" in str(failed)


@pytest.mark.parametrize(
    "line",
    [
        "data: <html>",
        "data: 5",
        "data: []",
        "data: null",
        'data: "text"',
        "data: {}",
        'data: {"type": "speech.audio.delta"}',
        'data: {"type": "speech.audio.delta", "audio": 5}',
        'data: {"type": "speech.audio.delta", "audio": "%%%"}',
        'data: {"type": "speech.audio.delta", "audio": "QUJ"}',
        'data: {"type": "speech.audio.delta", "audio": "Grüße"}',
        "data: " + "[" * 20_000,
    ],
    ids=lambda line: line[:40],
)
def test_an_event_that_is_none_is_named(line: str) -> None:
    failed = failure(stream(delta(AUDIO), line))
    assert (failed.outcome, failed.kind) == ("protocol_error", "bad_event")
    assert line[6:10] in str(failed)


@pytest.mark.parametrize("data", [b"", stream(delta(AUDIO)), stream(INFO), stream(delta(AUDIO), DONE)[:-40]])
def test_a_stream_that_ends_without_its_end_is_truncated(data: bytes) -> None:
    failed = failure(data)
    assert (failed.outcome, failed.kind) == ("answered", "truncated")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"error": {"message": "no voice", "type": "invalid"}}, "no voice"),
        ({"error": "no voice"}, "no voice"),
        ({"message": "no voice"}, "no voice"),
        ({"detail": "no voice"}, "no voice"),
        ({"detail": [{"loc": ["body"], "msg": "field required"}]}, "field required"),
        ({"success": False}, "success"),
        ({"error": "no\r\nvoice\n"}, "no voice"),
        ({"error": json.loads('"no \\ud83d voice"')}, "no ? voice"),
        ({}, ""),
    ],
)
def test_what_went_wrong_is_passed_on(said: dict[str, Any], expected: str) -> None:
    line = said_failure(said)
    assert expected in line
    assert "\n" not in line
    assert line.encode()
    assert len(said_failure({"error": "x" * 10_000})) < 400


# ------------------------------------------------------------------------------------------------ a new dialect


class Base64Json:
    """torch-inference's /tts/synthesize: {audio_base64, sample_rate, duration_secs}, all at the end."""

    def __init__(self) -> None:
        self._body = b""

    def feed(self, data: bytes) -> bytes:
        self._body += data
        try:
            return base64.b64decode(json.loads(self._body)["audio_base64"])
        except ValueError:
            return b""  # not whole yet

    def finish(self) -> None: ...


def test_a_new_dialect_is_one_codec_and_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else knows of dialects: settings take its name, a connection speaks it, a track hears it."""
    entry = Dialect(
        "/tts/synthesize", lambda say: {"text": say.text, "lang": "en"}, Base64Json, ("application/json",)
    )  # fmt: skip
    monkeypatch.setitem(DIALECTS, "torch", entry)
    assert build({"dialect": "torch"}).dialect == "torch"
    sound = tone(0.2)
    body = json.dumps({"audio_base64": base64.b64encode(wav(sound)).decode(), "sample_rate": 24000}).encode()
    log = Log()
    with closing(Peer(answering(answer("200 OK", "application/json", body), log=log))) as peer:
        where = target(f"http://127.0.0.1:{peer.port}", DIALECTS["torch"], None, False, None)
        caller = Caller(where)
        with closing(caller.connection):
            turn = caller.ask("Good morning.")
    assert turn.ok, turn.error
    assert turn.track.samples.tolist() == np.frombuffer(sound, "<i2").tolist()
    [(head, asked)] = log.asked
    assert head.startswith("POST /tts/synthesize HTTP/1.1")
    assert json.loads(asked) == {"text": "Good morning.", "lang": "en"}

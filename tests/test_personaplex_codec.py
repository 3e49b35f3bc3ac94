"""The wire of full-duplex models: kinds told apart by what they send, nothing fatal that need not be."""

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pytest

from workers.audio import opus
from workers.clients.http_connection import BadTarget
from workers.clients.personaplex import Personaplex, query_of
from workers.clients.websocket import BINARY, TEXT
from workers.events import Compressed, Fault, Handshake, Text, Unknown

PAGES = opus.Pages(b"OggS head", b"OggS silence")


def codec(dialect: str = "personaplex") -> Personaplex:
    return Personaplex(dialect, PAGES)


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b"\x00", Handshake("personaplex")),
        (b"\x01OggS...", Compressed(b"OggS...")),
        (b"\x02 hello", Text("agent", " hello")),
        ("\x02 caf\u00e9 \u2581".encode(), Text("agent", " caf\u00e9 \u2581")),
        (b"\x02", Text("agent", "")),
        (b"\x03\x00", Unknown(3)),
        (b"\x06", Unknown(6)),
        (b"\x09abc", Unknown(9)),
        (b"\xff", Unknown(255)),
    ],
)
def test_a_message_is_what_its_first_byte_says(payload: bytes, expected: object) -> None:
    assert list(codec().decode(BINARY, payload)) == [expected]


@pytest.mark.parametrize(
    ("opcode", "payload", "kind"),
    [
        (BINARY, b"", "empty_message"),
        (BINARY, b"\x01", "empty_audio"),
        (BINARY, b"\x02\xff\xfe", "bad_text"),
        (BINARY, b"\x05out of memory", "server_said_failure"),
        (TEXT, b'{"type": "text_input"}', "text_message"),
    ],
)
def test_what_cannot_be_used_is_a_fault_of_its_own_kind(opcode: int, payload: bytes, kind: str) -> None:
    (event,) = codec().decode(opcode, payload)
    assert isinstance(event, Fault)
    assert event.kind == kind
    assert "\n" not in event.line


def test_moshi_backend_shows_itself_by_its_handshake() -> None:
    """Its metadata comes first, which is no handshake."""
    session = codec("moshi")
    assert list(session.decode(BINARY, b'\x04{"text_temperature": 0.7}')) == []
    assert session.name == "moshi"
    assert list(session.decode(BINARY, b"\x00" + bytes(8))) == [Handshake("moshi_backend")]
    assert session.name == "moshi_backend"


def test_only_audio_goes_out_and_the_head_first() -> None:
    session = codec()
    assert session.opening() == [(BINARY, b"\x01OggS head")]
    assert session.audio(PAGES.silence) == (BINARY, b"\x01OggS silence")
    assert list(session.closing()) == []
    assert list(session.owed(1_000)) == []


def test_both_parameters_are_sent_raw_and_nothing_else() -> None:
    prompt = "You are 50% <b> & more; be \u00fcber-kind?"
    assert parse_qs(query_of("", "NATF0.pt", prompt)) == {"voice_prompt": ["NATF0.pt"], "text_prompt": [prompt]}
    assert "+" not in query_of("", "NATF0.pt", "two words")  # a server may not take it for a space


def test_what_the_host_says_itself_goes_first() -> None:
    found = parse_qs(query_of("voice_prompt=VARM1.pt&lang=en", "NATF0.pt", "Be kind."))
    assert found == {"voice_prompt": ["VARM1.pt"], "text_prompt": ["Be kind."], "lang": ["en"]}


def test_seed_and_empty_prompts_are_refused() -> None:
    with pytest.raises(BadTarget, match="seed"):
        query_of("seed=1", "NATF0.pt", "Be kind.")
    with pytest.raises(BadTarget, match="text_prompt is empty"):
        query_of("", "NATF0.pt", "  ")
    with pytest.raises(BadTarget, match="voice_prompt is empty"):
        query_of("voice_prompt=", "NATF0.pt", "Be kind.")


# ------------------------------------------------------------------------------- captured sessions (tests/wire)

CAPTURED: dict[str, Any] = json.loads((Path(__file__).parent / "wire" / "moshi.json").read_text("utf-8"))
SESSIONS = {**CAPTURED["sessions"], "backend": CAPTURED["backend"]}


def messages(side: str, name: str) -> list[bytes]:
    return [base64.b64decode(message) for message in SESSIONS[name][side]]


@pytest.mark.parametrize(
    ("name", "dialect"), [("moshi", "moshi"), ("personaplex", "personaplex"), ("backend", "moshi_backend")]
)
def test_a_captured_session_is_heard_to_the_sample(name: str, dialect: str) -> None:
    """Where the tone was put before it was encoded, there it is found, but for the encoder's look-ahead."""
    truth, session = SESSIONS[name]["truth"], codec(name if name != "backend" else "moshi")
    found = [event for message in messages("server", name) for event in session.decode(BINARY, message)]
    assert [event for event in found if isinstance(event, Handshake)] == [Handshake(dialect)]
    assert isinstance(found[0], Handshake)
    assert [event.text for event in found if isinstance(event, Text)] == truth["text_pieces"]
    assert not [event for event in found if isinstance(event, Fault | Unknown)]
    decoder, audio = opus.Decoder(), [event.data for event in found if isinstance(event, Compressed)]
    samples = np.concatenate([decoder.feed(data) for data in audio])
    assert len(samples) == sum(map(opus.samples_in, audio)) == truth["chunks"] * truth["chunk_samples"]
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > 0.5 * 32768 * truth["amplitude"])
    begin, end = truth["server_tone_samples"]
    assert loud[0] - opus.LOOK_AHEAD == pytest.approx(begin, abs=48)  # 2 ms: a tone begins at zero
    assert loud[-1] - opus.LOOK_AHEAD == pytest.approx(end, abs=48)


def test_what_the_real_client_sends_we_send() -> None:
    """Kyutai's own: OpusHead and OpusTags once, first; then pages of audio, and nothing but audio."""
    sent = messages("client", "moshi")
    assert {message[0] for message in sent} == {1}
    assert sent[0][1:].startswith(opus.standard_pages().head)
    assert len(opus.page_spans(opus.standard_pages().silence)) == len(opus.page_spans(sent[1][1:]))


def test_moshi_backends_other_messages() -> None:
    events = [event for message in messages("others", "backend") for event in codec("moshi").decode(BINARY, message)]
    assert Unknown(3) in events
    assert [event.kind for event in events if isinstance(event, Fault)] == ["server_said_failure"]

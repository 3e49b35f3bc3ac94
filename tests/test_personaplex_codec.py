"""The wire of full-duplex models: kinds told apart by what they send, nothing fatal that need not be."""

from urllib.parse import parse_qs

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

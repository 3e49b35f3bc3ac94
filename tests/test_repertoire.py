"""What callers can say, as it goes on the wire: every sample in its chunk, the last voiced one's chunk known."""

import numpy as np
import numpy.typing as npt
import pytest
from websockets.frames import Opcode
from websockets.protocol import CLIENT, SERVER, Protocol

from tests.agent_client import fields
from workers.audio.clips import Clip
from workers.clients.twilio import Twilio
from workers.clients.voice_agent import Pipecat
from workers.repertoire import Repertoire

RATE = 16_000
CHUNK_S = 0.02
Samples = npt.NDArray[np.int16]


def clip(count: int, voiced: tuple[int, int] | None = None, name: str = "query") -> Clip:
    """Samples that say where they are; the voice from the one position up to the other."""
    samples = (np.arange(count) % 30_000 + 1).astype(np.int16)
    begin, end = voiced or (0, count)
    return Clip(name, samples, RATE, begin / RATE, end / RATE)


def unmasked(message: bytes) -> bytes:
    """A client's message as websockets' own parser reads it."""
    server = Protocol(SERVER)
    server.receive_data(message)
    (event,) = server.events_received()
    assert event.opcode is Opcode.BINARY
    assert server.parser_exc is None
    return bytes(event.data)


def pcm_of(message: bytes) -> bytes:
    audio = fields(fields(unmasked(message))[2])
    assert (audio[4], audio[5]) == (RATE, 1)
    pcm: bytes = audio[3]
    return pcm


def test_a_clip_is_cut_into_chunks_and_filled_up_with_silence() -> None:
    repertoire = Repertoire([clip(1_000)], Pipecat(""), CHUNK_S)
    (query,) = repertoire.queries
    chunks = [np.frombuffer(pcm_of(chunk), "<i2") for chunk in query.chunks]
    assert [len(chunk) for chunk in chunks] == [320] * 4
    heard = np.concatenate(chunks)
    np.testing.assert_array_equal(heard[:1_000], clip(1_000).samples)
    assert not heard[1_000:].any()
    assert pcm_of(repertoire.silence) == bytes(640)


@pytest.mark.parametrize("count", [320, 640, 6_400])
def test_a_clip_of_whole_chunks_gets_no_chunk_of_silence(count: int) -> None:
    (query,) = Repertoire([clip(count)], Pipecat(""), CHUNK_S).queries
    assert len(query.chunks) == count // 320
    assert query.last_voiced == count // 320 - 1


@pytest.mark.parametrize(
    ("offset", "last_voiced"),
    [(1, 0), (319, 0), (320, 0), (321, 1), (640, 1), (641, 2), (959, 2), (960, 2), (999, 3), (1_000, 3)],
)
def test_the_chunk_with_the_last_voiced_sample(offset: int, last_voiced: int) -> None:
    """`offset` is one past it: sample 319 is the first chunk's last, 320 the second's first."""
    (query,) = Repertoire([clip(1_000, (0, offset))], Pipecat(""), CHUNK_S).queries
    assert query.last_voiced == last_voiced
    assert (offset - 1) // 320 == last_voiced


@pytest.mark.parametrize("chunk_s", [0.005, 0.01, 0.02, 0.032, 0.1, 0.2])
def test_every_offset_of_a_clip_at_every_chunk_size(chunk_s: float) -> None:
    size = round(chunk_s * RATE)
    for offset in range(1, 2 * size + 3, max(1, size // 40)):
        (query,) = Repertoire([clip(2 * size + 3, (0, offset))], Pipecat(""), chunk_s).queries
        assert query.last_voiced == (offset - 1) // size
        assert len(query.chunks) == 3


def test_onset_and_offset_are_the_clips() -> None:
    (query,) = Repertoire([clip(16_000, (1_600, 14_400))], Pipecat(""), CHUNK_S).queries
    assert (query.onset_s, query.offset_s, query.rate) == (0.1, 0.9, RATE)
    np.testing.assert_array_equal(query.samples, clip(16_000).samples)


def test_no_two_chunks_wear_the_same_mask() -> None:
    """A proxy that caches what it sees must not be made to see what somebody chose (RFC 6455, 10.3)."""
    repertoire = Repertoire([clip(32_000)], Pipecat(""), CHUNK_S)
    masks = {chunk[4:8] for chunk in [repertoire.silence, *repertoire.queries[0].chunks]}
    assert len(masks) == 101
    assert all(chunk[1] & 0x80 for chunk in repertoire.queries[0].chunks)
    client = Protocol(CLIENT)
    assert client.parser_exc is None


def test_a_dialect_whose_messages_differ_by_session_gets_its_samples() -> None:
    """Twilio: 8 kHz, numbered messages; the voice is at the same seconds."""
    t = np.arange(16_000) / RATE
    samples = np.rint(9_000 * np.sin(2 * np.pi * 400 * t)).astype(np.int16)
    repertoire = Repertoire([Clip("q", samples, RATE, 0.25, 0.77)], Twilio("s"), CHUNK_S)
    (query,) = repertoire.queries
    assert repertoire.silence == bytes(320)
    assert [len(chunk) for chunk in query.chunks] == [320] * 50
    assert (query.rate, query.onset_s, query.offset_s) == (8_000, 0.25, 0.77)
    assert query.last_voiced == (round(0.77 * 8_000) - 1) // 160
    heard = np.frombuffer(b"".join(query.chunks), np.int16).astype(float)
    middle = slice(1_000, 7_000)
    assert np.abs(heard[middle] - 9_000 * np.sin(2 * np.pi * 400 * np.arange(8_000) / 8_000)[middle]).max() < 200


def test_a_rate_that_the_server_wants() -> None:
    (query,) = Repertoire([clip(16_000)], Pipecat("", 24_000), CHUNK_S).queries
    assert query.rate == 24_000
    assert len(query.chunks) == 50
    assert len(fields(fields(unmasked(query.chunks[0]))[2])[3]) == 960


def test_clips_by_name() -> None:
    repertoire = Repertoire([clip(320, name="order"), clip(320, name="bye.v2")], Pipecat(""), CHUNK_S)
    assert [query.name for query in repertoire.queries] == ["order", "bye.v2"]
    assert repertoire.named("order") is repertoire.named("order.wav") is repertoire.queries[0]
    assert repertoire.named("bye.v2") is repertoire.named("bye.v2.wav") is repertoire.queries[1]
    with pytest.raises(KeyError, match=r"'ordr'.*order, bye\.v2"):
        repertoire.named("ordr")

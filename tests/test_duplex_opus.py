"""Pages of the full-duplex endpoint: spliced at silence, remembered, and decoded as a straight encode is."""

import numpy as np
import numpy.typing as npt
import pytest
import sphn

from gpu_server.duplex_opus import CHUNK, RATE, SILENCE, InStream, OutStream, Undecodable, opening

LATE = 154  # samples

Floats = npt.NDArray[np.float32]


def noise(chunks: int, seed: int) -> list[bytes]:
    """Low noise that fades in and out: speech enough for a codec."""
    rng = np.random.default_rng(seed)
    samples = np.convolve(rng.standard_normal(chunks * CHUNK), np.ones(24) / 24, "same") * 12_000
    samples *= np.sin(np.pi * np.arange(len(samples)) / len(samples))
    return [chunk.astype("<i2").tobytes() for chunk in samples.reshape(-1, CHUNK)]


def heard(payloads: list[bytes]) -> Floats:
    reader = sphn.OpusStreamReader(RATE)
    return np.concatenate([reader.append_bytes(payload) for payload in [b"".join(opening()), *payloads]])


def straight(chunks: list[bytes]) -> Floats:
    writer, reader = sphn.OpusStreamWriter(RATE), sphn.OpusStreamReader(RATE)
    floats = [np.frombuffer(chunk, "<i2").astype(np.float32) / 32768 for chunk in chunks]
    return np.concatenate([reader.append_bytes(writer.append_pcm(chunk)) for chunk in floats])


def error_db(found: Floats, chunks: list[bytes]) -> float:
    """How far what is heard lies from what was said, its delay taken away."""
    said = np.frombuffer(b"".join(chunks), "<i2").astype(np.float32)[:-LATE] / 32768
    difference = found[LATE:] - said
    return float(10 * np.log10(np.sum(difference**2) / np.sum(said**2)))


@pytest.mark.parametrize("repeating", [True, False])
def test_what_is_spliced_is_as_near_to_the_speech_as_a_straight_encode(repeating: bool) -> None:
    chunks = [SILENCE] * 5 + noise(20, 1) + [SILENCE] * 10 + noise(20, 2) + [SILENCE] * 10
    stream = OutStream(repeating)
    found = heard([stream.payload(chunk) for chunk in chunks])
    assert len(found) == len(chunks) * CHUNK
    assert error_db(found, chunks) <= error_db(straight(chunks), chunks) + 0.5


def test_silence_is_silent_and_costs_no_encoding() -> None:
    stream = OutStream(repeating=True)
    found = heard([stream.payload(SILENCE) for _ in range(20)])
    assert np.abs(found).max() < 1e-4
    assert stream._encoder is None


def test_another_stream_gets_the_same_packets_without_an_encoder() -> None:
    chunks = noise(20, 3) + [SILENCE] * 6
    first, second = OutStream(repeating=True), OutStream(repeating=True)
    assert [first.payload(chunk) for chunk in chunks] == [second.payload(chunk) for chunk in chunks]
    assert second._encoder is None


def test_a_stream_that_leaves_what_is_remembered_goes_on_as_if_it_had_encoded_all() -> None:
    common, end = noise(20, 4), noise(20, 5)[10:]
    first, second = OutStream(repeating=True), OutStream(repeating=True)
    for chunk in common:
        first.payload(chunk)
    chunks = common[:10] + end + [SILENCE] * 6
    found = heard([second.payload(chunk) for chunk in chunks])
    assert error_db(found, chunks) <= error_db(straight(chunks), chunks) + 0.5


def test_a_speech_longer_than_is_remembered_is_whole() -> None:
    chunks = noise(260, 6)
    for _ in range(2):  # the second time from memory, as far as that goes
        stream = OutStream(repeating=True)
        found = heard([stream.payload(chunk) for chunk in chunks])
        assert error_db(found, chunks) <= error_db(straight(chunks), chunks) + 0.5


def test_a_stream_may_be_cut_at_every_byte() -> None:
    writer = sphn.OpusStreamWriter(RATE)
    pages = b"".join(bytes(writer.append_pcm(np.zeros(CHUNK, np.float32))) for _ in range(2))
    stream = InStream()
    assert sum(len(stream.feed(pages[at : at + 1])) for at in range(len(pages))) == 2 * CHUNK


def test_a_stream_without_its_head_is_undecodable() -> None:
    writer = sphn.OpusStreamWriter(RATE)
    writer.append_pcm(np.zeros(CHUNK, np.float32))
    with pytest.raises(Undecodable, match="OpusHead"):
        InStream().feed(bytes(writer.append_pcm(np.zeros(CHUNK, np.float32))))

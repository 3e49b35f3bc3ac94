"""Ogg-Opus pages made once and spliced, and pages heard: against sphn, which both servers use."""

import numpy as np
import pytest
import sphn

from workers.audio import opus
from workers.audio.opus import CHUNK, LOOK_AHEAD, RATE, BadOpus, Decoder, Decoders

Floats = np.ndarray


@pytest.fixture(scope="module")
def pages() -> opus.Pages:
    return opus.standard_pages()


def voice(seconds: float = 0.5) -> np.ndarray:
    """A steady, loud, voice-like sound that begins with its first sample."""
    at = np.arange(round(seconds * RATE)) / RATE
    return (8_000 * np.sign(np.sin(2 * np.pi * 150 * at + 0.5)) * (1 + 0.3 * np.sin(2 * np.pi * 4 * at))).astype(
        np.int16
    )


def decoded(messages: list[bytes]) -> np.ndarray:
    decoder = Decoder()
    return np.concatenate([decoder.feed(message) for message in messages])


@pytest.mark.parametrize("silent_chunks", [1, 25, 80])
def test_a_splice_at_silence_is_not_heard(pages: opus.Pages, silent_chunks: int) -> None:
    """The same encode, decoded after the silence that it was encoded after, and after pages of silence repeated."""
    said = opus.encoded(voice())
    writer, reader = sphn.OpusStreamWriter(RATE), sphn.OpusStreamReader(RATE)
    for _ in range(50):
        reader.append_bytes(writer.append_pcm(np.zeros(CHUNK, np.float32)))
    straight = np.concatenate([reader.append_bytes(message) for message in said]) * 32768
    spliced = decoded([pages.head, *[pages.silence] * silent_chunks, *said])[silent_chunks * CHUNK :]
    error = spliced.astype(np.float64) - straight
    assert 10 * np.log10(np.square(straight).sum() / np.square(error).sum()) > 60  # dB; int16 gives about 80


def test_a_recording_is_where_it_was_put_plus_the_encoders_look_ahead(pages: opus.Pages) -> None:
    heard = decoded([pages.head, *[pages.silence] * 12, *opus.encoded(voice()), *[pages.silence] * 4])
    first = int(np.argmax(np.abs(heard.astype(np.int32)) > 2_000))
    assert first == pytest.approx(12 * CHUNK + LOOK_AHEAD, abs=12)  # half a millisecond


def test_two_streams_of_the_same_pages_do_not_disturb_each_other(pages: opus.Pages) -> None:
    said = opus.encoded(voice())
    one, other = [pages.head, *said], [pages.head, pages.silence, pages.silence, *said]
    decoders = Decoders()
    (sizes, pcm, fault), (others, other_pcm, other_fault) = decoders.decode([(1, one), (2, other)])
    assert fault is None
    assert other_fault is None
    assert (sum(sizes), sum(others)) == (len(said) * CHUNK, (len(said) + 2) * CHUNK)
    assert pcm == decoded(one).tobytes()
    assert other_pcm == decoded(other).tobytes()
    decoders.forget(1)
    assert decoders.decode([(1, one)])[0][1] == pcm  # a stream of that number anew


def test_the_head_comes_once_and_brings_no_sample(pages: opus.Pages) -> None:
    assert pages.head.startswith(b"OggS")
    assert pages.head.count(b"OggS") == 2
    assert b"OpusHead" in pages.head
    assert b"OpusTags" in pages.head
    assert len(Decoder().feed(pages.head)) == 0
    assert opus.samples_in(pages.head) == 0
    assert len(opus.page_spans(pages.silence)) == pages.silence.count(b"OggS")


def test_packets_say_how_much_they_hold_without_being_decoded(pages: opus.Pages) -> None:
    for message in (pages.silence, pages.head + pages.silence, *opus.encoded(voice(0.3))):
        reader = sphn.OpusStreamReader(RATE)
        reader.append_bytes(pages.head)
        assert opus.samples_in(message) == len(reader.append_bytes(message)) == CHUNK


@pytest.mark.parametrize(
    ("packet", "expected_ms"),
    [
        (b"\x00", 10), (b"\x08", 20), (b"\x10", 40), (b"\x58", 60), (b"\x60", 10), (b"\x78", 20),
        (b"\x80", 2.5), (b"\xf8", 20), (b"\xf9", 40), (b"\xfa", 40), (b"\xfb\x03", 60), (b"\xfb", 0),
    ],
)  # fmt: skip
def test_each_kind_of_packet_is_as_long_as_rfc_6716_says(packet: bytes, expected_ms: float) -> None:
    page = b"OggS" + bytes(22) + bytes((1, len(packet))) + packet
    assert opus.samples_in(page) == round(expected_ms * RATE / 1000)
    continued = page[:5] + b"\x01" + page[6:]
    assert opus.samples_in(continued) == 0  # it began in the page before


def test_every_flipped_bit_of_a_page_is_told(pages: opus.Pages) -> None:
    message = opus.encoded(voice(0.08))[0]
    opus.check(message)
    for bit in range(0, 8 * len(message), 7):
        spoiled = bytearray(message)
        spoiled[bit // 8] ^= 1 << bit % 8
        with pytest.raises(BadOpus, match="Ogg page"):
            opus.check(bytes(spoiled))


def test_a_torn_page_is_told_wherever_it_is_torn(pages: opus.Pages) -> None:
    ends = {end for _, end in opus.page_spans(pages.silence)}
    for size in range(1, len(pages.silence)):
        if size not in ends:
            with pytest.raises(BadOpus):
                opus.check(pages.silence[:size])


def test_a_bad_message_costs_itself_alone_and_moves_nothing(pages: opus.Pages) -> None:
    said = opus.encoded(voice())
    spoiled = bytearray(said[2])
    spoiled[-3] ^= 0xFF
    sizes, pcm, fault = Decoders().decode([(7, [pages.head, *said[:2], bytes(spoiled), *said[3:]])])[0]
    assert sizes == [0, *[CHUNK] * len(said)]
    heard = np.frombuffer(pcm, np.int16).reshape(-1, CHUNK)
    assert not heard[2].any()
    assert [bool(np.abs(chunk).max() > 4_000) for chunk in heard[:6]] == [True, True, False, True, True, True]
    assert fault == "an Ogg page with a wrong checksum"
    sizes, _, fault = Decoders().decode([(7, [pages.head, said[0], said[1][:50]])])[0]
    assert (sizes, fault is None) == ([0, CHUNK, CHUNK], False)
    spoiled[:4] = b"OgxS"
    assert Decoders().decode([(7, [pages.head, said[0], bytes(spoiled), said[2]])])[0][0] == [0, CHUNK, CHUNK, CHUNK]


def test_empty_and_foreign_messages_are_told() -> None:
    for data in (b"", b"\0", b"RIFF" + bytes(40), b"OggS"):
        with pytest.raises(BadOpus):
            Decoder().feed(data)


def test_a_message_that_promises_an_hour_is_not_decoded() -> None:
    """Packets of two bytes, two minutes in each of thirty pages: gigabytes of samples in a few kilobytes."""
    page = b"OggS" + bytes(22) + bytes((255,)) + bytes((2,) * 255) + b"\xfb\x06" * 255
    page = page[:22] + opus._checksum(page).to_bytes(4, "little") + page[26:]
    assert opus.samples_in(page * 30) == 30 * 255 * 6 * 480
    with pytest.raises(BadOpus, match="an audio message of 918 s"):
        Decoder().feed(page * 30)
    assert Decoders().decode([(1, [page * 30])])[0][0] == [0]

"""Audio as servers send it: the same samples wherever it is cut, and never a header taken for sound."""

import io
import itertools
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from workers.audio.containers import (
    COMPRESSED,
    BadAudio,
    Packet,
    PcmStream,
    Samples,
    Truncated,
    WavStream,
    decode,
    sniff,
)

UNKNOWN = (0, 0xFFFFFFFF)
LIST = b"LIST" + struct.pack("<I", 26) + b"INFOISFT\x0e\x00\x00\x00Lavf58.76.100\x00"  # as ffmpeg writes it
HARD_INT16 = [0, 1, -1, 255, -256, 12345, -12345, 32767, -32768]
SUBTYPE_PCM = b"\x01\x00\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"
SUBTYPE_FLOAT = b"\x03\x00\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71"


def wav(
    audio: bytes,
    *,
    bits: int = 16,
    code: int = 1,
    channels: int = 1,
    rate: int = 24_000,
    fmt_tail: bytes = b"",
    before_data: bytes = b"",
    after_data: bytes = b"",
    data_bytes: int | None = None,
) -> bytes:
    """A WAV file; data_bytes is what its header claims, the truth by default."""
    width = channels * bits // 8
    fmt = struct.pack("<HHIIHH", code, channels, rate, rate * width, width, bits) + fmt_tail
    chunks = b"fmt " + struct.pack("<I", len(fmt)) + fmt + before_data
    claimed = len(audio) if data_bytes is None else data_bytes
    body = b"WAVE" + chunks + b"data" + struct.pack("<I", claimed) + audio + after_data
    return b"RIFF" + struct.pack("<I", claimed if claimed in UNKNOWN else len(body)) + body


def extensible(valid_bits: int, subtype: bytes) -> bytes:
    """The 24 bytes that WAVE_FORMAT_EXTENSIBLE adds: their size, valid bits, speaker mask, sub-format GUID."""
    return struct.pack("<HHI", 22, valid_bits, 4) + subtype


def int24(values: list[int]) -> bytes:
    return b"".join(value.to_bytes(3, "little", signed=True) for value in values)


@dataclass(frozen=True)
class Case:
    """A file and the samples in it, worked out by hand; header: bytes before the first sample."""

    file: bytes
    samples: list[int]
    header: int = 44
    rate: int = 24_000
    claims_its_length: bool = True
    audio_end: int = field(default=0)


def le16(values: list[int]) -> bytes:
    return struct.pack(f"<{len(values)}h", *values)


PCM16 = le16(HARD_INT16)
SHIFTED_8 = [value << 8 for value in HARD_INT16]
SHIFTED_16 = [value << 16 for value in HARD_INT16]
CASES = {
    "44-byte header": Case(wav(PCM16), HARD_INT16),
    "another rate": Case(wav(PCM16, rate=8_000), HARD_INT16, rate=8_000),
    "78-byte header with LIST": Case(wav(PCM16, before_data=LIST), HARD_INT16, header=78),
    "odd chunk with its pad byte": Case(wav(PCM16, before_data=b"note\x03\x00\x00\x00abc\x00"), HARD_INT16, header=56),
    "LIST after the audio": Case(wav(PCM16, after_data=LIST), HARD_INT16, audio_end=44 + len(PCM16)),
    "LIST before and after": Case(
        wav(PCM16, before_data=LIST, after_data=LIST), HARD_INT16, header=78, audio_end=78 + len(PCM16)
    ),
    "size 0": Case(wav(PCM16, data_bytes=0), HARD_INT16, claims_its_length=False),
    "size 0xFFFFFFFF": Case(wav(PCM16, data_bytes=0xFFFFFFFF), HARD_INT16, claims_its_length=False),
    "size 0xFFFFFFFF less its header": Case(
        wav(PCM16, data_bytes=0xFFFFFFFF - 36), HARD_INT16, claims_its_length=False
    ),
    "size 0x7FFFF000, as sox streams": Case(wav(PCM16, data_bytes=0x7FFFF000), HARD_INT16, claims_its_length=False),
    "streamed with LIST before": Case(
        wav(PCM16, before_data=LIST, data_bytes=0xFFFFFFFF), HARD_INT16, header=78, claims_its_length=False
    ),
    "extensible 16 bit": Case(wav(PCM16, code=0xFFFE, fmt_tail=extensible(16, SUBTYPE_PCM)), HARD_INT16, header=68),
    "extensible float": Case(
        wav(struct.pack("<3f", 0.0, 0.5, -0.5), bits=32, code=0xFFFE, fmt_tail=extensible(32, SUBTYPE_FLOAT)),
        [0, 16383, -16383],
        header=68,
    ),
    "fmt of 18 bytes": Case(wav(PCM16, fmt_tail=b"\x00\x00"), HARD_INT16, header=46),
    "8 bit": Case(wav(bytes([128, 129, 127, 255, 0]), bits=8), [0, 256, -256, 32512, -32768]),
    "24 bit": Case(wav(int24(SHIFTED_8), bits=24), HARD_INT16),
    "32 bit": Case(wav(struct.pack("<9i", *SHIFTED_16), bits=32), HARD_INT16),
    "float": Case(
        wav(struct.pack("<7f", 0.0, 0.25, -0.25, 1.0, -1.0, 3.5, -3.5), bits=32, code=3),
        [0, 8191, -8191, 32767, -32767, 32767, -32767],
    ),
    "double": Case(wav(struct.pack("<3d", 0.0, 0.25, -1.0), bits=64, code=3), [0, 8191, -32767]),
    "float that is no number": Case(
        wav(struct.pack("<4f", 0.5, float("nan"), float("inf"), -0.5), bits=32, code=3), [16383, 0, 32767, -16383]
    ),
    "stereo": Case(wav(le16([100, 300, -100, -300, 0, 7000, 32767, 32767]), channels=2), [200, -200, 3500, 32767]),
    "stereo, loudest": Case(wav(le16([-32768, -32768]), channels=2), [-32768]),
    "stereo 24 bit": Case(
        wav(int24([100 << 8, 300 << 8, -100 << 8, -300 << 8]), bits=24, channels=2, before_data=LIST, after_data=LIST),
        [200, -200],
        header=78,
        audio_end=78 + 12,
    ),
    "no audio at all": Case(wav(b""), [], claims_its_length=False),
}


def fed(file: bytes, *cuts: int) -> tuple[list[int], WavStream]:
    """Samples of a file that comes in pieces, cut at the offsets given."""
    stream = WavStream()
    edges = (0, *cuts, len(file))
    pieces = [stream.feed(file[begin:end]) for begin, end in itertools.pairwise(edges)]
    return np.concatenate(pieces).tolist(), stream


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_wav_is_the_same_wherever_it_is_cut(case: Case) -> None:
    for cut in range(len(case.file) + 1):
        samples, stream = fed(case.file, cut)
        stream.finish()
        # Within the rounding that an average or a conversion from float is free to choose.
        np.testing.assert_allclose(samples, case.samples, atol=1)
        assert stream.sample_rate == case.rate
    samples, stream = fed(case.file, *range(1, len(case.file)))
    stream.finish()
    np.testing.assert_allclose(samples, case.samples, atol=1)


@pytest.mark.parametrize("name", ["LIST before and after", "stereo 24 bit"])
def test_wav_cut_twice(name: str) -> None:
    case = CASES[name]
    for cuts in itertools.combinations(range(len(case.file) + 1), 2):
        assert fed(case.file, *cuts)[0] == case.samples


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_wav_header_is_no_sound(case: Case) -> None:
    """The header, sent 200 ms before any synthesis, is not the first chunk: no sample, however little is missing."""
    stream = WavStream()
    assert len(stream.feed(case.file[: case.header])) == 0
    if case.samples:
        assert len(stream.feed(case.file[case.header :])) == len(case.samples)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_wav_that_breaks_off_is_truncated(case: Case) -> None:
    audio_end = case.audio_end or len(case.file)
    for length in range(audio_end):
        if length >= case.header and not case.claims_its_length:
            continue  # its length was never told: only half a sample can be missed
        stream = WavStream()
        stream.feed(case.file[:length])
        with pytest.raises(Truncated):
            stream.finish()
    for length in range(audio_end, len(case.file)):
        fed(case.file[:length])[1].finish()  # what is missing after the audio is no audio


@pytest.mark.parametrize("name", ["size 0", "size 0xFFFFFFFF"])
def test_a_streamed_wav_that_ends_within_a_sample_is_truncated(name: str) -> None:
    file = CASES[name].file
    for length in range(44, len(file) + 1):
        stream = fed(file[:length])[1]
        if length % 2:
            with pytest.raises(Truncated):
                stream.finish()
        else:
            stream.finish()


@pytest.mark.parametrize(
    "data",
    [
        b"<html><body>Not Found</body></html>",
        b'{"error": "no such voice"}',
        b"RIFX" + CASES["44-byte header"].file[4:],
        b"RIFF\x24\x00\x00\x00AVI LIST",
        b"ID3\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00",
        wav(PCM16, code=85),  # mp3 in a WAV
        wav(PCM16, code=6, bits=8),  # a-law
        wav(PCM16, channels=0),
        wav(PCM16, rate=0),
        wav(PCM16, bits=12),
        b"RIFF\x24\x00\x00\x00WAVEdata\x04\x00\x00\x00abcd",
        b"RIFF\x24\x00\x00\x00WAVEfmt \x04\x00\x00\x00abcddata\x04\x00\x00\x00abcd",
        b"RIFF\x24\x00\x00\x00WAVEjunk\xff\xff\xff\x7f" + bytes(64),
    ],
)
def test_not_a_wav(data: bytes) -> None:
    with pytest.raises(BadAudio) as caught:
        fed(data)
    assert not isinstance(caught.value, Truncated)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("subtype", "bits"), [("PCM_U8", 8), ("PCM_16", 16), ("PCM_24", 24), ("FLOAT", 32)])
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_as_another_library_writes_it(subtype: str, bits: int, channels: int) -> None:
    truth = tone(0.05, 16_000)
    file = io.BytesIO()
    soundfile.write(file, np.stack([truth / 32768] * channels, axis=1), 16_000, format="WAV", subtype=subtype)
    samples, stream = fed(file.getvalue(), 100, 101, 103, 500)
    stream.finish()
    assert stream.sample_rate == 16_000
    np.testing.assert_allclose(samples, truth, atol=256 if bits == 8 else 1)


@pytest.mark.parametrize("cuts", [(), (1,), (1, 2), (1, 2, 3), (3,), (17,), tuple(range(1, 18))])
def test_pcm_is_the_same_wherever_it_is_cut(cuts: tuple[int, ...]) -> None:
    stream = PcmStream(16_000)
    pieces = [stream.feed(PCM16[begin:end]) for begin, end in itertools.pairwise((0, *cuts, len(PCM16)))]
    stream.finish()
    assert np.concatenate(pieces).tolist() == HARD_INT16
    assert stream.sample_rate == 16_000


def test_pcm_that_ends_within_a_sample_is_truncated() -> None:
    stream = PcmStream(24_000)
    assert stream.feed(PCM16[:7]).tolist() == HARD_INT16[:3]
    with pytest.raises(Truncated):
        stream.finish()


@pytest.mark.parametrize(
    ("first", "asked", "expected"),
    [
        (b"RIFF\x00\x00\x00\x00WAVE", "pcm", "wav"),
        (b"fLaC\x00\x00", "wav", "flac"),
        (b"OggS\x00\x02", "mp3", "opus"),
        (b"ID3\x04\x00", "wav", "mp3"),
        (b"\xff\xf3\x64\xc4", "mp3", "mp3"),
        (b"\x00\x00\x01\x00", "pcm", "pcm"),
        (b"<htm", "wav", "wav"),
    ],
)
def test_the_magic_counts_more_than_what_was_asked_for(first: bytes, asked: str, expected: str) -> None:
    assert sniff(first, asked) == expected


# ------------------------------------------------------------------------------------------------ flac, mp3, opus

SILENCE_S, TONE_S = 0.8, 1.2
WRITERS = {
    "flac": {"format": "FLAC", "subtype": "PCM_16"},
    "mp3": {"format": "MP3", "subtype": "MPEG_LAYER_III"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
}
# A decoder is at most this far from the samples that went in: lossless; a granule of mp3; a packet of Opus.
SLACK = {"flac": 0, "mp3": 576, "opus": 480}


def tone(seconds: float, rate: int) -> Samples:
    return (12_000 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)).astype(np.int16)


def silence_then_tone(rate: int) -> Samples:
    return np.concatenate([np.zeros(round(SILENCE_S * rate), np.int16), tone(TONE_S, rate)])


def written(name: str, samples: npt.NDArray[np.generic], rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **WRITERS[name])
    return file.getvalue()


class Stream(io.RawIOBase):
    """A file that cannot be gone back in: what libsndfile would fill in at the end stays as it was first written."""

    def __init__(self) -> None:
        self.sent, self._at = bytearray(), 0

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]
        if self._at == len(self.sent):
            self.sent += piece
        self._at += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = (0, self._at, len(self.sent))[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at


def streamed(name: str, samples: Samples, rate: int) -> bytes:
    """The container of one who does not know yet how long it will be."""
    out = Stream()
    with soundfile.SoundFile(out, "w", samplerate=rate, channels=1, **WRITERS[name]) as file:
        file.write(samples)
    data = bytes(out.sent)
    # An mp3 begins with an empty frame, kept for the lengths: who streams leaves it out.
    return data[data.index(b"\xff", 1) :] if name == "mp3" else data


def prefix(data: bytes) -> Samples:
    """What libsndfile makes of a file of which only the beginning is there."""
    found: list[Samples] = []
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            while len(block := file.read(64, dtype="int16")):
                found.append(block)
    except soundfile.LibsndfileError:
        pass  # the rest is missing: what was decoded before that counts
    return np.concatenate(found) if found else np.empty(0, np.int16)


COMPRESSED_CASES = [("flac", 24_000), ("flac", 44_100), ("opus", 24_000), ("opus", 48_000), ("opus", 16_000)]
COMPRESSED_CASES += [("mp3", 24_000), ("mp3", 44_100), ("mp3", 8_000)]


@pytest.fixture(scope="module", params=COMPRESSED_CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def answer(request: pytest.FixtureRequest) -> tuple[str, int, bytes]:
    name, rate = request.param
    return name, rate, written(name, silence_then_tone(rate), rate)


def test_duration_and_rate_are_those_of_what_was_encoded(answer: tuple[str, int, bytes]) -> None:
    name, rate, data = answer
    decoded = decode(name, data)
    assert decoded.sample_rate == rate
    assert len(decoded.samples) / rate == pytest.approx(SILENCE_S + TONE_S, abs=SLACK[name] / rate)
    # S4.30: what bytes/2 would give is nowhere near.
    assert abs(len(data) / 2 / rate - (SILENCE_S + TONE_S)) > 0.5


def test_the_tone_begins_where_it_began(answer: tuple[str, int, bytes]) -> None:
    name, rate, data = answer
    samples = decode(name, data).samples
    assert samples.dtype == np.int16
    first = int((np.abs(samples.astype(int)) > 1000).argmax())
    assert first / rate == pytest.approx(SILENCE_S, abs=0.005)
    loudness = np.sqrt((samples[-rate // 2 :].astype(float) ** 2).mean())
    assert loudness == pytest.approx(12_000 / np.sqrt(2), rel=0.05)


def test_packets_tile_the_answer(answer: tuple[str, int, bytes]) -> None:
    name, _, data = answer
    decoded = decode(name, data)
    check_tiling(decoded.packets, decoded.header_bytes, len(data), len(decoded.samples))


@pytest.mark.parametrize("name", COMPRESSED)
def test_packets_of_an_answer_that_did_not_know_its_length(name: str) -> None:
    truth = silence_then_tone(24_000)
    data = streamed(name, truth, 24_000)
    decoded = decode(name, data)
    check_tiling(decoded.packets, decoded.header_bytes, len(data), len(decoded.samples))
    # Without its frame of lengths an mp3 keeps the encoder's delay and padding: under three frames.
    assert 0 <= len(decoded.samples) - len(truth) <= (3 * 576 if name == "mp3" else 0)


def check_tiling(packets: list[Packet], header_bytes: int, size: int, samples: int) -> None:
    byte_ends = [packet.byte_end for packet in packets]
    assert byte_ends == sorted(set(byte_ends))
    assert byte_ends[0] > header_bytes
    assert byte_ends[-1] == size
    sample_ends = [packet.sample_end for packet in packets]
    assert sample_ends == sorted(sample_ends)
    assert sample_ends[0] >= 0
    assert sample_ends[-1] == samples


def test_a_packet_can_be_played_when_its_last_byte_is_there(answer: tuple[str, int, bytes]) -> None:
    """Against libsndfile, given the file's beginning only: as many samples as claimed, and not many more."""
    name, _, data = answer
    decoded = decode(name, data)
    slack = {"flac": 0, "opus": 0, "mp3": 1152}[name]
    checked = 0
    for index in sorted({0, 1, 2, 5, len(decoded.packets) // 2, len(decoded.packets) - 2} & set(range(40))):
        if index >= len(decoded.packets):
            continue
        byte_end, sample_end = decoded.packets[index]
        playable = prefix(data[:byte_end])
        if name == "mp3" and not len(playable):
            continue  # mpg123 wants a few frames before it believes that this is mp3
        checked += 1
        assert sample_end - slack <= len(playable) + 64
        assert len(playable) <= sample_end + slack
        if name == "mp3":
            assert sample_end <= len(playable), "samples are claimed that the decoder does not have yet"
    assert checked


@pytest.mark.parametrize(("name", "rate"), COMPRESSED_CASES)
def test_header_bytes_end_where_audio_begins(name: str, rate: int) -> None:
    """Known independently: with the header alone nothing can be decoded, and all that differs comes after it."""
    data = written(name, silence_then_tone(rate), rate)
    header = decode(name, data).header_bytes
    assert 0 < header < len(data)
    assert not len(prefix(data[:header]))
    other = written(name, silence_then_tone(rate)[::-1].copy(), rate)
    if name == "flac":  # its STREAMINFO holds an MD5 and frame sizes; the blocks' lengths are what delimits it
        assert data[header : header + 2] in (b"\xff\xf8", b"\xff\xf9")
        assert decode(name, other).header_bytes == header
    elif name == "opus":
        assert data[:header].count(b"OggS") == 2
        assert b"OpusHead" in data[:header]
        assert b"OpusTags" in data[:header]
        assert data[header : header + 4] == b"OggS"
    else:
        assert b"Info" in data[:header] or b"Xing" in data[:header]
        assert data[header] == 0xFF
        assert b"Info" not in data[header:]


def test_an_id3_tag_is_header_even_where_it_holds_a_sync_word() -> None:
    data = written("mp3", silence_then_tone(24_000), 24_000)
    plain = decode("mp3", data)
    payload = b"\xff\xf3\x64\xc4" * 50
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, len(payload) >> 7, len(payload) & 0x7F]) + payload
    tagged = decode("mp3", tag + data)
    assert tagged.header_bytes == plain.header_bytes + len(tag)
    assert [packet.byte_end - len(tag) for packet in tagged.packets] == [packet.byte_end for packet in plain.packets]


def test_flac_frames_are_told_from_noise_that_looks_like_them() -> None:
    """Random bytes hold sync words: noise, which FLAC cannot compress, is full of them."""
    noise = np.random.default_rng(7).integers(-32768, 32767, 60 * 24_000, dtype=np.int16)
    data = written("flac", noise, 24_000)
    decoded = decode("flac", data)
    block = decoded.packets[0].sample_end
    expected = [*range(block, len(noise), block), len(noise)]
    assert [packet.sample_end for packet in decoded.packets] == expected


def test_a_frame_header_inside_a_flac_frame_is_no_frame() -> None:
    """A whole valid frame header, CRC-8 and all, stands in the verbatim samples of another frame."""
    noise = np.random.default_rng(7).integers(-32768, 32767, 4096 * 4, dtype=np.int16)
    plain = written("flac", noise, 24_000)
    start = decode("flac", plain).header_bytes
    header = plain[start : start + 6]
    # FLAC writes verbatim samples most significant byte first.
    noise[1000:1003] = np.frombuffer(header, ">i2").astype(np.int16)
    data = written("flac", noise, 24_000)
    assert data.count(header) == 2
    assert [packet.sample_end for packet in decode("flac", data).packets] == [4096, 8192, 12288, 16384]


@pytest.mark.parametrize("name", COMPRESSED)
def test_stereo_is_averaged(name: str) -> None:
    mono = silence_then_tone(48_000)
    decoded = decode(name, written(name, np.stack([mono, mono], axis=1), 48_000))
    assert decoded.samples.ndim == 1
    assert len(decoded.samples) == pytest.approx(len(mono), abs=SLACK[name])


@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("data", [b"<html>", b"\x00" * 5000, b"fLaC", b"OggS", b"ID3\x04", b"\xff\xf3\x64\xc4"])
def test_what_does_not_decode_is_bad_audio(name: str, data: bytes) -> None:
    with pytest.raises(BadAudio):
        decode(name, data)


@pytest.mark.parametrize("whole", [written, streamed])
@pytest.mark.parametrize("name", COMPRESSED)
@pytest.mark.parametrize("missing", [1, 30])
def test_a_compressed_answer_that_breaks_off_is_truncated(name: str, whole: object, missing: int) -> None:
    data = whole(name, silence_then_tone(24_000), 24_000)  # type: ignore[operator]
    with pytest.raises(Truncated):
        decode(name, data[:-missing])


@pytest.mark.parametrize("name", ["flac", "opus"])
def test_an_answer_that_lacks_its_last_packet_is_truncated(name: str) -> None:
    """Cut where one packet ends: FLAC's header told the length, Ogg's last page is marked as the last."""
    data = written(name, silence_then_tone(24_000), 24_000)
    last_but_one = decode(name, data).packets[-2].byte_end
    with pytest.raises(Truncated):
        decode(name, data[:last_but_one])


def test_flac_that_is_spoilt_in_the_middle_is_bad_audio() -> None:
    data = bytearray(written("flac", silence_then_tone(24_000), 24_000))
    middle = decode("flac", bytes(data)).packets[8].byte_end
    data[middle : middle + 400] = bytes(400)
    with pytest.raises(BadAudio):
        decode("flac", bytes(data))


def test_a_flac_header_that_claims_hours_costs_no_memory() -> None:
    data = bytearray(written("flac", tone(0.5, 24_000), 24_000))
    data[21:26] = bytes([data[21] | 0x0F, 0xFF, 0xFF, 0xFF, 0xFF])  # STREAMINFO: 2^36 - 1 samples, 794 hours
    with pytest.raises(Truncated):
        decode("flac", bytes(data))


# ------------------------------------------------------------------------------------------- as real servers send it


def _encoded(samples: np.ndarray, format_: str, subtype: str, **how: Any) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, 24_000, format=format_, subtype=subtype, **how)
    return out.getvalue()


def _speechlike(seconds: float) -> np.ndarray:
    """Noise, silence, tone: a variable bit rate really varies."""
    count = int(seconds * 24_000)
    sound = np.random.default_rng(3).normal(0, 6000, count).clip(-30000, 30000).astype(np.int16)
    sound[count // 3 : 2 * count // 3] = 0
    sound[2 * count // 3 :] = (9000 * np.sin(np.arange(count - 2 * count // 3) / 9)).astype(np.int16)
    return sound


def test_variable_bit_rate_mp3_without_a_frame_count_is_heard_to_its_end() -> None:
    """Streaming encoders write no Xing frame; libsndfile then guesses the length from the first frame."""
    whole = _encoded(_speechlike(5.0), "MP3", "MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0.5)
    bare = whole[decode("mp3", whole).header_bytes :]
    assert b"Xing" not in bare
    assert b"Info" not in bare
    decoded = decode("mp3", bare)
    assert len(decoded.samples) / decoded.sample_rate == pytest.approx(5.0, abs=0.12)


@pytest.mark.parametrize(("name", "format_", "subtype"), [("opus", "OGG", "OPUS"), ("flac", "FLAC", "PCM_16")])
def test_files_one_after_another_are_heard_one_after_another(name: str, format_: str, subtype: str) -> None:
    """Servers that make one file a sentence send them so."""
    one = _encoded(_speechlike(1.0), format_, subtype)
    decoded = decode(name, one + one)
    assert len(decoded.samples) / decoded.sample_rate == pytest.approx(2.0, abs=0.01)
    assert decoded.packets[-1] == (2 * len(one), len(decoded.samples))
    assert [p.byte_end for p in decoded.packets] == sorted(p.byte_end for p in decoded.packets)


@pytest.mark.parametrize("cut", [None, 0, 7])
def test_wav_files_one_after_another(cut: int | None) -> None:
    """In one piece, or the second one in a piece of its own."""
    one = _encoded(_speechlike(0.2), "WAV", "PCM_16")
    stream = WavStream()
    at = len(one)
    pieces = [one + one] if cut is None else [one[: at - cut], one[at - cut :], one]
    assert sum(len(stream.feed(piece)) for piece in pieces) == 2 * 4800
    stream.finish()


def test_pcm_of_two_channels_is_half_as_long() -> None:
    stream = PcmStream(16_000, channels=2)
    pairs = np.repeat(np.arange(100, dtype="<i2"), 2).tobytes()
    assert [list(stream.feed(pairs[:7])), list(stream.feed(pairs[7:]))] == [[0], list(range(1, 100))]

"""Every container, streamed and whole: decoded by soundfile to the audio the engine made."""

import asyncio
import io
import struct
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from gpu_server.audio_out import FORMATS, flac_header_bytes, ogg_header_bytes, wav_header
from gpu_server.speech import Pcm
from tests.server_process import Server, running_server
from tests.server_wire import post

RATE = 24_000
AUDIO_S = 1.3
LOSSY_PADDING_S = 0.08  # an mp3 stream cannot say how much of its first and last frame to drop
CONTENT_TYPES = {
    "wav": "audio/wav",
    "pcm": "audio/pcm;rate=24000",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server("--engine", "tone", "--tone-seconds", str(AUDIO_S)) as server:
        yield server


def decode(name: str, data: bytes) -> npt.NDArray[np.int16]:
    if name == "pcm":
        return np.frombuffer(data, "<i2")
    if name == "flac" and total_samples(data) == 0:
        data = with_total_samples(data, round(AUDIO_S * RATE))
    samples, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate == RATE
    assert samples.ndim == 1
    return np.asarray(samples)


def total_samples(flac: bytes) -> int:
    return int.from_bytes(flac[21:26], "big") & 0xFFFFFFFFF


def with_total_samples(flac: bytes, samples: int) -> bytes:
    """soundfile cannot read a FLAC to its end that does not give its length; a stream's length comes after it."""
    field = int.from_bytes(flac[21:26], "big") | samples
    return flac[:21] + field.to_bytes(5, "big") + flac[26:]


def pitch_hz(samples: npt.NDArray[np.int16]) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples))


def expect_tone(name: str, samples: npt.NDArray[np.int16]) -> None:
    extra_s = len(samples) / RATE - AUDIO_S
    if name == "mp3":
        assert 0 <= extra_s < LOSSY_PADDING_S
    else:
        assert extra_s == pytest.approx(0, abs=0.001)
    assert pitch_hz(samples) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("name", CONTENT_TYPES)
def test_streamed(server: Server, name: str) -> None:
    answer = post(server.port, "/v1/audio/speech", {"input": "Hello.", "response_format": name})
    assert (answer.status, answer.headers["content-type"]) == (200, CONTENT_TYPES[name])
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.whole
    assert len(answer.pieces) > 3
    expect_tone(name, decode(name, answer.body))


@pytest.mark.parametrize("name", CONTENT_TYPES)
def test_whole(server: Server, name: str) -> None:
    answer = post(server.port, "/v1/synthesize", {"text": "Hello.", "format": name, "stream": False})
    assert (answer.status, answer.headers["content-type"]) == (200, CONTENT_TYPES[name])
    assert int(answer.headers["content-length"]) == len(answer.body)
    samples = decode(name, answer.body)
    assert len(samples) == round(AUDIO_S * RATE)
    assert pitch_hz(samples) == pytest.approx(440, abs=2)


def test_mp3_is_what_openai_clients_get_by_default(server: Server) -> None:
    answer = post(server.port, "/v1/audio/speech", {"input": "Hello."})
    assert answer.headers["content-type"] == "audio/mpeg"


def test_a_streamed_wav_has_no_length_and_a_whole_one_has(server: Server) -> None:
    streamed = post(server.port, "/v1/synthesize", {"text": "Hello."}).body
    whole = post(server.port, "/v1/synthesize", {"text": "Hello.", "stream": False}).body
    assert (struct.unpack_from("<I", streamed, 4), struct.unpack_from("<I", streamed, 40)) == ((0xFFFFFFFF,),) * 2
    assert struct.unpack_from("<I", whole, 4)[0] == len(whole) - 8
    assert struct.unpack_from("<I", whole, 40)[0] == len(whole) - 44
    assert streamed[44:] == whole[44:]


@pytest.mark.parametrize("name", ["wav", "flac", "opus"])
def test_no_header_leaves_without_audio(server: Server, name: str) -> None:
    first = post(server.port, "/v1/synthesize", {"text": "Hello.", "format": name}).pieces[0]
    header_bytes = {"wav": lambda _data: 44, "flac": flac_header_bytes, "opus": ogg_header_bytes}[name](first)
    assert header_bytes is not None
    assert len(first) > header_bytes > 0


def tone(seconds: float) -> Pcm:
    return (10_000 * np.cos(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)).astype(np.int16)


async def encode(name: str, pcm: Pcm, samples: int) -> list[bytes]:
    encoder = FORMATS[name].encoder()
    parts = [await encoder.feed(pcm[start : start + samples]) for start in range(0, len(pcm), samples)]
    return [*parts, await encoder.finish()]


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_come_while_audio_does(name: str) -> None:
    """No container may hold back more than 0.3 s of what it was fed."""
    parts = asyncio.run(encode(name, tone(3.0), 960))
    silent_for = longest = 0
    for part in parts[:-1]:
        silent_for = 0 if part else silent_for + 1
        longest = max(longest, silent_for)
    assert longest * 0.04 < 0.3


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("samples", [1, 959, 960, 24_000])
def test_any_chunking_any_length(name: str, samples: int) -> None:
    pcm = tone(0.02) if samples == 1 else tone(AUDIO_S)
    data = b"".join(asyncio.run(encode(name, pcm, samples)))
    if name == "flac":
        data = with_total_samples(data, len(pcm))
    decoded = decode(name, data)
    assert len(decoded) >= len(pcm)
    if name in ("wav", "pcm", "flac"):
        assert np.array_equal(decoded, pcm)


def test_a_wav_header_is_44_bytes() -> None:
    assert len(wav_header(None)) == len(wav_header(100)) == 44


@pytest.mark.parametrize("name", ["flac", "opus"])
def test_headers_are_found_wherever_the_data_ends(name: str) -> None:
    find = {"flac": flac_header_bytes, "opus": ogg_header_bytes}[name]
    data = b"".join(asyncio.run(encode(name, tone(0.5), 960)))
    end = find(data)
    assert end is not None
    assert all(find(data[:size]) in (None, end) for size in range(len(data)))
    assert find(data[:40]) is None

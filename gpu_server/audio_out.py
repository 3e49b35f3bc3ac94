"""Put audio into the containers clients ask for, chunk by chunk. Knows nothing of HTTP, engines or clocks."""

import asyncio
import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import soundfile

from gpu_server.speech import SAMPLE_RATE, Pcm

_OGG_PAGE_MS = 60.0
_SET_OGG_PAGE_LATENCY_MS = 0x1302  # SFC_SET_OGG_PAGE_LATENCY_MS of sndfile.h
_UNKNOWN_BYTES = 0xFFFFFFFF


class Encoder(Protocol):
    """Turns chunks into bytes as they come. Whatever it returns first holds audio, not a header alone."""

    async def feed(self, pcm: Pcm) -> bytes: ...

    async def finish(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Format:
    """One container: what it is called on the wire and how to write it."""

    content_type: str
    encoder: Callable[[], Encoder]
    whole: Callable[[Pcm], bytes]


def wav_header(data_bytes: int | None, sample_rate: int = SAMPLE_RATE) -> bytes:
    """A 44-byte header for mono s16; sizes of 0xFFFFFFFF where the length is not known yet."""
    riff_bytes = _UNKNOWN_BYTES if data_bytes is None else 36 + data_bytes
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        riff_bytes,
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        sample_rate,
        2 * sample_rate,
        2,
        16,
        b"data",
        _UNKNOWN_BYTES if data_bytes is None else data_bytes,
    )


class RawEncoder:
    """A header, then s16le samples as they are."""

    def __init__(self, header: bytes = b"") -> None:
        self._header = header

    async def feed(self, pcm: Pcm) -> bytes:
        header, self._header = self._header, b""
        return header + s16le(pcm)

    async def finish(self) -> bytes:
        return self._header


def s16le(pcm: Pcm) -> bytes:
    return pcm.astype("<i2", copy=False).tobytes()


class SoundfileEncoder:
    """A container that libsndfile writes, drained after each chunk.

    At its end libsndfile goes back to fill in lengths; a stream cannot, so those writes are left out.
    """

    def __init__(self, header_bytes: Callable[[bytes], int | None], how: dict[str, Any]) -> None:
        # Of mp3, offset 0 is a frame of lengths that are not known yet: a silent frame too many, or worse, believed.
        self._outlet = _Outlet(keep_start=how["format"] != "MP3")
        self._file = soundfile.SoundFile(self._outlet, "w", samplerate=SAMPLE_RATE, channels=1, **how)
        if how["format"] == "OGG":
            # libsndfile collects a second of audio a page, which no listener should wait for. The setting has no
            # name in soundfile's own interface.
            latency = soundfile._ffi.new("double*", _OGG_PAGE_MS)
            soundfile._snd.sf_command(self._file._file, _SET_OGG_PAGE_LATENCY_MS, latency, 8)
        self._header_bytes = header_bytes
        self._header: bytes | None = b""

    async def feed(self, pcm: Pcm) -> bytes:
        # In a thread: mp3 takes up to a millisecond a chunk, and soundfile lets go of the interpreter lock.
        await asyncio.to_thread(self._file.write, pcm)
        return self._after_header(self._outlet.drain())

    async def finish(self) -> bytes:
        await asyncio.to_thread(self._file.close)
        return (self._header or b"") + self._outlet.drain()

    def _after_header(self, data: bytes) -> bytes:
        """Hold the header back until audio follows it."""
        if self._header is None:
            return data
        self._header += data
        end = self._header_bytes(self._header)
        if end is None or len(self._header) <= end:
            return b""
        data, self._header = self._header, None
        return data


class _Outlet:
    """The file object libsndfile writes to: keeps what is appended, drops what goes back."""

    def __init__(self, keep_start: bool) -> None:
        self._keep_start = keep_start
        self._position = 0
        self._end = 0
        self._fresh = bytearray()

    def write(self, data: Any) -> int:
        size = len(data)
        if self._position == self._end:
            if self._position > 0 or self._keep_start:
                self._fresh += bytes(data)
            self._end += size
        self._position += size
        return size

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = (0, self._position, self._end)[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, _size: int = -1) -> bytes:
        return b""

    def drain(self) -> bytes:
        data = bytes(self._fresh)
        self._fresh.clear()
        return data


def flac_header_bytes(data: bytes) -> int | None:
    """Where FLAC's metadata ends; None when that cannot be told yet. RFC 9639, section 8."""
    at = 4
    while at + 4 <= len(data):
        last = data[at] & 0x80
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
        if last:
            return at
    return None


def ogg_header_bytes(data: bytes) -> int | None:
    """Where the first page with audio (a granule position above 0) begins; None when none has begun. RFC 3533."""
    at = 0
    while at + 27 <= len(data):
        segments = data[at + 26]
        if int.from_bytes(data[at + 6 : at + 14], "little") > 0:
            return at
        at += 27 + segments + sum(data[at + 27 : at + 27 + segments])
    return None


def no_header_bytes(_data: bytes) -> int:
    return 0


# Constant bit rate: in a stream without a length, players reckon the duration from the first frames.
_FLAC = {"format": "FLAC", "subtype": "PCM_16"}
_MP3 = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": 0.6}
_OPUS = {"format": "OGG", "subtype": "OPUS"}


def _by_soundfile(content_type: str, header_bytes: Callable[[bytes], int | None], how: dict[str, Any]) -> Format:
    def whole(pcm: Pcm) -> bytes:
        file = io.BytesIO()
        with soundfile.SoundFile(file, "w", samplerate=SAMPLE_RATE, channels=1, **how) as sound:
            sound.write(pcm)
        return file.getvalue()

    return Format(content_type, lambda: SoundfileEncoder(header_bytes, how), whole)


FORMATS = {
    "wav": Format("audio/wav", lambda: RawEncoder(wav_header(None)), lambda pcm: wav_header(2 * len(pcm)) + s16le(pcm)),
    "pcm": Format(f"audio/pcm;rate={SAMPLE_RATE}", RawEncoder, s16le),
    "flac": _by_soundfile("audio/flac", flac_header_bytes, _FLAC),
    "mp3": _by_soundfile("audio/mpeg", no_header_bytes, _MP3),
    "opus": _by_soundfile("audio/ogg", ogg_header_bytes, _OPUS),
}

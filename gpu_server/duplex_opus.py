"""Turn PCM into Ogg-Opus pages and pages into PCM, one stream each way. Knows nothing of sockets or of speech.

24 kHz mono, 1,920 samples (80 ms) a chunk, two pages of 40 ms, as `sphn` 0.2 makes them. Encoding costs a millisecond a
chunk, and most of a session is silence: packets of silence are made once a process and put into pages of each stream,
whose granules and sequence numbers count on. What an encoder makes of silence is the same wherever the silence was, so
streams are spliced there.

`sphn` 0.2.1 reads a stream without OpusHead and decodes a page with a wrong checksum into noise; the decoder of running
PersonaPlex servers dies without OpusHead. So here: the first page must be OpusHead, a wrong checksum is not looked at,
and what is no page is Undecodable.
"""

import zlib
from collections import OrderedDict
from functools import cache
from hashlib import blake2b
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

RATE: Final = 24_000  # Hz
CHUNK: Final = 1_920  # samples
CHUNK_S: Final = CHUNK / RATE
SILENCE: Final = bytes(2 * CHUNK)  # s16le
_PACKET_GRANULES: Final = 1_920  # of 48 kHz, RFC 7845: 40 ms
_SETTLED: Final = 4  # chunks of silence after which an encoder's past no longer matters
_HEADER: Final = 27
_NAMED: Final = 36  # bytes up to the end of the word OpusHead
_HEAD_BYTES: Final = 47  # of the page that is OpusHead
_SERIAL: Final = (42).to_bytes(4, "little")  # sphn's
_MIRRORED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_LONGEST: Final = 200  # chunks since silence that may be remembered
_REMEMBERED: Final = 4096  # chunks of speech, 1.2 MB of packets

Packets = tuple[bytes, ...]


class Undecodable(ValueError):
    """Bytes that end a stream; the text says why."""


def prepare_silence() -> None:
    """Make once what all streams share: a few milliseconds."""
    _silence()


def opening() -> tuple[bytes, bytes]:
    """The two pages that every stream begins with: OpusHead and OpusTags."""
    return _silence()[0]


class OutStream:
    """What one session sends: a payload for each chunk.

    Where `repeating`, silence is spliced in, and chunks that an earlier stream encoded after the same ones since
    silence are not encoded again: the same answers are given in all sessions.
    """

    def __init__(self, repeating: bool) -> None:
        self._repeating = repeating
        self._sequence = 2  # after OpusHead and OpusTags
        self._granule = 0
        self._chunks = 0  # since silence
        self._silent = 0  # how many of them the last ones are
        self._past = b""  # digest of them
        self._encoder: Any = None
        self._unheard: list[bytes] = []  # chunks the encoder has not had

    def payload(self, pcm: bytes) -> bytes:
        """The pages of the next chunk (s16le)."""
        silent = pcm == SILENCE
        if silent and self._repeating and not self._chunks:
            return self._pages(_silence()[1])
        packets = self._packets(pcm)
        self._silent = self._silent + 1 if silent else 0
        if self._silent == _SETTLED and self._repeating:
            self._forget()
        return self._pages(packets)

    def _forget(self) -> None:
        """Silence: what came before no longer matters."""
        self._chunks, self._silent, self._past, self._encoder = 0, 0, b"", None
        self._unheard.clear()

    def _packets(self, pcm: bytes) -> Packets:
        self._chunks += 1
        self._unheard.append(pcm)
        if not self._repeating or self._chunks > _LONGEST:
            return self._encode()
        self._past = blake2b(self._past + pcm, digest_size=16).digest()
        packets = _MEMORY.get(self._past)
        if packets is None:
            packets = _MEMORY[self._past] = self._encode()
            if len(_MEMORY) > _REMEMBERED:
                _MEMORY.popitem(last=False)
        return packets

    def _encode(self) -> Packets:
        """The packets of the last chunk, after all before it."""
        if self._encoder is None:
            self._encoder = _settled_encoder()
        for pcm in self._unheard:
            pages = self._encoder.append_pcm(_floats(pcm))
        self._unheard.clear()
        return _packets_in(pages)

    def _pages(self, packets: Packets) -> bytes:
        pages = []
        for packet in packets:
            self._granule += _PACKET_GRANULES
            pages.append(_page(packet, self._granule, self._sequence))
            self._sequence += 1
        return b"".join(pages)


class InStream:
    """What one session hears."""

    def __init__(self) -> None:
        import sphn

        self._reader = sphn.OpusStreamReader(RATE)
        self._begun = b""

    def feed(self, data: bytes) -> Floats:
        """The samples that a message completes. Raises Undecodable."""
        if len(self._begun) < _NAMED:
            self._begun += data[: _NAMED - len(self._begun)]
            if len(self._begun) == _NAMED and not self._begun.endswith(b"OpusHead"):
                raise Undecodable("the stream does not begin with OpusHead")
        try:
            heard: Floats = self._reader.append_bytes(data)
        except (ValueError, RuntimeError) as error:
            raise Undecodable(" ".join(str(error).split())[:200]) from None
        return heard


_MEMORY: OrderedDict[bytes, Packets] = OrderedDict()  # by the digest of all chunks since silence


@cache
def _silence() -> tuple[tuple[bytes, bytes], Packets]:
    """OpusHead and OpusTags, and the packets of a silent chunk."""
    encoder = _encoder()
    first = bytes(encoder.append_pcm(_floats(SILENCE)))
    tags = first.index(b"OggS", _HEAD_BYTES)
    audio = first.index(b"OggS", tags + 4)
    packets = _packets_in(first[audio:])
    for _ in range(_SETTLED):
        packets = _packets_in(encoder.append_pcm(_floats(SILENCE)))
    return (first[:tags], first[tags:audio]), packets


def _settled_encoder() -> Any:
    encoder = _encoder()
    for _ in range(_SETTLED):
        encoder.append_pcm(_floats(SILENCE))
    return encoder


def _encoder() -> Any:
    import sphn

    return sphn.OpusStreamWriter(RATE)


def _floats(pcm: bytes) -> Floats:
    return np.frombuffer(pcm, "<i2").astype(np.float32) / np.float32(32768)


def _packets_in(pages: bytes) -> Packets:
    """What the pages of one `append_pcm` hold; each holds one packet."""
    packets = []
    begin = 0
    while begin < len(pages):
        segments = pages[begin + 26]
        body = begin + _HEADER + segments
        end = body + sum(pages[begin + _HEADER : body])
        packets.append(bytes(pages[body:end]))
        begin = end
    return tuple(packets)


def _page(packet: bytes, granule: int, sequence: int) -> bytes:
    """One page with one packet (RFC 3533)."""
    lacing = b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255])
    head = b"OggS\0\0" + granule.to_bytes(8, "little") + _SERIAL + (sequence & 0xFFFFFFFF).to_bytes(4, "little")
    tail = bytes([len(lacing)]) + lacing + packet
    return head + _checksum(head + bytes(4) + tail) + tail


def _checksum(page: bytes) -> bytes:
    """Ogg's CRC (RFC 3533: polynomial 0x04c11db7, most significant bit first) by zlib's, which is its mirror image."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return mirrored.to_bytes(4, "little").translate(_MIRRORED)[::-1]

"""Ogg-Opus as full-duplex servers speak it: pages made once and sent by all, pages heard. Knows nothing of sockets.

24 kHz mono, 1,920 samples (80 ms) a message, in pages as `sphn` cuts them. An encoder's state after silence is the same
wherever the silence was: pages of one long encode can be spliced at silence and repeated. Decoders accept sequence
numbers and granules that jump. OpusHead and OpusTags come once, first.

Decoding holds the GIL: it belongs into the ear's process, never where microphones are paced.
"""

import zlib
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.int16]

RATE: Final = 24_000
CHUNK: Final = 1_920  # samples a message
CHUNK_S: Final = CHUNK / RATE
LOOK_AHEAD: Final = 156  # samples by which libopus's encoder is late (312 of 48 kHz); `sphn` leaves them in
_SETTLED: Final = 50  # chunks of silence after which all pages of it are alike
_HEADER: Final = 27
_LONGEST_S: Final = 30.0  # of one message
_CONTINUED: Final = 1  # of a page's flags: its first packet began in the page before
_NO_AUDIO: Final = (b"OpusHead", b"OpusTags")
_MIRRORED: Final = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class BadOpus(ValueError):
    """Bytes that are no Ogg-Opus; the text says what is wrong."""


class Pages(NamedTuple):
    """One recording on the wire: a message's payload a chunk. silence: that of a silent chunk, to be repeated."""

    head: bytes  # OpusHead and OpusTags
    silence: bytes


def standard_pages() -> Pages:
    """What every stream begins with, and its silence. About 50 ms of computing."""
    writer = _writer()
    first = writer.append_pcm(np.zeros(CHUNK, np.float32))
    for _ in range(_SETTLED):
        silence = writer.append_pcm(np.zeros(CHUNK, np.float32))
    return Pages(first[: _head_bytes(first)], bytes(silence))


def encoded(samples: Samples) -> list[bytes]:
    """A recording (int16 mono at RATE) as payloads, a chunk each, to be put between silent ones.

    One more than the samples fill: what the encoder's look-ahead holds back comes with it.
    """
    writer = _writer()
    for _ in range(_SETTLED):
        writer.append_pcm(np.zeros(CHUNK, np.float32))
    count = -(-len(samples) // CHUNK) + 1
    padded = np.zeros(count * CHUNK, np.float32)
    padded[: len(samples)] = samples.astype(np.float32) / 32768
    return [bytes(writer.append_pcm(chunk)) for chunk in padded.reshape(count, CHUNK)]


def _writer() -> Any:
    import sphn

    return sphn.OpusStreamWriter(RATE)


def _head_bytes(first: bytes) -> int:
    """How many bytes of a stream's first payload are OpusHead and OpusTags: the pages without audio."""
    begin = 0
    for begin, end in page_spans(first):  # noqa: B007 - the page that ends the head is what is wanted
        if int.from_bytes(first[begin + 6 : begin + 14], "little") > 0:
            return begin
    return end


def page_spans(data: bytes) -> list[tuple[int, int]]:
    """Where each page of `data` begins and ends. Raises BadOpus where it is not whole pages, one after the other."""
    spans = []
    begin, size = 0, len(data)
    while begin < size:
        if size - begin < _HEADER or data[begin : begin + 5] != b"OggS\0":
            raise BadOpus(f"no Ogg page begins at byte {begin} of {size}: {data[begin : begin + 8].hex(' ')}")
        segments = data[begin + 26]
        body = begin + _HEADER + segments
        end = body + sum(data[begin + _HEADER : body])
        if end > size or body > size:
            raise BadOpus(f"an Ogg page of {end - begin} bytes in {size - begin}")
        spans.append((begin, end))
        begin = end
    return spans


def check(data: bytes) -> None:
    """Raises BadOpus where a page is torn or its checksum is wrong: decoders make noise of such pages."""
    for begin, end in page_spans(data):
        page = data[begin : begin + 22] + bytes(4) + data[begin + 26 : end]
        told = int.from_bytes(data[begin + 22 : begin + 26], "little")
        if told != _checksum(page):
            raise BadOpus("an Ogg page with a wrong checksum")


def _checksum(page: bytes) -> int:
    """Ogg's CRC (RFC 3533: polynomial 0x04c11db7, most significant bit first) by zlib's, which is its mirror image."""
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_MIRRORED), "big")


def samples_in(data: bytes) -> int:
    """Samples (at RATE) that the packets of whole pages hold, as each packet's first byte says (RFC 6716, 3.1).

    The cheap way to know how much came of a stream that nobody decodes. Granules would tell, too, where servers count
    them right: moshi-backend's say half. Raises BadOpus.
    """
    total_ms = 0.0
    for begin, _ in page_spans(data):
        body = begin + _HEADER + data[begin + 26]
        at, starts = body, not data[begin + 5] & _CONTINUED
        for lacing in data[begin + _HEADER : body]:
            if starts and lacing and not data.startswith(_NO_AUDIO, at):
                total_ms += _packet_ms(data, at, lacing)
            at += lacing
            starts = lacing < 255
    return round(total_ms * RATE / 1000)


def _packet_ms(data: bytes, at: int, size: int) -> float:
    config, code = data[at] >> 3, data[at] & 3
    frames = (1, 2, 2)[code] if code < 3 else data[at + 1] & 0x3F if size > 1 else 0
    if config < 12:
        return frames * (10.0, 20.0, 40.0, 60.0)[config & 3]
    return frames * ((10.0, 20.0)[config & 1] if config < 16 else 2.5 * (1 << (config & 3)))


class Decoder:
    """One stream's. After a message that cannot be decoded it goes on with the next one."""

    def __init__(self) -> None:
        self.usual = 0  # samples of the last message that had some
        self._head = b""
        self._reader: Any = None

    def feed(self, data: bytes) -> Samples:
        """The samples that a message completes, int16 mono at RATE. Raises BadOpus."""
        check(data)
        if not data:
            raise BadOpus("an audio message without a page")
        if (count := samples_in(data)) > _LONGEST_S * RATE:  # tiny packets may promise gigabytes
            raise BadOpus(f"an audio message of {count / RATE:.0f} s")
        if self._reader is None:
            self._reader = self._opened()
        if not self._head and data.find(b"OpusHead", _HEADER) > 0:
            self._head = data[: _head_bytes(data)]
        try:
            heard = self._reader.append_bytes(data)
        except (ValueError, RuntimeError) as error:
            self._reader = None
            raise BadOpus(f"Opus that cannot be decoded: {' '.join(str(error).split())[:200]}") from None
        if len(heard) > count:  # an empty packet: decoders conceal seconds of it
            raise BadOpus(f"packets of {count} samples that are decoded as {len(heard)}")
        self.usual = len(heard) or self.usual
        samples: Samples = np.clip(np.rint(heard * 32768.0), -32768, 32767).astype(np.int16)
        return samples

    def _opened(self) -> Any:
        import sphn

        reader = sphn.OpusStreamReader(RATE)
        if self._head:
            reader.append_bytes(self._head)
        return reader


class Decoders:
    """All streams of an ear, by number."""

    def __init__(self) -> None:
        self._streams: dict[int, Decoder] = {}

    def decode(self, batch: list[tuple[int, list[bytes]]]) -> list[tuple[list[int], bytes, str | None]]:
        """Of each stream its messages, in their order: samples of each, all int16 bytes, and the first fault.

        A message that cannot be decoded is silence as long as the one before it: what follows is where it belongs.
        """
        return [self._decoded(stream, messages) for stream, messages in batch]

    def _decoded(self, stream: int, messages: list[bytes]) -> tuple[list[int], bytes, str | None]:
        decoder = self._streams.setdefault(stream, Decoder())
        sizes, pcm, fault = [], [], None
        for data in messages:
            try:
                samples = decoder.feed(data)
            except BadOpus as error:
                fault = fault or str(error)
                samples = np.zeros(decoder.usual, np.int16)
            sizes.append(len(samples))
            pcm.append(samples.tobytes())
        return sizes, b"".join(pcm), fault

    def forget(self, stream: int) -> None:
        """The stream is over."""
        self._streams.pop(stream, None)

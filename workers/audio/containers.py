"""Turn audio as servers send it (wav, pcm, flac, mp3, opus) into samples. Knows nothing of sockets or clocks.

wav and pcm are understood as they come. flac, mp3 and opus are decoded by libsndfile when all is there; where each
packet ends, in bytes and in samples, is read from the format's own framing, so that every sample can be traced to the
arrival that brought it.
"""

import io
import re
import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.int16]

COMPRESSED = ("flac", "mp3", "opus")
FORMATS = ("wav", "pcm", *COMPRESSED)
_NOTHING: Samples = np.empty(0, np.int16)


class BadAudio(ValueError):
    """Bytes that are not the audio they claim to be."""


class Truncated(BadAudio):
    """Audio that ends before it says it does."""


_NAMED = {"mpeg": "mp3", "mp3": "mp3", "ogg": "opus", "opus": "opus", "flac": "flac", "wav": "wav", "wave": "wav"}


def sniff(first: bytes, asked: str, content_type: str = "") -> str:
    """Format of an answer: by the magic it begins with, else by its Content-Type, else what was asked for."""
    for magic, name in ((b"RIFF", "wav"), (b"fLaC", "flac"), (b"OggS", "opus"), (b"ID3", "mp3")):
        if first.startswith(magic):
            return name
    named = re.match(r"audio/(?:x-)?([a-z0-9]+)", content_type)
    return _NAMED.get(named[1], asked) if named else asked


def mono(samples: Samples) -> Samples:
    """(n, channels) as (n,): the channels' mean."""
    return np.ascontiguousarray(samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1).astype(np.int16))


class PcmStream:
    """Headerless s16le, cut anywhere; several channels become one."""

    def __init__(self, sample_rate: int, channels: int = 1) -> None:
        self.sample_rate, self._channels = sample_rate, channels
        self._half = b""

    def feed(self, data: bytes) -> Samples:
        """Whole samples in `data`, after the part of one left over last time."""
        if self._half:
            data = self._half + data
        rest = len(data) % (2 * self._channels)
        if rest:
            data, self._half = data[:-rest], data[-rest:]
        else:
            self._half = b""
        samples = np.frombuffer(data, "<i2")
        return samples if self._channels == 1 else mono(samples.reshape(-1, self._channels))

    def finish(self) -> None:
        if self._half:
            raise Truncated("the audio ends in the middle of a sample")


_ENDLESS = float("inf")  # the header does not know how much comes: 0, 0xFFFFFFFF, or more than any answer holds
_DTYPES = {(1, 8): "u1", (1, 16): "<i2", (1, 24): "i24", (1, 32): "<i4", (3, 32): "<f4", (3, 64): "<f8"}


class WavStream:
    """RIFF WAVE as a stream: header of any length, sizes that are real, 0, or 0xFFFFFFFF; any channel count."""

    def __init__(self) -> None:
        self.sample_rate = 0
        self._head = bytearray()
        self._dtype = ""
        self._channels = 1
        self._left: float = 0.0  # audio bytes still to come; infinite when the header does not know
        self._in_data = False
        self._half = b""

    def feed(self, data: bytes) -> Samples:
        """Samples in `data` (channels averaged); empty while the header is incomplete."""
        if self._in_data and data.startswith(b"RIFF") and data[8:12] == b"WAVE" and self._left in (0.0, _ENDLESS):
            self._in_data = False  # the next sentence's file
        if not self._in_data:
            self._head += data
            begin = self._parse_header()
            if begin is None:
                return _NOTHING
            data = bytes(self._head[begin:])
            self._head.clear()
        if len(data) > self._left:
            audio, after = data[: int(self._left)], data[int(self._left) :]
            if after.startswith(b"RIFF"):
                first, self._left = self.feed(audio), 0.0
                self._in_data = False
                return np.concatenate([first, self.feed(after)])
            data = audio  # chunks after the audio (LIST, id3) are no audio
        self._left -= len(data)
        if self._half:
            data = self._half + data
        width = self._channels * (3 if self._dtype == "i24" else np.dtype(self._dtype).itemsize)
        whole = len(data) - len(data) % width
        self._half = data[whole:]
        return self._to_int16(data[:whole])

    def _parse_header(self) -> int | None:
        head = self._head
        if len(head) < 12:
            return None
        if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
            raise BadAudio(f"not a WAV file: it begins with {bytes(head[:12])!r}")
        at = 12
        while len(head) >= at + 8:
            name, size = head[at : at + 4], int.from_bytes(head[at + 4 : at + 8], "little")
            if name == b"data":
                if not self._dtype:
                    raise BadAudio("a WAV file whose data comes before its format")
                self._in_data = True
                self._left = _ENDLESS if not size or size >= 0x40000000 else float(size)
                return at + 8
            if size > 1 << 20:
                raise BadAudio(f"a WAV header chunk {bytes(name)!r} of {size} bytes")
            if len(head) < at + 8 + size:
                return None
            if name == b"fmt ":
                self._read_format(bytes(head[at + 8 : at + 8 + size]))
            at += 8 + size + size % 2
        return None

    def _read_format(self, body: bytes) -> None:
        if len(body) < 16:
            raise BadAudio("a WAV format chunk that is too short")
        code, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", body)
        if code == 0xFFFE and len(body) >= 26:  # WAVE_FORMAT_EXTENSIBLE: the code is the GUID's first two bytes
            code = int.from_bytes(body[24:26], "little")
        if (code, bits) not in _DTYPES or not channels or not rate:
            raise BadAudio(f"a WAV file of format {code}, {bits} bits, {channels} channels, {rate} Hz")
        self._dtype, self._channels, self.sample_rate = _DTYPES[code, bits], channels, rate

    def _to_int16(self, data: bytes) -> Samples:
        match self._dtype:
            case "<i2":
                samples = np.frombuffer(data, "<i2")
            case "u1":
                samples = (np.frombuffer(data, "u1").astype(np.int16) - 128) * 256
            case "i24":
                samples = np.frombuffer(data, "u1").reshape(-1, 3)[:, 1:].copy().view("<i2").ravel()
            case "<i4":
                samples = (np.frombuffer(data, "<i4") >> 16).astype(np.int16)
            case _:
                floats = np.nan_to_num(np.frombuffer(data, self._dtype))  # NaN has no int16: silence
                samples = (np.clip(floats, -1.0, 1.0) * 32767).astype(np.int16)
        return mono(samples.reshape(-1, self._channels))

    def finish(self) -> None:
        if not self._in_data:
            raise Truncated("the answer ends within the WAV header")
        if self._half:
            raise Truncated("the audio ends in the middle of a sample")
        if self._left not in (0.0, _ENDLESS):
            raise Truncated(f"the WAV header promises {self._left:.0f} bytes more than came")


class Packet(NamedTuple):
    """With the first `byte_end` bytes at hand, the first `sample_end` samples can be played."""

    byte_end: int
    sample_end: int


class Decoded(NamedTuple):
    """A compressed answer, decoded: samples, rate (Hz), bytes of header before the audio, packets in order."""

    samples: Samples
    sample_rate: int
    header_bytes: int
    packets: list[Packet]


class _Framing(NamedTuple):
    """What a format's own framing tells: where audio begins, its packets, and what of it is missing, in words."""

    header_bytes: int
    packets: list[Packet]
    missing: str = ""


_BLOCK_SAMPLES = 1 << 16


def decode(name: str, data: bytes) -> Decoded:
    """Decode flac, mp3 or opus; libsndfile releases the GIL while it works. Raises BadAudio, Truncated.

    Several files one after another, as servers send that make one for each sentence, are heard one after another.
    """
    parts = [_decode_file(name, part) for part in _files(name, data)]
    if len(parts) == 1:
        return parts[0]
    if len({part.sample_rate for part in parts}) > 1:
        raise BadAudio(f"{name} files of different sample rates in one answer")
    packets: list[Packet] = []
    bytes_before = samples_before = 0
    for part, size in zip(parts, map(len, _files(name, data)), strict=True):
        packets += [Packet(bytes_before + p.byte_end, samples_before + p.sample_end) for p in part.packets]
        bytes_before, samples_before = bytes_before + size, samples_before + len(part.samples)
    samples = np.concatenate([part.samples for part in parts])
    return Decoded(samples, parts[0].sample_rate, parts[0].header_bytes, packets)


_FILE_BEGINS = {
    "opus": re.compile(rb"OggS\x00[\x02\x06]", re.DOTALL),  # a page that begins a logical stream
    "flac": re.compile(rb"fLaC[\x00\x80]\x00\x00\x22", re.DOTALL),  # the magic and STREAMINFO's header
}


def _files(name: str, data: bytes) -> list[bytes]:
    """The files that `data` is made of; mp3 needs no cutting, its frames stand alone."""
    if name not in _FILE_BEGINS:
        return [data]
    begins = [found.start() for found in _FILE_BEGINS[name].finditer(data)][1:]
    return [data[begin:end] for begin, end in zip([0, *begins], [*begins, len(data)], strict=True)]


def _decode_file(name: str, data: bytes) -> Decoded:
    header_bytes, packets, missing = _FRAMINGS[name](data)
    if missing:
        raise Truncated(missing)
    if name == "flac" and packets:
        data = _flac_with_length(data, packets[-1].sample_end)
    try:
        samples, rate = _read(data)
        if name == "mp3" and packets and abs(len(samples) - packets[-1].sample_end) > _MP3_SLACK:
            # Without a true frame count libsndfile guesses one from the first frame's bit rate, and stops there.
            samples, rate = _read(_mp3_xing(data[header_bytes:], len(packets)) + data[header_bytes:])
            if abs(len(samples) - packets[-1].sample_end) > _MP3_SLACK:
                raise BadAudio(f"mp3 of which {len(samples)} of {packets[-1].sample_end} samples decode")
    except RuntimeError as error:  # libsndfile's own errors are RuntimeErrors
        if name == "flac" and _flac_is_cut(data, header_bytes, packets):
            raise Truncated("the last FLAC frame is cut") from None
        raise BadAudio(f"{name} that does not decode: {getattr(error, 'error_string', error)}") from None
    if packets:
        # Ogg may count in another rate (Opus in 48 kHz): the framing is stretched to what was decoded.
        scale = len(samples) / max(1, packets[-1].sample_end)
        packets = [Packet(p.byte_end, min(len(samples), round(p.sample_end * scale))) for p in packets]
    return Decoded(samples, rate, header_bytes, packets)


def _read(data: bytes) -> tuple[Samples, int]:
    import soundfile

    blocks = []
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        while len(block := file.read(_BLOCK_SAMPLES, dtype="int16", always_2d=True)):
            blocks.append(block)  # all at once, a header that claims hours would claim as much memory
        rate = int(file.samplerate)
    samples = np.concatenate(blocks) if blocks else np.empty((0, 1), np.int16)
    return mono(samples), rate


def _ogg_pages(data: bytes) -> _Framing:
    """RFC 3533 pages; RFC 7845: OpusHead and OpusTags come first, a page's granule counts 48 kHz samples."""
    packets: list[Packet] = []
    at, header_bytes, pre_skip, last, missing = 0, 0, 0, 0, ""
    while data[at : at + 4] == b"OggS" and len(data) >= at + 27:
        table = data[at + 27 : at + 27 + data[at + 26]]
        end = at + 27 + len(table) + sum(table)
        missing = "" if data[at + 5] & 0x04 and end <= len(data) else "the last Ogg page is missing or cut"
        if end > len(data):
            break
        body = data[at + 27 + len(table) : end]
        granule = int.from_bytes(data[at + 6 : at + 14], "little", signed=True)
        if body.startswith(b"OpusHead"):
            pre_skip = int.from_bytes(body[10:12], "little")
        if not packets and (granule <= 0 or body.startswith(b"OpusTags")):
            header_bytes = end
        elif granule > 0:
            last = max(last, granule - pre_skip)
            packets.append(Packet(end, last))
        at = end
    begun = len(data) > 5 and data[5] & 0x02  # else it is no beginning of anything
    return _Framing(header_bytes, packets, missing if begun else "")


_MP3_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_MP3_KBPS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MP3_KBPS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


def _mp3_frames(data: bytes) -> _Framing:
    """ISO 11172-3 / 13818-3 layer III frame headers; an ID3v2 tag and a Xing/Info frame are header, not audio."""
    at = 0
    if data[:3] == b"ID3" and len(data) >= 10:
        at = 10 + (data[6] << 21 | data[7] << 14 | data[8] << 7 | data[9])
    ends: list[tuple[int, int]] = []
    header_bytes, samples, begin, padding = at, 0, 0, 0
    while len(data) >= at + 4:
        version, index, rate_index = data[at + 1] >> 3 & 3, data[at + 2] >> 4, data[at + 2] >> 2 & 3
        synced = data[at] == 0xFF and data[at + 1] & 0xE6 == 0xE2  # 11 ones, layer III
        if not synced or version == 1 or index in (0, 15) or rate_index == 3:
            at = data.find(b"\xff", at + 1)  # not a frame: look for the next one
            if at < 0:
                break
            continue
        full = version == 3
        kbps = (_MP3_KBPS_1 if full else _MP3_KBPS_2)[index]
        size = (144 if full else 72) * kbps * 1000 // _MP3_RATES[version][rate_index] + (data[at + 2] >> 1 & 1)
        frame = data[at : at + size]
        at += size
        if not ends and (b"Xing" in frame[:64] or b"Info" in frame[:64]):
            header_bytes = at
            begin, padding = _mp3_gaps(frame)
            continue
        samples += 1152 if full else 576
        ends.append((at, samples))
    missing = "the last mp3 frame is cut" if ends and ends[-1][0] > len(data) else ""
    last = max(0, samples - begin - padding)
    return _Framing(
        header_bytes, [Packet(min(end, len(data)), min(last, max(0, count - begin))) for end, count in ends], missing
    )


_MP3_DECODER_DELAY = 529
_MP3_SLACK = 3 * 1152  # a decoder may leave out its delay and the last frame


def _mp3_xing(audio: bytes, frames: int) -> bytes:
    """A Xing frame that tells how many frames follow, made after the first one's header."""
    version, is_mono = audio[1] >> 3 & 3, audio[3] >> 6 == 3
    full = version == 3
    head = bytes([audio[0], audio[1] | 1, 9 << 4 | audio[2] & 0x0C, audio[3]])  # no CRC, no padding
    kbps = (_MP3_KBPS_1 if full else _MP3_KBPS_2)[9]
    size = (144 if full else 72) * kbps * 1000 // _MP3_RATES[version][audio[2] >> 2 & 3]
    side = (17 if is_mono else 32) if full else (9 if is_mono else 17)
    body = bytes(side) + b"Xing" + struct.pack(">III", 3, frames, size + len(audio))
    return (head + body).ljust(size, b"\0")


def _mp3_gaps(frame: bytes) -> tuple[int, int]:
    """Samples that a decoder leaves out at the beginning and at the end, as LAME's part of a Xing/Info frame tells."""
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    flags = frame[at + 7] if len(frame) > at + 7 else 0
    lame = at + 8 + sum(size for bit, size in ((1, 4), (2, 4), (4, 100), (8, 4)) if flags & bit)
    if len(frame) < lame + 24 or not frame[lame]:
        return 0, 0
    gaps = int.from_bytes(frame[lame + 21 : lame + 24], "big")
    return (gaps >> 12) + _MP3_DECODER_DELAY, max(0, (gaps & 0xFFF) - _MP3_DECODER_DELAY)


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    crc, top, mask = 0, 1 << bits - 1, (1 << bits) - 1
    for byte in data:
        crc ^= byte << bits - 8
        for _ in range(8):
            crc = (crc << 1 ^ polynomial if crc & top else crc << 1) & mask
    return crc


_FLAC_LENGTH = (1 << 36) - 1  # the bits of STREAMINFO's bytes 21 to 25 that tell its samples; 0: not known


def _flac_frames(data: bytes) -> _Framing:
    """RFC 9639: metadata blocks, then frames whose header ends in its CRC-8; a frame ends where the next begins."""
    at, last_block = 4, False
    while not last_block and len(data) >= at + 4:
        last_block = bool(data[at] & 0x80)
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
    header_bytes, samples = at, 0
    starts: list[tuple[int, int]] = []
    while (at := data.find(b"\xff", at)) >= 0 and len(data) >= at + 6:
        size = _flac_block_size(data, at, len(starts), samples) if data[at + 1] & 0xFE == 0xF8 else 0
        if size:
            starts.append((at, size))
            samples += size
        at += 1
    packets, samples = [], 0
    for (_, size), end in zip(starts, [*(start for start, _ in starts[1:]), len(data)], strict=False):
        samples += size
        packets.append(Packet(end, samples))
    promised = int.from_bytes(data[21:26], "big") & _FLAC_LENGTH
    missing = f"the FLAC header promises {promised} samples, {samples} came" if samples < promised else ""
    return _Framing(header_bytes, packets, missing)


def _flac_block_size(data: bytes, at: int, frames: int, samples: int) -> int:
    """Samples in the frame whose header begins at `at`, after so many frames and samples; 0 where none does."""
    code, rate_code = data[at + 2] >> 4, data[at + 2] & 15
    ones = 8 - (~data[at + 4] & 0xFF).bit_length()
    width = max(1, ones)  # a UTF-8 like coded number: as many bytes as leading ones
    number = data[at + 4] & 0x7F >> ones
    for byte in data[at + 5 : at + 4 + width]:
        number = number << 6 | byte & 0x3F
    if number != (samples if data[at + 1] & 1 else frames):
        return 0  # audio that looks like a header
    end = at + 4 + width
    size = {1: 192, 2: 576, 3: 1152, 4: 2304, 5: 4608}.get(code, 256 << (code - 8) if code >= 8 else 0)
    if code in (6, 7):
        width = code - 5
        size, end = int.from_bytes(data[end : end + width], "big") + 1, end + width
    end += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    return size if size and len(data) > end and _crc(data[at:end], 8, 0x07) == data[end] else 0


def _flac_with_length(data: bytes, samples: int) -> bytes:
    """`data` with its length told in its header, where a stream left it open: libsndfile cannot do without."""
    others = int.from_bytes(data[21:26], "big") & ~_FLAC_LENGTH
    return data[:21] + (others | samples).to_bytes(5, "big") + data[26:]


def _flac_is_cut(data: bytes, header_bytes: int, packets: list[Packet]) -> bool:
    """Whether the last frame lacks its end: a whole one, with the CRC-16 it closes with, leaves no remainder."""
    begin = packets[-2].byte_end if len(packets) > 1 else header_bytes
    return bool(packets) and _crc(data[begin:], 16, 0x8005) != 0


_FRAMINGS = {"opus": _ogg_pages, "mp3": _mp3_frames, "flac": _flac_frames}

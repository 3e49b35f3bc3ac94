"""Audio as pipecat's protobuf messages, encoded beforehand, for clients that only send them. Pure."""

CHUNK_BYTES = 640  # 20 ms of 16 kHz
_RATE, _TAIL = 16_000, b"\x20\x80\x7d\x28\x01"  # sample_rate = 16000, num_channels = 1


def audio_message(pcm: bytes) -> bytes:
    """Frame{audio: AudioRawFrame{audio, sample_rate, num_channels}} of one chunk."""
    assert len(pcm) == CHUNK_BYTES
    body = b"\x1a\x80\x05" + pcm + _TAIL
    return b"\x12" + bytes([len(body) & 127 | 128, len(body) >> 7]) + body


def cycle_of(clip: bytes, cycle_s: float) -> list[bytes]:
    """The clip (int16 samples), then silence to the end of the cycle, a message a chunk."""
    size = round(cycle_s * _RATE) * 2 // CHUNK_BYTES * CHUNK_BYTES
    padded = clip[:size].ljust(size, b"\0")
    return [audio_message(padded[at : at + CHUNK_BYTES]) for at in range(0, size, CHUNK_BYTES)]

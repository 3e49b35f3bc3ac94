"""What the C peer of full-duplex sessions says, encoded beforehand by `sphn`. Knows nothing of sockets.

Silence is a chunk of an encoder that has heard nothing else for seconds; answers are encoded after as much, and end in
silence: so they can be put between silent chunks anywhere. Sample positions are those of the signal before encoding.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import soxr

from benchmarks import voice

RATE, CHUNK = 24_000, 1_920
_SETTLED = 50  # chunks of silence before anything
_HEADER = 27

Samples = npt.NDArray[np.float32]


class Answer(NamedTuple):
    """onset: sample of the first voiced one. samples: what is encoded; they begin with a chunk."""

    onset: int
    samples: Samples


def answers(seconds: float, onsets: Sequence[int]) -> list[Answer]:
    """The made voice, beginning at each of these samples of its first chunk."""
    said = soxr.resample(voice.voiced(seconds).astype(np.float32) / 32768, voice.RATE, RATE)
    return [Answer(onset, np.concatenate([np.zeros(onset, np.float32), said])) for onset in onsets]


def write(path: Path, said: Sequence[Answer]) -> None:
    """As duplex_peer.c reads it."""
    head, tags, silence = _silent()
    out = [*map(_with_length, (head, tags, silence)), struct.pack("<I", len(said))]
    for answer in said:
        chunks = _encoded(answer.samples)
        out += [struct.pack("<II", answer.onset, len(chunks)), *map(_with_length, chunks)]
    path.write_bytes(b"".join(out))


def _with_length(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def _silent() -> tuple[bytes, bytes, bytes]:
    """OpusHead's page, OpusTags' page, a silent chunk."""
    writer, quiet = _writer(), np.zeros(CHUNK, np.float32)
    head, tags, *_ = pages(writer.append_pcm(quiet))
    for _ in range(_SETTLED):
        silence = writer.append_pcm(quiet)
    return head, tags, bytes(silence)


def _encoded(samples: Samples) -> list[bytes]:
    """A chunk more than they fill: the encoder looks ahead by 6.5 ms."""
    writer = _writer()
    for _ in range(_SETTLED):
        writer.append_pcm(np.zeros(CHUNK, np.float32))
    count = -(-len(samples) // CHUNK) + 1
    padded = np.zeros(count * CHUNK, np.float32)
    padded[: len(samples)] = samples
    return [bytes(writer.append_pcm(chunk)) for chunk in padded.reshape(count, CHUNK)]


def pages(data: bytes) -> list[bytes]:
    found, begin = [], 0
    while begin < len(data):
        body = begin + _HEADER + data[begin + _HEADER - 1]
        end = body + sum(data[begin + _HEADER : body])
        found.append(data[begin:end])
        begin = end
    return found


def _writer() -> Any:
    import sphn

    return sphn.OpusStreamWriter(RATE)

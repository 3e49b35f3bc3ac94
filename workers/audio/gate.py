"""Which of many chunks are loud, and where: one numpy pass over all that came at once. Pure."""

from collections.abc import Sequence

import numpy as np

WINDOW_S = 0.010
QUIET = (-1, -1)


def loud_windows(chunks: Sequence[bytes], rate: int, threshold: int) -> list[tuple[int, int]]:
    """For each chunk (int16 mono, `rate` Hz) its first and last 10 ms window with a sample of `threshold` or more.

    Windows are counted from the chunk's beginning, the last may be shorter; QUIET where there is none.
    """
    if len(chunks) > 1 and len({len(chunk) for chunk in chunks}) > 1:
        return [loud_windows([chunk], rate, threshold)[0] for chunk in chunks]
    window = max(1, int(rate * WINDOW_S))
    samples = np.frombuffer(b"".join(chunks) if len(chunks) > 1 else chunks[0], np.int16).reshape(len(chunks), -1)
    width = samples.shape[1]
    if not width:
        return [QUIET] * len(chunks)
    # int16's -32768 has no positive counterpart, but seen as unsigned its absolute value is right.
    size = np.abs(samples).view(np.uint16)
    if width % window == 0:
        high = np.maximum.reduce(size.reshape(len(chunks), -1, window), 2)
    else:
        high = np.maximum.reduceat(size, np.arange(0, width, window), 1)
    loud = high >= threshold
    if not np.count_nonzero(loud):
        return [QUIET] * len(chunks)
    count = loud.shape[1]
    heard = np.logical_or.reduce(loud, 1)
    first = loud.argmax(1)
    last = count - 1 - loud[:, ::-1].argmax(1)
    first[~heard] = last[~heard] = -1
    return list(zip(first.tolist(), last.tolist(), strict=True))


def first_loud_sample(chunk: bytes, threshold: int) -> int:
    """Position of the first sample of `threshold` or more; 0 where there is none."""
    samples = np.frombuffer(chunk, np.int16)
    return int(((samples >= threshold) | (samples <= -threshold)).argmax())

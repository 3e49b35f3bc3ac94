"""Which of many chunks are loud, and where: one numpy pass over all that came at once. Pure."""

import numpy as np
import numpy.typing as npt

WINDOW_S = 0.010
QUIET = (-1, -1)


def loud_windows(chunks: bytes, size: int, rate: int, threshold: int, least_rms: float = 0.0) -> list[tuple[int, int]]:
    """For each chunk its first and last 10 ms window with a sample of `threshold` or more; QUIET where there is none.

    chunks: int16 mono, `size` bytes each, one after the other. Windows are counted from a chunk's beginning, the last
    may be shorter. least_rms: what is weaker than that (root mean square of a window) is noise, whatever its peaks.
    """
    count, width = len(chunks) // size, size // 2
    window = max(1, int(rate * WINDOW_S))
    # int16's -32768 has no positive counterpart, but seen as unsigned its absolute value is right.
    level = np.abs(np.frombuffer(chunks, np.int16)).view(np.uint16)
    if width % window == 0:
        high = np.maximum.reduce(level.reshape(count, -1, window), 2)
    else:
        high = np.maximum.reduceat(level.reshape(count, width), np.arange(0, width, window), 1)
    loud = high >= threshold
    if not np.count_nonzero(loud):
        return [QUIET] * count
    if least_rms:
        loud[loud] = _rms(chunks, width, window, loud) >= least_rms
    heard = np.logical_or.reduce(loud, 1)
    first = loud.argmax(1)
    last = loud.shape[1] - 1 - loud[:, ::-1].argmax(1)
    first[~heard] = last[~heard] = -1
    return list(zip(first.tolist(), last.tolist(), strict=True))


def _rms(chunks: bytes, width: int, window: int, wanted: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Of each wanted window; wanted: (chunks, windows)."""
    samples = np.frombuffer(chunks, np.int16).reshape(-1, width)
    lengths = np.full(wanted.shape, window)
    if rest := width % window:
        lengths[:, -1] = rest
        samples = np.pad(samples, ((0, 0), (0, window - rest)))
    heard = samples.reshape(*wanted.shape, window)[wanted].astype(np.float32)
    found: npt.NDArray[np.float32] = np.sqrt(np.einsum("ij,ij->i", heard, heard) / lengths[wanted])
    return found


def first_loud_sample(chunk: bytes, threshold: int) -> int:
    """Position of the first sample of `threshold` or more; 0 where there is none."""
    samples = np.frombuffer(chunk, np.int16)
    return int(((samples >= threshold) | (samples <= -threshold)).argmax())

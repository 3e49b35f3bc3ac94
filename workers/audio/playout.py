"""What a listener would hear of chunks that arrive late. Pure; knows nothing of sockets or formats.

The player starts `prebuffer` seconds after the first chunk came and never skips: a chunk that is not there when it is
due makes it wait, and everything after is later by as much.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

STALL_MIN_S = 0.001  # shorter waits are no underrun: no device plays in smaller periods


class Stalls(NamedTuple):
    """Underruns of one playout: how many of 1 ms or more, their total and the longest, in seconds."""

    underruns: int
    total_s: float
    longest_s: float


NO_STALLS = Stalls(0, 0.0, 0.0)


def lateness(chunk_at: npt.ArrayLike, chunk_media_s: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Seconds by which each chunk came after its place in a playout that began when the first one came.

    chunk_at: n arrival instants (s), ascending; chunk_media_s: n media positions of the chunks' first samples (s).
    """
    at = np.asarray(chunk_at, dtype=np.float64)
    media = np.asarray(chunk_media_s, dtype=np.float64)
    late_s: npt.NDArray[np.float64] = (at - at[0]) - (media - media[0])
    return late_s


def minimal_prebuffer_s(late_s: npt.NDArray[np.float64]) -> float:
    """The smallest prebuffer (s) with which playout never stalls."""
    return max(0.0, float(late_s.max())) if late_s.size else 0.0


def stalls(
    late_s: npt.NDArray[np.float64], prebuffers_s: Sequence[float], shortest_s: float = STALL_MIN_S
) -> list[Stalls]:
    """Stalls for each prebuffer (s); waits shorter than `shortest_s` count as time, but as no underrun.

    The playhead's delay is the running maximum of the lateness beyond the buffer.
    """
    if not late_s.size:
        return [NO_STALLS] * len(prebuffers_s)
    worst = np.maximum.accumulate(late_s)
    # The delay grows only where the lateness reaches a new high: few chunks of many.
    highs: list[float] = [float(worst[0]), *worst[1:][worst[1:] > worst[:-1]].tolist()]
    return [_stalls(highs, prebuffer_s, shortest_s) for prebuffer_s in prebuffers_s]


def _stalls(highs: list[float], prebuffer_s: float, shortest_s: float) -> Stalls:
    if highs[-1] <= prebuffer_s:
        return NO_STALLS
    underruns, longest_s, delay_s = 0, 0.0, 0.0
    for high in highs:
        wait_s = high - prebuffer_s - delay_s
        if wait_s > 0.0:
            delay_s += wait_s
            longest_s = max(longest_s, wait_s)
            underruns += wait_s >= shortest_s
    return Stalls(underruns, delay_s, longest_s)

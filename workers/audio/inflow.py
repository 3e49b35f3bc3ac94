"""What comes of a full-duplex stream, and how far it is behind what goes out. Pure; time is passed in.

lag: seconds sent - seconds received, at each arrival of audio. A server that is driven by its input and takes longer
than a chunk for a chunk falls behind by as much, and drops nothing: the lag is its health.
"""

from array import array
from typing import NamedTuple

import numpy as np

_SERIES_EVERY_S = 1.0
_MOST_KEPT = 20_000  # arrivals: of a longer session (27 minutes) fewer and fewer are kept
_SLOPE_FROM_S = 5.0  # of a shorter stream no growth is told


class ClientPlayout:
    """The playout of the reference browser client (its audio-processor.ts), simulated.

    It starts with 80 ms in its buffer and a partial buffer (10 ms) after that. When it runs dry the partial buffer
    grows by 5 ms and it waits for 80 ms again. With more than 80 ms + partial + most (100 ms) it drops the oldest down
    to 80 ms + partial; `most` then becomes 80 ms for good, as in its source. Silence is played as anything else.
    """

    __slots__ = (
        "_at",
        "_begins_at",
        "_buffered_s",
        "_dry_at",
        "_most_s",
        "_partial_s",
        "dropped_s",
        "stalled_s",
        "stalls",
    )

    INITIAL_S = 0.080
    STALL_S = 0.001  # shorter waits are no underrun

    def __init__(self) -> None:
        self._partial_s, self._most_s = 0.010, 0.100
        self._buffered_s = 0.0
        self._at = 0.0
        self._begins_at: float | None = None  # playing from then on; None: waiting for more
        self._dry_at: float | None = None  # since then nothing plays that should
        self.stalls = 0
        self.stalled_s = self.dropped_s = 0.0

    def came(self, at: float, length_s: float) -> None:
        """`length_s` of audio came at `at`."""
        self._play(at)
        self._buffered_s += length_s
        if self._begins_at is None and self._buffered_s >= self.INITIAL_S - 1e-9:
            self._begins_at = at + self._partial_s
            if self._dry_at is not None:
                stalled_s = self._begins_at - self._dry_at
                self.stalled_s += stalled_s
                self.stalls += stalled_s >= self.STALL_S
                self._dry_at = None
        kept_s = self.INITIAL_S + self._partial_s
        if self._buffered_s >= kept_s + self._most_s:
            self.dropped_s += self._buffered_s - kept_s
            self._buffered_s = kept_s
            self._most_s = min(0.080, self._most_s + 0.005)

    def _play(self, until: float) -> None:
        begins_at = self._begins_at
        if begins_at is not None and until > begins_at:
            played_s = until - max(begins_at, self._at)
            if played_s > self._buffered_s:
                self._dry_at = until - (played_s - self._buffered_s)
                self._buffered_s, self._begins_at = 0.0, None
                self._partial_s = min(0.080, self._partial_s + 0.005)
            else:
                self._buffered_s -= played_s
        self._at = until


class Lag(NamedTuple):
    """Of one stream; seconds. None where too little came."""

    p50_s: float | None
    p99_s: float | None
    max_s: float | None
    growth_s_per_min: float | None


class Inflow:
    """One stream's arrivals."""

    __slots__ = (
        "_at",
        "_each",
        "_lag_s",
        "_left_out",
        "_received_s",
        "_waits_s",
        "first_at",
        "lag_at",
        "lag_s",
        "lag_series_s",
        "last_at",
        "playout",
    )

    def __init__(self) -> None:
        self._at, self._lag_s, self._waits_s = array("d"), array("f"), array("f")
        self._each, self._left_out = 1, 0  # of so many arrivals one is kept
        self.last_at = 0.0  # when the last audio came, 0.0 before the first
        self._received_s = 0.0
        self.first_at = 0.0
        self.lag_s = 0.0  # the latest
        self.lag_at, self.lag_series_s = array("d"), array("f")  # about one a second
        self.playout = ClientPlayout()

    @property
    def received_s(self) -> float:
        """Audio received."""
        return self._received_s

    def came(self, at: float, length_s: float, sent_s: float) -> None:
        """A message with `length_s` of audio came at `at`; `sent_s` had been sent by then."""
        if not length_s:
            return
        self.first_at = self.first_at or at
        self._received_s += length_s
        self.lag_s = lag_s = sent_s - self._received_s
        wait_s, self.last_at = at - (self.last_at or at), at
        self._left_out += 1
        if self._left_out >= self._each:
            self._left_out = 0
            self._at.append(at)
            self._lag_s.append(lag_s)
            self._waits_s.append(wait_s)
            if len(self._at) > _MOST_KEPT:
                self._thin()
        if not self.lag_at or at - self.lag_at[-1] >= _SERIES_EVERY_S:
            self.lag_at.append(at)
            self.lag_series_s.append(lag_s)
        self.playout.came(at, length_s)

    def _thin(self) -> None:
        """Sessions may last for hours: keep every other arrival, from now on as well."""
        self._at, self._lag_s, self._waits_s = self._at[::2], self._lag_s[::2], self._waits_s[::2]
        self._each *= 2

    def lag_at_instant(self, at: float) -> float | None:
        """The lag when the message that came at `at` was there; None where nothing came by then."""
        index = int(np.searchsorted(np.frombuffer(self._at), at, "right")) - 1 if self._at else -1
        return float(self._lag_s[index]) if index >= 0 else None

    def lag(self) -> Lag:
        """Quantiles over arrivals, and the slope of a straight line through them (least squares)."""
        if not self._at:
            return Lag(None, None, None, None)
        lag_s, at = np.frombuffer(self._lag_s, np.float32).astype(np.float64), np.frombuffer(self._at)
        p50_s, p99_s = np.quantile(lag_s, (0.5, 0.99)).tolist()
        growth = None
        if at[-1] - at[0] >= _SLOPE_FROM_S:
            from_mean_s = at - at.mean()
            growth = float(from_mean_s @ lag_s / (from_mean_s @ from_mean_s)) * 60
        return Lag(p50_s, p99_s, float(lag_s.max()), growth)

    def interarrival_s(self) -> tuple[float | None, float | None]:
        """Median and 99th percentile of the waits between arrivals."""
        if len(self._waits_s) < 2:
            return None, None
        p50_s, p99_s = np.quantile(np.frombuffer(self._waits_s, np.float32)[1:], (0.5, 0.99)).tolist()
        return p50_s, p99_s

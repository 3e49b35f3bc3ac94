"""How this worker itself is doing: loop lag, CPU, garbage collections, send lateness. One row a second."""

import gc
import time
from collections.abc import Callable
from statistics import median

import psutil

from workers.clients.ticker import Call, Ticker

PROBE_EVERY_S = 0.010
ROW_EVERY_S = 1.0


class Health:
    """Probes the event loop each 10 ms and hands over a second's figures, by column name, to `tell`."""

    def __init__(self, ticker: Ticker, tell: Callable[[dict[str, float]], None]) -> None:
        self._ticker, self._tell = ticker, tell
        self._process = psutil.Process()
        self.send_late_max_s = 0.0
        self._lags: list[float] = []
        self._gc_count, self._gc_s, self._gc_began = 0, 0.0, 0.0
        self._row_at, self._cpu_s = time.monotonic(), time.process_time()
        gc.callbacks.append(self._on_gc)
        self._probe_call: Call = ticker.call_at(self._row_at + PROBE_EVERY_S, self._probe)

    def _on_gc(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._gc_began = time.monotonic()
        else:
            self._gc_count += 1
            self._gc_s += time.monotonic() - self._gc_began

    def _probe(self) -> None:
        now = time.monotonic()
        due = self._probe_call.at
        self._lags.append(now - due)
        # From the due instant, so that probes do not drift; a stall costs one late probe, not a burst of them.
        missed = int((now - due) / PROBE_EVERY_S)
        self._probe_call = self._ticker.call_at(due + (missed + 1) * PROBE_EVERY_S, self._probe)
        if now - self._row_at >= ROW_EVERY_S:
            self.report()

    def report(self) -> None:
        """Close the second under way and hand over its figures."""
        now, cpu_s = time.monotonic(), time.process_time()
        interval_s = max(now - self._row_at, 1e-9)
        lags = self._lags or [0.0]
        self._tell(
            {
                "at": now,
                "interval_s": interval_s,
                "cpu_share": (cpu_s - self._cpu_s) / interval_s,
                "rss_bytes": self._process.memory_info().rss,
                "loop_lag_p50_s": median(lags),
                "loop_lag_max_s": max(lags),
                "gc_count": self._gc_count,
                "gc_s": self._gc_s,
                "send_late_max_s": self.send_late_max_s,
            }
        )
        self._row_at, self._cpu_s = now, cpu_s
        self._lags.clear()
        self._gc_count, self._gc_s, self.send_late_max_s = 0, 0.0, 0.0

    def close(self) -> None:
        self._probe_call.cancel()
        gc.callbacks.remove(self._on_gc)

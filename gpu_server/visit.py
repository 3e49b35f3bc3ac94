"""Collect what happens to one request, for its trace row. Knows nothing of how it is answered."""

import time
from dataclasses import dataclass, field

from gpu_server.dialects import Ask
from gpu_server.faults import Toll
from gpu_server.trace import Outcome, TraceRow

_LONGEST_NAME = 200  # of what clients make up


@dataclass(slots=True)
class Visit:
    """One request's facts so far. Only its own coroutine writes to it."""

    route: str
    ordinal: int
    request_id: str | None
    received_at: float
    admitted_at: float | None = None
    first_audio_at: float | None = None
    audio_s: float = 0.0
    ask: Ask | None = None
    status: int | None = None
    outcome: Outcome = "failed"  # until something better is known
    toll: Toll = field(default_factory=Toll)

    def row(self) -> TraceRow:
        return TraceRow(
            request_id=None if self.request_id is None else self.request_id[:_LONGEST_NAME],
            route=self.route,
            received_at=self.received_at,
            admitted_at=self.admitted_at,
            first_audio_at=self.first_audio_at,
            finished_at=time.monotonic(),
            queue_wait_s=_since(self.received_at, self.admitted_at),
            ttfb_s=_since(self.received_at, self.first_audio_at),
            audio_s=round(self.audio_s, 6),
            characters=None if self.ask is None else len(self.ask.speech.text),
            voice=None if self.ask is None else self.ask.speech.voice[:_LONGEST_NAME],
            format=None if self.ask is None else self.ask.format[:_LONGEST_NAME],
            outcome=self.outcome,
            status=self.status,
            fault=self.toll.names,
            fault_s=self.toll.seconds,
            marks=None if self.ask is None else ",".join(sorted(self.ask.speech.marks)) or None,
        )


def _since(start: float, end: float | None) -> float | None:
    return None if end is None else end - start

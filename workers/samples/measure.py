"""Every subtraction: a turn's instants in, its row out. The only place where figures of a turn are computed.

docs/metrics.md names the two instants of each.
"""

from dataclasses import dataclass, field

from workers.audio.playout import lateness, minimal_prebuffer_s, stalls
from workers.audio.track import Track
from workers.samples.schema import ANSWERS, PREBUFFERS_MS

Row = list[object]

FLAG_WIDTH_S = 0.001  # an arrival known no better than this is flagged
_PREBUFFERS_S = tuple(ms / 1000 for ms in PREBUFFERS_MS)
_NEVER_LATE: Row = [0.0, *[0, 0.0, 0.0] * len(PREBUFFERS_MS)]  # minimal prebuffer, then stalls at each


@dataclass(slots=True)
class Turn:
    """One turn's facts, filled in as they come. Instants: monotonic seconds, 0.0 where not reached."""

    session: str
    number: int
    protocol: str
    dialect: str
    request_id: str
    text_name: str
    text_chars: int
    voice: str
    phase: str
    intended_at: float
    level: int | None = None
    clock: str | None = None
    outcome: str = "answered"
    error_kind: str | None = None
    error: str | None = None
    status: int | None = None
    sent_at: float = 0.0
    ready_at: float = 0.0
    ended_at: float = 0.0
    connection_new: bool = False
    audio_bytes: int = 0
    wire_bytes: int = 0
    track: Track = field(default_factory=lambda: Track(1, keep=False))

    @property
    def ok(self) -> bool:
        return self.outcome in ANSWERS and self.error_kind is None

    @property
    def late_s(self) -> float:
        """How late its first byte went out."""
        return self.sent_at - self.intended_at if self.sent_at else 0.0

    def fail(self, outcome: str, kind: str, line: str) -> None:
        # What a server says may hold anything, terminal control sequences included.
        printable = "".join(letter if letter.isprintable() else " " for letter in line[:500])
        self.outcome, self.error_kind, self.error = outcome, kind, printable


def between(later: float, earlier: float) -> float | None:
    """Seconds from one instant to another; None where either was not reached."""
    return later - earlier if later and earlier else None


def ttfc_s(turn: Turn) -> float | None:
    """Time to first chunk: intended start to the first byte of audio payload."""
    return between(turn.track.first_chunk_at, turn.intended_at)


def ttfa_s(turn: Turn) -> float | None:
    """Time to first audio: intended start to the first audible sample, at playout."""
    return between(turn.track.first_audio_at, turn.intended_at)


def e2e_s(turn: Turn) -> float | None:
    """End to end: intended start to the last byte of audio payload."""
    return between(turn.track.last_chunk_at, turn.intended_at)


def rtf(turn: Turn) -> float | None:
    """Real-time factor: sending to last byte of audio, over the audio's duration."""
    spent = between(turn.track.last_chunk_at, turn.sent_at)
    return spent / turn.track.audio_s if spent is not None and turn.track.audio_s else None


def start_row(turn: Turn, run: str, worker: str, scenario: str) -> Row:
    """Row of `turn_starts`, in the schema's order."""
    return [
        run, worker, turn.session, turn.number, turn.protocol, turn.dialect, scenario, turn.request_id,
        turn.text_name, turn.text_chars, turn.voice, turn.phase, turn.level, turn.intended_at,
    ]  # fmt: skip


def turn_row(turn: Turn, run: str, worker: str, scenario: str, keep_chunks: bool) -> Row:
    """Row of `turns`, in the schema's order."""
    track = turn.track
    heard = bool(track.first_chunk_at)
    row: Row = [
        run, worker, turn.session, turn.number, turn.protocol, turn.dialect, scenario, turn.request_id,
        turn.text_name, turn.text_chars, turn.voice, turn.phase, turn.level, turn.clock,
        turn.outcome, turn.error_kind, turn.error, turn.status,
        turn.intended_at, turn.sent_at or None, turn.ready_at or None,
        track.first_chunk_at or None, track.first_audio_at or None, None, track.last_chunk_at or None,
        turn.ended_at, None, None, None,
        track.first_chunk_width_s if heard else None,
        track.first_audio_width_s if track.first_audio_at else None,
        max(track.first_chunk_width_s, track.first_audio_width_s) > FLAG_WIDTH_S,
        turn.connection_new,
        track.audio_s if heard else None, track.sample_rate or None, turn.audio_bytes, turn.wire_bytes,
        len(track.chunk_at), track.largest_gap_s if heard else None,
        ttfc_s(turn), ttfa_s(turn), e2e_s(turn), rtf(turn), None,
    ]  # fmt: skip
    if track.sample_count:
        if track.latest_s:
            late_s = lateness(track.chunk_at, track.chunk_media_s)
            row.append(minimal_prebuffer_s(late_s))
            for found in stalls(late_s, _PREBUFFERS_S):
                row += found
        else:
            row += _NEVER_LATE
        if keep_chunks:
            row += (track.chunk_at.tolist(), track.chunk_media_s.tolist())
    return row

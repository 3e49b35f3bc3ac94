"""Every subtraction of a conversation's turn: its instants in, its row out. docs/metrics.md names the two of each."""

from dataclasses import dataclass, field

from workers.audio.playout import lateness, minimal_prebuffer_s, stalls
from workers.audio.stretches import Stretch, Utterance
from workers.samples.measure import FLAG_WIDTH_S, Row, Turn, between
from workers.samples.schema import PREBUFFERS_MS, names

SHORTEST_STALL_S = (
    0.020  # S3's glitch: an underrun of 20 ms; agents that pace in real time run a millisecond late often
)
_PREBUFFERS_S = tuple(ms / 1000 for ms in PREBUFFERS_MS)
_COLUMNS = names("turns")
_STALL_COLUMNS = (
    "min_prebuffer_s",
    *(f"stall_{what}_{ms}ms" for ms in PREBUFFERS_MS for what in ("count", "s", "longest_s")),
)


@dataclass(slots=True)
class CallTurn(Turn):
    """One turn of a conversation. Instants: monotonic seconds, 0.0 where not reached."""

    stream_id: str = ""
    user_onset_at: float = 0.0
    user_offset_at: float = 0.0
    user_sent_at: float = 0.0
    send_late_s: float = 0.0
    answer: Stretch | None = None
    agent_offset_at: float = 0.0
    first_token_at: float = 0.0
    last_chunk_at: float = 0.0
    audio_s: float = 0.0
    sample_rate: int = 0
    chunks: int = 0
    largest_gap_s: float = 0.0
    utterances: list[Utterance] = field(default_factory=list)
    stale_s: float = 0.0
    barge_in: bool = False
    barge_in_after_s: float = 0.0
    silent_at: float = 0.0  # when the agent fell silent after a barge-in
    yielded: bool | None = None
    false_barge_ins: int = 0
    interruptions: int = 0
    interrupted_at: float = 0.0  # the first of them
    agent_stopped_hint_at: float = 0.0

    @property
    def late_s(self) -> float:
        return self.send_late_s


def floor_transfer_offset_s(turn: CallTurn) -> float | None:
    """Agent's onset minus the user's offset, signed: positive is a gap, negative an overlap."""
    return between(turn.answer.onset_at, turn.user_offset_at) if turn.answer else None


def ttfc_s(turn: CallTurn) -> float | None:
    """The user's offset to the first chunk of the run of audio in which the answer begins."""
    return between(turn.answer.first_chunk_at, turn.user_offset_at) if turn.answer else None


def ttfa_s(turn: CallTurn) -> float | None:
    """The user's offset to the answer's first audible sample, at playout."""
    return between(turn.answer.audible_at, turn.user_offset_at) if turn.answer else None


def time_to_silence_s(turn: CallTurn) -> float | None:
    """The user's onset to the end of the agent's audible playout, of a barge-in that made it fall silent."""
    return max(0.0, turn.silent_at - turn.user_onset_at) if turn.yielded else None


def stalled_s(turn: CallTurn) -> float:
    """Total stall at prebuffer 0."""
    return float(_stalls(turn)[2])  # type: ignore[arg-type]


def _stalls(turn: CallTurn) -> Row:
    """Minimal prebuffer, then underruns, total and longest at each prebuffer, over the answer's utterances."""
    needed_s = 0.0
    totals = [[0, 0.0, 0.0] for _ in _PREBUFFERS_S]
    for utterance in turn.utterances:
        late_s = lateness(utterance.at, utterance.media_s)
        needed_s = max(needed_s, minimal_prebuffer_s(late_s))
        for total, found in zip(totals, stalls(late_s, _PREBUFFERS_S, SHORTEST_STALL_S), strict=True):
            total[0] += found.underruns
            total[1] += found.total_s
            total[2] = max(total[2], found.longest_s)
    return [needed_s, *(figure for total in totals for figure in total)]


def call_row(turn: CallTurn, run: str, worker: str, scenario: str, keep_chunks: bool) -> Row:
    """Row of `turns`, in the schema's order."""
    return as_row(call_columns(turn, run, worker, scenario, keep_chunks))


def as_row(known: dict[str, object]) -> Row:
    """Columns by name as a row of `turns`, trailing nulls left out."""
    row = [known.get(name) for name in _COLUMNS]
    while row[-1] is None:
        row.pop()
    return row


def call_columns(turn: CallTurn, run: str, worker: str, scenario: str, keep_chunks: bool) -> dict[str, object]:
    """What is known of a turn, by column."""
    answer = turn.answer
    overlap_s = max(0.0, turn.user_offset_at - answer.onset_at) if answer else None
    known: dict[str, object] = {
        "run": run,
        "worker": worker,
        "session": turn.session,
        "turn": turn.number,
        "protocol": turn.protocol,
        "dialect": turn.dialect,
        "scenario": scenario,
        "request_id": turn.request_id,
        "text_name": turn.text_name,
        "phase": turn.phase,
        "level": turn.level,
        "clock": turn.clock,
        "outcome": turn.outcome,
        "error_kind": turn.error_kind,
        "error": turn.error,
        "intended_at": turn.intended_at,
        "sent_at": turn.sent_at or None,
        "ready_at": turn.ready_at or None,
        "first_token_at": turn.first_token_at or None,
        "last_chunk_at": turn.last_chunk_at or None,
        "ended_at": turn.ended_at,
        "user_offset_at": turn.user_offset_at or None,
        "agent_offset_at": turn.agent_offset_at or None,
        "connection_new": turn.connection_new,
        "audio_s": turn.audio_s if turn.chunks else None,
        "sample_rate": turn.sample_rate or None,
        "audio_bytes": turn.audio_bytes,
        "wire_bytes": turn.wire_bytes,
        "chunks": turn.chunks,
        "largest_gap_s": turn.largest_gap_s if turn.chunks else None,
        "flagged": False,
        "stream_id": turn.stream_id,
        "user_onset_at": turn.user_onset_at or None,
        "user_sent_at": turn.user_sent_at or None,
        "send_late_max_s": turn.send_late_s if turn.sent_at else None,
        "utterances": len(turn.utterances),
        "stale_s": turn.stale_s,
        "barge_in": turn.barge_in,
        "barge_in_after_s": turn.barge_in_after_s if turn.barge_in else None,
        "time_to_silence_s": time_to_silence_s(turn),
        "yielded": turn.yielded,
        "false_barge_ins": turn.false_barge_ins,
        "interruptions": turn.interruptions,
        "agent_stopped_hint_at": turn.agent_stopped_hint_at or None,
    }
    if answer is not None:
        known |= {
            "first_chunk_at": answer.first_chunk_at,
            "first_chunk_width_s": answer.first_chunk_width_s,
            "first_audio_at": answer.audible_at,
            "first_audio_width_s": answer.audible_width_s,
            "agent_onset_at": answer.onset_at,
            "agent_onset_width_s": answer.onset_width_s,
            "agent_onset_arrival_at": answer.onset_arrival_at,
            "onset_by": answer.by,
            "flagged": max(answer.first_chunk_width_s, answer.audible_width_s, answer.onset_width_s) > FLAG_WIDTH_S,
            "ttfc_s": ttfc_s(turn),
            "ttfa_s": ttfa_s(turn),
            "e2e_s": between(turn.last_chunk_at, turn.user_offset_at),
            "floor_transfer_offset_s": floor_transfer_offset_s(turn),
            "agent_speech_s": between(turn.agent_offset_at, answer.onset_at),
            "overlap_s": overlap_s,
        }
        known |= zip(_STALL_COLUMNS, _stalls(turn), strict=True)
        if keep_chunks:
            known["chunk_at"] = [at for part in turn.utterances for at in part.at]
            known["chunk_media_s"] = [media_s for part in turn.utterances for media_s in part.media_s.tolist()]
    return known

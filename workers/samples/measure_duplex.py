"""Every subtraction of a full-duplex turn, beside those of any conversation (measure_call.py): its instants in, its row
out. docs/metrics.md names the two instants of each.

The user's offset is the request: what S1 calls "request sent".
"""

from array import array
from dataclasses import dataclass, field

from workers.audio.opus import LOOK_AHEAD, RATE
from workers.audio.stretches import Stretch
from workers.samples.measure import Row, between
from workers.samples.measure_call import CallTurn, as_row, call_columns

TAKEOVER_S = 1.0  # Full-Duplex-Bench (arXiv 2503.04721): shorter speech does not take the floor
_LOOK_AHEAD_S = LOOK_AHEAD / RATE


@dataclass(slots=True)
class DuplexTurn(CallTurn):
    """One turn of a full-duplex session. Instants: monotonic seconds; positions: seconds of a stream."""

    host: str = ""
    mode: str | None = None
    iteration: int | None = None
    decoded: bool = True
    stream_began_at: float = 0.0  # mouth time of the first sample sent
    token_at: "array[float]" = field(default_factory=lambda: array("d"))  # text pieces since the user's offset
    lag_s: float | None = None
    stretches: list[Stretch] = field(default_factory=list)  # all of the agent's speech in this turn
    pauses: tuple[tuple[float, float], ...] = ()  # the user's: begin and end of each, monotonic

    @property
    def itl_s(self) -> float | None:
        """Mean time between the answer's text pieces; None with fewer than two."""
        count = len(self.token_at)
        return (self.token_at[-1] - self.token_at[0]) / (count - 1) if count > 1 else None


def e2e_s(turn: DuplexTurn) -> float | None:
    """The user's offset to the end of the answer's speech."""
    return between(turn.agent_offset_at, turn.user_offset_at)


def ttft_s(turn: DuplexTurn) -> float | None:
    """The user's offset to the first text piece after it; None of an answer whose text had begun before."""
    return turn.token_at[0] - turn.user_offset_at if turn.token_at and turn.outcome != "early" else None


def backchannels(turn: DuplexTurn) -> int:
    """Stretches of the agent's speech, begun while the user spoke, that took no floor."""
    return sum(
        turn.user_onset_at <= stretch.onset_at < turn.user_offset_at
        and stretch is not turn.answer
        and stretch.last_loud_at - stretch.onset_at < TAKEOVER_S
        for stretch in turn.stretches
        if stretch.by is not None
    )


def pause_takeover(turn: DuplexTurn) -> bool | None:
    """Whether the agent took the floor in a pause of the user's; None where they made none."""
    if not turn.pauses:
        return None
    return any(
        begin <= stretch.onset_at < end and stretch.last_loud_at - stretch.onset_at >= TAKEOVER_S
        for stretch in turn.stretches
        if stretch.by is not None
        for begin, end in turn.pauses
    )


def duplex_row(turn: DuplexTurn, run: str, worker: str, scenario: str, keep_chunks: bool) -> Row:
    """Row of `turns`, in the schema's order."""
    known = call_columns(turn, run, worker, scenario, keep_chunks)
    answer, spoke = turn.answer, bool(turn.user_offset_at)
    ended_s = e2e_s(turn)
    known |= {
        "voice": turn.voice,
        "host": turn.host,
        "mode": turn.mode,
        "iteration": turn.iteration,
        "decoded": turn.decoded,
        "e2e_s": ended_s,
    }
    if spoke:
        known |= {
            "tokens": len(turn.token_at),
            "first_token_at": turn.token_at[0] if turn.token_at else None,
            "last_token_at": turn.token_at[-1] if turn.token_at else None,
            "ttft_s": ttft_s(turn),
            "itl_s": turn.itl_s,
            "tokens_per_s": len(turn.token_at) / ended_s if ended_s and turn.token_at else None,
            "user_offset_position_s": turn.user_offset_at - turn.stream_began_at,
            "user_pauses": len(turn.pauses),
            "lag_s": turn.lag_s,
        }
        if keep_chunks:
            known["token_at"] = turn.token_at.tolist()
    if spoke and turn.decoded:
        known |= {"backchannels": backchannels(turn), "pause_takeover": pause_takeover(turn)}
    if answer is not None and spoke:
        position_s = answer.onset_position / turn.sample_rate - _LOOK_AHEAD_S
        spoken_until = turn.agent_offset_at or answer.last_loud_at
        known |= {
            "agent_onset_position_s": position_s,
            "stream_transfer_offset_s": position_s - (turn.user_offset_at - turn.stream_began_at),
            "takeover": spoken_until - max(answer.onset_at, turn.user_offset_at) >= TAKEOVER_S,
        }
    return as_row(known)

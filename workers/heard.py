"""A turn of a conversation as the user's own code sees it. Knows nothing of how it was heard."""

from workers.audio.containers import Samples
from workers.samples import measure_call
from workers.samples.measure_call import CallTurn


class HeardTurn:
    """One turn, as heard. Seconds; None where an instant was not reached."""

    def __init__(self, turn: CallTurn, heard: Samples, interrupted: bool) -> None:
        self._turn = turn
        self.heard = heard
        self.interrupted = interrupted  # the agent was still speaking when this turn was left for a barge-in

    @property
    def ok(self) -> bool:
        return self._turn.ok

    @property
    def outcome(self) -> str:
        """answered, early, timed_out, cut, protocol_error or disconnected."""
        return self._turn.outcome

    @property
    def error_kind(self) -> str | None:
        return self._turn.error_kind

    @property
    def error(self) -> str | None:
        return self._turn.error

    @property
    def request_id(self) -> str:
        """By which the turn's row can be found."""
        return self._turn.request_id

    @property
    def floor_transfer_offset_s(self) -> float | None:
        """The agent's onset minus the user's offset, signed: a gap is positive, an overlap negative."""
        return measure_call.floor_transfer_offset_s(self._turn)

    @property
    def ttfc_s(self) -> float | None:
        """From the user's offset to the answer's first chunk."""
        return measure_call.ttfc_s(self._turn)

    @property
    def ttfa_s(self) -> float | None:
        """From the user's offset to the answer's first audible sample, at playout."""
        return measure_call.ttfa_s(self._turn)

    @property
    def time_to_silence_s(self) -> float | None:
        """From the user's onset to the agent's silence, of a barge-in that made it fall silent."""
        return measure_call.time_to_silence_s(self._turn)

    @property
    def yielded(self) -> bool | None:
        """Whether the agent fell silent for a barge-in; None for a turn that was none."""
        return self._turn.yielded

    @property
    def sample_rate(self) -> int:
        """Hz of `heard` (int16 mono, shape (n,)); 0 where no audio came."""
        return self._turn.sample_rate

    def reject(self, reason: str) -> None:
        """Make this turn a failure of kind `rejected`: your own check of what was said. Before the next turn."""
        self._turn.fail("answered", "rejected", reason)

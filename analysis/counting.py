"""Which turns count, and as what: started, answered, failed, cut. Knows nothing of figures or of screens.

Turns begun in the measured phase count. One that we ended ourselves is censored: neither success nor failure.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from workers.samples.schema import ANSWERS, CENSORED

VOICE_AGENT, FULL_DUPLEX = "voice_agent", "personaplex"
CONVERSATIONS = (VOICE_AGENT, FULL_DUPLEX)  # the user speaks: latency counts from the end of their words


@dataclass(frozen=True, slots=True)
class Counted:
    """The measured turns of a run, or of one text of it. started = answered + failed + cut."""

    measured: pd.DataFrame
    answered: pd.DataFrame  # answered (early or not), and nothing wrong with it: the only ones whose latency is told
    failed: pd.DataFrame
    cut: pd.DataFrame

    @property
    def handled(self) -> int:
        """Turns that the server, not we, brought to an end."""
        return len(self.answered) + len(self.failed)

    @property
    def success_share(self) -> float | None:
        """Answered / (started - cut); None if no turn was handled."""
        return len(self.answered) / self.handled if self.handled else None


def count(turns: pd.DataFrame) -> Counted:
    """Sort turns (rows as in schema.TURNS) into what counts."""
    measured = turns[turns["phase"] == "measured"]
    cut = measured["outcome"] == CENSORED
    answered = measured["outcome"].isin(ANSWERS) & measured["error_kind"].isna()
    return Counted(measured, measured[answered], measured[~answered & ~cut], measured[cut])


def requests(counted: Counted) -> Counted:
    """The turns that are requests: a text sent, speech received."""
    return where(counted, lambda turns: ~turns["protocol"].isin(CONVERSATIONS))


def conversations(counted: Counted) -> Counted:
    """The turns of conversations, of whichever protocol."""
    return where(counted, lambda turns: turns["protocol"].isin(CONVERSATIONS))


def agent_calls(counted: Counted) -> Counted:
    """The turns of calls to voice agents."""
    return where(counted, lambda turns: turns["protocol"] == VOICE_AGENT)


def full_duplex(counted: Counted) -> Counted:
    """The turns of sessions with full-duplex models."""
    return where(counted, lambda turns: turns["protocol"] == FULL_DUPLEX)


def where(counted: Counted, chosen: Callable[[pd.DataFrame], pd.Series]) -> Counted:
    """The turns for which `chosen` (a flag a row) is true."""
    parts = (counted.measured, counted.answered, counted.failed, counted.cut)
    return Counted(*(part[chosen(part)] for part in parts))


def wall_s(counted: Counted) -> float | None:
    """From the first intended start to the last end of the measured turns, on one wall clock; None without both."""
    if counted.measured.empty:
        return None
    span = counted.measured["ended_wall_at"].max() - counted.measured["intended_wall_at"].min()
    return float(span) if span > 0 else None

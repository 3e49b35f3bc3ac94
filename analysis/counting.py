"""Which turns count, and as what: started, answered, failed, cut. Knows nothing of figures or of screens.

Turns begun in the measured phase count. One that we ended ourselves is censored: neither success nor failure.
"""

from dataclasses import dataclass

import pandas as pd

from workers.samples.schema import CENSORED


@dataclass(frozen=True, slots=True)
class Counted:
    """The measured turns of a run, or of one text of it. started = answered + failed + cut."""

    measured: pd.DataFrame
    answered: pd.DataFrame  # answered, and nothing wrong with the answer: the only ones whose latency is told
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
    answered = (measured["outcome"] == "answered") & measured["error_kind"].isna()
    return Counted(measured, measured[answered], measured[~answered & ~cut], measured[cut])


def wall_s(counted: Counted) -> float | None:
    """From the first intended start to the last end of the measured turns, on one wall clock; None without both."""
    if counted.measured.empty:
        return None
    span = counted.measured["ended_wall_at"].max() - counted.measured["intended_wall_at"].min()
    return float(span) if span > 0 else None

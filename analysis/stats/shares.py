"""Is a share of turns below what is allowed? Bounds that hold under clustering, planned looks, and what proof costs.

"p95 <= L" says that at most 5 % of the turns are worse than L: a test of a proportion, whatever the latencies' shape.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from analysis.stats.quantiles import SESSIONS_NEEDED, session_codes

ASSUMED_DESIGN_EFFECT = 2.0  # where fewer than SESSIONS_NEEDED sessions cannot tell how alike their turns are
FIRST_LOOK = 10  # turns: enough to prove a level that fails badly
BLOCKS_NEEDED = 10

Side = Literal["below", "above"]


def design_effect(bad: ArrayLike, sessions: ArrayLike | Sequence[str], at: ArrayLike | None = None) -> float:
    """How many times more turns are needed than if each were a coin toss of its own; 1 or more.

    `bad` (n,) says which turns violate; turns of one session resemble each other, and so do turns of one moment, where
    the instants `at` (n,) are given: they are put into blocks of neighbours, as many as there are sessions, 10 to 30.
    The larger of the two effects counts. With fewer than 20 sessions it is at least 2: assumed, not measured.
    Source: Kish 1965, "Survey Sampling", 8.2; the ratio estimator as in `quantile_interval`.
    """
    flags = np.asarray(bad, dtype=np.float64)
    codes = session_codes(sessions)
    clusters = len(np.unique(codes))
    effect = _effect(flags, codes)
    if at is not None and flags.size >= 2 * BLOCKS_NEEDED:
        order = np.argsort(np.asarray(at, dtype=np.float64), kind="stable")
        blocks = np.empty(flags.size, dtype=np.int64)
        blocks[order] = np.arange(flags.size) * min(30, max(BLOCKS_NEEDED, clusters)) // flags.size
        effect = max(effect, _effect(flags, blocks))
    return max(effect, ASSUMED_DESIGN_EFFECT) if clusters < SESSIONS_NEEDED else effect


def _effect(flags: np.ndarray, codes: np.ndarray) -> float:
    sizes = np.bincount(codes)
    sizes, met = sizes[sizes > 0], sizes > 0
    share, clusters, n = float(flags.mean()), len(sizes), flags.size
    if clusters < 2 or share in (0.0, 1.0):
        return 1.0
    residual = np.bincount(codes, weights=flags)[met] - share * sizes
    clustered = clusters / (clusters - 1) * float(residual @ residual) / n**2
    return max(1.0, clustered / (share * (1 - share) / n))


def bound(bad: float, turns: float, alpha: float, side: Side) -> float:
    """One-sided exact bound of a share, of `bad` among `turns` (which may be effective numbers, not whole).

    "below": the true share lies below it, except with probability alpha; "above": above it.
    Sources: Clopper & Pearson 1934; with effective numbers Korn & Graubard 1998, Survey Methodology 24.
    """
    if turns <= 0:
        return 1.0 if side == "below" else 0.0
    good = turns - bad
    if side == "below":
        return 1.0 if good <= 0 else float(special.betaincinv(bad + 1, good, 1 - alpha))
    return 0.0 if bad <= 0 else float(special.betaincinv(bad, good + 1, alpha))


def turns_for_proof(allowed: float, alpha: float, effect: float = 1.0) -> int:
    """Turns without one violation that prove a share below `allowed`: 122 for 5 % at alpha 0.002, times the effect."""
    return math.ceil(math.log(alpha) / math.log1p(-allowed) * effect)


@dataclass(frozen=True, slots=True)
class Looks:
    """When a level is looked at, and how much of its alpha each look may spend.

    Looks double from between 10 and 20 turns up to `most`; what a look may spend is the growth of Lan and DeMets'
    spending function of Pocock's type, alpha ln(1 + (e - 1) t), since the look before; t = turns / most. Errors of all
    looks add up to no more than alpha (a union bound: no assumption about how looks depend on each other).
    Source: Lan & DeMets 1983, Biometrika 70.
    """

    alpha: float
    most: int

    @property
    def at(self) -> tuple[int, ...]:
        """The numbers of turns after which one looks, ascending; the last is `most`."""
        count = max(0, math.floor(math.log2(max(1.0, self.most / FIRST_LOOK))))
        return tuple(math.ceil(self.most / 2**step) for step in range(count, -1, -1))

    def spend(self, look: int) -> float:
        """What the look of this number, from 0, may spend."""
        before = self._spent(self.at[look - 1]) if look else 0.0
        return self._spent(self.at[look]) - before

    def _spent(self, turns: int) -> float:
        return self.alpha * math.log1p((math.e - 1) * min(1.0, turns / self.most))


def looks_for(allowed: float, alpha: float, effect: float = ASSUMED_DESIGN_EFFECT, patience: float = 4.0) -> Looks:
    """Looks of which the middle one can prove a level without violations, and the last one a share half of `allowed`.

    patience: how many times the turns of a flawless proof one is ready to wait for.
    """
    fewest = FIRST_LOOK * math.ceil(patience)  # where nearly all may violate, a few turns would prove it
    looks = Looks(alpha, max(fewest, math.ceil(patience * turns_for_proof(allowed, alpha, effect))))
    flawless = turns_for_proof(allowed, looks.spend(len(looks.at) - 1 - round(math.log2(patience))), effect)
    return Looks(alpha, max(fewest, math.ceil(patience * flawless)))

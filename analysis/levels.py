"""What a load level proves: its turns in order, looked at as planned, against targets. Pure: tables in, decisions out.

A level passes when each target is proven to hold there, fails when one is proven not to, and is undecided when neither
could be shown with the turns there were. docs/metrics.md ("Capacity") has the method.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analysis.stats import SESSIONS_NEEDED, Looks, bound, design_effect, looks_for, turns_for_proof
from analysis.stats.shares import ASSUMED_DESIGN_EFFECT
from analysis.targets import Target, Targets
from analysis.violations import Share, apart, applicable, beyond, shares_of, values_of

Outcome = Literal["pass", "fail", "undecided"]
SCOUTED_TURNS = 30
AWAY_SHARE = 0.02  # of turns that found nobody: more, and an undecided level says so
GONE_TURNS = 20  # so many in a row, and the target is gone


@dataclass(frozen=True, slots=True)
class Tested:
    """One proportion of a target at one level: what the last look at it saw.

    outcome: undecided until a look proves one or the other. bad of n turns lay outside the limit. effect: how many
    times more turns than coin tosses it took. at_most, at_least: the bounds of that look.
    """

    target: Target
    share: Share
    outcome: Outcome
    n: int
    bad: int
    sessions: int
    effect: float
    at_most: float
    at_least: float
    over: bool  # its last planned look is behind it: more turns would decide nothing
    away: int = 0  # of the bad ones: nobody was there to answer

    def __str__(self) -> str:
        limit = self.target.show_limit(self.share.limit) if self.target.metric.column else "answered"
        seen = f"{self.bad:,} of {self.n:,} turns not {limit}"
        allowed = f"{self.share.allowed * 100:.4g} % allowed"
        match self.outcome:
            case "pass":
                return f"{self.target.name}: {seen}, so at most {self.at_most * 100:.2f} % ({allowed})"
            case "fail":
                return f"{self.target.name}: {seen}, so at least {self.at_least * 100:.2f} % ({allowed})"
            case _ if self.away > AWAY_SHARE * self.n:
                return f"{self.target.name}: the target was not there for {self.away:,} of {self.n:,} turns"
            case _:
                between = f"{self.at_least * 100:.1f} to {self.at_most * 100:.1f} %"
                return f"{self.target.name}: {seen}, so {between} ({allowed})"


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided of a level, by which tests. done: no more turns are needed, or could help."""

    outcome: Outcome
    tests: tuple[Tested, ...]
    done: bool
    gone: bool = False  # the target is not there any more

    @property
    def reason(self) -> str:
        """The test that decided, in words: the failed one, or else the one that was hardest to pass."""
        if not self.tests:
            return "too few turns have ended to look at them"
        order = {"fail": 0, "undecided": 1, "pass": 2}
        worst = min(self.tests, key=lambda test: (order[test.outcome], -(test.at_most - test.share.allowed)))
        return str(worst)


def proportions(targets: Targets) -> list[tuple[Target, Share]]:
    """The proportions that a level is tested for; means and figures of a whole run are not among them."""
    return [(target, share) for target in targets.targets for share in shares_of(target, target.limit)]


def plan(share: Share, alpha: float) -> Looks:
    """The planned looks at one proportion of one level."""
    return looks_for(share.allowed, alpha)


def decide(turns: pd.DataFrame, targets: Targets, alpha: float) -> Decision:
    """Look at a level's turns as planned, and stop at the first look that decides.

    turns: as violations.handled gives them, in the order in which they began, complete: no turn that began before one
    of them is still under way. So the same turns give the same decision, during the run and after it.
    alpha: the chance of calling a level passed that is not, and of calling one failed that is not; failing is spread
    over the proportions.
    """
    wanted = [(target, share, rows) for target, share in proportions(targets) for _, rows in apart(target, turns)]
    tests = []
    for target, share, rows in wanted:
        test = _test(target, share, applicable(target, rows), alpha, alpha / len(wanted))
        if test is not None:
            tests.append(test)
    if any(test.outcome == "fail" for test in tests):
        return Decision("fail", tuple(tests), True)
    if tests and len(tests) == len(wanted) and all(test.outcome == "pass" for test in tests):
        return Decision("pass", tuple(tests), True)
    gone = len(turns) >= GONE_TURNS and bool(turns["away"].iloc[-GONE_TURNS:].all())
    hopeless = gone or (len(tests) == len(wanted) and all(test.over or test.outcome == "pass" for test in tests))
    return Decision("undecided", tuple(tests), hopeless, gone)


def _test(target: Target, share: Share, rows: pd.DataFrame, alpha: float, fail_alpha: float) -> Tested | None:
    """The first look that decides, or the last one that was possible; None before the first."""
    looks = plan(share, alpha)
    bad = beyond(share.limit, values_of(target, rows))
    clusters, nobody, at = (
        rows["cluster"].to_numpy(),
        rows["away"].to_numpy(bool),
        rows["intended_wall_at"].to_numpy(dtype=np.float64),
    )
    found = None
    for number, n in enumerate(looks.at):
        if n > len(bad):
            break
        seen = bad[:n]
        effect = design_effect(seen, clusters[:n], at[:n])
        spend = looks.spend(number)
        effective, rate = n / effect, float(seen.mean())
        at_most = bound(rate * effective, effective, spend, "below")
        # A target that was away for a while is not failed by that, but by how it served the others.
        away = int(nobody[:n].sum())
        there, late = n - away, int((seen & ~nobody[:n]).sum())
        at_least = bound(late / effect, there / effect, spend * fail_alpha / alpha, "above")
        outcome: Outcome = "pass" if at_most < share.allowed else "fail" if at_least > share.allowed else "undecided"
        sessions, over = len(np.unique(clusters[:n])), n == looks.most
        found = Tested(target, share, outcome, n, int(seen.sum()), sessions, effect, at_most, at_least, over, away)
        if outcome != "undecided":
            break
    return found


def promising(turns: pd.DataFrame, targets: Targets) -> bool:
    """Whether a level is worth going beyond: 30 turns, and no more of them outside a limit than it allows. No proof."""
    for target, share in proportions(targets):
        for _, rows in apart(target, turns):
            bad = beyond(share.limit, values_of(target, applicable(target, rows)))
            if len(bad) < SCOUTED_TURNS or bad.mean() > share.allowed:
                return False
    return True


@dataclass(frozen=True, slots=True)
class Cost:
    """What a search costs if the answer lies near `users`: minutes of finding it, and of proving it without violations.

    flawless_min: what one level takes to be proven without violations; most_min: until it is left undecided.
    """

    users: int
    scouting_min: float
    proving_min: float
    flawless_min: float
    most_min: float


def cost(
    users: int, targets: Targets, alpha: float, *, first: int, step: float, turns_a_minute: float, warm_up_min: float
) -> Cost:
    """What the strictest of the targets costs, where a user makes so many turns a minute. See workers/search.py."""
    scouting, level = 0.0, first
    while level <= users:
        scouting += SCOUTED_TURNS / (turns_a_minute * level) + warm_up_min
        level *= 2
    effect = ASSUMED_DESIGN_EFFECT if users < SESSIONS_NEEDED else 1.0
    flawless = most = 0
    for _, share in proportions(targets):
        looks = plan(share, alpha)
        proofs = [n for k, n in enumerate(looks.at) if n >= turns_for_proof(share.allowed, looks.spend(k), effect)]
        flawless, most = max(flawless, proofs[0]), max(most, looks.most)
    levels = 1 + math.ceil(math.log2(max(1.0, min(1 / step, users / 2))))
    flawless_min = flawless / (turns_a_minute * users)
    return Cost(users, scouting, levels * (flawless_min + warm_up_min), flawless_min, most / (turns_a_minute * users))

"""Do the targets hold? A run's turns and targets in, a verdict a target out. Lays out no page.

violations.py says which turns violate what.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import duplex_rows
from analysis.counting import CONVERSATIONS, Counted, full_duplex, wall_s
from analysis.stats import bound, design_effect, turns_needed
from analysis.stats.shares import ASSUMED_DESIGN_EFFECT
from analysis.targets import Limit, Target, Targets
from analysis.violations import apart, applicable, beyond, handled, quantile_with_failures, shares_of, values_of
from workers.samples.schema import CENSORED

Status = Literal["hold", "miss", "cannot_tell"]
CONFIDENCE = 0.95
MOST_FAILED = 0.05  # of the turns: with more of them failed, a mean of the others is not judged

SEVERAL = "several_levels"  # their turns together are of no load at all

# What makes every figure of a run doubtful. (Failures do not: a target counts them.)
GENERATORS_FAULT = ("saturated_generator", "loop_lag", "late_sends", "late_microphone", "dropped_starts")
INCOMPLETE = ("unfinished_run", "unreadable_log", "lost_rows", "all_warm_up")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a target.

    value: in the unit of the rows, infinite where too many turns failed; None where it cannot be told (`why`).
    stretch: None where the target has no stretch goal. bad_share: share of turns beyond the limit, failures among them;
    bad_at_most: its upper bound, except with probability 5 %; proven: that bound lies below what the target allows.
    Those three are None where the target is no quantile and no share.
    """

    target: Target
    of: str
    status: Status
    value: float | None
    n: int
    sessions: int
    stretch: Status | None = None
    bad_share: float | None = None
    bad_at_most: float | None = None
    proven: bool | None = None
    why: str = ""


# ------------------------------------------------------------------------------------------------------ a whole run


def judge(
    targets: Targets,
    counted: Counted,
    distrust: Sequence[str] = (),
    vram_bytes: float | None = None,
    sessions: pd.DataFrame | None = None,
    *,
    asked_for: pd.DataFrame | None = None,
) -> list[Verdict]:
    """A verdict for each target; for each kind of turns apart, where a run has several that the target speaks of.

    distrust: why this run's figures cannot be believed; then nothing holds and nothing misses. vram_bytes: the peak
    that was scraped. sessions: of the measured turns with full-duplex models. asked_for: those begun in the window.
    """
    turns = handled(counted.measured)
    found = []
    for target, of, rows in _parts(targets.targets, turns):
        if target.metric.name == "vram":
            verdict = _of_run(target, vram_bytes, "no GPU metrics were scraped (--metrics URL of its exporter)")
        elif target.metric.name == "concurrent_streams":
            verdict = _streams(target, counted, targets.gpus)
        elif target.metric.name == "tps":
            verdict = _of_run(target, duplex_rows.tokens_a_second(full_duplex(counted)), "no turn was answered")
        elif target.metric.name in _OF_SESSIONS:
            verdict = _of_sessions(target, asked_for if target.metric.name == "setup" else sessions)
        else:
            verdict = _of_turns(target, of, rows)
        found.append(_doubted(verdict, distrust))
    return found


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """0: all hold; 1: one misses; 2: one cannot be told, and none misses."""
    statuses = {verdict.status for verdict in verdicts}
    return 1 if "miss" in statuses else 2 if "cannot_tell" in statuses else 0


def _parts(targets: Iterable[Target], turns: pd.DataFrame) -> Iterator[tuple[Target, str, pd.DataFrame]]:
    for target in targets:
        if target.metric.column is None:
            yield target, "turns", turns
            continue
        yield from ((target, "turns" if kind == "both" else kind, rows) for kind, rows in apart(target, turns))


def _of_run(target: Target, value: float | None, why: str) -> Verdict:
    if value is None:
        return Verdict(target, "run", "cannot_tell", None, 0, 0, _cannot(target), why=why)
    return Verdict(target, "run", _held(target.limit, value), value, 1, 1, _stretched(target, value))


_OF_SESSIONS = {"setup": "setup_s", "lag_growth": "lag_growth_s_per_min"}
_QUANTILE_OF = {"p50": 0.5, "median": 0.5, "p95": 0.95, "max": 1.0, "worst": 1.0}


def _of_sessions(target: Target, sessions: pd.DataFrame | None) -> Verdict:
    """Of full-duplex sessions. One that did not come up has the worst of set-ups; one that we cut before has none."""
    if sessions is None or sessions.empty:
        return _of_run(target, None, "no full-duplex session was measured")
    values = sessions[_OF_SESSIONS[target.metric.name]].astype(float)
    if target.metric.name == "setup":
        values = values[values.notna() | ~sessions["ended_by"].isin(duplex_rows.OURS)].fillna(np.inf)
    told, q = np.asarray(values.dropna(), dtype=np.float64), _QUANTILE_OF[target.figure]
    needed = turns_needed(q) if q < 1 else 1
    if len(told) < needed:
        return _of_run(target, None, f"n={len(told)} < {needed}: too few sessions for {target.name}")
    value = quantile_with_failures(told, q)
    held, stretched = _held(target.limit, value), _stretched(target, value)
    return Verdict(target, "full duplex", held, value, len(told), len(told), stretched)


def _of_turns(target: Target, of: str, turns: pd.DataFrame) -> Verdict:
    rows = applicable(target, turns)
    sessions = int(rows["cluster"].nunique())
    if rows.empty:
        missing = f"no measured turn has a figure for it ({len(turns):,} {of})"
        return Verdict(target, of, "cannot_tell", None, 0, 0, _cannot(target), why=missing)
    values = values_of(target, rows)
    if target.figure == "mean":
        return _mean(target, of, rows, values, sessions)
    q = target.quantile or target.limit.low or 0.0  # of success: the share that must be answered
    value = float(values.mean()) if target.quantile is None else quantile_with_failures(values, q)
    if len(values) < (needed := turns_needed(q)) and not _surely(target, values):
        why = f"n={len(values)} < {needed}: too few turns for {target.name}"
        return Verdict(target, of, "cannot_tell", None, len(values), sessions, _cannot(target), why=why)
    share, at_most, proven = _proof(target, rows, values)
    status, stretch = _held(target.limit, value), _stretched(target, value)
    untold = len(turns[turns["cut"] & ~turns.index.isin(rows.index)]) / len(turns)
    if status == "hold" and untold > min(share.allowed for share in shares_of(target, target.limit)):
        why = f"{untold:.1%} of the turns were cut, more than the target allows to violate it: they may have been slow"
        return Verdict(
            target, of, "cannot_tell", value, len(values), sessions, _cannot(target), share, at_most, why=why
        )
    return Verdict(target, of, status, value, len(values), sessions, stretch, share, at_most, proven)


def _surely(target: Target, values: NDArray[np.float64]) -> bool:
    """Few turns can still show a miss: so many of them lie outside that chance does not explain it."""
    return any(
        bound(
            float(bad.mean()) * len(values) / ASSUMED_DESIGN_EFFECT,
            len(values) / ASSUMED_DESIGN_EFFECT,
            1 - CONFIDENCE,
            "above",
        )
        > share.allowed
        for share in shares_of(target, target.limit)
        if (bad := beyond(share.limit, values)).any()
    )


def _mean(target: Target, of: str, rows: pd.DataFrame, values: NDArray[np.float64], sessions: int) -> Verdict:
    answered = values[np.isfinite(values)]
    if not len(answered):
        why = "no turn was answered"
        return Verdict(target, of, "cannot_tell", None, len(values), sessions, _cannot(target), why=why)
    failed = len(values) - len(answered)
    value = float(answered.mean())
    why = f"a mean of answers only: {failed:,} failed turns are not in it" if failed else ""
    if len(answered) < (needed := turns_needed(0.5)):
        why = f"n={len(answered)} < {needed}: too few turns for a mean"
    if failed > MOST_FAILED * len(values) or len(answered) < needed:
        return Verdict(target, of, "cannot_tell", value, len(answered), sessions, _cannot(target), why=why)
    return Verdict(
        target, of, _held(target.limit, value), value, len(answered), sessions, _stretched(target, value), why=why
    )


def _proof(
    target: Target, rows: pd.DataFrame, values: NDArray[np.float64]
) -> tuple[float | None, float | None, bool | None]:
    """Share beyond the limit, its upper bound, and whether that lies below what is allowed; of the worse end."""
    worst: tuple[float, float, bool] | None = None
    for share in shares_of(target, target.limit):
        bad = beyond(share.limit, values)
        effect = design_effect(bad, rows["cluster"].to_numpy(), rows["intended_wall_at"].to_numpy())
        n = len(bad) / effect
        at_most = bound(float(bad.mean()) * n, n, 1 - CONFIDENCE, "below")
        found = (float(bad.mean()), at_most, at_most < share.allowed)
        if worst is None or (worst[2] and not found[2]):
            worst = found
    return worst or (None, None, None)


def _streams(target: Target, counted: Counted, gpus: int) -> Verdict:
    """Streams at a time, a GPU: seconds of being answered faster than they play, over the seconds of the window.

    Few may be because few were asked for: only a run that asked for more than the target can miss it.
    """
    wall, answered = wall_s(counted), counted.answered
    if not wall or answered.empty:
        return _of_run(target, None, "no turn was answered")
    asked_s, kept_up_s = stream_seconds(counted)
    streams, asked = kept_up_s / wall / gpus, asked_s / wall / gpus
    if not target.limit.holds(streams) and not target.limit.holds(asked):
        why = f"{asked:.3g} at a time were asked for; locustfiles/shapes/capacity.py finds out how many there can be"
        return Verdict(target, "run", "cannot_tell", streams, len(answered), 0, _cannot(target), why=why)
    return _of_run(target, streams, "")


def stream_seconds(counted: Counted) -> tuple[float, float]:
    """Seconds that streams were asked for, and seconds of those that kept up.

    A call is a stream for as long as it lasts, and keeps up for the share of its turns that were answered.
    """
    spoken = counted.measured["protocol"].isin(CONVERSATIONS)
    calls = handled(counted.measured[spoken]).groupby("cluster")
    lasted_s = (calls["ended_wall_at"].max() - calls["intended_wall_at"].min()).clip(lower=0.0)
    calls_s, live_s = float(lasted_s.sum()), float((lasted_s * calls["ok"].mean()).sum())
    handled_turns = counted.measured[~spoken & (counted.measured["outcome"] != CENSORED)]
    asked_s = float((handled_turns["ended_at"] - handled_turns["intended_at"]).clip(lower=0.0).sum())
    quick = counted.answered[~counted.answered["protocol"].isin(CONVERSATIONS) & (counted.answered["rtf"] < 1)]
    kept_up_s = float((quick["ended_at"] - quick["sent_at"]).clip(lower=0.0).sum())
    return calls_s + asked_s, live_s + kept_up_s


def _doubted(verdict: Verdict, distrust: Sequence[str]) -> Verdict:
    if not distrust or verdict.status == "cannot_tell":
        return verdict
    cannot: Status | None = "cannot_tell" if verdict.stretch is not None else None
    return Verdict(
        verdict.target, verdict.of, "cannot_tell", verdict.value, verdict.n, verdict.sessions, cannot,
        verdict.bad_share, verdict.bad_at_most, verdict.proven, f"the run cannot be believed: {', '.join(distrust)}",
    )  # fmt: skip


def _held(limit: Limit, value: float) -> Status:
    return "hold" if limit.holds(value) else "miss"


def _stretched(target: Target, value: float) -> Status | None:
    return None if target.stretch is None else _held(target.stretch, value)


def _cannot(target: Target) -> Status | None:
    return None if target.stretch is None else "cannot_tell"


# ---------------------------------------------------------------------------------------------------------- goodput


@dataclass(frozen=True, slots=True)
class Goodput:
    """Share of the handled turns that lie within every limit of a turn; its bounds are one-sided at 95 % each."""

    share: float
    at_least: float
    n: int


def goodput(targets: Targets, counted: Counted) -> Goodput | None:
    """Turns answered within the limits of a turn: of each metric the one of its highest figure (p99, not p50).

    None without such targets, or without turns. Source: DistServe, OSDI 2024 (goodput: requests that meet their SLOs).
    """
    turns = handled(counted.measured)
    by_figure = sorted(targets.targets, key=lambda target: target.quantile or 0.0)
    limits = {target.metric.name: target for target in by_figure if target.metric.column is not None}.values()
    if turns.empty or not limits:
        return None
    bad = ~(turns["ok"] | turns["cut"]).to_numpy(bool)
    for target, _, rows in _parts(limits, turns):
        told = applicable(target, rows)
        if len(told):
            outside = beyond(target.limit, values_of(target, told))
            bad[turns.index.get_indexer(told.index[outside])] = True
    known = bad | ~turns["cut"].to_numpy(bool)  # a turn that we cut counts where it had waited beyond a limit
    turns, bad = turns[known], bad[known]
    if turns.empty:
        return None
    effect = design_effect(bad, turns["cluster"].to_numpy(), turns["intended_wall_at"].to_numpy())
    n = len(bad) / effect
    return Goodput(float(1 - bad.mean()), 1 - bound(float(bad.mean()) * n, n, 1 - CONFIDENCE, "below"), len(bad))


# ------------------------------------------------------------------------------------------------------- as plain data


def summarise(
    targets: Targets,
    counted: Counted,
    distrust: Sequence[str],
    vram_bytes: float | None,
    sessions: pd.DataFrame | None = None,
    *,
    asked_for: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Verdicts and goodput as plain data, as report.json has them; figures with their unit, as people read them."""
    verdicts = judge(targets, counted, distrust, vram_bytes, sessions, asked_for=asked_for)
    good = goodput(targets, counted)
    return {
        "source": targets.source,
        "verdicts": [_as_data(verdict, verdicts) for verdict in verdicts],
        "goodput": None if good is None else asdict(good),
        "exit": exit_code(verdicts),
    }


def _as_data(verdict: Verdict, all_of_them: Sequence[Verdict]) -> dict[str, Any]:
    target = verdict.target
    ends = shares_of(target, target.limit)
    return {
        "text": target.text,
        "name": target.name,
        "of": verdict.of,
        "apart": sum(other.target is target for other in all_of_them) > 1,
        "asked": target.show_limit(target.limit),
        "stretch": target.show_limit(target.stretch) if target.stretch else None,
        "status": verdict.status,
        "stretch_status": verdict.stretch,
        "measured": target.show(verdict.value),
        "value": verdict.value,
        "unit": target.metric.unit,
        "n": verdict.n,
        "sessions": verdict.sessions,
        "bad_share": verdict.bad_share,
        "bad_at_most": verdict.bad_at_most,
        "allowed": ends[0].allowed if ends else None,
        "proven": verdict.proven,
        "why": verdict.why,
    }


def doubts(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """Of a run's reasons to distrust it (severity, code), those that let no target be judged."""
    grave = (*GENERATORS_FAULT, *INCOMPLETE)
    return [code for severity, code in reasons if (severity == "invalid" and code in grave) or code == SEVERAL]

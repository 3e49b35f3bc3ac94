"""Reasons to distrust a run, as data. Knows how a run can mislead; knows nothing of how a page looks.

A check looks at one way in which the figures of a run may be wrong and gives a Reason, or None.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.counting import Counted
from analysis.runs import Run
from analysis.stats import SESSIONS_NEEDED, trend, turns_needed

Severity = Literal["invalid", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("invalid", "warning", "note")

BUSY_CPU_SHARE = 0.85
LATE_S = 0.005
SHORT_SHARE = 0.7
FEWEST_ALIKE = 5  # answers to one text in one voice from which a median is worth comparing with


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason for distrust. invalid: figures are wrong; warning: they may be; note: know it when you read them."""

    severity: Severity
    code: str
    line: str


Check = Callable[[Run, Counted], Reason | None]


def reasons(run: Run, counted: Counted) -> list[Reason]:
    """Every reason to distrust the run's figures, the gravest first."""
    found = [reason for check in CHECKS if (reason := check(run, counted))]
    return sorted(found, key=lambda reason: SEVERITIES.index(reason.severity))


# ------------------------------------------------------------------------------------------------ is it all there?


def unfinished(run: Run, counted: Counted) -> Reason | None:
    """The master never closed the run: it runs still, or it died."""
    if run.finished:
        return None
    why = run.manifest_fault or f"run.json says {run.manifest.get('state')!r}"
    unended = sum(log.started_without_end for log in run.sealed.logs.values())
    return Reason(
        "invalid",
        "unfinished_run",
        f"half-written run ({why}): the master died, or the run still goes on. Judged is what can be read: "
        f"{_n(len(run.turns), 'turn')}, {unended:,} of them without an end; rows that never left a worker are missing "
        "(`python -m workers recover SPOOL... RUN` fetches them)",
    )


def unreadable_logs(run: Run, counted: Counted) -> Reason | None:
    """Files among the logs that are no logs, or that a newer version wrote."""
    refused = run.sealed.refused
    if not refused:
        return None
    return Reason("invalid", "unreadable_log", f"{_n(len(refused), 'log')} left out: {_some(list(refused.values()))}")


def lost_rows(run: Run, counted: Counted) -> Reason | None:
    """Workers wrote more than is here, or could not write."""
    lost, written, unwritten, who = 0, 0, 0, []
    for worker, told in run.log_workers.items():
        log = run.sealed.logs.get(worker)
        here, final = log.log_bytes if log else 0, told.get("final_bytes")
        missing = max(0, final - here) if isinstance(final, int) else 0
        unrecorded = told.get("lost_rows") or 0
        lost, written, unwritten = lost + missing, written + here + missing, unwritten + unrecorded
        if missing:
            who.append(f"{worker} on {told.get('host')}, {missing:,} bytes (spool {told.get('spool')})")
        if unrecorded:
            who.append(f"{worker} on {told.get('host')} could not write {_n(unrecorded, 'row')} (disk full?)")
    if not who:
        return None
    fetch = f"; `python -m workers recover SPOOL... {run.path}` fetches what a worker's disk still has" if lost else ""
    many = lost > 0.01 * written or unwritten > 0.01 * len(run.turns)
    return Reason("invalid" if many else "warning", "lost_rows", f"rows are missing: {_some(who)}{fetch}")


def lost_workers(run: Run, counted: Counted) -> Reason | None:
    """Workers that went away before they were drained."""
    gone, fetch = [], ""
    for worker, told in run.log_workers.items():
        if not run.finished or told.get("drained"):
            continue
        log = run.sealed.logs.get(worker)
        fate = "its rows were recovered" if told.get("recovered") else "rows it had not handed over are missing"
        gone.append(
            f"{worker} on {told.get('host')} ({_n(log.started_without_end if log else 0, 'open turn')}; {fate})"
        )
        if not told.get("recovered"):
            fetch = f"; where its disk is at hand: `python -m workers recover {told.get('spool')} {run.path}`"
    if not gone:
        return None
    return Reason(
        "warning",
        "worker_lost",
        f"{len(gone)} of {_n(len(run.log_workers), 'worker')} went away before the run ended, and the load was less "
        f"than planned from then on: {_some(gone)}{fetch}",
    )


def spoilt_bytes(run: Run, counted: Counted) -> Reason | None:
    """Parts of logs that are no rows: torn ends, garbage."""
    torn = [
        f"{worker}: {log.torn_bytes:,} at the end, {log.lost_bytes:,} before it, {_n(log.spoilt_rows, 'spoilt row')}"
        for worker, log in run.sealed.logs.items()
        if log.torn_bytes or log.lost_bytes or log.spoilt_rows
    ]
    if not torn:
        return None
    return Reason("warning", "spoilt_bytes", f"bytes that could not be read in {_n(len(torn), 'log')}: {_some(torn)}")


def listener_errors(run: Run, counted: Counted) -> Reason | None:
    """Failures inside our own listeners: each may have cost a row."""
    told = run.manifest.get("listener_errors")
    errors = told if isinstance(told, int) else 0
    # The manifest adds up what drained workers said; of the others there is only the last second they told of.
    undrained = [worker for worker in run.sealed.logs if not run.log_workers.get(worker, {}).get("drained")]
    seconds = run.workers[run.workers["worker"].isin(undrained)]
    if len(seconds):
        errors += int(seconds.groupby("worker", observed=True)["listener_errors"].max().sum())
    if not errors:
        return None
    return Reason(
        "warning",
        "listener_errors",
        f"{_n(errors, 'failure')} in Cicada's own listeners: rows may be missing (see the log)",
    )


# --------------------------------------------------------------------------------------------- is there enough of it?


def nothing_measured(run: Run, counted: Counted) -> Reason | None:
    """Every turn fell into the warm-up."""
    if len(counted.measured):
        return None
    warm_up_s = (run.manifest.get("scenario") or {}).get("warm_up_s")
    return Reason(
        "invalid",
        "all_warm_up",
        f"all {_n(len(run.turns), 'turn')} began in the warm-up ({warm_up_s} s) and none is counted: run longer, or "
        "make warm_up_s shorter",
    )


def nothing_answered(run: Run, counted: Counted) -> Reason | None:
    """Turns were measured and not one succeeded."""
    if counted.measured.empty or len(counted.answered):
        return None
    kinds = counted.failed["error_kind"].value_counts()
    kinds = kinds[kinds > 0]
    leading = f"{_n(len(counted.measured), 'turn')}, all cut"
    if len(kinds):
        example = counted.failed.loc[counted.failed["error_kind"] == kinds.index[0], "error"].dropna()
        leading = f"{kinds.iloc[0]:,} of {_n(len(counted.measured), 'turn')} ended as {kinds.index[0]}"
        leading += f', e.g. "{example.iloc[0]}"' if len(example) else ""
    return Reason("invalid", "nothing_answered", f"no measured turn succeeded, so there is no latency: {leading}")


def too_few(run: Run, counted: Counted) -> Reason | None:
    """Too few sessions or turns for an interval, or for a p95."""
    if counted.answered.empty:
        return None
    sessions, turns = int(counted.answered["cluster"].nunique()), len(counted.answered)
    wants = []
    if sessions < SESSIONS_NEEDED:
        wants.append(f"{_n(sessions, 'session')} (an interval needs {SESSIONS_NEEDED}: more users)")
    if turns < turns_needed(0.95):
        wants.append(f"{_n(turns, 'success', 'successes')} (a p95 needs {turns_needed(0.95)}: run longer)")
    if not wants:
        return None
    return Reason("warning", "too_few", "too little to go by: " + " and ".join(wants))


def cut_turns(run: Run, counted: Counted) -> Reason | None:
    """Turns we ended: the slow ones are more often among them."""
    if counted.cut.empty:
        return None
    share = len(counted.cut) / len(counted.measured)
    return Reason(
        "warning" if share > 0.05 else "note",
        "cut_turns",
        f"{_n(len(counted.cut), 'turn')} ({_share(share)}) cut before the answer was over; they count neither as "
        "success nor as failure, and slow turns are cut more often than quick ones",
    )


# ------------------------------------------------------------------------------------------ was the generator at ease?


def saturated(run: Run, counted: Counted) -> Reason | None:
    """A worker that used up its core measures itself."""
    seconds = _measured_seconds(run, counted)
    if seconds.empty:
        return None
    busy = seconds.groupby("worker", observed=True)["cpu_share"].agg(
        share=lambda cpu: float((cpu > BUSY_CPU_SHARE).mean()), worst="max"
    )
    busy = busy[busy["share"] > 0].sort_values("share", ascending=False)
    if busy.empty:
        return None
    shown = [
        f"{worker} in {row['share']:.0%} of its seconds, at worst {row['worst']:.0%}" for worker, row in busy.iterrows()
    ]
    return Reason(
        "invalid" if busy["share"].iloc[0] > 0.10 else "warning",
        "saturated_generator",
        f"{_n(len(busy), 'worker')} used more than {BUSY_CPU_SHARE:.0%} of a core ({_some(shown)}): latency may be the "
        "generator's own; start more workers (--processes)",
    )


def lagging(run: Run, counted: Counted) -> Reason | None:
    """An event loop that wakes late sends late and reads late."""
    seconds = _measured_seconds(run, counted)
    if seconds.empty or counted.answered.empty:
        return None
    ttfc_s = float(counted.answered["ttfc_s"].median())
    usual_s = float(seconds["loop_lag_p50_s"].median())
    worst_s = float(seconds["loop_lag_max_s"].quantile(0.95))
    if usual_s > max(0.001, 0.05 * ttfc_s):
        severity: Severity = "invalid"
    elif worst_s > max(LATE_S, 0.10 * ttfc_s):
        severity = "warning"
    else:
        return None
    return Reason(
        severity,
        "loop_lag",
        f"the generator's event loop woke {_ms(usual_s)} late as a rule and {_ms(worst_s)} late in its worst seconds, "
        f"beside a median TTFC of {_ms(ttfc_s)}: fewer users a worker, or a calmer machine",
    )


def late_sends(run: Run, counted: Counted) -> Reason | None:
    """Turns sent late by the generator: its lateness is inside every latency from the intended start."""
    measured = counted.measured[counted.measured["sent_at"].notna()]
    if measured.empty:
        return None
    # Opening a connection is the target's time and the network's, not the generator's.
    opened_at = measured["ready_at"].where(measured["connection_new"])
    late_s = measured["sent_at"] - measured["intended_at"].where(opened_at.isna(), opened_at).astype(float)
    p99_s = float(late_s.quantile(0.99))
    if p99_s <= LATE_S:
        return None
    ttfc_s = float(counted.answered["ttfc_s"].median()) if len(counted.answered) else np.nan
    return Reason(
        "invalid" if p99_s > 0.2 * ttfc_s else "warning",
        "late_sends",
        f"one turn in a hundred left {_ms(p99_s)} or more after it could have (median {_ms(float(late_s.median()))}): "
        "that much of its latency is the generator's",
    )


def slow_connections(run: Run, counted: Counted) -> Reason | None:
    """Turns that waited for a connection: real, but not the synthesis."""
    opened = counted.measured[counted.measured["connection_new"] & counted.measured["ready_at"].notna()]
    if opened.empty:
        return None
    waited_s = (opened["ready_at"] - opened["intended_at"]).astype(float)
    p95_s = float(waited_s.quantile(0.95))
    if p95_s <= LATE_S:
        return None
    return Reason(
        "note",
        "connecting",
        f"{_n(len(opened), 'turn')} ({_share(len(opened) / len(counted.measured))}) opened a connection, which took "
        f"{_ms(float(waited_s.median()))} (p50) to {_ms(p95_s)} (p95): it is inside their latency",
    )


def flagged_arrivals(run: Run, counted: Counted) -> Reason | None:
    """Arrivals known only to within an interval wider than a millisecond."""
    if counted.answered.empty:
        return None
    share = float(counted.answered["flagged"].mean())
    if share <= 0.01:
        return None
    return Reason(
        "warning",
        "flagged_arrivals",
        f"{_share(share)} of the answers have a first chunk or first audio known no better than to a millisecond: the "
        "worker read its sockets too late (more workers)",
    )


def user_clock(run: Run, counted: Counted) -> Reason | None:
    """Arrivals stamped by this process: late by however long it took to wake."""
    if counted.answered.empty:
        return None
    share = float((counted.answered["clock"] == "user").mean())
    if not share:
        return None
    return Reason(
        "warning",
        "user_clock",
        f"{_share(share)} of the answers were stamped by the worker, not by the kernel: latency includes the worker's "
        "own delay in reading",
    )


def dropped_starts(run: Run, counted: Counted) -> Reason | None:
    """Open-loop starts that nobody was free to take: the load was less than asked for, just when it was slow."""
    seconds = _measured_seconds(run, counted)
    dropped = int(seconds["dropped_starts"].sum())
    if not dropped:
        return None
    share = dropped / (dropped + len(counted.measured))
    return Reason(
        "invalid" if share > 0.05 else "warning",
        "dropped_starts",
        f"{_n(dropped, 'start')} of the schedule ({_share(share)}) found no free user and never happened: the load was "
        "less than asked for, just when the target was slow; more --users",
    )


# ------------------------------------------------------------------------------------------------ what did we measure?


def moving(run: Run, counted: Counted) -> Reason | None:
    """Latency that still moved: neither its quantiles nor their intervals mean much."""
    answered = counted.answered[counted.answered["ttfc_s"].notna()]
    if answered.empty:
        return None
    # Relative to the text's own median: which text came when is chance.
    usual_s = answered.groupby("text_name", observed=True)["ttfc_s"].transform("median")
    found = trend(answered["intended_wall_at"].to_numpy(), (answered["ttfc_s"] / usual_s).to_numpy())
    if found is None or found.p > 0.001 or abs(found.rho) < 0.1:
        return None
    moved_s = abs(found.ratio - 1) * float(answered["ttfc_s"].median())
    if abs(found.ratio - 1) < 0.10 or moved_s < 0.002:
        return None
    way = "rose" if found.ratio > 1 else "fell"
    advice = "the target does not keep up" if found.ratio > 1 else "the warm-up was too short"
    return Reason(
        "warning",
        "trend",
        f"TTFC {way} during the run: the last third's median is {found.ratio:.2f} times the first third's (rank "
        f"correlation with time {found.rho:+.2f}); {advice}, or the load still changed",
    )


def failures(run: Run, counted: Counted) -> Reason | None:
    """Many failures: the latency told is that of the survivors."""
    if counted.answered.empty:
        return None
    share = len(counted.failed) / counted.handled
    if share <= 0.01:
        return None
    return Reason(
        "invalid" if share > 0.20 else "warning",
        "failures",
        f"{_n(len(counted.failed), 'turn')} ({_share(share)}) failed: the latencies are those of the survivors",
    )


def refusals(run: Run, counted: Counted) -> Reason | None:
    """Turns that the target turned away."""
    refused = counted.failed[counted.failed["outcome"] == "refused"]
    if refused.empty:
        return None
    kinds = refused["error_kind"].value_counts()
    shown = ", ".join(f"{kind} {n:,}" for kind, n in kinds[kinds > 0].head(3).items())
    return Reason(
        "warning",
        "refused",
        f"the target refused {_n(len(refused), 'turn')} ({shown}): it was offered too much, or was not there",
    )


def short_answers(run: Run, counted: Counted) -> Reason | None:
    """Answers much shorter than others to the same text in the same voice: cut off without an error."""
    answered = counted.answered[counted.answered["audio_s"].notna()]
    if answered.empty:
        return None
    lengths = answered.groupby("text_name", observed=True)["text_chars"].transform("nunique")
    same = answered[lengths == 1]  # one name, one text: not so where texts are generated
    alike = same.groupby(["text_name", "voice"], observed=True, dropna=False)["audio_s"]
    median_s, n = alike.transform("median"), alike.transform("size")
    short = same[(n >= FEWEST_ALIKE) & (same["audio_s"] < SHORT_SHARE * median_s)]
    if short.empty:
        return None
    return Reason(
        "warning",
        "short_answers",
        f"{_n(len(short), 'answer')} shorter than {SHORT_SHARE:g} of the median for the same text and voice, counted "
        f"as successes: probably cut off ({_some([str(name) for name in short['request_id']])})",
    )


def repeated_rows(run: Run, counted: Counted) -> Reason | None:
    """Rows that were in a log twice."""
    twice = sum(log.duplicates for log in run.sealed.logs.values())
    if not twice:
        return None
    return Reason("note", "repeated_rows", f"{_n(twice, 'row')} came twice and counted once")


CHECKS: tuple[Check, ...] = (
    unfinished,
    nothing_measured,
    nothing_answered,
    unreadable_logs,
    lost_rows,
    lost_workers,
    saturated,
    lagging,
    late_sends,
    dropped_starts,
    failures,
    refusals,
    short_answers,
    too_few,
    moving,
    flagged_arrivals,
    user_clock,
    cut_turns,
    spoilt_bytes,
    listener_errors,
    slow_connections,
    repeated_rows,
)


def _measured_seconds(run: Run, counted: Counted) -> pd.DataFrame:
    """Health rows whose second overlaps the measured window."""
    if counted.measured.empty:
        return run.workers.iloc[:0]
    begins, ends = counted.measured["intended_wall_at"].min(), counted.measured["ended_wall_at"].max()
    began_at = run.workers["wall_at"] - run.workers["interval_s"]
    overlapping: pd.DataFrame = run.workers[(run.workers["wall_at"] > begins) & ~(began_at > ends)]
    return overlapping


def _n(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _share(share: float) -> str:
    return f"{share * 100:.1f} %"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.1f} ms"


def _some(items: list[Any], most: int = 3) -> str:
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most:,} more"

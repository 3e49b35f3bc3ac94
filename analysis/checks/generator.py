"""Was the generator at ease? A worker that is late, or used up, measures itself."""

import numpy as np
import pandas as pd

from analysis.checks.reason import Reason, Severity, ms, n_of, share_of, some
from analysis.counting import Counted, agent_calls, conversations, full_duplex, requests
from analysis.runs import Run

BUSY_CPU_SHARE = 0.85
LATE_S = 0.005
VERY_LATE_S = 0.020  # as long as a chunk of speech


def saturated(run: Run, counted: Counted) -> Reason | None:
    """A worker that used up its core measures itself. Without an answer there is nothing that it could have spoilt."""
    seconds = measured_seconds(run, counted)
    if seconds.empty or counted.answered.empty:
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
        f"{n_of(len(busy), 'worker')} used more than {BUSY_CPU_SHARE:.0%} of a core ({some(shown)}): latency may be "
        "the generator's own; start more workers (--processes)",
    )


def lagging(run: Run, counted: Counted) -> Reason | None:
    """An event loop that wakes late sends late and reads late."""
    seconds = measured_seconds(run, counted)
    if seconds.empty or counted.answered.empty:
        return None
    ttfc_s = _usual_ttfc_s(counted)
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
        f"the generator's event loop woke {ms(usual_s)} late as a rule and {ms(worst_s)} late in its worst seconds, "
        f"beside a median TTFC of {ms(ttfc_s)}: fewer users a worker, or a calmer machine",
    )


def _usual_ttfc_s(counted: Counted) -> float:
    """What the generator's lateness is held against: the quickest of the medians of each kind of turns."""
    kinds = (requests(counted), agent_calls(counted), full_duplex(counted))
    medians = (kind.answered["ttfc_s"].abs().median() for kind in kinds)
    return min((float(median) for median in medians if not np.isnan(median)), default=np.nan)


def late_sends(run: Run, counted: Counted) -> Reason | None:
    """Turns sent late by the generator: its lateness is inside every latency from the intended start."""
    asked = requests(counted)
    measured = asked.measured[asked.measured["sent_at"].notna()]
    if measured.empty:
        return None
    # Opening a connection is the target's time and the network's, not the generator's.
    opened_at = measured["ready_at"].where(measured["connection_new"])
    late_s = measured["sent_at"] - measured["intended_at"].where(opened_at.isna(), opened_at).astype(float)
    p99_s = float(late_s.quantile(0.99))
    if p99_s <= LATE_S:
        return None
    ttfc_s = float(asked.answered["ttfc_s"].median()) if len(asked.answered) else np.nan
    return Reason(
        "invalid" if p99_s > 0.2 * ttfc_s else "warning",
        "late_sends",
        f"one turn in a hundred left {ms(p99_s)} or more after it could have (median {ms(float(late_s.median()))}): "
        "that much of its latency is the generator's",
    )


def late_microphone(run: Run, counted: Counted) -> Reason | None:
    """Chunks of speech that left later than they were spoken: the server heard the user late.

    A worker's figure is the mean of its seconds' p99, weighted by the chunks each second sent.
    """
    seconds = measured_seconds(run, counted)
    seconds = seconds[seconds["send_late_p99_s"].notna() & (seconds["sends"] > 0)]
    if seconds.empty:
        return None
    weighted = (seconds["send_late_p99_s"] * seconds["sends"]).groupby(seconds["worker"], observed=True).sum()
    p99_s = weighted / seconds.groupby("worker", observed=True)["sends"].sum()
    late = p99_s[p99_s > LATE_S].sort_values(ascending=False)
    if late.empty:
        return None
    worst_s = float(late.iloc[0])
    shown = some([f"{worker} {ms(float(value))}" for worker, value in late.items()])
    return Reason(
        "invalid" if worst_s > VERY_LATE_S else "warning",
        "late_microphone",
        f"{n_of(len(late), 'worker')} sent one chunk of speech in a hundred over {ms(LATE_S)} late (p99: {shown}): "
        "agents heard their users late, and latency holds it; fewer sessions a worker",
    )


def lost_ears(run: Run, counted: Counted) -> Reason | None:
    """Answers whose onset was found by level alone, because the hearing subprocess was lost."""
    heard = conversations(counted).answered
    if heard.empty or "onset_by" not in heard:
        return None
    share = float((heard["onset_by"] == "gate").mean())
    if not share:
        return None
    return Reason(
        "warning",
        "onset_by_gate",
        f"{share_of(share)} of the answers have an onset found by level alone (the hearing subprocess was lost): noise "
        "passes for speech there, and onsets are less exact",
    )


def dead_ears(run: Run, counted: Counted) -> Reason | None:
    """Turns that ended because our own hearing process died: no fault of the server's."""
    deaf = counted.cut[counted.cut["error_kind"] == "ear_lost"]
    if deaf.empty:
        return None
    died = int(run.workers.groupby("worker", observed=True)["ears_lost"].max().fillna(0).sum())
    where = some(sorted(str(worker) for worker in deaf["worker"].unique()))
    return Reason(
        "warning",
        "ear_lost",
        f"{n_of(len(deaf), 'turn')} cut because a hearing process of our own died ({where}"
        + (f"; {n_of(died, 'time')} in all" if died else "")
        + "): not the server's fault, and neither success nor failure; is the machine out of memory?",
    )


def slow_connections(run: Run, counted: Counted) -> Reason | None:
    """Turns that waited for a connection: real, but not the synthesis."""
    asked = requests(counted).measured  # a conversation's latency begins long after its connection
    opened = asked[asked["connection_new"] & asked["ready_at"].notna()]
    if opened.empty:
        return None
    waited_s = (opened["ready_at"] - opened["intended_at"]).astype(float)
    p95_s = float(waited_s.quantile(0.95))
    if p95_s <= LATE_S:
        return None
    return Reason(
        "note",
        "connecting",
        f"{n_of(len(opened), 'turn')} ({share_of(len(opened) / len(asked))}) opened a connection, which "
        f"took {ms(float(waited_s.median()))} (p50) to {ms(p95_s)} (p95): it is inside their latency",
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
        f"{share_of(share)} of the answers have a first chunk or first audio known no better than to a millisecond: "
        "the worker read its sockets too late (more workers)",
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
        f"{share_of(share)} of the answers were stamped by the worker, not by the kernel: latency includes the "
        "worker's own delay in reading",
    )


def dropped_starts(run: Run, counted: Counted) -> Reason | None:
    """Open-loop starts that nobody was free to take: the load was less than asked for, just when it was slow."""
    seconds = measured_seconds(run, counted)
    dropped = int(seconds["dropped_starts"].sum())
    if not dropped:
        return None
    share = dropped / (dropped + len(counted.measured))
    return Reason(
        "invalid" if share > 0.05 else "warning",
        "dropped_starts",
        f"{n_of(dropped, 'start')} of the schedule ({share_of(share)}) found no free user and never happened: the load "
        "was less than asked for, just when the target was slow; more --users",
    )


def measured_seconds(run: Run, counted: Counted) -> pd.DataFrame:
    """Health rows whose second overlaps the measured window."""
    if counted.measured.empty:
        return run.workers.iloc[:0]
    begins, ends = counted.measured["intended_wall_at"].min(), counted.measured["ended_wall_at"].max()
    began_at = run.workers["wall_at"] - run.workers["interval_s"]
    overlapping: pd.DataFrame = run.workers[(run.workers["wall_at"] > begins) & ~(began_at > ends)]
    return overlapping

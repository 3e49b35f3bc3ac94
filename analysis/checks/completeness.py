"""Is it all there? Runs nobody closed, rows and workers that were lost, bytes that are no rows."""

from analysis.checks.reason import Reason, n_of, some
from analysis.counting import Counted
from analysis.runs import Run


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
        f"{n_of(len(run.turns), 'turn')}, {unended:,} of them without an end; rows that never left a worker are "
        "missing (`python -m workers recover SPOOL... RUN` fetches them)",
    )


def unreadable_logs(run: Run, counted: Counted) -> Reason | None:
    """Files among the logs that are no logs, or that a newer version wrote."""
    refused = run.sealed.refused
    if not refused:
        return None
    return Reason("invalid", "unreadable_log", f"{n_of(len(refused), 'log')} left out: {some(list(refused.values()))}")


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
            who.append(f"{worker} on {told.get('host')} could not write {n_of(unrecorded, 'row')} (disk full?)")
    if not who:
        return None
    fetch = f"; `python -m workers recover SPOOL... {run.path}` fetches what a worker's disk still has" if lost else ""
    many = lost > 0.01 * written or unwritten > 0.01 * len(run.turns)
    return Reason("invalid" if many else "warning", "lost_rows", f"rows are missing: {some(who)}{fetch}")


def lost_workers(run: Run, counted: Counted) -> Reason | None:
    """Workers that went away before they were drained."""
    gone, fetch = [], ""
    for worker, told in run.log_workers.items():
        if not run.finished or told.get("drained"):
            continue
        log = run.sealed.logs.get(worker)
        fate = "its rows were recovered" if told.get("recovered") else "rows it had not handed over are missing"
        gone.append(
            f"{worker} on {told.get('host')} ({n_of(log.started_without_end if log else 0, 'open turn')}; {fate})"
        )
        if not told.get("recovered"):
            fetch = f"; where its disk is at hand: `python -m workers recover {told.get('spool')} {run.path}`"
    if not gone:
        return None
    return Reason(
        "warning",
        "worker_lost",
        f"{len(gone)} of {n_of(len(run.log_workers), 'worker')} went away before the run ended, and the load was less "
        f"than planned from then on: {some(gone)}{fetch}",
    )


def spoilt_bytes(run: Run, counted: Counted) -> Reason | None:
    """Parts of logs that are no rows: torn ends, garbage."""
    torn = [
        f"{worker}: {log.torn_bytes:,} at the end, {log.lost_bytes:,} before it, {n_of(log.spoilt_rows, 'spoilt row')}"
        for worker, log in run.sealed.logs.items()
        if log.torn_bytes or log.lost_bytes or log.spoilt_rows
    ]
    if not torn:
        return None
    return Reason("warning", "spoilt_bytes", f"bytes that could not be read in {n_of(len(torn), 'log')}: {some(torn)}")


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
        f"{n_of(errors, 'failure')} in Cicada's own listeners: rows may be missing (see the log)",
    )


def repeated_rows(run: Run, counted: Counted) -> Reason | None:
    """Rows that were in a log twice."""
    twice = sum(log.duplicates for log in run.sealed.logs.values())
    if not twice:
        return None
    return Reason("note", "repeated_rows", f"{n_of(twice, 'row')} came twice and counted once")

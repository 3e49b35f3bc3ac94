"""Does the microphone keep time? Ten minutes of calls: each chunk's arrival at the peer against an absolute clock."""

from pathlib import Path

import numpy as np

from benchmarks import calls
from benchmarks.peers.starting import agent_peer
from benchmarks.results import Outcome, Target

COUNT, EDGE_S, MOST_MS = 20, 10.0, 1.0


def run(quick: bool, folder: Path) -> Outcome:
    seconds = 60.0 if quick else 600.0
    outcome = Outcome({"calls": COUNT, "seconds": seconds})
    with (
        agent_peer(folder, "--receipts-calls", str(COUNT)) as peer,
        calls.our_calls(calls.our_load(peer, COUNT, folder / "client"), 1.0) as live,
    ):
        live.window(seconds)
        peer.figures()
        notes = np.fromfile(peer.receipts, np.int64).reshape(-1, 3)
    drifts_ms, slopes_ppm, chunks, missing = [], [], 0, 0
    for number in np.unique(notes[:, 0]):
        _, media_ns, heard_ns = notes[notes[:, 0] == number].T
        late_ms = (heard_ns - media_ns) / 1e6
        since_s = (heard_ns - heard_ns[0]) / 1e9
        if since_s[-1] < seconds - EDGE_S:
            missing += 1  # a call that was made anew: its drift is over less
            continue
        # At its best in the first seconds and in the last: what a single late chunk shows is no drift.
        drifts_ms.append(late_ms[since_s >= since_s[-1] - EDGE_S].min() - late_ms[since_s <= EDGE_S].min())
        slopes_ppm.append(np.polyfit(since_s, late_ms, 1)[0] * 1e3)
        chunks += len(late_ms)
    worst_ms = float(np.abs(drifts_ms).max()) if drifts_ms else None
    outcome.figures = {
        "calls": len(drifts_ms),
        "calls_left_out": missing,
        "chunks": chunks,
        "drift_ms": {"worst": worst_ms, "mean": float(np.mean(drifts_ms)) if drifts_ms else None},
        "slope_ppm_worst": float(np.abs(slopes_ppm).max()) if slopes_ppm else None,
    }
    outcome.targets = [
        Target(f"drift over {seconds:g} s, worst call", worst_ms, MOST_MS, "ms"),
        Target("calls looked at", len(drifts_ms), COUNT, "", at_least=True),
    ]
    return outcome

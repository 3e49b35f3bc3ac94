"""Is the floor transfer offset right? Against a peer that stamps the last word it heard and the first it said.

The voices at both ends are made, with their first and last samples known; the worker holds as many calls as make about
75 % of its core, and every turn of every call has its truth.
"""

from pathlib import Path
from typing import Any

from benchmarks import call_truth, calls
from benchmarks.peers.starting import AgentPeer, agent_peer
from benchmarks.results import Outcome, Target
from benchmarks.sessions import between

CPU_SHARE, OFF_SHARE = 0.75, 0.06
FIRST_GUESSES, MOST_CALLS = (200, 800), 1400
MEDIAN_MS, P99_MS, BIAS_MS = 1.0, 3.0, 0.5


def run(quick: bool, folder: Path) -> Outcome:
    seconds = 8.0 if quick else 30.0
    outcome = Outcome({"window_s": seconds, "cpu_share_wanted": CPU_SHARE})
    known: list[tuple[float, int]] = []
    guesses = (50,) if quick else FIRST_GUESSES
    for count in guesses:
        found = _measure(count, folder / f"guess-{count}", 5.0)
        known.append((found["cpu_share"], count))
    outcome.figures["few_calls"] = found = _measure(20, folder / "few", seconds)
    for attempt in (1, 2, 3):
        count = round(min(between(sorted(known), CPU_SHARE) or MOST_CALLS, MOST_CALLS)) if not quick else 100
        found = _measure(count, folder / f"loaded-{attempt}", seconds)
        known.append((found["cpu_share"], count))
        if quick or abs(found["cpu_share"] - CPU_SHARE) < OFF_SHARE:
            break
    outcome.figures["loaded"] = found
    error = found["transfer_error_ms"]
    at = f"floor transfer offset at {found['cpu_share']:.0%} CPU"
    outcome.targets = [
        Target(f"{at}: error, median", error.get("median"), MEDIAN_MS, "ms"),
        Target(f"{at}: error, p99", error.get("p99"), P99_MS, "ms"),
        Target(f"{at}: |mean error|", abs(error["mean"]) if "mean" in error else None, BIAS_MS, "ms"),
        Target("failed turns", found["failed_turns"], 0, ""),
        Target("turns without a truth", found["unmatched_turns"], 0, ""),
    ]
    if not quick:
        outcome.targets.append(
            Target("CPU share of the worker at that", found["cpu_share"], 0.69, "core", at_least=True)
        )
    outcome.notes += [
        "truth: (instant before the write of the chunk with the agent's first voiced sample + its position there) - "
        "(kernel's receive stamp of the chunk with the user's last voiced sample - what follows it there).",
        "Both ends' clock is this host's CLOCK_MONOTONIC. The write's time and our send's lateness are in the error.",
    ]
    return outcome


def _measure(count: int, folder: Path, seconds: float) -> dict[str, Any]:
    with agent_peer(folder) as peer:
        found, rows, trace = _rows(peer, count, folder / "client", seconds)
        met = call_truth.joined(rows, trace)
    median_ms, share = met["error_s"].abs().median() * 1e3, found["cpu_share"]
    print(f"  {count} calls: {share:.0%} of a core, error median {median_ms:.2f} ms", flush=True)
    failed = rows["error_kind"].notna()
    return {
        **{key: found[key] for key in ("calls", "cpu_share", "waited_for_core_share", "sent_late_ms", "peer")},
        **call_truth.summary(met),
        "failed_turns": int(failed.sum()),
        "unmatched_turns": int((~failed).sum()) - len(met),
    }


def _rows(peer: AgentPeer, count: int, folder: Path, seconds: float) -> tuple[dict[str, Any], Any, Path]:
    with calls.our_calls(calls.our_load(peer, count, folder)) as live:
        window, theirs = calls.watched(live, peer, seconds)
        live.window(4.0)  # answers under way end, so that the peer has written them down
        peer.figures()
    turns = window.of(live.rows(), "user_offset_at")
    turns = turns[turns["outcome"] != "cut"]
    found = calls.Held(window, theirs, calls.our_lateness(live, window), None).figures(count)
    return found, turns, peer.trace

"""How many full-duplex sessions does a worker's core hold, Opus decoded and heard of all of them, or of a share?

The shipped locustfile against a peer in C (peers/duplex_peer.c), all sessions up and a turn behind them. The hearing
subprocess is put on the other core, with the peer: its CPU is stated beside the worker's.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from benchmarks import duplex_truth, voice
from benchmarks.calls import our_lateness
from benchmarks.load import LiveLoad, Load, Window, running
from benchmarks.peers.starting import DUPLEX_ANSWER_S, DuplexPeer, duplex_peer
from benchmarks.processes import ROOT, SERVER_CORE, ProcessFailed
from benchmarks.results import Outcome, Target

TALKING = ROOT / "locustfiles" / "talk_personaplex.py"
CHUNKS_A_SECOND, QUERY_S, TURN_S = 12.5, 1.6, 7.0
LATE_P99_MS, CPU_SHARE, SAMPLED = 2.0, 0.75, 0.02
LEVELS = {"decoded": (100, 250, 400, 550), "sampled": (500, 1000, 1500, 2000)}
LEAST = {"decoded": 400, "sampled": 1500}
QUICK = {"decoded": (20,), "sampled": (60,)}
SHARES = {"decoded": 1.0, "sampled": SAMPLED}
# Nobody greets; an answer's end is heard after half a second.
OPTIONS = ("--greeting-s", "0", "--answer-end-s", "0.5", "--think-s", "1", "2", "--text-prompt", "Be brief.")


def run(quick: bool, folder: Path) -> Outcome:
    seconds = 8.0 if quick else 30.0
    levels = QUICK if quick else LEVELS
    outcome = Outcome({"window_s": seconds, "chunk_ms": 80, "levels": levels, "decode_share": SHARES})
    for name, counts in levels.items():
        found = []
        for count in counts:
            try:
                one = _measure(count, SHARES[name], folder / f"{name}-{count}", seconds)
            except ProcessFailed as error:  # too many for it, or for this machine
                outcome.notes.append(f"{name}, {count} sessions: {str(error).partition(';')[0]}")
                break
            late_ms = one["sent_late_ms"]["p99"]
            print(
                f"  {name} {count}: {one['cpu_share']:.0%} of a core, the ear {one['ear_cpu_share']:.0%},"
                f" late p99 {late_ms:.2f} ms, {one['turns']['failed']} of {one['turns']['n']} turns failed",
                flush=True,
            )
            found.append(one)
            if one["cpu_share"] > 0.97:
                break  # it is full: more would only be later
        outcome.figures[name] = found
        count = counts[0] if quick else LEAST[name]
        outcome.targets += _targets(name, next((one for one in found if one["sessions"] == count), None), count)
    outcome.notes += [
        "cpu_share: the worker's process alone; ear_cpu_share: its hearing subprocess, on the core of the peer.",
        "sent_late_ms: by the worker's own account. late_at_the_peer_ms: by the kernel's stamps at the peer, how much "
        "later than at the session's best a chunk came.",
        "onset_error_ms: in turns of decoded sessions, against the peer's account; see duplex_truth.",
    ]
    return outcome


def _targets(name: str, one: dict[str, Any] | None, count: int) -> list[Target]:
    what = f"{name}, {count} sessions"
    targets = [
        Target(f"{what}: chunks sent, of those due", one["sent_of_due"] if one else None, 0.99, "", at_least=True),
        Target(f"{what}: failed turns", one["turns"]["failed"] if one else None, 0, ""),
    ]
    if name == "sampled":
        targets.append(Target(f"{what}: CPU share", one["cpu_share"] if one else None, CPU_SHARE, "core"))
    else:
        late_ms = one["sent_late_ms"]["p99"] if one else None
        targets.append(Target(f"{what}: send lateness p99", late_ms, LATE_P99_MS, "ms"))
    return targets


def load_of(host: str, count: int, folder: Path, *more: str) -> Load:
    """The shipped locustfile, with queries whose voices' ends are known, one recording each."""
    queries = folder / "queries"
    voice.write_queries(queries, 4, QUERY_S)
    # Spread over a turn at least: people do not all speak at once.
    spawn_rate = min(50.0, count / TURN_S)
    return Load(TALKING, host, count, spawn_rate, folder, [*OPTIONS, "--samples-dir", str(queries), *more])


def _measure(count: int, share: float, folder: Path, seconds: float) -> dict[str, Any]:
    with duplex_peer(folder) as peer:
        load = load_of(peer.ws_url, count, folder / "client", "--decode-share", str(share))
        with running(load) as live:
            ear = _ear_elsewhere(live)
            live.window(QUERY_S + DUPLEX_ANSWER_S + 4.0)
            window, ear_cpu_share, theirs = _watched(live, ear, peer, seconds)
        peer.figures()  # its trace is on the disk
        turns, sessions, workers = live.rows(), live.rows("sessions"), live.rows("workers")
    found = {
        "sessions": count,
        "cpu_share": window.cpu_share,
        "ear_cpu_share": ear_cpu_share,
        "waited_for_core_share": window.waited_share,
        "sent_late_ms": our_lateness(live, window),
        "late_at_the_peer_ms": theirs["heard_late_ms"],
        "sent_of_due": theirs["chunks_heard"] / (count * CHUNKS_A_SECOND * seconds),
        **_health(window.of(workers, "at")),
        "peer": {key: theirs[key] for key in ("sessions", "cpu_share", "answers", "skipped", "turnaround_ms")},
    }
    turns = window.of(turns[turns["outcome"] != "cut"], "ended_at")
    met = duplex_truth.joined(turns, sessions, duplex_truth.told_by_peer(peer.trace))
    return found | {"turns": _turns(turns), "onset_error_ms": duplex_truth.summary(met)}


def _turns(turns: pd.DataFrame) -> dict[str, Any]:
    failed = turns["error_kind"].dropna()
    return {"n": len(turns), "failed": len(failed), "by_kind": failed.value_counts().to_dict()}


def _health(seconds: pd.DataFrame) -> dict[str, Any]:
    return {
        "loop_lag_ms": {
            "p50": float(seconds["loop_lag_p50_s"].median()) * 1e3,
            "max": float(seconds["loop_lag_max_s"].max()) * 1e3,
        },
        "ear_behind_max_s": float(seconds["ear_behind_s"].max()),
    }


def _ear_elsewhere(live: LiveLoad) -> psutil.Process:
    """The worker's hearing subprocess, moved off the core that is measured."""
    children = live.worker.process.children()
    if len(children) != 1:
        raise ProcessFailed(f"the worker has {len(children)} children; its hearing subprocess was wanted")
    if SERVER_CORE is not None:
        children[0].cpu_affinity([SERVER_CORE])
    return children[0]


def _watched(
    live: LiveLoad, ear: psutil.Process, peer: DuplexPeer, seconds: float
) -> tuple[Window, float, dict[str, Any]]:
    """A window, the ear's CPU share and what the peer did in it."""
    peer.forget()
    before_s = _cpu_s(ear)
    window = live.window(seconds)
    return window, (_cpu_s(ear) - before_s) / (window.end_at - window.begin_at), peer.figures()


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)

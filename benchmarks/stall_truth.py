"""Are stalls found, all of them and no others? Half the answers stop for 300 ms in mid-speech; then none does."""

from pathlib import Path
from typing import Any

from benchmarks import call_truth, calls
from benchmarks.peers.starting import agent_peer
from benchmarks.results import Outcome, Target

STALL_MS, SIZE_MS = 300, 10.0
HELD_UP_S = 0.019  # an answer that the peer itself was so late with has stalled: what counts as an underrun is 20 ms
STALLING = ("--stall-ms", str(STALL_MS), "--stall-after-s", "1.0", "--stall-share", "0.5")


def run(quick: bool, folder: Path) -> Outcome:
    count, seconds = (30, 15.0) if quick else (300, 40.0)
    outcome = Outcome({"calls": count, "window_s": seconds, "stall_ms": STALL_MS})
    stalling = outcome.figures["stalling"] = _measure(folder / "stalling", count, seconds, STALLING)
    clean = outcome.figures["clean"] = _measure(folder / "clean", count, seconds, ())
    outcome.targets = [
        Target("answers with a stall", stalling["with_stall"], 10, "", at_least=True),
        Target("stalls missed", stalling["missed"], 0, ""),
        Target("stalls counted more than once", stalling["more_than_one"], 0, ""),
        Target(f"size of a stall of {STALL_MS} ms: worst error", stalling["size_error_ms"].get("max"), SIZE_MS, "ms"),
        Target("stalls found where there were none, beside", stalling["false"], 0, ""),
        Target("stalls found in a clean run", clean["false"], 0, ""),
        Target("failed turns", stalling["failed_turns"] + clean["failed_turns"], 0, ""),
    ]
    outcome.notes.append(
        "stalls: at prebuffer 0 (stall_count_0ms, stall_s_0ms). Truth: the peer's own clock. held_up: answers with a "
        "chunk that the peer itself wrote 19 ms later than the first, or more: stalls that nobody asked for."
    )
    return outcome


def _measure(folder: Path, count: int, seconds: float, options: tuple[str, ...]) -> dict[str, Any]:
    with agent_peer(folder, *options) as peer:
        with calls.our_calls(calls.our_load(peer, count, folder / "client")) as live:
            window, theirs = calls.watched(live, peer, seconds)
            live.window(5.0)
            peer.figures()
        rows = window.of(live.rows(), "user_offset_at")
        rows = rows[rows["outcome"] != "cut"]
        met = call_truth.joined(rows, peer.trace)
    stalled = met["stalled"] == 1
    held_up = ~stalled & (met["held_up_s"] >= HELD_UP_S)
    found, size_s = met["stall_count_0ms"], met["stall_s_0ms"] - met["stall_true_s"]
    return {
        "turns": len(met),
        "with_stall": int(stalled.sum()),
        "missed": int((stalled & (found == 0)).sum()),
        "more_than_one": int((stalled & (found > 1)).sum()),
        "false": int((~stalled & ~held_up & (found > 0)).sum()),
        "held_up": int(held_up.sum()),
        "size_error_ms": call_truth.error_figures(size_s[stalled & (found > 0)]),
        "failed_turns": int(rows["error_kind"].notna().sum()),
        "cpu_share": window.cpu_share,
        "peer_written_late_ms": theirs["written_late_ms"],
    }

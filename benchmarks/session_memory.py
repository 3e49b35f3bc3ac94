"""What a call costs in memory: resident memory of a worker with few calls and with many, some turns in."""

from pathlib import Path

from benchmarks import calls
from benchmarks.peers.starting import agent_peer
from benchmarks.results import Outcome, Target

MOST_KB = 120.0


def run(quick: bool, folder: Path) -> Outcome:
    counts, seconds = ((20, 120), 5.0) if quick else ((50, 550), 20.0)
    outcome = Outcome({"calls": counts, "window_s": seconds})
    peaks: list[float] = []
    for count in counts:
        where = folder / str(count)
        with agent_peer(where) as peer, calls.our_calls(calls.our_load(peer, count, where / "client")) as live:
            window = live.window(seconds)
            memory = live.worker.process.memory_full_info()
            peaks.append(live.worker.peak_rss_bytes() / 1e3)
        outcome.figures[f"{count}_calls"] = {
            "peak_rss_kb": peaks[-1],
            "rss_kb": memory.rss / 1e3,
            "unique_kb": memory.uss / 1e3,
            "cpu_share": window.cpu_share,
        }
    a_call_kb = outcome.figures["kb_a_call"] = (peaks[1] - peaks[0]) / (counts[1] - counts[0])
    outcome.targets.append(Target("peak resident memory a call beyond the first", a_call_kb, MOST_KB, "kB"))
    outcome.notes.append("The worker's process; the hearing subprocess beside it is shared by all calls.")
    return outcome

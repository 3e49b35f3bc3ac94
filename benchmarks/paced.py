"""A thousand streams at 20 ms a chunk in one worker, all measurement on: what share of a core is it?"""

from pathlib import Path

import numpy as np

from benchmarks.load import NO_THINKING, PCM, USERS, Load, quantiles, running
from benchmarks.peers.starting import paced_server, path
from benchmarks.results import Outcome, Target

GAP_MS, CHUNK_BYTES, CHUNKS = 20, 960, 200
MOST_CPU_SHARE = 0.85


def run(quick: bool, folder: Path) -> Outcome:
    streams = 200 if quick else 1000
    window_s = 5 if quick else 15
    length_s = CHUNKS * GAP_MS / 1000
    target = path(chunks=CHUNKS, bytes=CHUNK_BYTES, first_ms=50, gap_ms=GAP_MS)
    outcome = Outcome({"streams": streams, "chunks": CHUNKS, "chunk_bytes": CHUNK_BYTES, "gap_ms": GAP_MS})
    lags = folder / "lags.bin"
    with paced_server() as server:
        load = Load(
            USERS / "streams.py",
            server.url,
            streams,
            200,
            folder,
            [*PCM, *NO_THINKING, "--path", target],
            {"stagger_s": length_s, "lags": str(lags)},
        )
        with running(load) as live:
            live.window(length_s + 2)
            server.forget()
            server_cpu_s = server.running.cpu_s()
            window = live.window(window_s)
            server_cpu_s = server.running.cpu_s() - server_cpu_s
            theirs = server.figures()
        rows = window.of(live.rows(), "ended_at")
        seconds = window.of(live.rows("workers"), "at")
    probed = np.fromfile(lags).reshape(-1, 2)
    within = (probed[:, 0] >= window.begin_at) & (probed[:, 0] <= window.end_at)
    lag_s = probed[within, 1]
    chunks_a_second = theirs["chunks"] / (window.end_at - window.begin_at)
    outcome.figures = {
        "cpu_share": window.cpu_share,
        "waited_for_core_share": window.waited_share,
        "cpu_us_per_chunk": window.cpu_s / theirs["chunks"] * 1e6,
        "chunks_per_s": chunks_a_second,
        "streams_in_flight": float(seconds["in_flight"].median()),
        "turns": len(rows),
        "failed_turns": int(rows["error_kind"].notna().sum()),
        "flagged_share": float(rows["flagged"].mean()),
        "arrival_width_ms": quantiles(rows["first_chunk_width_s"], 1e3),
        "loop_lag_ms": {name: float(np.quantile(lag_s, q)) * 1e3 for name, q in (("p50", 0.5), ("p99", 0.99))}
        | {"max": float(lag_s.max()) * 1e3},
        "gc": {"collections": int(seconds["gc_count"].sum()), "longest_second_s": float(seconds["gc_s"].max())},
        "server": {"cpu_share": server_cpu_s / (window.end_at - window.begin_at), **theirs},
        "streams_per_core_at_85_percent": streams * MOST_CPU_SHARE / window.cpu_share,
    }
    due = streams / (length_s + 0.05) * CHUNKS * window_s
    outcome.targets = [
        Target("streams at 20 ms a chunk", outcome.figures["streams_in_flight"], streams * 0.99, "", at_least=True),
        Target("CPU share of the worker at that", window.cpu_share, MOST_CPU_SHARE, "core"),
        Target("chunks served, of those due", theirs["chunks"] / due, 0.97, "", at_least=True),
        Target("failed turns", outcome.figures["failed_turns"], 0, ""),
    ]
    outcome.notes.append("CPU share counts the whole worker process, 100 probes of its loop a second included.")
    return outcome

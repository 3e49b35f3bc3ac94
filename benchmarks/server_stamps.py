"""Client rows beside the bundled server's own trace: do they agree, and are injected faults found again?

A clean load first: first_chunk_at against the trace's first_audio_at. Then delays, stalls and silences on purpose, in
audio paced at its own speed (RTF 1), so that each shows whole in one figure of the row:

    delay     (first_chunk_at - sent_at) - the pace's time to first chunk
    stall     the total stall at prebuffer 0
    silence   first_audio_at - first_chunk_at

Each is compared with the trace's fault_s, what the server says it really injected.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.load import USERS, Load, Window, quantiles, running
from benchmarks.peers.starting import bundled_server
from benchmarks.results import Outcome, Target
from gpu_server.trace import read_trace

USER_COUNT, TTFC_MS, TONE_S = 40, 120, 1.5
FAULTS = ("delay:p=0.25,s=0.3", "stall:p=0.25,after_s=0.6,s=0.4", "silence:p=0.25,s=0.25")
P50_MS, P99_MS, FAULT_MS = 0.1, 0.3, 5.0


def run(quick: bool, folder: Path) -> Outcome:
    window_s = 4.0 if quick else 20.0
    outcome = Outcome({"users": USER_COUNT, "tone_s": TONE_S, "window_s": window_s, "faults": list(FAULTS)})
    clean = _rows(folder / "clean", window_s, f"{TTFC_MS},0.3", ())
    stamps = (clean["first_chunk_at"] - clean["first_audio_at_server"]).abs()
    outcome.figures["stamps_ms"] = quantiles(stamps, 1e3)
    outcome.figures["stamps_flagged_share"] = float(clean["flagged"].mean())
    outcome.targets += [
        Target("first chunk, client - server, p50", outcome.figures["stamps_ms"].get("p50"), P50_MS, "ms"),
        Target("first chunk, client - server, p99", outcome.figures["stamps_ms"].get("p99"), P99_MS, "ms"),
    ]
    faulty = _rows(folder / "faulty", window_s, f"{TTFC_MS},1", FAULTS)
    for kind, found_s in _recovered(faulty).items():
        hit = faulty[faulty["fault"] == kind]
        figures = quantiles((found_s[hit.index] - hit["fault_s"]).abs(), 1e3)
        outcome.figures[f"{kind}_error_ms"] = figures
        outcome.targets.append(Target(f"injected {kind} found again, worst", figures.get("max"), FAULT_MS, "ms"))
    outcome.figures["left_out"] = clean.attrs["left_out"] + faulty.attrs["left_out"]
    outcome.targets.append(Target("turns left out: failed, or not in the trace", outcome.figures["left_out"], 0, ""))
    outcome.notes.append("faults: rows hit by exactly one; a delay's error holds the server's own lateness.")
    return outcome


def _recovered(rows: pd.DataFrame) -> dict[str, "pd.Series[float]"]:
    return {
        "delay": rows["first_chunk_at"] - rows["sent_at"] - TTFC_MS / 1000,
        "stall": rows["stall_s_0ms"],
        "silence": rows["first_audio_at"] - rows["first_chunk_at"],
    }


def _rows(folder: Path, window_s: float, pace: str, faults: tuple[str, ...]) -> pd.DataFrame:
    """The window's turns, joined with the server's rows; what both name ends in _server for the server's."""
    options = ["--engine", "tone", "--tone-seconds", str(TONE_S), "--pace", pace, "--chunk-ms", "40"]
    for fault in faults:
        options += ["--fault", fault]
    with bundled_server(folder / "server", *options) as (server, trace):
        load = Load(
            USERS / "streams.py", server.url, USER_COUNT, 20, folder, ["--think-s", "0.1", "0.4"], {"stagger_s": TONE_S}
        )
        with running(load) as live:
            live.window(2.0)
            window = live.window(window_s)
    return _joined(window, live.rows(), trace)


def _joined(window: Window, turns: pd.DataFrame, trace: Path) -> pd.DataFrame:
    _, served, _ = read_trace(trace)
    theirs: Any = pd.DataFrame(served)
    met = window.of(turns, "ended_at").merge(theirs, on="request_id", suffixes=("", "_server"), validate="one_to_one")
    heard = met[met["first_chunk_at"].notna() & met["error_kind"].isna()]
    heard.attrs["left_out"] = len(window.of(turns, "ended_at")) - len(heard)
    return heard

"""Turns of calls against what the agent peer wrote down. Pure; seconds.

The user's last voiced sample was spoken at: receive stamp of its chunk - what follows it in that chunk. The agent's
first is heard at: instant before the write of its chunk + what precedes it there (prebuffer 0). All CLOCK_MONOTONIC.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.voice import RATE

_SAME_TURN_S = 0.5


def told(trace: Path) -> pd.DataFrame:
    """The peer's trace, a row a turn, with user_offset_true_at, onset_true_at, transfer_true_s, stall_true_s and
    held_up_s: how much later than its first chunk one of the answer's others was written (after its stall, if any).
    """
    whole, _, _ = trace.read_text().rpartition("\n")  # the peer may be writing the next line
    turns = pd.DataFrame([json.loads(line) for line in whole.splitlines()])
    turns["user_offset_true_at"] = turns["user_recv_ns"] / 1e9 - (turns["user_chunk"] - turns["user_end"]) / RATE
    turns["onset_true_at"] = turns["onset_write_ns"] / 1e9 + turns["onset_at"] / RATE
    turns["transfer_true_s"] = turns["onset_true_at"] - turns["user_offset_true_at"]
    turns["held_up_s"] = (turns["latest_us"] - turns["onset_late_us"]) / 1e6
    # What the peer itself is late with after the stall comes on top.
    turns["stall_true_s"] = (turns["stall_ms"] / 1e3 + turns["held_up_s"]).where(turns["stalled"] == 1, 0.0)
    return turns


def joined(rows: pd.DataFrame, trace: Path) -> pd.DataFrame:
    """Turns of ours with their truth: of the same stream, the one whose user ended at the same time."""
    ours = rows[rows["agent_onset_at"].notna()].sort_values("user_offset_at")
    theirs = told(trace).sort_values("user_offset_true_at").rename(columns={"turn": "turn_true"})
    met = pd.merge_asof(
        ours,
        theirs,
        left_on="user_offset_at",
        right_on="user_offset_true_at",
        left_by="stream_id",
        right_by="stream",
        direction="nearest",
        tolerance=_SAME_TURN_S,
    )
    met = met[met["transfer_true_s"].notna()].copy()
    met["error_s"] = met["floor_transfer_offset_s"] - met["transfer_true_s"]
    met["onset_error_s"] = met["agent_onset_at"] - met["onset_true_at"]
    met["held_s"] = ((met["latest_before_us"] - met["onset_late_us"]) / 1e6).clip(lower=0.0)
    met["user_error_s"] = met["user_offset_at"] - met["user_offset_true_at"]
    return met


def error_figures(error_s: "pd.Series[float]") -> dict[str, float | int]:
    """Milliseconds. mean: signed, the bias; the others of absolute values."""
    if not len(error_s):
        return {"n": 0}
    size_ms = error_s.abs() * 1e3
    return {
        "n": len(error_s),
        "median": float(size_ms.median()),
        "p99": float(size_ms.quantile(0.99)),
        "max": float(size_ms.max()),
        "mean": float(error_s.mean()) * 1e3,
    }


def summary(met: pd.DataFrame) -> dict[str, Any]:
    """Errors of the floor transfer offset and of its two parts; of rows that are not flagged, too."""
    unsure = met["flagged"].astype(bool)
    return {
        "transfer_error_ms": error_figures(met["error_s"]),
        "of_rows_not_flagged_ms": error_figures(met.loc[~unsure, "error_s"]),
        "flagged_share": float(unsure.mean()) if len(met) else None,
        "agent_onset_error_ms": error_figures(met["onset_error_s"]),
        "user_offset_error_ms": error_figures(met["user_error_s"]),
        "agent_arrival_error_ms": error_figures(met["agent_onset_arrival_at"] - met["onset_write_ns"] / 1e9),
        # Were quiet never skipped, what the peer once wrote late would delay all that is played after it.
        "onset_error_if_playout_never_skips_ms": error_figures(met["onset_error_s"] - met["held_s"]),
        "held_by_the_peer_if_never_skips_ms": error_figures(met["held_s"]),
        "heard_by_gate": int((met["onset_by"] == "gate").sum()),
    }

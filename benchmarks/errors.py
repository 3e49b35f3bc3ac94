"""Rows against the truth: how far each first chunk's instant lies from the server's own stamp. Pure; seconds.

The server reads its clock just before it writes: bytes come between that instant and the return of its write.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.load import quantiles
from workers.samples.measure import FLAG_WIDTH_S

TOLERANCE_S = 0.000_05  # what two clock readings and a write may differ by, as TTFC's error may


def joined(rows: pd.DataFrame, stamps: Path) -> pd.DataFrame:
    """Turns with a stamp, and `error_s`, `write_s`, `outside_s` beside.

    error_s: first_chunk_at - stamp. outside_s: how far [stamp, end of the write] lies from the interval
    [first_chunk_at - first_chunk_width_s, first_chunk_at] that the row claims; 0 where they meet.
    """
    truth = pd.read_csv(stamps, sep=" ", names=["request_id", "stamp_ns", "write_ns"])
    met = rows.merge(truth, on="request_id", how="inner", validate="one_to_one")
    stamp_at, met["write_s"] = met["stamp_ns"] / 1e9, met["write_ns"] / 1e9
    met["error_s"] = met["first_chunk_at"] - stamp_at
    earliest = met["first_chunk_at"] - met["first_chunk_width_s"]
    too_late, too_early = earliest - (stamp_at + met["write_s"]), stamp_at - met["first_chunk_at"]
    met["outside_s"] = pd.concat([too_late, too_early], axis=1).max(axis=1).clip(lower=0.0)
    return met


def left_out(rows: pd.DataFrame, met: pd.DataFrame) -> dict[str, int]:
    """Turns no error is known of: those that failed, and those that no truth was found for."""
    failed = rows["error_kind"].notna()
    return {"failed_turns": int(failed.sum()), "unmatched_turns": int((~failed).sum()) - len(met)}


def stock(stamps: Path, begin_at: float, end_at: float) -> "pd.Series[float]":
    """Errors of stock users by their own clock, of the chunks heard within a window."""
    heard = pd.read_csv(stamps, sep=" ", names=["heard_ns", "stamp_ns"])
    heard = heard[(heard["heard_ns"] / 1e9).between(begin_at, end_at)]
    return (heard["heard_ns"] - heard["stamp_ns"]) / 1e9


def summary(met: pd.DataFrame) -> dict[str, Any]:
    """Milliseconds."""
    wrong = met["error_s"].abs() > TOLERANCE_S
    badly = met["error_s"].abs() > FLAG_WIDTH_S
    outside = met["outside_s"] > TOLERANCE_S
    return {
        "error_ms": quantiles(met["error_s"].abs(), 1e3),
        "width_ms": quantiles(met["first_chunk_width_s"], 1e3),
        "flagged_share": float(met["flagged"].mean()) if len(met) else None,
        "wrong_by_more_than_0.05_ms": int(wrong.sum()),
        "wrong_by_more_than_1_ms": int(badly.sum()),
        "of_these_not_flagged": int((badly & ~met["flagged"].astype(bool)).sum()),
        "truth_outside_interval": int(outside.sum()),
        "furthest_outside_ms": float(met["outside_s"].max()) * 1e3 if len(met) else None,
        "server_write_ms": quantiles(met["write_s"], 1e3),
    }

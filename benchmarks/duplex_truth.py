"""Are onsets and lag of full-duplex sessions right? Against the bundled server's own account of what it sent when.

Truth is known by construction: a sample's place in the stream before it is encoded, the instant before the write of the
message that holds it. Two servers: one as fast as its input, and one that takes 100 ms for 80 ms of audio, whose lag
grows by 0.20 s a second.
"""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import duplex_sessions
from benchmarks.call_truth import error_figures
from benchmarks.calls import our_lateness
from benchmarks.load import running
from benchmarks.peers.duplex_pages import RATE
from benchmarks.peers.starting import bundled_server
from benchmarks.results import Outcome, Target

MEDIAN_MS, P99_MS, CHUNK_MS = 10.0, 25.0, 80.0
SLOW_MS, SLOW_WINDOW_S, GROWTH_S_PER_S, GROWTH_OFF = 100, 25.0, 0.20, 0.05
_SAME_ONSET_S = 1.0
_ENGINES = ("tone", "espeak")
_TYPES = {"port": "int64", "onset_position_s": "float64", "onset_at": "float64"}


def run(quick: bool, folder: Path) -> Outcome:
    count, seconds = (4, 15.0) if quick else (16, 60.0)
    outcome = Outcome({"sessions": count, "window_s": seconds, "slow_step_ms": SLOW_MS})
    for engine in _ENGINES:
        found = outcome.figures[engine] = _measure(folder / engine, engine, count, seconds)
        position, heard = found["position_error_ms"], found["heard_error_ms"]
        outcome.targets += [
            Target(f"{engine}: onset error by stream position, median", position.get("median"), MEDIAN_MS, "ms"),
            Target(f"{engine}: onset error by stream position, p99", position.get("p99"), P99_MS, "ms"),
            Target(f"{engine}: onset error as heard, median", heard.get("median"), MEDIAN_MS, "ms"),
            Target(f"{engine}: onset error as heard, p99", heard.get("p99"), P99_MS, "ms"),
            Target(f"{engine}: lag error, worst", found["lag_error_ms"].get("max"), CHUNK_MS, "ms"),
            Target(f"{engine}: answers without a truth", found["unmatched_turns"], 0, ""),
            Target(f"{engine}: failed turns", found["failed_turns"], 0, ""),
        ]
    slowly = ("--duplex-step-ms", str(SLOW_MS))
    slow = outcome.figures["slow"] = _measure(folder / "slow", "tone", 4, min(seconds, SLOW_WINDOW_S), *slowly)
    growth = slow["growth_s_per_s"]
    worst = max((abs(one / GROWTH_S_PER_S - 1) for one in growth), default=None)
    outcome.targets += [
        Target(f"a step of {SLOW_MS} ms: lag's growth off {GROWTH_S_PER_S:g} s/s by, worst", worst, GROWTH_OFF, ""),
        Target(f"a step of {SLOW_MS} ms: lag error, worst", slow["lag_error_ms"].get("max"), CHUNK_MS, "ms"),
    ]
    outcome.notes += [
        "onset: the first sample of at least -40 dBFS, before encoding. heard: the instant before the write of its "
        "message + its place in it; the decoder's look-ahead (6.5 ms) is in that error, not in the position's.",
        "lag error: a session's largest lag, against the server's largest (a chunk's write - its input's read). "
        "A worker late by itself (waited_for_core_share, sent_late_ms) adds that to both errors.",
    ]
    return outcome


def _measure(folder: Path, engine: str, count: int, seconds: float, *options: str) -> dict[str, Any]:
    served = ("--engine", engine, "--sessions", str(count), *options)
    with bundled_server(folder, *served) as (peer, trace):
        host = peer.url.replace("http", "ws", 1)
        with running(duplex_sessions.load_of(host, count, folder / "client")) as live:
            live.window(duplex_sessions.QUERY_S + 5.0)
            window = live.window(seconds)
        turns, sessions = live.rows(), live.rows("sessions")
    answers, told_sessions = told_by_server(trace)
    rows = window.of(turns[turns["outcome"] != "cut"], "user_offset_at")
    met = joined(rows, sessions, answers)
    found = summary(met) | {
        "sent_late_ms": our_lateness(live, window),
        "cpu_share": window.cpu_share,
        "waited_for_core_share": window.waited_share,
        "lag_error_ms": error_figures(lag_error_s(sessions, told_sessions)),
        "growth_s_per_s": (sessions["lag_growth_s_per_min"].dropna() / 60).tolist(),
        "failed_turns": int(rows["error_kind"].notna().sum()),
        "unmatched_turns": int(rows["agent_onset_at"].notna().sum()) - len(met),
    }
    print(f"  {engine} {' '.join(options)}: {found['position_error_ms']}, heard {found['heard_error_ms']}", flush=True)
    return found


# ---- pure, seconds


def told_by_peer(trace: Path) -> pd.DataFrame:
    """The C peer's answers: port, onset_position_s, onset_at."""
    notes = pd.DataFrame(_lines(trace), columns=["port", "onset_position", "onset_at", "onset_write_ns"])
    notes["onset_position_s"] = notes["onset_position"] / RATE
    notes["onset_at"] = notes["onset_write_ns"] / 1e9 + notes["onset_at"] / RATE
    return notes[list(_TYPES)].astype(_TYPES)


def told_by_server(trace: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The bundled server's answers that were begun, as `told_by_peer`; its sessions that are over: port, lag_max_s."""
    lines = _lines(trace)
    clients = [line | {"port": int(line["client"].rpartition(":")[2])} for line in lines if "client" in line]
    sessions = pd.DataFrame(clients, columns=["duplex_session", "port", "lag_max_s"])
    begun = [line for line in lines if line.get("onset_at") is not None and "duplex_answer" in line]
    answers = pd.DataFrame(begun, columns=["duplex_session", "onset_position_s", "onset_at"])
    met = answers.merge(sessions, on="duplex_session")
    return met[list(_TYPES)].astype(_TYPES), sessions[["port", "lag_max_s"]].astype({"port": "int64"})


def _lines(trace: Path) -> list[dict[str, Any]]:
    whole, _, _ = trace.read_text().rpartition("\n")  # the next line may be half written
    return [json.loads(line) for line in whole.splitlines()]


def joined(turns: pd.DataFrame, sessions: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """Turns with an answer of their session near their own, and position_error_s, heard_error_s."""
    ports = sessions[["session", "local_port"]].rename(columns={"local_port": "port"})
    ours = turns[turns["agent_onset_position_s"].notna()].merge(ports, on="session")
    met = pd.merge_asof(
        ours.astype({"port": "int64", "agent_onset_position_s": "float64"}).sort_values("agent_onset_position_s"),
        answers.sort_values("onset_position_s"),
        left_on="agent_onset_position_s",
        right_on="onset_position_s",
        by="port",
        direction="nearest",
        tolerance=_SAME_ONSET_S,  # type: ignore[arg-type]  # the stubs know of no floats
    )
    met = met[met["onset_position_s"].notna()].copy()
    met["position_error_s"] = met["agent_onset_position_s"] - met["onset_position_s"]
    met["heard_error_s"] = met["agent_onset_at"] - met["onset_at"]
    return met


def summary(met: pd.DataFrame) -> dict[str, Any]:
    """Milliseconds."""
    return {
        "position_error_ms": error_figures(met["position_error_s"]),
        "heard_error_ms": error_figures(met["heard_error_s"]),
    }


def lag_error_s(sessions: pd.DataFrame, told: pd.DataFrame) -> "pd.Series[float]":
    """A session's largest lag less the server's."""
    ours = sessions.rename(columns={"local_port": "port"})[["port", "lag_max_s"]].dropna().astype({"port": "int64"})
    met = ours.merge(told, on="port", suffixes=("", "_true")).dropna()
    error_s: pd.Series[float] = met["lag_max_s"] - met["lag_max_s_true"]
    return error_s

"""Every figure of a run's calls to voice agents, as plain data. Knows turns and the server's figures; not their look.

Latency of successes only (an early answer is one), from the user's last voiced sample. The greeting is no turn and is
in no figure but its own. docs/metrics.md says what each figure means.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from analysis import turn_join, waterfall
from analysis.components import Tally
from analysis.counting import VOICE_AGENT, Counted
from analysis.runs import Run
from analysis.stats import turns_needed
from workers.samples import schema

THRESHOLD_S = 0.5  # S3's: an answer that comes sooner than this counts as a reverse barge-in
QUERIES_SHOWN = 12
LOADS_SHOWN = 4

Figures = dict[str, Any]
Metric = Callable[[pd.DataFrame, str, float], Figures]

# What stands behind "no results", by the kind of failure: S3's three causes.
UNREACHABLE = ("connection_refused", "dns_failure", "unreachable", "tls_failure", "connect_timeout", "ws_closed_1013")

METRICS = (
    ("floor_transfer_offset_ms", "floor_transfer_offset_s"),
    ("ttfc_ms", "ttfc_s"),
    ("ttfa_ms", "ttfa_s"),
)


def threshold_s(run: Run) -> float:
    """The scenario's threshold of a reverse barge-in; S3's 0.5 s where it names none."""
    scenario = run.manifest.get("scenario") or {}
    told = scenario.get("threshold_s", scenario.get("threshold"))
    return float(told) if isinstance(told, int | float) and not isinstance(told, bool) else THRESHOLD_S


def latency_s(turns: pd.DataFrame) -> pd.Series:
    """S3's latency: arrival of the audio in which the answer to this turn begins - the end of the user's voice."""
    return turns["agent_onset_arrival_at"] - turns["user_offset_at"]


def summarise_conversations(run: Run, counted: Counted, metric: Metric) -> Figures | None:
    """The figures of a run's conversations; None if it measured none. `metric` makes quantiles of a column."""
    if counted.measured.empty:
        return None
    answered = counted.answered
    heard = answered[answered["floor_transfer_offset_s"].notna()]
    limit_s = threshold_s(run)
    figures: Figures = {
        "outcomes": outcomes(counted),
        "started": len(counted.measured),
        "answered": len(answered),
        "failed": len(counted.failed),
        "cut": len(counted.cut),
        "sessions": int(counted.measured["cluster"].nunique()),
        "success_rate_percent": _percent(counted.success_share),
        "no_results": no_results(counted),
        **{name: metric(answered, column, 1000.0) for name, column in METRICS},
        "turn_taking": _turn_taking(heard, limit_s),
        "onset_by": {str(k): int(n) for k, n in answered["onset_by"].value_counts().items() if n},
        "agent_speech_s": _mean(answered["agent_speech_s"]),
        "queries": _queries(counted, metric),
        "by_load": _by_load(run, heard, metric),
        "stalls": stalls(answered, metric),
        "barge_in": _barge_in(counted, metric),
        "stale": {
            "turns": int((counted.measured["stale_s"].fillna(0.0) > 0).sum()),
            "total_s": float(counted.measured["stale_s"].fillna(0.0).sum()),
        },
        "false_barge_ins": int(counted.measured["false_barge_ins"].fillna(0).sum()),
        "timeouts": int((counted.measured["outcome"] == "timed_out").sum()),
        "greeting": _greeting(run, counted),
    }
    return figures | {"server": _server(run, counted)}


def outcomes(counted: Counted) -> dict[str, int]:
    """How many turns ended in which way, in the order of the schema."""
    counts = counted.measured["outcome"].value_counts()
    return {name: int(counts[name]) for name in schema.OUTCOMES if counts.get(name, 0)}


def _percent(share: float | None) -> float | None:
    return None if share is None else share * 100


def _mean(column: pd.Series) -> float | None:
    told = column.dropna()
    return float(told.mean()) if len(told) else None


def _turn_taking(heard: pd.DataFrame, limit_s: float) -> Figures | None:
    """Gaps, overlaps, and beside them S3's count."""
    if heard.empty:
        return None
    count = {"threshold_s": limit_s, "reverse_barge_ins": int((latency_s(heard) < limit_s).sum())}
    return gaps(heard["floor_transfer_offset_s"]) | count


def gaps(offset_s: pd.Series) -> Figures:
    """Of floor transfer offsets (one or more): the shares of gaps and of overlaps."""
    overlaps = offset_s[offset_s < 0]
    return {
        "n": len(offset_s),
        "gap_percent": float((offset_s >= 0).mean()) * 100,
        "overlap_percent": float((offset_s < 0).mean()) * 100,
        "overlaps": len(overlaps),
        "overlap_mean_ms": None if overlaps.empty else float((-overlaps).mean()) * 1000,
    }


def _queries(counted: Counted, metric: Metric) -> dict[str, Figures]:
    """By query: which one is slow to be answered. Beyond QUERIES_SHOWN the rarest are left out."""
    names = counted.measured["text_name"].value_counts()
    found = {}
    for name in names[names > 0].index[:QUERIES_SHOWN]:
        answered = counted.answered[counted.answered["text_name"] == name]
        found[str(name)] = {
            "started": int(names[name]),
            "answered": len(answered),
            "failed": int((counted.failed["text_name"] == name).sum()),
            "floor_transfer_offset_ms": metric(answered, "floor_transfer_offset_s", 1000.0),
        }
    return dict(sorted(found.items()))


def _by_load(run: Run, heard: pd.DataFrame, metric: Metric) -> list[Figures]:
    """Floor transfer offset by how many calls were up when the user stopped: whether it grows with the load.

    LOADS_SHOWN equal steps between the least and the greatest number; none where it hardly changed.
    """
    calls = run.sessions[run.sessions["protocol"] == VOICE_AGENT]
    begun, ended = calls["ready_wall_at"].dropna(), calls["ended_wall_at"].dropna()
    told = heard[heard["user_offset_at"].notna()]
    if told.empty or begun.empty:
        return []
    at = (told["user_offset_at"] + told["intended_wall_at"] - told["intended_at"]).to_numpy(np.float64)
    up = np.searchsorted(np.sort(begun), at, "right") - np.searchsorted(np.sort(ended), at, "right")
    if up.max() < 1.2 * max(1, up.min()) or up.max() - up.min() < 2:
        return []
    group = np.searchsorted(np.linspace(up.min(), up.max(), LOADS_SHOWN + 1)[1:-1], up, "left")
    if sum(np.bincount(group) >= turns_needed(0.5)) < 2:
        return []
    return [
        {
            "least": int(up[group == level].min()),
            "greatest": int(up[group == level].max()),
            "answers": int((group == level).sum()),
            "floor_transfer_offset_ms": metric(told[group == level], "floor_transfer_offset_s", 1000.0),
        }
        for level in np.unique(group)
    ]


def stalls(answered: pd.DataFrame, metric: Metric) -> Figures | None:
    """How often answers would stall, by how much is buffered first; None where no arrivals were kept."""
    told = answered[answered["min_prebuffer_s"].notna()]
    if told.empty:
        return None
    return {
        "n": len(told),
        "stalled_percent": {
            str(prebuffer): float((told[f"stall_count_{prebuffer}ms"] > 0).mean()) * 100
            for prebuffer in schema.PREBUFFERS_MS
        },
        "min_prebuffer_ms": metric(told, "min_prebuffer_s", 1000.0),
    }


def _barge_in(counted: Counted, metric: Metric) -> Figures | None:
    """Turns in which the user broke in on purpose; ones we cut are left out. Yielded: the agent fell silent."""
    tried = counted.measured[counted.measured["barge_in"] & (counted.measured["outcome"] != schema.CENSORED)]
    if tried.empty:
        return None
    yielded = tried[tried["yielded"]]
    return {
        "n": len(tried),
        "yielded": len(yielded),
        "no_yield": len(tried) - len(yielded),
        "yielded_percent": len(yielded) / len(tried) * 100,
        "time_to_silence_ms": metric(yielded, "time_to_silence_s", 1000.0),
    }


def _greeting(run: Run, counted: Counted) -> Figures:
    sessions = run.sessions[run.sessions["stream_id"].isin(set(counted.measured["stream_id"].dropna()))]
    greeted = sessions[sessions["greeting_s"].fillna(0.0) > 0]
    return {"sessions": len(greeted), "of": len(sessions), "mean_s": _mean(greeted["greeting_s"])}


# ------------------------------------------------------------------------------------------------------- no results


def no_results(counted: Counted) -> Figures | None:
    """S3's message for a run without an answer: which cause, and the failure that most turns ended in."""
    if len(counted.answered):
        return None
    failed = counted.failed
    kinds = failed["error_kind"].astype(object).where(failed["error_kind"].notna(), failed["outcome"]).value_counts()
    if kinds.empty and (counted.cut["error_kind"] == "ear_lost").any():
        return {
            "cause": "ear_lost",
            "line": "our own hearing process died, and turns were cut by it: not the server's fault",
            "advice": "Is this machine out of memory? See the workers' output, and run it again with fewer sessions.",
            "top_failure": None,
        }
    if kinds.empty:
        return {
            "cause": "cut",
            "line": "every turn was cut before it was answered: the run was shorter than a turn",
            "advice": "Let it run longer; if turns never end, check the server's log.",
            "top_failure": None,
        }
    kind = str(kinds.index[0])
    told = failed.loc[(failed["error_kind"] == kind) | (failed["outcome"] == kind), "error"].dropna()
    top = {"error_kind": kind, "turns": int(kinds.iloc[0]), "example": str(told.iloc[0]) if len(told) else None}
    return {**_cause(kind, failed), "top_failure": top}


def _cause(kind: str, failed: pd.DataFrame) -> Figures:
    heard_nothing = failed["first_chunk_at"].isna().all()
    if kind in UNREACHABLE or kind.startswith("http_"):
        return {
            "cause": "unreachable",
            "line": "the endpoint could not be reached: no call came up",
            "advice": "Is the server up, and are --host and the path right? Check the server's log.",
        }
    if kind == "handshake_timeout":
        return {
            "cause": "no_handshake",
            "line": "connections were accepted, but no session got its handshake: such a server serves one at a time, "
            "and reads its prompts first",
            "advice": "Is another client in the way? Name more --servers, or wait longer (--setup-timeout-s).",
        }
    if kind in ("timed_out", "no_answer_in_time") or "timeout" in kind:
        silence = "nothing came back" if heard_nothing else "what came back held no speech that answers it"
        return {
            "cause": "no_answer",
            "line": f"calls came up and audio was sent, but {silence}: the query audio is missing, silent or of a "
            "format this server does not understand, or its own model endpoints cannot be reached",
            "advice": "`python -m workers clips check DIR` looks at the query files (16 kHz mono 16-bit PCM WAV is "
            "what most agents want). Check the server's log.",
        }
    if "audio" in kind or "clip" in kind or "sample_rate" in kind:
        return {
            "cause": "audio",
            "line": "the audio is missing or of the wrong format",
            "advice": "`python -m workers clips check DIR` looks at the query files. Check the server's log.",
        }
    return {
        "cause": "server_failed",
        "line": "calls came up and then broke",
        "advice": "Check the server's log.",
    }


# --------------------------------------------------------------------------------------------------------- the server


def _server(run: Run, counted: Counted) -> Figures | None:
    """The server's components, and where the time of a turn went."""
    found = turn_join.join_turns(run)
    if found is None:
        return None
    tally = Tally()
    measured = found.figures[found.figures["row"].isin(counted.measured.index)]
    values = measured["value_s"].fillna(measured["value"])
    rows = zip(measured["stream_id"], measured["component"], measured["metric"], values, strict=True)
    for stream, component, metric, value in rows:
        tally.add(str(stream), str(component), str(metric), float(value))
    stages = counted.answered.join(found.stages, how="left")
    by_instants = found.one_clock
    told = waterfall.by_instants(stages) if by_instants else waterfall.by_durations(stages)
    return {
        "kind": found.kind,
        "sources": [
            {
                "path": source.path,
                "rows": source.rows,
                "other_runs": source.other_runs,
                "bad_lines": source.bad_lines,
                "offset_s": source.offset_s,
            }
            for source in found.sources
        ],
        "joined": found.joined,
        "greeting": found.greeting,
        "unplaced": found.unplaced,
        "unknown": found.unknown,
        "one_clock": found.one_clock,
        "turns_with_figures": int(found.figures.loc[found.figures["row"] >= 0, "row"].nunique()),
        "components": tally.summary(),
        "waterfall": waterfall.summarise(told),
        "slowest": _slowest(run, told, stages),
    }


def _slowest(run: Run, told: pd.DataFrame, turns: pd.DataFrame) -> Figures | None:
    """The waterfall of the turn that took longest to be answered."""
    offsets = turns.loc[told.index, "floor_transfer_offset_s"].dropna()
    if offsets.empty:
        return None
    row = offsets.idxmax()
    turn = turns.loc[row]
    return {
        "stream_id": str(turn["stream_id"]),
        "turn": None if pd.isna(turn["turn"]) else int(turn["turn"]),
        "query": None if pd.isna(turn["text_name"]) else str(turn["text_name"]),
        "request_id": None if pd.isna(turn["request_id"]) else str(turn["request_id"]),
        "floor_transfer_offset_ms": float(np.float64(turn["floor_transfer_offset_s"])) * 1000,
        "stages": waterfall.of_turn(told.loc[row]),
    }

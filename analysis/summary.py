"""Every figure of a run's report, as plain data: what report.json, summary.csv and the page are made of.

`overall`, `texts`, `throughput`, `stalls` and `server` are of requests, `conversation` of calls to voice agents,
`duplex` of sessions with full-duplex models; the rest is of all. Latency of requests: measured successes only, from the
intended start unless its name says otherwise.
Milliseconds, because this is what screens and files show. docs/metrics.md says what each figure means.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from analysis import duplex_rows, server_join, verdicts
from analysis.checks import Reason, reasons, target
from analysis.conversation import summarise_conversations
from analysis.counting import Counted, agent_calls, count, full_duplex, requests, wall_s
from analysis.duplex import summarise_duplex
from analysis.runs import Run
from analysis.scraped import read_scraped, series, within
from analysis.stats import Quantile, asps, cps, quantile_interval, rps, summarise, turns_needed
from analysis.targets import Targets
from workers.samples import schema

REPORT_VERSION = 1
QUANTILES = (0.50, 0.95, 0.99)
TEXTS_SHOWN = 12
OTHER = "other"

Figures = dict[str, Any]


def summarise_run(run: Run, targets: Targets | None = None) -> Figures:
    """All figures of a run. Keys carry their unit; what cannot be told is null, and its neighbour says why."""
    counted = count(run.turns)
    doubted = reasons(run, counted)
    asked = requests(counted)
    timed = _with_from_send(asked)
    server, spoken = _server(run, asked), summarise_conversations(run, agent_calls(counted), _metric)
    return {
        "report_version": REPORT_VERSION,
        "run": run.id,
        "path": str(run.path),
        "finished": run.finished,
        "what": _what(run, counted),
        "reasons": [asdict(reason) for reason in doubted],
        "remark": target.remark(run),
        "bottleneck": _bottleneck(server, spoken),
        "targets": None if targets is None else _targets(run, counted, targets, doubted),
        "turns": _turns(run, counted),
        "failures": _failures(counted),
        "cut": _kinds(counted.cut),
        "throughput": _throughput(asked),
        "overall": _figures(timed),
        "texts": _texts(timed),
        "stalls": _stalls(asked),
        "server": server,
        "scraped": _scraped(run, counted),
        "conversation": spoken,
        "duplex": summarise_duplex(run, full_duplex(counted), _metric),
    }


def _scraped(run: Run, counted: Counted) -> list[Figures]:
    """What the target's own metrics said while turns were measured."""
    if counted.measured.empty:
        return []
    window = float(counted.measured["intended_wall_at"].min()), float(counted.measured["ended_wall_at"].max())
    return within(read_scraped(run.path), {"measured": [window]})


def _bottleneck(server: Figures | None, spoken: Figures | None) -> Figures:
    """Which part of the way to the first audio takes most, of requests and of conversations; why not, where untold."""
    found: Figures = {"requests": None, "conversations": None}
    if server is not None and server["joined"]:
        figures = server["figures"]
        wait, ttfb, rest = (figures[name]["mean"] for name in ("server_queue_wait_ms", "server_ttfb_ms", "rest_ms"))
        if None not in (wait, ttfb, rest):
            parts = {"the wait for a stream": wait, "speech synthesis": ttfb - wait, "network and client": rest}
            found["requests"] = _largest(parts)
    if spoken is not None and (told := spoken["server"]) and told["waterfall"]:
        found["conversations"] = told["waterfall"]["bottleneck"]
    return found


def _largest(parts: dict[str, float]) -> Figures:
    part = max(parts, key=lambda name: parts[name])
    whole = sum(max(0.0, mean) for mean in parts.values())
    return {"part": part, "mean_ms": parts[part], "share_percent": parts[part] / whole * 100 if whole else None}


def _targets(run: Run, counted: Counted, targets: Targets, doubted: list[Reason]) -> Figures:
    memory = series(read_scraped(run.path), "gpu_memory_bytes")["value"]
    grave = verdicts.doubts((reason.severity, reason.code) for reason in doubted)
    duplex = full_duplex(counted).measured
    sessions = duplex_rows.sessions_of(run, duplex) if len(duplex) else None
    asked_for = duplex_rows.asked_for(run) if len(duplex) else None
    peak = float(memory.max()) if len(memory) else None
    return verdicts.summarise(targets, counted, grave, peak, sessions, asked_for=asked_for)


def _with_from_send(counted: Counted) -> Counted:
    answered = counted.answered.assign(
        ttfc_from_send_s=counted.answered["first_chunk_at"] - counted.answered["sent_at"]
    )
    return Counted(counted.measured, answered, counted.failed, counted.cut)


def _what(run: Run, counted: Counted) -> Figures:
    told = run.manifest
    wall = wall_s(counted)
    return {
        "name": told.get("name"),
        "target": told.get("host"),
        "scenario": told.get("scenario"),
        "users": told.get("users"),
        "levels": [level.get("users") for level in told.get("levels") or ()] or None,
        "command": told.get("command"),
        "versions": told.get("versions"),
        "machine": told.get("machine"),
        "git": told.get("git"),
        "started_wall_at": told.get("started_wall_at"),
        "ended_wall_at": told.get("ended_wall_at"),
        "exit_reason": told.get("exit_reason"),
        "protocols": _values(run.turns["protocol"]),
        "dialects": _values(run.turns["dialect"]),
        "voices": _values(run.turns["voice"]),
        "clocks": _values(run.turns["clock"]),
        "measured_wall_s": wall,
        "workers": {
            worker: {"host": log.facts.get("host"), "turns": log.rows["turns"]}
            for worker, log in run.sealed.logs.items()
        },
    }


def _values(column: pd.Series) -> list[str]:
    return sorted(str(value) for value in column.dropna().unique())


def _turns(run: Run, counted: Counted) -> Figures:
    return {
        "warm_up": len(run.turns) - len(counted.measured),
        "started": len(counted.measured),
        "answered": len(counted.answered),
        "failed": len(counted.failed),
        "cut": len(counted.cut),
        "sessions": int(counted.measured["cluster"].nunique()),
        "success_rate_percent": _percent(counted.success_share),
    }


def _percent(share: float | None) -> float | None:
    return None if share is None else share * 100


def _failures(counted: Counted) -> list[Figures]:
    failed = counted.failed
    kind = failed["error_kind"].astype(object).where(failed["error_kind"].notna(), failed["outcome"])
    found = []
    for name, rows in failed.groupby(kind.astype(str)):
        told = rows[rows["error"].notna()]
        example = told.iloc[0] if len(told) else rows.iloc[0]
        found.append(
            {
                "error_kind": str(name),
                "turns": len(rows),
                "example": str(example["error"]) if len(told) else None,
                "request_id": None if pd.isna(example["request_id"]) else str(example["request_id"]),
            }
        )
    return sorted(found, key=lambda failure: -failure["turns"])


def _kinds(rows: pd.DataFrame) -> dict[str, int]:
    counts = rows["error_kind"].value_counts()
    return {str(kind): int(n) for kind, n in counts.items() if n}


def _throughput(counted: Counted) -> Figures:
    """S4's rates. T_wall holds failures too: a server that fails is not the faster for it."""
    wall = wall_s(counted)
    answered = counted.answered
    real_time = answered["rtf"].dropna()
    return {
        "wall_s": wall,
        "asps": asps(answered["audio_s"].fillna(0.0), wall) if wall else None,
        "rps": rps(counted.handled, wall) if wall else None,
        "rps_answered": rps(len(answered), wall) if wall else None,
        "cps": cps(answered["text_chars"].fillna(0), wall) if wall else None,
        "rtf_mean": float(real_time.mean()) if len(real_time) else None,
        "rtf_median": float(real_time.median()) if len(real_time) else None,
    }


# Figure, its column, and what makes of seconds what is shown.
METRICS: tuple[tuple[str, str, float], ...] = (
    ("ttfc_ms", "ttfc_s", 1000.0),
    ("ttfa_ms", "ttfa_s", 1000.0),
    ("e2e_ms", "e2e_s", 1000.0),
    ("rtf", "rtf", 1.0),
    ("ttfc_from_send_ms", "ttfc_from_send_s", 1000.0),
)


def _figures(counted: Counted) -> Figures:
    """The figures of all turns, or of one text's. `latency` is S2's: end to end."""
    answered = counted.answered
    end_to_end = answered["e2e_s"].dropna()
    found: Figures = {
        "started": len(counted.measured),
        "answered": len(answered),
        "failed": len(counted.failed),
        "cut": len(counted.cut),
        "success_rate_percent": _percent(counted.success_share),
        "text_chars": _median(counted.measured["text_chars"]),
        "audio_duration_ms": _median(answered["audio_s"], 1000.0),
        "latency": summarise(end_to_end * 1000) if len(end_to_end) else None,
    }
    for name, column, scale in METRICS:
        found[name] = _metric(answered, column, scale)
    return found


def _median(column: pd.Series, scale: float = 1.0) -> float | None:
    values = column.dropna()
    return float(values.median()) * scale if len(values) else None


def _metric(answered: pd.DataFrame, column: str, scale: float) -> Figures:
    told = answered[answered[column].notna()]
    values, clusters = told[column].to_numpy(dtype=np.float64) * scale, told["cluster"].to_numpy()
    quantiles: dict[str, Figures] = {}
    for q in QUANTILES:
        quantiles[f"p{q * 100:g}"] = _quantile(quantile_interval(values, clusters, q))
    return {
        "n": len(values),
        "sessions": int(told["cluster"].nunique()),
        "mean": float(values.mean()) if len(values) else None,
        "least": float(values.min()) if len(values) else None,
        "greatest": float(values.max()) if len(values) else None,
        "quantiles": quantiles,
    }


def _quantile(found: Quantile) -> Figures:
    return {
        "value": found.value,
        "turns_needed": turns_needed(found.q),
        "low": found.low,
        "high": found.high,
        "open_low": found.open_low,
        "open_high": found.open_high,
        "too_few": found.too_few or None,
        "no_interval": found.no_interval or None,
    }


def _texts(counted: Counted) -> dict[str, Figures]:
    """Figures by text, the short texts first; beyond TEXTS_SHOWN the rarest are folded into one."""
    names = counted.measured["text_name"].value_counts()
    names = names[names > 0]
    shown = list(names.index if len(names) <= TEXTS_SHOWN else names.index[:TEXTS_SHOWN])
    found = {str(name): _figures(_of(counted, [name])) for name in shown}
    ordered = dict(sorted(found.items(), key=lambda item: (item[1]["text_chars"] or 0.0, item[0])))
    rest = [name for name in names.index if name not in shown]
    if rest:
        ordered[f"{OTHER} ({len(rest):,})"] = _figures(_of(counted, rest))
    return ordered


def _of(counted: Counted, texts: list[Any]) -> Counted:
    parts = (counted.measured, counted.answered, counted.failed, counted.cut)
    return Counted(*(part[part["text_name"].isin(texts)] for part in parts))


def _stalls(counted: Counted) -> Figures | None:
    """How often playback would stall, by how much is buffered before it begins."""
    told = counted.answered[counted.answered["min_prebuffer_s"].notna()]
    if told.empty:
        return None
    return {
        "n": len(told),
        "stalled_percent": {
            str(prebuffer): float((told[f"stall_count_{prebuffer}ms"] > 0).mean()) * 100
            for prebuffer in schema.PREBUFFERS_MS
        },
        "min_prebuffer_ms": _metric(told, "min_prebuffer_s", 1000.0),
    }


def _server(run: Run, counted: Counted) -> Figures | None:
    joined = server_join.join(run, counted)
    if joined is None:
        return None
    figures = {
        "client_ttfc_ms": "ttfc_s",
        "server_queue_wait_ms": "server_queue_wait_s",
        "server_ttfb_ms": "server_ttfb_s",
        "rest_ms": "rest_s",
    }
    if joined.one_clock:
        figures |= {"before_server_ms": "before_server_s", "after_server_ms": "after_server_s"}
    return {
        "sources": [asdict(source) for source in joined.sources],
        "joined": joined.joined,
        "only_client": joined.only_client,
        "only_server": joined.only_server,
        "repeated": joined.repeated,
        "one_clock": joined.one_clock,
        "figures": {name: _metric(joined.rows, column, 1000.0) for name, column in figures.items()},
    }

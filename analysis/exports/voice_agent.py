"""NVIDIA's voice-agent benchmark: a JSON file a client, `summary.json`, and its summary on the console.

Field names and units (seconds) are that benchmark's. What they hold here:

latency             `agent_onset_arrival_at - user_offset_at` of an answered turn of the measured window: arrival of the
                    audio in which the agent's answer to *this* turn begins, minus the user's last voiced sample. The
                    original stamps any message as the answer, and the end of the query after a sleep.
valid_latencies     latencies of `threshold` or more. Those below are its "reverse barge-ins"; true overlaps stand in
                    Cicada's own report.
num_turns           answered turns (those with a latency); failed turns are errors, turns we cut are neither.
glitch_detected     an answer ran dry for 20 ms or more, played as it arrived (prebuffer 0). Pauses the server meant,
                    the greeting and the warm-up do not count; in the original they do.
metrics_start_time  unix seconds: the measured window opened. In the original: the last client has started.
test_duration       seconds of the measured window: as asked for, else as it was.
timestamp           when the run ended, ISO 8601.
remark              of ours, in summary.json too, and only there where the target's model has random weights.

summary.json has the original's `config` and `results`. Its averages and P95 are over client averages (`*_client_*`,
the P95 by the original's rule: element floor(0.95 (n - 1)) of the sorted averages); `average_latency`, `p95_latency`,
`min_latency` and `max_latency`, which it lacks, are over turns (numpy's linear percentile).
"""

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd

from analysis.checks import target
from analysis.conversation import latency_s, summarise_conversations, threshold_s
from analysis.counting import Counted, agent_calls, count
from analysis.runs import ForeignRun, Run

GLITCH_S = 0.020

Result = dict[str, Any]


def export(run: Run, directory: Path) -> tuple[list[Path], str]:
    """Write `client_<stream_id>.json` for every client and `summary.json`; the paths, and the summary as text.

    Raises ForeignRun for a run without measured calls, OSError where the disk does not let us.
    """
    counted = agent_calls(count(run.turns))
    if counted.measured.empty:
        raise ForeignRun(f"{run.path} measured no calls to voice agents: there is nothing to export as voice_agent")
    clients, errors = client_results(run, counted), _errors(counted)
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for client in clients:
        path = directory / f"client_{_file_name(client['stream_id'])}.json"
        path.write_text(json.dumps(client, indent=2) + "\n", "utf-8")
        written.append(path)
    summary = summary_of(run, clients, errors) | _remark(run)
    path = directory / "summary.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")
    return [*written, path], console(run, summary, counted, clients)


def client_results(run: Run, counted: Counted) -> list[Result]:
    """One client's results each, in the benchmark's fields, by stream id."""
    measured = counted.measured
    names = measured["stream_id"].astype(object).fillna(measured["session"].astype(object))
    answered = counted.answered.assign(latency=latency_s(counted.answered), name=names)
    answered = answered[answered["latency"].notna()].sort_values("user_offset_at")
    by_client = {str(name): rows for name, rows in answered.groupby("name", sort=False)}
    limit_s, (started, duration_s, ended) = threshold_s(run), _window(run, measured)
    found = []
    for name in sorted({str(name) for name in names}):
        rows = by_client.get(name)
        latencies = [] if rows is None else [float(value) for value in rows["latency"]]
        valid = [value for value in latencies if value >= limit_s]
        longest_stall_s = 0.0 if rows is None else float(rows["stall_longest_s_0ms"].fillna(0.0).max())
        found.append(
            {
                "stream_id": name,
                "individual_latencies": latencies,
                "average_latency": _mean(latencies),
                "valid_latencies": valid,
                "valid_average_latency": _mean(valid),
                "threshold": limit_s,
                "num_turns": len(latencies),
                "num_valid_turns": len(valid),
                "reverse_barge_ins_count": len(latencies) - len(valid),
                "glitch_detected": longest_stall_s >= GLITCH_S,
                "timestamp": ended,
                "metrics_start_time": started,
                "test_duration": duration_s,
                **_remark(run),
            }
        )
    return found


def summary_of(run: Run, clients: list[Result], errors: dict[str, int]) -> Result:
    """The benchmark's summary.json of these clients; `errors`: failed turns by client."""
    told = [client for client in clients if client["individual_latencies"]]
    valid = [client for client in told if client["valid_latencies"]]
    averages = [client["average_latency"] for client in told]
    valid_averages = [client["valid_average_latency"] for client in valid]
    turns = [value for client in told for value in client["individual_latencies"]]
    glitched = [client["stream_id"] for client in clients if client["glitch_detected"]]
    early = [client["stream_id"] for client in clients if client["reverse_barge_ins_count"]]
    scenario = run.manifest.get("scenario") or {}
    hosts = str(run.manifest.get("host") or "").split()  # a run of several protocols has several
    where = urlsplit(next((host for host in hosts if host.startswith("ws")), ""))
    first = clients[0]
    return {
        "timestamp": first["timestamp"],
        "config": {
            "host": where.hostname,
            "port": where.port,
            "num_clients": len(clients),
            "client_start_delay": scenario.get("client_start_delay"),
            "test_duration": first["test_duration"],
            "threshold": first["threshold"],
            "metrics_start_time": first["metrics_start_time"],
        },
        "results": {
            "total_clients": len(clients),
            "total_turns": len(turns),
            "aggregate_average_latency": _mean(averages),
            "p95_client_latency": _p95_of_clients(averages),
            "min_client_latency": min(averages, default=None),
            "max_client_latency": max(averages, default=None),
            "average_latency": _mean(turns),
            "p95_latency": float(np.percentile(turns, 95)) if turns else None,
            "min_latency": min(turns, default=None),
            "max_latency": max(turns, default=None),
            "valid_results": {
                "clients_with_valid_data": len(valid),
                "total_valid_turns": sum(client["num_valid_turns"] for client in valid),
                "aggregate_valid_average_latency": _mean(valid_averages),
                "p95_valid_client_latency": _p95_of_clients(valid_averages),
                "min_valid_client_latency": min(valid_averages, default=None),
                "max_valid_client_latency": max(valid_averages, default=None),
            },
            "glitch_detection": {
                "clients_with_glitches": len(glitched),
                "total_clients": len(clients),
                "affected_client_ids": glitched,
            },
            "reverse_barge_in_detection": {
                "total_clients": len(clients),
                "total_reverse_barge_ins": sum(client["reverse_barge_ins_count"] for client in clients),
                "clients_with_reverse_barge_ins": len(early),
                "affected_client_ids": early,
            },
            "error_detection": {
                "total_clients": len(clients),
                "total_errors": sum(errors.values()),
                "clients_with_errors": len(errors),
                "client_error_counts": errors,
            },
        },
    }


def console(run: Run, summary: Result, counted: Counted, clients: list[Result]) -> str:
    """The benchmark's summary as people read it; without a result, why there is none."""
    config, results = summary["config"], summary["results"]
    lines = [f"Voice agent benchmark: {run.id} · {results['total_clients']} clients, {results['total_turns']} turns"]
    lines += _remark(run).values()
    if not results["total_turns"]:
        told = summarise_conversations(run, counted, lambda *_: {}) or {}
        cause = told["no_results"] or {
            "line": "no answer's onset was heard",
            "advice": "Check the server's log.",
            "top_failure": None,
        }
        lines.append(f"No results: {cause['line']}.")
        if top := cause["top_failure"]:
            lines.append(f"Most often ({top['turns']} turns): {top['error_kind']}: {top['example']}")
        lines.append(cause["advice"])
        return "\n".join(lines)
    lines += [
        _row("client", "turns", "average", "valid", "reverse barge-ins", "glitch"),
        *(
            _row(
                client["stream_id"],
                str(client["num_turns"]),
                _s(client["average_latency"]),
                _s(client["valid_average_latency"]),
                str(client["reverse_barge_ins_count"]),
                "yes" if client["glitch_detected"] else "no",
            )
            for client in clients[:CLIENTS_SHOWN]
        ),
    ]
    if len(clients) > CLIENTS_SHOWN:
        lines.append(f"... and {len(clients) - CLIENTS_SHOWN} more clients, each in a file of its own")
    valid, glitches = results["valid_results"], results["glitch_detection"]
    early, errors = results["reverse_barge_in_detection"], results["error_detection"]
    lines += [
        f"latency over turns:            average {_s(results['average_latency'])}, P95 {_s(results['p95_latency'])}, "
        f"min {_s(results['min_latency'])}, max {_s(results['max_latency'])}",
        f"latency over client averages:  average {_s(results['aggregate_average_latency'])}, "
        f"P95 {_s(results['p95_client_latency'])}, min {_s(results['min_client_latency'])}, "
        f"max {_s(results['max_client_latency'])}",
        f"valid turns (>= {config['threshold']:g} s):        {valid['total_valid_turns']} in "
        f"{valid['clients_with_valid_data']} clients, average {_s(valid['aggregate_valid_average_latency'])}",
        f"glitches (>= {GLITCH_S * 1000:.0f} ms):           {glitches['clients_with_glitches']} of "
        f"{glitches['total_clients']} clients",
        f"reverse barge-ins (< {config['threshold']:g} s):   {early['total_reverse_barge_ins']} in "
        f"{early['clients_with_reverse_barge_ins']} clients",
        f"errors:                        {errors['total_errors']} in {errors['clients_with_errors']} clients",
    ]
    return "\n".join(line.rstrip() for line in lines)


def _remark(run: Run) -> Result:
    words = target.remark(run)
    return {"remark": words} if words else {}


CLIENTS_SHOWN = 40


def _row(name: str, *cells: str) -> str:
    shown = name if len(name) <= 40 else f"{name[:37]}..."
    widths = (6, 10, 10, 18, 7)
    return f"  {shown:<40}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _s(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s"


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _p95_of_clients(averages: list[float]) -> float | None:
    return sorted(averages)[int((len(averages) - 1) * 0.95)] if averages else None


def _errors(counted: Counted) -> dict[str, int]:
    failed = counted.failed
    names = failed["stream_id"].astype(object).fillna(failed["session"].astype(object))
    return dict(sorted(Counter(str(name) for name in names).items()))


def _window(run: Run, measured: pd.DataFrame) -> tuple[float, float, str]:
    """Unix seconds at which the measured window opened, its length, and when the run ended (ISO 8601)."""
    began = float(measured["intended_wall_at"].min())
    last = float(measured["ended_wall_at"].fillna(measured["intended_wall_at"]).max())
    asked = (run.manifest.get("scenario") or {}).get("test_duration")
    ended = run.manifest.get("ended_wall_at") or last
    duration_s = float(asked) if isinstance(asked, int | float) else last - began
    return began, duration_s, datetime.fromtimestamp(float(ended), UTC).isoformat()


def _file_name(stream_id: str) -> str:
    """A stream id as a file name: it may hold anything a URL may."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in stream_id)[:120]

"""S1's JSON: the report of the PersonaPlex Benchmark Suite, with its keys; milliseconds, percent, ISO 8601.

What stands under them here (docs/metrics.md has the instants):

summary         a request is an iteration, or a turn where iterations have no numbers. Cut requests (we ended them) are
                in neither number, and counted beside them.
latency_ms      of successful requests, each list with its `n`; null where it is empty. `ttft` counts from the user's
                last voiced sample, which is S1's "request sent"; `ttft_from_handshake` and `session_setup` are of
                sessions that came up, set-up also where no turn followed; its `still_waiting` counts those that we
                ended before their handshake. `turn_taking*` are of requests that broke in on nobody, `interruption_*`
                of those that did.
throughput      tokens of answered turns, and handled requests, a second of `benchmark.duration_seconds`: from the first
                intended start to the last end; null where nothing was answered.
turn_taking     S1's band of 170-270 ms, judged as heard, and by arrival.
requests        one each, cut ones left out; a failed one has its error and no figure.
parts           of mode full: the same, but for requests, config and environment, of each mode by itself.

Not in S1's sample: `turn_taking`, `timestamps`, `config`, `environment`, `distrust`, `requests`, `parts`.
"""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import duplex_rows
from analysis.checks import reasons
from analysis.console import write_json
from analysis.counting import Counted, count, full_duplex, wall_s
from analysis.page_numbers import rate
from analysis.runs import ForeignRun, Run

NAMES = {
    "text": "Text Latency",
    "audio": "Audio",
    "turn_taking": "Turn-Taking",
    "interruption": "Interruption",
    "throughput": "Throughput",
    "full": "Full",
}
SOURCE = "S1: PersonaPlex Benchmark Suite, README (turn-taking target 170-270 ms)"

Block = dict[str, Any]


def export(run: Run, target: Path) -> tuple[list[Path], str]:
    """Write a run as one file: `target` if it ends in .json, else personaplex.json in it; its path, and a summary.

    Raises ForeignRun for a run without full-duplex sessions, OSError where the disk does not let us.
    """
    if "mode" not in run.turns:
        raise ForeignRun(f"{run.path} has no full-duplex sessions: there is nothing to export as personaplex")
    path = target if target.suffix == ".json" else target / "personaplex.json"
    found = results(run)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return [path], console(found)


def results(run: Run) -> Block:
    """The whole report, as plain data."""
    whole = count(run.turns)
    counted = full_duplex(whole)
    modes = duplex_rows.modes_of(counted)
    scenario = run.manifest.get("scenario")
    config: dict[str, Any] = scenario if isinstance(scenario, dict) else {}
    mode = config.get("mode") or (modes[0] if len(modes) == 1 else "full" if modes else None)
    found = _block(run, counted, mode, duplex_rows.asked_for(run))
    told = run.manifest.get("started_wall_at"), run.manifest.get("ended_wall_at")
    for key, at in zip(("started", "ended"), told, strict=True):
        found["timestamps"][key] = _iso(at) or found["timestamps"][key]
    found |= {
        "config": _without_credentials(config),
        "environment": {
            "mock": run.manifest.get("mock"),
            "recordings": run.manifest.get("recordings"),
            "lost_iterations": len(run.manifest.get("lost_iterations") or ()),  # with their workers
            "target": _without_credentials(run.manifest.get("host")),
            "dialects": sorted(str(name) for name in counted.measured["dialect"].dropna().unique()),
            "versions": run.manifest.get("versions"),
            "machine": run.manifest.get("machine"),
        },
        "distrust": [
            {"severity": reason.severity, "code": reason.code, "line": reason.line} for reason in reasons(run, whole)
        ],
        "requests": _requests(run, counted),
    }
    if mode == "full":
        found["parts"] = {
            name: _block(run, duplex_rows.of_mode(counted, name), name, duplex_rows.asked_for(run, name))
            for name in modes
        }
    return found


def _block(run: Run, counted: Counted, mode: str | None, asked_for: pd.DataFrame) -> Block:
    """What is told of a run, and of each of its parts. asked_for: its sessions, also those that came to no turn."""
    asked = duplex_rows.requests_of(counted)
    wall, answered = wall_s(counted), asked.answered
    began, ended = (
        (counted.measured["intended_wall_at"].min(), counted.measured["ended_wall_at"].max())
        if len(counted.measured)
        else (None, None)
    )
    share = asked.success_share
    return {
        "benchmark": {"name": name_of(mode), "duration_seconds": _rounded(wall)},
        "summary": {
            "total_requests": asked.handled,
            "successful_requests": len(answered),
            "failed_requests": len(asked.failed),
            "cut_requests": len(asked.cut),
            "success_rate": None if share is None else _rounded(share * 100),
        },
        "latency_ms": _latencies(answered, duplex_rows.sessions_of(run, counted.measured), asked_for),
        "throughput": {
            "tokens_per_second": _rounded(duplex_rows.tokens_a_second(counted)),
            "requests_per_second": _rounded(duplex_rows.requests_a_second(counted)),
        },
        "turn_taking": _turn_taking(duplex_rows.asked(answered)),
        "timestamps": {"started": _iso(began), "ended": _iso(ended)},
    }


def name_of(mode: str | None) -> str:
    """The benchmark's name: `PersonaPlex Text Latency Benchmark`."""
    return " ".join(part for part in ("PersonaPlex", NAMES.get(mode or "", ""), "Benchmark") if part)


def _latencies(answered: pd.DataFrame, sessions: pd.DataFrame, asked_for: pd.DataFrame) -> Block:
    taken, broken_in = duplex_rows.asked(answered), duplex_rows.broken_in(answered)
    lists = {
        "ttft": answered["ttft_s"],
        "ttft_from_handshake": duplex_rows.ttft_from_handshake_s(sessions),
        "itl": answered["itl_s"],
        "e2e": answered["e2e_s"],
        "turn_taking": taken["floor_transfer_offset_s"],
        "turn_taking_by_arrival": duplex_rows.by_arrival_s(taken),
        "turn_taking_by_stream_position": taken["stream_transfer_offset_s"],
        "session_setup": duplex_rows.setup_s(asked_for),
        "interruption_stop": broken_in["time_to_silence_s"],
        "interruption_response": broken_in["floor_transfer_offset_s"],
    }
    found = {name: _statistics(values) for name, values in lists.items()}
    found["session_setup"]["still_waiting"] = len(duplex_rows.still_waiting_s(asked_for))
    return found


def _statistics(seconds: pd.Series) -> Block:
    """Mean and numpy's linear percentiles, ms; null where there is nothing."""
    values = seconds.to_numpy(dtype=np.float64, na_value=np.nan) * 1000
    values = values[np.isfinite(values)]
    if not len(values):
        return {**dict.fromkeys(("mean", "median", "p90", "p95", "p99")), "n": 0}
    median, p90, p95, p99 = (_rounded(float(value)) for value in np.percentile(values, (50, 90, 95, 99)))
    mean = _rounded(float(values.mean()))
    return {"mean": mean, "median": median, "p90": p90, "p95": p95, "p99": p99, "n": len(values)}


def _turn_taking(answered: pd.DataFrame) -> Block:
    low, high = duplex_rows.BAND_S
    return {
        "band_ms": [low * 1000, high * 1000],
        "source": SOURCE,
        "heard": duplex_rows.band_shares(answered["floor_transfer_offset_s"]),
        "by_arrival": duplex_rows.band_shares(duplex_rows.by_arrival_s(answered)),
    }


def _requests(run: Run, counted: Counted) -> list[Block]:
    asked = duplex_rows.requests_of(counted)
    sessions = duplex_rows.sessions_of(run, counted.measured)
    setup_s = dict(zip(sessions["cluster"], sessions["setup_s"], strict=True))
    answered = set(asked.answered.index)
    rows = asked.measured[~asked.measured.index.isin(asked.cut.index)].sort_values("intended_wall_at", kind="stable")
    return [_request(row, row.Index in answered, setup_s.get(row.cluster)) for row in rows.itertuples()]


def _request(row: Any, success: bool, setup_s: float | None) -> Block:
    told = {
        "ttft_ms": _ms(row.ttft_s),
        "itl_ms": _ms(row.itl_s),
        "e2e_ms": _ms(row.e2e_s),
        "turn_taking_ms": None if row.barge_in else _ms(row.floor_transfer_offset_s),
        "interruption_stop_ms": _ms(row.time_to_silence_s) if row.barge_in else None,
        "interruption_response_ms": _ms(row.floor_transfer_offset_s) if row.barge_in else None,
        "tokens": None if pd.isna(row.tokens) else int(row.tokens),
        "tokens_per_second": None if pd.isna(row.tokens_per_s) else _rounded(row.tokens_per_s),
        "session_setup_ms": None if setup_s is None else _ms(setup_s),
    }
    return {
        "id": _text(row.request_id),
        "mode": _text(row.mode),
        "iteration": None if pd.isna(row.iteration) else int(row.iteration),
        "success": success,
        "error_kind": None if success else _text(row.error_kind) or _text(row.outcome),
        "error": None if success else _text(row.error) or _text(row.error_kind) or _text(row.outcome),
        **(told if success else dict.fromkeys(told)),
        "started_at": _iso(row.intended_wall_at),
        "host": _text(row.host),
    }


def console(found: Block) -> str:
    """The report in short, as people read it."""
    summary, rates = found["summary"], found["throughput"]
    succeeded = "-" if summary["success_rate"] is None else f"{summary['success_rate']:.1f} %"
    mocked = ", against the bundled mock server" if found["environment"]["mock"] else ""
    recordings = found["environment"]["recordings"]
    spoken = f", {recordings.get('source')} recordings" if isinstance(recordings, dict) else ""
    lines = [
        f"{found['benchmark']['name']}: {_told(found['benchmark']['duration_seconds'])} s{mocked}{spoken}",
        f"{summary['successful_requests']:,} of {summary['total_requests']:,} requests succeeded ({succeeded}), "
        f"{summary['cut_requests']:,} cut · {rate(rates['tokens_per_second'])} tokens/s, "
        f"{rate(rates['requests_per_second'])} requests/s",
        f"  {'ms':<34}" + "".join(f"{head:>10}" for head in ("n", *COLUMNS)),
    ]
    for name, told in found["latency_ms"].items():
        cells = "".join(f"{_told(told[column]):>10}" for column in COLUMNS)
        lines.append(f"  {name:<34}{told['n']:>10,}{cells}")
    for name, part in found.get("parts", {}).items():
        ttft, taking = part["latency_ms"]["ttft"]["median"], part["latency_ms"]["turn_taking"]["median"]
        lines.append(
            f"  {name}: {part['summary']['successful_requests']:,} of {part['summary']['total_requests']:,}, "
            f"median TTFT {_told(ttft)} ms, turn-taking {_told(taking)} ms, "
            f"{rate(part['throughput']['requests_per_second'])} requests/s"
        )
    heard = found["turn_taking"]["heard"]
    if heard["n"]:
        lies = "lies" if heard["median_inside"] else "does not lie"
        lines.append(
            f"turn-taking: the median as heard, {_told(heard['median_ms'])} ms, {lies} in S1's band of 170-270 ms; "
            f"{heard['inside_percent']:.1f} % of {heard['n']:,} do"
        )
    lines += [f"{one['severity'].upper()} {one['code']}: {one['line']}" for one in found["distrust"]]
    return "\n".join(lines)


COLUMNS = ("mean", "median", "p90", "p95", "p99")


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _ms(seconds: float) -> float | None:
    return None if pd.isna(seconds) else _rounded(float(seconds) * 1000)


def _rounded(value: float | None) -> float | None:
    """To a microsecond of a millisecond figure: further digits are noise of the floats."""
    return None if value is None else round(float(value), 3)


def _text(value: Any) -> str | None:
    return None if pd.isna(value) else str(value)


def _iso(at: Any) -> str | None:
    """Unix seconds as ISO 8601, UTC."""
    if not isinstance(at, int | float) or pd.isna(at):
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def _without_credentials(value: Any) -> Any:
    """Addresses in it without passwords, and without the values of their queries."""
    if isinstance(value, dict):
        return {key: _without_credentials(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_credentials(part) for part in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"(//[^\s?]+\?)\S+", r"\1[redacted]", re.sub(r"//[^/\s]+@", "//[redacted]@", value))

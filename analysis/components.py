"""S3's component table: per client, over all calls, over clients. Knows figures of services; nothing of logs or turns.

A call is one figure. Seconds in, milliseconds out (tokens a second stay what they are).
"""

from __future__ import annotations  # array[float] is known to type checkers only before Python 3.12

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A column of the table: S3's name for it, its key in report.json, the figure it shows, and its scale."""

    key: str
    title: str
    component: str
    metric: str
    scale: float = 1000.0


KINDS = (
    Kind("llm_ttfb_ms", "LLM TTFB", "llm", "ttfb"),
    Kind("tts_ttfb_ms", "TTS TTFB", "tts", "ttfb"),
    Kind("asr_ms", "ASR Lat", "asr", "compute_latency"),
    Kind("asr_ttfb_ms", "ASR TTFB*", "asr", "ttfb_with_vad_wait"),
    Kind("llm_first_sentence_ms", "LLM 1st", "llm", "first_sentence"),
    Kind("llm_tokens_per_s", "tokens/s", "llm", "tokens_per_s", 1.0),
)
BY_METRIC = {(kind.component, kind.metric): kind for kind in KINDS}
# What counts as a call of each service. Where a server logs no compute latency, its ASR's TTFB lines are counted.
CALLS = {"llm": ("llm_ttfb_ms",), "tts": ("tts_ttfb_ms",), "asr": ("asr_ms", "asr_ttfb_ms")}
VAD_NOTE = "* counts from the end of speech: the wait of the voice activity detector is in it"


@dataclass(slots=True)
class Tally:
    """Figures by client and kind, 8 bytes each."""

    clients: dict[str, dict[str, array[float]]] = field(default_factory=dict)

    def add(self, client: str, component: str, metric: str, value: float) -> bool:
        """Count a figure; False if the table does not show its kind."""
        kind = BY_METRIC.get((component, metric))
        if kind is None:
            return False
        kinds = self.clients.setdefault(client, {})
        values = kinds.get(kind.key)
        if values is None:
            values = kinds[kind.key] = array("d")
        values.append(value * kind.scale)
        return True

    def summary(self) -> Figures:
        """The table as data: `clients` (averages and calls), `overall` (average and p95 over calls; over clients)."""
        overall: dict[str, Figures | None] = {}
        for kind in KINDS:
            each = [np.frombuffer(kinds[kind.key]) for kinds in self.clients.values() if kind.key in kinds]
            if not each:
                overall[kind.key] = None
                continue
            means, calls = np.array([values.mean() for values in each]), np.concatenate(each)
            overall[kind.key] = {
                "calls": len(calls),
                "clients": len(each),
                "mean": float(calls.mean()),
                "p95_calls": float(np.percentile(calls, 95)),
                "mean_of_clients": float(means.mean()),
                "p95_of_clients": float(np.percentile(means, 95)),
            }
        clients = {name: _of_client(kinds) for name, kinds in sorted(self.clients.items(), key=_natural)}
        calls_of = {service: sum(client["calls"][service] for client in clients.values()) for service in CALLS}
        return {"clients": clients, "overall": overall, "calls": calls_of}


def _of_client(kinds: Mapping[str, array[float]]) -> Figures:
    found: Figures = {
        kind.key: float(np.mean(np.frombuffer(kinds[kind.key]))) if kind.key in kinds else None for kind in KINDS
    }
    found["calls"] = {service: max(len(kinds.get(key, ())) for key in keys) for service, keys in CALLS.items()}
    return found


def _natural(item: tuple[str, Any]) -> tuple[int, str]:
    """#2 before #10, and names of one length in their order."""
    return len(item[0]), item[0]


# ------------------------------------------------------------------------------------------------------------ the table


def shown_kinds(summary: Figures) -> list[Kind]:
    """The columns there is anything to show in. S3's own stay, so that a missing figure is seen to be missing."""
    extra = {"asr_ttfb_ms"}
    return [kind for kind in KINDS if kind.key not in extra or summary["overall"][kind.key]]


def table(summary: Figures, most: int) -> Table:
    """Clients (at most `most`, those with the slowest LLM), then the overall rows."""
    kinds = shown_kinds(summary)
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    made.add_column("\nclient", no_wrap=True, max_width=32, min_width=15, overflow="ellipsis")
    for kind in kinds:
        made.add_column(
            kind.title.replace(" ", "\n", 1) if " " in kind.title else f"\n{kind.title}", justify="right", no_wrap=True
        )
    made.add_column("Calls\nLLM", justify="right", no_wrap=True)
    made.add_column("\nTTS", justify="right", no_wrap=True)
    made.add_column("\nASR", justify="right", no_wrap=True)
    clients = summary["clients"]
    names = list(clients)
    if len(names) > most:
        slowest = sorted(names, key=lambda name: -(clients[name]["llm_ttfb_ms"] or 0.0))[:most]
        names = [name for name in names if name in set(slowest)]
    for place, name in enumerate(names):
        row = clients[name]
        cells = [_cell(row[kind.key]) for kind in kinds] + [f"{row['calls'][service]:,}" for service in CALLS]
        made.add_row(Text(name), *cells, end_section=place == len(names) - 1)
    overall, calls = summary["overall"], [f"{summary['calls'][service]:,}" for service in CALLS]
    rows = {
        "average": ("mean", "bold"),
        "P95 over calls": ("p95_calls", "bold"),
        "mean of clients": ("mean_of_clients", "dim"),
        "P95 of clients": ("p95_of_clients", "dim"),
    }
    for title, (key, style) in rows.items():
        cells = [_cell(overall[kind.key][key] if overall[kind.key] else None) for kind in kinds]
        made.add_row(title, *cells, *(calls if key == "mean" else [""] * len(calls)), style=style)
    return made


def notes(summary: Figures, most: int) -> list[str]:
    """What one must know to read the table."""
    told = []
    if len(summary["clients"]) > most:
        told.append(f"{most} of {len(summary['clients']):,} clients are shown, those with the slowest LLM.")
    if summary["overall"]["asr_ttfb_ms"]:
        told.append(f"ASR TTFB{VAD_NOTE}.")
    return told


def _cell(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"

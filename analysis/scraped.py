"""What the target's own Prometheus endpoints said during a run: queues, batches, GPUs. Judges nothing.

Names of metrics as their sources give them: vLLM `vllm/v1/metrics/loggers.py` (before: `gpu_cache_usage_perc`), NVIDIA
"Observability for NIM for LLMs", Triton `docs/user_guide/metrics.md`, dcgm-exporter `etc/default-counters.csv`, and the
bundled server, whose trace tells of its GPUs in the same names (traced_gpus.py).
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.runs import read_table
from workers.samples import shards
from workers.samples.logs import ForeignLog


@dataclass(frozen=True, slots=True)
class Known:
    """A metric whose meaning is known: `value * scale` is in the unit of its role.

    shown: what one of its series is called, and component: which part of the target it belongs to (asr, llm, tts, a
    Triton model, or ""), both with {labels}. per: both are counters, and the figure is this one's rise over that one's.
    most: more is no measurement (DCGM's blanks: 2147483632 and up, 140737488355328.0 and up of what has a fraction,
    9223372036854775792 and up).
    """

    metric: str
    shown: str
    component: str = ""
    scale: float = 1.0
    per: str | None = None
    most: float = math.inf


_MIB = 2.0**20
_DCGM_BLANK = 2147483632 - 1

# Roles, and in each the metrics that play it; of two that say the same of the same, the first counts.
ROLES: dict[str, tuple[Known, ...]] = {
    "queue_depth": (  # requests that wait
        Known("gpu_server_stage_waiting", "{stage}", "{stage}"),
        Known("gpu_server_queue_depth", "speech", "tts"),
        Known("vllm:num_requests_waiting", "{model_name}", "llm"),
        Known("num_requests_waiting", "{model_name}", "llm"),  # NIM
        Known("nv_inference_pending_request_count", "{model}", "{model}"),
    ),
    "running": (  # requests that are being served
        Known("gpu_server_stage_busy", "{stage}", "{stage}"),
        Known("gpu_server_active_streams", "speech", "tts"),
        Known("vllm:num_requests_running", "{model_name}", "llm"),
        Known("num_requests_running", "{model_name}", "llm"),  # NIM
    ),
    "batch_size": (  # inferences an execution, since the scrape before
        Known("nv_inference_count", "{model}", "{model}", per="nv_inference_exec_count"),
    ),
    "gpu_busy_share": (  # 0 to 1
        Known("DCGM_FI_DEV_GPU_UTIL", "GPU {gpu}", scale=0.01, most=100.0),
        Known("nv_gpu_utilization", "GPU {gpu_uuid}", most=1.0),
        Known("gpu_server_gpu_utilisation_ratio", "GPU {gpu} {name}", most=1.0),
    ),
    "gpu_memory_bytes": (
        Known("DCGM_FI_DEV_FB_USED", "GPU {gpu}", scale=_MIB, most=_DCGM_BLANK),
        Known("nv_gpu_memory_used_bytes", "GPU {gpu_uuid}"),
        Known("gpu_server_gpu_memory_used_bytes", "GPU {gpu} {name}"),
    ),
    "gpu_power_w": (
        Known("DCGM_FI_DEV_POWER_USAGE", "GPU {gpu}", most=_DCGM_BLANK),
        Known("nv_gpu_power_usage", "GPU {gpu_uuid}"),
        Known("gpu_server_gpu_power_watts", "GPU {gpu} {name}"),
    ),
    "gpu_sm_clock_hz": (
        Known("DCGM_FI_DEV_SM_CLOCK", "GPU {gpu}", scale=1e6, most=_DCGM_BLANK),
        Known("gpu_server_gpu_sm_clock_hertz", "GPU {gpu} {name}"),
    ),
    "kv_cache_share": (  # 0 to 1, for all that its metrics are called perc
        Known("vllm:kv_cache_usage_perc", "{model_name}", "llm", most=1.0),
        Known("vllm:gpu_cache_usage_perc", "{model_name}", "llm", most=1.0),
        Known("gpu_cache_usage_perc", "{model_name}", "llm", most=1.0),  # NIM
    ),
}

# How a role is called, and what makes its unit the one that is shown.
TITLES: dict[str, tuple[str, float, str]] = {
    "queue_depth": ("requests waiting", 1.0, ""),
    "running": ("requests being served", 1.0, ""),
    "batch_size": ("batch size", 1.0, ""),
    "gpu_busy_share": ("GPU busy", 100.0, " %"),
    "gpu_memory_bytes": ("GPU memory", 1e-9, " GB"),
    "gpu_power_w": ("GPU power", 1.0, " W"),
    "gpu_sm_clock_hz": ("GPU SM clock", 1e-6, " MHz"),
    "kv_cache_share": ("KV cache used", 100.0, " %"),
}

COLUMNS = ("at", "name", "component", "value")

_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_ESCAPED = re.compile(r"\\(.)")
_PLACE = re.compile(r"^https?://(?:[^/]*@)?")


def read_scraped(run_dir: Path) -> pd.DataFrame:
    """The rows that a run's endpoints and traces gave, columns as in schema.METRICS; none where nothing was scraped.

    Makes the table first where it is missing. A log that is none of ours has no rows here: `open_run` names it.
    """
    try:
        shards.seal_metrics(run_dir)
    except ForeignLog:
        pass
    return read_table(run_dir / "server", "metrics")


def within(frame: pd.DataFrame, spans: Mapping[Any, Sequence[tuple[float, float]]]) -> list[dict[str, Any]]:
    """Every known series, with its least, mean and most in each of the named spans (begin and end, unix seconds).

    `frame` is read_scraped's. Values as shown (see TITLES); a span without a scrape is left out.
    """
    found = []
    for role, (_, scale, _) in TITLES.items():
        for name, values in series(frame, role).groupby("name", sort=True):
            told = {}
            for span, pieces in spans.items():
                inside = values.loc[_any_of(values["at"], pieces), "value"] * scale
                if len(inside):
                    told[span] = {
                        "least": float(inside.min()),
                        "mean": float(inside.mean()),
                        "most": float(inside.max()),
                        "scrapes": len(inside),
                    }
            if told:
                found.append({"role": role, "name": str(name), "spans": told})
    return found


def _any_of(at: pd.Series, pieces: Sequence[tuple[float, float]]) -> pd.Series:
    inside = pd.Series(False, index=at.index)
    for begins, ends in pieces:
        inside |= at.between(begins, ends)
    return inside


def series(frame: pd.DataFrame, role: str) -> pd.DataFrame:
    """What is known of a role: at (unix seconds), name (which stage, model or GPU of which endpoint), component, value.

    `frame` is read_scraped's. One unit a role: counts, shares of 1, bytes. Sorted by name, then time.
    """
    parts = [part for known in ROLES[role] for part in _series_of(frame, known)]
    if not parts:
        empty = {name: pd.Series(dtype="float64" if name in ("at", "value") else "str") for name in COLUMNS}
        return pd.DataFrame(empty)
    whole = pd.concat(parts, ignore_index=True).drop_duplicates(["at", "name"])
    return whole.sort_values(["name", "at"], kind="stable", ignore_index=True)


def _series_of(frame: pd.DataFrame, known: Known) -> Iterator[pd.DataFrame]:
    rows = frame[frame["metric"] == known.metric]
    for (endpoint, text), group in rows.groupby(["endpoint", "labels"], observed=True, sort=False):
        siblings = rows.loc[rows["endpoint"] == endpoint, "labels"].unique()
        labels = read_labels(str(text))
        values = group[["at", "value"]]
        if known.per is not None:
            others = frame[(frame["metric"] == known.per) & (frame["endpoint"] == endpoint) & (frame["labels"] == text)]
            values = _risen(values, others[["at", "value"]])
        values = values[values["value"] <= known.most]
        yield pd.DataFrame(
            {
                "at": values["at"].to_numpy(),
                "name": _name(known, labels, [read_labels(str(one)) for one in siblings], str(endpoint)),
                "component": _filled(known.component, labels),
                "value": values["value"].to_numpy() * known.scale,
            }
        )


def _risen(counter: pd.DataFrame, per: pd.DataFrame) -> pd.DataFrame:
    """How much a counter rose for each rise of another between two scrapes; none where that did not rise."""
    both = counter.merge(per, on="at", suffixes=("", "_per")).sort_values("at")
    rise, per_rise = both["value"].diff(), both["value_per"].diff()
    sound = (per_rise > 0) & (rise >= 0)  # a counter that fell was started anew
    return pd.DataFrame({"at": both["at"][sound], "value": rise[sound] / per_rise[sound]})


def _name(known: Known, labels: dict[str, str], siblings: list[dict[str, str]], endpoint: str) -> str:
    """What this series is called; where siblings are called the same, with the labels in which they differ."""
    shown = _filled(known.shown, labels) or known.metric
    alike = [one for one in siblings if (_filled(known.shown, one) or known.metric) == shown]
    differing = [key for key in sorted(labels) if any(one.get(key) != labels[key] for one in alike)]
    if differing:
        shown += f" ({', '.join(f'{key} {labels[key]}' for key in differing)})"
    return f"{shown}, {_PLACE.sub('', endpoint).removesuffix('/metrics')}"


def _filled(template: str, labels: dict[str, str]) -> str:
    values: defaultdict[str, Any] = defaultdict(str, labels)
    return template.format_map(values).strip()


def read_labels(text: str) -> dict[str, str]:
    """Labels of a row (`k="v",...`), unescaped."""
    return {key: _ESCAPED.sub(_unescaped, value) for key, value in _LABEL.findall(text)}


def _unescaped(found: re.Match[str]) -> str:
    return "\n" if found[1] == "n" else found[1]

"""Take the GPUs' samples of a run's time out of the bundled server's trace, as if its /metrics had been scraped.

They become rows of the `metrics` table, so whatever is told of scraped GPUs is told of these. Judges nothing.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis.runs import Run, clock_offsets
from analysis.server_sources import shard_name
from gpu_server.trace import GpuSample, TraceHeader, parse_gpu, parse_trace
from workers.samples import shards

# A column of a sample, and the gauge of the server's /metrics that says the same.
GAUGES = {
    "utilisation_ratio": "gpu_server_gpu_utilisation_ratio",
    "memory_used_bytes": "gpu_server_gpu_memory_used_bytes",
    "memory_total_bytes": "gpu_server_gpu_memory_total_bytes",
    "power_w": "gpu_server_gpu_power_watts",
    "sm_clock_hz": "gpu_server_gpu_sm_clock_hertz",
    "memory_clock_hz": "gpu_server_gpu_memory_clock_hertz",
    "temperature_c": "gpu_server_gpu_temperature_celsius",
}


def import_gpus(run: Run, path: Path) -> int:
    """Write the samples taken while the run went on into its `server/metrics/`; how many there were.

    Whose they are is told by time alone. A server and a worker of one boot share a monotonic clock; elsewhere the time
    is as exact as the wall clocks agree. Raises OSError where the trace cannot be read.
    """
    begins, ends = _span(run)
    offsets = _offsets(run)
    samples = 0
    rows: list[list[Any]] = []
    for header, sample in _samples(path):
        at = _number(sample["at"])
        if header is None or at is None:
            continue
        at += offsets.get(header.get("boot_id") or "", header["wall_at"] - header["monotonic_at"])
        if begins <= at <= ends:
            samples += 1
            rows += _rows(sample, at, run.id, str(path))
    shard = run.path / "server" / "metrics" / shard_name(path)
    if rows or shard.exists():
        with shards.ShardWriter(shard, "metrics") as writer:
            writer.write(_columns(rows))
    return samples


def _samples(path: Path) -> Iterator[tuple[TraceHeader | None, GpuSample]]:
    """Each sample with the header of the process that took it: a monotonic clock begins anew with its host."""
    header: TraceHeader | None = None
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if '"cicada_trace"' in line:
                header = parse_trace([line])[0] or header
            for sample in parse_gpu([line]):
                yield header, sample


def _offsets(run: Run) -> dict[str, float]:
    """Wall clock - monotonic clock of each boot that workers ran in, as their instants are laid on the wall clock."""
    offsets = clock_offsets({worker: log.facts for worker, log in run.sealed.logs.items()})
    boots = {worker: log.facts.get("boot_id") for worker, log in run.sealed.logs.items()}
    return {str(boot): offsets[worker] for worker, boot in boots.items() if boot}


def _span(run: Run) -> tuple[float, float]:
    """From when to when the run went on, unix seconds: as the manifest has it, and as its turns do."""
    told = [_number(run.manifest.get(key)) for key in ("started_wall_at", "ended_wall_at")]
    begins = [told[0], float(run.turns["intended_wall_at"].min())]
    ends = [told[1], float(run.turns["ended_wall_at"].max()), float(run.turns["intended_wall_at"].max())]
    known_begins, known_ends = ([at for at in ats if at is not None and math.isfinite(at)] for ats in (begins, ends))
    return min(known_begins, default=math.inf), max(known_ends, default=-math.inf)


def _rows(sample: GpuSample, at: float, run: str, source: str) -> Iterator[list[Any]]:
    labels = f'gpu="{_escaped(sample["gpu"])}",name="{_escaped(sample["name"])}"'
    told: dict[str, Any] = {**sample}
    for column, metric in GAUGES.items():
        if (value := _number(told[column])) is not None:
            yield [run, source, metric, labels, "gauge", value, at]


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _escaped(text: Any) -> str:
    """A label's value as Prometheus writes it."""
    return str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _columns(rows: list[list[Any]]) -> list[Any]:
    schema = shards.arrow_schema("metrics")
    columns = zip(*rows, strict=True) if rows else ([] for _ in schema)
    return [pa.array(values, column.type) for values, column in zip(columns, schema, strict=True)]

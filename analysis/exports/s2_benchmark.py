"""`python -m analysis.exports.s2_benchmark RUN`: requests of a run in the JSON that gpu_server.baseline writes, S2's.

What its fields hold here:

latency             `e2e_s` of answered requests of the measured window, from the intended start to the last chunk, ms.
rtf                 mean latency / mean audio duration of a text; in `summary`, all time / all audio.
streaming           first chunk and end as the client has them; chunks are arrivals at its socket.
vram_peak_gb        null: a client cannot know it. max_vram_gb: the peak of what the target's own metrics said, if
                    they were scraped (--metrics): all that the GPU held, whoever held it.
gpu, cuda_version   null: they are the target's.
weights             random where the target says so; null: a client cannot know.
measurement_runs    answered requests of the text that has fewest.
warmup_runs         requests of the warm-up; `batch_size`: users at a time.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.checks.target import remark
from analysis.console import say, write_json
from analysis.counting import Counted, count, requests
from analysis.runs import TURN_COLUMNS, ForeignRun, Run, open_run
from analysis.scraped import read_scraped, series
from analysis.stats import rtf, summarise

TEXTS = ("ultra_short", "short", "medium", "long", "telephony_typical")
RUNS, WARM_UPS = 20, 5

Result = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write one run's benchmark file; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        run = open_run(options.run, (*TURN_COLUMNS, "chunks"))
        found = benchmark(run, options.type, options.engine)
        path = _write(found, options.out)
    except ForeignRun as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or options.out}: {error.strerror or error}")
    say("\n".join([*console(found), f"Results saved to: {path}"]))
    return 0


def benchmark(run: Run, benchmark_type: str, engine: str) -> Result:
    """The run in S2's schema. Raises ForeignRun where no standard text was answered."""
    counted = requests(count(run.turns))
    answered = counted.answered[counted.answered["e2e_s"].notna() & (counted.answered["audio_s"] > 0)]
    by_text = {name: answered[answered["text_name"] == name] for name in TEXTS}
    by_text = {name: rows for name, rows in by_text.items() if len(rows)}
    if not by_text:
        raise ForeignRun(f"{run.path}: no request for a standard text was answered: there is nothing to export")
    spoken = pd.concat(list(by_text.values()))
    began = float(run.manifest.get("started_wall_at") or counted.measured["intended_wall_at"].min())
    memory = series(read_scraped(run.path), "gpu_memory_bytes")["value"]
    words = remark(run)
    found: Result = {
        "metadata": {
            "timestamp": f"{datetime.fromtimestamp(began, UTC):%Y-%m-%dT%H:%M:%SZ}",
            "benchmark_type": benchmark_type,
            "warmup_runs": int((run.turns["phase"] == "warm_up").sum()),
            "measurement_runs": min(len(rows) for rows in by_text.values()),
        },
        "configuration": {
            **dict.fromkeys(("gpu", "gpu_memory_gb", "cuda_version", "pytorch_version")),
            "model": engine,
            "optimization": benchmark_type,
            "batch_size": run.manifest.get("users"),
            "weights": "random" if words else None,
            "host": run.manifest.get("host"),
        },
        "results": {name: _text(name, rows, counted) for name, rows in by_text.items()},
        "summary": {
            "overall_mean_ms": _ms(spoken["e2e_s"].mean()),
            "overall_p95_ms": _ms(np.percentile(spoken["e2e_s"], 95)),
            "overall_rtf": _rtf(spoken),
            "max_vram_gb": round(float(memory.max()) / 1e9, 2) if len(memory) else None,
            "streaming": _streaming(spoken),
        },
        "notes": [*([words] if words else []), f"measured by a client, run {run.id}"],
    }
    if not run.finished:
        found["metadata"]["incomplete"] = "nobody closed the run"
    found["validation"] = validation(found)
    return found


def _text(name: str, rows: pd.DataFrame, counted: Counted) -> Result:
    audio_s = float(rows["audio_s"].mean())
    return {
        "text_name": name,
        "text_length_words": WORDS[name],
        "audio_samples": round(audio_s * 24_000),
        "audio_duration_ms": round(audio_s * 1000, 2),
        "latency": {key: round(value, 2) for key, value in summarise(rows["e2e_s"] * 1000).items()},
        "rtf": _rtf(rows),
        "vram_peak_gb": None,
        "runs": len(rows),
        "failed_runs": int((counted.failed["text_name"] == name).sum()),
        "streaming": _streaming(rows),
    }


WORDS = {"ultra_short": 2, "short": 13, "medium": 26, "long": 46, "telephony_typical": 35}


def _streaming(rows: pd.DataFrame) -> dict[str, float]:
    return {
        "ttfc_mean_ms": _ms(rows["ttfc_s"].mean()),
        "ttfc_p95_ms": _ms(np.percentile(rows["ttfc_s"], 95)),
        "total_mean_ms": _ms(rows["e2e_s"].mean()),
        "total_p95_ms": _ms(np.percentile(rows["e2e_s"], 95)),
        "avg_chunks": round(float(rows["chunks"].mean()), 2),
    }


def _rtf(rows: pd.DataFrame) -> float:
    return round(rtf(float(rows["e2e_s"].sum()) * 1000, round(float(rows["audio_s"].sum()) * 24_000)), 3)


def _ms(seconds: float) -> float:
    return round(float(seconds) * 1000, 2)


def validation(found: Result) -> list[Result]:
    """S2's nine items, as far as a client can know them. done: None where it cannot."""
    metadata, results, summary = found["metadata"], found["results"], found["summary"]
    missing = [name for name in TEXTS if name not in results]
    there = "not applicable: the model runs in the target"
    vram = summary["max_vram_gb"]
    return [
        _check("GPU memory cleared before each run", None, there),
        _check(
            f"Warmup phase completed ({WARM_UPS} runs)",
            metadata["warmup_runs"] >= WARM_UPS,
            f"{metadata['warmup_runs']} requests",
        ),
        _check(
            f"Sufficient measurement runs ({RUNS}+)",
            metadata["measurement_runs"] >= RUNS,
            f"{metadata['measurement_runs']} runs a text",
        ),
        _check("torch.cuda.synchronize() called for accurate timing", None, there),
        _check("Results saved as JSON with timestamp", True, metadata["timestamp"]),
        _check("Comparison table generated", False, "a client does not know the target's GPU: nothing is comparable"),
        _check("All test texts benchmarked", not missing, f"missing: {', '.join(missing)}" if missing else "all five"),
        _check("RTF calculated correctly", True, "mean latency / audio duration, each text"),
        _check(
            "VRAM usage recorded",
            vram is not None,
            "peak of what was scraped" if vram is not None else "not scraped: --metrics URL",
        ),
    ]


def _check(item: str, done: bool | None, found: str) -> Result:
    return {"item": item, "done": done, "found": found}


def console(found: Result) -> list[str]:
    """S2's console summary, and the validation list."""
    rule, marks = "=" * 60, {True: "[x]", False: "[ ]", None: "[-]"}
    lines = [rule, "BENCHMARK SUMMARY", rule]
    for name, text in found["results"].items():
        lines.append(f"{name:20} | Mean: {text['latency']['mean_ms']:6.1f}ms | RTF: {text['rtf']:.3f}")
    checks = (f"{marks[check['done']]} {check['item']}: {check['found']}" for check in found["validation"])
    return [*lines, *found["notes"], "", *checks]


def _write(found: Result, folder: Path) -> Path:
    """Write `<type>_YYYYMMDD_HHMMSS.json` (UTC), whole or not at all, never over another. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    half = folder / f".{os.getpid()}.half"
    at = datetime.fromisoformat(found["metadata"]["timestamp"])
    try:
        write_json(half, found)
        while True:
            path = folder / f"{found['metadata']['benchmark_type']}_{at:%Y%m%d_%H%M%S}.json"
            try:
                os.link(half, path)
                return path
            except FileExistsError:
                at += timedelta(seconds=1)
    finally:
        half.unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.exports.s2_benchmark",
        description="Write a run of requests as a Chatterbox benchmark file: five texts, latency, RTF, first chunk.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory, such as runs/latest")
    parser.add_argument("--type", default="vllm", metavar="NAME", help="benchmark_type, first word of the file's name")
    parser.add_argument("--engine", default="chatterbox-turbo", metavar="NAME", help="the model that was asked")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    return parser


def _fail(line: str) -> int:
    print(f"s2_benchmark: {line}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

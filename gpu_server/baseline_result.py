"""What a benchmark writes: S2's JSON, its rounding, file names, validation list and comparison. Measures nothing.

Beyond S2's keys stand: `weights` and `size` of the model, seconds of each stage, failed runs, `streaming`,
`concurrency`, `comparison`, `notes` and `validation`. audio_samples and audio_duration_ms are means over the runs, so
that rtf = mean_ms / audio_duration_ms whether or not a model says a text twice at the same length.
"""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpu_server.baseline_protocol import RUNS, WARM_UPS, Steps, TextRuns, as_dict, latency, real_time_factor, streaming
from gpu_server.speech import SAMPLE_RATE

Document = dict[str, Any]

RANDOM_WEIGHTS = "random weights: timing only"
NO_CUDA = "not applicable: no CUDA"
_COMPARED = {"mean_ms": "overall_mean_ms", "p95_ms": "overall_p95_ms", "rtf": "overall_rtf"}
_STANDARD_TEXTS = Path(__file__).parents[1] / "workers" / "standard_texts.json"  # by path: a data file, not an import


class Check(NamedTuple):
    """One item of S2's validation list. done: None where it does not apply."""

    item: str
    done: bool | None
    found: str


def standard_texts() -> dict[str, str]:
    """The five texts of every benchmark, by name (source: S2, "ALWAYS use these")."""
    found: dict[str, str] = json.loads(_STANDARD_TEXTS.read_text("utf-8"))
    return found


def text_result(found: TextRuns, with_streaming: bool, sample_rate: int = SAMPLE_RATE) -> Document:
    """One text's results. Raises ValueError without samples."""
    told = latency([run.total_s * 1000 for run in found.runs])
    samples = float(np.mean([run.samples for run in found.runs]))
    memory = found.memory
    result: Document = {
        "text_name": found.name,
        "text_length_words": len(found.text.split()),
        "audio_samples": round(samples),
        "audio_duration_ms": round(samples / sample_rate * 1000, 2),
        "latency": rounded(told),
        "rtf": round(real_time_factor(told["mean_ms"], samples, sample_rate), 3),
        "vram_peak_gb": None if memory is None else round(memory.peak_gb, 2),
        "vram_current_gb": None if memory is None else round(memory.current_gb, 2),
        "runs": len(found.runs),
        "failed_runs": found.failed,
    }
    if found.stages is not None:
        result["stages"] = as_dict(found.stages)
    if with_streaming:
        result["streaming"] = rounded(streaming([found]))
    return result


def summary(texts: Sequence[TextRuns], with_streaming: bool, sample_rate: int = SAMPLE_RATE) -> Document:
    """Over all runs of all texts; rtf is all time / all audio. All null where nothing was measured."""
    runs = [run for text in texts for run in text.runs]
    if not runs:
        return {"overall_mean_ms": None, "overall_p95_ms": None, "overall_rtf": None, "max_vram_gb": None}
    times_ms = [run.total_s * 1000 for run in runs]
    told = latency(times_ms)
    peaks = [text.memory.peak_gb for text in texts if text.memory is not None]
    result: Document = {
        "overall_mean_ms": round(told["mean_ms"], 2),
        "overall_p95_ms": round(told["p95_ms"], 2),
        "overall_rtf": round(real_time_factor(sum(times_ms), sum(run.samples for run in runs), sample_rate), 3),
        "max_vram_gb": round(max(peaks), 2) if peaks else None,
    }
    return result | ({"streaming": rounded(streaming(texts))} if with_streaming else {})


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds and counts to two places."""
    return {name: round(value, 2) for name, value in figures.items()}


def document(began: datetime, benchmark_type: str, steps: Steps, runs: int, configuration: Document) -> Document:
    """A result with nothing in it yet. began: UTC. runs: as asked for, each text."""
    return {
        "metadata": {
            "timestamp": began.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "benchmark_type": benchmark_type,
            "warmup_runs": steps.warm_ups,
            "measurement_runs": runs,
        },
        "configuration": configuration,
        "results": {},
        "summary": {},
        "notes": [RANDOM_WEIGHTS] if configuration.get("weights") == "random" else [],
    }


def compare(found: Document, folder: Path) -> Document | None:
    """The newest `baseline` in `folder` of the same model, weights, GPU and texts beside `found`; None without one.

    Ratios are baseline / found: 2.0 is twice as fast. change_percent is S2's: (after - before) / before.
    """
    for path in sorted(folder.glob("baseline_*.json"), reverse=True):
        before = _read(path)
        if before is None or not _comparable(before, found):
            continue
        return ratios(path.name, before["summary"], found["summary"])
    return None


def ratios(baseline: str, before: Document, after: Document) -> Document:
    """Two summaries side by side; `baseline` names the first."""
    told: Document = {"baseline": baseline}
    for name, key in _COMPARED.items():
        was, now = before[key], after[key]
        told[name] = {
            "before": was,
            "after": now,
            "change_percent": round((now - was) / was * 100, 1) if was else None,
            "ratio": round(was / now, 2) if now else None,
        }
    return told


def _comparable(before: Document, found: Document) -> bool:
    ours, theirs, figures = found["configuration"], before.get("configuration"), before.get("summary")
    return (
        isinstance(theirs, dict)
        and all(theirs.get(key) == ours.get(key) for key in ("model", "weights", "size", "gpu"))
        and isinstance(figures, dict)
        and all(isinstance(figures.get(key), int | float) for key in _COMPARED.values())
        and set(before.get("results") or ()) == set(found["results"])
    )


def _read(path: Path) -> Document | None:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):  # somebody else's file in that folder
        return None
    return found if isinstance(found, dict) else None


def comparison_line(told: Document) -> str:
    """A comparison in one line."""
    parts = []
    for name, title, unit in (("mean_ms", "mean", " ms"), ("p95_ms", "p95", " ms"), ("rtf", "RTF", "")):
        one = told[name]
        parts.append(f"{title} {one['before']:g} -> {one['after']:g}{unit} ({times(one['ratio'])})")
    return f"against {told['baseline']}: {', '.join(parts)}"


def times(ratio: float | None) -> str:
    """A ratio in words."""
    return "-" if ratio is None else f"{ratio:.2f} times as fast" if ratio >= 1 else f"{1 / ratio:.2f} times as slow"


def validation(found: Document, steps: Steps, cuda: bool) -> list[Check]:
    """S2's nine items, from what was done and from what is to be written."""
    runs = min(steps.runs.values(), default=0)
    missing = [name for name in standard_texts() if name not in found["results"]]
    wrong = [name for name, text in found["results"].items() if not _rtf_is_right(text)]
    unread = [name for name, text in found["results"].items() if text["vram_peak_gb"] is None]
    is_baseline = found["metadata"]["benchmark_type"] == "baseline"
    compared = found.get("comparison")
    return [
        Check(
            "GPU memory cleared before each run",
            steps.cleared > len(found["results"]) if cuda else None,
            f"{steps.cleared} times, beside {len(found['results'])} texts" if cuda else NO_CUDA,
        ),
        Check(
            f"Warmup phase completed ({WARM_UPS} runs)",
            steps.warm_ups >= WARM_UPS,
            f"{_runs(steps.warm_ups)} {steps.warmed_up_with}",
        ),
        Check(f"Sufficient measurement runs ({RUNS}+)", runs >= RUNS, f"{_runs(runs)} a text"),
        Check(
            "torch.cuda.synchronize() called for accurate timing",
            0 < steps.timed == steps.synchronized if cuda else None,
            f"before and after {steps.synchronized} of {steps.timed} timed runs" if cuda else NO_CUDA,
        ),
        Check("Results saved as JSON with timestamp", _is_dated(found), str(found["metadata"].get("timestamp"))),
        Check(
            "Comparison table generated",
            None if is_baseline else compared is not None,
            "not applicable: this is what others are compared with"
            if is_baseline
            else f"with {compared['baseline']}"
            if compared
            else "no baseline of this model, these weights, this GPU and these texts lies beside it",
        ),
        Check("All test texts benchmarked", not missing, f"missing: {', '.join(missing)}" if missing else "all five"),
        Check(
            "RTF calculated correctly",
            bool(found["results"]) and not wrong,
            f"not so: {', '.join(wrong)}" if wrong else "mean latency / audio duration, each text",
        ),
        Check(
            "VRAM usage recorded",
            bool(found["results"]) and not unread if cuda else None,
            (f"missing: {', '.join(unread)}" if unread else "peak, each text") if cuda else NO_CUDA,
        ),
    ]


def _runs(count: int) -> str:
    return f"{count} run{'' if count == 1 else 's'}"


def _rtf_is_right(text: Document) -> bool:
    """As the file's own figures have it, within what their rounding leaves open."""
    mean_ms, duration_ms = text["latency"]["mean_ms"], text["audio_duration_ms"]
    if not duration_ms > 0:
        return False
    open_share = 0.005 / mean_ms + 0.005 / duration_ms if mean_ms else 0.0
    right = mean_ms / duration_ms
    return bool(abs(text["rtf"] - right) <= 0.0005 + right * open_share + 1e-9)


def _is_dated(found: Document) -> bool:
    try:
        return datetime.fromisoformat(found["metadata"]["timestamp"]).tzinfo is not None
    except (KeyError, TypeError, ValueError):
        return False


def validation_lines(checks: Sequence[Check]) -> list[str]:
    """The list as S2 has it, with what was found."""
    marks = {True: "[x]", False: "[ ]", None: "[-]"}
    return [f"{marks[check.done]} {check.item}: {check.found}" for check in checks]


def summary_lines(found: Document) -> list[str]:
    """S2's console summary: a line a text."""
    rule = "=" * 60
    lines = [rule, "BENCHMARK SUMMARY", rule]
    for name, text in found["results"].items():
        lines.append(f"{name:20} | Mean: {text['latency']['mean_ms']:6.1f}ms | RTF: {text['rtf']:.3f}")
    return [*lines, *found["notes"]]


def write(found: Document, folder: Path) -> Path:
    """Write `<type>_YYYYMMDD_HHMMSS.json` (UTC), whole or not at all; never over another result. Raises OSError.

    Where that name is taken, the next second's is used: the file's own timestamp stays as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    at = datetime.fromisoformat(found["metadata"]["timestamp"]).astimezone(UTC)
    half = folder / f".{os.getpid()}.half"
    try:
        half.write_text(text, "utf-8")
        while True:
            path = folder / file_name(found["metadata"]["benchmark_type"], at)
            try:
                os.link(half, path)  # unlike a rename, it refuses a name that is taken
                return path
            except FileExistsError:
                at += timedelta(seconds=1)
    finally:
        half.unlink(missing_ok=True)


def file_name(benchmark_type: str, at: datetime) -> str:
    """S2's name of a result."""
    return f"{benchmark_type}_{at:%Y%m%d_%H%M%S}.json"

"""`python -m gpu_server.baseline`: benchmark an engine inside one process, as S2 has it. Reads options, prints, writes.

Times nothing itself (baseline_protocol.py, baseline_levels.py) and knows no model (baseline_kinds.py).
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from gpu_server import baseline_levels, baseline_onnx, baseline_result, baseline_vllm
from gpu_server.baseline_device import Device, open_device
from gpu_server.baseline_kinds import ENGINES, KINDS, ONNX_PROVIDERS, Wanted
from gpu_server.baseline_protocol import RUNS, WARM_UP_TEXT, WARM_UPS, Bench, MeasurementFailed, Steps, TextRuns
from gpu_server.baseline_result import Document
from gpu_server.speech import EngineUnavailable

RESULTS = Path("benchmarks/results")
INTERRUPTED = 130  # as a shell says it of Ctrl-C

EPILOG = """kinds (the names are S2's):
KINDS

examples:
  python -m gpu_server.baseline --engine chatterbox-turbo --kind baseline --random-weights full
      five texts, 20 runs each; random weights are timing only
  python -m gpu_server.baseline --engine chatterbox-turbo --kind final_optimized --random-weights full \\
      --concurrency 1 2 4 8 16 32 64
      beside the baseline that lies in --out; and how many streams at a time keep up with their listeners
  python -m gpu_server.baseline --engine chatterbox --kind streaming --weights checkpoints/chatterbox
      time to first chunk, with weights of your own; without any option they come from the hub
  python -m gpu_server.baseline --engine chatterbox-turbo --kind vllm --host http://localhost:8000
      a server that speaks OpenAI's dialect

exit status: 0 measured and written; 1 it cannot run here, or something failed; 130 Ctrl-C. What was finished is kept.
"""


@dataclass(slots=True)
class Found:
    """What a benchmark has found so far. stopped: what kept it from the rest. notes: what a reader must know."""

    configuration: Document
    steps: Steps
    texts: list[TextRuns] = field(default_factory=list)
    levels: list[Document] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    beside: dict[str, Document] = field(default_factory=dict)  # by text: what stands in its result, too
    comparison: Document | None = None  # with what is measured beside it; None: with a baseline that lies in --out
    stopped: str = ""
    status: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.kind == "vllm":
            return baseline_vllm.run(_asked(options))
        began, device = datetime.now(UTC), open_device(options.device)
        measure = _measure_onnx if options.kind in ONNX_PROVIDERS else _measure_speech
        return _tell(measure(options, device), options, began, device)
    except (EngineUnavailable, MeasurementFailed) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"cannot write {error.filename or options.out}: {error.strerror or error}")
    except KeyboardInterrupt:
        return INTERRUPTED


def _measure_speech(options: argparse.Namespace, device: Device) -> Found:
    started_at = time.monotonic()
    kind, wanted = KINDS[options.kind], _wanted(options)
    assert kind.load is not None
    print("Loading model...", flush=True)
    ready = kind.load(wanted, device)
    bench = Bench(ready.speaker, device)
    found = Found(_configuration(options, device, ready.weights, ready.size, ready.optimization), bench.steps)
    found.notes += ready.notes
    try:
        _run_through(found, bench, options, started_at)
    except KeyboardInterrupt:
        found.stopped, found.status = "interrupted", INTERRUPTED
    except MeasurementFailed as error:
        found.stopped, found.status = str(error), 1
    finally:
        ready.speaker.close()
    return found


def _run_through(found: Found, bench: Bench, options: argparse.Namespace, started_at: float) -> None:
    """Warm up, time the texts, then the levels; a level that does not fit into the time limit is left out."""
    texts = baseline_result.standard_texts()
    print("Running warmup...", flush=True)
    bench.warm_up(texts[WARM_UP_TEXT], options.warm_up)
    print("Warmup complete", flush=True)
    for name in options.texts:
        print(f"Benchmarking: {name}", flush=True)
        found.texts.append(bench.time_text(name, texts[name], options.runs))
    took_s = 0.0
    for number, streams in enumerate(options.concurrency):
        level_at = time.monotonic()
        left_s = options.limit_s - (level_at - started_at)
        if left_s < max(options.level_s, took_s):  # the next level takes longer than the last one, if anything
            left_out = ", ".join(map(str, options.concurrency[number:]))
            found.stopped = f"levels {left_out} left out: no time left of --limit-s {options.limit_s:g}"
            return
        print(f"Speaking at once: {streams}", flush=True)
        spoken = {name: texts[name] for name in options.texts}
        level = baseline_levels.measure(
            bench.speaker, bench.device, streams, spoken, options.level_s, heard=options.listeners
        )
        found.levels.append(level)
        took_s = time.monotonic() - level_at


def _measure_onnx(options: argparse.Namespace, device: Device) -> Found:
    texts = baseline_result.standard_texts()
    spoken = {name: texts[name] for name in options.texts}
    told = baseline_onnx.measure(options.kind, _wanted(options), device, spoken, options.runs)
    configuration = _configuration(options, device, told.weights, told.size, told.optimization)
    return Found(
        configuration, told.steps, told.texts, notes=told.notes, beside=told.beside, comparison=told.comparison
    )


def _wanted(options: argparse.Namespace) -> Wanted:
    streams = max(options.concurrency, default=1)
    return Wanted(options.engine, options.weights, options.random_weights, streams)


def _asked(options: argparse.Namespace) -> baseline_vllm.Asked:
    if options.host is None:
        raise EngineUnavailable("--kind vllm asks a server: name it by --host, e.g. --host http://localhost:8000")
    if len(options.concurrency) > 1:
        raise EngineUnavailable("--kind vllm: one number of streams a run; give --concurrency a single one")
    users = max(options.concurrency, default=1)
    return baseline_vllm.Asked(options.engine, options.host, users, options.run_time, options.model, options.out)


def _configuration(options: argparse.Namespace, device: Device, weights: str, size: str, optimization: str) -> Document:
    return {
        **device.facts(),
        "model": options.engine,
        "optimization": optimization,
        "batch_size": 1,
        "weights": weights,
        "size": size,
        "device": device.name,
    }


def _tell(found: Found, options: argparse.Namespace, began: datetime, device: Device) -> int:
    """Print and write what was found; the exit status."""
    if not found.texts:
        return found.status if found.status == INTERRUPTED else _fail(found.stopped)
    document = _document(found, options, began)
    compared = found.comparison
    if compared is None and options.kind != "baseline":
        compared = baseline_result.compare(document, options.out)
    if compared is not None:
        document["comparison"] = compared
    checks = baseline_result.validation(document, found.steps, device.name == "cuda")
    document["validation"] = [check._asdict() for check in checks]
    lines = baseline_result.summary_lines(document)
    lines += map(baseline_levels.line, found.levels)
    lines += [baseline_result.comparison_line(compared)] if compared is not None else []
    print("\n".join(["", *lines, "", *baseline_result.validation_lines(checks)]), flush=True)
    path = baseline_result.write(document, options.out)
    print(f"Results saved to: {path}", flush=True)
    failed = sum(text.failed for text in found.texts) + sum(level["failed"] for level in found.levels)
    if found.stopped:
        print(f"baseline: not finished: {found.stopped}", file=sys.stderr)
    if failed:
        print(f"baseline: {failed} answers failed; they are counted, and have no time", file=sys.stderr)
    return found.status or int(failed > 0)


def _document(found: Found, options: argparse.Namespace, began: datetime) -> Document:
    streaming = options.streaming or KINDS[options.kind].streams
    document = baseline_result.document(began, options.kind, found.steps, options.runs, found.configuration)
    if found.stopped:
        document["metadata"]["incomplete"] = found.stopped
    for text in found.texts:
        told = baseline_result.text_result(text, streaming)
        document["results"][text.name] = told | found.beside.get(text.name, {})
    document["summary"] = baseline_result.summary(found.texts, streaming)
    document["notes"] += found.notes
    if options.concurrency:
        document["concurrency"] = {
            "prebuffer_ms": round(baseline_levels.PREBUFFER_S * 1000),
            "window_s": options.level_s,
            "listeners": options.listeners,
            "levels": found.levels,
        }
    return document


def _parser() -> argparse.ArgumentParser:
    kinds = "\n".join(f"  {name:<16} {kind.means}" for name, kind in KINDS.items())
    names = tuple(baseline_result.standard_texts())
    parser = _Parser(
        prog="python -m gpu_server.baseline",
        description="Benchmark an engine inside one process: latency, real-time factor, first chunk, streams, memory.",
        epilog=EPILOG.replace("KINDS", kinds),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engine", choices=ENGINES, required=True, help="which model")
    parser.add_argument("--kind", choices=KINDS, default="baseline", help="what is run (default: baseline); see below")
    whence = parser.add_mutually_exclusive_group()
    whence.add_argument("--weights", type=Path, metavar="DIR", help="folder of weights (default: from the hub)")
    whence.add_argument("--random-weights", choices=("tiny", "full"), help="no weights: timing only")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is a GPU")
    parser.add_argument("--streaming", action="store_true", help="tell time to first chunk, whatever the kind")
    parser.add_argument(
        "--concurrency", type=_whole(1), nargs="+", default=[], metavar="N", help="then so many streams at a time"
    )
    parser.add_argument("--runs", type=_whole(1), default=RUNS, metavar="N", help=f"of each text (default: {RUNS})")
    parser.add_argument(
        "--warm-up", type=_whole(0), default=WARM_UPS, metavar="N", help=f"runs not counted (default: {WARM_UPS})"
    )
    parser.add_argument(
        "--texts", choices=names, nargs="+", default=list(names), metavar="NAME", help=f"of {', '.join(names)}"
    )
    parser.add_argument(
        "--level-s", type=_seconds, default=20.0, metavar="S", help="seconds in which answers begin, a level (20)"
    )
    parser.add_argument(
        "--listeners",
        action="store_true",
        help="each stream asks again once its listener has heard an answer to its end (default: at once)",
    )
    parser.add_argument(
        "--limit-s",
        type=_seconds,
        default=86_400.0,
        metavar="S",
        help="begin no level that would end later, counted from before the model is loaded",
    )
    parser.add_argument("--host", metavar="URL", help="the server, for --kind vllm")
    parser.add_argument("--model", metavar="NAME", help="what that server calls its model (default: tts-1)")
    parser.add_argument("--run-time", type=_seconds, default=120.0, metavar="S", help="seconds of --kind vllm (120)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help=f"default: {RESULTS}")
    return parser


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage of fifteen options would bury it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"baseline: {message}; see python -m gpu_server.baseline --help\n")


def _whole(low: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {low} or more")
        return int(text)

    return whole


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0, up to 86400")
    return seconds


def _fail(line: str) -> int:
    print(f"baseline: {line}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

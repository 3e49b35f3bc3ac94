"""`python -m gpu_server.bench_gpu`: the figures asked of the Chatterbox engine on a GPU, in one command and one budget.

Measures nothing: each part is a `python -m gpu_server.baseline` in a process of its own, upstream's `generate` beside
the engine. Knows how to share out the time, and which figure was asked for (bench_gpu_figures.py judges).
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NoReturn

from gpu_server import bench_gpu_figures as judged
from gpu_server.baseline_device import open_device
from gpu_server.baseline_result import Document
from gpu_server.bench_gpu_figures import ENGINES, Found
from gpu_server.speech import EngineUnavailable

RESULTS = Path("benchmarks/results")
LIMIT_S = 540.0
GRACE_S = 10.0  # for a part that was told to end: it writes what it has
LEAST_S = 2.0  # a part with less is not begun
INTERRUPTED = 130  # as a shell says it of Ctrl-C
SUMMARY = "summary.json"

EPILOG = """six parts share the time. What one leaves is for those after it, and one that outruns its share is told to
end: what it has finished counts. What was not measured is called so, never left out.

  for chatterbox-turbo and for chatterbox, each
    beside     upstream's own generate(): what the ratios are with
    engine     first chunk and real-time factor of one stream, then as many real-time streams as were asked for, up to
               128: each asks again once its listener has heard an answer to its end
    memory     the engine made for 8 streams, with 8: its peak of GPU memory

examples:
  python -m gpu_server.bench_gpu                    both engines, full size, random weights: timing only
  python -m gpu_server.bench_gpu --weights DIR      trained ones, in DIR/chatterbox-turbo and DIR/chatterbox
  python -m gpu_server.bench_gpu --device cpu --random-weights tiny --limit-s 60
                                                    a rehearsal without a GPU: none of its figures is one asked for

writes a folder bench_gpu_YYYYMMDD_HHMMSS into --out: summary.json, and each part's own file.
exit status: 0 measured and written, whether or not a figure was reached; 1 it cannot run here, or nothing was measured;
130 Ctrl-C.
"""


@dataclass(frozen=True, slots=True)
class Part:
    """One process: which engine, which kind, with which options. weight: its share of the time."""

    engine: str
    name: Literal["beside", "engine", "memory"]
    kind: str
    weight: float
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a part: its file, or why there is none."""

    part: Part
    path: Path | None
    why: str
    took_s: float
    interrupted: bool = False  # by Ctrl-C


def plan(cuda: bool) -> list[Part]:
    """The parts in order. Weights are seconds of LIMIT_S. Levels asked for come first, others after them.

    Without a GPU the same parts, with few streams.
    """
    levels = {
        "chatterbox-turbo": ("64", "128", "32", "16") if cuda else ("4", "2"),
        "chatterbox": ("24", "64", "128", "32") if cuda else ("4", "2"),
    }
    # Of 24 streams at least 72 answers begin in 36 s, of 64 in 15 s: a 95th percentile needs so many.
    seconds = {"chatterbox-turbo": "15", "chatterbox": "36"} if cuda else dict.fromkeys(ENGINES, "2")
    runs = ("--runs", "5", "--warm-up", "5") if cuda else ("--runs", "1", "--warm-up", "1")
    few = ("--runs", "2", "--warm-up", "1") if cuda else runs
    memory_texts = ("--texts", "medium", "short", "--runs", "1", "--warm-up", "1")
    parts = []
    for engine, weights in (("chatterbox-turbo", (55, 150, 45)), ("chatterbox", (80, 165, 45))):
        beside, whole, memory = weights
        spoken = ("--listeners", "--level-s", seconds[engine], "--concurrency", *levels[engine])
        eight = ("--listeners", "--level-s", "5" if cuda else "2", "--concurrency", "8" if cuda else "2")
        parts += [
            Part(engine, "beside", "baseline", beside, few),
            Part(engine, "engine", "final_optimized", whole, (*runs, *spoken)),
            Part(engine, "memory", "final_optimized", memory, (*memory_texts, *eight)),
        ]
    return sorted(parts, key=lambda part: part.name == "memory")  # last: it is the one that can be done without


def share_s(parts: Sequence[Part], left_s: float) -> float:
    """Seconds of the first of the parts that are left: what others did not need is shared out again."""
    return left_s * parts[0].weight / sum(part.weight for part in parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all parts within the limit and write the summary; the exit status."""
    options = _parser().parse_args(arguments)
    began, started_at = datetime.now(UTC), time.monotonic()
    try:
        device = open_device(options.device)
        if device.name == "cpu" and options.device is None:
            return _fail(
                "no CUDA device was found: the figures are of a GPU; a rehearsal without one: --device cpu"
                " --random-weights tiny --limit-s 60"
            )
        folder = options.out / f"bench_gpu_{began:%Y%m%d_%H%M%S}"
        folder.mkdir(parents=True)
    except EngineUnavailable as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"cannot write {error.filename or options.out}: {error.strerror or error}")
    done: list[Done] = []
    parts = plan(device.name == "cuda")
    for number, part in enumerate(parts):
        share = share_s(parts[number:], options.limit_s - (time.monotonic() - started_at))
        print(f"== {part.engine}, {part.name}: {share:.0f} s", flush=True)
        done.append(run_part(part, share, folder, _command(part, options, device.name, folder)))
        if done[-1].interrupted:
            break
    found = [(one.part.engine, one.part.name, _read(one.path)) for one in done]
    summary = _summary(began, options, device.facts(), done, Found.of(found))
    print("\n".join(["", *_lines(summary)]), flush=True)
    try:
        path = folder / SUMMARY
        path.write_text(json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
    except OSError as error:
        return _fail(f"cannot write {error.filename or folder}: {error.strerror or error}")
    print(f"Results saved to: {path}, after {time.monotonic() - started_at:.0f} s")
    return INTERRUPTED if done[-1].interrupted else int(all(one.path is None for one in done))


def _command(part: Part, options: argparse.Namespace, device: str, folder: Path) -> list[str]:
    if options.weights is not None:
        whence = ["--weights", str(options.weights / part.engine)]
    else:
        whence = ["--random-weights", options.random_weights]
    asked = ["--engine", part.engine, "--kind", part.kind, "--streaming", *part.options, *whence, "--device", device]
    return [sys.executable, "-m", "gpu_server.baseline", *asked, "--out", str(folder)]


def run_part(part: Part, share: float, folder: Path, command: Sequence[str]) -> Done:
    """One part in its share of seconds, the grace to write what it has included; `--limit-s` is added to its command.

    Whatever becomes of it, it has ended then, and so has all that it began.
    """
    grace_s = min(GRACE_S, share / 4)
    if share - grace_s < LEAST_S:
        return Done(part, None, "no time left of --limit-s", 0.0)
    before = set(folder.iterdir())
    began_at = time.monotonic()
    process = subprocess.Popen(  # a session of its own: Ctrl-C is told once, by us
        [*command, "--limit-s", f"{share - grace_s:.1f}"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    said, ended, interrupted = "", False, False
    try:
        said, ended = _wait(process, share - grace_s)
        if not ended:
            process.send_signal(signal.SIGINT)
            _wait(process, grace_s)
    except KeyboardInterrupt:
        interrupted = True
        process.send_signal(signal.SIGINT)
        _wait(process, grace_s)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    took_s = time.monotonic() - began_at
    written = sorted(set(folder.glob("*.json")) - before)
    path = written[0] if written else None
    if ended:
        last = said.strip().splitlines()[-1].removeprefix("baseline: ") if said.strip() else "it wrote nothing"
        return Done(part, path, last if path is None else "", took_s)
    why = "interrupted" if interrupted else f"its share of {share:.0f} s ended"
    return Done(part, path, f"{why} before it had {'all' if path else 'anything'}", took_s, interrupted)


def _wait(process: "subprocess.Popen[str]", within_s: float) -> tuple[str, bool]:
    """What it said, and whether it ended by itself."""
    try:
        return process.communicate(timeout=within_s)[1] or "", True
    except subprocess.TimeoutExpired:
        return "", False


def _read(path: Path | None) -> Document | None:
    if path is None:
        return None
    found: Document = json.loads(path.read_text("utf-8"))
    return found


def _summary(
    began: datetime, options: argparse.Namespace, gpu: Document, done: Sequence[Done], found: Found
) -> Document:
    return {
        "metadata": {
            "timestamp": began.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "benchmark_type": "bench_gpu",
            "limit_s": options.limit_s,
        },
        "machine": {
            **gpu,
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "notes": judged.remarks(found),
        "parts": [
            {
                "engine": one.part.engine,
                "part": one.part.name,
                "file": one.path.name if one.path is not None else None,
                "took_s": round(one.took_s, 1),
                "why": one.why or _unfinished(one.path),
            }
            for one in done
        ],
        "figures": judged.figures(found),
        "ratios": judged.ratios(found),
        "floor": judged.floor(found),
    }


def _unfinished(path: Path | None) -> str | None:
    document = _read(path)
    return None if document is None else document["metadata"].get("incomplete")


def _lines(summary: Document) -> list[str]:
    rule = "=" * 60
    unfinished = [
        f"{part['engine']}, {part['part']}: {'not measured' if part['file'] is None else 'not finished'}: {part['why']}"
        for part in summary["parts"]
        if part["why"]
    ]
    return [
        rule,
        f"BENCH GPU | {summary['machine']['gpu']}",
        rule,
        *map(judged.figure_line, summary["figures"]),
        *judged.ratio_lines(summary["ratios"]),
        judged.floor_line(summary["floor"]),
        *unfinished,
        *summary["notes"],
    ]


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m gpu_server.bench_gpu",
        description="The figures asked of the Chatterbox engine on a GPU, beside upstream's own, within a time limit.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--limit-s", type=_seconds, default=LIMIT_S, metavar="S", help=f"for all ({LIMIT_S:g})")
    whence = parser.add_mutually_exclusive_group()
    whence.add_argument("--weights", type=Path, metavar="DIR", help="a folder of the engines' folders of weights")
    whence.add_argument(
        "--random-weights", choices=("tiny", "full"), default="full", help="no weights: timing only (default: full)"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda, and nothing in its place")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help=f"default: {RESULTS}")
    return parser


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"bench_gpu: {message}; see python -m gpu_server.bench_gpu --help\n")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 10 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 10 to 86400")
    return seconds


def _fail(line: str) -> int:
    print(f"bench_gpu: {line}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

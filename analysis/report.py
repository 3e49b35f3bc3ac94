"""`python -m analysis.report RUN`: what a run says, and how far to believe it.

Reads options and writes files; computes no figure (summary.py) and lays out no page (page.py).
"""

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis import page, page_duplex, page_targets
from analysis.console import say, width, write_json
from analysis.exports import EXPORTS
from analysis.exports.junit import write_junit
from analysis.exports.markdown import write_markdown
from analysis.runs import ForeignRun, open_run, read_table
from analysis.server_join import import_server_log
from analysis.server_sources import ForeignTrace
from analysis.summary import METRICS, summarise_run
from analysis.targets import TargetError, targets_of

EXAMPLES = """\
examples:
  python -m analysis.report runs/latest
      the newest run: what it says, and how far to believe it
  python -m analysis.report runs/latest --server-log trace.jsonl
      beside it, what the server says of the same requests (python -m gpu_server --trace trace.jsonl);
      the rows are kept in the run, later reports need no --server-log
  python -m analysis.report runs/latest --server-log bot_logs_test1.txt
      the same with a voice agent's own log (NVIDIA's, pipecat's): its LLM, TTS and ASR, and where each turn's time went
  python -m analysis.report runs/latest --export voice_agent --output results
      a JSON file a client and summary.json, in the fields of NVIDIA's voice-agent benchmark
  python -m analysis.report runs/latest --export personaplex --output reports/text_benchmark.json
      full-duplex sessions as the JSON file of the PersonaPlex Benchmark Suite
  python -m analysis.report runs/latest --targets chatterbox --junit targets.xml --markdown targets.md
      does it hold what was asked? S2's targets here, or a YAML file of your own; for a CI server and a pull request
  python -m analysis.report runs/20261120-101500-speech --output /tmp/report
      write report.json and summary.csv somewhere else than into the run

exit status: 0 a report was made, and all targets hold where there are any; 1 a target is missed; 2 one cannot be
judged, or there was no run to report on.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a report; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        if options.export:
            return _export(options.export, options.run, options.output)
        figures = report(options.run, options.server_log, options.targets)
        written = write(figures, options.output or Path(figures["path"]))
        written += _write_verdicts(figures, options.junit, options.markdown)
    except (ForeignRun, ForeignTrace, TargetError) as error:
        return _fail(str(error))
    except OSError as error:
        elsewhere = "; --output DIR writes the report elsewhere" if isinstance(error, PermissionError) else ""
        return _fail(f"{error.filename or options.run}: {error.strerror or error}{elsewhere}")
    say(page.render(figures, Console(width=width(options.width), highlight=False)))
    say(f"Written: {', '.join(map(str, written))}")
    return int(figures["targets"]["exit"]) if figures["targets"] else 0


def _write_verdicts(figures: dict[str, Any], junit: Path | None, markdown: Path | None) -> list[Path]:
    """Verdicts on targets for a CI server and for a pull request, where asked for; the paths written."""
    if (junit or markdown) and figures["targets"] is None:
        raise TargetError("--junit and --markdown tell of targets: name them with --targets FILE")
    if junit:
        write_junit(junit, f"cicada {figures['run']}", page_targets.cases(figures["targets"]), figures["remark"])
    if markdown:
        lines = [page_targets.summary(figures["targets"]), page_targets.remaining(figures["bottleneck"])]
        lines += [f"{reason['severity'].upper()} {reason['code']}: {reason['line']}" for reason in figures["reasons"]]
        write_markdown(markdown, f"Cicada: {figures['run']}", page_targets.rows(figures["targets"]), lines)
    return [path for path in (junit, markdown) if path]


def _export(name: str, run_dir: Path, output: Path | None) -> int:
    """Write a run in another tool's format; the exit status."""
    run = open_run(run_dir)
    directory = output or run.path / "exports" / name
    written, text = EXPORTS[name](run, directory)
    where = str(written[0]) if len(written) == 1 else f"{len(written):,} files in {directory}"
    say(f"{text}\nWritten: {where}")
    return 0


def report(run_dir: Path, server_logs: Sequence[Path] = (), targets: str | None = None) -> dict[str, Any]:
    """All figures of a run (see summary.py), and its verdicts where targets are named, here or in the run.

    Raises ForeignRun, ForeignTrace, TargetError, OSError.
    """
    run = open_run(run_dir)
    for path in server_logs:
        import_server_log(run, path)
    if server_logs:
        run = replace(run, server=read_table(run.path, "server"))
    scenario = run.manifest.get("scenario")
    return summarise_run(run, targets_of(run.path, scenario if isinstance(scenario, dict) else {}, targets))


def write(figures: dict[str, Any], directory: Path) -> list[Path]:
    """Write report.json, and a CSV for each kind of turns there is: summary (requests), conversations, full_duplex.

    The paths written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    as_json, as_csv = directory / "report.json", directory / "summary.csv"
    write_json(as_json, figures)
    written = [as_json]
    if found := figures["conversation"]:
        path = directory / "conversations.csv"
        rows = {**found["queries"], "all": found}
        written.append(_write_csv(path, "query", rows, CONVERSATION_METRICS, figures["remark"]))
    if found := figures["duplex"]:
        path = directory / "full_duplex.csv"
        rows = {**found["modes"], "all": found}
        written.append(_write_csv(path, "mode", rows, DUPLEX_METRICS, figures["remark"]))
    if len(written) > 1 and not figures["overall"]["started"]:
        return written
    with as_csv.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _csv_columns())
        writer.writeheader()
        for name, row in [*figures["texts"].items(), ("all", figures["overall"])]:
            rates = figures["throughput"] if name == "all" else {}
            told = {key: rates.get(key) for key in CSV_RATES}
            writer.writerow({"text": name, **_csv_row(row), **told, CSV_REMARK: figures["remark"]})
    return [*written, as_csv]


def _write_csv(path: Path, of: str, rows: Mapping[str, dict[str, Any]], metrics: Sequence[str], remark: str) -> Path:
    """A line each, and one for all. A quantile that too few answers stand behind is an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        quantiles = [f"{metric.removesuffix('_ms')}_{q}_ms" for metric in metrics for q in CSV_QUANTILES]
        writer.writerow([of, "started", "answered", "failed", *quantiles, CSV_REMARK])
        for name, row in rows.items():
            cells = [
                row[metric]["quantiles"][q]["value"] if metric in row else None
                for metric in metrics
                for q in CSV_QUANTILES
            ]
            writer.writerow([name, row["started"], row["answered"], row["failed"], *cells, remark])
    return path


CONVERSATION_METRICS = ("floor_transfer_offset_ms", "ttfc_ms", "ttfa_ms")
DUPLEX_METRICS = (*page_duplex.TITLES, *page_duplex.FROM_START)


CSV_COUNTS = ("started", "answered", "failed", "cut", "success_rate_percent", "text_chars", "audio_duration_ms")
CSV_RATES = ("asps", "rps", "cps", "wall_s")
CSV_QUANTILES = ("p50", "p95", "p99")
CSV_REMARK = "remark"


def _csv_columns() -> list[str]:
    quantiles = [f"{_stem(name)}_{q}{_unit(name)}" for name, _, _ in METRICS for q in CSV_QUANTILES]
    latency = [f"latency_{key}" for key in ("mean_ms", "std_ms", "p50_ms", "p95_ms", "p99_ms", "min_ms", "max_ms")]
    return ["text", *CSV_COUNTS, *quantiles, *latency, *CSV_RATES, CSV_REMARK]


def _csv_row(row: dict[str, Any]) -> dict[str, Any]:
    """One text's figures, flat. A quantile that too few turns stand behind is an empty cell."""
    flat = {key: row[key] for key in CSV_COUNTS}
    for name, _, _ in METRICS:
        for q in CSV_QUANTILES:
            flat[f"{_stem(name)}_{q}{_unit(name)}"] = row[name]["quantiles"][q]["value"]
    return flat | {f"latency_{key}": value for key, value in (row["latency"] or {}).items()}


def _stem(metric: str) -> str:
    return metric.removesuffix("_ms")


def _unit(metric: str) -> str:
    return "_ms" if metric.endswith("_ms") else ""


def _fail(line: str) -> int:
    print(f"report: {line}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report",
        description="Say what a run found, and first why one should not believe it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory, such as runs/latest")
    parser.add_argument(
        "--server-log",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="the server's trace or a voice agent's log of the same time, to put beside it; may be given several times",
    )
    parser.add_argument(
        "--targets",
        metavar="FILE",
        help="YAML, or chatterbox, personaplex, voice_agent (default: the run's own)",
    )
    parser.add_argument("--junit", type=Path, metavar="FILE", help="the verdicts on the targets, as JUnit XML")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the same as a Markdown table")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where the files go (default: RUN; of an export: RUN/exports/NAME); for personaplex, FILE.json too",
    )
    parser.add_argument(
        "--export", choices=sorted(EXPORTS), help="write the run in another tool's format, instead of a report"
    )
    parser.add_argument(
        "--width", type=int, metavar="N", help="columns of the page (default: the terminal's; 120 in a log)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""`python -m analysis.compare BEFORE AFTER`: is the second run better or worse than the first? For people and CI gates.

Reads options and writes files; judges nothing (comparison.py) and finds no words (page_comparison.py).
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from analysis import page_comparison
from analysis.comparison import MARGIN, SHARE_MARGIN, Comparison, compare
from analysis.console import say, width, write_json
from analysis.exports.junit import write_junit
from analysis.exports.markdown import write_markdown
from analysis.runs import ForeignRun

EXAMPLES = """\
examples:
  python -m analysis.compare runs/20261120-101500-speech runs/latest
      is the newest run worse than that one by more than 5 %?
  python -m analysis.compare baseline runs/latest --margin 10% --share-margin 2%
      latencies may rise by 10 %, shares (success, stalls ...) may move by 2 points
  python -m analysis.compare baseline runs/latest --markdown compare.md --junit compare.xml
      the same table for a pull request, and a test case a figure for a CI server
  python -m analysis.compare baseline runs/latest --allow-different
      compare although the two were asked for different things; what differs is listed

exit status: 0 no regression was found, 1 a regression, 2 nothing could be compared (the page says why).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two runs; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        found = compare(
            options.before,
            options.after,
            margin=options.margin,
            share_margin=options.share_margin,
            confidence=options.confidence,
            allow_different=options.allow_different,
        )
        written = _write(found, options)
    except ForeignRun as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or options.after}: {error.strerror or error}")
    say(page_comparison.render(found, Console(width=width(options.width), highlight=False)))
    if written:
        say(f"Written: {', '.join(map(str, written))}")
    return found.exit_status


def _write(found: Comparison, options: argparse.Namespace) -> list[Path]:
    if options.json:
        write_json(options.json, page_comparison.as_data(found))
    if options.junit:
        write_junit(options.junit, "cicada.compare", page_comparison.cases(found), found.remark)
    if options.markdown:
        lines = [page_comparison.sentence(found), *found.bars, *found.notes]
        write_markdown(options.markdown, page_comparison.title(found), page_comparison.rows(found), lines)
    return [path for path in (options.json, options.junit, options.markdown) if path]


def _fail(line: str) -> int:
    print(f"compare: {line}", file=sys.stderr)
    return 2


def _share(text: str) -> float:
    """A share of less than 1, as 5% or as 0.05."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(%?)", text.strip())
    share = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share below 1: write 5% or 0.05")
    return share


def _confidence(text: str) -> float:
    share = _share(text)
    if not 0.5 <= share <= 0.9999:
        raise argparse.ArgumentTypeError(f"{text!r} is no confidence: write 95%, or another from 50% to 99.99%")
    return share


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.compare",
        description="Say for each figure of two runs whether it got better or worse, and what cannot be told.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=Path, metavar="BEFORE", help="run directory of the run to compare with")
    parser.add_argument("after", type=Path, metavar="AFTER", help="run directory of the run that is judged")
    parser.add_argument(
        "--margin",
        type=_share,
        default=MARGIN,
        metavar="SHARE",
        help="a change of no more than this share of BEFORE's figure does not matter (default: 5%%)",
    )
    parser.add_argument(
        "--share-margin",
        type=_share,
        default=SHARE_MARGIN,
        metavar="POINTS",
        help="the same for success and other figures in percent, in points of them (default: 1%%)",
    )
    parser.add_argument(
        "--confidence",
        type=_confidence,
        default=0.95,
        metavar="SHARE",
        help="of the intervals; the chance of one false verdict among all figures stays below the rest (default: 95%%)",
    )
    parser.add_argument(
        "--allow-different", action="store_true", help="compare runs of different scenarios; what differs is a note"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of the comparison as JSON")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write a test case a figure, for a CI server")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table for a pull request")
    parser.add_argument(
        "--width", type=int, metavar="N", help="columns of the page (default: the terminal's; 120 in a log)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

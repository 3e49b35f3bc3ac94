"""`python -m analysis.capacity RUN`: how many at once, proven, and what gave out first.

A run with load levels (locustfiles/shapes/capacity.py, levels.py) in, an answer out. Lays out no page (page_capacity).
"""

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from analysis import checks, gave_out, page_capacity
from analysis.console import say, width, write_json
from analysis.counting import Counted, agent_calls, conversations, count, full_duplex, requests
from analysis.levels import Decision, Outcome, decide, promising
from analysis.runs import ForeignRun, Run, open_run
from analysis.scraped import read_scraped, within
from analysis.server_join import import_server_log
from analysis.server_sources import ForeignTrace
from analysis.stats import asps, knee, rps, usl
from analysis.targets import TargetError, Targets, targets_of
from analysis.verdicts import GENERATORS_FAULT, INCOMPLETE, goodput, stream_seconds
from analysis.violations import handled

CLOCKS_S = 0.5  # workers' wall clocks and the master's may differ by this much
ALPHA = 0.05  # of a whole search, where the run does not say

EXAMPLES = """\
examples:
  locust -f locustfiles/talk_voice_agent.py,locustfiles/shapes/capacity.py --headless --host ws://HOST:8100 \\
         --targets targets.yaml
      finds the capacity, and prints this by itself when it has
  python -m analysis.capacity runs/latest
      the newest run's answer again
  python -m analysis.capacity runs/latest --targets chatterbox --server-log trace.jsonl
      against other targets, and with the server's own account of where each turn's time went

exit status: 0 a level was proven to pass (and as many as the targets ask for); 1 it was proven that none does, or not
so many; 2 it cannot be told.
"""

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Level:
    """What a level showed. decision: None without targets. visits: the stays at it.

    distrust: why its figures are the generator's own. missing: why its rows are not all there.
    """

    users: int
    counted: Counted
    decision: Decision | None
    distrust: tuple[str, ...]
    missing: tuple[str, ...]
    visits: tuple[gave_out.Window, ...]
    promising: bool

    @property
    def wall_s(self) -> float | None:
        """Seconds in which it was measured, over all visits."""
        return sum(visit.ends_at - visit.begins_at for visit in self.visits) or None

    @property
    def outcome(self) -> Outcome | None:
        """What was proven: no fail where the generator was at its own limit, nothing where rows are missing."""
        if self.decision is None:
            return None
        strained = self.distrust and self.decision.outcome == "fail"
        return "undecided" if strained or self.missing else self.decision.outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer for a run; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        figures = find(options.run, options.targets, options.server_log)
        written = write(figures, options.output or Path(figures["path"]))
    except (ForeignRun, ForeignTrace, TargetError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or options.run}: {error.strerror or error}")
    say(page_capacity.render(figures, Console(width=width(options.width), highlight=False)))
    say(f"Written: {written}")
    return int(figures["exit"])


def find(run_dir: Path, named: str | None = None, server_logs: Sequence[Path] = ()) -> Figures:
    """All there is to say of a run's levels. Raises ForeignRun, ForeignTrace, TargetError, OSError."""
    run = open_run(run_dir)
    for path in server_logs:
        import_server_log(run, path)
    if server_logs:
        run = open_run(run_dir)
    targets = targets_of(run.path, _scenario(run), named)
    found = levels_of(run, targets)
    if not found:
        raise ForeignRun(
            f"{run_dir} has no load levels: run with `-f LOCUSTFILE,locustfiles/shapes/capacity.py` (or levels.py)"
        )
    return _answer(run, targets, found)


def _scenario(run: Run) -> Figures:
    told = run.manifest.get("scenario")
    return told if isinstance(told, dict) else {}


def levels_of(run: Run, targets: Targets | None) -> list[Level]:
    """The run's levels, the smallest first; those of which no turn was measured left out."""
    turns = run.turns[(run.turns["phase"] == "measured") & run.turns["level"].notna()]
    names = sorted(int(users) for users in turns["level"].unique())
    alpha = run.manifest.get("level_alpha")
    alpha = float(alpha) if isinstance(alpha, float) and 0 < alpha < 1 else ALPHA / max(1, len(names))
    missing = _codes(run, turns, (code for code in INCOMPLETE if code != "unfinished_run"))
    found = []
    for users in names:
        rows = turns[turns["level"] == users].sort_values("intended_wall_at", kind="stable")
        visits = _visits(run, users, rows)
        whole = _complete(rows)
        decision = decide(whole, targets, alpha) if targets else None
        well = targets is not None and promising(whole, targets)
        # Of each stay by itself: what happened between two of them was another level's.
        stays = [rows[rows["intended_wall_at"].between(visit.begins_at, visit.ends_at)] for visit in visits]
        strained = {code: None for stay in stays for code in _codes(run, stay, GENERATORS_FAULT)}
        found.append(Level(users, count(rows), decision, tuple(strained), tuple(missing), visits, well))
    return found


def _codes(run: Run, turns: pd.DataFrame, wanted: Iterable[str]) -> list[str]:
    """The invalid reasons to distrust these turns, of those wanted."""
    told = [reason.code for reason in checks.reasons(run, count(turns)) if reason.severity == "invalid"]
    known = set(wanted)
    return [code for code in told if code in known]


def _visits(run: Run, users: int, turns: pd.DataFrame) -> tuple[gave_out.Window, ...]:
    """When the level was measured: the stays that the manifest tells of, else from its first turn to its last."""
    told = run.manifest.get("levels")
    stays = [stay for stay in told if isinstance(stay, dict)] if isinstance(told, list) else []
    found = []
    for stay in stays:
        begins, ends = stay.get("measured_wall_at"), stay.get("measured_until_wall_at")
        if stay.get("users") != users or not isinstance(begins, float):
            continue
        rows = turns[turns["intended_wall_at"].between(begins - CLOCKS_S, (ends or math.inf) + CLOCKS_S)]
        if len(rows):
            found.append(gave_out.Window(users, begins, ends or float(rows["intended_wall_at"].max())))
    if found:
        return tuple(found)
    return (gave_out.Window(users, float(turns["intended_wall_at"].min()), float(turns["intended_wall_at"].max())),)


def _complete(turns: pd.DataFrame) -> pd.DataFrame:
    """Turns that began before the first that the run's end cut: of later ones the slow are missing."""
    cut_at = turns.loc[turns["error_kind"] == "run_ended", "intended_wall_at"].min()
    return handled(turns if math.isnan(cut_at) else turns[turns["intended_wall_at"] < cut_at])


# ----------------------------------------------------------------------------------------------------------- the answer


def _answer(run: Run, targets: Targets | None, found: list[Level]) -> Figures:
    fails = [level.users for level in found if level.outcome == "fail"]
    fail = min(fails, default=None)
    passes = [level.users for level in found if level.outcome == "pass" and (fail is None or level.users < fail)]
    largest = max(passes, default=None)
    open_levels = [level.users for level in found if level.outcome == "undecided" and level.users > (largest or 0)]
    undecided = [users for users in open_levels if fail is None or users < fail]
    odd = [level.users for level in found if level.outcome == "pass" and fail is not None and level.users > fail]
    bracket = {"largest_pass": largest, "smallest_fail": fail, "undecided": undecided, "passes_above_a_fail": odd}
    worst = next((level for level in found if level.users == fail), None)
    turns = pd.concat([level.counted.measured for level in found])
    scraped = read_scraped(run.path)
    wanted = _wanted(targets, next((level for level in found if level.users == largest), None), fail)
    reasons = [asdict(reason) for reason in checks.reasons(run, count(turns)) if reason.code not in OF_ONE_LEVEL]
    return {
        "run": run.id,
        "path": str(run.path),
        "target": run.manifest.get("host"),
        "targets": None if targets is None else [target.text for target in targets.targets],
        "targets_from": None if targets is None else targets.source,
        "reasons": reasons,
        "levels": [_level(level, targets) for level in found],
        **bracket,
        "scraped": within(scraped, {level.users: [(v.begins_at, v.ends_at) for v in level.visits] for level in found}),
        "wanted": wanted,
        "answer": _sentence(found, bracket, targets),
        "knee": _knee(found),
        "scaling": _scaling(found, run),
        "gave_out": gave_out.find(run, count(turns), [v for level in found for v in level.visits], scraped, fail),
        "refused": gave_out.refusals(worst.counted.failed) if worst is not None and _by_failing(worst) else None,
        "exit": _exit(bracket, targets, wanted),
    }


# Reasons that speak of a run whose load does not change: here each level is looked at alone.
OF_ONE_LEVEL = ("several_levels", "too_few", *GENERATORS_FAULT)


def _wanted(targets: Targets | None, best: Level | None, fail: int | None) -> Figures | None:
    """How many streams a GPU the targets ask for (`concurrent_streams > 3`), and whether so many pass.

    A caller is a stream; a user who makes requests is one for as long as it is being answered. open: what was proven
    to fail does not rule it out.
    """
    asked = next((t for t in targets.targets if t.metric.name == "concurrent_streams"), None) if targets else None
    if asked is None or targets is None:
        return None
    streams = 0.0
    if best is not None:
        calls = len(conversations(best.counted).measured) > 0
        streams = best.users if calls else stream_seconds(best.counted)[1] / (best.wall_s or math.inf)
    a_gpu = streams / targets.gpus
    return {
        "target": asked.text,
        "a_gpu": a_gpu,
        "holds": asked.limit.holds(a_gpu),
        "stretch_holds": asked.stretch.holds(a_gpu) if asked.stretch else None,
        "open": fail is None or asked.limit.holds((fail - 1) / targets.gpus),
    }


def _exit(bracket: Figures, targets: Targets | None, wanted: Figures | None) -> int:
    if targets is None:
        return 0  # nothing was asked
    if bracket["largest_pass"] is None:
        return 1 if bracket["smallest_fail"] is not None and not bracket["undecided"] else 2
    if wanted is not None and not wanted["holds"]:
        return 2 if wanted["open"] else 1
    return 0


def _sentence(found: list[Level], bracket: Figures, targets: Targets | None) -> str:
    if targets is None:
        return "No targets were given, so no level passes or fails: --targets FILE"
    largest, fail, undecided = bracket["largest_pass"], bracket["smallest_fail"], bracket["undecided"]
    tried = f"the largest level tried is {found[-1].users:,}"
    if largest is not None:
        above = f"{fail:,} proven to fail" if fail is not None else f"none proven to fail ({tried})"
        parts = [f"{_users(largest)} at once: proven to pass, {above}"]
    elif fail is not None and fail == found[0].users:
        parts = [f"Not even {_users(fail)}: the smallest level already fails"]
    else:
        parts = [
            "No level was proven to pass, ",
            f"{fail:,} to fail" if fail is not None else f"and none to fail ({tried})",
        ]
    if undecided:
        parts.append(f"; undecided: {', '.join(f'{users:,}' for users in undecided)}")
    last = max(found, key=lambda level: level.visits[-1].ends_at)
    if last.decision is not None and last.decision.gone:
        parts.append(f". At {_users(last.users)} the target was gone, and did not come back")
    if found[0].missing:
        parts.append(f". Nothing is decided: the rows are not all there ({', '.join(found[0].missing)})")
    distrusted = [level for level in found if level.distrust]
    if distrusted:
        worst = distrusted[0]
        parts.append(
            f". At {_users(worst.users)} the load generator was at its own limit ({', '.join(worst.distrust)}): "
            "start more workers"
        )
    return "".join(parts)


def _users(users: int) -> str:
    return f"{users:,} user{'' if users == 1 else 's'}"


def _by_failing(level: Level) -> bool:
    """Whether failed turns, not slow ones, are most of what lay beyond the limits."""
    return len(level.counted.failed) > 0.05 * max(1, level.counted.handled)


# ------------------------------------------------------------------------------------------------------- of each level


def _level(level: Level, targets: Targets | None) -> Figures:
    counted = level.counted
    wall = level.wall_s
    good = goodput(targets, counted) if targets else None
    return {
        "users": level.users,
        "turns": len(counted.measured),
        "answered": len(counted.answered),
        "failed": len(counted.failed),
        "cut": len(counted.cut),
        "sessions": int(counted.measured["cluster"].nunique()),
        "latency": {name: _latency(counted, name) for name in LATENCIES},
        "asps": asps(counted.answered["audio_s"].fillna(0.0), wall) if wall else None,
        "rps": rps(counted.handled, wall) if wall else None,
        "goodput_percent": None if good is None else good.share * 100,
        "goodput_at_least_percent": None if good is None else good.at_least * 100,
        "outcome": level.outcome,
        "promising": level.promising,
        "reason": level.decision.reason if level.decision else None,
        "distrust": list(level.distrust),
    }


LATENCIES = {
    "ttfc": ("ttfc_s", requests),
    "ttfa": ("ttfa_s", requests),
    "floor_transfer_offset": ("floor_transfer_offset_s", agent_calls),
    "duplex_transfer_offset": ("floor_transfer_offset_s", full_duplex),
    "ttft": ("ttft_s", full_duplex),
}


def _latency(counted: Counted, name: str) -> Figures | None:
    """p50 and p95 (ms) of a level's answers; None where it has none of that kind."""
    values = _answers_s(counted, name)
    if values.empty:
        return None
    return {"n": len(values), "p50_ms": float(values.median()) * 1000, "p95_ms": float(values.quantile(0.95)) * 1000}


def _answers_s(counted: Counted, name: str) -> pd.Series:
    """The latencies of a kind, s; none where the run has no turns of that kind."""
    column, kind = LATENCIES[name]
    answered = kind(counted).answered
    return answered[column].dropna().astype(float) if column in answered else pd.Series(dtype=float)


def _knee(found: list[Level]) -> Figures | None:
    """Where latency begins to climb, of the first kind of latency that the levels have."""
    for name in LATENCIES:
        points = [(level.users, float(s.median())) for level in found if len(s := _answers_s(level.counted, name))]
        if not points:
            continue
        bend = knee([users for users, _ in points], [value for _, value in points])
        return None if bend is None else {"of": name, **asdict(bend)}
    return None


def _scaling(found: list[Level], run: Run) -> Figures | None:
    """The scaling law of throughput: of requests in a closed loop alone; a paced call's throughput is linear anyway."""
    if _scenario(run).get("arrivals", "closed") != "closed":
        return None
    points = []
    for level in found:
        asked = requests(level.counted)
        if level.wall_s and len(asked.answered):
            points.append((level.users, rps(len(asked.answered), level.wall_s)))
    law = usl([users for users, _ in points], [rate for _, rate in points]) if len(points) >= 4 else None
    return None if law is None else asdict(law)


# ---------------------------------------------------------------------------------------------------------------- files


def write(figures: Figures, directory: Path) -> Path:
    """Write capacity.json; its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "capacity.json"
    write_json(path, figures)
    return path


def _fail(line: str) -> int:
    print(f"capacity: {line}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.capacity",
        description="How many at once, proven, and what gave out first.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory, such as runs/latest")
    parser.add_argument(
        "--targets", metavar="FILE", help="a YAML file, or the name of a source (default: the run's own)"
    )
    parser.add_argument(
        "--server-log", type=Path, action="append", default=[], metavar="FILE", help="as of analysis.report"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="where capacity.json goes (default: RUN)")
    parser.add_argument(
        "--width", type=int, metavar="N", help="columns of the page (default: the terminal's; 120 in a log)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""`python -m analysis.judge`: the master's adviser while a run goes on. The load path starts it as a child.

`check` says whether targets fit a run's users, `plan` what a search will cost (planning.py). `follow RUN` reads the
run's logs as they grow and answers one line of JSON for each line of standard input: {"level": users} -> how the level
stands. It ends with its standard input.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import levels, planning
from analysis.runs import clock_offsets
from analysis.targets import TargetError, Targets, read_targets
from analysis.violations import handled
from workers.samples.logs import ForeignLog, Growing

# What is kept of a turn: what decides, and when it began.
COLUMNS = (
    *("worker", "session", "protocol", "outcome", "error_kind", "phase", "barge_in", "yielded"),
    *("intended_at", "user_offset_at", "ended_at"),
    *("ttfc_s", "ttfa_s", "e2e_s", "rtf", "min_prebuffer_s", "floor_transfer_offset_s", "time_to_silence_s"),
    *("ttft_s", "itl_s"),
)
NUMBERS = [name for name in COLUMNS if name.endswith(("_s", "_at")) or name == "rtf"]
TOLD = ["ok", "cut", "away", "spoken", "duplex", "waited_s"]  # by violations.handled
SILENT_S = 10.0
Figures = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        targets = read_targets(options.targets) if options.targets else None
        if options.verb == "check":
            assert targets is not None
            planning.check(targets, options)
            return 0
        if options.verb == "plan":
            print(planning.told(targets, options), flush=True)
            return 0
    except TargetError as error:
        print(error, file=sys.stderr)
        return 2
    judge = Judge(options.run, targets, options.alpha)
    for line in sys.stdin:
        print(json.dumps(judge.answer(json.loads(line)["level"])), flush=True)
    return 0


@dataclass(slots=True)
class Level:
    """A level's measured turns as far as they are known.

    open: worker and beginning of those under way, on one wall clock. ended: those that ended, not yet all of whose
    elders have. complete: the others, in the order of their beginnings, as `levels.decide` wants them.
    """

    open: dict[str, tuple[str, float]] = field(default_factory=dict)
    ended: list[tuple[float, list[Any]]] = field(default_factory=list)
    complete: pd.DataFrame = field(default_factory=lambda: _frame([], {}))
    sessions: dict[tuple[Any, Any], int] = field(default_factory=dict)
    turns: int = 0

    def settle(self, known_to: float, lost: Collection[str]) -> None:
        """Take over the turns that began before any that is under way, and before what is known of every worker.

        Without this a look would see the quick turns first and the slow ones never, or one worker's before another's.
        Turns of lost workers are under way no more: they will stand among the cut.
        """
        under_way = (at for worker, at in self.open.values() if worker not in lost)
        until = min(min(under_way, default=np.inf), known_to)
        ripe = sorted((turn for turn in self.ended if turn[0] < until), key=lambda turn: turn[0])
        if ripe:
            self.ended = [turn for turn in self.ended if turn[0] >= until]
            self.complete = pd.concat([self.complete, _frame(ripe, self.sessions)], ignore_index=True)


def _frame(turns: list[tuple[float, list[Any]]], sessions: dict[tuple[Any, Any], int]) -> pd.DataFrame:
    """Turns (beginning, values of COLUMNS) as violations.handled tells them; sessions get a number each."""
    frame = pd.DataFrame([row for _, row in turns], columns=list(COLUMNS))
    frame["intended_wall_at"] = np.array([at for at, _ in turns], dtype=np.float64)
    pairs = zip(frame["worker"], frame["session"], strict=True)
    frame["cluster"] = np.array([sessions.setdefault(pair, len(sessions)) for pair in pairs], dtype=np.int64)
    for name in ("barge_in", "yielded"):
        frame[name] = np.array([value is True for value in frame[name]], dtype=bool)
    frame[NUMBERS] = frame[NUMBERS].astype(np.float64)
    return handled(frame)[[*NUMBERS, "intended_wall_at", "cluster", "barge_in", "yielded", *TOLD]]


class Judge:
    """Follows a run's logs; knows how each of its levels stands."""

    def __init__(self, run_dir: Path, targets: Targets | None, alpha: float) -> None:
        self._logs = run_dir / "log"
        self._targets, self._alpha = targets, alpha
        self._growing: dict[str, Growing] = {}
        self._offsets: dict[str, float] = {}
        self._known_to: dict[str, float] = {}  # worker -> end of the last second it told of, on one wall clock
        self._levels: defaultdict[int, Level] = defaultdict(Level)
        self._foreign: dict[str, str] = {}

    def answer(self, users: int) -> Figures:
        """How the level stands now: turns ended, turns under way, and, with targets, what they prove."""
        self._read()
        level = self._levels[users]
        known_to, lost = self._all_known_to()
        unfinished = sum(worker not in lost for worker, _ in level.open.values())
        found: Figures = {"level": users, "turns": level.turns, "unfinished": unfinished, "gone": False}
        trouble = next(iter(self._foreign.values()), None)
        if self._targets is None or trouble:
            return found | {"outcome": "undecided", "done": bool(trouble), "promising": False, "reason": trouble or ""}
        level.settle(known_to, lost)
        decision = levels.decide(level.complete, self._targets, self._alpha)
        return found | {
            "outcome": decision.outcome,
            "done": decision.done,
            "promising": levels.promising(level.complete, self._targets),
            "gone": decision.gone,
            "reason": decision.reason,
        }

    def _all_known_to(self) -> tuple[float, set[str]]:
        """Up to when every worker has told of itself, and the workers that are silent for so long as to be lost."""
        latest = max(self._known_to.values(), default=np.inf)
        lost = {worker for worker, at in self._known_to.items() if at <= latest - SILENT_S}
        return min((at for worker, at in self._known_to.items() if worker not in lost), default=np.inf), lost

    def _read(self) -> None:
        for path in sorted(self._logs.glob("*.msgpack")):
            log = self._growing.setdefault(path.stem, Growing(path))
            try:
                for table, values in log.read():
                    self._take(log, table, values)
            except ForeignLog as error:
                self._foreign[path.name] = str(error)
            if log.spoilt:
                self._foreign[path.name] = f"{path.name} holds bytes that are no rows: no level can be judged"

    def _take(self, log: Growing, table: str, values: list[Any]) -> None:
        if table not in ("turns", "turn_starts", "workers"):
            return
        assert log.header is not None
        row = dict(zip(log.header.tables[table], values, strict=False))
        if table == "workers":
            self._known_to[log.path.stem] = row["at"] + self._offset(log)
            return
        users = row.get("level")
        if users is None or row.get("phase") != "measured":
            return
        level = self._levels[users]
        if table == "turn_starts":
            level.open[row["request_id"]] = (log.path.stem, row["intended_at"] + self._offset(log))
        elif (begun := level.open.pop(row["request_id"], None)) is not None:
            level.turns += 1
            level.ended.append((begun[1], [row.get(name) for name in COLUMNS]))

    def _offset(self, log: Growing) -> float:
        name = log.path.stem
        if name not in self._offsets:
            self._offsets = clock_offsets({n: log.header.worker for n, log in self._growing.items() if log.header})
        return self._offsets[name]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis.judge", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    plan = verbs.add_parser("plan", help="what a capacity search costs")
    plan.add_argument("--targets", help="file, or name of a source")
    plan.add_argument("--first", type=int, default=1, help="users of its first level")
    plan.add_argument("--most", type=int, required=True, help="users of its largest level")
    plan.add_argument("--step", type=float, default=0.1, help="how close it comes, as a share of the answer")
    plan.add_argument("--planned", type=int, required=True, help="levels it may come by")
    plan.add_argument("--warm-up-s", type=float, default=0.0, help="of each level")
    plan.add_argument("--confidence", type=float, default=0.95, help="of the whole search")
    plan.add_argument("--turn-s", type=float, required=True, help="seconds from a user's turn to the next")
    plan.add_argument("--level-most-s", type=float, default=1800.0, help="when a level is given up")
    plan.add_argument("--turn-from", default="a guess", help="where that comes from")
    check = verbs.add_parser("check", help="whether targets fit the users of a run")
    check.add_argument("--targets", required=True, help="file, or name of a source")
    for verb in (plan, check):
        verb.add_argument("--protocols", nargs="+", default=["http_tts", "voice_agent"], help="what the users speak")
        verb.add_argument("--barge-in-share", type=float, default=1.0, help="of the users' turns")
    follow = verbs.add_parser("follow", help="judge the levels of a run as it goes on")
    follow.add_argument("run", type=Path)
    follow.add_argument("--targets", help="file, or name of a source")
    follow.add_argument("--alpha", type=float, default=0.05, help="of each level")
    return parser


if __name__ == "__main__":
    sys.exit(main())

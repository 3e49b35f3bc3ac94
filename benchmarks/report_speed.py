"""How long a report with verdicts over a million turns takes, and how much memory; sealing the logs is told apart.

The run is made once by tests/run_maker.py and kept in the temporary folder for the next time.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.processes import PYTHON, ROOT, ProcessFailed
from benchmarks.results import Outcome, Target
from workers.samples.schema import SCHEMA_VERSION

WORKERS = 8
MOST_S, MOST_GB = 10.0, 1.5


class Spent(NamedTuple):
    """What a command took."""

    wall_s: float
    cpu_s: float
    peak_rss_gb: float


def run(quick: bool, folder: Path) -> Outcome:
    turns = 50_000 if quick else 1_000_000
    outcome = Outcome({"turns": turns, "workers": WORKERS})
    made = _made(turns)
    for table in ("turns", "sessions", "workers"):
        shutil.rmtree(made / table, ignore_errors=True)
    sealing = _timed("workers", "seal", str(made))
    judged = ("--targets", "chatterbox", "--output", str(folder))
    reports = [_timed("analysis.report", str(made), *judged, may_end_with=(1, 2)) for _ in range(2)]
    parquet_bytes = sum(path.stat().st_size for path in made.glob("*/*.parquet"))
    outcome.figures = {
        "report": [spent._asdict() for spent in reports],
        "sealing": sealing._asdict(),
        "log_mb": sum(path.stat().st_size for path in made.glob("log/*")) / 1e6,
        "parquet_mb": parquet_bytes / 1e6,
    }
    outcome.targets = [
        Target(f"verdict of {turns:,} turns, the slower of two", max(r.wall_s for r in reports), MOST_S, "s"),
        Target("its peak memory", max(r.peak_rss_gb for r in reports), MOST_GB, "GB"),
    ]
    return outcome


def _made(turns: int) -> Path:
    """The run directory of that many turns; made anew when the maker or the schema changed."""
    maker = ROOT / "tests" / "run_maker.py"
    name = f"cicada-bench-run-{os.getuid()}-{turns}-{SCHEMA_VERSION}-{int(maker.stat().st_mtime)}"
    kept = Path(tempfile.gettempdir()) / name
    if not kept.exists():
        print(f"  making a run of {turns:,} turns in {kept} ...", flush=True)
        fresh = kept.with_name(f"{name}.{os.getpid()}")
        _timed("tests.run_maker", str(fresh), "--turns", str(turns), "--workers", str(WORKERS))
        fresh.rename(kept)
    return next(path.parent for path in kept.glob("*/run.json"))


def _timed(*words: str, may_end_with: tuple[int, ...] = ()) -> Spent:
    """Run `python -m words` to its end. Its peak counts it and what it waited for. Raises ProcessFailed."""
    command = [*PYTHON, *words]
    began_at = time.monotonic()
    with tempfile.TemporaryFile() as said:
        to_said = [(os.POSIX_SPAWN_DUP2, said.fileno(), 1), (os.POSIX_SPAWN_DUP2, said.fileno(), 2)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        pid = os.posix_spawn(command[0], command, env, file_actions=to_said)
        _, status, used = os.wait4(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code and code not in may_end_with:
            said.seek(0)
            raise ProcessFailed(f"{' '.join(command)} ended with {code}; {said.read().decode()[-2000:]}")
    return Spent(time.monotonic() - began_at, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9)

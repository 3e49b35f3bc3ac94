"""How long a capacity decision takes while a run goes on, and whether the master's loop feels it.

A run of 1,000 users at one level grows by a second's turns at a time; after each, the master asks its adviser (a child
process) how the level stands, as it does each second, while a 10 ms timer beside it says how late it woke.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.processes import ROOT
from benchmarks.results import Outcome, Target

USERS, TURNS_A_SECOND = 1_000, 200
MOST_MS, MOST_LAG_MS = 100.0, 100.0


def run(quick: bool, folder: Path) -> Outcome:
    seconds = 30 if quick else 300
    outcome = Outcome({"users": USERS, "turns_a_second": TURNS_A_SECOND, "seconds": seconds})
    made = subprocess.run(
        [sys.executable, "-m", "benchmarks.decision", str(folder), str(seconds)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = [float(word) for word in made.stdout.split()]
    asked_ms, lag_ms = told[:-1], told[-1]
    outcome.figures = {
        "turns_at_the_end": seconds * TURNS_A_SECOND,
        "decision_p50_ms": statistics.median(asked_ms),
        "decision_worst_ms": max(asked_ms),
        "loop_lag_worst_ms": lag_ms,
    }
    outcome.targets = [
        Target("a decision, asked each second, worst", max(asked_ms), MOST_MS, "ms"),
        Target("lateness of the master's loop meanwhile, worst", lag_ms, MOST_LAG_MS, "ms"),
    ]
    return outcome


def _master(folder: Path, seconds: int) -> None:
    """Be the master: append rows, ask, and watch the loop. Prints each decision's ms, then the worst lag's."""
    from gevent import monkey

    monkey.patch_all()
    import gevent

    from tests import run_maker
    from workers.adviser import Adviser

    log = folder / "log" / "w0.msgpack"
    log.parent.mkdir(parents=True)
    log.write_bytes(run_maker.packed_header(run_maker.facts()))
    targets = folder / "targets.yaml"
    targets.write_text("targets:\n  - ttfc p99.9 < 400 ms\n  - e2e p95 < 900 ms\n")
    adviser = Adviser(folder, "--targets", str(targets), "--alpha", "0.002")
    adviser.ask(USERS)  # it has read its libraries now
    worst_lag_s = 0.0

    def watch() -> None:
        nonlocal worst_lag_s
        while True:
            due_at = time.monotonic() + 0.01
            gevent.sleep(0.01)
            worst_lag_s = max(worst_lag_s, time.monotonic() - due_at)

    watching = None
    asked_ms = []
    with log.open("ab", buffering=0) as file:
        for second in range(seconds):
            rows = [
                run_maker.turn(
                    level=USERS, session=f"s{(second * TURNS_A_SECOND + at) % USERS}", turn=second,
                    intended_at=run_maker.MONOTONIC_AT + second + at / TURNS_A_SECOND, request_id=f"r{second}.{at}",
                )
                for at in range(TURNS_A_SECOND)
            ]  # fmt: skip
            packed = run_maker.packed
            file.write(b"".join(packed("turn_starts", run_maker.start_of(r)) + packed("turns", r) for r in rows))
            watching = gevent.spawn(watch)
            gevent.sleep(0)
            began_at = time.monotonic()
            adviser.ask(USERS)
            asked_ms.append((time.monotonic() - began_at) * 1000)
            watching.kill()
    adviser.close()
    print(*asked_ms, worst_lag_s * 1000)


if __name__ == "__main__":
    _master(Path(sys.argv[1]), int(sys.argv[2]))

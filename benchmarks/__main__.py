"""What the harness itself costs and how right it is: python -m benchmarks [NAME ...] [--quick]."""

import argparse
import importlib
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine, results
from benchmarks.processes import ProcessFailed

BENCHMARKS = (
    *("paced", "unpaced", "truth", "server_stamps", "recording", "memory", "report_speed", "decision"),
    *("sessions", "turn_truth", "speech_truth", "stall_truth", "session_memory", "pacing_drift", "agent"),
    *("duplex_sessions", "duplex_truth", "engine_batch", "engine_soak"),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="small and short: it says whether all runs, not how fast")
    options = parser.parse_args()
    for name in options.names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark is called {name!r}; there are {', '.join(BENCHMARKS)}")
    found: list[tuple[str, results.Outcome | str]] = []
    for name in options.names or BENCHMARKS:
        print(f"{name} ...", flush=True)
        found.append((name, _run(name, options.quick)))
    print("\n" + results.table(found))
    return 0 if all(isinstance(outcome, results.Outcome) and outcome.met for _, outcome in found) else 1


def _run(name: str, quick: bool) -> results.Outcome | str:
    module = importlib.import_module(f"benchmarks.{name}")
    before = machine.facts()
    began_at = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="cicada-bench-") as folder:
            outcome: results.Outcome = module.run(quick, Path(folder))
    except ProcessFailed as error:
        print(f"  {error}", file=sys.stderr, flush=True)
        return str(error).partition(";")[0]
    took_s = time.monotonic() - began_at
    path = results.write(name, before, outcome, quick, took_s)
    print(f"  {took_s:.0f} s, {path}", flush=True)
    for note in outcome.notes:
        print(f"  {note}", flush=True)
    return outcome


if __name__ == "__main__":
    sys.exit(main())

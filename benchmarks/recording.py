"""What it costs a worker to record one turn: both its rows, from the instants to the master's socket.

Each part is timed by itself, and all of them together, in batches, by the CPU time of a process that does nothing else
(benchmarks/record_turns.py). The relay ships over Locust's own channel to a receiver in another process.
"""

import json
from pathlib import Path

from benchmarks.processes import CLIENT_CORE, PYTHON, ROOT, SERVER_CORE, Running
from benchmarks.results import Outcome, Target

MOST_US = 10.0
CHUNKS = {"short_answer": 40, "long_answer": 200}


def run(quick: bool, folder: Path) -> Outcome:
    batches = 20 if quick else 200
    outcome = Outcome({"chunks": CHUNKS, "batches": batches, "rows_a_batch": 1000, "keep_chunks": 0.01})
    for name, chunks in CHUNKS.items():
        outcome.figures[name] = _measure(folder / f"{name}.msgpack", chunks, batches)
    for name in CHUNKS:
        target = Target(f"a turn recorded, {name}, median", outcome.figures[name]["all_us"], MOST_US, "µs")
        outcome.targets.append(target)
    outcome.notes.append(
        "all_us: turn_starts row + turns row + packing + two writes + the relay's share; telling Locust is beside it."
    )
    return outcome


def _measure(log: Path, chunks: int, batches: int) -> dict[str, float]:
    receiver = [*PYTHON, "benchmarks.record_turns", "--receive"]
    with Running(receiver, cwd=ROOT, core=SERVER_CORE) as receiving:
        port = receiving.wait_for("receiving on ").rpartition(" ")[2]
        doing = [*PYTHON, "benchmarks.record_turns", "--log", str(log), "--port", port]
        with Running([*doing, "--chunks", str(chunks), "--batches", str(batches)], cwd=ROOT, core=CLIENT_CORE) as does:
            found: dict[str, float] = json.loads(does.wait_for("{", 300))
    return found

"""The master's side of a run: its directory, the workers' logs as they come, and what became of each.

Knows nothing of Locust's events (hooks.py) and nothing of what is in a row.
"""

import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from workers import manifest
from workers.samples import parcels
from workers.samples.recorder import LogFull
from workers.samples.relay import Inlet, copy_tail

_log = logging.getLogger("cicada")

WorkerFacts = dict[str, Any]


class Collector:
    """One run's directory and run.json, kept up to date as the workers tell."""

    def __init__(self, run_dir: Path, opening: dict[str, Any]) -> None:
        self.run_dir = run_dir
        self.run: str = opening["run"]
        self.manifest = opening
        self.trouble: str | None = None
        self.full = False  # this machine's disk takes no more rows
        self._inlets: dict[str, Inlet] = {}
        manifest.write(run_dir, opening)

    @property
    def workers(self) -> dict[str, WorkerFacts]:
        found: dict[str, WorkerFacts] = self.manifest["workers"]
        return found

    def log_path(self, worker: str) -> Path:
        return self.run_dir / "log" / f"{worker}.msgpack"

    def joined(self, facts: WorkerFacts) -> None:
        """A worker takes part from now on."""
        self.workers.setdefault(
            facts["worker"],
            {
                **facts,
                "log_bytes": 0,
                "final_bytes": None,
                "rows": None,
                "turns": None,
                "drained": False,
                "recovered": False,
                "lost_bytes": None,
                "lost_rows": 0,
            },
        )
        manifest.write(self.run_dir, self.manifest)

    def take(self, worker: str, offset: int, data: bytes) -> int:
        """A range of a worker's log came; how much of the log is here now. Raises LogFull."""
        if worker not in self._inlets:
            self._inlets[worker] = Inlet(self.log_path(worker))
        try:
            return self._inlets[worker].take(offset, data)
        except LogFull as error:
            self.full = True
            fix = "free some space, or name another --runs-dir"
            self.trouble = self.trouble or f"cannot record rows: {error.strerror}; {fix}"
            raise

    def take_parcel(self, name: str, offset: int, data: bytes) -> None:
        """A piece of an audio file that a worker kept."""
        try:
            parcels.write(self.run_dir, name, offset, data)
        except OSError as error:
            self.manifest["listener_errors"] += 1
            _log.warning("clips/%s could not be written: %s", name, error.strerror)

    def size(self, worker: str) -> int:
        if worker in self._inlets:
            return self._inlets[worker].size
        path = self.log_path(worker)
        return path.stat().st_size if path.exists() else 0

    def drained(self, told: WorkerFacts) -> None:
        """A worker has ended its part; its log is `final_bytes` long."""
        facts = self.workers.get(told["worker"])
        if facts is not None and not facts["drained"]:
            facts.update(drained=True, **{key: told[key] for key in ("final_bytes", "rows", "turns", "lost_rows")})
            self.manifest["listener_errors"] += told["listener_errors"]

    def complete(self, worker: str) -> bool:
        """Whether the worker has ended its part and all its rows are here."""
        facts = self.workers[worker]
        return bool(facts["drained"]) and self.size(worker) >= facts["final_bytes"]

    def finish(self) -> list[str]:
        """Fetch what lost workers left on this machine, close run.json, make the tables; what is missing, in words."""
        missing = []
        for worker, facts in self.workers.items():
            if not self.complete(worker):
                missing.append(self._recover(worker, facts))
            elif facts["lost_rows"]:
                missing.append(f"worker {worker} could not record {facts['lost_rows']} rows")
            facts["log_bytes"] = self.size(worker)
            if facts["final_bytes"] is not None:
                facts["lost_bytes"] = max(0, facts["final_bytes"] - facts["log_bytes"])
        for inlet in self._inlets.values():
            inlet.close()
        self._inlets.clear()
        self.manifest.update(state="finished", ended_wall_at=time.time(), exit_reason=self.trouble)
        manifest.write(self.run_dir, self.manifest)
        sealed = subprocess.run(
            [sys.executable, "-m", "workers", "seal", str(self.run_dir)], capture_output=True, text=True, check=False
        )
        if sealed.returncode:
            missing.append(f"no tables were made: {sealed.stderr.strip() or sealed.returncode}; the log is whole")
        elif output_dir := self.manifest["scenario"].get("output_dir"):
            missing += self._export(output_dir)
        return missing

    def _export(self, output_dir: str) -> list[str]:
        """Write and show the run as NVIDIA's benchmark does; what went wrong, in words."""
        command = [sys.executable, "-m", "analysis.report", str(self.run_dir), "--export", "voice_agent"]
        made = subprocess.run([*command, "--output", output_dir], capture_output=True, text=True, check=False)
        print(made.stdout, flush=True)
        return [f"nothing was written to {output_dir}: {made.stderr.strip()}"] if made.returncode else []

    def _recover(self, worker: str, facts: WorkerFacts) -> str:
        spool = Path(facts["spool"])
        if facts["boot_id"] == manifest.boot_id() and spool.is_file():
            try:
                copy_tail(spool, self.log_path(worker))
            except (OSError, ValueError) as error:
                why = f"rows of worker {worker} are still on its disk and could not be copied: {error}"
                return f"{why}; then: python -m workers recover {spool} {self.run_dir}"
            facts["recovered"] = True
            return f"worker {worker} was lost; its rows were recovered from {spool}, turns under way count as cut"
        return (
            f"worker {worker} was lost with what it had not handed over; where its disk is at hand:"
            f" python -m workers recover {spool} {self.run_dir}"
        )

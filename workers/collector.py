"""The master's side of a run: its directory, the workers' logs as they come, and what became of each.

Knows nothing of Locust's events (hooks.py) and nothing of what is in a row.
"""

import logging
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers import manifest, target_facts
from workers.samples import parcels
from workers.samples.recorder import LogFull
from workers.samples.relay import Inlet, copy_tail
from workers.samples.schema import METRICS_LOG

if TYPE_CHECKING:
    from workers.master_dealing import Dealt
    from workers.scraping import Scraper

_log = logging.getLogger("cicada")

WorkerFacts = dict[str, Any]

TARGETS = "targets.yaml"


class Collector:
    """One run's directory and run.json, kept up to date as the workers tell."""

    def __init__(self, run_dir: Path, opening: dict[str, Any]) -> None:
        self.run_dir = run_dir
        self.run: str = opening["run"]
        self.manifest = opening
        self.trouble: str | None = None
        self.exit_code = 0  # what the targets come to: 0 they hold, 1 one is missed, 2 one cannot be judged
        self.full = False  # this machine's disk takes no more rows
        self.dealt: Dealt | None = None  # of a run with iterations
        self.level: tuple[int, bool] | None = None  # users, and whether turns count: of a run with load levels
        self._inlets: dict[str, Inlet] = {}
        urls: list[str] = opening["scenario"]["metrics"]
        opening["scenario"]["metrics"] = [manifest.without_credentials(url) for url in urls]
        manifest.write(run_dir, opening)
        self._scraper = self._scrape(urls) if urls else None
        self._keep_targets()

    @property
    def workers(self) -> dict[str, WorkerFacts]:
        found: dict[str, WorkerFacts] = self.manifest["workers"]
        return found

    @property
    def targets(self) -> str | None:
        """The targets of this run: the copy of their file, or the name of a source."""
        named: str | None = self.manifest["scenario"]["targets"]
        copy = self.run_dir / TARGETS
        return str(copy) if copy.exists() else named

    def ask_target(self, hosts: Iterable[str]) -> None:
        """Keep what the targets say of themselves: a mock's figures are no engine's. Blocks for seconds at most."""
        insecure = self.manifest["scenario"]["insecure"]
        found = {manifest.without_credentials(host): target_facts.ask(host, insecure=insecure) for host in hosts}
        self.manifest["target_facts"] = {host: facts for host, facts in found.items() if facts}
        if self.manifest["state"] == "running":
            manifest.write(self.run_dir, self.manifest)

    def _keep_targets(self) -> None:
        """A copy of the targets' file lies in the run: it can be judged again when the file has changed."""
        named = self.manifest["scenario"]["targets"]
        if named is not None and Path(named).is_file():
            (self.run_dir / TARGETS).write_bytes(Path(named).read_bytes())

    def enter_level(self, users: int) -> None:
        """The run's load is now of so many users."""
        self.manifest.setdefault("levels", []).append({"users": users, "entered_wall_at": time.time()})
        manifest.write(self.run_dir, self.manifest)

    def level_is(self, **facts: Any) -> None:
        """What there is to say of the level that was entered last."""
        self.manifest["levels"][-1].update(facts)
        manifest.write(self.run_dir, self.manifest)

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

    def mended_by(self) -> str:
        """The command that makes the tables, where the run was not closed."""
        logs = {str(self.log_path(worker).absolute()) for worker in self.workers}
        spools = [facts["spool"] for facts in self.workers.values() if facts["spool"] not in logs]
        words = ["recover", *spools, str(self.run_dir)] if spools else ["seal", str(self.run_dir)]
        return f"python -m workers {shlex.join(words)}"

    def finish(self) -> list[str]:
        """Fetch what lost workers left on this machine, close run.json, make the tables; what is missing, in words."""
        if self._scraper is not None:
            self.manifest["metrics_endpoints"] = self._scraper.stop()
            self._scraper = None
        if self.dealt is not None:
            self.dealt.close()
            self.manifest["lost_iterations"] = self.dealt.lost
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
        sealed = _made("workers", "seal", str(self.run_dir))
        if sealed.returncode:
            missing.append(f"no tables were made: {sealed.stderr.strip() or sealed.returncode}; the log is whole")
            return missing
        if output_dir := self.manifest["scenario"].get("output_dir"):
            missing += self._export("voice_agent", output_dir)
        if self.manifest["scenario"].get("mode") or self.manifest["scenario"].get("output"):
            missing += self._export("personaplex", self._output())
        if self.manifest.get("levels") or self.targets:
            missing += self._answer()
        return missing

    def _answer(self) -> list[str]:
        """Say what the run's levels prove, or whether its targets hold; what went wrong, in words."""
        verb = "capacity" if self.manifest.get("levels") else "report"
        made = _made(f"analysis.{verb}", str(self.run_dir))
        print(made.stdout, flush=True)
        self.exit_code = made.returncode
        return [made.stderr.strip().rpartition("\n")[2]] if made.stderr.strip() else []

    def _scrape(self, urls: list[str]) -> "Scraper":
        from workers.scraping import Scraper  # few runs need it, and every worker imports this module

        return Scraper(self.run_dir / METRICS_LOG, self.run, urls, insecure=self.manifest["scenario"]["insecure"])

    def _output(self) -> str:
        """The file for the run as JSON."""
        return str(self.manifest["scenario"].get("output") or Path("reports", f"{self.run}.json"))

    def _export(self, form: str, output: str) -> list[str]:
        """Write and show the run in another benchmark's form; what went wrong, in words."""
        words = ["analysis.report", str(self.run_dir), "--export", form, "--output", output]
        made = _made(*words)
        print(made.stdout, flush=True)
        why = made.stderr.strip().rpartition("\n")[2].rstrip(".")
        again = f"python -m {shlex.join(words)}"
        return [f"nothing was written to {output}: {why}; make it again with: {again}"] if made.returncode else []

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


def _made(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run `python -m WORDS` in a session of its own: Ctrl-C is for this process, which closes the run."""
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)

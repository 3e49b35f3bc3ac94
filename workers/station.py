"""A worker's (or single process's) part in runs: which one it is in, and how its rows reach the master.

Knows nothing of Locust's events; hooks.py calls it.
"""

import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from locust.runners import WorkerRunner

from workers import manifest
from workers.dealing import Said
from workers.iterations import Iteration
from workers.run import LiveRun
from workers.samples import parcels
from workers.samples.parcels import Parcels
from workers.samples.relay import Relay

HAND_OVER_S = 30.0  # without any progress for this long, nobody waits for rows any more


class Station:
    """The run a process is in."""

    def __init__(
        self, runner: Any, on_trouble: Callable[[str], None], say: Callable[[str, Said, Iteration], None]
    ) -> None:
        """say: to the master, of a run's iterations."""
        self._runner, self._on_trouble, self._say = runner, on_trouble, say
        self._distributed = isinstance(runner, WorkerRunner)
        self.worker = worker_name(runner.client_id)
        self.run: LiveRun | None = None
        self.relay: Relay | None = None
        self.parcels: Parcels | None = None
        self.drain_asked = False

    def join(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """Take part in the run that the master has described; the facts it should know, or None where that failed."""
        self.leave()
        self.drain_asked = False
        run_id = identity["run"]
        spool = Path(identity["scenario"]["spool_dir"], run_id)
        folder = spool if self._distributed else Path(identity["run_dir"], "log")
        log = (folder / f"{self.worker}.msgpack").absolute()
        facts = {
            "run": run_id,
            "worker": self.worker,
            "index": self._runner.worker_index,
            "host": socket.gethostname(),
            "boot_id": manifest.boot_id(),
            "pid": os.getpid(),
            "spool": str(log),
            "wall_at": time.time(),
            "monotonic_at": time.monotonic(),
        }
        try:
            say = partial(self._say, run_id) if identity["dealt"] else None
            run = self.run = LiveRun(identity, self.worker, facts, log, self._on_trouble, say=say)
        except (OSError, ValueError) as error:
            self._on_trouble(f"worker {self.worker} cannot take part: {error}")
            return None
        if self._distributed:
            self.relay = Relay(run_id, self.worker, log, lambda: run.recorder.size, self._runner.send_message)
            self.parcels = Parcels(run_id, self._runner.send_message)
        return facts

    def drain(self, grace_s: float) -> dict[str, Any] | None:
        """End this process's part and hand over everything; what the master should know, None outside a run.

        Blocks: never in a worker's receive loop.
        """
        run = self.run
        if run is None:
            return None
        self.drain_asked = True
        run.drain(grace_s, self._send_keepsakes)
        if self.relay is not None:
            self.relay.flush(HAND_OVER_S)
        return {
            "run": run.id,
            "worker": self.worker,
            "final_bytes": run.recorder.size,
            "rows": run.recorder.rows,
            "turns": run.turns,
            "lost_rows": run.lost_rows,
            "listener_errors": run.listener_errors,
        }

    def _send_keepsakes(self, run: LiveRun) -> None:
        for name, data in run.keepsakes():
            if self.parcels is not None:
                self.parcels.send(name, data, HAND_OVER_S)
            else:
                parcels.write(Path(run.run_dir), name, 0, data)

    def leave(self) -> None:
        """The run, if any, is over for this process."""
        run, relay = self.run, self.relay
        self.run = self.relay = self.parcels = None
        if run is None:
            return
        run.drain(0.0)
        if relay is not None:
            # The spool goes only when the master is known to have all of it.
            if relay.acknowledged >= run.recorder.size:
                run.recorder.path.unlink(missing_ok=True)
                _remove_if_empty(run.recorder.path.parent)
            relay.close()


def worker_name(client_id: str) -> str:
    """A worker's name in rows and files: its host and enough of Locust's random id."""
    host, _, unique = client_id.rpartition("_")
    return f"{host}_{unique[:8]}"


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # other workers' spools are still in it
        return

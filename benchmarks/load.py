"""Put real load on a server: a locust master and one worker, pinned, and a steady window in which to look at them.

The worker is what is measured: its CPU is its process's user and system time over the window.
"""

import json
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from benchmarks.processes import CLIENT_CORE, PYTHON, REST_CORE, ROOT, ProcessFailed, Running

USERS = ROOT / "benchmarks" / "users"
CONFIG_VARIABLE = "CICADA_BENCH"
# Anything may be said, nothing is too short or too long for its text; what is in flight at the end is cut at once.
_SCENARIO = ("--shortest-s-per-char", "0", "--longest-s-per-char", "10", "--drain-s", "0")
PCM = ("--dialect", "openai", "--format", "pcm")
NO_THINKING = ("--think-s", "0", "0")


@dataclass(slots=True)
class Load:
    """What a worker is to do. `options`: the scenario's, as on the command line; None: our hooks are not loaded."""

    locustfile: Path
    host: str
    users: int
    spawn_rate: float
    folder: Path
    options: Sequence[str] | None = None
    config: dict[str, Any] = field(default_factory=dict)  # read by benchmarks/users/


@dataclass(frozen=True, slots=True)
class Window:
    """A steady stretch of a run. Instants: monotonic seconds, good in all processes of this machine."""

    begin_at: float
    end_at: float
    cpu_s: float
    waited_s: float  # the worker was ready to run, and its core was not free

    @property
    def cpu_share(self) -> float:
        return self.cpu_s / (self.end_at - self.begin_at)

    @property
    def waited_share(self) -> float:
        """Above a few percent, this machine was not quiet, and neither are the figures."""
        return self.waited_s / (self.end_at - self.begin_at)

    def of(self, rows: pd.DataFrame, instant: str) -> pd.DataFrame:
        """The rows whose `instant` lies within."""
        return rows.loc[rows[instant].between(self.begin_at, self.end_at)]


class LiveLoad:
    """A master and a worker at work."""

    def __init__(self, master: Running, worker: Running, run_dir: Path | None) -> None:
        self.master, self.worker, self._run_dir = master, worker, run_dir

    def window(self, seconds: float) -> Window:
        """Look at the worker for `seconds`."""
        begin_at, cpu_s, waited_s = time.monotonic(), self.worker.cpu_s(), self.worker.waited_s()
        time.sleep(seconds)
        if not self.worker.process.is_running():
            raise ProcessFailed("the worker ended before the window did")
        end_at, spent_s = time.monotonic(), self.worker.cpu_s() - cpu_s
        return Window(begin_at, end_at, spent_s, self.worker.waited_s() - waited_s)

    @property
    def run_dir(self) -> Path:
        """Where the rows are; its tables are made when the load has ended."""
        assert self._run_dir is not None
        return self._run_dir

    def rows(self, table: str = "turns") -> pd.DataFrame:
        """A table of the run, once the load has ended."""
        shards = sorted((self.run_dir / table).glob("*.parquet"))
        rows: pd.DataFrame = pd.concat([pq.read_table(path).to_pandas() for path in shards])
        return rows


@contextmanager
def running(load: Load) -> Iterator[LiveLoad]:
    """Start the load, hand it over when all users are there, and end the run in order (Ctrl-C to the master)."""
    load.folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    env = {CONFIG_VARIABLE: json.dumps(load.config)}
    ours = load.options is not None
    scenario = ("--runs-dir", "runs", "--spool-dir", "spool", *_SCENARIO, *(load.options or ())) if ours else ()
    what = ("locust", "-f", str(load.locustfile))
    role = ("--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", str(port), "--expect-workers", "1")
    how_many = ("--users", str(load.users), "--spawn-rate", f"{load.spawn_rate:g}", "--host", load.host)
    shown = ("--headless", "--only-summary", "--exit-code-on-error", "0")
    joining = ("--worker", "--master-port", str(port))
    with (
        # Niced: it shares a core with the server, whose clock is the truth.
        Running(
            [*PYTHON, *what, *role, *how_many, *shown, *scenario], cwd=load.folder, core=REST_CORE, env=env, nice=10
        ) as master,
        Running([*PYTHON, *what, *joining], cwd=load.folder, core=CLIENT_CORE, env=env) as worker,
    ):
        said = master.wait_for("rows go to ").rpartition("rows go to ")[2] if ours else None
        master.wait_for("All users spawned", 60 + 3 * load.users / load.spawn_rate)
        yield LiveLoad(master, worker, load.folder / said if said else None)
        master.end(signal.SIGINT, 60)
        worker.wait(60)
        if said and not list((load.folder / said / "turns").glob("*.parquet")):
            raise ProcessFailed("the run left no tables:\n" + "\n".join(master.said))


def quantiles(values: "pd.Series[float]", scale: float = 1.0) -> dict[str, float | int]:
    """n, p50, p99 and the largest, of absolute values as they are."""
    if not len(values):
        return {"n": 0}
    return {
        "n": len(values),
        "p50": float(values.quantile(0.5)) * scale,
        "p99": float(values.quantile(0.99)) * scale,
        "max": float(values.max()) * scale,
    }


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])

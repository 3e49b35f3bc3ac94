"""Run Locust as its users do: real processes, in a folder of their own. Knows nothing of what is tested."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pandas as pd

from gpu_server.trace import read_trace

ROOT = Path(__file__).resolve().parent.parent
SPEAK = str(ROOT / "locustfiles" / "speak_http.py")

T = TypeVar("T")


def free_port() -> int:
    """A port nobody listens on, outside the range from which connections get theirs."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def until(probe: Callable[[], T | None], within_s: float, what: str) -> T:
    """What `probe` returns once that is neither None nor false."""
    deadline = time.monotonic() + within_s
    while True:
        found = probe()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.01)


class Locust:
    """A started process and what it has said so far."""

    def __init__(self, args: list[str], cwd: Path, env: dict[str, str] | None = None, module: str = "locust") -> None:
        command = [sys.executable, "-u", "-m", module, *args]
        self.cwd = cwd
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env=os.environ | {"PYTHONPATH": str(ROOT), "LOCUST_SKIP_URLLIB3_PATCH": "1"} | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    def wait_for(self, text: str, within_s: float = 30.0, times: int = 1) -> str:
        """The line in which `text` is said, for the `times`-th time."""

        def probe() -> str | None:
            found = [line for line in list(self.lines) if text in line]
            assert len(found) >= times or self.process.poll() is None, f"ended without {text!r}:\n{self.said}"
            return found[times - 1] if len(found) >= times else None

        return until(probe, within_s, f"{text!r} in:\n{self.said}")

    def signal_group(self, number: int) -> None:
        """As a terminal does on Ctrl-C: to every process of the group."""
        os.killpg(self.process.pid, number)

    def end(self, within_s: float = 60.0) -> int:
        """Wait for the end; the exit status."""
        code = self.process.wait(within_s)
        self._reader.join(10)
        return code

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(10)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def locust(*args: str, cwd: Path, env: dict[str, str] | None = None, module: str = "locust") -> Iterator[Locust]:
    """Start `python -m locust ARGS` in `cwd`; kill what is left of it afterwards."""
    started = Locust(list(args), cwd, env, module)
    try:
        yield started
    finally:
        started.kill()


def run_locust(*args: str, cwd: Path, env: dict[str, str] | None = None, within_s: float = 60.0) -> Locust:
    """Run it to its end; `.process.returncode` and `.said` tell how it went."""
    with locust(*args, cwd=cwd, env=env) as started:
        started.end(within_s)
        return started


def run_dirs(cwd: Path) -> list[Path]:
    return sorted(path for path in (cwd / "runs").iterdir() if path.is_dir() and not path.is_symlink())


def turns(run_dir: Path) -> pd.DataFrame:
    return pd.read_parquet(run_dir / "turns")


def heard_by_server(trace: Path, run: str) -> set[str]:
    """Request ids of a run in the server's own trace: what nobody on our side can have miscounted."""
    return {row["request_id"] for row in read_trace(trace)[1] if (row["request_id"] or "").startswith(f"{run}.")}

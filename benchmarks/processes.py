"""Start processes on cores of their own, hear what they say, and end them. Knows nothing of load."""

import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import psutil

ROOT = Path(__file__).resolve().parent.parent
PYTHON = (sys.executable, "-u", "-m")
_CORES = sorted(os.sched_getaffinity(0))
CLIENT_CORE = _CORES[0] if len(_CORES) > 1 else None
SERVER_CORE = _CORES[1] if len(_CORES) > 1 else None
REST_CORE = _CORES[2] if len(_CORES) > 2 else SERVER_CORE  # the master: it must not share the worker's core

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl


class ProcessFailed(RuntimeError):
    """A process ended, or kept silent, where something was expected of it."""


class Running:
    """A child process, pinned to `core`, whose output is read as it comes. A context: left, it is ended."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        core: int | None = None,
        env: dict[str, str] | None = None,
        nice: int = 0,
    ) -> None:
        self.command = command

        def prepare() -> None:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # a benchmark that is killed leaves no load behind
            if core is not None:
                os.sched_setaffinity(0, {core})
            if nice:
                os.nice(nice)

        self._popen = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the benchmark, which ends them in order
            preexec_fn=prepare,  # noqa: PLW1509 - it only makes three system calls
        )
        self.process = psutil.Process(self._popen.pid)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.said: deque[str] = deque(maxlen=400)
        self._hearing = threading.Thread(target=self._hear, daemon=True)
        self._hearing.start()

    def _hear(self) -> None:
        for line in self._popen.stdout or ():
            self.said.append(line.rstrip())
            self._lines.put(line.rstrip())
        self._lines.put(None)

    def wait_for(self, words: str, timeout_s: float = 60.0) -> str:
        """The first line, from where hearing stopped last, that has `words`. Raises ProcessFailed."""
        until = time.monotonic() + timeout_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise self._failed(f"did not say {words!r} in {timeout_s:g} s") from None
            if line is None:
                raise self._failed(f"ended without saying {words!r}")
            if words in line:
                return line

    def _failed(self, why: str) -> ProcessFailed:
        # It may be written down: where this checkout lies is nobody's business.
        command = " ".join(self.command).replace(f"{ROOT}/", "")
        return ProcessFailed(f"{command} {why}; it said:\n" + "\n".join(list(self.said)[-25:]))

    def cpu_s(self) -> float:
        """User and system time so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def waited_s(self) -> float:
        """How long its main thread was ready to run so far and had no core: somebody else's work, or a busy host."""
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[1]) / 1e9

    def peak_rss_bytes(self) -> int:
        """The most resident memory it ever had (Linux's VmHWM)."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise self._failed("has no VmHWM")

    def wait(self, timeout_s: float) -> int:
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise self._failed(f"did not end in {timeout_s:g} s") from None

    def end(self, with_signal: int = signal.SIGTERM, timeout_s: float = 20.0) -> int:
        """Ask it to end, make it end where it does not; its exit status."""
        if self._popen.poll() is None:
            self._popen.send_signal(with_signal)
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            return self._popen.wait()

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end(timeout_s=5.0)
        self._hearing.join(5.0)
        if self._popen.stdout is not None and not self._hearing.is_alive():
            self._popen.stdout.close()

"""The analysis as a child process beside a run: what a search costs, how a level stands. Knows nothing of rows.

The load path imports no analysis; a child that thinks for a second does not keep the master from its heartbeats.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gevent
from gevent.lock import Semaphore
from gevent.subprocess import PIPE, Popen

ANSWER_S = 20.0

_JUDGE = [sys.executable, "-m", "analysis.judge"]


class AdviserGone(Exception):
    """The child ended or fell silent; the text is one line that says what it said last."""


def check(targets: str, protocols: Iterable[str], barge_in_share: float) -> None:
    """Raises ValueError with one line where there are no such targets, or they do not fit users of these protocols."""
    _asked("check", "--targets", targets, "--barge-in-share", str(barge_in_share), "--protocols", *protocols)


def plan(*options: str) -> str:
    """What a search with these options costs. Raises ValueError with one line where it cannot be searched with."""
    return _asked("plan", *options)


def _asked(*words: str) -> str:
    made = subprocess.run([*_JUDGE, *words], capture_output=True, text=True, check=False)
    if made.returncode:
        raise ValueError(made.stderr.strip().rpartition("\n")[2] or f"analysis.judge ended with {made.returncode}")
    return made.stdout.rstrip()


class Adviser:
    """Follows one run's logs, and says how its levels stand."""

    def __init__(self, run_dir: Path, *options: str) -> None:
        self._child = Popen([*_JUDGE, "follow", str(run_dir), *options], stdin=PIPE, stdout=PIPE, stderr=PIPE)
        self._one_at_a_time = Semaphore()

    def ask(self, users: int) -> dict[str, Any]:
        """How the level of so many users stands. Blocks the calling greenlet only. Raises AdviserGone."""
        with self._one_at_a_time:
            try:
                self._child.stdin.write(json.dumps({"level": users}).encode() + b"\n")
                self._child.stdin.flush()
                with gevent.Timeout(ANSWER_S):
                    line = self._child.stdout.readline()
            except (OSError, ValueError, gevent.Timeout):
                line = b""
            if not line:
                raise AdviserGone(f"the levels can no longer be judged: {self._last_words()}")
            found: dict[str, Any] = json.loads(line)
            return found

    def _last_words(self) -> str:
        if self._child.poll() is None:
            return f"analysis.judge said nothing for {ANSWER_S:g} s"
        said = self._child.stderr.read().decode(errors="replace").strip()
        return said.rpartition("\n")[2] or f"analysis.judge ended with {self._child.returncode}"

    def close(self) -> None:
        """End the child; harmless when it has ended."""
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
            with suppress(OSError):  # a question that nobody heard is flushed into nothing
                pipe.close()

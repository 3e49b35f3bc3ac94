"""--mock: the bundled server as a child of this process, so that a run needs no model, no GPU and no network.

Knows nothing of Locust, and nothing of the server but its command line and its ready line.
"""

import atexit
import ctypes
import importlib.util
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import IO

_READY_WITHIN_S = 60.0
_END_WITHIN_S = 5.0
_PR_SET_PDEATHSIG = 1


def start(sessions: int) -> tuple[str, str]:
    """Start a server of so many sessions at a time: its ws:// address, and the engine that speaks. Raises OSError.

    It ends with this process, whatever that one's end.
    """
    engine = "espeak" if importlib.util.find_spec("espeakng_loader") else "tone"
    command = [sys.executable, "-m", "gpu_server", "--port", "0", "--engine", engine, "--sessions", str(sessions)]
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - the child writes to it as long as it lives
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=said,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C is for this process, which lets answers under way end
        preexec_fn=_dying_with_its_parent(),  # noqa: PLW1509 - one system call
    )
    atexit.register(_stop, child)
    until = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < until:
        if url := _ready(said):
            return url.replace("http://", "ws://"), engine
        if child.poll() is not None:
            break
        time.sleep(0.02)
    last = _lines(said)[-1:] or ["it said nothing"]
    raise OSError(
        f"mock: the bundled server did not start: {last[0]}; does `python -m gpu_server --port 0` start here?"
    )


def _ready(said: IO[str]) -> str | None:
    return next((line.partition(" on ")[2].split()[0] for line in _lines(said) if " on http" in line), None)


def _lines(said: IO[str]) -> list[str]:
    said.seek(0)
    return said.read().splitlines()


def _dying_with_its_parent() -> Callable[[], object] | None:
    """What a child calls before it becomes another program; None where there is no such thing."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # loaded here: a forked child should do as little as it can
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _stop(child: "subprocess.Popen[bytes]") -> None:
    child.terminate()
    try:
        child.wait(_END_WITHIN_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()

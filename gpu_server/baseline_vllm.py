"""A server of OpenAI's speech route under Locust, its turns written in S2's format. Measures nothing: its children do.

Both children are programs of this project that only the extras `load` and `analysis` bring what they need for.
"""

import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from gpu_server.speech import EngineUnavailable

LOCUSTFILE = Path(__file__).parents[1] / "locustfiles" / "speak_http.py"
WARM_UP_S = 10.0
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Asked:
    """Which server, by how many users at a time, for how long. model: what the server calls it; None: tts-1."""

    engine: str
    host: str
    users: int
    run_time_s: float
    model: str | None
    out: Path


def run(asked: Asked) -> int:
    """Ask the server for the five texts, one after the other; the exit status. Raises EngineUnavailable."""
    missing = [name for name in ("locust", "pandas", "pyarrow") if find_spec(name) is None]
    if missing:
        raise EngineUnavailable(f"--kind vllm: {missing[0]} is not installed; run: pip install -e '.[load,analysis]'")
    runs = Path("runs") / f"vllm-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    run_time = ["--run-time", f"{WARM_UP_S + asked.run_time_s:.0f}s"]
    load = ["--host", asked.host, "--users", str(asked.users), "--spawn-rate", str(asked.users), *run_time]
    spoken = ["--dialect", "openai", "--think-s", "0", "0", "--warm-up-s", f"{WARM_UP_S:g}", "--name", "vllm"]
    kept = ["--runs-dir", str(runs), "--spool-dir", str(runs / "spool")]
    named = ["--model", asked.model] if asked.model is not None else []
    locust = ["locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary", *load, *spoken, *kept, *named]
    interrupted = _child(locust)
    if not (runs / "latest").exists():
        raise EngineUnavailable(f"--kind vllm: Locust made no run against {asked.host}; what it said stands above")
    exported = [str(runs / "latest"), "--type", "vllm", "--engine", asked.engine, "--out", str(asked.out)]
    status = subprocess.run([sys.executable, "-m", "analysis.exports.s2_benchmark", *exported], check=False).returncode
    return INTERRUPTED if interrupted else status


def _child(command: list[str]) -> bool:
    """Run a module to its end; whether Ctrl-C ended it. A session of its own: it is told once, by us."""
    process = subprocess.Popen([sys.executable, "-m", *command], start_new_session=True)
    try:
        process.wait()
        return False
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        process.wait()
        return True

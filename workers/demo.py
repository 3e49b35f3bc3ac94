"""The shortest way to see all of it: the bundled server, a master, two workers, twenty seconds, a report.

Everything runs on this machine, on free loopback ports, and is stopped again whatever happens.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
_PYTHON = [sys.executable, "-u", "-m"]


def demo(run_time: str) -> int:
    """Run it; the exit status."""
    started: list[subprocess.Popen[str]] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the way out is the same as any other
    try:
        return _demo(run_time, started)
    except KeyboardInterrupt:
        return 130
    finally:
        for process in reversed(started):
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for process in started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


def _demo(run_time: str, started: list[subprocess.Popen[str]]) -> int:
    (ROOT / "runs").mkdir(exist_ok=True)
    trace = ROOT / "runs" / f"demo-server-{os.getpid()}.jsonl"
    print("Starting the bundled server: espeak, paced like an engine (first audio after 120 ms, RTF 0.3), and a voice")
    print(
        "agent whose stages take 60 ms (speech recognition), 250 ms (language model) and 120 ms (speech); it talks full"
    )
    print("duplex, too, as PersonaPlex does ...")
    agent = ["--agent-delays", "asr=0.06,llm=0.25", "--greeting", "Hello, how can I help?", "--agent-log", os.devnull]
    duplex = ["--sessions", "16", "--duplex-log", os.devnull]
    speech = ["--pace", "120,0.3", "--trace", str(trace)]
    server = _start([*_PYTHON, "gpu_server", "--port", "0", *speech, *agent, *duplex], started)
    assert server.stdout is not None
    ready = server.stdout.readline()
    if " on http" not in ready:
        print("The server did not start.", file=sys.stderr)
        return 1
    url = ready.split(" on ", 1)[1].split()[0]
    print(f"  {ready.strip()}\nRunning 1 master and 2 workers for {run_time} against {url} ...", flush=True)
    port = _free_port()
    for _ in range(2):
        _start([*_PYTHON, "locust", "-f", "-", "--worker", "--master-port", str(port), "--skip-log-setup"], started)
    load = ["--users", "36", "--spawn-rate", "18", "--run-time", run_time]
    files = ",".join(f"locustfiles/{name}.py" for name in ("speak_http", "talk_voice_agent", "talk_personaplex"))
    role = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", str(port), "--expect-workers", "2"]
    calls = url.replace("http://", "ws://")
    what = ["-f", files, "--scenario", "configs/demo.yaml", "--host", url, "--agent-host", calls, "--servers", calls]
    shown = ["--headless", "--only-summary"]
    master = _start([*_PYTHON, "locust", *role, *what, *shown, *load], started)
    said: list[str] = []
    try:
        _follow(master.stdout, said)
    except KeyboardInterrupt:
        print("\nStopping; what was heard so far is kept ...", flush=True)
        master.send_signal(signal.SIGINT)
        _follow(master.stdout, said)
    run_dir = next((line.rpartition("rows go to ")[2] for line in said if "rows go to " in line), None)
    code = master.wait()
    if run_dir is None:
        print(*said[-20:], "No run was made; see the lines above.", sep="\n", file=sys.stderr)
        return code or 1
    kept = Path(run_dir) / "server_trace.jsonl"
    trace.replace(kept)
    print(flush=True)
    reported = subprocess.run([*_PYTHON, "analysis.report", run_dir, "--server-log", str(kept)], cwd=ROOT, check=False)
    print(f"\nThe run directory: {run_dir}")
    return code or reported.returncode


def _start(command: list[str], started: list[subprocess.Popen[str]]) -> "subprocess.Popen[str]":
    # A process group of its own: Ctrl-C is for this process, which ends the others in order.
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    started.append(process)
    if "--worker" in command:
        threading.Thread(target=lambda pipe: pipe.read(), args=(process.stdout,), daemon=True).start()
    return process


def _follow(lines: IO[str] | None, said: list[str]) -> None:
    """Show, and keep in `said`, what the master says of itself until it ends."""
    for line in lines or ():
        said.append(line.rstrip())
        if "/cicada: " in line or "/ERROR/" in line or "/WARNING/" in line:
            print(" ", said[-1].partition("/cicada: ")[2] or said[-1], flush=True)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])

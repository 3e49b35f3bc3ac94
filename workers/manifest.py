"""The run directory and its run.json: what ran, where, with what. Knows nothing of rows.

No secret is ever written: the token is no setting, and credentials in a URL are cut out.
"""

import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from workers.samples.schema import SCHEMA_VERSION


def boot_id() -> str:
    """Which boot of which machine this is: processes that agree share a monotonic clock."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def without_credentials(text: str) -> str:
    """An address, or a line with one, without passwords and without the values of its query."""
    text = re.sub(r"//[^/\s]+@", "//[redacted]@", text)  # greedy: a password may hold an @
    return re.sub(r"(//[^\s?]+\?)\S+", r"\1[redacted]", text)


def new_run_dir(runs_dir: Path, name: str) -> Path:
    """Make `runs_dir/<time>-<name>/log` and point `latest` at it. Raises OSError."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{re.sub(r'[^A-Za-z0-9_.]+', '_', name)}"
    number = 1
    while True:
        run_dir = runs_dir / (stem if number == 1 else f"{stem}-{number}")
        try:
            (run_dir).mkdir(parents=True)
            break
        except FileExistsError:
            number += 1
    (run_dir / "log").mkdir()
    fresh = runs_dir / f".latest-{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(run_dir.name)
    fresh.replace(runs_dir / "latest")
    return run_dir


def opening(
    run: str, host: str | None, scenario: dict[str, Any], users: int | None, command: list[str]
) -> dict[str, Any]:
    """run.json as it stands while the run goes on."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run,
        "state": "running",
        "name": scenario["name"],
        "started_wall_at": time.time(),
        "ended_wall_at": None,
        "host": without_credentials(host or ""),
        "users": users,
        "scenario": scenario,
        "command": [without_credentials(word) for word in command],
        "versions": _versions(),
        "machine": {
            "host": socket.gethostname(),
            "boot_id": boot_id(),
            "system": platform.platform(),
            "cpus": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
        },
        "git": _git_commit(),
        "exit_reason": None,
        "listener_errors": 0,
        "workers": {},
    }


def write(run_dir: Path, manifest: dict[str, Any]) -> None:
    """Replace run.json in one step: a reader never sees half of one."""
    fresh = run_dir / ".run.json"
    fresh.write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    fresh.replace(run_dir / "run.json")


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in ("cicada-load", "locust", "gevent", "geventhttpclient", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # run from a checkout that was not installed
    return found


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None

"""What machine a figure was made on, and how busy it was. Knows nothing of benchmarks."""

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

_PACKAGES = (
    "locust",
    "gevent",
    "geventhttpclient",
    "greenlet",
    "msgpack",
    "numpy",
    "pandas",
    "pyarrow",
    "sphn",
    "uvicorn",
)


def facts() -> dict[str, Any]:
    """Read now: the load average is that of the minutes before."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "libraries": {name: version for name in _PACKAGES if (version := _version(name))},
        "load_average_before": [round(load, 2) for load in os.getloadavg()],
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

"""Do something dear once for all of pytest-xdist's workers, and hand its result to every one. Knows nothing of it."""

import fcntl
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")
_here: dict[str, Any] = {}


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], T]) -> T:
    """What `make`, which gets a folder of its own, returned to the first who asked; others get a copy (pickle).

    Under `--dist worksteal` a module's tests go to several workers, and a module fixture would be made in each.
    """
    if name in _here:
        found: T = _here[name]
        return found
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    result = shared / f"{name}.pickle"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not result.exists():
            made = make(tmp_path_factory.mktemp(name))
            partial = result.with_suffix(".partial")
            partial.write_bytes(pickle.dumps(made))
            partial.rename(result)
    _here[name] = found = pickle.loads(result.read_bytes())
    return found

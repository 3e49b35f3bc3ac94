"""Hand whole files from a worker to the master, piece by piece: kept audio. Knows nothing of what is in them.

One piece is under way at a time, none larger than 256 kB, so that heartbeats are never far behind. A parcel that is
lost costs a file of audio, never a row: rows have their own way (relay.py).
"""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gevent.event import Event

PIECE_BYTES = 256 * 1024
FOLDER = "clips"

_log = logging.getLogger("cicada")


class Parcels:
    """A worker's end."""

    def __init__(self, run: str, send: Callable[[str, dict[str, Any]], None]) -> None:
        self._run, self._send = run, send
        self._acknowledged = Event()

    def send(self, name: str, data: bytes, patience_s: float) -> None:
        """Send a file and wait until the master has it, or has been silent for `patience_s` seconds."""
        for offset in range(0, len(data), PIECE_BYTES):
            self._acknowledged.clear()
            piece = data[offset : offset + PIECE_BYTES]
            self._send("cicada_parcel", {"run": self._run, "name": name, "offset": offset, "data": piece})
            if not self._acknowledged.wait(patience_s):
                _log.warning("the master did not take %s: it is not kept", name)
                return

    def acknowledge(self) -> None:
        self._acknowledged.set()


def write(run_dir: Path, name: str, offset: int, data: bytes) -> None:
    """Put a piece of a file into the run's `clips/`. Raises OSError."""
    folder = run_dir / FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / re.sub(r"[^A-Za-z0-9_.\-]+", "_", name)
    with path.open("r+b" if offset else "wb") as file:
        file.seek(offset)
        file.write(data)

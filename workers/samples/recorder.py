"""Append rows to this worker's log. One write a row, so that a killed process loses none. Knows nothing of runs.

The format is told in schema.py.
"""

import os
from pathlib import Path
from typing import Any

import msgpack

from workers.samples.schema import SCHEMA_VERSION, TABLES, names


class LogFull(OSError):
    """The log cannot be written any more (disk full, quota, file size limit). What is in it stays whole."""


class Recorder:
    """An append-only log file. `size` is its length in bytes, always at the end of a whole row."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._packer = msgpack.Packer(unicode_errors="replace")  # a server's message may hold half a surrogate pair
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self.size = 0
        self.rows = 0
        self._write(
            self._packer.pack({"cicada": SCHEMA_VERSION, "tables": {t: names(t) for t in TABLES}, "worker": facts})
        )

    def append(self, table: str, row: list[Any]) -> None:
        """Write one row (values in the schema's order; trailing nulls may be left out). Raises LogFull."""
        self._write(self._packer.pack([table, *row]))
        self.rows += 1

    def _write(self, data: bytes) -> None:
        try:
            done = os.write(self._file, data)
        except OSError as error:
            raise LogFull(error.errno, f"{error.strerror}: {self.path}") from error
        if done != len(data):
            os.ftruncate(self._file, self.size)  # no torn row: the log ends where the last whole one does
            raise LogFull(None, f"no space left for {self.path}")
        self.size += done

    def close(self) -> None:
        os.close(self._file)

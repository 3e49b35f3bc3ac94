"""Read what a worker wrote, however it ended. Knows nothing of Parquet or metrics.

A log is read as a stream, in batches, so that its size does not matter. A worker may have been killed in the middle of
a row, and a disk or a relay may have spoilt bytes in the middle of a file: what cannot be read is stepped over, counted
and named, and reading goes on at the next row.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgpack

from workers.samples import schema

BATCH_ROWS = 20_000
READ_BYTES = 1 << 20
LARGEST_ROW_BYTES = 8 << 20  # a value longer than this is no row: some spoilt byte claimed a length

_UNDECODABLE = (ValueError, TypeError, msgpack.exceptions.UnpackException, msgpack.exceptions.StackError)


class ForeignLog(ValueError):
    """A file that is no log of ours, or that a newer version wrote."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the first value of a log says: schema version, columns of each table, facts of its worker."""

    version: int
    tables: dict[str, list[str]]
    worker: dict[str, Any]


@dataclass(slots=True)
class Log:
    """A log open for reading: iterate over `batches()`; the counts are right once that is exhausted.

    lost_bytes: unreadable bytes with readable rows after them. torn_bytes: what is unreadable at the end.
    `header` is None where the file ends before its first value does: a worker that never got to write.
    """

    path: Path
    header: Header | None
    size_bytes: int
    rows_from: int
    lost_bytes: int = 0
    torn_bytes: int = 0

    def batches(self, size: int = BATCH_ROWS) -> Iterator[tuple[str, list[list[Any]]]]:
        """Yield (table, rows), at most `size` rows at a time, each row's values in the header's order."""
        held: dict[str, list[list[Any]]] = {}
        for table, *values in self._rows():
            rows = held.setdefault(table, [])
            rows.append(values)
            if len(rows) >= size:
                yield table, held.pop(table)
        yield from held.items()

    def _rows(self) -> Iterator[list[Any]]:
        if self.header is None:
            self.torn_bytes = self.size_bytes
            return
        widths = {table: len(columns) + 1 for table, columns in self.header.tables.items()}
        beginning = _row_beginning(widths)
        sound_to = self.rows_from
        with self.path.open("rb") as file:
            while sound_to < self.size_bytes:
                for row, end in _sound_rows(file, sound_to, self.size_bytes, widths):
                    sound_to = end
                    yield row
                found = _find(file, beginning, sound_to + 1, self.size_bytes)
                if found is None:
                    self.torn_bytes = self.size_bytes - sound_to
                    return
                self.lost_bytes += found - sound_to
                sound_to = found


def read_log(path: Path) -> Log:
    """Open a log and read its header.

    Raises ForeignLog for a file that is no log, or one of a schema newer than this program knows.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        unpacker = _unpacker()
        unpacker.feed(file.read(min(size, READ_BYTES)))
        try:
            first = unpacker.unpack()
        except msgpack.OutOfData:
            if size >= READ_BYTES:
                raise ForeignLog(f"{path} is not a Cicada log") from None
            return Log(path, None, size, size)
        except _UNDECODABLE:
            raise ForeignLog(f"{path} is not a Cicada log") from None
        return Log(path, _header(first, path), size, unpacker.tell())


def _header(first: object, path: Path) -> Header:
    if not isinstance(first, dict) or not isinstance(first.get("cicada"), int):
        raise ForeignLog(f"{path} is not a Cicada log")
    version = first["cicada"]
    if version > schema.SCHEMA_VERSION:
        raise ForeignLog(
            f"{path} was written by a newer Cicada (row schema {version}, this one knows {schema.SCHEMA_VERSION}): "
            "read it with the version that wrote it, or a later one"
        )
    tables, worker = first.get("tables"), first.get("worker")
    if not isinstance(tables, dict) or not isinstance(worker, dict):
        raise ForeignLog(f"{path} is not a Cicada log: its header names no tables or no worker")
    return Header(version, tables, worker)


def _unpacker() -> msgpack.Unpacker:
    return msgpack.Unpacker(raw=False, strict_map_key=False, max_buffer_size=2 * LARGEST_ROW_BYTES)


def _sound_rows(file: BinaryIO, start: int, stop: int, widths: dict[str, int]) -> Iterator[tuple[list[Any], int]]:
    """Yield (row, offset of its end) from `start` until something is no row, or the bytes end."""
    unpacker = _unpacker()
    file.seek(start)
    fed = sound_to = start
    while chunk := file.read(min(READ_BYTES, stop - fed)):
        fed += len(chunk)
        unpacker.feed(chunk)
        try:
            for row in unpacker:
                if type(row) is not list or not row or type(row[0]) is not str:
                    return
                if len(row) > widths.get(row[0], 0):
                    return
                sound_to = start + unpacker.tell()
                yield row, sound_to
        except _UNDECODABLE:
            return
        if fed - sound_to > LARGEST_ROW_BYTES:
            return


def _row_beginning(tables: dict[str, int]) -> re.Pattern[bytes]:
    """How a row begins: a msgpack array header, then the name of its table."""
    names = b"|".join(re.escape(msgpack.packb(name)) for name in tables)
    return re.compile(rb"(?:[\x91-\x9f]|\xdc..)(?:" + names + rb")", re.DOTALL)


def _find(file: BinaryIO, pattern: re.Pattern[bytes], start: int, stop: int) -> int | None:
    overlap = 64  # longer than any match
    while start < stop:
        file.seek(start)
        block = file.read(min(READ_BYTES, stop - start))
        if found := pattern.search(block):
            return start + found.start()
        if start + len(block) >= stop:
            return None
        start += len(block) - overlap
    return None


class Growing:
    """A log that is still written: each `read` gives the rows that came since the last one.

    Raises ForeignLog as `read_log` does. A row that has come in part waits for its rest. Bytes that are no row end the
    reading: `spoilt` then says so, since what follows cannot be trusted to be all there is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: Header | None = None
        self.spoilt = False
        self._read_to = 0
        self._unpacker = _unpacker()

    def read(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield (table, values in the header's order) of each new row."""
        with self.path.open("rb") as file:
            file.seek(self._read_to)
            while not self.spoilt and (data := file.read(READ_BYTES)):
                self._read_to += len(data)
                self._unpacker.feed(data)
                yield from self._rows()

    def _rows(self) -> Iterator[tuple[str, list[Any]]]:
        try:
            for value in self._unpacker:
                if self.header is None:
                    self.header = _header(value, self.path)
                elif type(value) is list and value and value[0] in self.header.tables:
                    yield value[0], value[1:]
                else:
                    self.spoilt = True
                    return
        except _UNDECODABLE:
            self.spoilt = True

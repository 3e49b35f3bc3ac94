"""Logs of rows into Parquet shards, in bounded memory. Knows nothing of metrics or verdicts.

The load path never imports this module.
"""

import gc
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workers.samples import schema
from workers.samples.logs import BATCH_ROWS, ForeignLog, Log, read_log

SEALED_TABLES = ("server", "sessions", "workers", "turns")  # turns is put in place last: its footer vouches for all
FOOTER = b"cicada"
METRICS_SHARD = "server/metrics/scraped.parquet"

_ARROW = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "floats": pa.list_(pa.float64()),
}
_UNLIKE = ("request_id", "stream_id")  # text that differs in every row gains nothing from a dictionary
_UNFIT = (pa.ArrowException, ValueError, TypeError, OverflowError)


@dataclass(frozen=True, slots=True)
class SealedLog:
    """What became of one worker's log. `facts` is its header's: host, boot_id, wall_at, monotonic_at ..."""

    worker: str
    facts: dict[str, Any]
    log_bytes: int
    rows: dict[str, int]  # table -> rows kept
    starts: int  # turns that began
    started_without_end: int  # of these, turns whose end is not in the log; they stand in turns as cut
    duplicates: int  # rows that were there twice, and were kept once
    spoilt_rows: int  # rows whose values do not fit their columns, left out
    lost_bytes: int
    torn_bytes: int


@dataclass(frozen=True, slots=True)
class Sealed:
    """A run's sealed logs by worker, and the files in its log directory that were refused, with the reason."""

    logs: dict[str, SealedLog]
    refused: dict[str, str]


def seal(run_dir: Path) -> Sealed:
    """Make each log's Parquet shards where they are missing or older than the log. Safe to repeat, and to interrupt.

    Shards whose log is gone are taken as they are.
    """
    sealed: dict[str, SealedLog] = {}
    refused: dict[str, str] = {}
    for path in sorted((run_dir / "log").glob("*.msgpack")):
        shard = run_dir / "turns" / f"{path.stem}.parquet"
        try:
            known = read_footer(shard)
            fresh = known is not None and _is_fresh(known, shard, path)
            sealed[path.stem] = known if known and fresh else _seal_log(run_dir, path)
        except ForeignLog as error:
            refused[path.name] = str(error)
    for shard in sorted((run_dir / "turns").glob("*.parquet")):
        if shard.stem in sealed:
            continue
        if known := read_footer(shard):
            sealed[shard.stem] = known
        else:
            refused[shard.name] = f"{shard} is not a shard of a Cicada run"
    try:
        seal_metrics(run_dir)
    except ForeignLog as error:
        refused[schema.METRICS_LOG] = str(error)
    return Sealed(sealed, refused)


def seal_metrics(run_dir: Path) -> None:
    """Make the table of what the target's own endpoints said, where it is missing or older than its log.

    Raises ForeignLog for a log that is none of ours.
    """
    path, shard = run_dir / schema.METRICS_LOG, run_dir / METRICS_SHARD
    if not path.is_file():
        return
    known = _metadata(shard)
    if known == str(path.stat().st_size) and shard.stat().st_mtime_ns >= path.stat().st_mtime_ns:
        return
    log = read_log(path)
    with _collector_off(), ShardWriter(shard, "metrics") as writer:
        for table, rows in log.batches():
            assert log.header is not None
            if table == "metrics":
                writer.write(_arrays(table, rows, log.header.tables[table])[0])
        writer.footer(str(log.size_bytes))


def read_footer(shard: Path) -> SealedLog | None:
    """What a turns shard says of the log it was made from; None if there is no such shard, or it is not of our make."""
    try:
        text = _metadata(shard)
        return SealedLog(**json.loads(text)) if text else None
    except (TypeError, ValueError):  # an older version's: make it anew
        return None


def _metadata(shard: Path) -> str | None:
    try:
        text = (pq.read_metadata(shard).metadata or {}).get(FOOTER)
        return text.decode() if text else None
    except (FileNotFoundError, pa.ArrowInvalid):
        return None


def _is_fresh(known: SealedLog, shard: Path, log: Path) -> bool:
    stat = log.stat()
    return known.log_bytes == stat.st_size and shard.stat().st_mtime_ns >= stat.st_mtime_ns


def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of a table, in the order of its columns."""
    return pa.schema([(column.name, _ARROW[column.kind]) for column in schema.TABLES[table]])


class ShardWriter:
    """One Parquet file that appears under its name when it is whole, or not at all."""

    def __init__(self, path: Path, table: str, *, keep_empty: bool = True) -> None:
        self._keep_empty = keep_empty
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        self._schema = arrow_schema(table)
        alike = [c.name for c in schema.TABLES[table] if c.kind == "str" and c.name not in _UNLIKE]
        self._writer = pq.ParquetWriter(self._temporary, self._schema, compression="zstd", use_dictionary=alike)
        self.rows = 0

    def write(self, columns: list[Any]) -> None:
        """Append a batch: one Arrow array a column, in the order of the schema."""
        batch = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        self.rows += batch.num_rows
        self._writer.write_batch(batch)

    def footer(self, text: str) -> None:
        """Text to keep in the file's footer."""
        self._writer.add_key_value_metadata({FOOTER: text})

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._writer.close()  # on a full disk this is where it fails
            if kind is None and (self.rows or self._keep_empty):
                os.replace(self._temporary, self._path)
        finally:
            self._temporary.unlink(missing_ok=True)


def _seal_log(run_dir: Path, path: Path) -> SealedLog:
    log = read_log(path)
    shard = f"{path.stem}.parquet"
    with (
        _collector_off(),
        ShardWriter(run_dir / "turns" / shard, "turns") as turns,
        ShardWriter(run_dir / "workers" / shard, "workers") as workers,
        ShardWriter(run_dir / "sessions" / shard, "sessions") as sessions,
        ShardWriter(run_dir / "server" / shard, "server", keep_empty=False) as server,
    ):
        writers = {"turns": turns, "workers": workers, "sessions": sessions, "server": server}
        sealing = _Sealing(log, writers)
        known = sealing.run(path.stem)
        turns.footer(json.dumps(asdict(known)))
    return known


@contextmanager
def _collector_off() -> Iterator[None]:
    """Millions of small lists and no cycle among them: looking for cycles takes 40 % of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass(slots=True)
class _Sealing:
    """One pass over a log: rows into columns, starts matched with their turns, repeated rows left out."""

    log: Log
    writers: dict[str, ShardWriter]
    seen: dict[str, set[int]] = field(default_factory=lambda: {table: set() for table in schema.TABLES})
    open_starts: dict[int, list[Any]] = field(default_factory=dict)
    duplicates: int = 0
    spoilt: int = 0

    def run(self, worker: str) -> SealedLog:
        header = self.log.header
        for table, rows in self.log.batches():
            assert header is not None
            if table == "turn_starts":
                self._start(rows, header.tables[table])
            elif table in self.writers:
                self._write(table, rows, header.tables[table])
        unended = list(self.open_starts.values())
        if header is not None and unended:
            self._write_unended(unended, header.tables["turn_starts"])
        return SealedLog(
            worker=worker,
            facts=header.worker if header else {},
            log_bytes=self.log.size_bytes,
            rows={table: writer.rows for table, writer in self.writers.items()},
            starts=len(self.seen["turn_starts"] | self.seen["turns"]),
            started_without_end=len(unended),
            duplicates=self.duplicates,
            spoilt_rows=self.spoilt,
            lost_bytes=self.log.lost_bytes,
            torn_bytes=self.log.torn_bytes,
        )

    def _start(self, rows: list[list[Any]], columns: list[str]) -> None:
        for key, values in self._new("turn_starts", rows, columns):
            if key not in self.seen["turns"]:
                self.open_starts[key] = values

    def _write(self, table: str, rows: list[list[Any]], columns: list[str]) -> None:
        new = self._new(table, rows, columns)
        if table == "turns":
            for key, _ in new:
                self.open_starts.pop(key, None)
        self._append(table, [values for _, values in new], columns)

    def _append(self, table: str, rows: list[list[Any]], columns: list[str]) -> None:
        arrays, fit = _arrays(table, rows, columns)
        self.spoilt += len(rows) - fit
        if fit:
            self.writers[table].write(arrays)

    def _write_unended(self, starts: list[list[Any]], columns: list[str]) -> None:
        """Turns that began and whose end nobody wrote stand among the turns: we, or a crash, ended them."""
        end = [schema.CENSORED, "worker_lost", "the log holds the start of this turn and not its end"]
        for first in range(0, len(starts), BATCH_ROWS):
            batch = starts[first : first + BATCH_ROWS]
            padded = [[*start, *[None] * (len(columns) - len(start)), *end] for start in batch]
            self._append("turns", padded, [*columns, "outcome", "error_kind", "error"])

    def _new(self, table: str, rows: list[list[Any]], columns: list[str]) -> list[tuple[int, list[Any]]]:
        """The rows not met before, with the hash each is known by. A log's bytes may have reached the master twice."""
        where = {name: at for at, name in enumerate(columns)}
        picks = [[where[name] for name in names if name in where] for names in _IDENTITIES[table]]
        seen = self.seen[table]
        new: list[tuple[int, list[Any]]] = []
        for values in rows:
            try:
                key = hash(_identity(values, picks))
            except TypeError:  # a list where a name should be
                self.spoilt += 1
                continue
            if key in seen:
                self.duplicates += 1
                continue
            seen.add(key)
            new.append((key, values))
        return new


# What makes a row the row it is: the first of these whose values are there. Kept as hashes: 8 bytes a row, not 40.
_IDENTITIES: dict[str, tuple[tuple[str, ...], ...]] = {
    "turns": (("request_id",), ("session", "turn")),
    "turn_starts": (("request_id",), ("session", "turn")),
    "sessions": (("session", "started_at"),),
    "workers": (("worker", "at"),),
    "server": (("stream_id", "component", "metric", "instance", "at"),),
}


def _identity(values: list[Any], picks: list[list[int]]) -> object:
    for pick in picks:
        if len(pick) == 1 and pick[0] < len(values) and values[pick[0]] is not None:
            return values[pick[0]]
        key = tuple(values[at] for at in pick if at < len(values))
        if key and None not in key:
            return key
    return repr(values)


def _arrays(table: str, rows: list[list[Any]], columns: list[str]) -> tuple[list[Any], int]:
    """Rows as Arrow arrays in the schema's order, and how many rows fitted. What the log lacks is null."""
    by_name = dict(zip(columns, zip_longest(*rows), strict=False))
    arrays, unfit = [], False
    for column in schema.TABLES[table]:
        kind = _ARROW[column.kind]
        values = by_name.get(column.name)
        try:
            arrays.append(pa.nulls(len(rows), kind) if values is None else pa.array(values, kind))
        except _UNFIT:
            unfit = True
            break
    if not unfit:
        return arrays, len(rows)
    fitting = [row for row in rows if _fits(table, row, columns)]
    return _arrays(table, fitting, columns)


def _fits(table: str, row: list[Any], columns: list[str]) -> bool:
    kinds = {column.name: _ARROW[column.kind] for column in schema.TABLES[table]}
    try:
        for name, value in zip(columns, row, strict=False):
            if name in kinds:
                pa.array([value], kinds[name])
    except _UNFIT:
        return False
    return True

"""Where a run's server rows come from: each imported file leaves a shard that remembers it. Reads no log itself."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.runs import Run
from workers.samples import shards

IN_BAND = "in-band"  # the `source` of rows that a worker wrote of what the server told it during the call
BATCH_ROWS = 50_000

SourceKind = Literal["trace", "log", "duplex", "in-band"]
Row = Mapping[str, Any]


class ForeignTrace(ValueError):
    """A server log that cannot be read as one."""


@dataclass(frozen=True, slots=True)
class Source:
    """One imported file: where it came from, and which of its rows were taken.

    rows: taken, this run's. other_runs: rows of other runs, left out. bad_lines: lines that were no rows, or broken.
    kind: the bundled server's trace, a voice agent's log, or a full-duplex server's (duplex). offset_s: its clock - the
    clients' wall clock (a time zone, for a log); None where nothing told. unknown: rows of this run's time that cannot
    be given to a client. full_duplex: of a trace, how many `sessions` and `answers` of full-duplex sessions it has, of
    any run: they are joined by their server's log instead. gpu_samples: of a trace, those of this run's time.
    """

    path: str
    host: str | None
    rows: int
    other_runs: int
    bad_lines: int
    kind: SourceKind = "trace"
    offset_s: float | None = 0.0
    unknown: dict[str, int] = field(default_factory=dict)
    full_duplex: dict[str, int] = field(default_factory=dict)
    gpu_samples: int = 0


def sources(run: Run) -> tuple[Source, ...]:
    """The files imported into the run so far."""
    return tuple(shards_of(run).values())


def shards_of(run: Run) -> dict[str, Source]:
    """The same, by the name of the shard in the run's `server/` that holds its rows."""
    found = {}
    for path in sorted((run.path / "server").glob("*.parquet")):
        text = (pq.read_metadata(path).metadata or {}).get(shards.FOOTER)
        try:
            told = json.loads(text) if text else None
            if told is not None:
                found[path.name] = Source(*told) if isinstance(told, list) else Source(**told)
        except (TypeError, ValueError):
            continue  # rows that a worker wrote: they name their source themselves
    return found


def streams(run: Run) -> set[str]:
    """Ids of every stream the run opened."""
    found = set(run.sessions["stream_id"].dropna())
    if "stream_id" in run.turns:
        found |= set(run.turns["stream_id"].dropna())
    return found


def shard_name(path: Path) -> str:
    """The file of the rows that came from `path`: importing it again replaces what it brought before."""
    return f"{path.stem}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}.parquet"


class SourceWriter:
    """The shard of one source, written in batches."""

    def __init__(self, run: Run, path: Path) -> None:
        self._run, self._path = run.id, str(path)
        self._shard = shards.ShardWriter(run.path / "server" / shard_name(path), "server")
        self._rows: list[Row] = []

    def __enter__(self) -> "SourceWriter":
        self._shard.__enter__()
        return self

    def __exit__(self, kind: Any, error: Any, at: Any) -> None:
        self._shard.__exit__(kind, error, at)

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows: mappings with columns of the `server` table; others they hold are ignored."""
        for row in rows:
            self._rows.append(row)
            if len(self._rows) >= BATCH_ROWS:
                self._flush()

    def finish(self, source: Source) -> None:
        """Write what is left, and what the source is."""
        self._flush()
        self._shard.footer(json.dumps(asdict(source)))

    def _flush(self) -> None:
        if self._rows:
            self._shard.write(_columns(self._run, self._path, self._rows))
            self._rows = []


def _columns(run: str, source: str, rows: list[Row]) -> list[Any]:
    fixed = {"run": run, "source": source}
    given = set().union(*rows)
    arrays = []
    for column in shards.arrow_schema("server"):
        if column.name not in given and column.name not in fixed:
            arrays.append(pa.nulls(len(rows), column.type))
            continue
        values = [fixed.get(column.name, row.get(column.name)) for row in rows]
        try:
            arrays.append(pa.array(values, column.type))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise ForeignTrace(f"{source}: a row's {column.name} is no {column.type}: {error}") from None
    return arrays

"""Put the server's own rows beside the client's, by request id. Knows the bundled server's trace, and no clock offsets.

Durations are compared, so clocks need not agree. Only where client and server share a host, and so a monotonic clock,
are instants of the two subtracted.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.counting import Counted
from analysis.runs import Run
from gpu_server.trace import read_trace
from workers.samples import shards

CLOCKS_AGREE_S = 0.001  # an answer cannot come before its request: more than this, and the clocks are not one


class ForeignTrace(ValueError):
    """A server log that cannot be read as a trace."""


@dataclass(frozen=True, slots=True)
class Source:
    """One imported trace: where it came from, and which of its rows were taken.

    rows: taken, this run's. other_runs: rows of other runs, left out. bad_lines: lines that were no rows.
    """

    path: str
    host: str | None
    rows: int
    other_runs: int
    bad_lines: int


@dataclass(frozen=True, slots=True)
class Joined:
    """Client turns and server rows that met. `rows`: measured successes with a server row, client columns and, with
    the prefix `server_`, the server's; where both share a clock also `before_server_s` (intended start to received)
    and `after_server_s` (first audio handed over to first chunk); always `rest_s` (ttfc_s - server_ttfb_s).
    """

    sources: tuple[Source, ...]
    rows: pd.DataFrame
    joined: int  # turns of any phase and outcome that have a server row
    only_client: int  # turns sent that have none
    only_server: int  # server rows of this run that belong to no turn
    repeated: int  # server rows whose request id came before
    one_clock: bool


def import_trace(run: Run, path: Path) -> Source:
    """Take this run's rows out of a trace (see gpu_server/trace.py) into the run's `server/`.

    A row is this run's if its request id begins with the run's id, or is one of its turns'. Raises ForeignTrace for a
    file without a single row or header, OSError where it cannot be read.
    """
    if path.is_dir():
        raise ForeignTrace(f"{path} is a directory: name the trace file in it")
    header, rows, bad_lines = read_trace(path)
    if header is None and not rows:
        raise ForeignTrace(f"{path} is not a trace: make one with `python -m gpu_server --trace FILE`")
    known = set(run.turns["request_id"].dropna())
    taken = [row for row in rows if (name := row["request_id"]) and (name in known or name.startswith(f"{run.id}."))]
    source = Source(str(path), header["host"] if header else None, len(taken), len(rows) - len(taken), bad_lines)
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    with shards.ShardWriter(run.path / "server" / f"{path.stem}-{digest}.parquet", "server") as shard:
        if taken:
            shard.write(_columns(run.id, str(path), taken))
        shard.footer(json.dumps([source.path, source.host, source.rows, source.other_runs, source.bad_lines]))
    return source


def _columns(run: str, source: str, rows: list[Any]) -> list[Any]:
    fixed = {"run": run, "source": source, "component": "tts"}
    arrays = []
    for column in shards.arrow_schema("server"):
        values = [fixed.get(column.name, row.get(column.name)) for row in rows]
        try:
            arrays.append(pa.array(values, column.type))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise ForeignTrace(f"{source}: a row's {column.name} is no {column.type}: {error}") from None
    return arrays


def sources(run: Run) -> tuple[Source, ...]:
    """The traces imported into the run so far."""
    found = []
    for path in sorted((run.path / "server").glob("*.parquet")):
        text = (pq.read_metadata(path).metadata or {}).get(shards.FOOTER)
        if text:
            found.append(Source(*json.loads(text)))
    return tuple(found)


def join(run: Run, counted: Counted) -> Joined | None:
    """The run's turns beside its server rows; None if no trace was ever imported."""
    imported = sources(run)
    if not imported:
        return None
    server = run.server[run.server["request_id"].notna()]
    first = server.drop_duplicates("request_id")
    has_row = run.turns["request_id"].isin(first["request_id"])
    wanted = ["request_id", "received_at", "first_audio_at", "queue_wait_s", "ttfb_s", "audio_s"]
    rows = counted.answered.merge(
        first[wanted].rename(columns={name: f"server_{name}" for name in wanted[1:]}), on="request_id", how="inner"
    )
    rows["rest_s"] = rows["ttfc_s"] - rows["server_ttfb_s"]
    hosts = {log.facts.get("host") for log in run.sealed.logs.values()} | {source.host for source in imported}
    one_clock = len(hosts) == 1 and None not in hosts and _instants(rows)
    return Joined(
        sources=imported,
        rows=rows,
        joined=int(has_row.sum()),
        only_client=int((~has_row & run.turns["sent_at"].notna()).sum()),
        only_server=int((~first["request_id"].isin(run.turns["request_id"])).sum()),
        repeated=len(server) - len(first),
        one_clock=one_clock,
    )


def _instants(rows: pd.DataFrame) -> bool:
    """Subtract instants of client and server; False, and no columns, where the order says the clocks are two."""
    before = rows["server_received_at"] - rows["intended_at"]
    after = rows["first_chunk_at"] - rows["server_first_audio_at"]
    # An arrival may be told early by its interval's width, so a few may seem to come before they were sent.
    if max((before < -CLOCKS_AGREE_S).mean(), (after < -CLOCKS_AGREE_S).mean()) > 0.01:
        return False
    rows["before_server_s"], rows["after_server_s"] = before, after
    return True

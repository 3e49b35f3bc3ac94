"""Open a run directory: its manifest, its tables, and what of it is missing. Judges nothing.

Instants of several hosts' monotonic clocks are laid on one wall clock here, by each worker's anchor.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.counting import CONVERSATIONS, FULL_DUPLEX
from workers.samples import schema, shards

HOW_TO_MAKE_ONE = "`make demo` makes one, and so does any `locust --headless` run"

# What the report reads of a turn. A column that nobody needs costs 8 MB a million turns.
TURN_COLUMNS = (
    *("worker", "session", "protocol", "dialect", "scenario", "request_id", "text_name", "text_chars", "voice"),
    *("phase", "level", "clock", "outcome", "error_kind", "error"),
    *("intended_at", "sent_at", "ready_at", "first_chunk_at", "ended_at"),
    *("flagged", "connection_new", "audio_s", "ttfc_s", "ttfa_s", "e2e_s", "rtf", "min_prebuffer_s"),
    *(f"stall_count_{prebuffer}ms" for prebuffer in schema.PREBUFFERS_MS),
)
# And of a turn in a conversation, where there are any.
CONVERSATION_COLUMNS = (
    *("turn", "stream_id", "user_onset_at", "user_offset_at", "agent_onset_at", "agent_onset_arrival_at"),
    *("agent_offset_at", "onset_by", "agent_speech_s", "floor_transfer_offset_s", "overlap_s", "utterances"),
    *("send_late_max_s", "barge_in", "time_to_silence_s", "yielded", "false_barge_ins", "stale_s"),
    *(f"stall_longest_s_{prebuffer}ms" for prebuffer in schema.PREBUFFERS_MS),
)
# And of a turn in a session with a full-duplex model.
DUPLEX_COLUMNS = (
    *("host", "mode", "iteration", "decoded", "tokens", "ttft_s", "itl_s", "tokens_per_s"),
    *("stream_transfer_offset_s", "lag_s", "takeover", "pause_takeover", "backchannels", "user_pauses"),
)
# Nearly every row has its own text here: a dictionary would only cost.
_UNLIKE = {"request_id"}


class ForeignRun(ValueError):
    """A path that is no run, or a run with nothing in it. The text says what to do."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it lies on disk.

    turns: a row a turn begun (see schema.TURNS), plus `cluster` (int: one number a session, whichever worker had it),
    `intended_wall_at` and `ended_wall_at` (unix seconds on one clock). workers, sessions, server: schema tables;
    workers has `wall_at`, sessions have `ready_wall_at` and `ended_wall_at` too. Columns of conversations are read
    where there are conversations, those of full-duplex sessions where there are such. finished: the master closed the
    run. manifest_fault: why there is no manifest, or "".
    """

    path: Path
    manifest: dict[str, Any]
    manifest_fault: str
    turns: pd.DataFrame
    workers: pd.DataFrame
    sessions: pd.DataFrame
    server: pd.DataFrame
    sealed: shards.Sealed

    @property
    def id(self) -> str:
        """The run's id; the directory's name if the manifest lacks it."""
        return str(self.manifest.get("run") or self.path.name)

    @property
    def finished(self) -> bool:
        """Whether the master closed the run."""
        return self.manifest.get("state") == "finished"

    @property
    def log_workers(self) -> dict[str, dict[str, Any]]:
        """What the manifest says of each worker's log; empty for a run nobody closed."""
        workers = self.manifest.get("workers")
        return workers if isinstance(workers, dict) else {}


def open_run(path: Path, columns: Sequence[str] = TURN_COLUMNS) -> Run:
    """Open the run at `path` (a run directory, or a link to one), sealing what is not sealed yet.

    Raises ForeignRun for what is no run, or has no turns in it; OSError where the disk does not let us.
    """
    directory = _find(path)
    manifest, fault = _read_manifest(directory)
    sealed = shards.seal(directory)
    if not any(log.rows["turns"] for log in sealed.logs.values()):
        raise ForeignRun(_why_nothing(directory, sealed))
    protocols = set(read_table(directory, "turns", ("protocol",))["protocol"].dropna().unique())
    spoken = CONVERSATION_COLUMNS if protocols & set(CONVERSATIONS) else ()
    duplex = DUPLEX_COLUMNS if FULL_DUPLEX in protocols else ()
    turns = read_table(directory, "turns", (*columns, *spoken, *duplex))
    workers, sessions = read_table(directory, "workers"), read_table(directory, "sessions")
    _align(turns, workers, sessions, _offsets(sealed, manifest))
    return Run(
        path=directory,
        manifest=manifest,
        manifest_fault=fault,
        turns=turns,
        workers=workers,
        sessions=sessions,
        server=read_table(directory, "server"),
        sealed=sealed,
    )


def _find(path: Path) -> Path:
    if not path.exists():
        if path.name == "latest":
            raise ForeignRun(f"there is no run yet at {path}: {HOW_TO_MAKE_ONE}")
        raise ForeignRun(f"there is no {path}: name a run directory, such as runs/latest")
    if not path.is_dir():
        raise ForeignRun(f"{path} is a file: name the run directory it lies in")
    directory = path.resolve()
    if any((directory / name).exists() for name in ("run.json", "log", "turns")):
        return directory
    if not any(directory.iterdir()):
        raise ForeignRun(f"{path} is empty: {HOW_TO_MAKE_ONE}")
    inside = sorted(child.name for child in directory.iterdir() if (child / "run.json").exists())
    if inside:
        raise ForeignRun(f"{path} holds {len(inside)} runs: name one of them, such as {path / inside[-1]}")
    raise ForeignRun(f"{path} is not a run directory: it has no run.json and no log/")


def _read_manifest(directory: Path) -> tuple[dict[str, Any], str]:
    path = directory / "run.json"
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        return {}, "there is no run.json"
    except ValueError as error:  # JSON or UTF-8
        return {}, f"run.json cannot be read ({error})"
    if not isinstance(manifest, dict) or "schema_version" not in manifest:
        if any((directory / name).exists() for name in ("log", "turns")):
            return {}, "run.json is not one of ours"
        raise ForeignRun(f"{directory} is not a run directory: its run.json is another program's")
    version = manifest["schema_version"]
    if not isinstance(version, int) or version > schema.SCHEMA_VERSION:
        raise ForeignRun(
            f"{directory} was written by a newer Cicada (schema {version}, this one knows {schema.SCHEMA_VERSION}): "
            "read it with the version that wrote it, or a later one"
        )
    return manifest, ""


def _why_nothing(directory: Path, sealed: shards.Sealed) -> str:
    if sealed.refused and not sealed.logs:
        return f"{directory} has no log that can be read: {next(iter(sealed.refused.values()))}"
    if not sealed.logs:
        return f"{directory} has no rows: its log/ is empty, so no worker delivered anything"
    seconds = sum(log.rows["workers"] for log in sealed.logs.values())
    return (
        f"{directory} has no turns: {len(sealed.logs)} worker(s) delivered {seconds} seconds of health and began no "
        "turn (did the run end before its first arrival, or could no worker reach the target?)"
    )


def read_table(directory: Path, table: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A run's table from all its shards, with every column asked for: what a shard lacks is null.

    Text columns of few values come as categories, booleans without nulls (a null is false).
    """
    wanted = [c for c in shards.arrow_schema(table) if columns is None or c.name in columns]
    alike = [c.name for c in wanted if c.type == pa.string() and c.name not in _UNLIKE]
    parts = []
    for path in sorted((directory / table).glob("*.parquet")):
        try:
            with pq.ParquetFile(path, read_dictionary=alike) as file:
                there = set(file.schema_arrow.names)
                part = file.read([c.name for c in wanted if c.name in there])
        except (pa.ArrowException, OSError) as error:
            fix = "remove it: it is made again where the run's log/ is still there"
            raise ForeignRun(f"{path} cannot be read ({str(error).splitlines()[0]}); {fix}") from None
        parts.append(_completed(part, wanted, alike))
    if not parts:
        parts.append(_completed(pa.table({}), wanted, alike))
    whole = pa.concat_tables(parts).unify_dictionaries()
    parts.clear()
    frame: pd.DataFrame = whole.to_pandas(split_blocks=True, self_destruct=True)
    return frame


def _completed(part: Any, wanted: list[Any], alike: list[str]) -> Any:
    columns = []
    for column in wanted:
        kind = pa.dictionary(pa.int32(), pa.string()) if column.name in alike else column.type
        if column.name not in part.column_names:
            values = pa.nulls(part.num_rows, kind)
        else:
            values = part.column(column.name).cast(kind)
            if column.type == pa.bool_():
                values = pc.fill_null(values, False)
        columns.append(values)
    return pa.table(columns, names=[column.name for column in wanted])


def _offsets(sealed: shards.Sealed, manifest: dict[str, Any]) -> dict[str, float]:
    told = manifest.get("workers")
    known = told if isinstance(told, dict) else {}
    return clock_offsets({worker: log.facts or known.get(worker, {}) for worker, log in sealed.logs.items()})


def clock_offsets(workers: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    """Wall clock - monotonic clock of each worker, s, from the facts in its log's header.

    Workers of one boot share a monotonic clock: they share the first one's anchor, so that a step of the wall clock
    between their starts does not tear them apart.
    """
    offsets: dict[str, float] = {}
    of_boot: dict[str, float] = {}
    for worker, facts in workers.items():
        wall, monotonic = facts.get("wall_at"), facts.get("monotonic_at")
        offset = wall - monotonic if isinstance(wall, int | float) and isinstance(monotonic, int | float) else 0.0
        boot = facts.get("boot_id")
        offsets[worker] = of_boot.setdefault(str(boot), offset) if boot else offset
    return offsets


def _align(turns: pd.DataFrame, workers: pd.DataFrame, sessions: pd.DataFrame, offsets: dict[str, float]) -> None:
    shift = turns["worker"].map(offsets).astype(float).fillna(0.0)
    turns["intended_wall_at"] = turns["intended_at"] + shift
    turns["ended_wall_at"] = turns["ended_at"] + shift
    workers["wall_at"] = workers["at"] + workers["worker"].map(offsets).astype(float).fillna(0.0)
    away = sessions["worker"].map(offsets).astype(float).fillna(0.0)
    sessions["ready_wall_at"] = sessions["ready_at"].fillna(sessions["started_at"]) + away
    sessions["ended_wall_at"] = sessions["ended_at"] + away
    worker, session = turns["worker"].cat.codes.to_numpy(np.int64), turns["session"].cat.codes.to_numpy(np.int64)
    turns["cluster"] = pd.factorize(worker * (session.max(initial=0) + 2) + session)[0]

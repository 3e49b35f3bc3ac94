"""Take a run's figures out of a voice agent's log. Knows lines and clients; nothing of turns. A log without a voice
agent's figures may be a full-duplex server's: duplex_join.py takes that one.

A log's clock is a wall clock in some time zone, of a host that may be off. How far it is from the clients' wall clock
is found from connections that both sides tell of; where no stream id is logged, the log's clients are laid beside the
run's in the order in which they connected.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.duplex_join import import_connections
from analysis.log_clients import Client, Survey, client_of, survey
from analysis.log_lines import Figure, LogReader
from analysis.personaplex_log import read_log
from analysis.runs import Run
from analysis.server_sources import ForeignTrace, Source, SourceWriter, streams

ZONE_S = 900.0  # time zones differ by multiples of a quarter of an hour
SLACK_S = 5.0  # how far beyond a run's first and last instant a line may be its own
NEAR_S = 2.0  # how far apart the two sides may tell of one connection, where their numbers differ
SAME_CLOCK_S = 60.0  # clocks set by people or by NTP differ by less than this, but for the time zone


def import_log(run: Run, path: Path) -> Source:
    """Take this run's rows out of a log into the run's `server/`.

    A line is this run's if its stream id is one of the run's, or its instance serves a client that is, and it was
    written while the run went on. A full-duplex server's log is one without such figures, but with connections. Raises
    ForeignTrace for a log with neither, OSError where it cannot be read.
    """
    surveyed = survey(path)
    if not surveyed.owner and not surveyed.unknown:
        if (log := read_log(path)).connections:
            return import_connections(run, log)
        raise ForeignTrace(
            f"{path} is neither a trace of the bundled server nor a voice agent's log with TTFB or latency figures, "
            "nor the log of a PersonaPlex or Moshi server with connections"
        )
    opened = streams(run)
    if not opened and "stream_id" not in run.turns:
        raise ForeignTrace(
            f"{path} is a voice agent's log, and {run.path} has no conversations to put it beside: "
            f"`python -m analysis.server_logs {path}` reads it alone"
        )
    matched = _match(surveyed, _client_streams(run))
    reader = LogReader(path, surveyed.size_bytes)
    taking = _Taking(surveyed, matched, opened)
    with SourceWriter(run, path) as writer:
        writer.write(taking.rows(reader))
        source = Source(
            path=str(path),
            host=None,
            rows=taking.taken,
            other_runs=taking.others,
            bad_lines=reader.bad_lines,
            kind="log",
            offset_s=matched.offset_s,
            unknown=dict(taking.unknown),
        )
        writer.finish(source)
    return source


def _client_streams(run: Run) -> pd.DataFrame:
    """The run's streams in the order in which they were opened: stream_id, began_at, ended_at (unix seconds)."""
    parts = [run.sessions[["stream_id", "ready_wall_at", "ended_wall_at"]]]
    if "stream_id" in run.turns:  # of sessions whose own row was lost with their worker
        parts.append(run.turns[["stream_id", "intended_wall_at", "ended_wall_at"]])
    parts = [part.set_axis(["stream_id", "began_at", "ended_at"], axis=1).dropna(subset="stream_id") for part in parts]
    every = pd.concat([part.astype({"stream_id": str}) for part in parts], ignore_index=True)
    spans = every.groupby("stream_id").agg(began_at=("began_at", "min"), ended_at=("ended_at", "max"))
    return spans.dropna(subset="began_at").sort_values("began_at").reset_index()


@dataclass(slots=True)
class _Matched:
    """offset_s: log's clock - clients'; begins, ends: the run's window by the log's clock; stream_of: of clients whose
    lines name no stream of the run's, by identity."""

    offset_s: float | None
    begins: float
    ends: float
    stream_of: dict[int, str] = field(default_factory=dict)


def _match(surveyed: Survey, opened: pd.DataFrame) -> _Matched:
    if opened.empty:
        return _Matched(None, -np.inf, np.inf)
    known = dict(zip(opened["stream_id"], opened["began_at"], strict=True))
    first, last = float(opened["began_at"].min()), float(opened["ended_at"].fillna(opened["began_at"]).max())
    met = [c for c in surveyed.clients if c.at is not None and c.stream_id in known]
    apart = [(c.at or 0.0) - known[c.stream_id or ""] for c in met if not c.implied]
    offset = _offset(apart)
    if offset is None and met:  # only later lines name them: good for a time zone, not for seconds
        apart = [(c.at or 0.0) - known[c.stream_id or ""] for c in met]
        offset = _offset([float(np.round(between / ZONE_S) * ZONE_S) for between in apart])
    nameless = [c for c in surveyed.clients if c.at is not None and c.stream_id not in known]
    if offset is None:
        offset = _zone(nameless, first, last)
    if offset is None:
        return _Matched(None, -np.inf, np.inf)
    matched = _Matched(offset, first + offset - SLACK_S, last + offset + SLACK_S)
    if not apart:
        _in_order(matched, [c for c in nameless if matched.begins <= (c.at or 0.0) <= matched.ends], opened)
    return matched


def _offset(apart: list[float]) -> float | None:
    """Log's clock - clients', from connections both tell of. A stream id used by several runs is there several times:
    the time zone is the one that most of them agree on, the earlier runs' lie apart from it."""
    if not apart:
        return None
    array = np.array(apart)
    zones = np.round(array / ZONE_S) * ZONE_S
    near = np.abs(array - zones) <= SAME_CLOCK_S
    if not near.any():
        return float(np.median(array))
    values, counts = np.unique(zones[near], return_counts=True)
    zone = values[np.flatnonzero(counts == counts.max())[-1]]
    return float(zone + np.median((array - zone)[near & (zones == zone)]))


def _zone(clients: list[Client], first: float, last: float) -> float | None:
    """The time zone in which most of the log's clients came while the run went on; the one where the first came
    nearest to the run's first, if several do."""
    best: tuple[int, float, float] | None = None
    times = np.array([client.at for client in clients], dtype=np.float64)
    for zone in {float(np.round((at - first) / ZONE_S) * ZONE_S) for at in times}:
        inside = times[(times - zone >= first - SLACK_S) & (times - zone <= last + SLACK_S)]
        if inside.size:
            score = (int(inside.size), -abs(float(inside.min()) - zone - first), zone)
            best = score if best is None else max(best, score)
    return best[2] if best else None


def _in_order(matched: _Matched, clients: list[Client], opened: pd.DataFrame) -> None:
    """Lay clients beside the run's streams: one for one if there are as many, else by time, each used once."""
    assert matched.offset_s is not None
    clients = sorted(clients, key=lambda client: (client.at or 0.0, client.offset, client.number))
    names, began = opened["stream_id"].tolist(), opened["began_at"].to_numpy()
    if len(clients) == len(names):
        matched.stream_of = {id(client): name for client, name in zip(clients, names, strict=True)}
        return
    place = 0
    for client in clients:
        at = (client.at or 0.0) - matched.offset_s
        while place < len(names) and began[place] < at - NEAR_S:
            place += 1
        if place < len(names) and began[place] <= at + NEAR_S:
            matched.stream_of[id(client)] = names[place]
            place += 1


@dataclass(slots=True)
class _Taking:
    """One pass over the figures: this run's become rows, others are counted."""

    surveyed: Survey
    matched: _Matched
    known: set[str]
    taken: int = 0
    others: int = 0
    unknown: Counter[str] = field(default_factory=Counter)

    def rows(self, reader: LogReader) -> Iterator[dict[str, Any]]:
        for figure in reader.figures():
            stream = self._stream(figure)
            if stream is None:
                continue
            self.taken += 1
            yield {
                "stream_id": stream,
                "component": figure.component,
                "metric": figure.metric,
                "value_s": figure.value_s,
                "value": figure.value,
                "instance": figure.instance,
                "at": figure.at,
            }

    def _stream(self, figure: Figure) -> str | None:
        at = figure.at
        if at is not None and not self.matched.begins <= at <= self.matched.ends:
            self.others += 1
            return None
        owner = client_of(self.surveyed, figure)
        if isinstance(owner, Client) and (owner.stream_id is None or owner.stream_id not in self.known):
            owner = self.matched.stream_of.get(id(owner)) or owner
        stream = owner.stream_id if isinstance(owner, Client) else owner
        if stream in self.known:
            return stream
        if stream is not None:
            self.others += 1  # a stream of somebody else's
        else:
            reason = "its connection fits none of the run's"
            if owner is None:
                reason = self.surveyed.unknown.get((figure.process, figure.instance), reason)
            self.unknown[reason] += 1
        return None

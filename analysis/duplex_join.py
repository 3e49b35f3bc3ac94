"""Put the connections of a full-duplex server's log beside the sessions of a run. Reads no line (personaplex_log.py).

They meet by the client's address, IP:PORT, which both sides know; behind NAT by the port alone. Ports come again, so
the k-th connection of a port is its k-th session. kyutai's server tells no address: its connections meet nobody.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.counting import FULL_DUPLEX
from analysis.personaplex_log import FRAME_S, Connection, ServerLog
from analysis.runs import Run
from analysis.server_sources import ForeignTrace, Source, SourceWriter, shards_of, sources

COMPONENT = "personaplex"  # of the rows of `server` that are written here
SLACK_S = 5.0  # how far beyond a session's or a run's ends a line may be its own

# Of the server's durations, what the page calls them. setup holds lock_wait and prompt; prompt holds lock_wait.
PHASES = ("setup", "lock_wait", "prompt", "session")

Figures = dict[str, Any]
Metric = Callable[[pd.DataFrame, str, float], Figures]


@dataclass(frozen=True, slots=True)
class Session:
    """A client's session, as far as it takes to find it in a log. Instants: unix seconds by the clients' clock.

    began_at: the WebSocket handshake was done (the server then tells of the connection), else the session's start.
    """

    stream_id: str
    name: str
    host: str | None
    ip: str | None
    port: int | None
    began_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class Met:
    """Who met whom. session_of: by the connection's order; offset_s: log's clock - clients' (a time zone, say), None
    where the log has no times, or nobody met; own: connections of the run's time, met or not."""

    session_of: Mapping[int, Session]
    offset_s: float | None
    own: tuple[Connection, ...]


def sessions_of(run: Run) -> list[Session]:
    """The run's full-duplex sessions, in the order in which they began."""
    rows = run.sessions[(run.sessions["protocol"] == FULL_DUPLEX) & run.sessions["stream_id"].notna()]
    shift = rows["ready_wall_at"] - rows["ready_at"].fillna(rows["started_at"])
    began = rows["connected_at"].fillna(rows["started_at"]) + shift
    every = zip(rows.to_dict("records"), began, rows["ended_wall_at"].fillna(began), strict=True)
    made = []
    for row, began_at, ended_at in every:
        ip, port = _split(_text(row["local_address"]), row["local_port"])
        stream, name, host = (_text(row[column]) for column in ("stream_id", "session", "host"))
        made.append(Session(stream or "", name or "", host, ip, port, float(began_at), float(ended_at)))
    return sorted(made, key=lambda session: session.began_at)


def meet(connections: Sequence[Connection], sessions: Sequence[Session]) -> Met:
    """Find the session of each connection, and which connections are of the run's time.

    Sessions are in the order in which they began. A pair whose times cannot be one connection's is no pair.
    """
    found: dict[int, Session] = {}
    left = [session for session in sessions if session.port is not None]
    for process in dict.fromkeys(connection.process for connection in connections):
        its = [c for c in connections if c.process == process and c.port is not None]
        candidates = _of_server(its, left)
        found |= _by_address(its, candidates)
        taken = {session.stream_id for session in found.values()}
        left = [session for session in left if session.stream_id not in taken]
    by_order = {connection.order: connection for connection in connections}
    offset_s = _offset(found, by_order)
    if offset_s is not None:
        found = {order: s for order, s in found.items() if _possible(by_order[order], s, offset_s)}
    return Met(found, offset_s, tuple(_own(connections, found, sessions, offset_s)))


def import_connections(run: Run, log: ServerLog) -> Source:
    """Take this run's connections out of a log into the run's `server/`. Raises ForeignTrace where it has no sessions.

    Rows of component `personaplex`: `connection` (outcome; fault: the exception; value: its place in the log), and a
    row a duration that the log tells: setup, lock_wait, prompt, session, and step (the server's own time a frame).
    """
    sessions = sessions_of(run)
    if not sessions:
        raise ForeignTrace(
            f"{log.path} is the log of a PersonaPlex or Moshi server, and {run.path} has no full-duplex sessions to "
            f"put it beside: `python -m analysis.server_logs {log.path}` reads it alone"
        )
    met = meet(log.connections, sessions)
    rows = [row for connection in met.own for row in _rows(connection, met.session_of.get(connection.order))]
    with SourceWriter(run, log.path) as writer:
        writer.write(rows)
        source = Source(
            path=str(log.path),
            host=None,
            rows=len(rows),
            other_runs=len(log.connections) - len(met.own),
            bad_lines=log.bad_lines,
            kind="duplex",
            offset_s=met.offset_s,
            unknown=dict(log.stray),
        )
        writer.finish(source)
    return source


def summary(run: Run, metric: Metric) -> Figures | None:
    """What the run's imported logs of full-duplex servers say; None without one. `metric` makes quantiles of a column.

    connections: of the run's time (`other_runs`: beyond it); joined: those with a session of the run. served,
    swallowed, refused, failed, unfinished: see personaplex_log.Connection, refused and failed by exception. stray:
    exceptions of no known connection. sessions_without: sessions that were connected, and that no log tells of.
    gave_up: by what ended the client's side, sessions without a handshake that the server served or prompted for all
    the same. shards: the files in the run's directory that hold all this. phases: in ms; client_setup_ms and rest_ms
    (the client's set-up - the server's) of joined ones. step: of every frame; over_percent: share of them longer than
    frame_ms, which a server cannot keep up with.
    """
    shards = {name: source for name, source in shards_of(run).items() if source.kind == "duplex"}
    imported = list(shards.values())
    if not imported:
        return None
    rows = _once(run.server[run.server["component"] == COMPONENT], {source.path for source in imported})
    connections = rows[rows["metric"] == "connection"]
    client = run.sessions[run.sessions["protocol"] == FULL_DUPLEX].drop_duplicates("stream_id")
    beside = connections[connections["stream_id"].notna()].merge(
        client[["stream_id", "ready_at", "setup_s", "ended_by"]].astype({"stream_id": object}), on="stream_id"
    )
    outcomes = connections["outcome"].astype(object)
    deserted = beside[beside["ready_at"].isna() & beside["outcome"].isin(("served", "swallowed"))]
    reachable = client[client["local_port"].notna()]
    stray: Counter[str] = Counter()
    for source in imported:
        stray.update(source.unknown)
    return {
        "connections": len(connections),
        "joined": len(beside),
        **{name: int((outcomes == name).sum()) for name in ("served", "swallowed", "unfinished")},
        **{name: _reasons(connections[outcomes == name]) for name in ("refused", "failed")},
        "stray": dict(stray),
        "sessions": len(client),
        "sessions_without": int((~reachable["stream_id"].astype(object).isin(set(beside["stream_id"]))).sum()),
        "gave_up": _counts(deserted["ended_by"].astype(object).fillna("not told")),
        "phases": _phases(rows, beside, metric),
        "step": _step(rows[rows["metric"] == "step"], metric),
        "other_runs": sum(source.other_runs for source in imported),
        "bad_lines": sum(source.bad_lines for source in imported),
        "sources": [source.path for source in imported],
        "shards": [f"server/{name}" for name in shards],
    }


def traces(run: Run) -> list[Figures]:
    """What imported traces have of full-duplex sessions, by path: they are joined by the server's log instead."""
    return [{"path": source.path, **source.full_duplex} for source in sources(run) if source.full_duplex]


# ---------------------------------------------------------------------------------------------------- who meets whom


def _of_server(connections: Sequence[Connection], sessions: Sequence[Session]) -> list[Session]:
    """Sessions with the one of the run's servers that this log is of: it shares the most client ports with it."""
    hosts: dict[str | None, set[int | None]] = defaultdict(set)
    for session in sessions:
        hosts[session.host].add(session.port)
    ports = {connection.port for connection in connections}
    shared = {host: len(ports & its) for host, its in hosts.items()}
    best = max(shared.values(), default=0)
    chosen = [host for host, n in shared.items() if n == best]
    return [session for session in sessions if len(chosen) > 1 or session.host in chosen]


def _by_address(connections: Sequence[Connection], sessions: Sequence[Session]) -> dict[int, Session]:
    """By IP and port; then, of the clients whose IP is nowhere in the log, by port."""
    exact = _paired(connections, sessions, lambda c: (c.peer, c.port), lambda s: (s.ip, s.port))
    known = {session.ip for session in exact.values()}
    unmet = [connection for connection in connections if connection.peer not in known]
    behind = [session for session in sessions if session.ip not in known]
    return exact | _paired(unmet, behind, lambda c: c.port, lambda s: s.port)


def _paired(
    connections: Sequence[Connection],
    sessions: Sequence[Session],
    key_of: Callable[[Connection], Hashable],
    key: Callable[[Session], Hashable],
) -> dict[int, Session]:
    """The k-th connection of an address is its k-th session. Where an address has more of one than of the other, the
    log holds others' too, or not all of ours: then the clock says which, or nearness to the run's stretch of the log.
    """
    theirs: dict[Hashable, list[Connection]] = defaultdict(list)
    for connection in connections:
        theirs[key_of(connection)].append(connection)
    ours: dict[Hashable, list[Session]] = defaultdict(list)
    for session in sessions:
        ours[key(session)].append(session)
    found: dict[int, Session] = {}
    for address, group in ours.items():
        if len(theirs[address]) == len(group):
            found |= {c.order: s for c, s in zip(theirs[address], group, strict=True)}
    offset_s = _offset(found, {connection.order: connection for connection in connections})
    first, last = (min(found), max(found)) if found else (0, sys.maxsize)
    for address, group in ours.items():
        several = theirs[address]
        if len(several) == len(group):
            continue
        if offset_s is None or any(connection.came_at is None for connection in several):
            near = sorted(several, key=lambda c: max(first - c.order, c.order - last, 0))[: len(group)]
            near.sort(key=lambda c: c.order)
            found |= {c.order: s for c, s in zip(near, group, strict=False)}
            continue
        for session in group:
            fit = next((c for c in several if c.order not in found and _possible(c, session, offset_s)), None)
            if fit is not None:
                found[fit.order] = session
    return found


def _offset(found: Mapping[int, Session], by_order: Mapping[int, Connection]) -> float | None:
    apart = [at - s.began_at for order, s in found.items() if (at := by_order[order].came_at) is not None]
    return float(np.median(apart)) if apart else None


def _possible(connection: Connection, session: Session, offset_s: float) -> bool:
    if connection.came_at is None:
        return True
    at = connection.came_at - offset_s
    return session.began_at - SLACK_S <= at <= max(session.began_at, session.ended_at) + SLACK_S


def _own(
    connections: Sequence[Connection], found: Mapping[int, Session], sessions: Sequence[Session], offset_s: float | None
) -> Iterator[Connection]:
    """Connections of the run's time: by the clock where there is one, else between the first and the last that met.
    All, where nobody met: whose they are cannot be told."""
    if not found:
        yield from connections
        return
    begins = min(session.began_at for session in sessions) - SLACK_S
    ends = max(max(session.began_at, session.ended_at) for session in sessions) + SLACK_S
    first, last = min(found), max(found)
    for connection in connections:
        if offset_s is not None and connection.came_at is not None:
            inside = begins <= connection.came_at - offset_s <= ends
        else:
            inside = first <= connection.order <= last
        if inside or connection.order in found:
            yield connection


def _split(address: str | None, port: Any) -> tuple[str | None, int | None]:
    ip, _, told = (address or "").rpartition(":")
    if pd.notna(port):
        return ip.strip("[]").removeprefix("::ffff:") or None, int(port)
    return ip.strip("[]").removeprefix("::ffff:") or None, int(told) if told.isdecimal() else None


def _text(value: Any) -> str | None:
    return None if pd.isna(value) else str(value)


# ------------------------------------------------------------------------------------------------------- rows, figures


def _rows(connection: Connection, session: Session | None) -> Iterator[Figures]:
    fixed = {
        "component": COMPONENT,
        "instance": connection.instance,
        "stream_id": session.stream_id if session else None,
        "session": session.name if session else None,
    }
    yield {
        **fixed,
        "metric": "connection",
        "value": float(connection.order),
        "outcome": connection.outcome,
        "fault": connection.reason,
        "voice": connection.voice_prompt,
        "at": connection.came_at,
    }
    for name, value_s in connection.durations_s.items():
        yield {**fixed, "metric": name, "value_s": value_s, "at": connection.came_at}
    for value_s in connection.steps_s:
        yield {**fixed, "metric": "step", "value_s": float(value_s)}


def _once(rows: pd.DataFrame, paths: set[str]) -> pd.DataFrame:
    """Rows of the imported logs, with `cluster` (int: one number a connection). Ids are drawn at random: a connection
    that two logs tell of is one, imported under two names."""
    rows = rows[rows["source"].astype(object).isin(paths)]
    rows = rows.assign(instance=rows["instance"].astype(object), stream_id=rows["stream_id"].astype(object))
    again = rows.duplicated(["instance", "metric"]) & ~rows["instance"].str.startswith("moshi#")
    rows = rows[~again]
    return rows.assign(cluster=pd.factorize(rows["source"].astype(str) + "\n" + rows["instance"])[0])


def _counts(names: pd.Series) -> dict[str, int]:
    return {str(name): int(n) for name, n in names.value_counts().items() if n}


def _reasons(connections: pd.DataFrame) -> dict[str, int]:
    return _counts(connections["fault"].astype(object).fillna("not told"))


def _phases(rows: pd.DataFrame, beside: pd.DataFrame, metric: Metric) -> Figures | None:
    """The server's durations, and the client's set-up beside them; None for a log without times."""
    timed = rows[rows["metric"].isin(PHASES)]
    if timed.empty:
        return None
    found = {f"{name}_ms": metric(timed[timed["metric"] == name], "value_s", 1000.0) for name in PHASES}
    setup = timed[timed["metric"] == "setup"].set_index("cluster")["value_s"]
    both = beside.assign(server_s=beside["cluster"].map(setup))
    both = both[both["server_s"].notna() & both["setup_s"].notna()]
    both = both.assign(rest_s=both["setup_s"] - both["server_s"])
    return found | {
        "client_setup_ms": metric(both, "setup_s", 1000.0),
        "rest_ms": metric(both, "rest_s", 1000.0),
    }


def _step(steps: pd.DataFrame, metric: Metric) -> Figures | None:
    if steps.empty:
        return None
    return {
        "n": len(steps),
        "frame_ms": FRAME_S * 1000,
        "over_percent": float((steps["value_s"] > FRAME_S).mean()) * 100,
        "step_ms": metric(steps, "value_s", 1000.0),
    }

"""Hold calls with an agent peer: ours, and the clients it is compared with. Each is looked at in a steady window.

For all of them alike, CPU is the process's user and system time, and the peer says how late chunks came: by the
kernel's stamps at its own end, against the call's clock at its best.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import voice
from benchmarks.load import USERS, LiveLoad, Load, Window, quantiles, running
from benchmarks.peers.building import built
from benchmarks.peers.starting import ANSWER_S, AgentPeer
from benchmarks.processes import CLIENT_CORE, PYTHON, ROOT, ProcessFailed, Running

TALKING = ROOT / "locustfiles" / "talk_voice_agent.py"
CHUNKS_A_SECOND, QUERY_S, CYCLE_S, SPAWN_RATE = 50, 1.6, 9.0, 100
TURN_S = 7.5  # about, from one turn's beginning to the next's
# No greeting is waited for, and no audio kept; an answer's end is heard after half a second.
_CALLS = ("--dialect", "pipecat", "--chunk-ms", "20", "--greeting-s", "0", "--answer-end-s", "0.5", "--insecure")


@dataclass(frozen=True, slots=True)
class Held:
    """A client that has held its calls: what it is, and what it says of itself beside what was measured of it."""

    window: Window
    theirs: dict[str, Any]  # the peer's figures of the window
    sent_late_ms: dict[str, float] | None  # by the client's own account
    heard_share: float | None  # messages the client received, of those the peer sent

    def figures(self, calls: int) -> dict[str, Any]:
        seconds = self.window.end_at - self.window.begin_at
        return {
            "calls": calls,
            "cpu_share": self.window.cpu_share,
            "waited_for_core_share": self.window.waited_share,
            "sent_late_ms": self.sent_late_ms,
            "late_at_the_peer_ms": self.theirs["heard_late_ms"],
            "sent_of_due": self.theirs["chunks_heard"] / (calls * CHUNKS_A_SECOND * seconds),
            "heard_of_sent": self.heard_share,
            "peer": {key: self.theirs[key] for key in ("calls", "cpu_share", "skipped", "written_late_ms")},
        }


def our_load(peer: AgentPeer, calls: int, folder: Path, *more: str, secure: bool = False) -> Load:
    """The shipped locustfile, with queries whose voices' ends are known."""
    queries = folder / "queries"
    voice.write_queries(queries, 4, QUERY_S)
    host = peer.wss_url if secure else peer.ws_url
    options = [*_CALLS, "--audio-dir", str(queries), "--think-s", "1", "2", *more]
    # Spread over a turn at least: people do not all speak at once.
    return Load(TALKING, host, calls, min(SPAWN_RATE, calls / TURN_S), folder, options)


@contextmanager
def our_calls(load: Load, warm_s: float = QUERY_S + ANSWER_S + 3.0) -> Iterator[LiveLoad]:
    """Our worker with all its calls up, and a turn each behind them."""
    with running(load) as live:
        live.window(warm_s)
        yield live


def watched(live: LiveLoad, peer: AgentPeer, seconds: float) -> tuple[Window, dict[str, Any]]:
    """A window, and what the peer did in it."""
    peer.forget()
    window = live.window(seconds)
    return window, peer.figures()


def ours(
    peer: AgentPeer, calls: int, folder: Path, seconds: float, secure: bool = False
) -> tuple[dict[str, Any], LiveLoad]:
    """Figures of our worker, its turns included, and where its rows are."""
    with our_calls(our_load(peer, calls, folder, secure=secure)) as live:
        window, theirs = watched(live, peer, seconds)
    found = Held(window, theirs, our_lateness(live, window), None).figures(calls)
    turns = window.of(live.rows(), "ended_at")
    turns = turns[turns["outcome"] != "cut"]
    found["turns"] = {
        "n": len(turns),
        "failed": int(turns["error_kind"].notna().sum()),
        "flagged_share": float(turns["flagged"].mean()) if len(turns) else None,
        "stalled": int((turns["stall_count_0ms"] > 0).sum()),
        "by_gate": int((turns["onset_by"] == "gate").sum()),
    }
    return found, live


def our_lateness(live: LiveLoad, window: Window) -> dict[str, float]:
    """Lateness of chunks by our own account: medians over the seconds of a window of their p50 and p99; the worst."""
    seconds = window.of(live.rows("workers"), "at")
    return {
        "n": int(seconds["sends"].sum()),
        "p50": float(seconds["send_late_p50_s"].median()) * 1e3,
        "p99": float(seconds["send_late_p99_s"].median()) * 1e3,
        "p99_of_worst_second": float(seconds["send_late_p99_s"].max()) * 1e3,
        "max": float(seconds["send_late_max_s"].max()) * 1e3,
    }


def plain_locust(peer: AgentPeer, calls: int, folder: Path, seconds: float) -> dict[str, Any]:
    """A Locust user with websocket-client and two greenlets."""
    folder.mkdir(parents=True, exist_ok=True)
    counted = folder / "counted.npz"
    config = {"clip": str(_clip(folder)), "cycle_s": CYCLE_S, "found": str(counted)}
    load = Load(USERS / "plain_websocket.py", peer.ws_url, calls, SPAWN_RATE, folder, None, config)
    with running(load) as live:
        live.window(3.0)
        window, theirs = watched(live, peer, seconds)
    noted = np.load(counted)
    within = (noted["sent_at"] >= window.begin_at) & (noted["sent_at"] <= window.end_at)
    late = quantiles(pd.Series(noted["sent_late_s"][within]), 1e3)
    heard = int(((noted["heard_at"] >= window.begin_at) & (noted["heard_at"] <= window.end_at)).sum())
    return Held(window, theirs, late, heard / theirs["chunks_sent"]).figures(calls)


def asyncio_client(peer: AgentPeer, calls: int, folder: Path, seconds: float, uvloop: bool = False) -> dict[str, Any]:
    """A program with the `websockets` library."""
    command = [*PYTHON, "benchmarks.peers.asyncio_client", *(["--uvloop"] if uvloop else [])]
    return _program(command, peer, calls, folder, seconds)


def c_client(peer: AgentPeer, calls: int, folder: Path, seconds: float) -> dict[str, Any] | None:
    """The floor; None where there is no compiler."""
    program = built("agent_client", folder)
    return _program([str(program)], peer, calls, folder, seconds) if program else None


def _program(command: list[str], peer: AgentPeer, calls: int, folder: Path, seconds: float) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {"port": peer.port, "calls": calls, "cycle-s": CYCLE_S, "warm-s": 2, "seconds": seconds + 5}
    options = [word for name, value in numbers.items() for word in (f"--{name}", f"{value:g}")]
    with Running([*command, "--clip", str(_clip(folder)), *options], cwd=ROOT, core=CLIENT_CORE) as client:
        client.wait_for("all calls are up")
        live = LiveLoad(client, client, None)
        live.window(3.0)
        window, theirs = watched(live, peer, seconds)
        if theirs["calls"] != calls:
            raise ProcessFailed(f"{' '.join(command)} kept {theirs['calls']} of {calls} calls to the end of the window")
        said = json.loads(client.wait_for("{"))
    heard_rate = said["heard"] / said["seconds"] / (calls * CHUNKS_A_SECOND)
    return Held(window, theirs, said["sent_late_ms"], heard_rate).figures(calls)


def _clip(folder: Path) -> Path:
    path = folder / "query.s16"
    path.write_bytes(voice.clip(QUERY_S, 500, 300).samples.tobytes())
    return path

"""How many calls does a worker's core hold, 20 ms chunks both ways? Ours, ours over TLS, and four others beside it.

All of them hold calls with the same peer on the other core, one after the other: a plain Locust user (websocket-client,
two greenlets a call), the asyncio `websockets` library (with its own loop and with uvloop), and C as the floor. The
others measure nothing and hear nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import calls
from benchmarks.peers.starting import AgentPeer, agent_peer
from benchmarks.processes import ProcessFailed
from benchmarks.results import Outcome, Target

SHARE, LATE_P99_MS = 0.80, 1.0
LEAST, LEAST_SECURE = 1000, 800
SHARES = (0.70, 0.80)
LEVELS = {
    "ours_ws": (200, 600, 1000, 1200),
    "ours_wss": (200, 600, 800, 1000),
    "plain_locust": (100, 200, 330),
    "asyncio_websockets": (100, 200, 300),
    "asyncio_websockets_uvloop": (200, 400, 600),
    "c": (200, 600, 1000, 1400),
}
QUICK = {
    "ours_ws": (50, 200),
    "ours_wss": (50, 100),
    "plain_locust": (50, 100),
    "asyncio_websockets": (50, 100),
    "asyncio_websockets_uvloop": (50, 100),
    "c": (200,),
}

Hold = Callable[[AgentPeer, int, Path, float], dict[str, Any] | None]
HOLDS: dict[str, Hold] = {
    "ours_ws": lambda peer, count, folder, seconds: calls.ours(peer, count, folder, seconds)[0],
    "ours_wss": lambda peer, count, folder, seconds: calls.ours(peer, count, folder, seconds, secure=True)[0],
    "plain_locust": calls.plain_locust,
    "asyncio_websockets": calls.asyncio_client,
    "asyncio_websockets_uvloop": lambda peer, count, folder, seconds: calls.asyncio_client(
        peer, count, folder, seconds, uvloop=True
    ),
    "c": calls.c_client,
}


def run(quick: bool, folder: Path) -> Outcome:
    seconds = 8.0 if quick else 15.0
    levels = QUICK if quick else LEVELS
    outcome = Outcome({"window_s": seconds, "chunk_ms": 20, "sample_rate": 16_000, "levels": levels})
    for name, counts in levels.items():
        found = []
        for count in counts:
            where = folder / f"{name}-{count}"
            # A peer of its own: what one client did to it is no other's burden.
            try:
                with agent_peer(where, tls=name == "ours_wss") as peer:
                    outcome.figures["peer_made_of"] = peer.made_of
                    one = HOLDS[name](peer, count, where / "client", seconds)
            except ProcessFailed as error:  # too many calls for it, or for this machine
                outcome.notes.append(f"{name}, {count} calls: {str(error).partition(';')[0]}")
                break
            if one is None:
                break
            print(f"  {name} {count}: {one['cpu_share']:.0%} of a core, late p99 {_late(one):.2f} ms", flush=True)
            found.append(one)
            if one["cpu_share"] > 0.97:
                break  # it is full: more calls would only be later
        outcome.figures[name] = {"levels": found, **at_shares(found)}
    outcome.targets = [
        *_targets("ours_ws", outcome, 200 if quick else LEAST),
        *_targets("ours_wss", outcome, 100 if quick else LEAST_SECURE),
    ]
    outcome.notes += [
        "sent_late_ms: by the client's own account. late_at_the_peer_ms: by the kernel's stamps at the peer, for all "
        "clients alike: how much later than at the call's best a chunk came.",
        "ours hears, measures and records every turn, with its hearing subprocess on the same core; the others only "
        "send what was encoded beforehand, and read. CPU is the worker's process alone.",
    ]
    if outcome.figures["peer_made_of"] != "C":
        outcome.notes.append("No C compiler: the peer is in Python, holds fewer calls, and is itself late.")
    return outcome


def _late(one: dict[str, Any]) -> float:
    late = one["sent_late_ms"] or {}
    return float(late.get("p99", float("nan")))


def at_shares(found: list[dict[str, Any]]) -> dict[str, float | None]:
    """Calls at 70 % and at 80 % of a core, between the levels measured; beyond them, along the last two."""
    points = sorted((one["cpu_share"], one["calls"]) for one in found)
    return {f"calls_at_{share:.0%}": between(points, share) for share in SHARES}


def between(points: list[tuple[float, int]], share: float) -> float | None:
    """Calls at a CPU share, on the line through the nearest levels; None where that would be guessing."""
    if len(points) < 2:
        return None
    shares, counts = (np.array(column, float) for column in zip(*points, strict=True))
    if share <= shares[0] or share > shares[-1] * 1.5:
        return None
    after = min(max(int(np.searchsorted(shares, share)), 1), len(points) - 1)
    slope = (counts[after] - counts[after - 1]) / max(shares[after] - shares[after - 1], 1e-9)
    return float(counts[after - 1] + slope * (share - shares[after - 1]))


def _targets(name: str, outcome: Outcome, count: int) -> list[Target]:
    one = next((found for found in outcome.figures[name]["levels"] if found["calls"] == count), None)
    what = f"{name}, {count} calls"
    return [
        Target(f"{what}: CPU share", one and one["cpu_share"], SHARE, "core"),
        Target(f"{what}: send lateness p99", _late(one) if one else None, LATE_P99_MS, "ms"),
        Target(f"{what}: chunks sent, of those due", one and one["sent_of_due"], 0.99, "", at_least=True),
        Target(f"{what}: failed turns", one and one["turns"]["failed"], 0, ""),
    ]

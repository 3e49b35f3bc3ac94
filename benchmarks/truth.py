"""Is the time to first chunk right? Against a server that puts its own clock into the first audio bytes.

Six loads: many 20 ms streams until the worker uses about 50 % and 85 % of its core; both with a few stock FastHttpUsers
in the same worker; 30 ms stalls in the worker, with chunks 40 ms and 20 ms apart; and a reader that is 100 ms late for
chunks 80 ms apart. A first, small load tells how many streams make which share.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import errors
from benchmarks.load import NO_THINKING, PCM, USERS, Load, quantiles, running
from benchmarks.peers.starting import Peer, paced_server, path
from benchmarks.results import Outcome, Target

CHUNK_BYTES, LENGTH_S = 960, 2.0
STOCK_USERS = 40
STALL_S, STALL_EVERY_S = 0.030, 0.200
OFF_SHARE, MOST_STREAMS = 0.06, 1500
P50_MS, P99_MS = 0.01, 0.05


@dataclass(frozen=True, slots=True)
class Case:
    """One load. `cpu_share`: what the worker is to use in all; stalls count."""

    name: str
    cpu_share: float
    gap_ms: int
    stalls: bool = False


CASES = (
    Case("cpu_50", 0.50, 20),
    Case("cpu_85", 0.85, 20),
    Case("stalls_40ms", 0.50, 40, stalls=True),
    Case("stalls_20ms", 0.50, 20, stalls=True),
)


class Bench:
    """The truth server, and what is known of how many streams make which CPU share."""

    def __init__(self, server: Peer, folder: Path, window_s: float) -> None:
        self.server, self.folder, self.window_s = server, folder, window_s
        self.figures: dict[str, Any] = {}
        self._known: list[tuple[float, float]] = []  # (chunks a second, CPU share)

    def calibrate(self) -> None:
        """How much of a core a few streams cost; later loads make it more exact."""
        self._measure("calibration", 250, 20, 3.0, {})

    def streams_for(self, cpu_share: float, gap_ms: int) -> int:
        """How many streams make that share: along the line through the two nearest loads known, or through zero."""
        nearest = sorted(self._known, key=lambda known: abs(known[1] - cpu_share))[:2]
        (chunks, share), (chunks2, share2) = (nearest * 2)[:2]
        slope = (chunks2 - chunks) / (share2 - share) if abs(share2 - share) > 0.05 else chunks / share
        wanted = chunks + max(slope, 0.0) * (cpu_share - share)
        return min(MOST_STREAMS, max(20, round(wanted * gap_ms / 1000)))

    def measure(self, case: Case) -> dict[str, Any]:
        config: dict[str, Any] = {"stock_users": STOCK_USERS}
        share = case.cpu_share
        if case.stalls:
            config |= {"stall_s": STALL_S, "stall_every_s": STALL_EVERY_S}
            share -= STALL_S / STALL_EVERY_S
        for attempt in (1, 2):
            users = self.streams_for(share, case.gap_ms)
            found = self._measure(f"{case.name}-{attempt}", users, case.gap_ms, self.window_s, config)
            if abs(found["cpu_share"] - case.cpu_share) < OFF_SHARE:
                break  # else once more: what was just learnt makes the guess better
        self.figures[case.name] = found
        return found

    def _measure(self, name: str, users: int, gap_ms: int, window_s: float, more: dict[str, Any]) -> dict[str, Any]:
        target = path(chunks=LENGTH_S * 1000 // gap_ms, bytes=CHUNK_BYTES, first_ms=50, gap_ms=gap_ms)
        folder = self.folder / name
        folder.mkdir(parents=True)
        config = _config(folder, path=target, stagger_s=LENGTH_S, **more)
        users += config.get("stock_users", 0)
        options = [*PCM, *NO_THINKING, "--path", target]
        with running(Load(USERS / "stamped.py", self.server.url, users, 200, folder, options, config)) as live:
            live.window(LENGTH_S + 1.5)
            self.server.forget()
            window = live.window(window_s)
            theirs = self.server.figures()
        load_share = window.cpu_share - (STALL_S / STALL_EVERY_S if config.get("stall_s") else 0.0)
        self._known.append((theirs["chunks"] / (window.end_at - window.begin_at), load_share))
        turns = window.of(live.rows(), "ended_at")
        met = errors.joined(turns, Path(config["stamps"]))
        found: dict[str, Any] = {
            "streams": users,
            "cpu_share": window.cpu_share,
            "waited_for_core_share": window.waited_share,
            **errors.left_out(turns, met),
            **errors.summary(met),
        }
        if config.get("stock_users"):
            by_their_clock = errors.stock(Path(config["stock_stamps"]), window.begin_at, window.end_at)
            found["stock_user_clock_error_ms"] = quantiles(by_their_clock, 1e3)
        return found | {"server_chunk_late_ms": theirs["chunk_late_ms"]}

    def late_reader(self, turns_s: float) -> dict[str, Any]:
        """One user; its process sleeps from 20 ms after the request until 100 ms after the first chunk came."""
        folder = self.folder / "late_reader"
        folder.mkdir(parents=True)
        target = path(chunks=5, bytes=CHUNK_BYTES, first_ms=50, gap_ms=80)
        config = _config(folder, path=target, late_from_s=0.020, late_s=0.130)
        options = [*PCM, *NO_THINKING, "--path", target]
        with running(Load(USERS / "stamped.py", self.server.url, 1, 1, folder, options, config)) as live:
            live.window(1.0)
            window = live.window(turns_s)
        turns = window.of(live.rows(), "ended_at")
        met = errors.joined(turns, Path(config["stamps"]))
        found = errors.left_out(turns, met) | errors.summary(met)
        self.figures["late_reader"] = found
        return found


def _config(folder: Path, **more: Any) -> dict[str, Any]:
    files = {name: str(folder / f"{name}.txt") for name in ("stamps", "stock_stamps")}
    return {"chunk_bytes": CHUNK_BYTES, **files, **more}


def run(quick: bool, folder: Path) -> Outcome:
    window_s = 4.0 if quick else 12.0
    outcome = Outcome(
        {
            "chunk_bytes": CHUNK_BYTES,
            "length_s": LENGTH_S,
            "stock_users": STOCK_USERS,
            "stall_s": STALL_S,
            "stall_every_s": STALL_EVERY_S,
            "window_s": window_s,
        }
    )
    with paced_server() as server:
        bench = Bench(server, folder, window_s)
        bench.calibrate()
        for case in CASES[:1] + CASES[2:] if quick else CASES:
            outcome.targets += _targets(case, bench.measure(case))
        outcome.targets += _late_targets(bench.late_reader(4.0 if quick else 12.0))
    outcome.figures = bench.figures
    left_out = sum(found["failed_turns"] + found["unmatched_turns"] for found in bench.figures.values())
    outcome.targets.append(Target("turns left out: failed, or without a stamp", left_out, 0, ""))
    outcome.notes += [
        "error: |first_chunk_at - the server's CLOCK_MONOTONIC just before its write|; the write's own time is in it.",
        "stock: FastHttpUsers in the same worker at the same time, by their own clock at their first chunk.",
    ]
    return outcome


def _targets(case: Case, found: dict[str, Any]) -> list[Target]:
    error = found["error_ms"]
    at = f"TTFC error at {found['cpu_share']:.0%} CPU"
    if not case.stalls:
        return [
            Target(f"{at}, p50", error.get("p50"), P50_MS, "ms"),
            Target(f"{at}, p99", error.get("p99"), P99_MS, "ms"),
        ]
    at += f", 30 ms stalls, chunks {case.gap_ms} ms apart"
    if case.gap_ms >= 40:
        return [Target(f"{at}, p99", error.get("p99"), P99_MS, "ms")]
    return [
        Target(f"{at}: truth outside the interval", found["truth_outside_interval"], 0, ""),
        Target(f"{at}: wrong by more than 1 ms and not flagged", found["of_these_not_flagged"], 0, ""),
    ]


def _late_targets(found: dict[str, Any]) -> list[Target]:
    return [
        Target("reader 100 ms late, chunks 80 ms apart: flagged", found["flagged_share"], 1.0, "", at_least=True),
        Target("the same: truth outside the interval", found["truth_outside_interval"], 0, ""),
    ]

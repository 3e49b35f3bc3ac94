"""Answers that come at once: requests a CPU second of our user, beside stock FastHttpUsers that only drain them.

The peers take turns with ours, round after round, so that a machine that changes its mind does so for all of them.
"""

from pathlib import Path
from statistics import median

from benchmarks.load import NO_THINKING, PCM, USERS, Load, running
from benchmarks.peers.starting import Peer, paced_server, path
from benchmarks.processes import ProcessFailed
from benchmarks.results import Outcome, Target

CHUNKS, CHUNK_BYTES, CONNECTIONS = 40, 4800, 10
LEAST_RATIO = 0.8
TARGET = path(chunks=CHUNKS, bytes=CHUNK_BYTES, first_ms=0, gap_ms=0)
STOCK = {"stock_stream": "stream", "stock_whole": "whole"}


def run(quick: bool, folder: Path) -> Outcome:
    rounds, window_s = (1, 2.0) if quick else (3, 5.0)
    sizes = {"chunks": CHUNKS, "chunk_bytes": CHUNK_BYTES, "connections": CONNECTIONS}
    outcome = Outcome({**sizes, "rounds": rounds, "window_s": window_s})
    per_cpu_s: dict[str, list[float]] = {"ours": [], **{name: [] for name in STOCK}}
    shares: dict[str, list[float]] = {name: [] for name in per_cpu_s}
    with paced_server() as server:
        for number in range(rounds):
            for name, rates in per_cpu_s.items():
                rate, share = _measure(_load(name, server, folder / f"{name}-{number}"), server, window_s)
                rates.append(rate)
                shares[name].append(share)
    ours = median(per_cpu_s["ours"])
    strongest = max(STOCK, key=lambda name: median(per_cpu_s[name]))
    ratio = ours / median(per_cpu_s[strongest])
    outcome.figures = {
        "requests_per_cpu_s": {name: median(rates) for name, rates in per_cpu_s.items()},
        "cpu_us_per_request": {name: 1e6 / median(rates) for name, rates in per_cpu_s.items()},
        "cpu_us_per_chunk": {name: 1e6 / median(rates) / CHUNKS for name, rates in per_cpu_s.items()},
        "rounds": per_cpu_s,
        "cpu_shares": shares,
        "strongest_peer": strongest,
        "ratio_to_strongest": ratio,
        "ratio_to_stream": ours / median(per_cpu_s["stock_stream"]),
    }
    outcome.targets = [
        Target(f"requests a CPU second, ours / {strongest}", ratio, LEAST_RATIO, "", at_least=True),
    ]
    return outcome


def _load(name: str, server: Peer, folder: Path) -> Load:
    if name == "ours":
        return Load(
            USERS / "streams.py",
            server.url,
            CONNECTIONS,
            CONNECTIONS,
            folder,
            [*PCM, *NO_THINKING, "--path", TARGET],
        )
    config = {"path": TARGET, "chunk_bytes": CHUNK_BYTES, "reading": STOCK[name]}
    return Load(USERS / "bare.py", server.url, CONNECTIONS, CONNECTIONS, folder, config=config)


def _measure(load: Load, server: Peer, window_s: float) -> tuple[float, float]:
    """Requests a CPU second of the worker, and its CPU share."""
    with running(load) as live:
        live.window(1.0)
        server.forget()
        window = live.window(window_s)
        requests = server.figures()["requests"]
    if load.options is not None and (failed := int(window.of(live.rows(), "ended_at")["error_kind"].notna().sum())):
        raise ProcessFailed(f"{failed} of our turns failed; a rate of failures means nothing")
    return requests / window.cpu_s, window.cpu_share

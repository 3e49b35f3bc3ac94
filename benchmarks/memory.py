"""How much memory a worker with 200 users needs at its peak, beside stock Locust doing the same.

The answers: 8 s of 24 kHz audio each, in 40 ms chunks, at a real-time factor of 0.3; the shipped locustfile.
"""

from pathlib import Path
from typing import Any

from benchmarks.load import PCM, USERS, Load, running
from benchmarks.peers.starting import Peer, paced_server, path
from benchmarks.processes import ROOT
from benchmarks.results import Outcome, Target

USER_COUNT, MOST_MB = 200, 150.0
TARGET = path(chunks=200, bytes=1920, first_ms=120, gap_ms=12)
STREAM_S = 0.12 + 200 * 0.012


def run(quick: bool, folder: Path) -> Outcome:
    window_s = 5.0 if quick else 20.0
    outcome = Outcome({"users": USER_COUNT, "window_s": window_s, "audio_s": 8.0})
    stock = {"path": TARGET, "chunk_bytes": 1920, "reading": "stream", "stagger_s": STREAM_S}
    ours = [*PCM, "--think-s", "0.2", "0.8", "--path", TARGET]
    with paced_server() as server:
        cases = {
            "ours": _load(server, folder / "ours", ROOT / "locustfiles" / "speak_http.py", ours),
            "ours_keeping_audio": _load(
                server, folder / "keeping", USERS / "streams.py", ours, {"keep_audio": True, "stagger_s": STREAM_S}
            ),
            "stock_fast_http": _load(server, folder / "stock", USERS / "bare.py", None, stock),
        }
        for name, load in cases.items():
            outcome.figures[name] = _measure(load, window_s)
    peak_mb = outcome.figures["ours"]["peak_rss_mb"]
    outcome.targets.append(Target(f"peak of a worker with {USER_COUNT} users", peak_mb, MOST_MB, "MB"))
    return outcome


def _load(
    server: Peer, folder: Path, locustfile: Path, options: list[str] | None, config: dict[str, Any] | None = None
) -> Load:
    return Load(locustfile, server.url, USER_COUNT, 50, folder, options, config or {})


def _measure(load: Load, window_s: float) -> dict[str, float]:
    with running(load) as live:
        window = live.window(window_s)
        return {
            "peak_rss_mb": live.worker.peak_rss_bytes() / 1e6,
            "rss_mb": live.worker.process.memory_info().rss / 1e6,
            "unique_mb": live.worker.process.memory_full_info().uss / 1e6,
            "cpu_share": window.cpu_share,
        }

"""Whether the Chatterbox engine keeps its memory flat: ten minutes at a full queue, tiny, on the CPU.

A real server process; clients without a pause, more than it has streams and places in its queue, one in five of whom
leaves in the middle of its answer. What is refused (503) is asked again after a moment.
"""

import asyncio
import random
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.peers.starting import bundled_server
from benchmarks.results import Outcome, Target

STREAMS, QUEUE, CLIENTS = 8, 16, 30
GROWTH_MB = 20.0  # from the second minute to the last one
SERVER = ("--engine", "chatterbox-turbo", "--random-weights", "tiny", "--device", "cpu")
TEXT = "Hi, this is Sarah from customer service. How can I help you today? "


def run(quick: bool, folder: Path) -> Outcome:
    seconds = 40.0 if quick else 600.0
    options = (*SERVER, "--streams", str(STREAMS), "--queue", str(QUEUE))
    outcome = Outcome({"seconds": seconds, "clients": CLIENTS, "server": " ".join(options)})
    with bundled_server(folder / "server", *options) as (server, _):
        found = asyncio.run(_soak(server.url, psutil.Process(server.running.process.pid), seconds))
    outcome.figures = found
    outcome.targets = [
        Target("growth of resident memory, second minute to last", found["growth_mb"], GROWTH_MB, "MB"),
        Target("answers that failed", found["answers"].get("failed", 0), 0, ""),
        Target("moments with a full queue", found["full_share"], 0.9, "", at_least=True),
    ]
    outcome.notes.append("random weights: timing only. What is asked for here is memory; other work ran beside it.")
    return outcome


async def _soak(url: str, process: psutil.Process, seconds: float) -> dict[str, Any]:
    until = time.monotonic() + seconds
    answers: Counter[str] = Counter()
    looks: list[tuple[float, float, bool]] = []
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=CLIENTS + 1)) as client:
        clients = [asyncio.create_task(_keep_asking(client, number, until, answers)) for number in range(CLIENTS)]
        while time.monotonic() < until:
            await asyncio.sleep(1)
            health = (await client.get("/health")).json()
            looks.append((time.monotonic(), process.memory_info().rss / 1e6, health["queued"] > 0))
        await asyncio.gather(*clients)
    began_at = looks[0][0]
    minute_s = min(60.0, seconds / 4)

    def within(first_s: float, last_s: float) -> float:
        return statistics.median(mb for at, mb, _ in looks if first_s <= at - began_at <= last_s)

    last_s = looks[-1][0] - began_at
    return {
        "growth_mb": within(last_s - minute_s, last_s) - within(minute_s, 2 * minute_s),
        "rss_mb_by_minute": [within(n * minute_s, (n + 1) * minute_s) for n in range(int(last_s / minute_s))],
        "answers": dict(answers),
        "full_share": sum(full for *_, full in looks) / len(looks),
    }


async def _keep_asking(client: httpx.AsyncClient, number: int, until: float, answers: Counter[str]) -> None:
    luck = random.Random(number)
    while time.monotonic() < until:
        try:
            outcome = await _ask(client, TEXT * luck.randint(1, 3), leaves=luck.random() < 0.2)
        except httpx.HTTPError:
            outcome = "failed"
        answers[outcome] += 1
        if outcome == "refused":
            await asyncio.sleep(luck.uniform(0.0, 0.2))


async def _ask(client: httpx.AsyncClient, words: str, leaves: bool) -> str:
    async with client.stream("POST", "/v1/synthesize", json={"text": words}) as answer:
        if answer.status_code == 503:
            return "refused"
        if answer.status_code != 200:
            return "failed"
        async for _ in answer.aiter_raw():
            if leaves:
                return "left"
    return "whole"

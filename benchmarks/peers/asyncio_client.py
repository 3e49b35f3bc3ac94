"""An asyncio program with the `websockets` library that holds the same calls as agent_client.c: same command line.

Two tasks a call, one that sends and one that receives, as its users write them; messages are encoded beforehand.
"""

import argparse
import asyncio
import json
import random
import time
from array import array
from pathlib import Path

import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.peers.messages import cycle_of

CHUNK_S = 0.02


class Counts:
    """What is counted from `begin_at` on."""

    def __init__(self) -> None:
        self.begin_at = float("inf")
        self.sent_late_s = array("d")
        self.heard = 0


async def speak(call: ClientConnection, messages: list[bytes], counts: Counts) -> None:
    at = random.randrange(len(messages))
    due_at = time.monotonic() + random.random() * CHUNK_S
    while True:
        await asyncio.sleep(max(0.0, due_at - time.monotonic()))
        await call.send(messages[at])
        now = time.monotonic()
        if now >= counts.begin_at:
            counts.sent_late_s.append(now - due_at)
        at = (at + 1) % len(messages)
        due_at += CHUNK_S


async def listen(call: ClientConnection, counts: Counts) -> None:
    async for _ in call:
        counts.heard += time.monotonic() >= counts.begin_at


async def hold(options: argparse.Namespace) -> None:
    messages, counts = cycle_of(Path(options.clip).read_bytes(), options.cycle_s), Counts()
    calls = []
    for number in range(options.calls):
        url = f"ws://127.0.0.1:{options.port}{options.path}{number}"
        calls.append(await connect(url, compression=None, ping_interval=None))
    tasks = [asyncio.create_task(speak(call, messages, counts)) for call in calls]
    tasks += [asyncio.create_task(listen(call, counts)) for call in calls]
    print("asyncio_client: all calls are up", flush=True)
    await asyncio.sleep(options.warm_s)
    counts.begin_at, began_cpu_s = time.monotonic(), time.process_time()
    await asyncio.sleep(options.seconds)
    took_s, spent_s = time.monotonic() - counts.begin_at, time.process_time() - began_cpu_s
    late_ms = np.asarray(counts.sent_late_s) * 1e3
    found = {
        "calls": options.calls,
        "seconds": took_s,
        "cpu_share": spent_s / took_s,
        "sent": len(late_ms),
        "heard": counts.heard,
        "lost_calls": sum(task.done() for task in tasks),
        "sent_late_ms": dict(
            zip(("p50", "p99", "p999"), np.quantile(late_ms, (0.5, 0.99, 0.999)).tolist(), strict=True)
        )
        | {"n": len(late_ms), "max": float(late_ms.max())},
    }
    print(json.dumps(found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--calls", type=int, default=1)
    parser.add_argument("--clip", required=True, help="16 kHz s16 mono samples")
    parser.add_argument("--cycle-s", type=float, default=9.0)
    parser.add_argument("--warm-s", type=float, default=3.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--path", default="/ws/a-")
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    if options.uvloop:
        import uvloop

        uvloop.run(hold(options))
    else:
        asyncio.run(hold(options))


if __name__ == "__main__":
    main()

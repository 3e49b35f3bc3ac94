"""Record turns as a worker does and say what each part costs, in µs of CPU a turn. recording.py starts it.

`--receive`: be the master's end of the channel instead, and throw away what comes.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import msgpack
import numpy as np
from gevent import monkey

monkey.patch_all()

from locust.env import Environment  # noqa: E402 - Locust patches the world when it is imported, and wants to be first
from locust.rpc import protocol, zmqrpc  # noqa: E402

from workers import hooks  # noqa: E402
from workers.audio.track import Track  # noqa: E402
from workers.run import LiveRun  # noqa: E402
from workers.samples.measure import Turn, start_row, turn_row  # noqa: E402
from workers.samples.recorder import Recorder  # noqa: E402
from workers.samples.relay import PIECE_BYTES  # noqa: E402

LOCUSTS: Any = zmqrpc  # untyped
Message: Any = protocol.Message
ROWS_A_BATCH = 1000
KEEP_CHUNKS = 0.01
NAMES = ("20261120-101500-speech", "vm_26e72c63", "speech")


def example(number: int, chunks: int) -> Turn:
    """A plausible answer: 40 ms chunks, sent at a real-time factor of 0.3 with a little jitter, one of them late."""
    at = 5_000.0 + number
    track = Track(1, keep=False)
    track.sample_rate = 24_000
    samples = np.full(960, 12_000, np.int16)
    late_s = 0.1 if number % 10 == 0 else 0.0  # every tenth answer stalls
    for chunk in range(chunks):
        arrived_at = at + 0.12 + 0.012 * chunk + random.uniform(0, 0.002) + (late_s if chunk == chunks // 2 else 0.0)
        track.hear(samples, arrived_at, 0.000_2)
    return Turn(
        "vm_26e72c63:17", number, "http_tts", "openai", f"20261120-101500-speech.26e72c63.{number}",
        "telephony_typical", 200, "default", "measured", at, clock="kernel", status=200, sent_at=at + 1e-4,
        ready_at=4_990.0, ended_at=track.last_chunk_at + 1e-4, audio_bytes=chunks * 1920, wire_bytes=chunks * 1930,
        track=track,
    )  # fmt: skip


class Parts:
    """The parts of recording, over the same turns."""

    def __init__(self, log: Path, port: int, turns: list[Turn]) -> None:
        self.turns = turns
        self.recorder = Recorder(log, {"worker": NAMES[1]})
        self.channel = LOCUSTS.Client("127.0.0.1", port, NAMES[1])
        self._reading = os.open(log, os.O_RDONLY)
        self._scrap = os.open(log.with_suffix(".scrap"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._shipped = self.recorder.size
        self._packer = msgpack.Packer()
        self._rows = [turn_row(turn, *NAMES, False) for turn in turns]
        self._starts = [start_row(turn, *NAMES) for turn in turns]
        self._packed = [self._packer.pack(["turns", *row]) for row in self._rows]
        self.environment = Environment()
        self.run = cast(LiveRun, SimpleNamespace(error_lines={}, listener_errors=0))

    def everything(self) -> None:
        for turn in self.turns:
            self.recorder.append("turn_starts", start_row(turn, *NAMES))
            self.recorder.append("turns", turn_row(turn, *NAMES, random.random() < KEEP_CHUNKS))
        self.ship()

    def ship(self) -> None:
        while self._shipped < self.recorder.size:
            data = os.pread(self._reading, PIECE_BYTES, self._shipped)
            piece = {"run": NAMES[0], "worker": NAMES[1], "offset": self._shipped, "data": data}
            self.channel.send(Message("cicada_rows", piece, NAMES[1]))
            self._shipped += len(data)

    def make_start_rows(self) -> None:
        for turn in self.turns:
            start_row(turn, *NAMES)

    def make_turn_rows(self) -> None:
        for turn in self.turns:
            turn_row(turn, *NAMES, random.random() < KEEP_CHUNKS)

    def pack(self) -> None:
        for start, row in zip(self._starts, self._rows, strict=True):
            self._packer.pack(["turn_starts", *start])
            self._packer.pack(["turns", *row])

    def write_twice(self) -> None:
        for packed in self._packed:
            os.write(self._scrap, packed[:150])  # about a turn_starts row
            os.write(self._scrap, packed)

    def tell_locust(self) -> None:
        for turn in self.turns:
            hooks.tell_locust(self.environment, self.run, turn)


def timed(work: Callable[[], None], batches: int, turns: int, between: Callable[[], None] = lambda: None) -> float:
    """Median CPU time of a batch, in µs a turn."""
    spent = []
    for _ in range(batches):
        began_s = time.process_time()
        work()
        spent.append(time.process_time() - began_s)
        between()
    return median(spent) / turns * 1e6


def report(options: argparse.Namespace) -> dict[str, Any]:
    parts = Parts(options.log, options.port, [example(number, options.chunks) for number in range(ROWS_A_BATCH)])
    wait = lambda: time.sleep(0.02)  # noqa: E731 - the receiver and zmq's thread keep up
    parts.everything()
    before_bytes, before_rows = parts.recorder.size, parts.recorder.rows
    measured = {
        "all_us": timed(parts.everything, options.batches, ROWS_A_BATCH, wait),
        "start_row_us": timed(parts.make_start_rows, options.batches, ROWS_A_BATCH),
        "turn_row_us": timed(parts.make_turn_rows, options.batches, ROWS_A_BATCH),
        "pack_us": timed(parts.pack, options.batches, ROWS_A_BATCH),
        "two_writes_us": timed(parts.write_twice, options.batches, ROWS_A_BATCH),
        "relay_us": _relay(parts, options.batches),
        "telling_locust_beside_us": timed(parts.tell_locust, options.batches, ROWS_A_BATCH),
    }
    turns = (parts.recorder.rows - before_rows) / 2
    return measured | {"bytes_a_turn": (parts.recorder.size - before_bytes) / turns}


def _relay(parts: Parts, batches: int) -> float:
    spent = []
    for _ in range(batches):
        for turn in parts.turns:
            parts.recorder.append("turn_starts", start_row(turn, *NAMES))
            parts.recorder.append("turns", turn_row(turn, *NAMES, False))
        began_s = time.process_time()
        parts.ship()
        time.sleep(0.02)  # zmq's thread sends meanwhile: its CPU time is the process's
        spent.append(time.process_time() - began_s)
    return median(spent) / len(parts.turns) * 1e6


def receive() -> None:
    server = LOCUSTS.Server("127.0.0.1", 0)
    print(f"receiving on {server.port}", flush=True)
    while True:
        server.recv_from_client()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--receive", action="store_true")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--chunks", type=int, default=200)
    parser.add_argument("--batches", type=int, default=200)
    options = parser.parse_args()
    if options.receive:
        receive()
    else:
        print(json.dumps(report(options)), flush=True)


if __name__ == "__main__":
    main()

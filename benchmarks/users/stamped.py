"""Users that note the truth: the instants a paced server puts into its audio, beside what our rows say of them.

CICADA_BENCH (JSON):
    stamps, stock_stamps   files for our turns' stamps and for stock users' errors (see below)
    chunk_bytes, path      the answers', as the paced server sends them
    stagger_s              starts are spread over this
    stock_users            how many stock FastHttpUsers live in the same worker, 0 for none
    stall_s, stall_every_s the process is kept busy that long, about that often
    late_from_s, late_s    after each request, the process sleeps from the one instant for that long: a late reader

A line of `stamps`: request id, the server's CLOCK_MONOTONIC before its write (ns), what that write took (ns).
A line of `stock_stamps`: when the stock user had the first chunk (CLOCK_MONOTONIC, ns), the server's stamp.
"""

import json
import os
import random
import time

import gevent
from gevent import monkey
from locust import FastHttpUser, constant, task

from benchmarks.peers.paced_server import STAMP
from benchmarks.users.probing import stall
from workers.users import SpeechUser

CONFIG = json.loads(os.environ["CICADA_BENCH"])
CHUNK_BYTES, STAGGER_S = CONFIG["chunk_bytes"], CONFIG.get("stagger_s", 0.0)
_stamps = open(CONFIG["stamps"], "a", buffering=1)  # noqa: SIM115 - as long as the process
_stock_stamps = open(CONFIG["stock_stamps"], "a", buffering=1)  # noqa: SIM115
_really_sleep = monkey.get_original("time", "sleep")
stall(CONFIG.get("stall_s", 0.0), CONFIG.get("stall_every_s", 0.0))


class Stamped(SpeechUser):
    keep_audio = True  # the stamps are in it

    def on_start(self) -> None:
        gevent.sleep(random.random() * STAGGER_S)

    @task
    def say(self) -> None:
        if CONFIG.get("late_s"):
            gevent.spawn_later(CONFIG["late_from_s"], _really_sleep, CONFIG["late_s"])
        name, text = self.pick_text()
        speech = self.speak(text, name=name)
        heard = speech.samples.tobytes()
        if speech.ok:
            _, stamp_ns, _ = STAMP.unpack_from(heard)
            # What the first write took is told by the second chunk.
            write_ns = STAMP.unpack_from(heard, CHUNK_BYTES)[2] if len(heard) > CHUNK_BYTES else 0
            _stamps.write(f"{speech.request_id} {stamp_ns} {write_ns}\n")


if CONFIG.get("stock_users"):

    class Stock(FastHttpUser):
        """What a careful user of stock Locust writes: stream, and look at the clock when the first chunk is there."""

        wait_time = constant(0)
        fixed_count = int(CONFIG["stock_users"])

        def on_start(self) -> None:
            gevent.sleep(random.random() * STAGGER_S)

        @task
        def say(self) -> None:
            heard_ns = stamp_ns = 0
            with self.client.post(
                CONFIG["path"], json={"text": "."}, name="stock", stream=True, catch_response=True
            ) as answer:
                for chunk in answer.iter_content(CHUNK_BYTES, decode_content=False):
                    if not heard_ns:
                        heard_ns = time.monotonic_ns()
                        _, stamp_ns, _ = STAMP.unpack_from(chunk)
            if heard_ns:
                _stock_stamps.write(f"{heard_ns} {stamp_ns}\n")

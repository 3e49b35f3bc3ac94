"""What one writes in Locust without us: websocket-client, a greenlet that sends and one that receives for each user.

It measures nothing but its own lateness, hears nothing, and sends messages that were encoded beforehand.
CICADA_BENCH (JSON): clip (16 kHz s16 mono samples), cycle_s, found (a file for what was counted, as JSON).
"""

import json
import os
import random
import time
from array import array
from pathlib import Path
from typing import Any

import gevent
import numpy as np
import websocket
from locust import User, constant, task
from locust import events as locust_events

from benchmarks.peers.messages import cycle_of

CONFIG = json.loads(os.environ["CICADA_BENCH"])
MESSAGES = cycle_of(Path(CONFIG["clip"]).read_bytes(), CONFIG["cycle_s"])
CHUNK_S = 0.02
events: Any = locust_events  # untyped
sent_at, sent_late_s, heard_at = array("d"), array("d"), array("d")


@events.quit.add_listener
def write_down(**_: Any) -> None:
    if not sent_at:  # the master loads this file, too
        return
    np.savez(CONFIG["found"], sent_at=sent_at, sent_late_s=sent_late_s, heard_at=heard_at)


class Plain(User):
    wait_time = constant(0)

    @task
    def talk(self) -> None:
        number = random.randrange(1 << 40)
        call = websocket.create_connection(f"{self.host}/ws/p-{number}", skip_utf8_validation=True)
        listening = gevent.spawn(self._listen, call)
        at = random.randrange(len(MESSAGES))
        due_at = time.monotonic() + random.random() * CHUNK_S
        try:
            while True:
                gevent.sleep(max(0.0, due_at - time.monotonic()))
                call.send_binary(MESSAGES[at])
                now = time.monotonic()
                sent_at.append(now)
                sent_late_s.append(now - due_at)
                at = (at + 1) % len(MESSAGES)
                due_at += CHUNK_S
        finally:
            listening.kill(block=False)
            call.shutdown()  # a close would wait for the answer, three seconds each

    @staticmethod
    def _listen(call: websocket.WebSocket) -> None:
        while True:
            call.recv_data()
            heard_at.append(time.monotonic())

"""Stock Locust: a FastHttpUser that only drains the same answers. Our code is not loaded.

CICADA_BENCH (JSON): path, chunk_bytes, reading ("stream" or "whole"), stagger_s.
"""

import json
import os
import random

import gevent
from locust import FastHttpUser, constant, task

CONFIG = json.loads(os.environ["CICADA_BENCH"])
PATH, CHUNK_BYTES = CONFIG["path"], CONFIG["chunk_bytes"]
BODY = {"text": "What would it take to hear a thousand of these at once?"}


class Bare(FastHttpUser):
    wait_time = constant(0)

    def on_start(self) -> None:
        gevent.sleep(random.random() * CONFIG.get("stagger_s", 0.0))

    @task
    def say(self) -> None:
        if CONFIG["reading"] == "whole":
            self.client.post(PATH, json=BODY, name="turn")
            return
        with self.client.post(PATH, json=BODY, name="turn", stream=True, catch_response=True) as answer:
            for _ in answer.iter_content(CHUNK_BYTES, decode_content=False):
                pass

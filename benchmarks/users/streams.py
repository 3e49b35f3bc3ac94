"""Users that listen to streams without a pause, as a real locustfile would; their starts are spread over one stream.

CICADA_BENCH (JSON): stagger_s, keep_audio, lags (a file for the lags of a 10 ms probe of the loop).
"""

import json
import os
import random

import gevent
from locust import task

from benchmarks.users.probing import watch_loop
from workers.users import SpeechUser

CONFIG = json.loads(os.environ["CICADA_BENCH"])
watch_loop(CONFIG.get("lags"))


class Listener(SpeechUser):
    keep_audio = bool(CONFIG.get("keep_audio", False))

    def on_start(self) -> None:
        gevent.sleep(random.random() * CONFIG.get("stagger_s", 0.0))

    @task
    def say(self) -> None:
        name, text = self.pick_text()
        self.speak(text, name=name)

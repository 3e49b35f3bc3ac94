"""What a benchmark adds to a worker: a probe of its event loop, and stalls on purpose. Both begin with the run."""

import time
from array import array
from pathlib import Path
from typing import Any

import gevent
from locust import events as locust_events

PROBE_EVERY_S = 0.010
events: Any = locust_events  # untyped


def watch_loop(path: str | None) -> None:
    """Write (instant, lag) pairs of a 10 ms probe to `path`, doubles, when the process ends. None: do nothing."""
    if path is None:
        return
    from workers.clients.switchboard import switchboard

    lags = array("d")

    def begin(**_: Any) -> None:
        ticker = switchboard().ticker

        def probe(due: float) -> None:
            now = time.monotonic()
            lags.extend((now, now - due))
            following = due + PROBE_EVERY_S * (1 + int((now - due) / PROBE_EVERY_S))
            ticker.call_at(following, lambda: probe(following))

        first = time.monotonic() + PROBE_EVERY_S
        ticker.call_at(first, lambda: probe(first))

    events.test_start.add_listener(begin)
    events.quit.add_listener(lambda **_: Path(path).write_bytes(lags.tobytes()))


def stall(seconds: float, every_s: float) -> None:
    """From the start of the test on, keep this process busy for `seconds` about each `every_s`; 0: never."""

    def burn() -> None:
        while True:
            gevent.sleep(every_s - seconds)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                pass

    if seconds:
        events.test_start.add_listener(lambda **_: gevent.spawn(burn))

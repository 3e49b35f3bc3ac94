"""When turns are due to start. Pure: seconds from the schedule's beginning, no clock, no sockets."""

import random
from collections.abc import Callable, Iterator
from itertools import islice


def _constant(rate: float, rng: random.Random) -> Iterator[float]:
    k = 0
    while True:
        yield k / rate  # from the count, not summed up: no drift
        k += 1


def _poisson(rate: float, rng: random.Random) -> Iterator[float]:
    at = 0.0
    while True:
        at += rng.expovariate(rate)
        yield at


SCHEDULES: dict[str, Callable[[float, random.Random], Iterator[float]]] = {"constant": _constant, "poisson": _poisson}


def schedule(kind: str, rate: float, seed: int, index: int, workers: int) -> Iterator[float]:
    """Starts of worker `index` of `workers`, in seconds: every `workers`-th one of the one global seeded schedule.

    `rate`: starts a second over all workers.
    """
    return islice(SCHEDULES[kind](rate, random.Random(seed)), index, None, workers)

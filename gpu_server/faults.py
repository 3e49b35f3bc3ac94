"""Spoil answers on purpose, so that a load tester can be checked against known truths. Knows nothing of HTTP.

`--fault KIND:key=value,...`; which requests are hit follows from the seed and the request's ordinal alone. A turn of
the voice agent and an answer of a full-duplex session count as requests; what a kind cannot apply to is left as it is.
"""

import random
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus

import numpy as np

from gpu_server.pace import wait_until
from gpu_server.speech import SAMPLE_RATE, Chunks

# The keys of each kind, beside p; every one is needed.
KINDS: dict[str, tuple[str, ...]] = {
    "delay": ("s",),
    "stall": ("after_s", "s"),
    "cut": ("after_s",),
    "error": ("status",),
    "silence": ("s",),
    "truncate": ("keep",),
    "garbage": (),
    "refuse_json": (),
    "mute": (),
    "early": ("s",),
    "no_yield": (),
    "close": ("after_s",),
    "bad_page": (),
    "bad_text": (),
}
NOT_HTTP = ("mute", "early", "no_yield")
DUPLEX_ONLY = ("close", "bad_page", "bad_text")
HTTP_ONLY = ("truncate", "refuse_json")
WHOLE_ANSWERS = ("error", "garbage", "refuse_json")  # sent instead of speech
SILENCE_CHUNK_SAMPLES = SAMPLE_RATE * 40 // 1000


class InjectedCut(Exception):
    """The connection is to be cut here, on purpose."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault, how likely it is, and how large."""

    kind: str
    p: float
    s: float = 0.0
    after_s: float = 0.0
    keep: float = 1.0
    status: int = 500


@dataclass(slots=True)
class Toll:
    """What faults did to one request, as it happened: a fault the audio was too short for is not in it."""

    kinds: list[str] = field(default_factory=list)
    seconds: float | None = None

    def add(self, kind: str, seconds: float | None = None) -> None:
        self.kinds.append(kind)
        if seconds is not None:
            self.seconds = (self.seconds or 0.0) + seconds

    @property
    def names(self) -> str | None:
        return ",".join(self.kinds) or None


def parse_fault(spec: str) -> Fault:
    """Read `KIND:key=value,...`. Raises ValueError with one line that says what would be right."""
    kind, _, tail = spec.partition(":")
    if kind not in KINDS:
        raise ValueError(f"no fault is called {kind!r}; there are {', '.join(KINDS)}")
    keys = ("p", *KINDS[kind])
    values: dict[str, float] = {}
    for part in tail.split(",") if tail else ():
        key, _, value = part.partition("=")
        if key not in keys:
            raise ValueError(f"fault {kind} has no key {key!r}; it takes {', '.join(keys)}")
        try:
            values[key] = float(value)
        except ValueError:
            raise ValueError(f"fault {kind}: {key}={value!r} is not a number") from None
    missing = [key for key in keys if key not in values]
    if missing:
        raise ValueError(f"fault {kind} needs {', '.join(f'{key}=' for key in missing)}, as in {example(kind)}")
    _check_range(kind, values)
    status = int(values.pop("status", HTTPStatus.INTERNAL_SERVER_ERROR))
    return Fault(kind, status=status, **values)


def _check_range(kind: str, values: dict[str, float]) -> None:
    bounds = {"p": (0, 1), "s": (0, 3600), "after_s": (0.001, 3600), "keep": (0, 1), "status": (400, 599)}
    for key, value in values.items():
        low, high = bounds[key]
        if not low <= value <= high:
            raise ValueError(f"fault {kind}: {key}={value:g} lies outside {low:g}-{high:g}")


def example(kind: str) -> str:
    """A spec of this kind that parses."""
    sample = {"p": "0.1", "s": "0.5", "after_s": "0.5", "keep": "0.5", "status": "500"}
    return f"{kind}:" + ",".join(f"{key}={sample[key]}" for key in ("p", *KINDS[kind]))


def draw(faults: Sequence[Fault], seed: int, ordinal: int) -> tuple[Fault, ...]:
    """Which faults hit the request with this ordinal: the same every time for the same seed."""
    return tuple(
        fault for index, fault in enumerate(faults) if random.Random(f"{seed}:{ordinal}:{index}").random() < fault.p
    )


def spoil_source(chunks: Chunks, faults: Sequence[Fault], toll: Toll) -> Chunks:
    """Faults of the audio itself, applied before it is paced: truncate, silence."""
    for fault in faults:
        if fault.kind == "truncate":
            chunks = _truncated(chunks, fault.keep, toll)
        elif fault.kind == "silence":
            chunks = _after_silence(chunks, fault.s, toll)
    return chunks


def spoil_delivery(chunks: Chunks, faults: Sequence[Fault], toll: Toll) -> Chunks:
    """Faults of the delivery, applied after pacing: delay, stall, cut."""
    for fault in faults:
        if fault.kind == "delay":
            chunks = _held(chunks, "delay", 0.0, fault.s, toll)
        elif fault.kind == "stall":
            chunks = _held(chunks, "stall", fault.after_s, fault.s, toll)
        elif fault.kind == "cut":
            chunks = _cut(chunks, fault.after_s, toll)
    return chunks


async def _truncated(chunks: Chunks, keep: float, toll: Toll) -> Chunks:
    """All of it must be made first: a share of an unknown length is unknown."""
    async with aclosing(chunks):
        whole = [chunk async for chunk in chunks]
    left = int(keep * sum(len(chunk) for chunk in whole))
    toll.add("truncate")
    for chunk in whole:
        if left <= 0:
            return
        yield chunk[:left]
        left -= len(chunk)


async def _after_silence(chunks: Chunks, seconds: float, toll: Toll) -> Chunks:
    total = round(seconds * SAMPLE_RATE)
    toll.add("silence", total / SAMPLE_RATE)
    async with aclosing(chunks):
        for start in range(0, total, SILENCE_CHUNK_SAMPLES):
            yield np.zeros(min(SILENCE_CHUNK_SAMPLES, total - start), np.int16)
        async for chunk in chunks:
            yield chunk


async def _held(chunks: Chunks, kind: str, after_s: float, seconds: float, toll: Toll) -> Chunks:
    """Hold the first chunk that begins at or after `after_s` for `seconds`, counted from when it was ready."""
    sent = 0
    held = False
    async with aclosing(chunks):
        async for chunk in chunks:
            if not held and sent >= after_s * SAMPLE_RATE:
                held = True
                ready_at = time.monotonic()
                await wait_until(ready_at + seconds)
                toll.add(kind, time.monotonic() - ready_at)
            sent += len(chunk)
            yield chunk


async def _cut(chunks: Chunks, after_s: float, toll: Toll) -> Chunks:
    left = max(1, round(after_s * SAMPLE_RATE))
    async with aclosing(chunks):
        async for chunk in chunks:
            if len(chunk) > left:
                yield chunk[:left]
                toll.add("cut")
                raise InjectedCut
            left -= len(chunk)
            yield chunk

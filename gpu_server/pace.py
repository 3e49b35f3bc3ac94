"""Release audio when a real engine would have made it. Knows nothing of engines, faults or HTTP."""

import asyncio
import math
import time
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from gpu_server.speech import Chunks, Pcm


@dataclass(frozen=True, slots=True)
class Pace:
    """The first chunk after `ttfc_s`, then `rtf` seconds for each second of audio."""

    ttfc_s: float
    rtf: float


def parse_pace(text: str) -> Pace:
    """Read `TTFC_MS,RTF`. Raises ValueError that says what is wrong."""
    try:
        ttfc_ms, rtf = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"a pace is TTFC_MS,RTF such as 120,0.4, not {text!r}") from None
    if not (0 <= ttfc_ms < float("inf") and 0 <= rtf < float("inf")):
        raise ValueError(f"a pace has no negative or endless part: {text!r}")
    return Pace(ttfc_ms / 1000, rtf)


def due_at(pace: Pace, admitted_at: float, media_s: float) -> float:
    """When the chunk that begins at `media_s` of the audio is due; the clock is the caller's."""
    return admitted_at + pace.ttfc_s + pace.rtf * media_s


async def wait_until(instant: float) -> None:
    """Return within a millisecond or so of a monotonic instant, never before it, at once when it is past."""
    while (left_s := instant - time.monotonic()) > 0:
        # Whole milliseconds: uvloop rounds to them, and would turn the last half one into a busy loop.
        await asyncio.sleep(math.ceil(left_s * 1000) / 1000)


async def paced(chunks: Chunks, pace: Pace, admitted_at: float, sample_rate: int) -> Chunks:
    """Hold each chunk until it is due. Lateness of one chunk never delays the next."""
    sent = 0
    async with aclosing(chunks):
        async for chunk in chunks:
            await wait_until(due_at(pace, admitted_at, sent / sample_rate))
            sent += len(chunk)
            yield chunk


async def rechunked(chunks: Chunks, samples: int) -> Chunks:
    """Cut the same audio into chunks of `samples`; the last may be shorter."""
    held: list[Pcm] = []
    held_samples = 0
    async with aclosing(chunks):
        async for chunk in chunks:
            held.append(chunk)
            held_samples += len(chunk)
            if held_samples < samples:
                continue
            joined = np.concatenate(held)
            whole = held_samples - held_samples % samples
            for start in range(0, whole, samples):
                yield joined[start : start + samples]
            held, held_samples = [joined[whole:]], held_samples - whole
    if held_samples:
        yield np.concatenate(held)

"""When paced audio is due, and that pacing and rechunking change nothing else."""

import asyncio
import time

import numpy as np
import pytest

from gpu_server.pace import Pace, due_at, paced, parse_pace, rechunked
from gpu_server.speech import Chunks, Pcm


async def source(*sizes: int) -> Chunks:
    start = 0
    for size in sizes:
        yield np.arange(start, start + size, dtype=np.int16)
        start += size


async def collect(chunks: Chunks) -> list[tuple[float, Pcm]]:
    return [(time.monotonic(), chunk) async for chunk in chunks]


@pytest.mark.parametrize(
    ("pace", "admitted_at", "media_s", "expected"),
    [
        (Pace(0.12, 0.4), 100.0, 0.0, 100.12),
        (Pace(0.12, 0.4), 100.0, 10.0, 104.12),
        (Pace(0.0, 1.0), 0.0, 2.5, 2.5),
        (Pace(0.5, 0.0), 7.0, 60.0, 7.5),
    ],
)
def test_due(pace: Pace, admitted_at: float, media_s: float, expected: float) -> None:
    assert due_at(pace, admitted_at, media_s) == pytest.approx(expected)


def test_a_pace_is_read() -> None:
    assert parse_pace("120,0.4") == Pace(0.12, 0.4)


@pytest.mark.parametrize("text", ["", "120", "a,b", "1,2,3", "-1,0.4", "120,-1", "inf,1", "nan,1"])
def test_a_bad_pace_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"a pace") as caught:
        parse_pace(text)
    assert repr(text) in str(caught.value)


def test_no_chunk_leaves_before_it_is_due() -> None:
    async def scenario() -> list[tuple[float, Pcm]]:
        return await collect(paced(source(100, 300, 50), Pace(0.02, 1.0), admitted_at, sample_rate=10_000))

    admitted_at = time.monotonic()
    released = asyncio.run(scenario())
    for (released_at, _), media_s in zip(released, (0.0, 0.01, 0.04), strict=True):
        assert released_at >= admitted_at + 0.02 + media_s


def test_lateness_of_one_chunk_is_not_passed_on() -> None:
    """An admission long past makes every chunk overdue: all are released without waiting."""

    async def scenario() -> None:
        async with asyncio.timeout(5):
            await collect(paced(source(*[100] * 50), Pace(1.0, 1.0), time.monotonic() - 3600, sample_rate=100))

    asyncio.run(scenario())


@pytest.mark.parametrize("sizes", [(7,), (3, 3, 3), (10, 1, 25), (5, 5), (1,) * 13])
@pytest.mark.parametrize("samples", [1, 5, 8, 100])
def test_rechunking_keeps_every_sample(sizes: tuple[int, ...], samples: int) -> None:
    chunks = [chunk for _, chunk in asyncio.run(collect(rechunked(source(*sizes), samples)))]
    assert np.array_equal(np.concatenate(chunks), np.arange(sum(sizes)))
    assert all(len(chunk) == samples for chunk in chunks[:-1])
    assert 0 < len(chunks[-1]) <= samples

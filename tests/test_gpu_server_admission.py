"""Admission: so many at once, so many in line, in order, and nobody forgotten."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from gpu_server.admission import Admission, QueueFull


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


async def settle() -> None:
    """Let every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


class Guests:
    """Tasks that enter, say so, and stay until told to leave."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.inside: list[str] = []
        self.leave: dict[str, asyncio.Event] = {}

    def come(self, name: str) -> "asyncio.Task[None]":
        self.leave[name] = asyncio.Event()
        return asyncio.create_task(self._stay(name))

    async def _stay(self, name: str) -> None:
        async with self.admission.slot():
            self.inside.append(name)
            await self.leave[name].wait()


def test_first_come_first_served() -> None:
    async def scenario() -> None:
        guests = Guests(Admission(streams=1, queue=2))
        tasks = []
        for name in "abc":
            tasks.append(guests.come(name))
            await settle()
        assert (guests.inside, guests.admission.active, guests.admission.queued) == (["a"], 1, 2)
        with pytest.raises(QueueFull):
            await guests.come("d")
        for name in "abc":
            guests.leave[name].set()
            await settle()
        assert guests.inside == ["a", "b", "c"]
        await asyncio.gather(*tasks)
        assert (guests.admission.active, guests.admission.queued) == (0, 0)

    run(scenario())


def test_who_leaves_the_line_is_gone_at_once() -> None:
    async def scenario() -> None:
        guests = Guests(Admission(streams=1, queue=1))
        first, second = guests.come("a"), guests.come("b")
        await settle()
        second.cancel()
        await settle()
        assert guests.admission.queued == 0
        third = guests.come("c")
        await settle()
        guests.leave["a"].set()
        guests.leave["c"].set()
        await asyncio.gather(first, third)
        assert guests.inside == ["a", "c"]
        assert guests.admission.active == 0

    run(scenario())


@pytest.mark.parametrize("leave_first", [True, False])
def test_a_turn_that_meets_a_cancellation_is_passed_on(leave_first: bool) -> None:
    async def scenario() -> None:
        guests = Guests(Admission(streams=1, queue=2))
        first, second, third = guests.come("a"), guests.come("b"), guests.come("c")
        await settle()
        if leave_first:
            first.cancel()
            await asyncio.sleep(0)  # the turn is b's now, but b has not run
            second.cancel()
        else:
            second.cancel()
            first.cancel()
        await settle()
        assert guests.inside == ["a", "c"]
        guests.leave["c"].set()
        await third
        assert guests.admission.active == 0

    run(scenario())


def test_no_queue_at_all() -> None:
    async def scenario() -> None:
        guests = Guests(Admission(streams=1, queue=0))
        first = guests.come("a")
        await settle()
        with pytest.raises(QueueFull):
            await guests.come("b")
        guests.leave["a"].set()
        await first
        second = guests.come("b")
        guests.leave["b"].set()
        await second

    run(scenario())

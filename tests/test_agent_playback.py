"""Real-time sending, by a clock of the test's own."""

import asyncio
from dataclasses import dataclass, field

import pytest

from gpu_server.playback import Mishap, Outlet, Playback
from gpu_server.ticker import Tick

CHUNK = 640  # bytes: 20 ms of 16 kHz s16le


@dataclass
class Clock:
    """A ticker whose time is moved by hand, exactly to each instant asked for."""

    now: float = 100.0
    due: list[tuple[float, int, Tick]] = field(default_factory=list)

    def call_at(self, instant: float, tick: Tick) -> None:
        self.due.append((instant, len(self.due), tick))

    def run(self, until: float) -> None:
        while self.due and min(self.due)[0] <= until + 1e-9:
            entry = min(self.due)
            self.due.remove(entry)
            self.now = max(self.now, entry[0])
            following = entry[2](self.now)
            if following is not None:
                self.call_at(following, entry[2])
        self.now = max(self.now, until)


@dataclass
class Stage:
    clock: Clock = field(default_factory=Clock)
    sent: list[tuple[float, bytes]] = field(default_factory=list)
    marks: list[tuple[str, float]] = field(default_factory=list)

    def playback(self, mishap: Mishap | None = None) -> Playback:
        outlet = Outlet(
            self.clock,  # type: ignore[arg-type]
            lambda pcm: self.sent.append((round(self.clock.now - 100, 6), pcm)),
            bytes_per_s=32_000,
            chunk_bytes=CHUNK,
        )
        return Playback(
            outlet,
            mishap or Mishap(),
            lambda: self.marks.append(("first", round(self.clock.now - 100, 6))),
            lambda: self.marks.append(("end", round(self.clock.now - 100, 6))),
        )

    def feed(self, playback: Playback, size: int) -> None:
        asyncio.run(playback.feed(bytes(size), self.clock.now))

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.sent]


def test_the_first_two_leave_together_then_one_a_chunk_and_the_end_is_when_it_is_played_out() -> None:
    stage = Stage()
    playback = stage.playback()
    stage.feed(playback, 5 * CHUNK + 100)
    playback.complete(stage.clock.now)
    stage.clock.run(110)
    assert stage.times == [0, 0, 0.02, 0.04, 0.06, 0.08]
    assert [len(pcm) for _, pcm in stage.sent] == [CHUNK] * 5 + [100]
    assert stage.marks == [("first", 0), ("end", 0.12)]
    assert playback.sent_bytes == 5 * CHUNK + 100


def test_one_chunk_alone_is_played_out_too() -> None:
    stage = Stage()
    playback = stage.playback()
    stage.feed(playback, CHUNK)
    playback.complete(stage.clock.now)
    stage.clock.run(110)
    assert stage.marks == [("first", 0), ("end", 0.02)]


def test_a_late_maker_moves_all_that_follows() -> None:
    stage = Stage()
    playback = stage.playback()
    stage.feed(playback, 3 * CHUNK)
    stage.clock.run(100.5)
    stage.feed(playback, 2 * CHUNK)
    playback.complete(stage.clock.now)
    stage.clock.run(110)
    assert stage.times == [0, 0, 0.02, 0.5, 0.52]


def test_what_is_left_over_of_a_sentence_waits_for_the_next() -> None:
    stage = Stage()
    playback = stage.playback()
    stage.feed(playback, CHUNK + 40)
    stage.feed(playback, CHUNK - 40)
    playback.complete(stage.clock.now)
    stage.clock.run(110)
    assert [len(pcm) for _, pcm in stage.sent] == [CHUNK, CHUNK]


def test_a_stall_is_held_once_and_shifts_the_rest() -> None:
    stage = Stage()
    playback = stage.playback(Mishap(stall_after_s=0.06, stall_s=0.3))
    stage.feed(playback, 6 * CHUNK)
    playback.complete(stage.clock.now)
    stage.clock.run(110)
    assert stage.times == [0, 0, 0.02, 0.34, 0.36, 0.38]
    assert playback.stalled_s == pytest.approx(0.3)


def test_a_cut_is_to_the_sample() -> None:
    stage = Stage()
    playback = stage.playback(Mishap(cut_after_s=0.05))
    stage.feed(playback, 6 * CHUNK)
    playback.complete(stage.clock.now)
    stage.clock.run(110)
    assert (playback.sent_bytes, playback.was_cut) == (1600, True)
    assert stage.marks[-1] == ("end", stage.times[-1])


def test_nothing_leaves_after_stop() -> None:
    stage = Stage()
    playback = stage.playback()
    stage.feed(playback, 50 * CHUNK)
    stage.clock.run(100.2)
    before = len(stage.sent)
    playback.stop()
    stage.clock.run(110)
    assert (len(stage.sent), stage.marks) == (before, [("first", 0)])


def test_nothing_to_say_ends_at_once() -> None:
    stage = Stage()
    playback = stage.playback()
    playback.complete(stage.clock.now)
    assert (stage.marks, stage.sent) == ([("end", 0)], [])


def test_a_maker_far_ahead_is_made_to_wait() -> None:
    stage = Stage()
    playback = stage.playback()

    async def feed_too_much() -> bool:
        feeding = asyncio.create_task(playback.feed(bytes(40 * 32_000), stage.clock.now))
        await asyncio.sleep(0)
        held = not feeding.done()
        stage.clock.run(150)
        await feeding
        return held

    assert asyncio.run(feed_too_much())

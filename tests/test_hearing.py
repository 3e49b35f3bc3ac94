"""An agent's voice at playout. Truth by construction: voices at known samples, arrivals at known instants."""

import random
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from workers.audio import turns
from workers.audio.ear import EarLost
from workers.audio.gate import loud_windows
from workers.audio.hearing import Hearing
from workers.audio.pieces import Piece, samples_of
from workers.audio.playout import lateness, stalls
from workers.audio.stretches import Stretch

RATE = 16_000
GATE = 328  # -40 dBFS
T0 = 1000.0
Samples = npt.NDArray[np.int16]


def voice(seconds: float, rate: int = RATE, level: float = 8000.0, hertz: float = 300.0) -> Samples:
    """Loud from its first sample to its last: three harmonics, all at their peak at the beginning."""
    t = np.arange(round(seconds * rate)) / rate
    signal = sum(np.cos(2 * np.pi * hertz * h * t + h) / h for h in (1, 2, 3))
    made: Samples = np.rint(signal / np.abs(signal).max() * level).astype(np.int16)
    made[0] = made[-1] = round(level)
    return made


def quiet(seconds: float, rate: int = RATE) -> Samples:
    return np.zeros(round(seconds * rate), np.int16)


def click() -> Samples:
    return np.array([20_000, -20_000], np.int16)


def hiss(seconds: float, level: float = 2000.0, seed: int = 3) -> Samples:
    made: Samples = np.rint(np.random.default_rng(seed).normal(0, level, round(seconds * RATE))).astype(np.int16)
    return made


def joined(*parts: Samples) -> Samples:
    return np.concatenate(parts)


class Listener:
    """A hearing with an ear that answers at once, or later, or never, and a clock that goes with the chunks."""

    def __init__(self, ear: str = "at once") -> None:
        self.ear = ear
        self.owed: list[Callable[[], None]] = []
        self.asked: list[tuple[str, list[Any]]] = []
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.changes = 0
        self.hearing = Hearing(GATE, self._ask, lambda at, action: self.timers.append((at, action)), self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def _ask(self, verb: str, arguments: list[Any], then: Callable[[Any], None]) -> None:
        self.asked.append((verb, arguments))
        pcm, rate, coarse = arguments

        def answer() -> None:
            if self.ear == "lost":
                then(EarLost("it died"))
            else:
                then({"onset": turns.onset, "offset": turns.offset}[verb](np.frombuffer(pcm, "<i2"), rate, coarse))

        self.owed.append(answer)
        if self.ear != "later":
            self.answer()

    def answer(self) -> None:
        owed, self.owed = self.owed, []
        for one in owed:
            one()

    def until(self, at: float) -> None:
        """Time passes: timers that are due run."""
        due = sorted((timer for timer in self.timers if timer[0] <= at), key=lambda timer: timer[0])
        self.timers = [timer for timer in self.timers if timer[0] > at]
        for _, action in due:
            action()

    def hear(self, samples: Samples, at: float, width_s: float = 0.0, rate: int = RATE) -> None:
        self.until(at)
        pcm = samples.astype("<i2").tobytes()
        self.hearing.hear(pcm, rate, array("d", (at, at - width_s)), loud_windows(pcm, len(pcm), rate, GATE))

    def hear_block(self, chunks: Sequence[Samples], arrivals: Sequence[float]) -> None:
        """Chunks of one size in one call."""
        self.until(arrivals[-1])
        pcm = b"".join(chunk.astype("<i2").tobytes() for chunk in chunks)
        instants = array("d", [instant for at in arrivals for instant in (at, at - 0.0002)])
        self.hearing.hear(pcm, RATE, instants, loud_windows(pcm, len(pcm) // len(chunks), RATE, GATE))

    def hear_paced(self, signal: Samples, sizes: int | Iterable[int], begin: float = T0, rate: int = RATE) -> float:
        """Chunks of these sizes, each when the one before has played; when the last one will have."""
        position = 0
        for chunk in cut(signal, sizes):
            self.hear(chunk, begin + position / rate, rate=rate)
            position += len(chunk)
        return begin + position / rate

    def hear_at(self, chunks: Sequence[Samples], arrivals: Sequence[float], rate: int = RATE) -> None:
        for chunk, at in zip(chunks, arrivals, strict=True):
            self.hear(chunk, at, rate=rate)

    def rest(self) -> "Listener":
        """An hour passes."""
        self.until(float("inf"))
        return self

    @property
    def only(self) -> Stretch:
        (stretch,) = self.hearing.stretches
        return stretch

    def offset_at(self) -> float | None:
        found: list[float | None] = []
        self.hearing.ask_for_offset(found.append)
        assert len(found) == 1
        return found[0]

    def stalls(self, prebuffer_s: float = 0.0) -> list[tuple[int, float]]:
        """Of each utterance: underruns of 20 ms or more, and their total."""
        found = []
        for utterance in self.hearing.utterances_so_far():
            (one,) = stalls(lateness(utterance.at, utterance.media_s), (prebuffer_s,), 0.02)
            found.append((one.underruns, round(one.total_s, 6)))
        return found

    def stall_count(self) -> int:
        return sum(count for count, _ in self.stalls())


def cut(signal: Samples, sizes: int | Iterable[int]) -> list[Samples]:
    chunks, position = [], 0
    endless = iter(sizes) if not isinstance(sizes, int) else iter(lambda: sizes, None)
    while position < len(signal):
        size = next(endless)
        chunks.append(signal[position : position + size])
        position += size
    return chunks


def random_sizes(seed: int, most: int) -> Iterable[int]:
    rng = random.Random(seed)
    while True:
        yield rng.randint(1, most)


def near(at: float, samples: float = 1.0, rate: int = RATE) -> Any:
    return pytest.approx(at, abs=samples / rate + 1e-9)


# ------------------------------------------------------------------------------------ onset at playout


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 48_000])
@pytest.mark.parametrize("chunk_s", [0.02, 0.04, 0.1, 0.0333, 0.0107])
def test_the_onset_is_at_its_very_sample(rate: int, chunk_s: float) -> None:
    lead = 9_871
    listener = Listener()
    signal = joined(np.zeros(lead, np.int16), voice(0.8, rate), quiet(0.6, rate))
    listener.hear_paced(signal, round(chunk_s * rate), rate=rate)
    heard = listener.rest().only
    assert heard.by == "ear"
    assert heard.onset_at == near(T0 + lead / rate, rate=rate)
    assert heard.audible_at == near(T0 + lead / rate, rate=rate)
    assert listener.offset_at() == near(T0 + lead / rate + 0.8, rate=rate)


@pytest.mark.parametrize("seed", range(12))
def test_the_same_sound_however_it_is_cut(seed: int) -> None:
    """A whole answer at once, chunk by chunk, in crumbs: same samples, same instants."""
    lead, most = 8_000 + 977 * seed, (3, 40, 320, 700, 3_000, 20_000)[seed % 6]
    listener = Listener()
    signal = joined(np.zeros(lead, np.int16), voice(0.7), quiet(0.4), voice(0.5, hertz=210), quiet(0.7))
    listener.hear_paced(signal, random_sizes(seed, most))
    heard = listener.rest().only
    assert heard.onset_at == near(T0 + lead / RATE)
    assert heard.audible_at == near(T0 + lead / RATE)
    assert listener.offset_at() == near(T0 + lead / RATE + 1.6)
    assert listener.stall_count() == 0


def soft(seconds: float) -> Samples:
    """A voice that swells from under the gate, as an h or an f does."""
    t = np.arange(round(seconds * RATE)) / RATE
    made: Samples = np.rint(voice(seconds) * np.interp(t, (0.0, 0.12, 0.3), (0.006, 0.041, 1.0))).astype(np.int16)
    return made


@pytest.mark.parametrize("seed", range(8))
def test_a_soft_beginning_is_the_same_however_it_is_cut(seed: int) -> None:
    """The gate opens after it; the ear must be given what came before, in large chunks and in small."""
    rng = np.random.default_rng(5)
    signal = joined(quiet(0.7), soft(0.9), quiet(0.5))
    signal = signal + np.rint(rng.normal(0, 3, len(signal))).astype(np.int16)
    even, odd = Listener(), Listener()
    even.hear_paced(signal, 320)
    odd.hear_paced(signal, random_sizes(seed, (200, 1_600, 4_000, 16_000)[seed % 4]))
    truth = even.rest().only
    assert T0 + 0.7 - 0.005 < truth.onset_at < truth.audible_at - 0.03
    assert odd.rest().only.onset_at == pytest.approx(truth.onset_at, abs=0.003)
    assert odd.only.audible_at == near(truth.audible_at)


def test_a_large_chunk_between_small_ones_costs_no_context() -> None:
    signal = joined(quiet(0.7), soft(0.9), quiet(0.5))
    even, odd = Listener(), Listener()
    even.hear_paced(signal, 320)
    # What is soft comes in 20 ms chunks, then one of half a second.
    odd.hear_paced(signal, [*[320] * 36, 8_000, *[320] * 200])
    assert odd.rest().only.onset_at == pytest.approx(even.rest().only.onset_at, abs=0.001)


def test_chunks_of_one_sample() -> None:
    listener = Listener()
    listener.hear_paced(joined(quiet(0.1), voice(0.4), quiet(0.1)), 1)
    assert listener.rest().only.onset_at == near(T0 + 0.1)
    assert listener.hearing.audio_bytes == 2 * round(0.6 * RATE)
    assert listener.stall_count() == 0


def test_all_at_once_plays_from_its_arrival() -> None:
    chunks = cut(joined(quiet(0.25), voice(2.0), quiet(0.5)), 1_600)
    listener = Listener()
    listener.hear_at(chunks, [T0] * len(chunks))
    heard = listener.rest().only
    assert heard.onset_at == near(T0 + 0.25)
    assert heard.onset_arrival_at == T0
    assert heard.last_loud_at == near(T0 + 2.25, 160)
    assert listener.hearing.playhead == near(T0 + 2.75)
    assert listener.offset_at() == near(T0 + 2.25)


def test_two_first_together_then_paced() -> None:
    """As pipecat sends: the second chunk waits until the first has played, and so does every later one."""
    chunks = cut(joined(quiet(0.03), voice(1.0)), 640)
    listener = Listener()
    listener.hear_at(chunks, [T0 + max(0, k - 1) * 0.04 for k in range(len(chunks))])
    assert listener.rest().only.onset_at == near(T0 + 0.03)
    assert listener.hearing.playhead == near(T0 + 1.03)
    assert listener.stall_count() == 0


def test_a_late_chunk_moves_what_comes_after_it() -> None:
    chunks = cut(joined(quiet(0.4), voice(0.5)), 320)
    late_s = 0.013  # the 11th chunk comes so late, and all after it are paced from there
    listener = Listener()
    listener.hear_at(chunks, [T0 + k * 0.02 + (late_s if k >= 10 else 0.0) for k in range(len(chunks))])
    assert listener.rest().only.onset_at == near(T0 + 0.4 + late_s)


def test_early_chunks_wait_for_their_turn() -> None:
    chunks = cut(joined(quiet(0.4), voice(0.5)), 320)
    listener = Listener()
    listener.hear_at(chunks, [T0 + k * 0.005 for k in range(len(chunks))])
    heard = listener.rest().only
    assert heard.onset_at == near(T0 + 0.4)
    assert heard.onset_arrival_at == pytest.approx(T0 + 20 * 0.005)


def test_arrival_intervals_go_with_the_chunk_that_set_the_playhead() -> None:
    """A chunk that waits is as late as the one it waits for was: its own interval says nothing."""
    listener = Listener()
    listener.hear(quiet(0.02), T0, 0.004)
    listener.hear(joined(quiet(0.005), voice(0.5)), T0 + 0.01, 0.009)
    heard = listener.rest().only
    assert heard.onset_at == near(T0 + 0.025)
    assert (heard.onset_width_s, heard.audible_width_s, heard.first_chunk_width_s) == (near(0.004),) * 3
    waited = Listener()
    waited.hear(quiet(0.02), T0, 0.004)
    waited.hear(joined(quiet(0.005), voice(0.5)), T0 + 0.021, 0.0007)
    assert waited.rest().only.onset_width_s == near(0.0007)


def test_counts() -> None:
    listener = Listener()
    listener.hear_at(cut(voice(0.1), 320), [T0, T0 + 0.02, T0 + 0.07, T0 + 0.08, T0 + 0.1])
    hearing = listener.hearing
    assert (hearing.chunks, hearing.audio_bytes, hearing.rate) == (5, 3_200, RATE)
    assert hearing.last_chunk_at == T0 + 0.1
    assert hearing.largest_gap_s == pytest.approx(0.05)


# ------------------------------------------------------------------------------------ what is no voice


def test_a_click_is_no_answer_and_the_voice_after_it_is() -> None:
    listener = Listener()
    listener.hear_paced(joined(quiet(0.5), click(), quiet(1.0), voice(0.8), quiet(0.6)), 320)
    assert listener.rest().only.onset_at == near(T0 + 1.5 + 2 / RATE)


def test_a_voice_within_half_a_second_of_a_click_is_found() -> None:
    """The click opened the stretch; it must not swallow the voice."""
    for pause_s in (0.35, 0.42, 0.49, 0.55):
        listener = Listener()
        listener.hear_paced(joined(quiet(0.5), click(), quiet(pause_s), voice(0.8), quiet(0.6)), 320)
        assert listener.rest().only.onset_at == near(T0 + 0.5 + pause_s + 2 / RATE), pause_s


def test_the_first_audible_sample_of_a_voice_right_after_a_click_is_not_later_than_its_onset() -> None:
    listener = Listener()
    listener.hear_paced(joined(quiet(0.5), click(), quiet(0.35), voice(0.8), quiet(0.6)), 320)
    heard = listener.rest().only
    assert heard.audible_at == pytest.approx(heard.onset_at, abs=0.01)


def test_noise_is_no_answer_and_a_voice_after_it_is() -> None:
    listener = Listener()
    listener.hear_paced(joined(quiet(0.5), hiss(1.5), quiet(0.9), voice(0.8), quiet(0.6)), 320)
    assert listener.rest().only.onset_at == near(T0 + 2.9)


def test_a_voice_found_by_an_ear_that_takes_its_time() -> None:
    listener = Listener("later")
    listener.hear_paced(joined(quiet(0.5), voice(1.5), quiet(0.6)), 320)
    heard = listener.rest().only
    assert heard.by is None, "nobody knows yet"
    before = listener.changes
    listener.answer()
    assert (heard.by, heard.onset_at) == ("ear", near(T0 + 0.5))
    assert listener.changes > before, "whoever waits is told"


def test_a_click_that_the_ear_rejects_late() -> None:
    listener = Listener("later")
    end = listener.hear_paced(joined(quiet(0.5), click(), quiet(1.5)), 320)
    assert len(listener.hearing.stretches) == 1
    listener.answer()
    assert listener.hearing.stretches == []
    assert listener.hearing.last_loud_at == 0.0
    listener.ear = "at once"
    listener.hear_paced(joined(quiet(0.5), voice(0.5), quiet(0.5)), 320, end)
    assert listener.rest().only.onset_at == near(end + 0.5)


def test_a_click_before_the_turn_that_the_ear_rejects_in_it() -> None:
    """Whatever it was, it is no older speech, and the voice soon after it belongs to this turn."""
    listener = Listener("later")
    end = listener.hear_paced(joined(quiet(0.5), click(), quiet(0.34)), 320)
    listener.hearing.begin_turn()
    listener.answer()
    assert listener.hearing.older is None
    listener.ear = "at once"
    listener.hear_paced(joined(quiet(0.25), voice(0.5), quiet(0.5)), 320, end)
    assert listener.rest().only.onset_at == near(end + 0.25)


class Slow(Listener):
    """Its ear answers every 100 ms, however much came meanwhile."""

    def __init__(self) -> None:
        super().__init__("later")
        self._answers_at = T0 + 0.1

    def until(self, at: float) -> None:
        super().until(at)
        while self.owed and at >= self._answers_at:
            self.answer()
            if at == float("inf"):
                super().until(at)
        self._answers_at = max(self._answers_at, at + 0.1 if at >= self._answers_at else 0.0)

    def hear_fast(self, signal: Samples, size: int, speed: float) -> "Slow":
        """So many times as fast as it plays."""
        chunks = cut(signal, size)
        self.hear_at(chunks, [T0 + k * size / RATE / speed for k in range(len(chunks))])
        self.rest()
        return self


@pytest.mark.parametrize("speed", [1.0, 1.3, 4.0, 1e6])
@pytest.mark.parametrize("size", [320, 1_600, 1_000_000])
@pytest.mark.parametrize("before", ["click", "hiss", "crackle"])
def test_a_voice_soon_after_what_is_none_is_found_however_fast_it_comes(before: str, size: int, speed: float) -> None:
    """All of it may have come before the ear says no to its beginning."""
    crackle = joined(*[joined(click(), quiet(0.07))] * 6)
    sound = {"click": click(), "hiss": hiss(0.12, 900), "crackle": crackle}[before]
    for pause_s in (0.2, 0.25, 0.35, 0.45, 0.6, 1.0) if before == "hiss" else (0.05, 0.12, 0.2, 0.25, 0.35, 0.6, 1.0):
        signal = joined(quiet(0.2), sound, quiet(pause_s), voice(2.0), quiet(0.6))
        listener = Slow().hear_fast(signal, size, speed)
        true_at = T0 + 0.2 + len(sound) / RATE + pause_s
        assert listener.only.by == "ear"
        assert listener.only.onset_at == pytest.approx(true_at, abs=0.002), pause_s
        assert listener.only.audible_at == pytest.approx(true_at, abs=0.002), pause_s
        assert listener.hearing.last_loud_at == near(true_at + 2.0, 160)
        listener.ear = "at once"
        assert listener.offset_at() == near(true_at + 2.0)


def test_a_voice_that_comes_while_the_ear_thinks_of_a_click_belongs_to_the_turn_it_comes_in() -> None:
    listener = Listener("later")
    end = listener.hear_paced(joined(quiet(0.5), click(), quiet(0.34)), 320)
    listener.hearing.begin_turn()
    listener.hear_paced(joined(quiet(0.05), voice(0.5), quiet(0.5)), 320, end)
    for _ in range(3):
        listener.answer()
    assert listener.hearing.older is None
    assert listener.only.onset_at == near(end + 0.05)


def test_two_clicks_that_the_ear_rejects_one_after_the_other() -> None:
    """Neither is heard of again, and the voice before them ends where it did."""
    for spoken in (False, True):
        listener = Listener()
        end = listener.hear_paced(joined(voice(0.5) if spoken else quiet(0.5), quiet(0.6)), 320)
        listener.rest()
        said = list(listener.hearing.stretches)
        listener.ear = "later"
        listener.hear_paced(joined(click(), quiet(0.7), click(), quiet(0.7)), 320, end)
        listener.rest()
        assert len(listener.owed) == 2
        listener.answer()
        assert listener.hearing.stretches == said
        assert listener.hearing.last_loud_at == (near(T0 + 0.5, 160) if spoken else 0.0)
        listener.ear = "at once"
        assert listener.offset_at() == (near(T0 + 0.5) if spoken else None)


def test_what_was_cleared_before_it_played_is_not_taken_up_after_a_click() -> None:
    listener = Listener("later")
    chunks = cut(joined(quiet(0.2), click(), quiet(0.6), voice(1.0), quiet(0.3)), 320)
    listener.hear_at(chunks, [T0] * len(chunks))
    listener.hearing.clear(T0 + 0.4)
    listener.rest()
    listener.answer()
    assert listener.owed == []
    assert listener.hearing.stretches == []
    assert listener.hearing.last_loud_at == 0.0


def test_what_comes_while_the_ear_thinks_is_not_held_for_ever() -> None:
    listener = Listener("later")
    listener.hear_paced(joined(click(), quiet(0.4), voice(60.0)), 320)
    assert held_bytes(listener.hearing) < 8 * 2 * RATE
    for _ in range(3):
        listener.answer()
    assert listener.rest().only.onset_at == near(T0 + 0.4 + 2 / RATE)
    assert held_bytes(listener.hearing) < 3 * 2 * RATE + 16 * 3_100


def test_a_click_after_the_voice_does_not_move_its_end() -> None:
    listener = Listener()
    listener.hear_paced(joined(quiet(0.5), voice(0.8), quiet(0.8), click(), quiet(0.8)), 320)
    listener.rest()
    assert listener.hearing.last_loud_at == near(T0 + 1.3, 160)
    assert listener.offset_at() in (None, near(T0 + 1.3))


@pytest.mark.parametrize("lead_s", [0.5, 0.504])
def test_without_an_ear_the_gate_says_so(lead_s: float) -> None:
    listener = Listener("lost")
    listener.hear_paced(joined(quiet(lead_s), voice(0.8), quiet(0.6)), 320)
    heard = listener.rest().only
    assert (heard.by, heard.onset_at) == ("gate", near(T0 + lead_s))
    assert listener.offset_at() is None
    assert listener.hearing.last_loud_at == pytest.approx(T0 + lead_s + 0.8, abs=0.0101)


def test_an_agent_that_falls_silent_before_the_ear_has_enough() -> None:
    """80 ms of voice, and then no more chunks at all: time, not audio, makes the question due."""
    listener = Listener()
    listener.hear_paced(joined(quiet(0.1), voice(0.08)), 320)
    assert listener.only.by is None
    listener.until(T0 + 0.1 + 0.29)
    assert listener.only.by is None
    listener.until(T0 + 0.18 + 0.81)  # what came may be handed over half a second later
    assert (listener.only.by, listener.only.onset_at) == ("ear", near(T0 + 0.1))


# ------------------------------------------------------------------------------------ stretches


@pytest.mark.parametrize(("pause_s", "count"), [(0.2, 1), (0.45, 1), (0.55, 2), (2.0, 2)])
def test_half_a_second_of_quiet_parts_stretches(pause_s: float, count: int) -> None:
    listener = Listener()
    listener.hear_paced(joined(quiet(0.3), voice(0.6), quiet(pause_s), voice(0.6), quiet(0.6)), 320)
    found = listener.rest().hearing.stretches
    assert [heard.onset_at for heard in found] == [near(T0 + 0.3), near(T0 + 0.9 + pause_s)][:count]
    assert found[-1].last_loud_at == near(T0 + 1.5 + pause_s, 160)


@pytest.mark.parametrize(("pause_s", "count"), [(0.2, 1), (0.45, 1), (0.55, 2), (2.0, 2)])
def test_nothing_sent_is_quiet_too(pause_s: float, count: int) -> None:
    listener = Listener()
    end = listener.hear_paced(voice(0.6), 320)
    listener.hear_paced(voice(0.6), 320, end + pause_s)
    found = listener.rest().hearing.stretches
    assert [heard.onset_at for heard in found] == [near(T0), near(end + pause_s)][:count]


def test_the_first_chunk_is_that_of_the_audio_in_which_the_voice_begins() -> None:
    """Not that of the filler three seconds before it."""
    listener = Listener()
    listener.hear_paced(joined(quiet(0.2), voice(0.4), quiet(0.1)), 320)
    listener.hear_paced(joined(quiet(0.14), voice(0.4)), 320, T0 + 3.0)
    first, second = listener.rest().hearing.stretches
    assert (first.first_chunk_at, second.first_chunk_at) == (T0, T0 + 3.0)
    assert (first.arrived_at, second.arrived_at) == (pytest.approx(T0 + 0.2), pytest.approx(T0 + 3.14))


# ------------------------------------------------------------------------------------ interruptions


def burst(listener: Listener, signal: Samples, at: float, size: int = 320) -> None:
    chunks = cut(signal, size)
    listener.hear_at(chunks, [at] * len(chunks))


def test_an_interruption_throws_away_what_has_not_played() -> None:
    listener = Listener()
    burst(listener, joined(voice(5.0), quiet(0.5)), T0)
    assert listener.hearing.clear(T0 + 1.25) is True
    hearing = listener.rest().hearing
    assert listener.only.cut_off
    assert hearing.last_loud_at == hearing.playhead == T0 + 1.25
    assert listener.offset_at() is None, "it was cut: no ear can say more"
    assert listener.only.onset_at == near(T0)


def test_a_stretch_that_was_wholly_cleared_was_never_heard() -> None:
    listener = Listener()
    burst(listener, joined(voice(1.0), quiet(1.0), voice(1.0)), T0)
    assert len(listener.hearing.stretches) == 2
    listener.hearing.clear(T0 + 1.5)
    heard = listener.rest().only
    assert (heard.onset_at, heard.last_loud_at, heard.cut_off) == (near(T0), near(T0 + 1.0, 160), False)
    assert listener.offset_at() in (None, near(T0 + 1.0)), "not an end found in what was thrown away"


def test_an_utterance_that_was_wholly_cleared_was_never_spoken() -> None:
    listener = Listener()
    burst(listener, joined(voice(1.0), quiet(1.0), voice(1.0)), T0)
    listener.hearing.clear(T0 + 1.5)
    (utterance,) = listener.rest().hearing.utterances_so_far()
    assert utterance.at[0] == T0
    burst(listener, voice(1.0), T0 + 2.0)
    listener.hearing.clear(T0 + 2.0)
    assert len(listener.hearing.utterances_so_far()) == 1
    burst(listener, voice(1.0), T0 + 3.0)
    listener.hearing.clear(T0 + 3.1)
    assert len(listener.hearing.utterances_so_far()) == 2, "some of it was heard"


def test_an_interruption_of_silence_cuts_nothing() -> None:
    listener = Listener()
    assert listener.hearing.clear(T0) is False
    end = listener.hear_paced(joined(quiet(0.2), voice(0.5), quiet(0.5)), 320, T0 + 1)
    assert listener.hearing.clear(end) is False
    assert not listener.rest().only.cut_off
    assert listener.hearing.cleared == 2


@pytest.mark.parametrize("pause_s", [0.02, 0.2, 0.4, 1.0])
@pytest.mark.parametrize("lead_s", [0.0, 0.1])
def test_what_comes_after_an_interruption_is_new(pause_s: float, lead_s: float) -> None:
    """However soon it comes: the server has begun another answer."""
    listener = Listener()
    burst(listener, voice(5.0), T0)
    listener.hearing.clear(T0 + 1.0)
    listener.hearing.begin_turn()
    at = T0 + 1.0 + pause_s
    listener.hear_paced(joined(quiet(lead_s), voice(0.6, hertz=200), quiet(0.5)), 320, at)
    heard = listener.rest().only
    assert heard.onset_at == near(at + lead_s)
    assert heard.first_chunk_at == near(at), "its first chunk is not the interrupted answer's"
    assert listener.hearing.older is not None
    assert listener.hearing.older.last_loud_at == T0 + 1.0


def test_kept_pieces_end_where_the_playout_was_cleared() -> None:
    for size in (320, 80_000):
        listener = Listener()
        listener.hearing.begin_turn(keep=True)
        burst(listener, voice(5.0), T0, size)
        listener.hearing.clear(T0 + 1.0 + 5 / RATE)
        kept = samples_of(listener.hearing.keep or [])
        np.testing.assert_array_equal(kept, voice(5.0)[: RATE + 5])


# ------------------------------------------------------------------------------------ stalls


def with_hole(chunks: int, first_late: int, hole_s: float, ahead: int = 0) -> list[float]:
    """Arrivals of paced 20 ms chunks, `ahead` chunks early, with a hole before one of them."""
    return [T0 + max(0, k - ahead) * 0.02 + (hole_s if k >= first_late else 0.0) for k in range(chunks)]


@pytest.mark.parametrize("lead_s", [0.0, 0.2])
def test_a_hole_of_300_ms_in_a_voice_is_one_stall(lead_s: float) -> None:
    chunks = cut(joined(quiet(lead_s), voice(2.0), quiet(0.5)), 320)
    listener = Listener()
    listener.hear_at(chunks, with_hole(len(chunks), 60, 0.3))
    listener.rest()
    for prebuffer_s, left_s in ((0.0, 0.3), (0.02, 0.28), (0.06, 0.24), (0.1, 0.2), (0.2, 0.1)):
        assert listener.stalls(prebuffer_s) == [(1, pytest.approx(left_s))]
    assert len(listener.hearing.stretches) == 1


def test_a_long_stall_is_one_stall_though_the_listener_hears_two_stretches() -> None:
    chunks = cut(voice(2.0), 320)
    listener = Listener()
    listener.hear_at(chunks, with_hole(len(chunks), 50, 1.5))
    assert listener.rest().stalls() == [(1, pytest.approx(1.5))]


def test_a_voice_on_time_early_or_a_little_late_has_no_stall() -> None:
    chunks = cut(voice(3.0), 320)
    rng = random.Random(1)
    paced = with_hole(len(chunks), 9999, 0.0)
    for arrivals in (
        paced,
        with_hole(len(chunks), 9999, 0.0, ahead=2),
        [T0] * len(chunks),
        sorted(at + rng.uniform(0, 0.012) for at in paced),
    ):
        listener = Listener()
        listener.hear_at(chunks, arrivals)
        assert [count for count, _ in listener.rest().stalls()] == [0]


@pytest.mark.parametrize("one_by_one", [True, False], ids=["one by one", "in blocks"])
def test_what_a_late_reader_merged_is_no_stall_and_hides_none(one_by_one: bool) -> None:
    """Read late, three chunks bear the third one's stamp. Beside it a hole of 300 ms, whose chunks come all at once."""
    chunks = cut(voice(3.0), 320)
    came = with_hole(len(chunks), 100, 0.3)
    came[100:116] = [came[100]] * 16  # the hole's, all sent when it ended
    for hole in (False, True):
        instants = []
        for k, at in enumerate(came if hole else with_hole(len(chunks), 9999, 0.0)):
            late = 51 <= k < 81
            stamp = T0 + (k // 3 * 3 + 2) * 0.02 if late else at
            instants.append((stamp, stamp - 0.06 if late else stamp - 0.0005))
        listener = Listener()
        size = 1 if one_by_one else 10
        for k in range(0, len(chunks), size):
            pcm = b"".join(chunk.astype("<i2").tobytes() for chunk in chunks[k : k + size])
            both = array("d", [instant for pair in instants[k : k + size] for instant in pair])
            listener.hearing.hear(pcm, RATE, both, loud_windows(pcm, 640, RATE, GATE))
        expected = [(1, pytest.approx(0.3, abs=0.001))] if hole else [(0, pytest.approx(0.0, abs=0.001))]
        assert listener.rest().stalls() == expected


@pytest.mark.parametrize("hole_s", [0.03, 0.2, 1.0])
@pytest.mark.parametrize("trailing_s", [0.12, 0.3])
def test_a_pause_after_quiet_is_meant(hole_s: float, trailing_s: float) -> None:
    """Also one of 30 ms: nobody hears it."""
    listener = Listener()
    end = listener.hear_paced(joined(voice(1.0), quiet(trailing_s)), 320)
    listener.hear_paced(joined(voice(1.0), quiet(0.2)), 320, end + hole_s)
    assert listener.rest().stall_count() == 0


def test_a_pause_after_the_servers_word_is_meant() -> None:
    listener = Listener()
    end = listener.hear_paced(voice(1.0), 320)
    listener.hearing.agent_said_stop()
    listener.hear_paced(voice(1.0), 320, end + 0.4)
    assert listener.rest().stalls() == [(0, 0.0), (0, 0.0)]


def test_a_pause_after_a_short_chunk_is_meant() -> None:
    """Sentences are no multiples of 20 ms: what is left over is sent last."""
    listener = Listener()
    end = listener.hear_paced(voice(1.007), 320)
    end = listener.hear_paced(voice(1.013), 320, end + 0.3)
    listener.hear_paced(voice(1.0), 320, end + 0.3)
    assert listener.rest().stalls() == [(0, 0.0)] * 3


def test_the_servers_word_excuses_one_pause_only() -> None:
    """It had stopped, began anew, and broke off in the middle: with silence sent in between, and without."""
    for between in ("silence", "nothing"):
        listener = Listener()
        end = listener.hear_paced(joined(voice(1.0), quiet(0.04)), 320)
        listener.hearing.agent_said_stop()
        begin = listener.hear_paced(quiet(1.0), 320, end) if between == "silence" else end + 1.0
        chunks = cut(voice(1.0), 320)
        listener.hear_at(chunks, [begin + k * 0.02 + (0.3 if k >= 25 else 0.0) for k in range(len(chunks))])
        assert sum(count for count, _ in listener.rest().stalls()) == 1, between
        assert sum(total for _, total in listener.stalls()) == pytest.approx(0.3)


def test_every_chunk_of_another_size_tells_nothing_of_an_end() -> None:
    """Where sizes vary anyway, a smaller one is no sign that the sentence is over."""
    sizes = [320, 200, 320, 260, 300, 240] * 10
    chunks = cut(voice(0.8), sizes)
    listener = Listener()
    arrivals, position = [], 0
    for k, chunk in enumerate(chunks):
        arrivals.append(T0 + position / RATE + (0.3 if k >= 20 else 0.0))
        position += len(chunk)
    listener.hear_at(chunks, arrivals)
    assert listener.rest().stalls() == [(1, pytest.approx(0.3))]


@pytest.mark.parametrize("hole_s", [0.03, 0.045, 0.1, 0.3])
def test_late_silence_is_no_stall(hole_s: float) -> None:
    """An agent that sends silence all the time, some of it late: before, between and after its words."""
    listener = Listener()
    signal = joined(quiet(1.0), voice(1.0), quiet(1.5), voice(1.0), quiet(1.0))
    chunks = cut(signal, 320)
    late = (20, 150, 250)  # chunks before which there is a hole: all in silence
    listener.hear_at(chunks, [T0 + k * 0.02 + hole_s * sum(k >= one for one in late) for k in range(len(chunks))])
    listener.rest()
    assert listener.stall_count() == 0
    assert [total for _, total in listener.stalls()] == [pytest.approx(0.0, abs=1e-6)] * len(listener.stalls())
    first, second = listener.hearing.stretches
    assert first.onset_at == near(T0 + 1.0 + hole_s)
    assert second.onset_at == near(T0 + 3.5 + 2 * hole_s)


def test_a_stall_of_an_agent_that_sends_silence_all_the_time() -> None:
    chunks = cut(joined(quiet(1.0), voice(2.0), quiet(1.0)), 320)
    listener = Listener()
    listener.hear_at(chunks, with_hole(len(chunks), 100, 0.3))
    assert [one for one in listener.rest().stalls() if one[0]] == [(1, pytest.approx(0.3))]


def test_utterances_are_one_where_the_pause_is_short() -> None:
    """A plosive's closure, a breath: words of one sentence are one utterance."""
    listener = Listener()
    listener.hear_paced(joined(voice(0.5), quiet(0.12), voice(0.5), quiet(0.2), voice(0.5), quiet(0.5)), 320)
    assert len(listener.rest().hearing.utterances_so_far()) == 1


# ------------------------------------------------------------------------------------ turns


def test_a_turn_counts_anew() -> None:
    listener = Listener()
    end = listener.hear_paced(joined(quiet(0.2), voice(0.5), quiet(0.8)), 320)
    hearing = listener.rest().hearing
    hearing.clear(end)
    hearing.begin_turn()
    assert (hearing.stretches, hearing.utterances_so_far(), hearing.chunks, hearing.audio_bytes) == ([], [], 0, 0)
    assert (hearing.largest_gap_s, hearing.last_chunk_at, hearing.cleared) == (0.0, 0.0, 0)
    listener.hear_paced(joined(quiet(0.1), voice(0.5), quiet(0.6)), 320, end + 5.0)
    assert listener.rest().only.onset_at == near(end + 5.1)
    assert hearing.audio_bytes == 2 * round(1.2 * RATE)
    assert hearing.largest_gap_s == pytest.approx(0.02), "the five seconds before the turn's first chunk are no gap"
    assert len(hearing.utterances_so_far()) == 1


def test_a_voice_that_goes_on_into_a_turn_is_known_as_older() -> None:
    listener = Listener()
    hearing = listener.hearing
    end = listener.hear_paced(voice(1.0), 320)
    earlier = listener.only
    hearing.begin_turn()
    end = listener.hear_paced(joined(voice(1.0), quiet(0.7)), 320, end)
    assert hearing.stretches == []
    assert hearing.older is earlier
    assert earlier.last_loud_at == near(T0 + 2.0, 160)
    listener.hear_paced(joined(voice(0.5, hertz=200), quiet(0.5)), 320, end)
    assert listener.rest().only.onset_at == near(end)
    assert earlier.last_loud_at == near(T0 + 2.0, 160)


def test_an_earlier_turns_utterance_does_not_appear_in_the_next() -> None:
    """Its stall was not this answer's: the words it goes on with belong to the turn before."""
    listener = Listener()
    chunks = cut(joined(voice(2.0), quiet(0.7)), 320)
    arrivals = with_hole(len(chunks), 75, 0.3)
    listener.hear_at(chunks[:50], arrivals[:50])
    listener.hearing.begin_turn()
    listener.hear_at(chunks[50:], arrivals[50:])
    assert listener.hearing.utterances_so_far() == []
    begin = T0 + 6.0
    listener.hear_paced(joined(voice(0.5), quiet(0.5)), 320, begin)
    (utterance,) = listener.rest().hearing.utterances_so_far()
    assert utterance.at[0] == near(begin)
    assert listener.stall_count() == 0


def test_the_ear_may_answer_after_the_turn_has_ended() -> None:
    listener = Listener("later")
    end = listener.hear_paced(joined(voice(0.5), quiet(0.7)), 320)
    listener.hearing.begin_turn()
    listener.answer()
    older = listener.hearing.older
    assert older is not None
    assert (older.by, older.onset_at) == ("ear", near(T0))
    assert listener.hearing.stretches == []
    listener.ear = "at once"
    listener.hear_paced(joined(voice(0.5), quiet(0.5)), 320, end)
    assert listener.rest().only.onset_at == near(end)


def test_pieces_are_kept_where_they_are_wanted() -> None:
    listener = Listener()
    listener.hearing.begin_turn(keep=True)
    signal = joined(quiet(0.1), voice(0.5))
    chunks = cut(signal, 320)
    listener.hear_at(chunks, [T0] * len(chunks))
    kept = listener.hearing.keep
    assert kept is not None
    assert [piece.play_at for piece in kept] == [near(T0 + k * 0.02) for k in range(len(chunks))]
    np.testing.assert_array_equal(samples_of(kept), signal)
    assert [type(piece) for piece in kept] == [Piece] * len(chunks)
    listener.hearing.begin_turn()
    listener.hear(voice(0.02), T0 + 1)
    assert listener.hearing.keep is None
    assert len(samples_of([])) == 0


# ------------------------------------------------------------------------------------ the end of a voice


@pytest.mark.parametrize("silence_s", [0.0, 0.1, 0.26, 1.0, 30.0])
def test_the_offset_is_exact_however_late_it_is_asked_for(silence_s: float) -> None:
    listener = Listener()
    listener.hear_paced(joined(quiet(0.3), voice(0.7), quiet(silence_s)), 320)
    assert listener.rest().offset_at() == near(T0 + 1.0)


def test_a_soft_end_is_found_behind_the_gate() -> None:
    listener = Listener()
    listener.hear_paced(joined(quiet(0.3), soft(0.9)[::-1], quiet(20.0)), 320)
    said = listener.rest().offset_at()
    assert said is not None
    assert listener.hearing.last_loud_at + 0.01 < said <= T0 + 1.2 + 0.001


def test_no_offset_of_nothing() -> None:
    listener = Listener()
    assert listener.offset_at() is None
    listener.hear_paced(quiet(1.0), 320)
    assert listener.offset_at() is None


# ------------------------------------------------------------------------------------ another rate


def test_the_rate_may_change_between_words_and_in_them() -> None:
    listener = Listener()
    end = listener.hear_paced(joined(quiet(0.2), voice(0.5), quiet(0.7)), 320)
    end = listener.hear_paced(joined(quiet(0.2, 24_000), voice(0.5, 24_000), quiet(0.7, 24_000)), 480, end, 24_000)
    listener.hear_paced(joined(quiet(0.2, 8_000), voice(0.5, 8_000), quiet(0.7, 8_000)), 160, end, 8_000)
    found = listener.rest().hearing.stretches
    assert [heard.onset_at for heard in found] == [
        near(T0 + 0.2),
        near(T0 + 1.6, rate=24_000),
        near(T0 + 3.0, rate=8_000),
    ]
    assert listener.offset_at() == near(T0 + 3.5, rate=8_000)
    assert listener.stall_count() == 0


def test_a_change_of_rate_in_the_middle_of_a_word() -> None:
    listener = Listener()
    end = listener.hear_paced(joined(quiet(0.2), voice(0.4)), 320)
    end = listener.hear_paced(joined(voice(0.4, 24_000), quiet(0.8, 24_000)), 480, end, 24_000)
    heard = listener.rest().only
    assert heard.onset_at == near(T0 + 0.2)
    assert listener.offset_at() == near(T0 + 1.0, rate=24_000)
    assert listener.hearing.playhead == near(end)


def test_silence_of_another_rate_after_the_voice() -> None:
    """Its end is asked for when the stream has another rate already."""
    listener = Listener()
    end = listener.hear_paced(joined(quiet(0.2, 48_000), soft(0.9)[::-1]), 960, T0, 48_000)
    listener.hear_paced(quiet(1.0, 8_000), 160, end, 8_000)
    alone = Listener()
    alone.hear_paced(joined(quiet(0.2, 48_000), soft(0.9)[::-1]), 960, T0, 48_000)
    assert listener.rest().offset_at() == pytest.approx(alone.rest().offset_at())


# ------------------------------------------------------------------------------------ memory


def held_bytes(hearing: Hearing) -> int:
    """Audio that a hearing holds on to, found without knowing where it holds it."""
    seen: set[int] = set()
    size = 0
    todo: list[Any] = [getattr(hearing, name) for name in vars(hearing)]
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, bytes):
            size += len(one)
        elif isinstance(one, array):
            size += len(one) * one.itemsize
        elif isinstance(one, tuple | list) or type(one).__name__ == "deque":
            todo += one
        elif hasattr(one, "__slots__"):
            todo += [getattr(one, name) for name in one.__slots__]
    return size


@pytest.mark.parametrize("chunk_s", [0.02, 0.1, 1.0])
def test_an_hour_of_silence_and_an_hour_of_speech(chunk_s: float) -> None:
    """About a second of audio is held, whatever came; chunks of a minute's speech are counted, none kept."""
    listener = Listener("lost")
    hearing = listener.hearing
    size = round(chunk_s * RATE)
    pieces = {"silence": bytes(2 * size), "speech": voice(chunk_s).tobytes()}
    at, most = T0, 0
    for what, windows in (("silence", (-1, -1)), ("speech", (0, max(0, size // 160 - 1)))):
        pcm = pieces[what]
        for k in range(round(3600 / chunk_s)):
            # Each chunk an object of its own, as a socket gives them.
            hearing.hear(bytes(bytearray(pcm)), RATE, array("d", (at, at)), [windows])
            at += chunk_s
            if k % 5_000 == 0:
                most = max(most, held_bytes(hearing))
            if what == "speech" and k % 3_000 == 0:
                hearing.begin_turn()  # a turn is never longer than a minute or so
        listener.until(at)
    assert max(most, held_bytes(hearing)) < 2 * 2 * RATE * 2 + 8 * 2 * len(pieces["speech"]) + 200_000


def test_an_hour_of_silence_after_a_word_is_not_counted_chunk_by_chunk() -> None:
    """An agent that sends silence while nobody speaks must not fill a session's memory."""
    listener = Listener("lost")
    end = listener.hear_paced(voice(1.0), 320)
    pcm = bytes(640)
    for k in range(180_000):
        listener.hearing.hear(pcm, RATE, array("d", (end + k * 0.02,) * 2), [(-1, -1)])
    assert held_bytes(listener.hearing) < 200_000


def test_chunks_that_grow_do_not_fill_the_memory() -> None:
    listener = Listener("lost")
    at = T0
    for size in [1] * 2_000 + [160_000] * 60:
        listener.hearing.hear(bytes(2 * size), RATE, array("d", (at, at)), [(-1, -1)])
        at += size / RATE
    assert held_bytes(listener.hearing) < 8 * 320_000


# ------------------------------------------------------------------------------------ silence that never ends


@pytest.mark.parametrize("hole_s", [0.04, 0.1, 0.3])
def test_a_hole_in_silence_that_is_made_up_for_delays_no_later_word(hole_s: float) -> None:
    """The agent sends silence all the time; late silence is left out, not played behind everything that follows."""
    chunks = cut(joined(quiet(2.0), voice(0.5), quiet(0.5)), 320)
    paced = [T0 + k * 0.02 for k in range(len(chunks))]
    from_here = paced[30] + hole_s
    listener = Listener()
    listener.hear_at(chunks, [max(at, from_here) if k >= 30 else at for k, at in enumerate(paced)])
    assert listener.rest().only.onset_at == near(T0 + 2.0)


def test_a_hole_in_speech_that_is_made_up_for_delays_what_follows() -> None:
    chunks = cut(joined(voice(1.0), quiet(0.05), voice(0.5), quiet(0.1)), 320)
    paced = [T0 + k * 0.02 for k in range(len(chunks))]
    listener = Listener()
    listener.hear_at(chunks, [max(at, paced[30] + 0.3) if k >= 30 else at for k, at in enumerate(paced)])
    assert listener.rest().hearing.last_loud_at == near(T0 + 1.55 + 0.3, 160)


def test_the_users_last_word_parts_what_was_said_before_from_the_answer() -> None:
    """A quarter of a second of quiet is no pause between stretches, unless the user's last word lies in it."""
    for user_offset_at, count in ((0.0, 1), (T0 + 0.7, 2), (T0 + 0.2, 1), (T0 + 1.5, 1)):
        listener = Listener()
        listener.hearing.user_offset_at = user_offset_at
        listener.hear_paced(joined(voice(0.6), quiet(0.25), voice(0.9), quiet(0.6)), 320)
        found = listener.rest().hearing.stretches
        assert [heard.onset_at for heard in found] == [near(T0), near(T0 + 0.85)][:count]


# ------------------------------------------------------------------------------------ however many come in one call


def as_heard(hearing: Hearing) -> dict[str, Any]:
    """All that is known of what was heard."""
    stretches = [hearing.older, *hearing.stretches]
    fields = [{name: getattr(one, name) for name in Stretch.__slots__} for one in stretches if one is not None]
    return {
        "stretches": fields,
        "utterances": [(list(one.at), one.media_s.tolist()) for one in hearing.utterances_so_far()],
        "kept": hearing.keep,
        "gap": hearing.largest_gap_s,
        "at": (hearing.last_chunk_at, hearing.last_loud_at, hearing.last_began_at, hearing.playhead),
        "counted": (hearing.chunks, hearing.audio_bytes, hearing.bytes_received),
    }


@pytest.mark.parametrize("seed", range(40))
def test_how_many_chunks_come_in_one_call_changes_nothing(seed: int) -> None:
    """Late ones, holes, chunks that came together, pauses: one by one as in gulps of any length.

    (What the ear says no to depends on when it says so, whatever the gulps.)
    """
    rng = random.Random(seed)
    parts = [quiet(0.3)]
    for _ in range(6):
        parts += [voice(rng.uniform(0.1, 1.2)), quiet(rng.choice([0.1, 0.35, 0.9]))]
    chunks = [chunk for chunk in cut(joined(*parts), 320) if len(chunk) == 320]
    late_s, arrivals = 0.0, []
    for k in range(len(chunks)):
        late_s = rng.choice([late_s, late_s, late_s, 0.0, rng.random() * 0.001, rng.choice([0.03, 0.08, 0.3])])
        arrivals.append(max(T0 + k * 0.02 + late_s, arrivals[-1] if arrivals else 0.0))
    one_by_one, in_gulps = Listener(), Listener()
    for listener, longest in ((one_by_one, 1), (in_gulps, 12)):
        listener.hearing.begin_turn(keep=True)
        k, turn_at = 0, len(chunks) // 2
        while k < len(chunks):
            end = min(k + rng.randint(1, longest), turn_at if k < turn_at else len(chunks))
            listener.hear_block(chunks[k:end], arrivals[k:end])
            k = end
            if k == turn_at:
                listener.hearing.begin_turn(keep=True)
        listener.rest()
    assert as_heard(in_gulps.hearing) == as_heard(one_by_one.hearing)
    assert in_gulps.offset_at() == one_by_one.offset_at()


# ------------------------------------------------------------------------------------ silence that stands in a queue


def test_chunks_that_came_together_at_first_do_not_delay_what_is_said_much_later() -> None:
    """An agent that never stops sending: five chunks of silence at once, then in real time, then a voice."""
    listener = Listener()
    silence = list(cut(quiet(2.5), 320))
    listener.hear_at(silence[:5], [T0] * 5)
    listener.hear_at(silence[5:], [T0 + 0.02 * k for k in range(1, len(silence) - 4)])
    end = T0 + 0.02 * (len(silence) - 5)
    listener.hear_paced(joined(voice(0.6), quiet(0.8)), 320, end + 0.02)
    assert listener.rest().only.onset_at == near(end + 0.02)


def test_a_silence_that_comes_with_the_voice_is_waited_for() -> None:
    """It was meant: a server that sends half a second of silence first is heard half a second later."""
    listener = Listener()
    chunks = list(cut(joined(quiet(0.5), voice(0.6), quiet(0.6)), 320))
    listener.hear_at(chunks, [T0 + 0.0001 * k for k in range(len(chunks))])
    assert listener.rest().only.onset_at == near(T0 + 0.5)


@pytest.mark.parametrize("speed", [1.02, 1.2, 2.0, 5.0])
def test_a_sentence_still_in_the_queue_is_heard_out_before_the_next_one(speed: float) -> None:
    """Sent faster than it is spoken, then silence in real time: that silence has not played yet."""
    listener = Listener()
    first = list(cut(voice(5.0), 320))
    rest = list(cut(joined(quiet(1.0), voice(0.6), quiet(1.0)), 320))
    listener.hear_at(first, [T0 + 0.02 / speed * k for k in range(len(first))])
    end = T0 + 5.0 / speed
    listener.hear_at(rest, [end + 0.02 * k for k in range(len(rest))])
    one, two = listener.rest().hearing.stretches
    assert (one.onset_at, one.last_loud_at) == (near(T0), pytest.approx(T0 + 5.0, abs=0.02))
    assert two.onset_at == near(T0 + 6.0)


@pytest.mark.parametrize(("lead_s", "silence_s"), [(0.1, 0.46), (0.2, 0.7), (0.5, 1.0), (1.0, 1.5)])
def test_an_answer_that_begins_with_silence_is_heard_from_the_queue_it_fills(lead_s: float, silence_s: float) -> None:
    """Nothing between answers, a constant lead, and a silence that belongs to the answer."""
    listener = Listener()
    chunks = list(cut(joined(quiet(silence_s), voice(0.6), quiet(0.6)), 320))
    listener.hear_at(chunks, [T0 + max(0.0, 0.02 * k - lead_s) for k in range(len(chunks))])
    assert listener.rest().only.onset_at == near(T0 + silence_s)


def test_after_an_interruption_the_first_chunk_is_the_first_that_came_after_it() -> None:
    for gulp in (1, 5, 10):
        listener = Listener()
        end = listener.hear_paced(joined(quiet(0.2), voice(1.0), quiet(0.2)), 320)
        listener.hearing.clear(end)
        chunks = list(cut(joined(quiet(0.8), voice(0.6), quiet(0.6)), 320))
        for k in range(0, len(chunks), gulp):
            part = chunks[k : k + gulp]
            listener.hear_block(part, [end + 0.02 * (k + n) for n in range(len(part))])
        assert listener.rest().hearing.stretches[-1].first_chunk_at == near(end)


def test_the_end_of_a_voice_is_looked_at_with_as_much_before_as_the_ear_wants() -> None:
    """However the chunks lie, and in whatever gulps they came: 0.3 s before the last loud sample."""
    for gulp in (1, 5, 10):
        for shift_s in (0.0, 0.05, 0.11, 0.17):
            listener = Listener()
            signal = joined(quiet(0.3 + shift_s), voice(1.0), quiet(0.9))
            chunks = list(cut(signal[: len(signal) // 320 * 320], 320))
            for k in range(0, len(chunks), gulp):
                part = chunks[k : k + gulp]
                listener.hear_block(part, [T0 + 0.02 * (k + n) for n in range(len(part))])
            listener.offset_at()
            _, (_, rate, coarse) = listener.asked[-1]
            assert coarse == turns.SNIPPET_S * rate, (gulp, shift_s)


def test_where_samples_may_come_late_the_ear_is_asked_late() -> None:
    """Of half a voice it would say that it is none: decoded audio may come seconds after the instant it played."""
    asked_at: list[float] = []
    loud = (np.ones(1_920, np.int16) * 9_000).tobytes()
    for unheard_s in (0.5, 10.0):
        hearing = Hearing(328, lambda *_: None, lambda at, _: asked_at.append(at), lambda: None, unheard_s=unheard_s)
        hearing.hear(loud, 24_000, array("d", (100.0, 100.0)), loud_windows(loud, len(loud), 24_000, 328))
    soon, late = asked_at
    assert late - soon == pytest.approx(9.5)
    assert late > 100.08 + 10.0

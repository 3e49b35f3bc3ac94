"""The step loop over stages that speak by rule: answers whole and in order, whatever their neighbours do or suffer."""

import queue
import random
import threading
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from gpu_server.request import HOPS, LOOKAHEAD, Request, Segment
from gpu_server.scheduler import QueueFull
from gpu_server.speech import Pcm
from gpu_server.step_loop import StepLoop

SAMPLES = 960  # of a token
SPEECH_TOKENS = 6561
END, MARK = 6562, 6561
SILENCE = 4299
WAIT_S = 20


def rule(text: str, number: int) -> int:
    """The token of this number of a text."""
    return (zlib.crc32(text.encode()) + 7 * number) % SPEECH_TOKENS


def says(text: str, length: int, expected: int = 1000, most: int = 2000) -> Segment:
    """A text that has `length` tokens."""
    return Segment(f"{text}:{length}", expected, most)


def samples(tokens: Sequence[int]) -> Pcm:
    return np.repeat(np.array(tokens, dtype=np.int16), SAMPLES)


def answer(segments: Sequence[Segment], closing: Sequence[int] = ()) -> Pcm:
    """What is to be heard."""
    tokens: list[int] = []
    for segment in segments:
        tokens += [rule(segment.text, number) for number in range(int(segment.text.split(":")[1]))]
        tokens += closing
    return samples(tokens)


class Listener:
    """Whoever asked: what was delivered to it."""

    def __init__(self) -> None:
        self.pieces: list[Pcm] = []
        self.error: Exception | None = None
        self._came: queue.SimpleQueue[Pcm | Exception | None] = queue.SimpleQueue()

    def __call__(self, item: Pcm | Exception | None) -> None:
        self._came.put(item)

    def until_end(self) -> "Listener":
        while isinstance(item := self._came.get(timeout=WAIT_S), np.ndarray):
            self.pieces.append(item)
        self.error = item
        assert self._came.empty(), "something came after the end"
        return self

    def piece(self) -> Pcm:
        item = self._came.get(timeout=WAIT_S)
        assert isinstance(item, np.ndarray), item
        return item

    @property
    def heard(self) -> Pcm:
        return np.concatenate([*self.pieces, samples([])])

    @property
    def has_nothing(self) -> bool:
        return self._came.empty() and not self.pieces


@dataclass
class Drawn:
    values: list[int]
    error: Exception | None = None

    def tokens(self) -> list[int]:
        if self.error is not None:
            raise self.error
        return self.values


@dataclass
class Sounded:
    made: list[Pcm]
    looks: int = 0  # before it is ready
    error: Exception | None = None

    def ready(self) -> bool:
        self.looks -= 1
        return self.looks < 0

    def pieces(self) -> list[Pcm]:
        if self.error is not None:
            raise self.error
        return self.made


def nothing(*_: Any) -> None:
    """Happens."""


@dataclass
class RuledStages:
    """A model that speaks by rule. What a test wants to happen at a call happens first in it."""

    slots: int = 4
    end_token: int = END
    speech_tokens: int = SPEECH_TOKENS
    closing: Sequence[int] = ()
    never_ends: bool = False
    token: Callable[[str, int], int] = rule
    looks: Callable[[], int] = lambda: 0
    at_begin: Callable[[list[Request]], None] = nothing
    at_step: Callable[[int], None] = nothing
    at_sound: Callable[[list[Request]], None] = nothing
    draws: Callable[[list[int]], Drawn] = Drawn
    sounds: Callable[[list[Pcm], int], Sounded] = Sounded
    held: dict[int, list[Any]] = field(default_factory=dict)  # by slot: text, tokens drawn
    steps: int = 0
    closed: bool = False

    def _draw(self, slot: int) -> int:
        if slot not in self.held:
            return 5  # means nothing
        text, number = self.held[slot]
        self.held[slot][1] += 1
        length = int(text.split(":")[1])
        if self.never_ends:
            return self.token(text, number)
        return END if number == length else self.token(text, number) if number < length else 6

    def begin(self, requests: list[Request]) -> Drawn:
        self.at_begin(requests)
        for request in requests:
            assert request.slot not in self.held, "the slot is somebody's"
            assert request.slot in range(self.slots)
            self.held[request.slot] = [request.segment.text, 0]
        return self.draws([self._draw(request.slot) for request in requests if request.slot is not None])

    def step(self, busy: int) -> Drawn:
        self.steps += 1
        self.at_step(self.steps)
        assert set(self.held) <= set(range(busy)), "a slot is held beyond the busy ones"
        return self.draws([self._draw(slot) for slot in range(busy)])

    def free(self, slot: int) -> None:
        self.held.pop(slot, None)

    def shape(self, request: Request) -> Hashable:
        return request.voice

    def sound(self, requests: list[Request]) -> Sounded:
        self.at_sound(requests)
        made = []
        for request in requests:
            ends = request.made + request.next_hop
            assert request.ended or len(request.tokens) >= ends + LOOKAHEAD
            made.append(samples(request.tokens[request.made : ends]))
        return self.sounds(made, self.looks())

    def close(self) -> None:
        self.closed = True


class Speaking:
    """A loop, and what it is asked."""

    def __init__(self, stages: RuledStages, most_waiting: int = 1000) -> None:
        self.stages = stages
        self.loop = StepLoop(stages, most_waiting)

    def ask(self, *segments: Segment, whole: bool = False, voice: str = "default") -> tuple[Request, Listener]:
        listener = Listener()
        request = Request(segments, voice, 0, 0.0, listener, whole)
        self.loop.submit(request)
        return request, listener

    def settled(self) -> bool:
        """Everything is free again, and somebody new is spoken to."""
        _, listener = self.ask(says("one more", 9))
        listener.until_end()
        assert listener.error is None
        self.loop.close()
        return self.loop.counts() == (0, 0) and not self.stages.held


Start = Callable[..., Speaking]


@pytest.fixture
def speaking() -> Iterator[Start]:
    made: list[Speaking] = []

    def start(most_waiting: int = 1000, begun: bool = True, **stages: Any) -> Speaking:
        made.append(Speaking(RuledStages(**stages), most_waiting))
        if begun:
            made[-1].loop.start()
        return made[-1]

    yield start
    for one in made:
        one.loop.close()


# ---- whole and in order


def test_an_answer_comes_in_hops_and_is_whole(speaking: Start) -> None:
    said = says("hello", 137)
    _, listener = speaking().ask(said)
    listener.until_end()
    assert listener.error is None
    assert [len(piece) // SAMPLES for piece in listener.pieces] == [*HOPS, 50]
    np.testing.assert_array_equal(listener.heard, answer([said]))


def test_what_nobody_hears_before_its_end_comes_in_one_piece_a_segment(speaking: Start) -> None:
    said = [says("hello", 137), says("world", 20)]
    _, listener = speaking().ask(*said, whole=True)
    assert [len(piece) // SAMPLES for piece in listener.until_end().pieces] == [137, 20]
    np.testing.assert_array_equal(listener.heard, answer(said))


def test_many_answers_on_few_slots_are_each_whole_and_in_order(speaking: Start) -> None:
    delays = random.Random(1)
    at = speaking(looks=lambda: delays.randrange(4))
    made = random.Random(2)
    asked: list[tuple[list[Segment], Listener]] = []
    lock = threading.Lock()

    def ask(name: int) -> None:
        for number in range(12):
            with lock:
                said = [says(f"{name} {number} {part}", made.randrange(120)) for part in range(made.randint(1, 4))]
                whole, voice = made.random() < 0.3, made.choice("abc")
            listener = at.ask(*said, whole=whole, voice=voice)[1]
            with lock:
                asked.append((said, listener))

    threads = [threading.Thread(target=ask, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 48
    for said, listener in asked:
        listener.until_end()
        assert listener.error is None
        np.testing.assert_array_equal(listener.heard, answer(said))
    assert at.settled()


def test_audio_that_is_never_found_ready_is_waited_for_at_the_end(speaking: Start) -> None:
    said = says("hello", 100)
    _, listener = speaking(looks=lambda: 1 << 30).ask(said)
    np.testing.assert_array_equal(listener.until_end().heard, answer([said]))


def test_the_tokens_that_close_an_answer_are_heard(speaking: Start) -> None:
    said = [says("hello", 30), says("world", 0)]
    _, listener = speaking(closing=(SILENCE,) * 3).ask(*said)
    np.testing.assert_array_equal(listener.until_end().heard, answer(said, closing=(SILENCE,) * 3))


def test_a_segment_of_which_nothing_is_said_is_passed_over(speaking: Start) -> None:
    said = [says("", 0), says("hello", 30), says("", 0), says("", 0), says("world", 3), says("", 0)]
    at = speaking()
    _, listener = at.ask(*said)
    np.testing.assert_array_equal(listener.until_end().heard, answer(said))
    assert at.ask(says("", 0))[1].until_end().error is None
    assert at.settled()


def test_a_token_that_is_no_speech_is_not_heard(speaking: Start) -> None:
    _, listener = speaking(token=lambda text, number: MARK if number % 3 == 1 else number).ask(says("hello", 30))
    kept = [number for number in range(30) if number % 3 != 1]
    np.testing.assert_array_equal(listener.until_end().heard, samples(kept))


# ---- where it ends


def test_an_answer_that_never_ends_is_stopped_and_called_a_runaway(speaking: Start) -> None:
    at = speaking()
    endless, listener = at.ask(says("hello", 1 << 30, expected=40, most=90))
    other, others = at.ask(says("world", 90, expected=40, most=91))
    assert len(listener.until_end().heard) == 90 * SAMPLES
    assert listener.error is None
    assert len(others.until_end().heard) == 90 * SAMPLES
    assert endless.runaway
    assert not other.runaway
    assert at.settled()


def test_random_weights_are_stopped_where_the_text_should_end(speaking: Start) -> None:
    request, listener = speaking(never_ends=True).ask(says("hello", 1 << 30, expected=40, most=90))
    assert len(listener.until_end().heard) == 40 * SAMPLES
    assert not request.runaway


def test_marks_alone_do_not_keep_a_slot_for_ever(speaking: Start) -> None:
    """A model gone wrong draws nothing but marks: no speech, and no end either."""
    draws = 0

    def mark(text: str, number: int) -> int:
        nonlocal draws
        draws = number
        if number > 5000:
            raise ValueError("a slot was held for 5000 tokens")
        return MARK

    _, listener = speaking(token=mark).ask(says("hello", 1 << 30, expected=40, most=90))
    assert listener.until_end().error is None
    assert draws < 200


# ---- who leaves


def test_neighbours_that_leave_change_nothing(speaking: Start) -> None:
    at = speaking()
    left: list[Request] = []

    def leave(step: int) -> None:
        if step % 5 == 0 and left:
            at.loop.cancel(left.pop())

    stays, leaves = [], []
    at.stages.at_step = leave
    for number in range(12):
        said = [says(f"stays {number}", 40 + number), says("and", 9)]
        stays.append((said, at.ask(*said)[1]))
        request, listener = at.ask(says(f"leaves {number}", 300), says("on", 300))
        leaves.append(listener)
        left.append(request)
    for said, listener in stays:
        np.testing.assert_array_equal(listener.until_end().heard, answer(said))
    assert at.settled()


def test_a_slot_is_free_by_the_step_after_its_listener_left(speaking: Start) -> None:
    at = speaking(slots=1)
    left_at = 0

    def leave(step: int) -> None:
        nonlocal left_at
        if step == 9:
            left_at = step
            at.loop.cancel(first)

    began_at = []
    at.stages.at_step = leave
    at.stages.at_begin = lambda _: began_at.append(at.stages.steps)
    first, _ = at.ask(says("hello", 500))
    _, second = at.ask(says("world", 5))
    np.testing.assert_array_equal(second.until_end().heard, answer([says("world", 5)]))
    assert began_at == [0, left_at]


def test_nothing_is_delivered_once_the_loop_knows_that_a_listener_left(speaking: Start) -> None:
    at = speaking()
    request, listener = at.ask(says("hello", 1 << 30, most=1 << 30))
    listener.piece()
    at.loop.cancel(request)
    assert at.settled()  # so it was seen
    while not listener.has_nothing:
        assert isinstance(listener.piece(), np.ndarray)
    assert request.over


def test_who_leaves_while_he_waits_is_never_begun(speaking: Start) -> None:
    at = speaking(slots=1, begun=False)
    begun = []
    at.stages.at_begin = begun.extend
    first, first_listener = at.ask(says("hello", 20))
    second, second_listener = at.ask(says("world", 20))
    at.loop.cancel(second)
    at.loop.start()
    first_listener.until_end()
    assert at.settled()
    assert first in begun
    assert second not in begun
    assert second_listener.has_nothing


def test_who_leaves_between_segments_is_not_begun_again(speaking: Start) -> None:
    at = speaking(slots=1)
    numbers = []

    def leave(requests: list[Request]) -> None:
        numbers.extend(request.number for request in requests if request is first)
        if requests == [second]:
            at.loop.cancel(first)

    at.stages.at_begin = leave
    first, _ = at.ask(says("hello", 10), says("again", 10))
    second, listener = at.ask(says("world", 200))
    listener.until_end()
    assert at.settled()
    assert numbers == [0]


def test_leaving_after_the_end_is_nothing(speaking: Start) -> None:
    at = speaking()
    request, listener = at.ask(says("hello", 10))
    listener.until_end()
    at.loop.cancel(request)
    at.loop.cancel(request)
    assert at.settled()


def test_a_listener_that_never_reads_holds_nobody_up(speaking: Start) -> None:
    at = speaking(slots=2)
    _, deaf = at.ask(says("hello", 400))
    for number in range(5):
        said = says(f"world {number}", 60)
        np.testing.assert_array_equal(at.ask(said)[1].until_end().heard, answer([said]))
    assert len(deaf.until_end().heard) == 400 * SAMPLES


# ---- what fails


class Broken(Exception):
    """Something of the device."""


@pytest.fixture(autouse=True)
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    return lambda: capsys.readouterr().err


def test_a_text_that_cannot_be_begun_fails_alone(speaking: Start, printed: Callable[[], str]) -> None:
    at = speaking()

    def refuse(requests: list[Request]) -> None:
        if any("bad" in request.segment.text for request in requests):
            raise Broken("of the text")

    at.stages.at_begin = refuse
    good = says("good", 300)
    _, listener = at.ask(good)
    listener.pieces.append(listener.piece())  # it runs
    _, bad = at.ask(says("bad", 10))
    assert isinstance(bad.until_end().error, Broken)
    assert len(bad.heard) == 0
    np.testing.assert_array_equal(listener.until_end().heard, answer([good]))
    assert at.settled()
    assert printed() == "gpu_server: 1 requests failed: Broken: of the text\n"


def test_a_step_that_fails_fails_those_who_run_and_no_others(speaking: Start) -> None:
    at = speaking(slots=2, begun=False)

    def break_once(step: int) -> None:
        if step == 10:
            raise Broken

    at.stages.at_step = break_once
    runs = [at.ask(says(f"runs {number}", 100))[1] for number in range(2)]
    said = says("waits", 100)
    _, waits = at.ask(said)
    at.loop.start()
    assert all(isinstance(listener.until_end().error, Broken) for listener in runs)
    np.testing.assert_array_equal(waits.until_end().heard, answer([said]))
    assert at.settled()


def test_who_has_all_tokens_does_not_suffer_from_a_step_that_fails(speaking: Start) -> None:
    at = speaking(looks=lambda: 3)
    said = says("hello", 12)

    def break_once(step: int) -> None:
        if request.ended and not request.over and not broken:
            broken.append(step)
            raise Broken

    broken: list[int] = []
    at.stages.at_step = break_once
    request, listener = at.ask(said)
    _, other = at.ask(says("world", 1000))
    assert isinstance(other.until_end().error, Broken)
    assert listener.until_end().error is None
    np.testing.assert_array_equal(listener.heard, answer([said]))
    assert at.settled()


def test_audio_that_cannot_be_made_fails_those_it_was_made_for(speaking: Start) -> None:
    at = speaking()

    def refuse(requests: list[Request]) -> None:
        if requests[0].voice == "bad":
            raise Broken

    at.stages.at_sound = refuse
    good = [says("good", 100), says("news", 50)]
    _, listener = at.ask(*good)
    bad = [at.ask(says(f"bad {number}", 100), voice="bad")[1] for number in range(3)]
    assert all(isinstance(one.until_end().error, Broken) for one in bad)
    np.testing.assert_array_equal(listener.until_end().heard, answer(good))
    assert at.settled()


def test_audio_that_fails_on_its_way_fails_those_it_was_made_for(speaking: Start) -> None:
    at = speaking()
    bad = rule("bad:100", 0)

    def sounded(made: list[Pcm], looks: int) -> Sounded:
        return Sounded(made, looks, Broken() if any(piece[0] == bad for piece in made) else None)

    at.stages.sounds = sounded
    good = says("good", 100)
    _, listener = at.ask(good)
    _, failing = at.ask(says("bad", 100), voice="bad")
    assert isinstance(failing.until_end().error, Broken)
    np.testing.assert_array_equal(listener.until_end().heard, answer([good]))
    assert at.settled()


def test_tokens_that_fail_on_their_way_do_not_end_the_loop(speaking: Start) -> None:
    """A device says that something went wrong when its results are read, not when it is asked for them."""
    at = speaking()
    read = 0

    def drawn(values: list[int]) -> Drawn:
        nonlocal read
        read += 1
        return Drawn(values, Broken() if read == 20 else None)

    at.stages.draws = drawn
    _, listener = at.ask(says("hello", 100))
    assert isinstance(listener.until_end().error, Broken)
    assert at.settled()


def test_who_has_all_tokens_does_not_suffer_from_tokens_that_fail_on_their_way(speaking: Start) -> None:
    """Steps are read late: one that was drawn for him too, and that he does not need, is what fails."""
    at = speaking(looks=lambda: 3)
    ended = failed = False

    def drawn(values: list[int]) -> Drawn:
        nonlocal ended, failed
        fails, failed = ended and not failed, failed or ended
        ended = ended or END in values
        return Drawn(values, Broken() if fails else None)

    at.stages.draws = drawn
    said = says("hello", 12)
    _, listener = at.ask(said)
    _, other = at.ask(says("world", 1000))
    assert isinstance(other.until_end().error, Broken)
    assert listener.until_end().error is None
    np.testing.assert_array_equal(listener.heard, answer([said]))
    assert at.settled()


def test_a_listener_that_fails_does_not_end_the_loop(speaking: Start) -> None:
    at = speaking()

    def fail(item: Any) -> None:
        raise Broken("of the listener")

    at.loop.submit(Request([says("hello", 30)], "default", 0, 0.0, fail))
    said = says("world", 30)
    np.testing.assert_array_equal(at.ask(said)[1].until_end().heard, answer([said]))
    assert at.settled()


# ---- the end of all, and what is said of it


def test_who_finds_the_queue_full_is_told_at_once(speaking: Start) -> None:
    at = speaking(slots=1, most_waiting=2, begun=False)
    asked = [at.ask(says(f"hello {number}", 9))[1] for number in range(3)]
    with pytest.raises(QueueFull):
        at.ask(says("world", 9))
    assert at.loop.counts() == (0, 3)
    at.loop.start()
    assert all(listener.until_end().error is None for listener in asked)
    assert at.settled()


def test_who_runs_and_who_waits_is_counted(speaking: Start) -> None:
    at = speaking(slots=2, begun=False)
    asked = [at.ask(says(f"hello {number}", 9))[1] for number in range(5)]
    counted = []
    at.stages.at_step = lambda _: counted.append(at.loop.counts())
    at.loop.start()
    for listener in asked:
        listener.until_end()
    assert counted[0] == (2, 3)
    assert all(0 < runs + waits <= 5 for runs, waits in counted)
    assert at.settled()


def test_closing_ends_everybody(speaking: Start) -> None:
    at = speaking(slots=2)
    asked = [at.ask(says(f"hello {number}", 1 << 30, most=1 << 30))[1] for number in range(2)]
    for listener in asked:
        listener.piece()
    asked += [at.ask(says(f"waits {number}", 9))[1] for number in range(3)]
    at.loop.close()
    for listener in asked:
        assert isinstance(listener.until_end().error, RuntimeError)
    assert at.stages.closed
    at.loop.close()


def test_closing_ends_who_has_all_tokens_and_waits_for_audio(speaking: Start) -> None:
    at = speaking(slots=1, looks=lambda: 1 << 30)
    request, listener = at.ask(says("hello", 5))
    _, endless = at.ask(says("world", 1 << 30, most=1 << 30))
    stepped = threading.Event()

    def look(_: int) -> None:
        if request.ended and at.stages.held:
            stepped.set()

    at.stages.at_step = look
    assert stepped.wait(WAIT_S)
    at.loop.close()
    for one in (listener, endless):
        assert isinstance(one.until_end().error, RuntimeError)


def test_a_loop_that_never_ran_ends_those_who_wait_when_it_is_closed(speaking: Start) -> None:
    at = speaking(begun=False)
    _, listener = at.ask(says("hello", 9))
    at.loop.close()
    assert isinstance(listener.until_end().error, RuntimeError)


def test_who_asks_after_the_end_is_not_left_waiting(speaking: Start) -> None:
    at = speaking()
    at.loop.close()
    with pytest.raises(QueueFull, match="closed"):
        at.ask(says("hello", 9))


# ---- all of it


def test_whoever_neither_leaves_nor_fails_hears_all_in_a_storm(speaking: Start) -> None:
    at = speaking(slots=3, closing=(SILENCE,) * 3, begun=False)
    storm = random.Random(3)
    at.stages.looks = lambda: storm.randrange(6)
    leave: list[Request] = []

    def break_sometimes(_: Any) -> None:
        if storm.random() < 0.01:
            raise Broken

    def step(number: int) -> None:
        if number % 5 == 0 and leave:
            at.loop.cancel(leave.pop(0))
        break_sometimes(number)

    at.stages.at_begin = at.stages.at_sound = break_sometimes
    at.stages.at_step = step
    stay = []
    for number in range(200):
        said = [says(f"{number} {part}", storm.randrange(60)) for part in range(storm.randint(1, 3))]
        listener = Listener()
        request = Request(said, storm.choice("ab"), 0, float(number), listener, storm.random() < 0.2)
        at.loop.submit(request)
        if number % 3:
            stay.append((said, listener))
        else:
            leave.append(request)
    at.loop.start()
    whole = 0
    for said, listener in stay:
        listener.until_end()
        if listener.error is None:
            whole += 1
            np.testing.assert_array_equal(listener.heard, answer(said, at.stages.closing))
        else:
            assert isinstance(listener.error, Broken)
    assert 30 < whole < len(stay) - 30
    at.stages.at_begin = at.stages.at_sound = at.stages.at_step = nothing
    assert at.settled()

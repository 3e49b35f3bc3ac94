"""Who gets a slot, whose audio is made next: the most urgent, nobody starved, no slot lost. Without model or thread."""

import random
from collections.abc import Sequence
from typing import Any

import pytest

from gpu_server.request import HOPS, LOOKAHEAD, Request, Segment
from gpu_server.scheduler import AT_ONCE, LATE_S, QueueFull, Scheduler

SEGMENT = Segment("some words", 20, 60)
TOKEN_S = 0.04


def nobody(_: Any) -> None:
    """Listens to a request."""


def request(arrived_at: float = 0.0, segments: int = 1, whole: bool = False, name: str = "") -> Request:
    return Request([SEGMENT] * segments, name or "default", 0, arrived_at, nobody, whole)


def scheduler(slots: int, queue: int = 100, at_once: int = AT_ONCE) -> Scheduler:
    """Pieces of one voice have one shape."""
    return Scheduler(slots, queue, lambda request: request.voice, at_once)


def submitted(of: Scheduler, requests: Sequence[Request]) -> list[Request]:
    for one in requests:
        of.submit(one)
    return list(requests)


def running(of: Scheduler, requests: Sequence[Request]) -> list[Request]:
    """Requests with a slot each; what was running before goes on."""
    submitted(of, requests)
    admitted = of.admit()
    assert len(admitted) == len(requests)
    return list(requests)


def has_sent(one: Request, first_at: float, audio_s: float) -> Request:
    one.first_at, one.audio_s = first_at, audio_s
    return one


def spoken(one: Request, tokens: int) -> Request:
    one.tokens += [0] * tokens
    return one


# ---- who gets a slot


def test_who_came_first_gets_a_slot_first() -> None:
    of = scheduler(slots=2)
    third, first, second = submitted(of, [request(3.0), request(1.0), request(2.0)])
    assert of.admit() == [first, second]
    assert of.waiting == [third]
    assert (first.slot, second.slot, third.slot) == (0, 1, None)
    assert first.number == 0
    assert third.number == -1


def test_at_most_so_many_are_admitted_in_one_go() -> None:
    of = scheduler(slots=8)
    requests = submitted(of, [request(at) for at in range(6)])
    assert of.admit(4) == requests[:4]
    assert of.admit(4) == requests[4:]


def test_the_lowest_free_slot_is_given_so_that_a_step_stays_small() -> None:
    of = scheduler(slots=8)
    requests = running(of, [request(at) for at in range(6)])
    assert of.busy == 6
    of.drop(requests[1])
    of.drop(requests[4])
    (newcomer,) = running(of, [request(9.0)])
    assert newcomer.slot == 1
    of.drop(requests[5])
    assert of.busy == 4


def test_a_listener_who_runs_dry_before_a_newcomer_came_goes_first() -> None:
    """Earliest playout deadline first: a newcomer is due since it came, a listener when what he has is played."""
    of = scheduler(slots=1)
    long = has_sent(request(0.0, segments=2), first_at=1.0, audio_s=4.0)
    before, after = request(4.9), request(5.1)
    submitted(of, [after, before, long])
    order = []
    while of.waiting:
        (admitted,) = of.admit()
        order.append(admitted)
        of.drop(admitted)
    assert order == [before, long, after]


def test_a_full_queue_takes_nobody_and_a_freed_place_takes_one() -> None:
    of = scheduler(slots=2, queue=3)
    requests = submitted(of, [request(at) for at in range(5)])
    with pytest.raises(QueueFull):
        of.submit(request(9.0))
    of.admit()
    with pytest.raises(QueueFull, match="2 streams busy, 3 requests waiting"):
        of.submit(request(9.0))
    of.drop(requests[0])
    of.submit(request(9.0))
    with pytest.raises(QueueFull):
        of.submit(request(9.0))


def test_a_queue_of_nobody_still_fills_the_slots() -> None:
    of = scheduler(slots=2, queue=0)
    submitted(of, [request(0.0), request(0.0)])
    with pytest.raises(QueueFull):
        of.submit(request(0.0))


def test_a_long_text_between_segments_takes_no_place_of_the_queue() -> None:
    of = scheduler(slots=1, queue=1)
    (long,) = running(of, [request(0.0, segments=2)])
    of.end_tokens(long)
    of.end_segment(long)
    assert of.waiting == [long]
    submitted(of, [request(1.0), request(1.0)])  # one for the slot that is free, one to wait
    with pytest.raises(QueueFull):
        of.submit(request(1.0))


def test_a_long_text_does_not_starve_behind_a_stream_of_newcomers() -> None:
    """One slot, twice as much asked as can be spoken: a segment waits, beyond the moment at which its listener runs
    dry, for those who came before that moment, and no more than the queue holds of them."""
    segment_s, queue = 1.0, 4
    of = scheduler(slots=1, queue=queue)
    long = request(0.0, segments=12)
    of.submit(long)
    now, came_at, asks_at, waits = 0.0, 0.0, 0.0, []
    while not long.over:
        while came_at <= now:
            try:
                of.submit(request(came_at))
            except QueueFull:
                pass
            came_at += segment_s / 2
        due_at = max(long.deadline, asks_at)
        (one,) = of.admit()
        if one is long:
            waits.append(now - due_at)
            asks_at = now + segment_s
        now += segment_s
        one.first_at = now if one.first_at is None else one.first_at
        one.audio_s += 3 * segment_s  # the listener of the long text has three seconds more to hear
        of.end_tokens(one)
        of.end_segment(one)
        one.over = not one.has_more
    assert len(waits) == 12
    assert max(waits) <= (queue + 2) * segment_s


def test_newcomers_do_not_starve_behind_long_texts() -> None:
    """Two texts without end on one slot: whoever comes is spoken to next, as nobody has waited longer."""
    of = scheduler(slots=1)
    first, second = submitted(of, [request(0.0, segments=1000), request(0.0, segments=1000)])
    now = 0.0
    for turn in range(100):
        if turn % 7 == 3:
            of.submit(newcomer := request(now))
            assert of.admit() == [newcomer]
            of.end_tokens(newcomer)
            of.end_segment(newcomer)
        (one,) = of.admit()
        now += 1.0
        one.first_at = now if one.first_at is None else one.first_at
        one.audio_s += 2.5
        of.end_tokens(one)
        of.end_segment(one)
    assert abs(first.number - second.number) <= 2


# ---- whose audio is made


def test_a_piece_needs_its_tokens_and_what_lies_ahead() -> None:
    of = scheduler(slots=1)
    (one,) = running(of, [request()])
    spoken(one, HOPS[0] + LOOKAHEAD - 1)
    assert of.next_pieces(0.0) == []
    spoken(one, 1)
    assert of.next_pieces(0.0) == [one]


def test_audio_is_made_for_whoever_is_due_first() -> None:
    of = scheduler(slots=3, at_once=1)
    late, newcomer, soon = (
        spoken(one, 20)
        for one in running(of, [has_sent(request(), 0.0, 9.0), request(arrived_at=5.0), has_sent(request(), 0.0, 4.9)])
    )
    order = []
    for _ in range(3):
        (one,) = of.next_pieces(9.0)
        one.sounding = True
        order.append(one)
    assert order == [soon, newcomer, late]
    assert of.next_pieces(9.0) == []


def test_only_pieces_of_one_shape_are_made_together_and_the_most_urgent_says_which() -> None:
    of = scheduler(slots=6)
    requests = running(of, [request(at, name="ab"[at % 2]) for at in range(6)])
    for one in requests:
        spoken(one, 20)
    assert of.next_pieces(9.0) == requests[::2]
    of.drop(requests[0])
    assert of.next_pieces(9.0) == requests[1::2]


def test_no_more_are_made_together_than_fit() -> None:
    of = scheduler(slots=6, at_once=4)
    requests = running(of, [request(float(at)) for at in range(6)])
    for one in requests:
        spoken(one, 20)
    assert of.next_pieces(9.0) == requests[:4]


def test_a_piece_that_nobody_misses_yet_waits_for_others() -> None:
    of = scheduler(slots=2)
    ahead, _ = running(of, [has_sent(request(), 0.0, 10.0), request()])
    spoken(ahead, 20)
    assert of.next_pieces(10.0 - LATE_S - 0.01) == []
    assert of.next_pieces(10.0 - LATE_S) == [ahead]


def test_a_first_piece_never_waits() -> None:
    of = scheduler(slots=2)
    newcomer, _ = running(of, [request(arrived_at=5.0), request()])
    spoken(newcomer, 20)
    assert of.next_pieces(5.0) == [newcomer]


def test_as_many_as_fit_do_not_wait() -> None:
    of = scheduler(slots=2, at_once=2)
    requests = running(of, [has_sent(request(), 0.0, 10.0 + at) for at in range(2)])
    spoken(requests[0], 20)
    assert of.next_pieces(0.0) == []
    spoken(requests[1], 20)
    assert of.next_pieces(0.0) == requests


def test_nothing_waits_for_others_where_nobody_draws() -> None:
    of = scheduler(slots=1)
    (one,) = running(of, [has_sent(request(), 0.0, 1000.0)])
    spoken(one, 20)
    of.end_tokens(one)
    assert of.next_pieces(0.0) == [one]


def test_what_nobody_hears_before_its_end_comes_after_those_who_listen() -> None:
    of = scheduler(slots=2, at_once=1)
    job, listener = running(of, [request(0.0, whole=True), has_sent(request(1.0), 1.0, 9.0)])
    for one in (job, listener):
        spoken(one, 20)
        of.end_tokens(one)
    assert of.next_pieces(9.0) == [listener]
    listener.sounding = True
    assert of.next_pieces(9.0) == [job]


def test_an_old_stream_does_not_starve_behind_newcomers_first_pieces() -> None:
    """One piece a turn, a newcomer's first piece ready at every turn: the listener is served when he runs dry."""
    of = scheduler(slots=2, at_once=1)
    (old,) = running(of, [has_sent(request(), 0.0, 2.0)])
    spoken(old, 20)
    for turn in range(100):
        now = turn * 0.1
        (newcomer,) = running(of, [request(now)])
        spoken(newcomer, 20)
        (chosen,) = of.next_pieces(now)
        if chosen is old:
            break
        of.drop(newcomer)
    assert chosen is old
    assert 1.9 < now < 2.2  # those who came later than 2.0 are due later


# ---- cancelled


def between_segments(of: Scheduler, one: Request) -> None:
    drawing(of, one)
    of.end_tokens(one)
    of.end_segment(one)


def drawing(of: Scheduler, one: Request) -> None:
    running(of, [one])
    spoken(one, 20)


def sounding(of: Scheduler, one: Request) -> None:
    drawing(of, one)
    assert of.next_pieces(1.0) == [one]
    one.sounding = True


def sounding_its_last(of: Scheduler, one: Request) -> None:
    drawing(of, one)
    of.end_tokens(one)
    one.sounding = True


WAYS = [drawing, sounding, sounding_its_last, between_segments]


@pytest.mark.parametrize("way", [Scheduler.submit, *WAYS], ids=lambda way: way.__name__)
def test_who_is_cancelled_anywhere_is_nowhere_and_his_slot_is_free_at_once(way: Any) -> None:
    of = scheduler(slots=1, queue=1)
    one = request(segments=2)
    way(of, one)
    held = one.slot
    assert of.drop(one) == held
    assert one.over
    assert of.idle
    assert of.busy == 0
    assert of.next_pieces(9.0) == []
    (newcomer,) = running(of, [request(9.0)])
    assert newcomer.slot == 0


@pytest.mark.parametrize("way", [drawing, sounding], ids=lambda way: way.__name__)
def test_who_is_cancelled_twice_does_not_free_the_slot_of_another(way: Any) -> None:
    of = scheduler(slots=1)
    one = request()
    way(of, one)
    assert of.drop(one) == 0
    (newcomer,) = running(of, [request(9.0)])
    assert of.drop(one) is None
    assert of.running == {0: newcomer}
    of.submit(request(9.5))
    assert of.admit() == []


def test_a_slot_is_free_when_the_tokens_are_there_and_audio_is_still_to_be_made() -> None:
    of = scheduler(slots=1)
    (one,) = running(of, [request()])
    spoken(one, 20)
    assert of.end_tokens(one) == 0
    (newcomer,) = running(of, [request(1.0)])
    assert newcomer.slot == 0
    assert one in of.next_pieces(1.0)


# ---- hops


def pieces_of(one: Request, tokens: int, late: int = 0) -> list[int]:
    """Sizes of a segment's pieces where each is made as soon as its tokens, and `late` more, are there."""
    one.begin_segment(0)
    sizes: list[int] = []

    def make() -> None:
        while (hop := one.next_hop) > 0:
            last = one.is_last_piece
            sizes.append(hop)
            one.made += hop
            one.hops += 1
            assert last == (one.ended and one.made == tokens)

    for number in range(tokens):
        one.tokens.append(number)
        if len(one.tokens) > late:
            make()
    one.ended = True
    make()
    return sizes


def test_the_first_pieces_are_short_and_the_later_ones_long() -> None:
    assert HOPS == (4, 8, 25, 50)
    assert pieces_of(request(), 190)[:6] == [4, 8, 25, 50, 50, 50]
    assert pieces_of(request(whole=True), 190) == [190]


@pytest.mark.parametrize("late", [0, 11, 1000])
def test_every_token_becomes_audio_once_however_many_there_are(late: int) -> None:
    for tokens in range(1, 250):
        sizes = pieces_of(request(), tokens, late)
        assert sum(sizes) == tokens
        assert all(size <= hop for size, hop in zip(sizes, (*HOPS, *[HOPS[-1]] * len(sizes)), strict=False))


def test_every_segment_begins_with_short_pieces_again() -> None:
    one = request(segments=2)
    assert pieces_of(one, 60)[0] == pieces_of(one, 60)[0] == HOPS[0]
    assert one.number == 1


def test_a_listener_is_due_when_he_has_heard_what_he_has() -> None:
    one = request(arrived_at=3.0)
    assert one.deadline == 3.0
    has_sent(one, first_at=4.0, audio_s=2.5)
    assert one.deadline == 6.5


# ---- all of it


class Walk:
    """Anything that can happen, in any order, and what must hold after each."""

    def __init__(self, seed: int, slots: int, queue: int) -> None:
        self.random = random.Random(seed)
        self.slots, self.queue = slots, queue
        self.of = scheduler(slots, queue, at_once=3)
        self.now = 0.0
        self.alive: list[Request] = []
        self.audio: dict[Request, int] = {}  # pieces' tokens
        self.drawn: dict[Request, int] = {}
        self.refused = self.finished = self.dropped = 0

    def submit(self) -> None:
        one = request(self.now, self.random.randint(1, 3), self.random.random() < 0.2, name=self.random.choice("abc"))
        unadmitted = sum(other.number < 0 for other in self.of.waiting)
        has_room = unadmitted < self.queue + self.slots - len(self.of.running)
        try:
            self.of.submit(one)
        except QueueFull:
            assert not has_room
            self.refused += 1
            return
        assert has_room
        self.alive.append(one)
        self.audio[one] = self.drawn[one] = 0

    def admit(self) -> None:
        free = self.slots - len(self.of.running)
        wanted = sorted(self.of.waiting, key=lambda one: one.deadline)
        assert self.of.admit() == wanted[:free]

    def draw(self) -> None:
        for one in [one for one in self.of.running.values() if self.random.random() < 0.9]:
            one.tokens.append(0)
            self.drawn[one] += 1
            if self.random.random() < 0.05 or len(one.tokens) == SEGMENT.most:
                slot = one.slot
                assert self.of.end_tokens(one) == slot

    def make(self) -> None:
        together = self.of.next_pieces(self.now)
        assert len(together) <= 3
        assert len({one.voice for one in together}) <= 1
        for one in together:
            assert not one.sounding
            self.audio[one] += one.next_hop
            one.state = one.is_last_piece
            one.made += one.next_hop
            one.hops += 1
            one.sounding = True

    def hand_over(self) -> None:
        for one in [one for one in self.alive if one.sounding and self.random.random() < 0.5]:
            one.sounding = False
            one.first_at = self.now if one.first_at is None else one.first_at
            one.audio_s = self.audio[one] * TOKEN_S
            if one.state:
                self.of.end_segment(one)
                if not one.has_more:
                    one.over = True
                    self.alive.remove(one)
                    assert self.audio[one] == self.drawn[one]
                    self.finished += 1

    def drop(self) -> None:
        if self.alive:
            one = self.random.choice(self.alive)
            self.alive.remove(one)
            held = one.slot
            assert self.of.drop(one) == held
            self.dropped += 1

    def check(self) -> None:
        of = self.of
        places = [*of.running.values(), *of.ended, *of.waiting]
        assert len(places) == len(set(places)) == len(self.alive)
        assert set(places) == set(self.alive)
        assert all(one.slot == slot for slot, one in of.running.items())
        assert all(one.slot is None for one in (*of.ended, *of.waiting))
        assert of.busy == max((slot + 1 for slot in of.running), default=0) <= self.slots
        assert of.idle == (not self.alive)

    def settle(self) -> None:
        """Nobody new and nobody leaves: everybody comes to an end."""
        for _ in range(10_000):
            if not self.alive:
                return
            self.now += 0.1
            for what in (self.admit, self.draw, self.make, self.hand_over):
                what()
                self.check()
        raise AssertionError(f"{len(self.alive)} requests never end")


@pytest.mark.parametrize(("slots", "queue"), [(1, 0), (3, 2), (8, 20)])
def test_no_slot_and_no_request_is_lost_in_a_random_walk(slots: int, queue: int) -> None:
    walk = Walk(slots, slots, queue)
    happenings = [walk.submit, walk.admit, walk.draw, walk.draw, walk.make, walk.hand_over]
    for _ in range(20_000):
        walk.now += 0.02
        walk.random.choice(happenings)()
        if walk.random.random() < 0.02:
            walk.drop()
        walk.check()
    walk.settle()
    assert min(walk.refused, walk.finished, walk.dropped) > 30
    fresh = running(walk.of, [request(walk.now) for _ in range(slots)])
    assert [one.slot for one in fresh] == list(range(slots))

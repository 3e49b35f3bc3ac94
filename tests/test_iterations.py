"""Exactly N of a mode, so many at a time, part after part, whoever asks and whoever is lost: by simulation and hand."""

import itertools
import random
from collections import Counter

import pytest

from workers.iterations import Dealer, Grant, Iteration, Part, parts_of


def numbers(grants: list[Grant]) -> list[int | None]:
    return [grant.iteration.number for grant in grants]


# ---- what a mode is made of


@pytest.mark.parametrize("mode", ["text", "audio", "turn_taking", "interruption"])
def test_a_mode_of_iterations_is_one_part(mode: str) -> None:
    assert parts_of(mode, 7, None, 3) == [Part(mode, 7, 3, None)]


def test_throughput_has_no_number_but_a_duration() -> None:
    assert parts_of("throughput", None, 60.0, 4) == [Part("throughput", None, 4, 60.0)]


def test_full_is_all_modes_and_only_throughput_has_several_at_a_time() -> None:
    assert parts_of("full", 5, 60.0, 4) == [
        Part("text", 5, 1, None),
        Part("audio", 5, 1, None),
        Part("turn_taking", 5, 1, None),
        Part("interruption", 5, 1, None),
        Part("throughput", None, 4, 60.0),
    ]


# ---- N of them


def test_n_are_dealt_in_order_and_then_all_is_over() -> None:
    dealer = Dealer(parts_of("text", 3, None, 1))
    for number in range(3):
        assert not dealer.all_over
        [grant] = dealer.ask("a", 0.0)
        assert grant == Grant("a", Iteration("text", number), None)
        assert dealer.over("a", grant.iteration, 1.0) == []
    assert dealer.all_over
    assert dealer.ask("a", 2.0) == []


def test_so_many_at_a_time_and_who_waited_longest_is_next() -> None:
    dealer = Dealer(parts_of("audio", 10, None, 2))
    assert numbers(dealer.ask("a", 0.0)) == [0]
    assert numbers(dealer.ask("b", 0.0)) == [1]
    assert dealer.ask("c", 0.0) == []
    assert dealer.ask("a", 0.0) == []
    assert dealer.under_way == 2
    assert dealer.over("b", Iteration("audio", 1), 1.0) == [Grant("c", Iteration("audio", 2), None)]
    assert dealer.over("a", Iteration("audio", 0), 1.0) == [Grant("a", Iteration("audio", 3), None)]


def test_an_end_is_an_end_only_when_nothing_is_under_way() -> None:
    dealer = Dealer(parts_of("audio", 2, None, 2))
    dealer.ask("a", 0.0)
    dealer.ask("b", 0.0)
    dealer.over("b", Iteration("audio", 1), 1.0)
    assert not dealer.all_over
    dealer.over("a", Iteration("audio", 0), 1.0)
    assert dealer.all_over


def test_what_is_over_twice_is_over_once() -> None:
    dealer = Dealer(parts_of("audio", 3, None, 1))
    dealer.ask("a", 0.0)
    dealer.ask("b", 0.0)
    assert numbers(dealer.over("a", Iteration("audio", 0), 1.0)) == [1]
    assert dealer.over("a", Iteration("audio", 0), 1.0) == []
    assert dealer.under_way == 1


def test_what_never_began_is_begun_by_another() -> None:
    dealer = Dealer(parts_of("audio", 2, None, 1))
    [first] = dealer.ask("a", 0.0)
    dealer.ask("b", 0.0)
    assert dealer.give_back("a", first.iteration, 0.0) == [Grant("b", Iteration("audio", 0), None)]
    dealer.over("b", Iteration("audio", 0), 0.0)
    [last] = dealer.ask("b", 0.0)
    assert last.iteration.number == 1
    dealer.give_back("b", last.iteration, 0.0)
    assert not dealer.all_over, "the last one has not been made"
    assert numbers(dealer.ask("c", 0.0)) == [1]


@pytest.mark.parametrize("seed", range(20))
def test_each_number_is_made_once_whatever_happens(seed: int) -> None:
    """Users of several workers come, go while they wait, and are through at random instants."""
    rng = random.Random(seed)
    n, at_a_time = rng.randint(1, 40), rng.randint(1, 5)
    dealer = Dealer(parts_of("audio", n, None, at_a_time))
    workers = [f"w{i}" for i in range(rng.randint(1, 4))]
    made: list[int] = []
    open_: list[Grant] = []
    for step in range(5000):
        now = float(step)
        came: list[Grant] = []
        if rng.random() < 0.5 or not open_:
            came = dealer.ask(rng.choice(workers), now)
        else:
            grant = open_.pop(rng.randrange(len(open_)))
            if rng.random() < 0.3:
                came = dealer.give_back(grant.worker, grant.iteration, now)
            else:
                assert grant.iteration.number is not None
                made.append(grant.iteration.number)
                came = dealer.over(grant.worker, grant.iteration, now)
        open_ += came
        assert len(open_) == dealer.under_way <= at_a_time
        if dealer.all_over:
            break
    assert dealer.all_over
    assert sorted(made) == list(range(n))


# ---- lost workers


def test_a_lost_workers_iterations_are_lost_and_its_place_is_free() -> None:
    dealer = Dealer(parts_of("audio", 4, None, 2))
    dealer.ask("a", 0.0)
    dealer.ask("b", 0.0)
    dealer.ask("b", 0.0)
    assert dealer.here({"a", "b"}, 1.0) == []
    assert dealer.lost == []
    assert dealer.here({"b"}, 2.0) == [Grant("b", Iteration("audio", 2), None)]
    assert dealer.lost == [("a", Iteration("audio", 0))]
    dealer.over("b", Iteration("audio", 1), 3.0)
    dealer.over("b", Iteration("audio", 2), 3.0)
    assert numbers(dealer.ask("b", 4.0)) == [3]
    dealer.over("b", Iteration("audio", 3), 5.0)
    assert dealer.all_over, "0 is not made again"


def test_nothing_is_dealt_to_a_worker_that_is_gone_but_it_may_come_back() -> None:
    dealer = Dealer(parts_of("audio", 4, None, 1))
    dealer.ask("a", 0.0)
    dealer.ask("b", 0.0)
    dealer.here({"a"}, 1.0)
    assert dealer.over("a", Iteration("audio", 0), 1.0) == []
    assert dealer.here({"a", "b"}, 2.0) == [Grant("b", Iteration("audio", 1), None)]


def test_the_last_iteration_may_be_a_lost_one() -> None:
    dealer = Dealer(parts_of("audio", 1, None, 1))
    dealer.ask("a", 0.0)
    dealer.here(set(), 1.0)
    assert dealer.all_over
    dealer.over("a", Iteration("audio", 0), 2.0)  # it was alive after all
    assert dealer.lost == [("a", Iteration("audio", 0))]


# ---- a part that lasts


def test_throughput_lasts_from_its_first_grant_on() -> None:
    dealer = Dealer(parts_of("throughput", None, 60.0, 2))
    assert dealer.deal(1000.0) == [], "nobody has asked"
    assert dealer.ask("a", 1000.0) == [Grant("a", Iteration("throughput", None), 60.0)]
    assert dealer.ask("a", 1010.0) == [Grant("a", Iteration("throughput", None), 50.0)]
    assert dealer.ask("b", 1010.0) == []
    assert dealer.over("a", Iteration("throughput", None), 1059.0) == [Grant("b", Iteration("throughput", None), 1.0)]
    assert dealer.ask("c", 1060.0) == []
    dealer.over("a", Iteration("throughput", None), 1061.0)
    assert not dealer.all_over
    dealer.over("b", Iteration("throughput", None), 1062.0)
    assert dealer.all_over


def test_a_part_whose_time_is_up_ends_though_nobody_asks() -> None:
    dealer = Dealer(parts_of("throughput", None, 60.0, 1))
    [grant] = dealer.ask("a", 0.0)
    dealer.over("a", grant.iteration, 1.0)
    assert not dealer.all_over
    dealer.here({"a"}, 61.0)
    assert dealer.all_over


# ---- part after part


def test_parts_do_not_overlap() -> None:
    """Simulated: sessions of random length by five users at three workers."""
    rng = random.Random(1)
    dealer = Dealer(parts_of("full", 3, 50.0, 4))
    for user in range(5):
        due = dealer.ask(f"w{user % 3}", 0.0)
        if due:
            running = [(rng.uniform(1, 9), due[0])]
    spans: dict[str | None, list[float]] = {}
    made: Counter[str | None] = Counter()
    most: Counter[str | None] = Counter()
    while running:
        running.sort(key=lambda pair: pair[0])
        now, grant = running.pop(0)
        mode = grant.iteration.mode
        made[mode] += 1
        spans.setdefault(mode, [now, now])[1] = now
        for one in dealer.over(grant.worker, grant.iteration, now) + dealer.ask(grant.worker, now):
            spans.setdefault(one.iteration.mode, [now, now])
            running.append((now + rng.uniform(1, 9), one))
        most[mode] = max(most[mode], dealer.under_way)
    assert dealer.all_over
    assert list(spans) == ["text", "audio", "turn_taking", "interruption", "throughput"]
    assert [made[mode] for mode in list(spans)[:4]] == [3, 3, 3, 3]
    assert [most[mode] for mode in list(spans)[:3]] == [1, 1, 1]
    assert most["throughput"] == 4
    assert made["throughput"] > 20
    ends = list(spans.values())
    assert all(later[0] >= earlier[1] for earlier, later in itertools.pairwise(ends))
    assert 50.0 <= ends[-1][1] - ends[-1][0] < 50.0 + 9.0

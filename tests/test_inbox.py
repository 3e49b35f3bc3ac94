"""What came is kept as it came, however much there is."""

import random

import pytest

from workers.clients.inbox import Arrival, Inbox


@pytest.mark.parametrize("most", [1, 700, 9_000, 70_000])
def test_all_comes_out_as_it_went_in(most: int) -> None:
    rng = random.Random(most)
    inbox = Inbox()
    for _ in range(5):
        assert not inbox
        put = [(rng.randbytes(rng.randint(1, most)), 100.0 + k, 99.5 + k) for k in range(40)]
        for data, at, empty_at in put:
            inbox.add(data, at, empty_at)
        assert inbox
        assert [(data, *arrival) for data, arrival in inbox.reads()] == put
        inbox.empty()
        assert list(inbox.reads()) == []


def test_room_for_much_is_given_back() -> None:
    inbox = Inbox()
    usual = len(inbox.data)
    inbox.add(bytes(5 << 20), 1.0, 1.0)
    assert [(len(data), arrival) for data, arrival in inbox.reads()] == [(5 << 20, Arrival(1.0, 1.0))]
    inbox.empty()
    assert len(inbox.data) == usual


def test_what_is_taken_out_is_in_it_no_more() -> None:
    inbox = Inbox()
    for k in range(4):
        inbox.add(bytes([k]) * (k + 1), 10.0 + k, 9.5 + k)
    data, sizes, instants = inbox.take(1)
    assert (data, list(sizes)) == (b"\1\1\2\2\2\3\3\3\3", [2, 3, 4])
    assert list(instants) == [11.0, 10.5, 12.0, 11.5, 13.0, 12.5]
    inbox.add(b"new", 20.0, 19.0)
    inbox.extend(b"er")
    assert list(inbox.reads()) == [(b"\0", Arrival(10.0, 9.5)), (b"newer", Arrival(20.0, 19.0))]

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

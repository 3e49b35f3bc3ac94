"""What came for a call is heard once, in order, whatever goes wrong in the middle."""

from array import array
from collections.abc import Sequence
from typing import Any

import pytest

from tests.test_websocket import served
from workers.audio.gate import QUIET
from workers.calling import Batch, Calling
from workers.clients.inbox import Arrival, Inbox
from workers.clients.line import Line
from workers.clients.link import Link
from workers.clients.voice_agent import Pipecat, _Frame
from workers.clients.websocket import BINARY, Frames
from workers.events import Event, Interruption
from workers.failures import TurnFailed

CHUNK = b"\x01\x02" * 320


class Caller:
    """A call without a socket, a hearing that only writes down what it is given."""

    def __init__(self) -> None:
        line = Line.__new__(Line)
        line._frames, line.came, line.gone = Frames(), Inbox(), None
        line._link = Link.__new__(Link)
        line._link.inbox = line.came
        line._link._tls = None
        self.line, self.codec, self.hearing = line, Pipecat("s"), self
        self.said: list[Any] = []
        self.broken = False

    def hear(self, pcm: bytes, rate: int, instants: "array[float]", loud: Sequence[tuple[int, int]]) -> None:
        assert list(loud) == [QUIET] * (len(instants) // 2)
        self.said.append((pcm, list(instants)))

    def note(self, event: Event, arrival: Arrival) -> None:
        if self.broken:
            raise RuntimeError("a bug of ours")
        self.said.append(event)

    def failed(self, error: Exception) -> None:
        self.said.append(error)

    def lost(self) -> None:
        self.said.append("lost")


@pytest.fixture
def calling() -> Calling:
    made = Calling.__new__(Calling)
    made._batch = Batch(1000)
    return made


def chunk() -> bytes:
    message = _Frame()
    message.audio.audio, message.audio.sample_rate, message.audio.num_channels = CHUNK, 16000, 1
    return served(BINARY, message.SerializeToString())


def interruption() -> bytes:
    message = _Frame()
    message.interruption.id = 1
    return served(BINARY, message.SerializeToString())


def test_events_are_noted_between_the_chunks_they_came_between(calling: Calling) -> None:
    caller = Caller()
    for k, data in enumerate([chunk(), chunk(), interruption(), chunk() + interruption()]):
        caller.line.came.add(data, 10.0 + k, 9.0 + k)
    calling._hear([caller])  # type: ignore[list-item]
    before, first, after, second = caller.said
    assert (before, after) == ((CHUNK * 2, [10.0, 9.0, 11.0, 10.0]), (CHUNK, [13.0, 12.0]))
    assert first == second == Interruption()


def test_a_call_that_is_gone_and_has_nothing_left_is_only_lost(calling: Calling) -> None:
    caller = Caller()
    for k in range(3):
        caller.line.came.add(chunk(), 10.0 + k, 10.0 + k)
    calling._hear([caller])  # type: ignore[list-item]
    caller.line.gone = TurnFailed("disconnected", "ws_closed_1006", "gone")
    caller.said.clear()
    calling._hear([caller])  # type: ignore[list-item]
    assert caller.said == ["lost"]


def test_what_a_bug_of_ours_interrupted_is_not_heard_again(calling: Calling) -> None:
    caller, other = Caller(), Caller()
    caller.broken = True
    caller.line.came.add(chunk() + interruption() + chunk(), 10.0, 9.0)
    other.line.came.add(chunk(), 11.0, 11.0)
    for _ in range(3):
        calling._hear([caller, other])  # type: ignore[list-item]
    heard, error = caller.said
    assert heard == (CHUNK, [10.0, 9.0])
    assert isinstance(error, RuntimeError)
    assert not caller.line.came
    assert other.said == [(CHUNK, [11.0, 11.0])]

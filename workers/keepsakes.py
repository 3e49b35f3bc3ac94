"""Hear your p99: keep the audio of the worst turns and of a few random ones. Knows nothing of files or messages.

Two tracks on the playout timeline, from the user's first sample on: user left, agent right. Bounded: no more than
`_OF_EACH` turns of each kind a worker, none longer than `_LONGEST_S`.
"""

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from workers.audio.containers import Samples
from workers.audio.pieces import Piece
from workers.clients.microphone import Spoken
from workers.repertoire import Query
from workers.samples import measure_call
from workers.samples.measure_call import CallTurn

_OF_EACH = 3
_LONGEST_S = 60.0


class Keepsake(NamedTuple):
    """A turn's audio: what the user said (from `began_at` on) and the agent's pieces at playout."""

    score: float
    name: str
    title: str
    query: Query
    began_at: float
    pieces: list[Piece]
    rate: int


class Keepsakes:
    """The worst by floor transfer offset, the worst by stalled time, and random ones (a reservoir)."""

    def __init__(self, worker: str, seed: str) -> None:
        self._worker, self._rng = worker, random.Random(seed)
        self._slowest: list[Keepsake] = []
        self._most_stalled: list[Keepsake] = []
        self._random: list[Keepsake] = []
        self._offered = 0

    def offer(self, turn: CallTurn, query: Query, spoken: Spoken, pieces: list[Piece]) -> None:
        """A turn of a session that was chosen beforehand is over."""
        transfer_s = measure_call.floor_transfer_offset_s(turn)
        if transfer_s is None or not pieces:
            return
        stalled_s = measure_call.stalled_s(turn)
        place = f"{turn.session.rpartition(':')[2]}-{turn.number}"
        title = f"{turn.request_id} {query.name} floor_transfer_offset_s={transfer_s:.3f} stalled_s={stalled_s:.3f}"
        inside = [piece for piece in pieces if spoken.began_at <= piece.play_at < spoken.began_at + _LONGEST_S]

        def keepsake(score: float, why: str) -> Keepsake:
            name = f"{why}-{self._worker}-{place}.flac"
            return Keepsake(score, name, title, query, spoken.began_at, inside, turn.sample_rate)

        _keep_worst(self._slowest, keepsake(transfer_s, f"slow-{transfer_s:.3f}s"))
        if stalled_s >= measure_call.SHORTEST_STALL_S:
            _keep_worst(self._most_stalled, keepsake(stalled_s, f"stalled-{stalled_s:.3f}s"))
        self._offered += 1
        if len(self._random) < _OF_EACH:
            self._random.append(keepsake(0.0, "random"))
        elif (place_in := self._rng.randrange(self._offered)) < _OF_EACH:
            self._random[place_in] = keepsake(0.0, "random")

    def all(self) -> list[Keepsake]:
        """What is kept, the worst first."""
        return [*self._slowest, *self._most_stalled, *self._random]


def _keep_worst(kept: list[Keepsake], one: Keepsake) -> None:
    kept.append(one)
    kept.sort(key=lambda other: -other.score)
    del kept[_OF_EACH:]


def tracks(one: Keepsake) -> tuple[Samples, int, Samples, int]:
    """User's samples and rate, agent's samples and rate, both from the user's first sample on."""
    ends_at = max((piece.play_at + len(piece.pcm) / (2 * one.rate) for piece in one.pieces), default=one.began_at)
    agent = np.zeros(round((ends_at - one.began_at) * one.rate) + 1, np.int16)
    for piece in one.pieces:
        samples = np.frombuffer(piece.pcm, np.int16)
        begin = round((piece.play_at - one.began_at) * one.rate)
        fitting = min(len(samples), len(agent) - begin)
        agent[begin : begin + fitting] = samples[:fitting]
    return one.query.samples, one.query.rate, agent, one.rate


def encode(
    one: Keepsake, ask: Callable[[str, list[Any], Callable[[Any], None]], None], then: Callable[[Any], None]
) -> None:
    """Have the ear make a FLAC file of it; `then` gets its bytes, or an exception."""
    user, user_rate, agent, agent_rate = tracks(one)
    ask("flac", [user.tobytes(), user_rate, agent.tobytes(), agent_rate, one.title], then)

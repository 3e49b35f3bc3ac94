"""Audio that is kept: the worst and a few others, no more, each sample where it was heard."""

import io
import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from tests.test_measure_call import stretch, turn, utterance
from workers.audio import ear_child
from workers.audio.ear import EarLost
from workers.audio.pieces import Piece
from workers.keepsakes import Keepsake, Keepsakes, encode, tracks
from workers.repertoire import Query
from workers.samples.measure_call import CallTurn

RATE = 16_000
Samples = npt.NDArray[np.int16]


def ramp(count: int, first: int = 1) -> Samples:
    return (np.arange(first, first + count) % 30_000).astype(np.int16)


def query(name: str = "order") -> Query:
    return Query(name, [], 0.0, 1.0, 0, ramp(RATE), RATE)


def spoken(began_at: float = 101.0) -> Any:
    return SimpleNamespace(began_at=began_at)


def piece(samples: Samples, play_at: float) -> Piece:
    return Piece(samples.tobytes(), play_at, play_at, 0.0, 0)


def kept_turn(number: int, transfer_s: float, stalled_s: float = 0.0) -> CallTurn:
    made = turn(stretch(103.5 + transfer_s), number=number, request_id=f"r.{number}")
    made.utterances = [utterance(0.0, stalled_s, stalled_s)]
    return made


def offered(*turns: CallTurn, seed: str = "1") -> Keepsakes:
    keepsakes = Keepsakes("host_1234", seed)
    for one in turns:
        keepsakes.offer(one, query(), spoken(), [piece(ramp(320), 104.0)])
    return keepsakes


def starting(keepsakes: Keepsakes, why: str) -> list[str]:
    return [one.name for one in keepsakes.all() if one.name.startswith(why)]


def test_the_slowest_are_kept_the_worst_first() -> None:
    gaps = [0.5, 3.0, 0.25, 2.0, 1.0, 2.5, 0.75]
    names = starting(offered(*[kept_turn(k, gap) for k, gap in enumerate(gaps)]), "slow")
    assert [name.split("-")[1] for name in names] == ["3.000s", "2.500s", "2.000s"]


def test_the_most_stalled_are_kept_and_none_that_did_not_stall() -> None:
    turns = [kept_turn(k, 0.5, stalled) for k, stalled in enumerate((0.0, 0.3, 0.01, 0.1))]
    names = starting(offered(*turns), "stalled")
    assert [name.split("-")[1] for name in names] == ["0.300s", "0.100s"]


def test_no_more_than_a_few_of_each_are_kept() -> None:
    rng = random.Random(1)
    keepsakes = offered(*[kept_turn(k, rng.random(), rng.random()) for k in range(300)])
    kept = keepsakes.all()
    assert len(kept) <= 9
    assert len({one.name for one in kept}) == len(kept), "no file overwrites another"
    for why in ("slow", "stalled", "random"):
        assert len(starting(keepsakes, why)) == 3


def test_each_turn_is_as_likely_to_be_one_of_the_random_ones() -> None:
    counts = [0] * 12
    turns = [kept_turn(k, 0.5) for k in range(12)]
    for seed in range(400):
        for name in starting(offered(*turns, seed=str(seed)), "random"):
            counts[int(name.removesuffix(".flac").rpartition("-")[2])] += 1
    assert sum(counts) == 1_200
    assert all(60 < count < 140 for count in counts), counts


def test_the_same_seed_keeps_the_same_turns() -> None:
    turns = [kept_turn(k, 0.5) for k in range(50)]
    names = [starting(offered(*turns, seed="s"), "random") for _ in range(2)]
    assert names[0] == names[1]


def test_a_turn_without_an_answer_is_not_kept() -> None:
    keepsakes = Keepsakes("w", "1")
    keepsakes.offer(turn(), query(), spoken(), [piece(ramp(320), 104.0)])
    keepsakes.offer(kept_turn(1, 0.5), query(), spoken(), [])
    assert keepsakes.all() == []


def test_a_keepsake_names_its_turn() -> None:
    (one, *_) = offered(kept_turn(4, -0.25)).all()
    assert "r.4" in one.title
    assert "floor_transfer_offset_s=-0.250" in one.title
    assert one.name.endswith("-1-4.flac"), "session and turn"
    assert "host_1234" in one.name


def test_what_came_before_the_turn_or_long_after_it_is_not_kept() -> None:
    keepsakes = Keepsakes("w", "1")
    pieces = [piece(ramp(320), at) for at in (100.0, 101.0, 160.9, 161.1, 4_000.0)]
    keepsakes.offer(kept_turn(1, 0.5), query(), spoken(101.0), pieces)
    (one, *_) = keepsakes.all()
    assert [kept.play_at for kept in one.pieces] == [101.0, 160.9]


def keepsake(pieces: list[Piece], rate: int = RATE, began_at: float = 100.0) -> Keepsake:
    return Keepsake(0.0, "slow-1.flac", "r.1 order", query(), began_at, pieces, rate)


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 48_000])
def test_tracks_are_placed_to_the_sample(rate: int) -> None:
    first, second = ramp(960, 1), ramp(480, 5_000)
    at = (100.0 + 1_003 / rate, 100.0 + 7_777 / rate)
    user, user_rate, agent, agent_rate = tracks(keepsake([piece(first, at[0]), piece(second, at[1])], rate))
    assert (user_rate, agent_rate) == (RATE, rate)
    np.testing.assert_array_equal(user, ramp(RATE))
    expected = np.zeros(len(agent), np.int16)
    expected[1_003 : 1_003 + 960] = first
    expected[7_777 : 7_777 + 480] = second
    np.testing.assert_array_equal(agent, expected)
    assert 0 <= len(agent) - (7_777 + 480) <= 1


def test_pieces_that_follow_each_other_leave_no_hole() -> None:
    """Instants are sums of floats: no sample may fall between two pieces, over a minute of them."""
    samples = ramp(3_000 * 320) | 1  # no zeros
    pieces, at = [], 101.0 + 1 / 3
    for k in range(3_000):
        pieces.append(piece(samples[k * 320 : k * 320 + 320], at))
        at += 0.02
    _, _, agent, _ = tracks(keepsake(pieces, began_at=101.0))
    begin = round(RATE / 3)
    np.testing.assert_array_equal(agent[begin : begin + len(samples)], samples)


def test_no_pieces_are_a_silent_track() -> None:
    _, _, agent, _ = tracks(keepsake([]))
    assert not agent.any()


def test_a_file_with_the_user_left_and_the_agent_right() -> None:
    found: list[Any] = []

    def ask(verb: str, arguments: list[Any], then: Callable[[Any], None]) -> None:
        wrong, result = ear_child.answer(verb, arguments)
        assert wrong is None
        then(result)

    encode(keepsake([piece(ramp(4_000, 9_000), 100.5)]), ask, found.append)
    with soundfile.SoundFile(io.BytesIO(found[0])) as file:
        assert (file.format, file.channels, file.samplerate, file.title) == ("FLAC", 2, RATE, "r.1 order")
        both = file.read(dtype="int16")
    np.testing.assert_array_equal(both[:RATE, 0], ramp(RATE))
    np.testing.assert_array_equal(both[8_000:12_000, 1], ramp(4_000, 9_000))
    assert not both[:8_000, 1].any()


def test_without_an_ear_there_is_no_file() -> None:
    found: list[Any] = []
    encode(keepsake([]), lambda _verb, _arguments, then: then(EarLost("dead")), found.append)
    assert isinstance(found[0], EarLost)

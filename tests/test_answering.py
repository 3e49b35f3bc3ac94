"""Which speech answers which turn: tables of what was heard and when."""

import pytest

from workers.answering import answer_of, mark_early, quiet_at
from workers.audio.hearing import Hearing
from workers.audio.pieces import Piece
from workers.audio.stretches import Stretch
from workers.samples.measure_call import CallTurn

ONSET, OFFSET = 100.0, 102.0


def turn(*, barge_in: bool = False) -> CallTurn:
    made = CallTurn("s", 0, "voice_agent", "pipecat", "r", "q", 0, "", "measured", ONSET)
    made.user_onset_at, made.user_offset_at, made.barge_in = ONSET, OFFSET, barge_in
    return made


def hearing(*heard: tuple[float, float, str | None]) -> Hearing:
    """heard: when each stretch is audible, when it came, and who found its onset."""
    made = Hearing(328, lambda *_: None, lambda *_: None, lambda: None)
    for audible_at, arrived_at, by in heard:
        stretch = Stretch(Piece(b"", audible_at, arrived_at, 0.0, 0), audible_at)
        stretch.by, stretch.onset_at = by, audible_at
        made.stretches.append(stretch)
    return made


@pytest.mark.parametrize(
    ("heard", "barge_in", "owed", "expected"),
    [
        ([], False, False, None),
        ([(102.6, 102.6, "ear")], False, False, 0),
        ([(101.0, 101.0, "ear")], False, False, 0),  # early
        ([(99.0, 99.0, "ear")], False, False, None),  # there before the user's first word
        ([(100.5, 99.9, "ear")], False, False, None),  # it came before, though it played later
        ([(101.0, 101.0, "ear")], False, True, None),  # the answer that was owed
        ([(101.0, 101.0, "ear")], True, False, None),  # what was interrupted goes on
        ([(101.0, 101.0, "ear"), (102.6, 102.6, "gate")], True, False, 1),
        ([(102.1, 102.1, "ear")], True, True, 0),
        ([(102.6, 102.6, None)], False, False, None),  # the ear is at work
        ([(102.6, 102.6, None), (104.0, 104.0, "ear")], False, False, None),  # in the order in which they came
    ],
)
def test_whose_answer_it_is(
    heard: list[tuple[float, float, str | None]], barge_in: bool, owed: bool, expected: int | None
) -> None:
    listening = hearing(*heard)
    found = answer_of(turn(barge_in=barge_in), listening, owed)
    assert found is (None if expected is None else listening.stretches[expected])


@pytest.mark.parametrize(("barge_in", "owed"), [(True, False), (False, True)])
def test_what_begins_after_the_server_threw_its_audio_away_is_new(barge_in: bool, owed: bool) -> None:
    listening = hearing((100.4, 100.4, "ear"), (101.0, 101.0, "ear"))
    asked = turn(barge_in=barge_in)
    assert answer_of(asked, listening, owed) is None
    asked.interrupted_at = 100.6
    assert answer_of(asked, listening, owed) is listening.stretches[1]


@pytest.mark.parametrize(
    ("last_loud_at", "hint_at", "ends_at"),
    [
        (105.0, 0.0, 106.0),
        (105.0, 105.1, 105.3),
        (105.0, 104.8, 105.3),  # it said so a little before the last of it had played
        (105.0, 104.0, 106.0),  # that was about something before
        (101.0, 0.0, 105.0),  # over before the user's last word: a false start
        (101.0, 101.2, 105.0),  # whatever the server says of it
        (102.1, 101.9, 103.1),  # it said so before the user's last word
    ],
)
def test_when_an_answer_is_over(last_loud_at: float, hint_at: float, ends_at: float) -> None:
    assert quiet_at(last_loud_at, OFFSET, hint_at, 1.0) == pytest.approx(ends_at)


@pytest.mark.parametrize(("onset_at", "outcome"), [(101.999, "early"), (102.0, "answered"), (102.5, "answered")])
def test_an_answer_before_the_last_word_is_early(onset_at: float, outcome: str) -> None:
    asked = turn()
    mark_early(asked, hearing((onset_at, onset_at, "ear")).stretches[0])
    assert asked.outcome == outcome

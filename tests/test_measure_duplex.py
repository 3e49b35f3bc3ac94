"""Every derived column of a full-duplex turn, from instants small enough to subtract in one's head."""

from array import array
from typing import Any

import msgpack
import pytest

from workers.audio.opus import LOOK_AHEAD, RATE
from workers.audio.pieces import Piece
from workers.audio.stretches import Stretch
from workers.samples.measure_duplex import DuplexTurn, duplex_row
from workers.samples.schema import TABLES, names

PYTHON_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "floats": list}


def spoke(onset_at: float, until: float, by: str | None = "ear") -> Stretch:
    """The agent's speech; its first sample is number 1,000,000 of the stream."""
    made = Stretch(Piece(b"\0\0", onset_at, onset_at, 0.0, 0), onset_at)
    made.onset_at, made.onset_arrival_at, made.by, made.last_loud_at = onset_at, onset_at, by, until
    made.first_chunk_at, made.onset_position = onset_at, 1_000_000
    return made


def turn(*speech: Stretch, answer: int | None = -1, **facts: Any) -> DuplexTurn:
    """The user speaks from 101.0 to 103.5, in a stream that began at 64.0."""
    made = DuplexTurn("w:1", 7, "personaplex", "personaplex", "r.1", "input_service", 0, "NATF0.pt", "measured", 100.0)
    made.ended_at, made.stream_began_at, made.sample_rate, made.chunks, made.audio_s = 110.0, 64.0, RATE, 9, 0.72
    made.user_onset_at, made.user_offset_at, made.sent_at = 101.0, 103.5, 101.0
    made.token_at = array("d", [104.0, 104.5, 105.5])
    made.host, made.mode, made.iteration, made.lag_s = "h:1", "audio", 3, 0.25
    made.stretches = list(speech)
    if speech and answer is not None:
        made.answer = speech[answer]
        made.agent_offset_at = speech[answer].last_loud_at
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def columns(made: DuplexTurn, keep_chunks: bool = False) -> dict[str, Any]:
    row = duplex_row(made, "run", "worker", "demo", keep_chunks)
    return dict(zip(names("turns"), [*row, *[None] * (len(names("turns")) - len(row))], strict=True))


def test_text_is_timed_from_the_users_offset() -> None:
    found = columns(turn(spoke(104.0, 107.5)))
    assert (found["ttft_s"], found["itl_s"], found["tokens"]) == (0.5, 0.75, 3)
    assert (found["first_token_at"], found["last_token_at"]) == (104.0, 105.5)
    assert found["e2e_s"] == 4.0  # to the end of the answer's speech, though silence goes on
    assert found["tokens_per_s"] == 0.75


@pytest.mark.parametrize(("tokens", "ttft_s"), [([], None), ([104.25], 0.75)])
def test_fewer_than_two_pieces_have_no_time_between_them(tokens: list[float], ttft_s: float | None) -> None:
    found = columns(turn(spoke(104.0, 107.5), token_at=array("d", tokens)))
    assert (found["itl_s"], found["ttft_s"]) == (None, ttft_s)
    assert found["tokens_per_s"] == (0.25 if tokens else None)


def test_the_transfer_is_told_by_stream_position_too() -> None:
    """The agent's sample 1,000,000, less the encoder's look-ahead, against the user's at 39.5 s of theirs."""
    found = columns(turn(spoke(104.0, 107.5)))
    assert found["user_offset_position_s"] == 39.5
    position_s = (1_000_000 - LOOK_AHEAD) / RATE
    assert found["agent_onset_position_s"] == pytest.approx(position_s)
    assert found["stream_transfer_offset_s"] == pytest.approx(position_s - 39.5)
    assert found["floor_transfer_offset_s"] == 0.5  # as heard
    assert found["lag_s"] == 0.25


@pytest.mark.parametrize(
    ("onset_at", "until", "takes_over"),
    [(104.0, 105.0, True), (104.0, 104.99, False), (102.0, 104.4, False), (102.0, 104.5, True)],
)
def test_a_second_of_speech_after_the_users_takes_the_floor(onset_at: float, until: float, takes_over: bool) -> None:
    assert columns(turn(spoke(onset_at, until)))["takeover"] is takes_over


def test_short_speech_within_the_users_is_a_backchannel() -> None:
    found = columns(turn(spoke(101.5, 101.9), spoke(102.0, 103.1), spoke(103.0, 103.3), spoke(104.0, 106.0)))
    assert found["backchannels"] == 2
    assert found["takeover"] is True


def test_a_takeover_in_a_pause_of_the_users_is_told() -> None:
    pauses = ((101.8, 102.4),)
    assert columns(turn(spoke(104.0, 106.0)))["pause_takeover"] is None
    assert columns(turn(spoke(104.0, 106.0), pauses=pauses))["pause_takeover"] is False
    assert columns(turn(spoke(102.0, 102.3), spoke(104.0, 106.0), pauses=pauses))["pause_takeover"] is False
    assert columns(turn(spoke(102.0, 103.0), spoke(104.0, 106.0), pauses=pauses))["pause_takeover"] is True
    assert columns(turn(spoke(102.5, 103.6), pauses=pauses))["pause_takeover"] is False  # they had gone on
    assert columns(turn(spoke(104.0, 106.0), pauses=pauses))["user_pauses"] == 1


def test_a_turn_that_nobody_heard_has_its_text_alone() -> None:
    found = columns(turn(answer=None, decoded=False))
    assert (found["ttft_s"], found["itl_s"], found["tokens"]) == (0.5, 0.75, 3)
    for name in (
        *("e2e_s", "tokens_per_s"),
        *("floor_transfer_offset_s", "takeover", "backchannels", "pause_takeover", "agent_onset_at"),
    ):
        assert found[name] is None, name
    assert found["decoded"] is False


def test_a_connection_that_failed_has_no_figure() -> None:
    made = turn(answer=None, user_onset_at=0.0, user_offset_at=0.0, token_at=array("d"), lag_s=None)
    made.fail("timed_out", "handshake_timeout", "no handshake")
    found = columns(made)
    assert (found["host"], found["mode"], found["iteration"]) == ("h:1", "audio", 3)
    assert not [name for name in names("turns") if name.endswith("_s") and found[name] not in (None, 0.0, 0.72)]


def test_the_row_is_what_the_schema_says() -> None:
    found = columns(turn(spoke(104.0, 107.5), pauses=((101.8, 102.4),)), keep_chunks=True)
    for column in TABLES["turns"]:
        assert found[column.name] is None or type(found[column.name]) is PYTHON_TYPES[column.kind], column.name
    of_duplex = names("turns")[names("turns").index("host") :]
    assert [name for name in of_duplex if found[name] is None] == []
    row = duplex_row(turn(spoke(104.0, 107.5)), "run", "worker", "demo", True)
    assert msgpack.unpackb(msgpack.packb(row)) == row


def test_an_answer_that_began_early_has_no_time_to_its_first_piece() -> None:
    """Its text began before the request was complete: what comes first after that says nothing."""
    found = columns(turn(spoke(102.5, 107.5), outcome="early"))
    assert (found["ttft_s"], found["itl_s"], found["e2e_s"]) == (None, 0.75, 4.0)

"""Every derived column of a conversation's turn, from instants small enough to subtract in one's head."""

from array import array
from typing import Any

import msgpack
import pytest

from workers.audio.pieces import Piece
from workers.audio.stretches import Stretch, Utterance
from workers.samples.measure_call import (
    SHORTEST_STALL_S,
    CallTurn,
    call_row,
    floor_transfer_offset_s,
    stalled_s,
    time_to_silence_s,
    ttfa_s,
    ttfc_s,
)
from workers.samples.schema import PREBUFFERS_MS, TABLES, names

PYTHON_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "floats": list}


def stretch(onset_at: float = 104.25, **facts: Any) -> Stretch:
    """First chunk at 104.0, audible from 104.5 on (the voice began softly before)."""
    made = Stretch(Piece(b"\0\0", 104.0, 104.0, 0.0, 0), 104.5)
    made.onset_at, made.onset_width_s, made.onset_arrival_at, made.by = onset_at, 0.0002, 104.125, "ear"
    made.first_chunk_at, made.first_chunk_width_s, made.audible_width_s = 104.0, 0.0001, 0.0003
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def utterance(*late_s: float, chunk_s: float = 0.125, at: float = 104.0) -> Utterance:
    """Chunks so many seconds late each."""
    made = Utterance(at, chunk_s)
    made.at = array("d", [at + k * chunk_s + late for k, late in enumerate(late_s)])
    return made


def turn(answer: Stretch | None = None, **facts: Any) -> CallTurn:
    """The user speaks from 101.0 to 103.5; the turn was due at 100.0 and is over at 110.0."""
    made = CallTurn("w:1", 7, "voice_agent", "pipecat", "r.1", "query_1", 0, "", "measured", 100.0)
    made.clock, made.sent_at, made.ready_at, made.ended_at, made.stream_id = "kernel", 100.5, 99.0, 110.0, "s-1"
    made.user_onset_at, made.user_offset_at, made.user_sent_at, made.send_late_s = 101.0, 103.5, 103.625, 0.001
    if answer is not None:
        made.answer = answer
        made.agent_offset_at, made.first_token_at, made.last_chunk_at = 107.25, 103.75, 107.5
        made.audio_s, made.sample_rate, made.chunks, made.largest_gap_s, made.audio_bytes = (
            3.5,
            16_000,
            28,
            0.25,
            112_000,
        )
        made.utterances = [utterance(*[0.0] * 28)]
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def columns(made: CallTurn, keep_chunks: bool = False) -> dict[str, Any]:
    row = call_row(made, "run", "worker", "demo", keep_chunks)
    known = names("turns")
    assert len(row) <= len(known)
    assert row[-1] is not None, "trailing nulls are left out"
    return dict(zip(known, [*row, *[None] * (len(known) - len(row))], strict=True))


def test_every_figure_is_the_difference_of_its_two_instants() -> None:
    found = columns(turn(stretch()))
    instants = {
        "intended_at": 100.0, "sent_at": 100.5, "ready_at": 99.0, "ended_at": 110.0, "user_onset_at": 101.0,
        "user_offset_at": 103.5, "user_sent_at": 103.625, "first_chunk_at": 104.0, "first_audio_at": 104.5,
        "first_token_at": 103.75, "last_chunk_at": 107.5, "agent_onset_at": 104.25, "agent_offset_at": 107.25,
        "agent_onset_arrival_at": 104.125,
    }  # fmt: skip
    assert {name: found[name] for name in instants} == instants
    for figure, later, earlier in (
        ("ttfc_s", "first_chunk_at", "user_offset_at"),
        ("ttfa_s", "first_audio_at", "user_offset_at"),
        ("e2e_s", "last_chunk_at", "user_offset_at"),
        ("floor_transfer_offset_s", "agent_onset_at", "user_offset_at"),
        ("agent_speech_s", "agent_offset_at", "agent_onset_at"),
    ):
        assert found[figure] == found[later] - found[earlier], figure
    assert (found["ttfc_s"], found["ttfa_s"], found["e2e_s"]) == (0.5, 1.0, 4.0)
    assert (found["floor_transfer_offset_s"], found["agent_speech_s"], found["overlap_s"]) == (0.75, 3.0, 0.0)
    assert found["rtf"] is None
    assert found["status"] is None
    assert found["onset_by"] == "ear"
    assert (found["stream_id"], found["send_late_max_s"], found["utterances"]) == ("s-1", 0.001, 1)


def test_the_row_is_what_the_schema_says() -> None:
    """Every column by its name, of its type, and what msgpack can carry."""
    made = turn(
        stretch(), barge_in=True, barge_in_after_s=1.0, silent_at=102.0, yielded=True, agent_stopped_hint_at=107.5
    )
    made.fail("answered", "rejected", "no")
    found = columns(made, keep_chunks=True)
    for column in TABLES["turns"]:
        value = found[column.name]
        assert value is None or type(value) is PYTHON_TYPES[column.kind], column.name
    never = {"text_chars", "voice", "status", "rtf", "level"}  # it is the run that knows the level
    never |= set(names("turns")[names("turns").index("agent_stopped_hint_at") + 1 :])  # of full-duplex turns
    assert {name for name, value in found.items() if value is None} == never
    row = call_row(made, "run", "worker", "demo", True)
    assert msgpack.unpackb(msgpack.packb(row)) == row


def test_an_early_answer_overlaps() -> None:
    found = columns(turn(stretch(102.25), outcome="early"))
    assert found["floor_transfer_offset_s"] == -1.25
    assert found["overlap_s"] == 1.25
    assert turn(stretch(102.25), outcome="early").ok


def test_a_turn_without_an_answer() -> None:
    made = turn()
    made.fail("timed_out", "no_answer_in_time", "nothing\nwas \x1b[31msaid")
    found = columns(made)
    assert (found["outcome"], found["error_kind"]) == ("timed_out", "no_answer_in_time")
    assert found["error"].isprintable()
    for name in (
        "ttfc_s", "ttfa_s", "e2e_s", "floor_transfer_offset_s", "agent_onset_at", "agent_onset_width_s", "onset_by",
        "agent_speech_s", "overlap_s", "stall_s_0ms", "min_prebuffer_s", "audio_s", "sample_rate", "largest_gap_s",
    ):  # fmt: skip
        assert found[name] is None, name
    assert found["user_offset_at"] == 103.5, "how long was waited can still be told"
    assert found["flagged"] is False
    for figure in (floor_transfer_offset_s, ttfc_s, ttfa_s, time_to_silence_s):
        assert figure(made) is None


def test_a_turn_that_never_began() -> None:
    """The connection was refused: no instant but the intended one and the end."""
    made = CallTurn("w:1", 0, "voice_agent", "pipecat", "r.1", "connect", 0, "", "warm_up", 100.0)
    made.fail("refused", "http_403", "no")
    made.ended_at = 101.0
    found = columns(made)
    for name in ("sent_at", "ready_at", "user_onset_at", "user_offset_at", "user_sent_at", "send_late_max_s"):
        assert found[name] is None, name
    assert (found["chunks"], found["barge_in"], found["utterances"]) == (0, False, 0)


@pytest.mark.parametrize("which", ["first_chunk_width_s", "audible_width_s", "onset_width_s"])
@pytest.mark.parametrize(("width_s", "flagged"), [(0.0009, False), (0.0011, True)])
def test_an_instant_that_is_not_well_known_flags_the_row(which: str, width_s: float, flagged: bool) -> None:
    assert columns(turn(stretch(**{which: width_s})))["flagged"] is flagged


def test_one_stall_of_300_ms_at_each_prebuffer() -> None:
    found = columns(turn(stretch(), utterances=[utterance(*[0.0] * 10, *[0.3] * 10)]))
    for ms, left_s in zip(PREBUFFERS_MS, (0.3, 0.28, 0.24, 0.2, 0.1), strict=True):
        assert found[f"stall_count_{ms}ms"] == 1
        assert found[f"stall_s_{ms}ms"] == pytest.approx(left_s)
        assert found[f"stall_longest_s_{ms}ms"] == pytest.approx(left_s)
    assert found["min_prebuffer_s"] == pytest.approx(0.3)


def test_each_utterance_begins_anew() -> None:
    """The second begins two seconds later, which is no stall; its own of 100 ms is."""
    first, second = utterance(0.0, 0.05, 0.05), utterance(0.0, 0.0, 0.1, at=110.0)
    found = columns(turn(stretch(), utterances=[first, second, utterance(0.0, 0.0, at=120.0)]))
    assert found["utterances"] == 3
    assert found["stall_count_0ms"] == 2
    assert found["stall_s_0ms"] == pytest.approx(0.15)
    assert found["stall_longest_s_0ms"] == pytest.approx(0.1)
    assert found["min_prebuffer_s"] == pytest.approx(0.1), "of the worst one"
    assert stalled_s(turn(stretch(), utterances=[first, second])) == pytest.approx(0.15)


@pytest.mark.parametrize(("wait_s", "count"), [(0.019, 0), (0.0201, 1)])
def test_shorter_waits_than_20_ms_are_no_stall(wait_s: float, count: int) -> None:
    assert SHORTEST_STALL_S == 0.02
    found = columns(turn(stretch(), utterances=[utterance(0.0, wait_s, wait_s)]))
    assert found["stall_count_0ms"] == count
    assert found["stall_s_0ms"] == pytest.approx(wait_s)


def test_an_answer_without_a_stall_says_so_with_zeros() -> None:
    for utterances in ([utterance(0.0, 0.0)], []):
        found = columns(turn(stretch(), utterances=utterances))
        assert [found[f"stall_{what}_0ms"] for what in ("count", "s", "longest_s")] == [0, 0.0, 0.0]
        assert found["min_prebuffer_s"] == 0.0


def test_chunks_are_kept_where_they_are_wanted() -> None:
    made = turn(stretch(), utterances=[utterance(0.0, 0.25), utterance(0.0, at=110.0)])
    found = columns(made, keep_chunks=True)
    assert found["chunk_at"] == [104.0, 104.375, 110.0]
    assert found["chunk_media_s"] == [0.0, 0.125, 0.0]
    assert columns(made)["chunk_at"] is None


def test_a_barge_in_that_was_heeded() -> None:
    made = turn(stretch(), barge_in=True, barge_in_after_s=1.5, silent_at=101.375, yielded=True, stale_s=0.375)
    found = columns(made)
    assert (found["barge_in"], found["barge_in_after_s"], found["yielded"]) == (True, 1.5, True)
    assert found["time_to_silence_s"] == 0.375
    assert found["stale_s"] == 0.375


def test_a_barge_in_that_was_not_heeded_has_no_time_to_silence() -> None:
    found = columns(turn(stretch(), barge_in=True, barge_in_after_s=1.5, silent_at=106.0, yielded=False))
    assert (found["yielded"], found["time_to_silence_s"]) == (False, None)


def test_an_agent_that_had_stopped_by_itself_took_no_time() -> None:
    assert time_to_silence_s(turn(barge_in=True, silent_at=100.75, yielded=True)) == 0.0


def test_other_turns_are_no_barge_in() -> None:
    found = columns(turn(stretch(), barge_in_after_s=3.0, false_barge_ins=2, interruptions=3))
    assert (found["barge_in"], found["barge_in_after_s"], found["yielded"]) == (False, None, None)
    assert (found["false_barge_ins"], found["interruptions"]) == (2, 3)


def test_how_late_a_turn_was_is_how_late_its_worst_chunk_was() -> None:
    assert turn().late_s == 0.001

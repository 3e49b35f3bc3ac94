"""Every derived column, from instants small enough to subtract in one's head."""

import math
from typing import Any

import msgpack
import numpy as np
import pytest

from workers.audio.track import Track
from workers.samples.measure import Turn, between, e2e_s, rtf, start_row, ttfa_s, ttfc_s, turn_row
from workers.samples.schema import OUTCOMES, PREBUFFERS_MS, TABLES, TURN_STARTS, TURNS, names

RATE = 1000
PYTHON_TYPES = {"str": str, "int": int, "float": float, "bool": bool, "floats": list}


def turn(track: Track | None = None, **facts: Any) -> Turn:
    """Due at 100.0, on the wire at 100.25, over at 103.0."""
    made = Turn("w:1", 7, "http_tts", "openai", "r.1", "short", 66, "alto", "measured", 100.0)
    made.clock, made.status, made.sent_at, made.ready_at, made.ended_at = "kernel", 200, 100.25, 99.5, 103.0
    made.audio_bytes, made.wire_bytes = 3044, 3300
    if track is not None:
        made.track = track
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def track(*chunks: tuple[float, float, int], width_s: float = 0.0) -> Track:
    """Chunks of (arrival, seconds, sample value)."""
    made = Track(1000, keep=False)
    made.sample_rate = RATE
    for at, seconds, value in chunks:
        made.hear(np.full(round(seconds * RATE), value, np.int16), at, width_s)
    return made


def columns(made: Turn, keep_chunks: bool = False) -> dict[str, Any]:
    row = turn_row(made, "run", "worker", "demo", keep_chunks)
    padded = [*row, *[None] * (len(TURNS) - len(row))]
    return dict(zip(names("turns"), padded, strict=True))


# Half a second of silence at 100.5, sound at 101.0, the last of it at 101.75: 200 ms late (it was due at 101.5 + 0.05).
WELL = ((100.5, 0.5, 0), (101.0, 0.55, 5000), (101.75, 0.45, 5000))


def test_a_good_turn() -> None:
    found = columns(turn(track(*WELL), connection_new=True))
    assert found["first_chunk_at"] == 100.5
    assert found["first_audio_at"] == 101.0
    assert found["last_chunk_at"] == 101.75
    assert found["ttfc_s"] == pytest.approx(0.5)  # from the intended start, not from the first byte sent
    assert found["ttfa_s"] == pytest.approx(1.0)
    assert found["e2e_s"] == pytest.approx(1.75)
    assert found["audio_s"] == pytest.approx(1.5)
    assert found["rtf"] == pytest.approx((101.75 - 100.25) / 1.5)
    assert found["chunks"] == 3
    assert found["largest_gap_s"] == pytest.approx(0.75)
    assert found["min_prebuffer_s"] == pytest.approx(0.2)
    for prebuffer_ms, stall_s in zip(PREBUFFERS_MS, (0.2, 0.18, 0.14, 0.1, 0.0), strict=True):
        assert found[f"stall_count_{prebuffer_ms}ms"] == (1 if stall_s else 0)
        assert found[f"stall_s_{prebuffer_ms}ms"] == pytest.approx(stall_s, abs=1e-9)
        assert found[f"stall_longest_s_{prebuffer_ms}ms"] == pytest.approx(stall_s, abs=1e-9)
    assert found["flagged"] is False
    assert found["connection_new"] is True
    assert (found["sample_rate"], found["audio_bytes"], found["wire_bytes"]) == (RATE, 3044, 3300)


def test_what_was_told_stands_in_its_own_column() -> None:
    found = columns(turn(track(*WELL)))
    told = {
        "run": "run", "worker": "worker", "session": "w:1", "turn": 7, "protocol": "http_tts", "dialect": "openai",
        "scenario": "demo", "request_id": "r.1", "text_name": "short", "text_chars": 66, "voice": "alto",
        "phase": "measured", "clock": "kernel", "outcome": "answered", "error_kind": None, "error": None, "status": 200,
        "intended_at": 100.0, "sent_at": 100.25, "ready_at": 99.5, "ended_at": 103.0,
    }  # fmt: skip
    assert {name: found[name] for name in told} == told


def test_columns_of_other_protocols_are_null() -> None:
    found = columns(turn(track(*WELL)))
    for name in (
        "first_token_at", "user_offset_at", "agent_onset_at", "agent_offset_at", "floor_transfer_offset_s"
    ):  # fmt: skip
        assert found[name] is None


def test_a_turn_that_heard_nothing() -> None:
    made = turn(sent_at=0.0, ready_at=0.0, status=None, clock=None, audio_bytes=0, wire_bytes=0)
    made.fail("refused", "connection_refused", "nothing listens on localhost:1")
    found = columns(made)
    never = (
        "sent_at", "ready_at", "status", "clock", "first_chunk_at", "first_audio_at", "last_chunk_at", "ttfc_s",
        "ttfa_s", "e2e_s", "rtf", "audio_s", "sample_rate", "first_chunk_width_s", "first_audio_width_s",
        "largest_gap_s", "min_prebuffer_s", "stall_count_0ms", "stall_s_200ms", "chunk_at", "chunk_media_s",
    )  # fmt: skip
    assert {name: found[name] for name in never} == dict.fromkeys(never)
    assert (found["outcome"], found["error_kind"], found["error"]) == (
        "refused",
        "connection_refused",
        "nothing listens on localhost:1",
    )
    assert found["ended_at"] == 103.0, "a turn that got no answer keeps its waiting time"
    assert (found["chunks"], found["flagged"]) == (0, False)


def test_a_turn_of_silence_has_a_first_chunk_and_no_first_audio() -> None:
    found = columns(turn(track((100.5, 0.5, 0), (101.0, 0.5, 0))))
    assert found["ttfc_s"] == pytest.approx(0.5)
    assert found["ttfa_s"] is None
    assert found["first_audio_at"] is None
    assert found["first_audio_width_s"] is None
    assert found["e2e_s"] == pytest.approx(1.0)


def test_one_chunk_has_no_gap_and_no_stall() -> None:
    found = columns(turn(track((100.5, 1.0, 5000))))
    assert found["largest_gap_s"] == 0.0
    assert found["min_prebuffer_s"] == 0.0
    for prebuffer_ms in PREBUFFERS_MS:
        assert found[f"stall_count_{prebuffer_ms}ms"] == 0
        assert found[f"stall_s_{prebuffer_ms}ms"] == 0.0


def test_bytes_that_never_became_audio_cost_no_row() -> None:
    """The first bytes of a compressed answer came, and not one packet: an arrival, but no chunk."""
    found = columns(turn(track((100.5, 0.0, 0))))
    assert found["ttfc_s"] == pytest.approx(0.5)
    assert (found["chunks"], found["audio_s"], found["rtf"]) == (0, 0.0, None)
    assert found["min_prebuffer_s"] is None


@pytest.mark.parametrize(
    ("chunk_width_s", "audio_width_s", "flagged"),
    [(0.0, 0.0, False), (0.001, 0.001, False), (0.0011, 0.0, True), (0.0, 0.0011, True), (0.08, 0.08, True)],
)
def test_flagged_when_an_arrival_behind_a_figure_is_wider_than_a_millisecond(
    chunk_width_s: float, audio_width_s: float, flagged: bool
) -> None:
    heard = Track(1000, keep=False)
    heard.sample_rate = RATE
    heard.hear(np.zeros(100, np.int16), 100.5, chunk_width_s)
    heard.hear(np.full(100, 5000, np.int16), 100.9, audio_width_s)
    found = columns(turn(heard))
    assert found["first_chunk_width_s"] == chunk_width_s
    assert found["first_audio_width_s"] == audio_width_s
    assert found["flagged"] is flagged


def test_a_wide_arrival_that_stands_behind_no_figure_flags_nothing() -> None:
    heard = track((100.5, 0.1, 5000))
    heard.hear(np.full(100, 5000, np.int16), 100.6, 0.5)
    assert columns(turn(heard))["flagged"] is False


def test_chunk_lists_are_kept_where_asked_for() -> None:
    assert columns(turn(track(*WELL)))["chunk_at"] is None
    kept = columns(turn(track(*WELL)), keep_chunks=True)
    assert kept["chunk_at"] == [100.5, 101.0, 101.75]
    assert kept["chunk_media_s"] == pytest.approx([0.0, 0.5, 1.05])


def test_each_subtraction_is_none_where_an_instant_was_not_reached() -> None:
    assert between(5.0, 3.5) == 1.5
    assert between(0.0, 3.5) is None
    assert between(5.0, 0.0) is None
    empty = turn()
    assert [ttfc_s(empty), ttfa_s(empty), e2e_s(empty), rtf(empty)] == [None] * 4
    assert rtf(turn(track((100.5, 0.0, 0)))) is None  # zero samples are no division by zero
    assert rtf(turn(track(*WELL), sent_at=0.0)) is None


@pytest.mark.parametrize("keep_chunks", [True, False])
@pytest.mark.parametrize("heard", [None, WELL, WELL[:1], ((100.5, 0.0, 0),)])
def test_a_row_fits_the_schema(heard: tuple[tuple[float, float, int], ...] | None, keep_chunks: bool) -> None:
    row = turn_row(turn(track(*heard) if heard else None), "run", "worker", "demo", keep_chunks)
    assert len(row) <= len(TURNS)
    for value, column in zip(row, TURNS, strict=False):
        assert value is None or type(value) is PYTHON_TYPES[column.kind], column.name
        assert not isinstance(value, float) or math.isfinite(value), column.name
    assert msgpack.unpackb(msgpack.packb(row)) == row


def test_a_start_row_fits_the_schema() -> None:
    row = start_row(turn(level=8), "run", "worker", "demo")
    found = dict(zip(names("turn_starts"), row, strict=True))
    whole = columns(turn(level=8))
    assert found["level"] == 8
    assert found == {name: whole[name] for name in found}
    for value, column in zip(row, TURN_STARTS, strict=True):
        assert type(value) is PYTHON_TYPES[column.kind]


def test_a_failure_keeps_one_line_of_bounded_length() -> None:
    made = turn()
    assert made.ok
    made.fail("protocol_error", "not_http", "x" * 10_000)
    assert not made.ok
    assert made.error is not None
    assert len(made.error) == 500
    rejected = turn(track(*WELL))
    rejected.fail("answered", "rejected", "wrong voice")
    assert not rejected.ok


def test_the_schema_says_what_every_column_is() -> None:
    assert OUTCOMES == ("answered", "timed_out", "early", "cut", "protocol_error", "disconnected", "refused")
    for table, described in TABLES.items():
        assert len(set(names(table))) == len(described), table
        for column in described:
            assert column.kind in PYTHON_TYPES
            assert column.doc
            assert not column.name.endswith(("_at", "_s")) or column.kind in ("float", "floats"), column.name

"""Logs into shards: whole, torn, spoilt, repeated, foreign; and what was read must be what was written."""

import os
import time
from pathlib import Path

import msgpack
import pyarrow.parquet as pq
import pytest
from run_maker import (
    RUN,
    clean_seconds,
    facts,
    log_of,
    make_run,
    packed,
    packed_header,
    second,
    start_of,
    turn,
    turns,
)

from workers.samples import logs, schema, shards


def sealed_turns(run: Path, worker: str = "w0") -> list[dict]:
    return pq.read_table(run / "turns" / f"{worker}.parquet").to_pylist()


def test_every_value_of_every_column_survives(tmp_path: Path) -> None:
    row = turn(chunk_at=[1.0, 2.0, 3.5], chunk_media_s=[0.0, 0.5, 1.0], first_token_at=7.25, error=None)
    run = make_run(tmp_path, log_of([row], clean_seconds(3)))

    known = shards.seal(run).logs["w0"]

    (found,) = sealed_turns(run)
    assert list(found) == schema.names("turns")
    assert found == {name: row.get(name) for name in schema.names("turns")}
    assert known.rows == {"turns": 1, "workers": 3, "sessions": 1, "server": 0}
    assert (known.started_without_end, known.torn_bytes, known.lost_bytes, known.duplicates) == (0, 0, 0, 0)
    assert known.facts["boot_id"] == "boot-a"


def test_a_log_cut_at_any_byte_gives_every_whole_row_before_the_cut(tmp_path: Path) -> None:
    made = turns(3)
    pieces = [packed_header(facts())]
    for row in made:
        pieces += [packed("turn_starts", start_of(row)), packed("turns", row)]
    log = b"".join(pieces)
    path = tmp_path / "w0.msgpack"
    ends = [sum(map(len, pieces[: n + 1])) for n in range(len(pieces))]
    for cut in range(0, len(log) + 1, 7):
        path.write_bytes(log[:cut])
        read = logs.read_log(path)
        rows = sum(len(batch) for _, batch in read.batches())
        whole = sum(end <= cut for end in ends)
        assert rows == max(0, whole - 1), cut
        assert read.torn_bytes == cut - max([0, *(end for end in ends if end <= cut)])
        assert read.lost_bytes == 0


def test_a_killed_worker_leaves_a_turn_cut_short(tmp_path: Path) -> None:
    made = turns(5)
    lost = turn(session="s9", turn=3, text_name="long", intended_at=5_077.0)
    run = make_run(tmp_path, log_of(made) + packed("turn_starts", start_of(lost)))

    known = shards.seal(run).logs["w0"]

    assert (known.starts, known.started_without_end) == (6, 1)
    cut = sealed_turns(run)[-1]
    assert cut["request_id"] == lost["request_id"]
    assert (cut["outcome"], cut["error_kind"]) == ("cut", "worker_lost")
    assert (cut["text_name"], cut["intended_at"], cut["ended_at"]) == ("long", 5_077.0, None)


@pytest.mark.parametrize(
    "garbage", [b"\0" * 4096, b"\xff" * 999, bytes(range(256)) * 8, b"\xdd\xff\xff\xff\xff", b"\xdb\x7f\xff\xff\xff"]
)
def test_garbage_between_rows_is_stepped_over_and_counted(tmp_path: Path, garbage: bytes) -> None:
    made = turns(20)
    log = log_of(made)
    at = len(packed_header(facts())) + sum(
        len(packed("turn_starts", start_of(row))) + len(packed("turns", row)) for row in made[:8]
    )
    run = make_run(tmp_path, log[:at] + garbage + log[at:])

    known = shards.seal(run).logs["w0"]

    assert known.rows["turns"] == 20
    assert known.lost_bytes == len(garbage)
    assert (known.torn_bytes, known.started_without_end) == (0, 0)


def test_overwritten_bytes_cost_the_rows_they_hit_and_no_others(tmp_path: Path) -> None:
    made = turns(50)
    log = log_of(made)
    hole = len(log) // 2
    run = make_run(tmp_path, log[:hole] + b"\xc1" * 300 + log[hole + 300 :])

    known = shards.seal(run).logs["w0"]

    names = [row["request_id"] for row in sealed_turns(run)]
    assert len(set(names)) == len(names)
    assert known.starts >= 48
    assert known.rows["turns"] >= 48
    assert 300 <= known.lost_bytes < 2_500
    assert set(names) <= {row["request_id"] for row in made}


def test_a_value_that_does_not_fit_its_column_costs_its_row_only(tmp_path: Path) -> None:
    made = turns(4)
    spoilt = {**made[2], "audio_s": "two", "request_id": "x", "turn": 99}
    run = make_run(tmp_path, log_of(made) + packed("turns", spoilt))

    known = shards.seal(run).logs["w0"]

    assert (known.rows["turns"], known.spoilt_rows) == (4, 1)


def test_a_row_that_came_twice_counts_once(tmp_path: Path) -> None:
    log = log_of(turns(6), clean_seconds(2))
    header = len(packed_header(facts()))
    run = make_run(tmp_path, log + log[header:])

    known = shards.seal(run).logs["w0"]

    assert known.rows == {"turns": 6, "workers": 2, "sessions": 6, "server": 0}
    assert known.duplicates == 6 + 6 + 6 + 2
    assert (known.starts, known.started_without_end) == (6, 0)


def test_turns_without_a_request_id_are_known_by_session_and_ordinal(tmp_path: Path) -> None:
    made = turns(4, request_id=None)
    run = make_run(tmp_path, log_of([*made, made[1]]))

    known = shards.seal(run).logs["w0"]

    assert (known.rows["turns"], known.started_without_end, known.duplicates) == (4, 0, 2)


def test_an_older_log_may_lack_columns_and_order_them_its_own_way(tmp_path: Path) -> None:
    columns = ["outcome", "request_id", "run", "vanished_since"]
    log = msgpack.packb({"cicada": 1, "tables": {"turns": columns}, "worker": facts()})
    log += msgpack.packb(["turns", "answered", "r1", RUN, 7]) + msgpack.packb(["turns", "cut", "r2"])
    run = make_run(tmp_path, log)

    shards.seal(run)

    assert [(row["outcome"], row["request_id"], row["run"], row["ttfc_s"]) for row in sealed_turns(run)] == [
        ("answered", "r1", RUN, None),
        ("cut", "r2", None, None),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PK\x03\x04 a zip file, or whatever", "is not a Cicada log"),
        (b'{"cicada": 1}', "is not a Cicada log"),
        (msgpack.packb({"cicada": "1"}), "is not a Cicada log"),
        (msgpack.packb({"cicada": 1}), "names no tables"),
        (packed_header(facts(), version=schema.SCHEMA_VERSION + 1), "newer Cicada"),
        (b"\xdb\x7f\xff\xff\xff" + b"a" * logs.READ_BYTES, "is not a Cicada log"),
    ],
)
def test_a_foreign_log_is_refused_in_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "w0.msgpack"
    path.write_bytes(content)
    with pytest.raises(logs.ForeignLog, match=says) as caught:
        logs.read_log(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_one_foreign_log_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"w0": log_of(turns(2)), "w1": b"nonsense"})
    sealed = shards.seal(run)
    assert list(sealed.logs) == ["w0"]
    assert list(sealed.refused) == ["w1.msgpack"]


def test_sealing_again_does_nothing_until_the_log_grows(tmp_path: Path) -> None:
    log = log_of(turns(3))
    run = make_run(tmp_path, log)
    first = shards.seal(run)
    made_at = (run / "turns" / "w0.parquet").stat().st_mtime_ns

    assert shards.seal(run) == first
    assert (run / "turns" / "w0.parquet").stat().st_mtime_ns == made_at

    late = turn(session="s7", turn=4)
    (run / "log" / "w0.msgpack").write_bytes(log + packed("turn_starts", start_of(late)) + packed("turns", late))
    assert shards.seal(run).logs["w0"].rows["turns"] == 4
    assert not list(run.rglob("*.tmp"))


def test_a_log_rewritten_at_the_same_length_is_sealed_again(tmp_path: Path) -> None:
    run = make_run(tmp_path, log_of(turns(3, audio_s=2.0)))
    shards.seal(run)
    path = run / "log" / "w0.msgpack"
    path.write_bytes(log_of(turns(3, audio_s=3.0)))
    os.utime(path, ns=(time.time_ns() + 10**9, time.time_ns() + 10**9))
    shards.seal(run)
    assert [row["audio_s"] for row in sealed_turns(run)] == [3.0] * 3


def test_shards_outlive_their_log(tmp_path: Path) -> None:
    run = make_run(tmp_path, log_of(turns(3)))
    first = shards.seal(run)
    (run / "log" / "w0.msgpack").unlink()
    assert shards.seal(run) == first


def test_a_failure_while_sealing_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, log_of(turns(3)))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.ShardWriter, "footer", fail)
    with pytest.raises(OSError, match="No space"):
        shards.seal(run)
    assert not [path for path in run.rglob("*") if path.suffix in (".parquet", ".tmp")]


def test_rows_come_in_bounded_batches(tmp_path: Path) -> None:
    path = tmp_path / "w0.msgpack"
    path.write_bytes(log_of(turns(25), [second(1.0 + n) for n in range(7)]))
    sizes = [(table, len(rows)) for table, rows in logs.read_log(path).batches(size=10)]
    assert all(n <= 10 for _, n in sizes)
    assert sum(n for table, n in sizes if table == "turns") == 25

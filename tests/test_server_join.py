"""Server rows beside client turns: who meets whom, and what is left between the two."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_maker import MONOTONIC_AT, RUN, WALL_AT, clean_seconds, facts, log_of, make_run, turns

from analysis.counting import count
from analysis.report import report
from analysis.runs import Run, open_run, read_table
from analysis.server_join import ForeignTrace, Joined, import_trace, join, sources


def header(**given: Any) -> dict[str, Any]:
    return {
        "cicada_trace": 1,
        "server": "gpu_server",
        "engine": "tone",
        "pid": 9,
        "host": "box-a",
        "wall_at": WALL_AT,
        "monotonic_at": MONOTONIC_AT,
        **given,
    }


def served(turn: dict[str, Any], **given: Any) -> dict[str, Any]:
    """What the server says of a turn: 1 ms to get there, 10 ms in the queue, 3 ms for the first audio to get back."""
    received = turn["sent_at"] + 0.001
    first = turn["first_chunk_at"] - 0.003
    return {
        "request_id": turn["request_id"],
        "route": "/v1/audio/speech",
        "received_at": received,
        "admitted_at": received + 0.010,
        "first_audio_at": first,
        "finished_at": turn["last_chunk_at"],
        "queue_wait_s": 0.010,
        "ttfb_s": first - received,
        "audio_s": turn["audio_s"],
        "characters": turn["text_chars"],
        "voice": turn["voice"],
        "format": "wav",
        "outcome": "ok",
        "status": 200,
        "fault": None,
        "fault_s": None,
        **given,
    }


def trace(path: Path, *records: dict[str, Any], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return path


def joined(run: Run) -> Joined:
    again = replace(run, server=read_table(run.path, "server"))
    found = join(again, count(again.turns))
    assert found is not None
    return found


@pytest.fixture
def made() -> list[dict[str, Any]]:
    return turns(100, 25, ttfc_s=lambda at: 0.1 + at / 1000, late_s=0.002)


@pytest.fixture
def run(tmp_path: Path, made: list[dict[str, Any]]) -> Run:
    return open_run(make_run(tmp_path, log_of(made, clean_seconds())))


def test_figures_of_joined_rows_are_exact(tmp_path: Path, run: Run, made: list[dict[str, Any]]) -> None:
    path = trace(tmp_path / "trace.jsonl", header(), *map(served, made))
    figures = report(run.path, [path])["server"]["figures"]

    def p50(name: str) -> float:
        return figures[name]["quantiles"]["p50"]["value"]

    assert p50("client_ttfc_ms") == pytest.approx(149.5)
    assert p50("server_ttfb_ms") == pytest.approx(149.5 - 2 - 1 - 3)
    assert p50("server_queue_wait_ms") == pytest.approx(10.0)
    assert p50("rest_ms") == pytest.approx(6.0)
    assert p50("before_server_ms") == pytest.approx(3.0)
    assert p50("after_server_ms") == pytest.approx(3.0)
    assert figures["server_ttfb_ms"]["quantiles"]["p95"]["value"] == pytest.approx(100 + 94.05 - 6)


def test_rows_that_meet_nobody_are_counted(tmp_path: Path, run: Run, made: list[dict[str, Any]]) -> None:
    rows = [served(turn) for turn in made[:90]]
    strangers = [served(made[0], request_id=name) for name in ("other.1", None, f"{RUN}-2.0.1", f"{RUN}x")]
    lost = served(made[0], request_id=f"{RUN}.0.999")
    path = trace(tmp_path / "t.jsonl", header(), *rows, *strangers, lost, rows[3], tail='{"request_id": "torn')

    source = import_trace(run, path)
    found = joined(run)

    assert (source.rows, source.other_runs, source.bad_lines, source.host) == (92, 4, 1, "box-a")
    assert (found.joined, found.only_client, found.only_server, found.repeated) == (90, 10, 1, 1)


def test_turns_that_never_reached_the_wire_are_not_missed(tmp_path: Path) -> None:
    rows = [*turns(5), *turns(1, outcome="refused", error_kind="connection_refused", sent_at=None, session="s9")]
    run = open_run(make_run(tmp_path, log_of(rows)))
    import_trace(run, trace(tmp_path / "t.jsonl", header(), *map(served, rows[:5])))
    assert joined(run).only_client == 0


def test_figures_are_of_measured_successes_only(tmp_path: Path) -> None:
    rows = turns(
        60,
        phase=lambda at: "warm_up" if at < 20 else "measured",
        error_kind=lambda at: "too_short" if at == 30 else None,
    )
    run = open_run(make_run(tmp_path, log_of(rows)))
    import_trace(run, trace(tmp_path / "t.jsonl", header(), *map(served, rows)))
    found = joined(run)
    assert (found.joined, len(found.rows)) == (60, 39)


def test_instants_are_not_compared_across_clocks(tmp_path: Path, run: Run, made: list[dict[str, Any]]) -> None:
    import_trace(run, trace(tmp_path / "far.jsonl", header(host="box-b"), *map(served, made)))
    found = joined(run)
    assert not found.one_clock
    assert "before_server_s" not in found.rows
    assert found.rows["rest_s"].tolist() == pytest.approx([0.006] * 100)


def test_a_namesake_with_another_clock_is_found_out(tmp_path: Path, run: Run, made: list[dict[str, Any]]) -> None:
    shifted = [
        {key: value - 1000 if key.endswith("_at") else value for key, value in served(turn).items()} for turn in made
    ]
    import_trace(run, trace(tmp_path / "t.jsonl", header(), *shifted))
    assert not joined(run).one_clock


def test_importing_again_changes_nothing_and_two_traces_stand_side_by_side(
    tmp_path: Path, run: Run, made: list[dict[str, Any]]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = trace(tmp_path / "a" / "trace.jsonl", header(), *map(served, made[:50]))
    second = trace(tmp_path / "b" / "trace.jsonl", header(), *map(served, made[50:]))
    for path in (first, second, first):
        import_trace(run, path)
    assert len(sources(run)) == 2
    assert joined(run).joined == 100


def test_imported_rows_are_there_without_the_trace(tmp_path: Path, run: Run, made: list[dict[str, Any]]) -> None:
    path = trace(tmp_path / "t.jsonl", header(), *map(served, made))
    report(run.path, [path])
    path.unlink()
    assert report(run.path)["server"]["joined"] == 100


def test_without_a_trace_there_is_nothing_to_join(run: Run) -> None:
    assert join(run, count(run.turns)) is None
    assert report(run.path)["server"] is None


@pytest.mark.parametrize("content", ["", "hello\n", '{"a": 1}\n', "\x00\x01"])
def test_a_foreign_file_is_refused(tmp_path: Path, run: Run, content: str) -> None:
    path = tmp_path / "access.log"
    path.write_text(content)
    with pytest.raises(ForeignTrace, match="is not a trace"):
        import_trace(run, path)
    with pytest.raises(ForeignTrace, match="directory"):
        import_trace(run, tmp_path)
    with pytest.raises(FileNotFoundError):
        import_trace(run, tmp_path / "gone.jsonl")


def test_a_row_of_wrong_types_is_refused_in_words(tmp_path: Path, run: Run, made: list[dict[str, Any]]) -> None:
    path = trace(tmp_path / "t.jsonl", header(), served(made[0], received_at="noon"))
    with pytest.raises(ForeignTrace, match="received_at is no double"):
        import_trace(run, path)


def test_workers_of_two_hosts_share_no_clock_with_the_server(tmp_path: Path) -> None:
    logs = {
        "w0": log_of(turns(3)),
        "w1": log_of(turns(3, worker="w1"), worker=facts("w1", host="box-b", boot_id="boot-b")),
    }
    run = open_run(make_run(tmp_path, logs))
    import_trace(run, trace(tmp_path / "t.jsonl", header(), *map(served, turns(3))))
    assert not joined(run).one_clock

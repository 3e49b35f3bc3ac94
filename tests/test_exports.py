"""Runs in other tools' formats, against the fields those tools write and figures counted by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_maker import WALL_AT, calls, log_of, make_run, spoken, turns

from analysis.report import main
from analysis.runs import open_run

FIELDS = [
    *("stream_id", "individual_latencies", "average_latency", "valid_latencies", "valid_average_latency", "threshold"),
    *("num_turns", "num_valid_turns", "reverse_barge_ins_count", "glitch_detected", "timestamp"),
    *("metrics_start_time", "test_duration"),
]
FAILED = {"outcome": "timed_out", "error_kind": "no_answer_in_time", "error": "no answer within 10 s"}


def known_run(parent: Path, **given: Any) -> Path:
    """Three calls. s0 answers after 0.405 s, 0.805 s and 1.005 s at playout, 5 ms less on arrival; s1 after 0.705 s,
    three times, once with a stall of 25 ms; s2 never."""
    rows = [
        *calls(1, 3, floor_s=lambda at: (0.405, 0.805, 1.005)[at]),
        *(spoken(session="s1", turn=n, floor_s=0.705, min_prebuffer_s=0.025 if n else 0.019) for n in range(2)),
        spoken(session="s1", turn=2, floor_s=0.705),
        spoken(session="s1", turn=3, floor_s=5.0, phase="warm_up", min_prebuffer_s=0.4),
        spoken(session="s2", turn=0, stream_id="a/b c", **FAILED),
        spoken(session="s2", turn=1, stream_id="a/b c", outcome="cut", error_kind="run_ended"),
    ]
    scenario = {"threshold": 0.5, "test_duration": 150.0, "client_start_delay": 1.0}
    return make_run(parent, log_of(rows), scenario=scenario, host="ws://localhost:8100", **given)


def test_each_client_has_a_file_in_the_benchmarks_fields(tmp_path: Path) -> None:
    assert main([str(known_run(tmp_path)), "--export", "voice_agent", "--output", str(tmp_path / "results")]) == 0
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert names == ["client_a_b_c.json", "client_stream-w0-s0.json", "client_stream-w0-s1.json", "summary.json"]
    one = json.loads((tmp_path / "results" / "client_stream-w0-s0.json").read_text())
    assert list(one) == FIELDS
    assert one["stream_id"] == "stream-w0-s0"
    assert one["individual_latencies"] == pytest.approx([0.4, 0.8, 1.0])
    assert one["average_latency"] == pytest.approx(2.2 / 3)
    assert one["valid_latencies"] == pytest.approx([0.8, 1.0])
    assert one["valid_average_latency"] == pytest.approx(0.9)
    assert (one["threshold"], one["num_turns"], one["num_valid_turns"]) == (0.5, 3, 2)
    assert (one["reverse_barge_ins_count"], one["glitch_detected"]) == (1, False)
    assert one["timestamp"].startswith("20")
    assert one["metrics_start_time"] == pytest.approx(WALL_AT + 10.0)
    assert one["test_duration"] == 150.0
    two = json.loads((tmp_path / "results" / "client_stream-w0-s1.json").read_text())
    assert (two["num_turns"], two["glitch_detected"]) == (3, True)
    none = json.loads((tmp_path / "results" / "client_a_b_c.json").read_text())
    assert (none["individual_latencies"], none["average_latency"], none["num_turns"]) == ([], None, 0)


def test_the_summary_is_the_benchmarks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = known_run(tmp_path)
    assert main([str(run), "--export", "voice_agent"]) == 0
    summary = json.loads((run / "exports" / "voice_agent" / "summary.json").read_text())
    config, results = summary["config"], summary["results"]
    assert (config["host"], config["port"], config["num_clients"], config["threshold"]) == ("localhost", 8100, 3, 0.5)
    assert results["aggregate_average_latency"] == pytest.approx((2.2 / 3 + 0.7) / 2)
    assert results["p95_client_latency"] == pytest.approx(0.7)  # the original's rule: element 0 of two
    assert results["max_client_latency"] == pytest.approx(2.2 / 3)
    assert (results["total_clients"], results["total_turns"]) == (3, 6)
    assert results["p95_latency"] == pytest.approx(0.95)  # 0.4 0.7 0.7 0.7 0.8 1.0
    assert (results["min_latency"], results["max_latency"]) == pytest.approx((0.4, 1.0))
    assert results["valid_results"]["total_valid_turns"] == 5
    assert results["valid_results"]["aggregate_valid_average_latency"] == pytest.approx(0.8)
    assert results["glitch_detection"]["affected_client_ids"] == ["stream-w0-s1"]
    assert results["reverse_barge_in_detection"]["total_reverse_barge_ins"] == 1
    assert results["error_detection"]["client_error_counts"] == {"a/b c": 1}
    page = capsys.readouterr().out
    assert max(map(len, page.split("Written:")[0].splitlines())) <= 100
    for words in (
        "3 clients, 6 turns",
        "P95 0.950 s",
        "errors:                        1 in 1 clients",
        "1 of 3 clients",
    ):
        assert words in page, words


def test_no_results_is_said_with_its_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failure = {"outcome": "refused", "error_kind": "connection_refused", "error": "nothing listens on localhost:8100"}
    run = make_run(tmp_path, log_of(calls(2, 2, **failure)))
    assert main([str(run), "--export", "voice_agent"]) == 0
    page = capsys.readouterr().out
    assert "No results: the endpoint could not be reached" in page
    assert "nothing listens on localhost:8100" in page
    assert "Check the server's log." in page


def test_a_run_without_conversations_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, log_of(turns(4)))
    assert main([str(run), "--export", "voice_agent"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_it_is_called_as_a_function(tmp_path: Path) -> None:
    from analysis.exports import EXPORTS

    written, text = EXPORTS["voice_agent"](open_run(known_run(tmp_path)), tmp_path / "out")
    assert [path.name for path in written][-1] == "summary.json"
    assert text.startswith("Voice agent benchmark: ")

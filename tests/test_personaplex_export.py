"""S1's JSON against its sample, its checklist, and figures counted by hand."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_maker import MONOTONIC_AT, RUN, WALL_AT, calls, duplex, log_of, make_run, packed, trials, turns

from analysis.report import main

SAMPLE = {  # S1's sample output, with its numbers left out
    "benchmark": ["name", "duration_seconds"],
    "summary": ["total_requests", "successful_requests", "success_rate"],
    "latency_ms": {"ttft": ["mean", "median", "p90", "p95", "p99"], "itl": ["mean", "median", "p90"]},
    "throughput": ["tokens_per_second", "requests_per_second"],
}
LATENCIES = [
    *("ttft", "ttft_from_handshake", "itl", "e2e", "turn_taking", "turn_taking_by_arrival"),
    *("turn_taking_by_stream_position", "session_setup", "interruption_stop", "interruption_response"),
]
TIMED_OUT = {"outcome": "timed_out", "error_kind": "no_answer_in_time", "error": "the agent said nothing"}
NO_HANDSHAKE = {"outcome": "timed_out", "error_kind": "handshake_timeout", "error": "no handshake within 60 s"}
CUT = {"outcome": "cut", "error_kind": "run_ended"}
BEGAN = MONOTONIC_AT + 10.0


def exported(parent: Path, rows: list[dict[str, Any]], **given: Any) -> dict[str, Any]:
    of_session = given.pop("of_session", lambda at: {})
    run = make_run(parent, log_of(rows, of_session=of_session), **given)
    path = parent / "reports" / "benchmark.json"
    assert main([str(run), "--export", "personaplex", "--output", str(path)]) == 0
    return strict(path)


def strict(path: Path) -> dict[str, Any]:
    """JSON without NaN and infinity."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    found: dict[str, Any] = json.loads(path.read_text(), parse_constant=refuse)
    return found


def text_run() -> list[dict[str, Any]]:
    """100 text iterations of which the 98 that succeed take 101, 102 ... 198 ms to the first text; 3 more are cut."""
    rows = trials(98, "text", ttft_s=lambda at: 0.101 + at / 1000, itl_s=lambda at: 0.02 + at / 10_000)
    later = BEGAN + 6.0 * 98
    rows.append(duplex(mode="text", iteration=98, session="late", intended_at=later, ttft_s=9.0, **TIMED_OUT))
    refused = {"session": "no", "intended_at": later + 1, "text_name": "connect", "ready_at": None, **NO_HANDSHAKE}
    rows.append(duplex(mode="text", iteration=99, **refused))
    return rows + [duplex(mode="text", iteration=100 + at, session=f"cut{at}", ttft_s=7.0, **CUT) for at in range(3)]


def test_the_keys_are_those_of_s1s_sample(tmp_path: Path) -> None:
    found = exported(tmp_path, text_run(), scenario={"mode": "text"})
    for block, keys in SAMPLE.items():
        for key in keys:
            assert key in found[block]
            if isinstance(keys, dict):
                assert set(keys[key]) <= set(found[block][key])
    assert list(found["latency_ms"]) == LATENCIES
    assert {"timestamps", "config", "environment", "requests"} <= set(found)
    assert "parts" not in found


def test_98_of_100_are_98_per_cent_and_failures_are_in_no_latency(tmp_path: Path) -> None:
    found = exported(tmp_path, text_run(), scenario={"mode": "text"})
    summary = found["summary"]
    assert (summary["total_requests"], summary["successful_requests"], summary["success_rate"]) == (100, 98, 98.0)
    assert (summary["failed_requests"], summary["cut_requests"]) == (2, 3)
    ttft_ms = np.arange(101, 199)
    percentiles = np.percentile(ttft_ms, (50, 90, 95, 99))
    told = found["latency_ms"]["ttft"]
    assert [told[key] for key in ("median", "p90", "p95", "p99")] == pytest.approx(list(percentiles))
    assert (told["mean"], told["n"]) == (149.5, 98)
    assert found["latency_ms"]["itl"]["mean"] == pytest.approx(20 + 4.85)
    assert len(found["requests"]) == 100
    failed = [one for one in found["requests"] if not one["success"]]
    assert [(one["error_kind"], one["error"]) for one in failed] == [
        ("no_answer_in_time", "the agent said nothing"),
        ("handshake_timeout", "no handshake within 60 s"),
    ]
    assert all(one[key] is None for one in failed for key in ("ttft_ms", "itl_ms", "e2e_ms", "turn_taking_ms"))


def test_rates_are_over_the_window_from_the_first_start_to_the_last_end(tmp_path: Path) -> None:
    rows = [
        duplex(mode="throughput", session=f"s{at}", turn=0, intended_at=BEGAN + at, tokens=10 * (at + 1), ended_at=end)
        for at, end in enumerate((BEGAN + 5, BEGAN + 20, BEGAN + 9))
    ]
    rows.append(duplex(mode="throughput", session="bad", intended_at=BEGAN + 1.5, ended_at=BEGAN + 3, **TIMED_OUT))
    found = exported(tmp_path, rows, scenario={"mode": "throughput"})
    assert found["benchmark"] == {"name": "PersonaPlex Throughput Benchmark", "duration_seconds": 20.0}
    assert found["throughput"] == {"tokens_per_second": 60 / 20, "requests_per_second": 4 / 20}
    assert found["summary"]["total_requests"] == 4  # no numbers: each turn is a request
    assert [one["tokens"] for one in found["requests"]] == [10, 20, None, 30]


def test_a_trial_of_an_interruption_is_one_request_and_has_its_own_latencies(tmp_path: Path) -> None:
    rows = []
    for at in range(10):
        given = {"mode": "interruption", "iteration": at, "session": f"i{at}"}
        start = BEGAN + 20 * at
        rows.append(duplex(turn=0, intended_at=start, floor_s=0.5, ttft_s=0.4, e2e_s=None, **given))
        stopped = {"barge_in": True, "yielded": at < 8, "time_to_silence_s": 0.3 + at / 100 if at < 8 else None}
        rows.append(duplex(turn=1, intended_at=start + 5, floor_s=0.2 + at / 100, ttft_s=0.1, **stopped, **given))
    found = exported(tmp_path, rows, scenario={"mode": "interruption"})
    latency = found["latency_ms"]
    assert found["benchmark"]["name"] == "PersonaPlex Interruption Benchmark"
    assert (found["summary"]["total_requests"], len(found["requests"])) == (10, 10)
    assert (latency["interruption_stop"]["mean"], latency["interruption_stop"]["n"]) == (335.0, 8)
    assert (latency["interruption_response"]["mean"], latency["interruption_response"]["n"]) == (245.0, 10)
    assert latency["turn_taking"] == {"mean": None, "median": None, "p90": None, "p95": None, "p99": None, "n": 0}
    assert latency["ttft"]["mean"] == 100.0
    one = found["requests"][3]
    assert (one["interruption_stop_ms"], one["interruption_response_ms"], one["turn_taking_ms"]) == (330, 230, None)


def test_an_interruption_that_the_run_ended_before_the_user_broke_in_is_cut(tmp_path: Path) -> None:
    """Its question was answered and the answer never left to end; one whose answer was too short is a request."""
    given = {"mode": "interruption", "floor_s": 0.5}
    left = duplex(iteration=0, session="a", agent_offset_at=None, e2e_s=None, **given)
    short = duplex(iteration=1, session="b", speech_s=0.4, **given)
    found = exported(tmp_path, [left, short], scenario={"mode": "interruption"})
    assert (found["summary"]["total_requests"], found["summary"]["cut_requests"]) == (1, 1)
    assert [one["iteration"] for one in found["requests"]] == [1]


def test_the_three_transfer_offsets_stand_apart_and_the_band_is_judged_on_two(tmp_path: Path) -> None:
    rows = trials(10, floor_s=lambda at: 0.15 + at / 100, stream_s=0.1, lag_s=lambda at: 0.5 if at < 6 else 0.1)
    found = exported(tmp_path, rows, scenario={"mode": "turn_taking"})
    latency, taking = found["latency_ms"], found["turn_taking"]
    assert latency["turn_taking"]["median"] == 195.0
    assert latency["turn_taking_by_stream_position"]["median"] == 100.0
    assert latency["turn_taking_by_arrival"]["median"] == 600.0
    assert taking["band_ms"] == [170.0, 270.0]
    heard, arrival = taking["heard"], taking["by_arrival"]
    # 150 160 170 | 180 ... 240: 170.0 itself is not inside
    assert (heard["below_percent"], heard["inside_percent"], heard["above_percent"]) == pytest.approx((30, 70, 0))
    assert (heard["median_inside"], arrival["median_inside"], arrival["above_percent"]) == (True, False, 60.0)


def test_set_up_and_text_from_the_handshake_are_of_sessions_that_came_up(tmp_path: Path) -> None:
    rows = trials(4, "audio")
    rows.append(duplex(mode="audio", iteration=4, session="no", text_name="connect", **NO_HANDSHAKE))
    found = exported(
        tmp_path,
        rows,
        scenario={"mode": "audio"},
        of_session=lambda at: {"setup_s": 2.0 + at, "ready_at": 5_010.0, "first_token_at": 5_010.4} if at < 4 else {},
    )
    setup, text = found["latency_ms"]["session_setup"], found["latency_ms"]["ttft_from_handshake"]
    assert (setup["mean"], setup["n"], text["mean"], text["n"]) == (3_500.0, 4, 400.0, 4)
    assert [one["session_setup_ms"] for one in found["requests"]].count(None) == 1


def test_set_up_is_also_of_those_who_waited_longest(tmp_path: Path) -> None:
    """Two came up without a turn, one was still waiting when the run ended."""
    log = log_of(trials(4, "text"), of_session=lambda at: {"setup_s": 2.0})
    for at, setup_s in enumerate((30.0, 40.0, None)):
        row = {"run": RUN, "worker": "w0", "session": f"x{at}", "protocol": "personaplex", "started_at": BEGAN + at,
               "ended_at": BEGAN + 50.0, "ended_by": "run_ended", "mode": "text" if at else "audio", "turns": 0,
               "setup_s": setup_s, "ready_at": None if setup_s is None else BEGAN + at + setup_s}  # fmt: skip
        log += packed("sessions", row)
    run = make_run(tmp_path, log, scenario={"mode": "full"})
    assert main([str(run), "--export", "personaplex", "--output", str(tmp_path / "out.json")]) == 0
    found = strict(tmp_path / "out.json")
    told = found["latency_ms"]["session_setup"]
    assert (told["n"], told["mean"], told["still_waiting"]) == (6, 13_000.0, 1)
    part = found["parts"]["text"]["latency_ms"]["session_setup"]
    assert (part["n"], part["mean"], part["still_waiting"]) == (5, 9_600.0, 1)


def test_a_rate_of_refusals_is_null(tmp_path: Path) -> None:
    refused = {"outcome": "refused", "error_kind": "http_404", "error": "no such path", "text_name": "connect"}
    rows = [duplex(mode="text", iteration=at, session=f"s{at}", intended_at=BEGAN + at / 1e3, **refused)
            for at in range(40)]  # fmt: skip
    found = exported(tmp_path, rows, scenario={"mode": "text"})
    assert found["throughput"] == {"tokens_per_second": None, "requests_per_second": None}
    assert found["summary"]["total_requests"] == 40


def test_mode_full_has_a_block_for_each_part(tmp_path: Path) -> None:
    rows = [
        *trials(4, "throughput", ttft_s=0.4, floor_s=0.4, intended_at=lambda at: BEGAN + 300 + at),
        *trials(10, "text", ttft_s=0.1),
        *trials(5, "turn_taking", ttft_s=0.2, intended_at=lambda at: BEGAN + 200 + at),
    ]
    found = exported(tmp_path, rows, scenario={"mode": "full"})
    parts = found["parts"]
    assert list(parts) == ["text", "turn_taking", "throughput"]
    assert [part["summary"]["total_requests"] for part in parts.values()] == [10, 5, 4]
    assert [part["latency_ms"]["ttft"]["mean"] for part in parts.values()] == [100.0, 200.0, 400.0]
    assert [part["benchmark"]["name"] for part in parts.values()] == [
        "PersonaPlex Text Latency Benchmark",
        "PersonaPlex Turn-Taking Benchmark",
        "PersonaPlex Throughput Benchmark",
    ]
    assert found["summary"]["total_requests"] == 19  # the same numbers in different modes are different iterations
    assert found["benchmark"]["name"] == "PersonaPlex Full Benchmark"
    assert found["benchmark"]["duration_seconds"] > 300 > parts["text"]["benchmark"]["duration_seconds"]


@pytest.mark.parametrize(
    ("mode", "name"),
    [(None, "PersonaPlex Benchmark"), ("audio", "PersonaPlex Audio Benchmark")],
)
def test_the_name_says_the_mode(tmp_path: Path, mode: str | None, name: str) -> None:
    assert exported(tmp_path, trials(3, mode), scenario={})["benchmark"]["name"] == name


def test_an_empty_list_is_null_and_a_run_without_success_has_no_figure(tmp_path: Path) -> None:
    found = exported(tmp_path, [duplex(mode="text", iteration=0, **TIMED_OUT)], scenario={"mode": "text"})
    assert found["summary"]["success_rate"] == 0.0
    assert found["latency_ms"]["e2e"]["mean"] is None
    assert found["turn_taking"]["heard"]["median_inside"] is None
    none = exported(tmp_path / "cut", [duplex(mode="text", iteration=0, **CUT)], scenario={"mode": "text"})
    assert (none["summary"]["success_rate"], none["summary"]["cut_requests"]) == (None, 1)


def test_a_request_without_text_pieces_has_no_interval_between_them(tmp_path: Path) -> None:
    found = exported(tmp_path, trials(3, "audio", tokens=lambda at: at), scenario={"mode": "audio"})
    assert [one["itl_ms"] for one in found["requests"]] == [None, None, 80.0]
    assert [one["ttft_ms"] for one in found["requests"]] == [None, 150.0, 150.0]
    assert (found["latency_ms"]["itl"]["n"], found["latency_ms"]["ttft"]["n"]) == (1, 2)


def test_times_are_iso_8601_and_no_password_is_told(tmp_path: Path) -> None:
    found = exported(
        tmp_path,
        trials(2, "audio"),
        scenario={"mode": "audio", "servers": ["wss://me:secret@a:8998", "wss://b:8998/?token=secret"]},
        host="wss://me:secret@a:8998",
        mock=True,
        recordings={"source": "synthetic", "names": ["question"]},
    )
    assert datetime.fromisoformat(found["timestamps"]["started"]).timestamp() == WALL_AT + 5.0
    assert datetime.fromisoformat(found["requests"][0]["started_at"]).timestamp() == WALL_AT + 10.0
    assert "secret" not in json.dumps(found)
    assert found["config"]["mode"] == "audio"
    environment = found["environment"]
    assert (environment["mock"], environment["recordings"]["source"]) == (True, "synthetic")


def test_output_may_be_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, log_of(trials(3, "audio")), scenario={"mode": "audio"})
    assert main([str(run), "--export", "personaplex", "--output", str(tmp_path / "out")]) == 0
    page = capsys.readouterr().out
    assert (tmp_path / "out" / "personaplex.json").is_file()
    assert f"Written: {tmp_path / 'out' / 'personaplex.json'}" in page
    assert main([str(run), "--export", "personaplex"]) == 0
    assert (run / "exports" / "personaplex" / "personaplex.json").is_file()
    for words in ("PersonaPlex Audio Benchmark", "3 of 3 requests succeeded (100.0 %)", "220.0 ms, lies in S1's band"):
        assert words in page, words
    assert max(map(len, page.splitlines()[:13])) <= 120


def test_each_export_takes_the_turns_of_its_own_protocol(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = make_run(tmp_path / "both", log_of([*calls(2, 3), *trials(4, None)]))
    assert main([str(both), "--export", "voice_agent"]) == 0
    assert json.loads((both / "exports/voice_agent/summary.json").read_text())["results"]["total_turns"] == 6
    assert main([str(both), "--export", "personaplex"]) == 0
    assert strict(both / "exports/personaplex/personaplex.json")["summary"]["total_requests"] == 4
    capsys.readouterr()
    for number, (export, rows) in enumerate((("voice_agent", trials(2)), ("personaplex", turns(4)))):
        run = make_run(tmp_path / str(number), log_of(rows))
        assert main([str(run), "--export", export]) == 2
        assert capsys.readouterr().err.count("\n") == 1

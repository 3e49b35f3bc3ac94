"""The report of conversations against runs whose truth is known: turn-taking, waterfall, what a page says of it."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from run_maker import (
    MONOTONIC_AT,
    agent_log,
    calls,
    clean_seconds,
    log_of,
    make_run,
    spoken,
    turns,
)

from analysis import waterfall
from analysis.counting import conversations, count, requests
from analysis.report import main, report
from analysis.runs import open_run

CALLS, EACH = 25, 8
FAILED = {"outcome": "timed_out", "error_kind": "no_answer_in_time", "error": "no answer within 10 s"}


def known_run(parent: Path) -> Path:
    """200 answers in 25 calls, 20 of them early (-0.1 s), the rest 0.4 s (20), then 0.6 s to 1.2 s in even steps;
    40 barge-ins, 30 of them yielded to after 0.2 s each; 50 stall for 30 ms; 5 timeouts, 3 cut, 10 in the warm-up.
    """
    rows = calls(
        CALLS,
        EACH,
        floor_s=floor_s,
        text_name=lambda at: "order" if at % 2 else "hours",
        barge_in=lambda at: at < 40,
        yielded=lambda at: at < 30,
        time_to_silence_s=lambda at: 0.2 if at < 30 else None,
        min_prebuffer_s=lambda at: 0.03 if at % 4 == 0 else 0.0,
        stale_s=lambda at: 0.5 if at in (7, 9) else 0.0,
        false_barge_ins=lambda at: 2 if at == 11 else 0,
    )
    late = MONOTONIC_AT + 90.0
    rows += [spoken(session=f"s{at}", turn=8, intended_at=late, **FAILED) for at in range(5)]
    cut = {"outcome": "cut", "error_kind": "run_ended"}
    rows += [spoken(session=f"s{at}", turn=8, intended_at=late, **cut) for at in range(5, 8)]
    rows += [spoken(session=f"s{at}", turn=9, phase="warm_up", floor_s=9.0, intended_at=late) for at in range(10)]
    return make_run(parent, log_of(rows, clean_seconds(90), greeting_s=1.5), scenario={"threshold_s": 0.5})


def floor_s(at: int) -> float:
    if at % 10 == 0:
        return -0.1
    return 0.4 if at % 10 == 5 else 0.6 + at * 0.003


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report(known_run(tmp_path_factory.mktemp("known")))


def test_turns_by_outcome_and_early_is_a_success(known: dict[str, Any]) -> None:
    found = known["conversation"]
    assert found["outcomes"] == {"answered": 180, "timed_out": 5, "early": 20, "cut": 3}
    assert (found["started"], found["answered"], found["failed"], found["cut"]) == (208, 200, 5, 3)
    assert found["success_rate_percent"] == pytest.approx(100 * 200 / 205)
    assert known["turns"]["answered"] == 200
    assert found["timeouts"] == 5


def test_an_early_answer_with_a_fault_is_no_success(tmp_path: Path) -> None:
    rows = [*calls(2, 2, floor_s=-0.1), spoken(session="s9", floor_s=-0.2, error_kind="rejected", error="wrong")]
    counted = count(open_run(make_run(tmp_path, log_of(rows))).turns)
    assert (len(counted.answered), len(counted.failed)) == (4, 1)


def test_floor_transfer_offset_is_of_answers_in_the_measured_window(known: dict[str, Any]) -> None:
    values = np.array([floor_s(at) for at in range(200)]) * 1000
    found = known["conversation"]["floor_transfer_offset_ms"]
    assert found["n"] == 200
    assert found["mean"] == pytest.approx(values.mean())
    assert found["quantiles"]["p50"]["value"] == pytest.approx(np.percentile(values, 50))
    assert found["quantiles"]["p95"]["value"] == pytest.approx(np.percentile(values, 95))
    assert found["quantiles"]["p99"]["too_few"] == "n=200 < 368"
    assert found["quantiles"]["p50"]["low"] < found["quantiles"]["p50"]["value"] < found["quantiles"]["p50"]["high"]
    assert known["conversation"]["ttfc_ms"]["mean"] == pytest.approx(values.mean() - 20)
    assert known["conversation"]["queries"]["order"]["answered"] == 100


def test_gaps_overlaps_and_s3s_count_stand_apart(known: dict[str, Any]) -> None:
    taking = known["conversation"]["turn_taking"]
    assert (taking["gap_percent"], taking["overlap_percent"], taking["overlaps"]) == (90.0, 10.0, 20)
    assert taking["overlap_mean_ms"] == pytest.approx(100.0)
    assert (taking["reverse_barge_ins"], taking["threshold_s"]) == (40, 0.5)


@pytest.mark.parametrize(
    ("scenario", "early"), [({"threshold_s": 0.1}, 20), ({"threshold": 0.1}, 20), ({}, 40), (None, 40)]
)
def test_the_threshold_is_the_scenarios(tmp_path: Path, scenario: Any, early: int) -> None:
    rows = calls(CALLS, EACH, floor_s=floor_s)
    found = report(make_run(tmp_path, log_of(rows), scenario=scenario))["conversation"]["turn_taking"]
    assert found["reverse_barge_ins"] == early


def test_barge_in_playback_and_the_rest(known: dict[str, Any]) -> None:
    found = known["conversation"]
    barge_in = found["barge_in"]
    assert (barge_in["n"], barge_in["yielded"], barge_in["no_yield"]) == (40, 30, 10)
    assert barge_in["yielded_percent"] == 75.0
    assert barge_in["time_to_silence_ms"]["quantiles"]["p50"]["value"] == pytest.approx(200.0)
    assert found["stalls"]["stalled_percent"] == {"0": 25, "20": 25, "60": 0, "100": 0, "200": 0}
    assert found["stalls"]["min_prebuffer_ms"]["quantiles"]["p95"]["value"] == pytest.approx(30.0)
    assert found["stale"] == {"turns": 2, "total_s": 1.0}
    assert found["false_barge_ins"] == 2
    assert found["greeting"] == {"sessions": 25, "of": 25, "mean_s": 1.5}
    assert found["onset_by"] == {"ear": 200}


def test_requests_and_conversations_stand_apart(tmp_path: Path) -> None:
    asked = turns(40, 20, ttfc_s=0.1, e2e_s=5.0)
    spoken_rows = calls(20, 4, floor_s=0.7, request_id=lambda at: f"spoken-{at}")
    found = report(make_run(tmp_path, log_of([*asked, *spoken_rows], clean_seconds(60))))
    assert found["turns"]["answered"] == 120
    assert (found["overall"]["ttfc_ms"]["n"], found["conversation"]["ttfc_ms"]["n"]) == (40, 80)
    assert found["overall"]["ttfc_ms"]["mean"] == pytest.approx(100.0)
    assert found["conversation"]["floor_transfer_offset_ms"]["mean"] == pytest.approx(700.0)
    counted = count(open_run(tmp_path / "20261120-101500-demo").turns)
    assert (len(requests(counted).measured), len(conversations(counted).measured)) == (40, 80)


def test_latency_under_load(tmp_path: Path) -> None:
    """Calls begin a minute apart and stay: the first answers come with one call up, the last with ten."""
    rows = []
    for call in range(10):
        for turn in range((10 - call) * 6):
            at = MONOTONIC_AT + 10.0 + 60.0 * call + 10.0 * turn
            up = int((at - MONOTONIC_AT - 10.0) // 60.0) + 1
            rows.append(spoken(session=f"s{call}", turn=turn, intended_at=at, floor_s=0.5 + 0.1 * up))
    levels = report(make_run(tmp_path, log_of(rows)))["conversation"]["by_load"]
    assert [level["answers"] for level in levels] == [6 * (1 + 2 + 3), 6 * (4 + 5), 6 * (6 + 7), 6 * (8 + 9 + 10)]
    medians = [level["floor_transfer_offset_ms"]["quantiles"]["p50"]["value"] for level in levels]
    assert medians == pytest.approx([750.0, 1_000.0, 1_200.0, 1_400.0])


# ---------------------------------------------------------------------------------------------------------- waterfall


def test_a_waterfall_by_durations_adds_up() -> None:
    turns = pd.DataFrame(
        {
            "floor_transfer_offset_s": [1.0, 1.0, 0.5, 0.9],
            "asr_s": [0.1, np.nan, np.nan, np.nan],
            "asr_with_wait_s": [0.3, 0.3, np.nan, np.nan],
            "llm_ttfb_s": [0.2, 0.2, 0.4, np.nan],
            "llm_first_sentence_s": [0.25, np.nan, np.nan, np.nan],
            "tts_ttfb_s": [0.15, 0.15, 0.3, np.nan],
            "leading_silence_s": [np.nan, 0.05, np.nan, np.nan],
        }
    )
    stages = waterfall.by_durations(turns)
    assert stages.index.tolist() == [0, 1, 2]
    first = {
        "end_of_speech_wait": 0.2,
        "asr": 0.1,
        "llm_first_token": 0.2,
        "llm_first_sentence": 0.05,
        "tts": 0.15,
        "rest": 0.3,
    }
    assert stages.loc[0].dropna().to_dict() == pytest.approx(first)
    second = {"asr_and_wait": 0.3, "llm_first_token": 0.2, "tts": 0.15, "leading_silence": 0.05, "rest": 0.3}
    assert stages.loc[1].dropna().to_dict() == pytest.approx(second)
    assert stages.loc[2].dropna().to_dict() == pytest.approx({"llm_first_token": 0.4, "tts": 0.3, "rest": -0.2})
    assert stages.sum(axis=1).tolist() == pytest.approx([1.0, 1.0, 0.5])


def test_a_waterfall_by_instants_leaves_no_rest() -> None:
    at = {
        "user_offset_at": 10.0,
        "user_last_voiced_received_at": 10.02,
        "end_of_speech_at": 10.22,
        "transcript_at": 10.32,
        "first_token_at": 10.47,
        "first_sentence_at": 10.52,
        "tts_first_audio_at": 10.72,
        "first_audio_at": 10.73,
        "agent_onset_at": 10.75,
    }
    stages = waterfall.by_instants(pd.DataFrame([at, {**at, "transcript_at": np.nan}]))
    assert len(stages) == 1
    assert stages.iloc[0].tolist() == pytest.approx([0.02, 0.2, 0.1, 0.15, 0.05, 0.2, 0.01, 0.02])
    assert stages.iloc[0].sum() == pytest.approx(at["agent_onset_at"] - at["user_offset_at"])


def test_the_part_that_takes_most_is_the_bottleneck() -> None:
    stages = pd.DataFrame({"asr": [0.1, 0.1], "llm_first_token": [0.2, 0.2], "llm_first_sentence": [0.2, np.nan]})
    stages = stages.assign(tts=[0.28, 0.28], rest=[0.1, -0.3])
    found = waterfall.summarise(stages)
    assert found is not None
    assert found["bottleneck"] == {
        "part": "LLM",
        "mean_ms": pytest.approx(300),
        "share_percent": pytest.approx(100 * 0.3 / 0.68),
    }
    assert found["total_mean_ms"] == pytest.approx(580)
    by_key = {stage["stage"]: stage for stage in found["stages"]}
    sentence = by_key["llm_first_sentence"]
    assert (sentence["mean_ms"], sentence["p50_ms"]) == pytest.approx((100, 200))
    assert by_key["rest"]["share_percent"] == 0.0
    resting = waterfall.summarise(stages.assign(rest=2.0))
    assert resting is not None
    assert resting["bottleneck"]["part"] == "rest"
    assert resting["bottleneck_of_the_known"]["part"] == "LLM"
    assert waterfall.summarise(stages.iloc[:0]) is None


def test_a_runs_waterfall_is_its_logs(tmp_path: Path) -> None:
    rows = calls(20, 4, floor_s=lambda at: 0.9 if at == 37 else 0.75)
    (tmp_path / "bot.log").write_text(agent_log(rows, apart_s=3_600.0))
    server = report(make_run(tmp_path, log_of(rows)), [tmp_path / "bot.log"])["conversation"]["server"]
    stages = {stage["stage"]: stage["p50_ms"] for stage in server["waterfall"]["stages"]}
    assert stages == pytest.approx(
        {
            "end_of_speech_wait": 200,
            "asr": 100,
            "llm_first_token": 150,
            "llm_first_sentence": 50,
            "tts": 200,
            "rest": 50,
        }
    )
    assert server["waterfall"]["n"] == 80
    assert server["slowest"]["turn"] == 1
    assert server["slowest"]["stream_id"] == rows[37]["stream_id"]
    assert server["slowest"]["floor_transfer_offset_ms"] == pytest.approx(900)
    assert {stage["stage"]: stage["ms"] for stage in server["slowest"]["stages"]}["rest"] == pytest.approx(200)
    assert server["components"]["overall"]["llm_ttfb_ms"]["mean"] == pytest.approx(150)  # without the greetings' 900
    assert server["components"]["overall"]["llm_tokens_per_s"]["mean"] == pytest.approx(100)
    assert (server["greeting"], server["components"]["calls"]) == (20, {"llm": 80, "tts": 80, "asr": 80})


# ----------------------------------------------------------------------------------------------------------- the page


def run_main(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return status, told.out, told.err


@pytest.mark.parametrize("width", [100, 120])
def test_the_page_says_it_all(tmp_path: Path, capsys: pytest.CaptureFixture[str], width: int) -> None:
    run = known_run(tmp_path)
    rows = calls(CALLS, EACH, floor_s=floor_s)
    (tmp_path / "bot.log").write_text(agent_log(rows, apart_s=-3_600.0))
    status, page, errors = run_main(capsys, run, "--server-log", tmp_path / "bot.log", "--width", width)
    assert (status, errors) == (0, "")
    body = page.split("Written:")[0]
    assert max(map(len, body.splitlines())) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in body
    words = " ".join(body.split())
    for said in (
        "208 turns in 25 calls: 180 answered, 5 timed_out, 20 early, 3 cut",
        "25 calls opened with a greeting (1.5 s), not counted",
        "200 answers heard in 25 calls",
        "90.0 % of 200 answers came after the user's last word, 10.0 % before it (20, 100 ms on average)",
        "40 answers sooner than 0.5 s after it",
        "40 tried, the agent yielded to 75.0 % (10 not); silent after p50 200 ms, p95 n<72",
        "2 times the agent stopped though the user was silent",
        "1.0 s of earlier answers in 2 turns",
        "prebuffer (ms) that avoids every stall: p50 0.0, p95 30.0",
        "200 turns with figures",
        "The log's clock is -3,600 s off the clients'",
        "Waterfall of 200 turns",
        "Bottleneck: ",
        "Slowest turn",
    ):
        assert said in words, said
    assert "RTF" not in body
    assert "E2E" not in body
    assert "ASPS" not in body


def test_the_files_of_conversations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = known_run(tmp_path)
    _, page, _ = run_main(capsys, run)
    assert "conversations.csv" in page
    assert not (run / "summary.csv").exists()
    assert json.loads((run / "report.json").read_text())["conversation"]["turn_taking"]["overlaps"] == 20
    with (run / "conversations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["query"], row["answered"]) for row in rows] == [("hours", "100"), ("order", "100"), ("all", "200")]
    values = [floor_s(at) * 1000 for at in range(200)]
    assert float(rows[-1]["floor_transfer_offset_p50_ms"]) == pytest.approx(np.percentile(values, 50))
    assert rows[-1]["floor_transfer_offset_p99_ms"] == ""


NO_RESULTS = [
    (
        {"outcome": "refused", "error_kind": "connection_refused", "error": "nothing listens on localhost:8100"},
        "the endpoint could not be reached",
    ),
    ({"outcome": "refused", "error_kind": "http_404", "error": "HTTP 404"}, "the endpoint could not be reached"),
    (FAILED, "the query audio is missing, silent or of a format this server does not understand"),
    ({"outcome": "disconnected", "error_kind": "ws_closed_1011", "error": "closed"}, "calls came up and then broke"),
    (
        {"outcome": "protocol_error", "error_kind": "empty_audio", "error": "empty"},
        "the audio is missing",
    ),
]


@pytest.mark.parametrize(("failure", "cause"), NO_RESULTS, ids=[case[0]["error_kind"] for case in NO_RESULTS])
def test_no_results_names_the_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], failure: dict[str, str], cause: str
) -> None:
    rows = calls(5, 3, **failure)
    status, page, _ = run_main(capsys, make_run(tmp_path, log_of(rows, clean_seconds())))
    words = " ".join(page.split())
    assert status == 0
    assert "No results: " in words
    assert cause in words
    assert f'Most often (15 turns): {failure["error_kind"]}: "{failure["error"]}"' in words
    assert "heck the server's log" in words
    assert "p50" not in page


@pytest.mark.parametrize(
    "rows",
    [
        [spoken()],
        [spoken(phase="warm_up")],
        [spoken(outcome="cut", error_kind="run_ended")],
        [spoken(outcome="cut", error_kind="run_ended", ended_at=None, stream_id=None)],
        [spoken(text_name="[bold]odd[/bold]", stream_id="[red]x")],
        [spoken(agent_onset_at=None, floor_transfer_offset_s=None, agent_onset_arrival_at=None)],
        [
            spoken(
                user_offset_at=None, user_onset_at=None, outcome="refused", error_kind="http_500", error="[/oops] {x}"
            )
        ],
    ],
    ids=["one", "warm_up", "cut", "unended", "markup", "unheard", "refused"],
)
@pytest.mark.parametrize("with_log", [False, True])
def test_a_meagre_run_still_has_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], with_log: bool
) -> None:
    run = make_run(tmp_path, log_of(rows))
    (tmp_path / "bot.log").write_text(agent_log(calls(1, 2)))
    arguments = ["--server-log", tmp_path / "bot.log"] if with_log else []
    status, page, errors = run_main(capsys, run, *arguments)
    assert (status, errors) == (0, "")
    assert "Turns" in page
    json.loads((run / "report.json").read_text())

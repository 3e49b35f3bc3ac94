"""The report against hand-computed truth: every figure, every file, every way it is called."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_maker import MONOTONIC_AT, clean_seconds, facts, log_of, make_run, turn, turns

from analysis.report import main, report

BEGIN = MONOTONIC_AT + 10.0


def known_run(parent: Path) -> Path:
    """100 measured successes (40 of `short`, 60 of `long`), 5 failures, 3 cut, 10 in the warm-up.

    First intended start BEGIN, last end BEGIN + 50: T_wall is 50 s.
    """
    rows = []
    for at in range(100):
        text, chars, audio_s = ("short", 67, 2.0) if at < 40 else ("long", 270, 10.0)
        rows.append(
            turn(
                session=f"s{at % 25}",
                turn=at // 25,
                intended_at=BEGIN + at * 0.4,
                late_s=0.004,
                text_name=text,
                text_chars=chars,
                audio_s=audio_s,
                ttfc_s=0.100 + at * 0.001,
                ttfa_s=0.150 + at * 0.001,
                e2e_s=1.004 + at * 0.001,
                min_prebuffer_s=0.030 if at < 25 else 0.0,
            )
        )
    slow = {"ttfc_s": 9.0, "audio_s": 99.0, "text_name": "short"}  # must not show in any figure
    for at in range(5):
        failure = {"outcome": "timed_out", "error_kind": "no_answer_in_time", "error": "no answer within 5 s"}
        if at >= 3:
            failure = {"outcome": "answered", "error_kind": "too_short", "error": "0.01 s of audio"}
        ended = BEGIN + (50.0 if at == 0 else 20.0)
        rows.append(turn(session=f"f{at}", intended_at=BEGIN + 5 + at, ended_at=ended, **failure, **slow))
    cut = {"outcome": "cut", "error_kind": "run_ended"}
    rows += [turn(session=f"c{at}", intended_at=BEGIN + 6, **cut, **slow) for at in range(3)]
    rows += [turn(session=f"u{at}", intended_at=BEGIN - 9 + at / 2, phase="warm_up", **slow) for at in range(10)]
    return make_run(parent, log_of(rows, clean_seconds(50)))


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report(known_run(tmp_path_factory.mktemp("known")))


def test_turns_are_counted_as_what_they_are(known: dict[str, Any]) -> None:
    assert known["turns"] == {
        "warm_up": 10,
        "started": 108,
        "answered": 100,
        "failed": 5,
        "cut": 3,
        "sessions": 33,
        "success_rate_percent": pytest.approx(100 * 100 / 105),
    }
    assert known["cut"] == {"run_ended": 3}
    assert [(f["error_kind"], f["turns"], f["example"]) for f in known["failures"]] == [
        ("no_answer_in_time", 3, "no answer within 5 s"),
        ("too_short", 2, "0.01 s of audio"),
    ]


def test_rates_are_exact(known: dict[str, Any]) -> None:
    rates = known["throughput"]
    assert rates["wall_s"] == pytest.approx(50.0)
    assert rates["asps"] == pytest.approx((40 * 2.0 + 60 * 10.0) / 50)
    assert rates["rps"] == pytest.approx(105 / 50)
    assert rates["rps_answered"] == pytest.approx(100 / 50)
    assert rates["cps"] == pytest.approx((40 * 67 + 60 * 270) / 50)
    real_time = [(1.0 + at * 0.001) / (2.0 if at < 40 else 10.0) for at in range(100)]
    assert rates["rtf_mean"] == pytest.approx(np.mean(real_time))
    assert rates["rtf_median"] == pytest.approx(np.median(real_time))


def test_latency_is_from_the_intended_start_of_successes_only(known: dict[str, Any]) -> None:
    overall = known["overall"]

    def value(metric: str, q: str) -> float:
        return overall[metric]["quantiles"][q]["value"]

    assert value("ttfc_ms", "p50") == pytest.approx(149.5)
    assert value("ttfc_ms", "p95") == pytest.approx(100 + 94.05)
    assert value("ttfa_ms", "p50") == pytest.approx(199.5)
    assert value("e2e_ms", "p95") == pytest.approx(1_004 + 94.05)
    assert value("ttfc_from_send_ms", "p50") == pytest.approx(145.5)
    assert overall["ttfc_ms"]["greatest"] == pytest.approx(199.0)
    assert {overall[metric]["n"] for metric in ("ttfc_ms", "ttfa_ms", "e2e_ms", "rtf", "ttfc_from_send_ms")} == {100}
    assert overall["ttfc_ms"]["quantiles"]["p99"] == {
        "value": None,
        "turns_needed": 368,
        "low": None,
        "high": None,
        "open_low": False,
        "open_high": False,
        "too_few": "n=100 < 368",
        "no_interval": "n=100 < 368",
    }
    median = overall["ttfc_ms"]["quantiles"]["p50"]
    assert median["low"] < median["value"] < median["high"]


def test_a_text_has_the_sources_latency_keys(known: dict[str, Any]) -> None:
    assert list(known["texts"]) == ["short", "long"]
    short = known["texts"]["short"]
    values = 1_004 + np.arange(40.0)
    assert short["latency"] == {
        "mean_ms": pytest.approx(values.mean()),
        "std_ms": pytest.approx(values.std()),
        "p50_ms": pytest.approx(np.percentile(values, 50)),
        "p95_ms": pytest.approx(np.percentile(values, 95)),
        "p99_ms": pytest.approx(np.percentile(values, 99)),
        "min_ms": pytest.approx(1_004.0),
        "max_ms": pytest.approx(1_043.0),
    }
    assert (short["started"], short["answered"], short["failed"], short["cut"]) == (48, 40, 5, 3)
    assert short["success_rate_percent"] == pytest.approx(100 * 40 / 45)
    assert (short["text_chars"], short["audio_duration_ms"]) == (67, 2_000)
    assert known["texts"]["long"]["success_rate_percent"] == 100


def test_stalls_by_prebuffer(known: dict[str, Any]) -> None:
    stalls = known["stalls"]
    assert stalls["n"] == 100
    assert stalls["stalled_percent"] == {"0": 25, "20": 25, "60": 0, "100": 0, "200": 0}
    assert stalls["min_prebuffer_ms"]["quantiles"]["p95"]["value"] == pytest.approx(30.0)


def test_wall_time_spans_workers_of_two_hosts(tmp_path: Path) -> None:
    far = facts("w1", host="box-b", boot_id="boot-b", monotonic_at=0.0)
    logs = {
        "w0": log_of([turn(intended_at=MONOTONIC_AT + 1.0)]),
        "w1": log_of([turn(worker="w1", intended_at=10.6)], worker=far),
    }
    assert report(make_run(tmp_path, logs))["throughput"]["wall_s"] == pytest.approx(10.0)


def test_rare_texts_are_folded(tmp_path: Path) -> None:
    rows = turns(200, text_name=lambda at: f"t{at % 20}" if at < 100 else f"t{at % 10}")
    texts = report(make_run(tmp_path, log_of(rows)))["texts"]
    assert len(texts) == 13
    assert list(texts)[-1] == "other (8)"
    assert sum(row["answered"] for row in texts.values()) == 200


# ------------------------------------------------------------------------------------------------- the page, the files


def run_main(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return status, told.out, told.err


@pytest.mark.parametrize("width", [100, 120, 140])
def test_the_page_fits_and_says_it_all(tmp_path: Path, capsys: pytest.CaptureFixture[str], width: int) -> None:
    status, page, errors = run_main(capsys, known_run(tmp_path), "--width", width)
    assert (status, errors) == (0, "")
    body = page.split("Written:")[0]
    assert max(map(len, body.splitlines())) <= width
    assert not [line for line in body.splitlines() if line != line.rstrip()]
    assert "\x1b" not in page
    assert "\N{HORIZONTAL ELLIPSIS}" not in page
    for words in (
        "http://localhost:8080",
        "WARNING  failures",
        "108 started: 100 answered, 5 failed, 3 cut",
        "success 95.2 %",
        "no answer within 5 s",
        "ASPS 13.6",
        "RPS 2.10",
        "CPS 378",
        "25.0 %",
        "TTFC from actual send",
        "p95 72, p99 368",
    ):
        assert words in page, words
    assert page.index("Reasons to distrust") < page.index("Turns ") < page.index("Latency") < page.index("Throughput")


def test_the_files_hold_what_the_page_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = known_run(tmp_path)
    status, page, _ = run_main(capsys, run, "--output", tmp_path / "out" / "deep")
    assert status == 0
    assert f"{tmp_path}/out/deep/report.json" in page
    assert not (run / "report.json").exists()
    figures = json.loads((tmp_path / "out" / "deep" / "report.json").read_text())
    assert figures["throughput"]["asps"] == pytest.approx(13.6)
    with (tmp_path / "out" / "deep" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == ["short", "long", "all"]
    assert float(rows[-1]["ttfc_p95_ms"]) == pytest.approx(194.05)
    assert rows[-1]["ttfc_p99_ms"] == ""
    assert float(rows[-1]["asps"]) == pytest.approx(13.6)
    assert (rows[0]["asps"], rows[0]["latency_min_ms"]) == ("", "1004.0")


def test_a_clean_run_says_that_nothing_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, log_of(turns(400, 25, ttfc_s=lambda at: 0.1 + at * 7 % 13 / 1000), clean_seconds()))
    _, page, _ = run_main(capsys, run)
    assert "No reason to distrust this run" in page
    assert "success 100 %" in page


def test_a_half_written_run_is_judged_and_its_loss_comes_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, log_of(turns(100), unended=[turn(session="s99")])[:-10], state="running")
    (run / "run.json").unlink()
    status, page, _ = run_main(capsys, run)
    assert status == 0
    first = page[page.index("Reasons to distrust") :].splitlines()[1]
    assert "INVALID" in first
    assert "half-written run" in first
    assert "100 answered" in page


def test_nothing_answered_is_said_clearly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = turns(30, outcome="refused", error_kind="connection_refused", error="nothing listens on localhost:8080")
    status, page, _ = run_main(capsys, make_run(tmp_path, log_of(rows, clean_seconds())))
    assert status == 0
    assert "No measured turn succeeded" in page
    assert "30 of 30 turns ended as connection_refused" in " ".join(page.split())
    assert "nothing listens on localhost:8080" in page
    assert "p50" not in page
    assert json.loads((tmp_path / "20261120-101500-demo" / "report.json").read_text())["overall"]["latency"] is None


@pytest.mark.parametrize(
    "rows",
    [
        turns(5, phase="warm_up"),
        [turn(outcome="cut", error_kind="run_ended")],
        [turn(outcome="cut", error_kind="run_ended", ended_at=None)],
        [turn()],
        [turn(text_name="[bold]odd[/bold]", voice=None, min_prebuffer_s=0.0)],
    ],
    ids=["warm_up", "cut", "unended", "one", "markup"],
)
def test_a_meagre_run_still_has_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]]
) -> None:
    status, page, errors = run_main(capsys, make_run(tmp_path, log_of(rows)))
    assert (status, errors) == (0, "")
    assert "Turns" in page
    json.loads((tmp_path / "20261120-101500-demo" / "report.json").read_text())


def test_what_people_wrote_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        *turns(30, text_name="[red]hi"),
        turn(session="z", outcome="refused", error_kind="http_500", error="[/oops] {x}"),
    ]
    _, page, _ = run_main(capsys, make_run(tmp_path, log_of(rows)))
    assert "[red]hi" in page
    assert "[/oops] {x}" in page


def test_no_run_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "gone", tmp_path / "runs" / "latest"):
        status, page, errors = run_main(capsys, path)
        assert (status, page) == (2, "")
        assert errors.count("\n") == 1
        assert str(path) in errors


def test_a_foreign_server_log_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, log_of(turns(3)))
    status, _, errors = run_main(capsys, run, "--server-log", tmp_path / "gone.jsonl")
    assert status == 2
    assert errors == f"report: {tmp_path}/gone.jsonl: No such file or directory\n"


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert "--server-log trace.jsonl" in told
    assert "runs/latest" in told


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_it_prints_into_any_pipe(tmp_path: Path, encoding: str) -> None:
    run = make_run(tmp_path, log_of(turns(40)))
    command = [sys.executable, "-m", "analysis.report", str(run)]
    environment = {"PYTHONIOENCODING": encoding, "PYTHONPATH": ":".join(sys.path), "PATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"40 answered" in done.stdout
    gone = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m analysis.report {run} | :"],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert gone.stderr == b""

"""Do targets hold? Runs whose truth is known, against targets at, below and beyond it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from analysis.report import report
from tests import run_maker
from tests.run_maker import MONOTONIC_AT, clean_seconds, log_of, make_run
from workers.samples import schema

ROOT = Path(__file__).resolve().parent.parent


def judged(tmp_path: Path, rows: list[dict[str, Any]], *lines: str, gpus: int = 1, **given: Any) -> dict[str, Any]:
    """The verdicts on a run of these turns, by the target's line; `exit` and `goodput` beside them."""
    seconds = given.pop("seconds", None)
    tmp_path.mkdir(exist_ok=True)
    path = tmp_path / "targets.yaml"
    path.write_text("targets:\n" + "".join(f"  - {line}\n" for line in lines) + f"gpus: {gpus}\n")
    run = make_run(tmp_path, log_of(rows, seconds=clean_seconds() if seconds is None else seconds), **given)
    found: dict[str, Any] = report(run, (), str(path))["targets"]
    return {verdict["text"]: verdict for verdict in found["verdicts"]} | {
        "exit": found["exit"],
        "goodput": found["goodput"],
    }


def statuses(found: dict[str, Any], *lines: str) -> list[str]:
    return [found[line]["status"] for line in lines]


def test_a_figure_that_equals_its_limit_misses_and_stretch_is_judged_apart(tmp_path: Path) -> None:
    rows = run_maker.turns(100, ttfc_s=0.400, e2e_s=0.449_999)
    at, under, stretch = (
        "ttfc mean < 400 ms",
        "e2e p50 < 450 ms, stretch < 350 ms",
        "ttfc p95 < 500 ms, stretch < 400 ms",
    )
    found = judged(tmp_path, rows, at, under, stretch)
    assert statuses(found, at, under, stretch) == ["miss", "hold", "hold"]
    assert (found[under]["stretch_status"], found[stretch]["stretch_status"]) == ("miss", "miss")
    assert found["exit"] == 1


def test_all_of_them_hold(tmp_path: Path) -> None:
    found = judged(tmp_path, run_maker.turns(400, ttfc_s=0.1), "ttfc p95 < 150 ms, stretch < 101 ms", "success > 99 %")
    assert found["exit"] == 0
    first = found["ttfc p95 < 150 ms, stretch < 101 ms"]
    assert (first["stretch_status"], first["proven"], first["bad_share"]) == ("hold", True, 0.0)
    # Nobody violates: 3 of 400 could, says the exact bound at 95 %.
    assert first["bad_at_most"] == pytest.approx(1 - 0.05 ** (1 / 400))


def test_a_failed_turn_is_later_than_any_limit(tmp_path: Path) -> None:
    """6 % of the turns failed, and the others are quick: no p95 holds, though that of the survivors would."""
    rows = run_maker.turns(94, ttfc_s=0.1) + [
        run_maker.turn(
            session=f"x{n}", outcome="timed_out", error_kind="timed_out", error="no answer",
            intended_at=MONOTONIC_AT + 12 + n,
        )
        for n in range(6)
    ]  # fmt: skip
    found = judged(tmp_path, rows, "ttfc p95 < 150 ms", "ttfc p50 < 150 ms", "success > 94 %")
    assert found["ttfc p95 < 150 ms"]["measured"] == "∞"
    assert found["ttfc p95 < 150 ms"]["bad_share"] == pytest.approx(0.06)
    kinds = statuses(found, "ttfc p95 < 150 ms", "ttfc p50 < 150 ms", "success > 94 %")
    assert kinds == ["miss", "hold", "miss"], "94 % is not more than 94 %"
    assert found["exit"] == 1


def test_too_few_turns_are_no_quantile_but_may_be_a_miss(tmp_path: Path) -> None:
    rows = run_maker.turns(40, ttfc_s=0.3)
    found = judged(tmp_path, rows, "ttfc p95 < 400 ms", "ttfc p95 < 400 ms".replace("95", "99"), "ttfc p90 < 200 ms")
    assert statuses(found, "ttfc p95 < 400 ms", "ttfc p99 < 400 ms") == ["cannot_tell", "cannot_tell"]
    assert "n=40 < 72" in found["ttfc p95 < 400 ms"]["why"]
    assert found["ttfc p90 < 200 ms"]["status"] == "miss"


def test_few_turns_that_all_violate_are_a_miss(tmp_path: Path) -> None:
    found = judged(tmp_path, run_maker.turns(30, ttfc_s=0.3), "ttfc p95 < 200 ms")
    assert found["ttfc p95 < 200 ms"]["status"] == "miss"


def test_what_was_not_measured_cannot_be_told(tmp_path: Path) -> None:
    found = judged(tmp_path, run_maker.turns(100), "vram < 16 GB, stretch < 12 GB", "floor_transfer_offset p50 < 1 s")
    assert statuses(found, "vram < 16 GB, stretch < 12 GB", "floor_transfer_offset p50 < 1 s") == ["cannot_tell"] * 2
    assert "--metrics" in found["vram < 16 GB, stretch < 12 GB"]["why"]
    assert found["exit"] == 2


def test_a_generator_at_its_limit_lets_nothing_be_judged(tmp_path: Path) -> None:
    busy = [run_maker.second(MONOTONIC_AT + 11.0 + at, cpu_share=0.99) for at in range(30)]
    found = judged(tmp_path, run_maker.turns(100, ttfc_s=0.5), "ttfc p95 < 400 ms", seconds=busy)
    assert found["ttfc p95 < 400 ms"]["status"] == "cannot_tell"
    assert "saturated_generator" in found["ttfc p95 < 400 ms"]["why"]
    assert found["exit"] == 2


@pytest.mark.parametrize(
    ("mib", "status", "stretch"), [(11_000, "hold", "hold"), (15_000, "hold", "miss"), (15_259, "miss", "miss")]
)
def test_the_peak_of_gpu_memory_is_what_was_scraped(mib: int, status: str, stretch: str, tmp_path: Path) -> None:
    """dcgm-exporter tells MiB: 15,259 are 16.0002 GB. Two GPUs, and the peak is between two lower values."""
    run = make_run(tmp_path, log_of(run_maker.turns(100), seconds=clean_seconds()))
    rows = [
        {
            "run": run_maker.RUN,
            "endpoint": "http://h/metrics",
            "metric": "DCGM_FI_DEV_FB_USED",
            "labels": f'gpu="{gpu}"',
            "kind": "gauge",
            "value": float(value),
            "at": run_maker.WALL_AT + 11 + at,
        }
        for at, value in enumerate((4_000, mib, 5_000))
        for gpu, value in (("0", value), ("1", 3_000))
    ]
    (run / "server").mkdir()
    data = b"".join(run_maker.packed("metrics", row) for row in rows)
    (run / schema.METRICS_LOG).write_bytes(run_maker.packed_header(run_maker.facts()) + data)
    found = {verdict["name"]: verdict for verdict in report(run, (), "chatterbox")["targets"]["verdicts"]}
    assert (found["GPU memory"]["status"], found["GPU memory"]["stretch_status"]) == (status, stretch)
    assert found["GPU memory"]["value"] == mib * 2**20


def streams(count: int, each: int) -> list[dict[str, Any]]:
    """`count` streams at a time, each taking 1 s of every second for 2 s of audio, `each` times."""
    return [
        run_maker.turn(
            session=f"s{stream}", turn=at, intended_at=MONOTONIC_AT + 10.0 + at, late_s=0.0, ttfc_s=0.1, e2e_s=1.0,
        )
        for stream in range(count)
        for at in range(each)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("at_a_time", "gpus", "status", "stretch"),
    [(4, 1, "hold", "cannot_tell"), (6, 1, "hold", "hold"), (8, 2, "hold", "cannot_tell"), (3, 1, "cannot_tell", None)],
)
def test_streams_a_gpu(at_a_time: int, gpus: int, status: str, stretch: str | None, tmp_path: Path) -> None:
    line = "concurrent_streams > 3, stretch > 5"
    verdict = judged(tmp_path, streams(at_a_time, 20), line, gpus=gpus)[line]
    assert verdict["value"] == pytest.approx(at_a_time / gpus, rel=0.01)
    assert verdict["status"] == status, "few streams may be few because few were asked for"
    if stretch == "hold":
        assert verdict["stretch_status"] == "hold"


def test_streams_slower_than_they_play_do_not_count(tmp_path: Path) -> None:
    slow = [dict(row, audio_s=0.5, rtf=2.0) for row in streams(6, 20)]
    line = "concurrent_streams > 3"
    assert judged(tmp_path, slow, line)[line]["status"] == "miss"


def test_goodput_is_the_share_within_the_widest_limit_of_each_metric(tmp_path: Path) -> None:
    rows = run_maker.turns(
        200, ttfc_s=lambda at: 0.3 if at % 10 == 0 else 0.1, e2e_s=lambda at: 0.9 if at % 20 == 1 else 0.5
    )
    found = judged(tmp_path, rows, "ttfc p50 < 90 ms", "ttfc p95 < 200 ms", "e2e p95 < 600 ms", "success > 50 %")
    assert found["goodput"]["share"] == pytest.approx(0.85)
    assert found["goodput"]["at_least"] < 0.85


def test_requests_and_conversations_are_judged_apart(tmp_path: Path) -> None:
    rows = [*run_maker.turns(100, ttfc_s=0.1), *run_maker.calls(25, 4)]
    path = tmp_path / "targets.yaml"
    path.write_text("targets:\n  - ttfc p50 < 300 ms\n")
    found = report(make_run(tmp_path, log_of(rows, seconds=clean_seconds())), (), str(path))["targets"]["verdicts"]
    assert {verdict["of"]: verdict["status"] for verdict in found} == {"requests": "hold", "conversations": "miss"}


def test_one_row_nan_and_negative_durations_make_no_figure(tmp_path: Path) -> None:
    rows = [
        run_maker.turn(ttfc_s=-5.0, request_id="a"),
        run_maker.turn(ttfc_s=float("nan"), request_id="b", intended_at=MONOTONIC_AT + 11),
    ]
    found = judged(tmp_path, rows, "ttfc mean < 400 ms", "ttfc p50 < 400 ms")
    assert statuses(found, "ttfc mean < 400 ms", "ttfc p50 < 400 ms") == ["cannot_tell", "cannot_tell"]


def test_an_all_failed_run_misses(tmp_path: Path) -> None:
    rows = run_maker.turns(80, outcome="refused", error_kind="http_503", error="busy")
    found = judged(tmp_path, rows, "ttfc p95 < 400 ms", "ttfc mean < 400 ms", "success > 99 %")
    kinds = statuses(found, "ttfc p95 < 400 ms", "ttfc mean < 400 ms", "success > 99 %")
    assert kinds == ["miss", "cannot_tell", "miss"]


def cut(at: int, waited_s: float, **given: Any) -> dict[str, Any]:
    """A turn that we ended after it had waited for so long without a first chunk."""
    start = MONOTONIC_AT + 20.0 + at
    return run_maker.turn(
        session=f"cut{at}", outcome="cut", error_kind="run_ended", intended_at=start, ended_at=start + waited_s, **given
    )


def test_a_server_that_hangs_until_the_run_ends_passes_no_gate(tmp_path: Path) -> None:
    rows = run_maker.turns(120, ttfc_s=0.1) + [cut(at, 20.0) for at in range(80)]
    found = judged(tmp_path, rows, "ttfc p95 < 400 ms", "success > 90 %")
    assert found["ttfc p95 < 400 ms"]["status"] == "miss"
    assert found["goodput"]["share"] == pytest.approx(0.6)
    assert found["success > 90 %"]["status"] == "cannot_tell", "nobody knows whether they would have been answered"
    assert "cut" in found["success > 90 %"]["why"]
    assert found["exit"] == 1


def test_turns_cut_at_once_tell_nothing(tmp_path: Path) -> None:
    few = judged(
        tmp_path / "few", run_maker.turns(400, ttfc_s=0.1) + [cut(at, 0.05) for at in range(4)], "ttfc p95 < 400 ms"
    )
    many = judged(
        tmp_path / "many", run_maker.turns(300, ttfc_s=0.1) + [cut(at, 0.05) for at in range(60)], "ttfc p95 < 400 ms"
    )
    assert (few["exit"], many["exit"]) == (0, 2)


def test_one_turn_and_the_survivors_of_many_failures_are_no_mean(tmp_path: Path) -> None:
    lines = ("ttfc mean < 400 ms", "rtf mean < 0.5", "success > 99 %")
    one = judged(tmp_path / "one", [run_maker.turn()], *lines)
    assert statuses(one, *lines) == ["cannot_tell"] * 3
    rows = run_maker.turns(20, ttfc_s=0.1) + run_maker.turns(
        480,
        outcome="timed_out",
        error_kind="timed_out",
        error="no",
        request_id=lambda at: f"failed{at}",
        turn=lambda at: 99,
    )
    assert judged(tmp_path / "many", rows, "ttfc mean < 400 ms")["ttfc mean < 400 ms"]["status"] == "cannot_tell"


def test_answers_that_begin_early_count_with_their_sign(tmp_path: Path) -> None:
    """9 of 10 begin 0.3 s before the user ends."""
    rows = run_maker.calls(25, 12, floor_s=lambda at: 0.9 if at % 10 == 0 else -0.3)
    for row in rows:
        row["ttfa_s"] = row["floor_transfer_offset_s"]
    found = judged(tmp_path, rows, "ttfa p50 < 800 ms")["ttfa p50 < 800 ms"]
    assert (found["status"], found["n"]) == ("hold", 300)
    assert found["value"] == pytest.approx(-0.3)


def test_a_call_that_nobody_answers_is_no_stream_that_keeps_up(tmp_path: Path) -> None:
    rows = run_maker.calls(8, 12)
    for row in rows[1:]:
        row.update(outcome="timed_out", error_kind="no_answer_in_time", error="15 s", floor_transfer_offset_s=None)
    line = "concurrent_streams > 3"
    assert judged(tmp_path, rows, line)[line]["status"] == "miss"


def test_levels_are_not_judged_together(tmp_path: Path) -> None:
    rows = run_maker.turns(200, ttfc_s=0.1, level=lambda at: 2 if at < 100 else 4)
    found = judged(tmp_path, rows, "ttfc p95 < 400 ms")
    assert found["exit"] == 2
    assert "several_levels" in found["ttfc p95 < 400 ms"]["why"]


def run_report(run: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "analysis.report", str(run), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_has_the_verdicts_status_page_junit_and_markdown(tmp_path: Path) -> None:
    run = make_run(tmp_path, log_of(run_maker.turns(100, ttfc_s=0.35, e2e_s=0.48), seconds=clean_seconds()))
    junit, markdown = tmp_path / "t.xml", tmp_path / "t.md"
    done = run_report(run, "--targets", "chatterbox", "--junit", str(junit), "--markdown", str(markdown))
    assert done.returncode == 1, done.stderr  # the median end to end is 480 ms, asked 450
    assert "end-to-end latency p50" in done.stdout
    assert "MISSED" in done.stdout
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("7", "1")
    assert {case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None} == {
        "end-to-end latency p50"
    }
    assert "| end-to-end latency p50 |" in markdown.read_text()
    told = json.loads((run / "report.json").read_text())["targets"]["verdicts"]
    assert [verdict["stretch_status"] for verdict in told][:3] == ["miss", "hold", "miss"]


def test_junit_without_targets_is_refused_in_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path, log_of(run_maker.turns(10), seconds=clean_seconds()))
    done = run_report(run, "--junit", str(tmp_path / "t.xml"))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--targets" in done.stderr


def test_a_runs_own_targets_are_taken_by_default(tmp_path: Path) -> None:
    run = make_run(tmp_path, log_of(run_maker.turns(100, ttfc_s=0.1), seconds=clean_seconds()))
    (run / "targets.yaml").write_text("targets:\n  - ttfc p95 < 50 ms\n")
    assert run_report(run).returncode == 1

"""What gave out first: runs in which one part of a turn is made to grow, and the sentence that names it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from analysis import gave_out
from analysis.capacity import find
from analysis.page import render
from analysis.page_targets import remaining
from analysis.report import report
from tests import run_maker
from tests.run_maker import MONOTONIC_AT, WALL_AT, clean_seconds, log_of, make_run
from workers.samples import schema

RNG = np.random.default_rng(5)
LEVELS = (2, 8, 16)


def leveled(of_turn: Any, each: int = 60) -> list[dict[str, Any]]:
    """Turns at each of the levels, one level after the other; `of_turn(users)` gives what a turn holds."""
    rows = []
    for order, users in enumerate(LEVELS):
        for at in range(each):
            start = MONOTONIC_AT + 10 + 60 * order + 0.5 * at
            rows.append(
                run_maker.turn(
                    level=users, session=f"s{at % users}", turn=100 * order + at, intended_at=start,
                    request_id=f"{run_maker.RUN}.{users}.{at}", **of_turn(users),
                )
            )  # fmt: skip
    return rows


def traced(rows: list[dict[str, Any]], queue_s: Any, synthesis_s: Any) -> str:
    """The server's own rows of the same requests: waits and synthesis by level, a millisecond of network."""
    lines = [json.dumps({"cicada_trace": 1, "server": "gpu_server", "engine": "tone", "pid": 1, "host": "box-a",
                         "wall_at": WALL_AT, "monotonic_at": MONOTONIC_AT})]  # fmt: skip
    for row in rows:
        received, wait, took = row["intended_at"] + 0.0005, queue_s(row["level"]), synthesis_s(row["level"])
        lines.append(
            json.dumps(
                {
                    "request_id": row["request_id"], "route": "/v1/audio/speech", "received_at": received,
                    "admitted_at": received + wait, "first_audio_at": received + wait + took,
                    "finished_at": received + wait + took + 0.3, "queue_wait_s": wait, "ttfb_s": wait + took,
                    "audio_s": 2.0, "characters": 67, "voice": "alloy", "format": "wav", "outcome": "ok",
                    "status": 200, "fault": None, "fault_s": None,
                }
            )
        )  # fmt: skip
    return "\n".join(lines) + "\n"


def found_for(tmp_path: Path, queue_s: Any, synthesis_s: Any) -> dict[str, Any]:
    rows = leveled(lambda users: {"ttfc_s": queue_s(users) + synthesis_s(users) + 0.001})
    run = make_run(tmp_path, log_of(rows, seconds=clean_seconds(200)))
    trace = tmp_path / "trace.jsonl"
    trace.write_text(traced(rows, queue_s, synthesis_s))
    targets = tmp_path / "targets.yaml"
    targets.write_text("targets:\n  - ttfc p95 < 400 ms\n")
    return find(run, str(targets), [trace])


def test_the_queue_that_grows_is_named_though_synthesis_takes_longer_at_rest(tmp_path: Path) -> None:
    figures = found_for(tmp_path, lambda users: 0.0 if users < 16 else 0.15, lambda users: 0.3)
    assert figures["smallest_fail"] == 16
    found = figures["gave_out"]
    assert found["part"] == gave_out.QUEUE
    assert (found["from_users"], found["to_users"]) == (2, 16)
    assert found["parts"][0]["growth_ms"] == pytest.approx(150)
    assert "grew from 0 to 150 ms, 100%" in found["sentence"]


def test_synthesis_that_slows_down_is_named(tmp_path: Path) -> None:
    found = found_for(tmp_path, lambda users: 0.01, lambda users: 0.2 if users < 16 else 0.5)["gave_out"]
    assert found["part"] == gave_out.SYNTHESIS


def test_two_that_grow_alike_are_no_single_one(tmp_path: Path) -> None:
    found = found_for(tmp_path, lambda users: 0.1 if users < 16 else 0.29, lambda users: 0.1 if users < 16 else 0.29)[
        "gave_out"
    ]
    assert found["part"] is None or found["parts"][0]["growth_ms"] == pytest.approx(found["parts"][1]["growth_ms"])


def test_nothing_grew(tmp_path: Path) -> None:
    found = found_for(tmp_path, lambda users: 0.0, lambda users: 0.1)["gave_out"]
    assert found["part"] is None
    assert "nothing gave out" in found["sentence"]


def test_chance_is_no_growth(tmp_path: Path) -> None:
    """Means that differ by less than turns scatter name nobody."""
    found = found_for(tmp_path, lambda users: abs(float(RNG.normal(0, 0.2))), lambda users: 0.1)["gave_out"]
    assert found["part"] is None


def test_without_server_rows_it_cannot_tell_and_says_how_it_could(tmp_path: Path) -> None:
    rows = leveled(lambda users: {"ttfc_s": 0.1 if users < 16 else 0.9})
    run = make_run(tmp_path, log_of(rows, seconds=clean_seconds(200)))
    found = find(run, None)["gave_out"]
    assert found["part"] is None
    assert found["sentence"].startswith("cannot tell: there are no server rows")
    assert "--server-log" in found["sentence"]


def test_one_level_cannot_tell(tmp_path: Path) -> None:
    rows = run_maker.turns(60, level=4)
    assert (
        "only one level"
        in find(make_run(tmp_path, log_of(rows, seconds=clean_seconds())), None)["gave_out"]["sentence"]
    )


def test_failures_are_told_apart_from_lateness(tmp_path: Path) -> None:
    rows = leveled(
        lambda users: {} if users < 16 else {"outcome": "refused", "error_kind": "http_503", "error": "64 streams busy"}
    )
    run = make_run(tmp_path, log_of(rows, seconds=clean_seconds(200)))
    targets = tmp_path / "targets.yaml"
    targets.write_text("targets:\n  - ttfc p95 < 400 ms\n")
    figures = find(run, str(targets))
    assert figures["refused"] == '60 turns failed as http_503 ("64 streams busy")'


def test_a_report_over_levels_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, log_of(leveled(lambda users: {}), seconds=clean_seconds(200)))
    codes = {reason["code"]: reason["line"] for reason in report(run)["reasons"]}
    assert "2, 8, 16 users" in codes["several_levels"]
    assert "trend" not in codes


@pytest.mark.parametrize(
    ("queue_s", "synthesis_s", "part"),
    [(0.3, 0.1, "the wait for a stream, 300 ms"), (0.01, 0.3, "speech synthesis, 300 ms")],
)
def test_a_report_against_targets_names_the_remaining_bottleneck(
    queue_s: float, synthesis_s: float, part: str, tmp_path: Path
) -> None:
    rows = leveled(lambda users: {"ttfc_s": queue_s + synthesis_s + 0.001})
    run = make_run(tmp_path, log_of(rows, seconds=clean_seconds(200)))
    trace = tmp_path / "trace.jsonl"
    trace.write_text(traced(rows, lambda users: queue_s, lambda users: synthesis_s))
    assert part in remaining(report(run, [trace], "chatterbox")["bottleneck"])


def test_without_server_rows_no_bottleneck_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path, log_of(leveled(lambda users: {}), seconds=clean_seconds(200)))
    assert "cannot tell" in remaining(report(run, (), "chatterbox")["bottleneck"])


def test_a_gpu_that_is_full_at_the_level_that_fails_is_evidence(tmp_path: Path) -> None:
    """GPU 0: 40 % busy at 2 users, 98 % at 16; GPU 1 never above 60 %."""
    rows = leveled(lambda users: {"ttfc_s": 0.1 if users < 16 else 0.9})
    run = make_run(tmp_path, log_of(rows, seconds=clean_seconds(200)))
    trace = tmp_path / "trace.jsonl"
    trace.write_text(traced(rows, lambda users: 0.0, lambda users: 0.099 if users < 16 else 0.899))
    (tmp_path / "targets.yaml").write_text("targets:\n  - ttfc p95 < 400 ms\n")
    told = [
        {
            "run": run_maker.RUN, "endpoint": "http://h/metrics", "metric": "DCGM_FI_DEV_GPU_UTIL",
            "labels": f'gpu="{gpu}"', "kind": "gauge", "value": value, "at": WALL_AT + 10 + at,
        }
        for at in range(160)
        for gpu, value in (("0", 98.0 if at >= 120 else 40.0), ("1", 60.0))
    ]  # fmt: skip
    (run / "server").mkdir()
    data = b"".join(run_maker.packed("metrics", row) for row in told)
    (run / schema.METRICS_LOG).write_bytes(run_maker.packed_header(run_maker.facts()) + data)
    found = find(run, str(tmp_path / "targets.yaml"), [trace])["gave_out"]
    assert found["part"] == gave_out.SYNTHESIS
    assert [line for line in found["evidence"] if "busy" in line] == ["GPU 0, h was busy 98 % of the time at 16 users"]


def test_the_targets_own_metrics_stand_beside_the_clients_figures(tmp_path: Path) -> None:
    """A GPU that is half busy while turns are measured, and idle before: only the measured window counts."""
    run = make_run(tmp_path, log_of(run_maker.turns(100), seconds=clean_seconds()))
    rows = [
        {
            "run": run_maker.RUN, "endpoint": "http://h/metrics", "metric": "DCGM_FI_DEV_GPU_UTIL", "labels": 'gpu="0"',
            "kind": "gauge", "value": 50.0 if at >= 10 else 0.0, "at": WALL_AT + at,
        }
        for at in range(18)
    ]  # fmt: skip
    (run / "server").mkdir()
    data = b"".join(run_maker.packed("metrics", row) for row in rows)
    (run / schema.METRICS_LOG).write_bytes(run_maker.packed_header(run_maker.facts()) + data)
    figures = report(run)
    (busy,) = figures["scraped"]
    told = {"least": 50.0, "mean": 50.0, "most": 50.0, "scrapes": 8}
    assert (busy["role"], busy["spans"]["measured"]) == ("gpu_busy_share", told)
    page = render(figures, Console(width=120))
    assert "GPU busy" in page
    assert "50.0 %" in page

"""The answer of a run with load levels, from made runs whose truth is known."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from analysis import capacity
from analysis.capacity import find
from analysis.page_capacity import render
from tests import run_maker
from tests.run_maker import MONOTONIC_AT, WALL_AT, clean_seconds, log_of, make_run, second

LINE = "  - ttfc p95 < 400 ms\n"
STAY_S = 60.0


def stays(*levels: int) -> list[dict[str, Any]]:
    """What the manifest says: one level after the other, each measured for 40 of its 60 s."""
    return [
        {
            "users": users,
            "entered_wall_at": WALL_AT + STAY_S * order,
            "measured_wall_at": WALL_AT + 10 + STAY_S * order,
            "measured_until_wall_at": WALL_AT + 50 + STAY_S * order,
            "left_wall_at": WALL_AT + 55 + STAY_S * order,
        }
        for order, users in enumerate(levels)
    ]


def turns_of(order: int, users: int, ttfc_s: float, each: int = 400, **given: Any) -> list[dict[str, Any]]:
    """Turns of one stay: spread evenly over its 40 s, dealt out to 40 sessions."""
    return [
        run_maker.turn(
            level=users, session=f"s{at % 40}", turn=1000 * order + at, ttfc_s=ttfc_s,
            intended_at=MONOTONIC_AT + 10 + STAY_S * order + 40 * at / each, request_id=f"r{order}.{at}", **given,
        )
        for at in range(each)
    ]  # fmt: skip


def answered(folder: Path, rows: list[dict[str, Any]], targets: str = LINE, **given: Any) -> dict[str, Any]:
    seconds = given.pop("seconds", None) or clean_seconds(400)
    folder.mkdir(exist_ok=True)
    run = make_run(folder, log_of(rows, seconds), **{"level_alpha": 0.004, **given})
    (run / "targets.yaml").write_text(f"targets:\n{targets}")
    return find(run)


def levels(figures: dict[str, Any]) -> dict[int, str]:
    return {level["users"]: level["outcome"] for level in figures["levels"]}


def test_the_bracket_and_its_status(tmp_path: Path) -> None:
    rows = turns_of(0, 2, 0.1) + turns_of(1, 4, 0.1) + turns_of(2, 8, 0.9)
    figures = answered(tmp_path, rows, levels=stays(2, 4, 8))
    assert levels(figures) == {2: "pass", 4: "pass", 8: "fail"}
    assert (figures["largest_pass"], figures["smallest_fail"], figures["exit"]) == (4, 8, 0)
    assert figures["answer"] == "4 users at once: proven to pass, 8 proven to fail"


def test_rates_are_those_of_the_stay_not_of_the_last_answers_end(tmp_path: Path) -> None:
    """10 starts a second for 40 s; the last answer comes 30 s after the stay."""
    rows = turns_of(0, 2, 0.1, e2e_s=30.0)
    (level,) = answered(tmp_path, rows, levels=stays(2))["levels"]
    assert level["rps"] == pytest.approx(10.0)
    assert level["asps"] == pytest.approx(20.0)


def test_a_strained_generator_between_two_stays_at_a_level_is_not_that_levels(tmp_path: Path) -> None:
    """4 scouted, 8 with a worker that used up its core, 4 again and calm: 4 fails by itself."""
    rows = turns_of(0, 4, 0.1, each=40) + turns_of(1, 8, 0.9) + turns_of(2, 4, 0.9)
    busy = [second(MONOTONIC_AT + 11 + at, cpu_share=0.99 if 60 <= at <= 100 else 0.2) for at in range(400)]
    figures = answered(tmp_path, rows, levels=stays(4, 8, 4), seconds=busy)
    distrust = {level["users"]: level["distrust"] for level in figures["levels"]}
    assert distrust == {4: [], 8: ["saturated_generator"]}
    assert levels(figures) == {4: "fail", 8: "undecided"}
    assert "At 8 users the load generator was at its own limit" in figures["answer"]


def test_a_run_with_rows_missing_proves_nothing(tmp_path: Path) -> None:
    whole = log_of(turns_of(0, 2, 0.1), clean_seconds(60))
    run = make_run(tmp_path, whole, workers={"w0": {"final_bytes": 10**9}}, levels=stays(2), level_alpha=0.004)
    (run / "targets.yaml").write_text(f"targets:\n{LINE}")
    figures = find(run)
    assert (levels(figures), figures["exit"]) == ({2: "undecided"}, 2)
    assert "lost_rows" in figures["answer"]


def test_streams_of_requests_are_not_users_who_think(tmp_path: Path) -> None:
    """8 users, of whom 1.3 at a time are being answered."""
    rows = turns_of(0, 8, 0.01, each=400, e2e_s=0.13)
    figures = answered(tmp_path, rows, LINE + "  - concurrent_streams > 3\n", levels=stays(8))
    assert figures["wanted"]["a_gpu"] == pytest.approx(1.3, rel=0.05)
    assert (figures["wanted"]["holds"], figures["exit"]) == (False, 2)
    assert "concurrent_streams > 3: 1.3 a GPU, cannot tell" in render(figures, Console(width=120))


def test_a_caller_is_a_stream(tmp_path: Path) -> None:
    rows = run_maker.calls(8, 40, apart_s=1.0, level=8)
    figures = answered(tmp_path, rows, "  - floor_transfer_offset p50 < 2 s\n  - concurrent_streams > 3, stretch > 8\n")
    assert (figures["wanted"]["a_gpu"], figures["wanted"]["holds"], figures["exit"]) == (8, True, 0)
    assert figures["wanted"]["stretch_holds"] is False


@pytest.mark.parametrize(
    ("largest", "fail", "undecided", "status"),
    [(2, 8, [4], 2), (2, 4, [], 1), (4, 5, [], 0), (None, 1, [], 1), (None, 8, [4], 2), (None, None, [4], 2)],
)
def test_status_1_is_a_proof(largest: int | None, fail: int | None, undecided: list[int], status: int) -> None:
    """`concurrent_streams > 3` of callers: 4 to 7 may still pass where 8 is the smallest that was proven to fail."""
    from analysis.targets import Targets, parse_target

    targets = Targets("test", (parse_target("ttfc p95 < 400 ms"), parse_target("concurrent_streams > 3")))
    limit = targets.targets[1].limit
    wanted = {"holds": limit.holds(largest or 0), "open": fail is None or limit.holds(fail - 1)}
    bracket = {"largest_pass": largest, "smallest_fail": fail, "undecided": undecided}
    assert capacity._exit(bracket, targets, wanted) == status


@pytest.mark.parametrize(
    "broken", [{"levels": "x"}, {"levels": [7]}, {"scenario": "x"}, {"level_alpha": 0}, {"levels": {}}]
)
def test_a_damaged_manifest_costs_no_answer(broken: dict[str, Any], tmp_path: Path) -> None:
    rows = turns_of(0, 2, 0.1) + turns_of(1, 4, 0.9)
    assert levels(answered(tmp_path, rows, **broken)) == {2: "pass", 4: "fail"}


def test_clocks_that_differ_by_minutes_hide_no_level(tmp_path: Path) -> None:
    told = [{**stay, "measured_wall_at": stay["measured_wall_at"] + 500.0} for stay in stays(2, 4)]
    figures = answered(tmp_path, turns_of(0, 2, 0.1) + turns_of(1, 4, 0.9), levels=told)
    assert all(level["rps"] for level in figures["levels"])
    assert levels(figures) == {2: "pass", 4: "fail"}


def test_a_user_who_was_stopped_or_lost_costs_his_own_turn_only(tmp_path: Path) -> None:
    rows = turns_of(0, 2, 0.1)
    for at in (30, 31):
        kind = "user_stopped" if at == 30 else "worker_lost"
        rows[at] = run_maker.turn(
            level=2, session="s1", turn=at, outcome="cut", error_kind=kind, intended_at=rows[at]["intended_at"],
            request_id=f"r0.{at}", ended_at=rows[at]["intended_at"] + 0.05 if at == 30 else None,
        )  # fmt: skip
    assert levels(answered(tmp_path, rows, levels=stays(2))) == {2: "pass"}


def test_the_target_came_back(tmp_path: Path) -> None:
    """Levels: at 4 nobody was there, at 8 all is well again."""
    gone = {"outcome": "refused", "error_kind": "connection_refused", "error": "nobody"}
    rows = turns_of(0, 2, 0.1) + turns_of(1, 4, 0.1, **gone) + turns_of(2, 8, 0.1)
    figures = answered(tmp_path, rows, levels=stays(2, 4, 8))
    assert levels(figures) == {2: "pass", 4: "undecided", 8: "pass"}
    assert "gone" not in figures["answer"]


def test_a_run_without_levels_is_told_how_to_have_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, log_of(run_maker.turns(10), clean_seconds()))
    assert capacity.main([str(run)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "capacity.py" in said


@pytest.mark.parametrize("rows", [run_maker.turns(1, level=2), run_maker.turns(1, level=2, ttfc_s=float("nan"))])
def test_one_row_proves_nothing(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    figures = answered(tmp_path, rows)
    assert (levels(figures), figures["exit"]) == ({2: "undecided"}, 2)


def test_a_run_in_which_all_failed_fails(tmp_path: Path) -> None:
    rows = turns_of(0, 2, 0.1, outcome="refused", error_kind="http_503", error="full")
    figures = answered(tmp_path, rows, levels=stays(2))
    assert (levels(figures), figures["exit"]) == ({2: "fail"}, 1)
    assert "Not even 2 users" in figures["answer"]


def test_a_newer_schema_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, log_of(run_maker.turns(10, level=2), clean_seconds()))
    told = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(told | {"schema_version": 999}))
    assert capacity.main([str(run)]) == 2
    assert capsys.readouterr().err.count("\n") == 1

"""The master's adviser: it reads logs as they grow, and looks at complete cohorts only."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.judge import Judge
from analysis.targets import Targets, parse_target
from tests import run_maker
from tests.run_maker import MONOTONIC_AT, facts, packed, packed_header, start_of

ROOT = Path(__file__).resolve().parent.parent
P95 = Targets("test", (parse_target("ttfc p95 < 400 ms"),))


def at_level(users: int, count: int, phase: str = "measured", **given: Any) -> list[dict[str, Any]]:
    return run_maker.turns(count, sessions=40, level=users, phase=phase, **given)


def written(folder: Path, rows: list[dict[str, Any]], worker: str = "w0", **of_worker: Any) -> Path:
    """A growing log that holds the rows' starts and ends, each start before its end."""
    path = folder / "log" / f"{worker}.msgpack"
    path.parent.mkdir(exist_ok=True)
    data = b"".join(packed("turn_starts", start_of(row)) + packed("turns", row) for row in rows)
    path.write_bytes(packed_header(facts(worker, **of_worker)) + data)
    return path


def test_measured_turns_of_the_level_count_and_no_others(tmp_path: Path) -> None:
    rows = [*at_level(4, 50), *at_level(8, 30), *at_level(4, 20, phase="warm_up")]
    for number, row in enumerate(rows):
        row["request_id"] = f"r{number}"
    written(tmp_path, rows)
    judge = Judge(tmp_path, P95, 0.01)
    assert [judge.answer(users)["turns"] for users in (4, 8, 16)] == [50, 30, 0]


def test_full_duplex_turns_are_judged_by_their_text(tmp_path: Path) -> None:
    targets = Targets("test", (parse_target("ttft p50 < 200 ms"),))
    for ttft_s, outcome in ((0.1, "pass"), (0.9, "fail")):
        folder = tmp_path / outcome
        folder.mkdir()
        written(folder, run_maker.trials(200, mode=None, level=4, ttft_s=ttft_s, apart_s=0.2))
        assert Judge(folder, targets, 0.01).answer(4)["outcome"] == outcome


def test_a_row_in_two_pieces_waits_for_its_rest(tmp_path: Path) -> None:
    path = written(tmp_path, at_level(4, 50))
    whole = path.read_bytes()
    judge = Judge(tmp_path, P95, 0.01)
    counts = []
    for end in range(0, len(whole) + 200, 200):
        path.write_bytes(whole[:end])
        counts.append(judge.answer(4)["turns"])
    assert counts[-1] == 50
    assert counts == sorted(counts)


def test_turns_that_began_after_one_still_under_way_are_not_looked_at(tmp_path: Path) -> None:
    """Or each look would see the quick ones first. Here every 4th turn takes for ever, and all others are quick."""
    rows = at_level(4, 400, ttfc_s=0.1)
    path = written(tmp_path, [])
    open_ones = {at for at in range(400) if at % 4 == 3}
    data = b"".join(packed("turn_starts", start_of(row)) for row in rows)
    data += b"".join(packed("turns", row) for at, row in enumerate(rows) if at not in open_ones)
    path.write_bytes(path.read_bytes() + data)
    judge = Judge(tmp_path, P95, 0.01)
    found = judge.answer(4)
    assert (found["turns"], found["unfinished"], found["outcome"]) == (300, 100, "undecided")
    assert not found["promising"], "3 turns began before the first that is under way"
    late = b"".join(packed("turns", dict(rows[at], ttfc_s=30.0)) for at in sorted(open_ones))
    path.write_bytes(path.read_bytes() + late)
    assert judge.answer(4)["outcome"] == "fail"


def test_workers_with_clocks_of_their_own_are_put_in_order(tmp_path: Path) -> None:
    """w1's host booted at another time: its instants are 9,000 s larger, and its turns began in between w0's."""
    quick, slow = at_level(4, 300, ttfc_s=0.1), at_level(4, 300, ttfc_s=0.9, worker="w1")
    for row in slow:
        row["intended_at"] += 9_000.05
        row["request_id"] = "w1" + row["request_id"]
    written(tmp_path, quick)
    written(tmp_path, slow, "w1", boot_id="other", monotonic_at=MONOTONIC_AT + 9_000)
    found = Judge(tmp_path, P95, 0.01).answer(4)
    assert (found["turns"], found["outcome"]) == (600, "fail")
    bad, n = map(int, re.findall(r"(\d+) of (\d+) turns", found["reason"])[0])
    assert bad == n / 2, "the looks hold as many slow as quick ones"


def test_a_worker_that_died_is_waited_for_no_more(tmp_path: Path) -> None:
    """Its last turn never ends, and it tells of no second any more; the other one goes on for half a minute."""
    rows = at_level(4, 400, ttfc_s=0.1)
    seconds = b"".join(packed("workers", run_maker.second(MONOTONIC_AT + 60 + at)) for at in range(2))
    path = written(tmp_path, rows)
    path.write_bytes(path.read_bytes() + seconds)
    dead = at_level(4, 1, worker="w1", intended_at=MONOTONIC_AT + 10.5)
    began = packed("turn_starts", start_of(dead[0]))
    last = packed("workers", run_maker.second(MONOTONIC_AT + 12, worker="w1"))
    (tmp_path / "log" / "w1.msgpack").write_bytes(packed_header(facts("w1")) + began + last)
    found = Judge(tmp_path, P95, 0.01).answer(4)
    assert (found["unfinished"], found["outcome"]) == (0, "pass")


def test_what_a_slow_relay_has_not_brought_yet_is_waited_for(tmp_path: Path) -> None:
    """w1's rows are known up to 12 s only: turns that began later are not looked at, though w0's are all here."""
    path = written(tmp_path, at_level(4, 400, ttfc_s=0.1))
    path.write_bytes(path.read_bytes() + packed("workers", run_maker.second(MONOTONIC_AT + 20)))
    other = packed_header(facts("w1")) + packed("workers", run_maker.second(MONOTONIC_AT + 12, worker="w1"))
    (tmp_path / "log" / "w1.msgpack").write_bytes(other)
    found = Judge(tmp_path, P95, 0.01).answer(4)
    assert (found["turns"], found["outcome"], found["promising"]) == (400, "undecided", False)


def test_bytes_that_are_no_rows_end_the_judging(tmp_path: Path) -> None:
    path = written(tmp_path, at_level(4, 400))
    path.write_bytes(path.read_bytes() + b"\xc1\xc1garbage")
    found = Judge(tmp_path, P95, 0.01).answer(4)
    assert (found["outcome"], found["done"]) == ("undecided", True)
    assert path.name in found["reason"]


def test_without_targets_it_only_counts(tmp_path: Path) -> None:
    written(tmp_path, at_level(4, 400))
    found = Judge(tmp_path, None, 0.01).answer(4)
    assert (found["turns"], found["outcome"], found["done"]) == (400, "undecided", False)


def judge_process(*options: str, asked: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "analysis.judge", *options]
    return subprocess.run(command, cwd=ROOT, input=asked, capture_output=True, text=True, check=False)


def test_as_a_child_it_answers_a_line_for_a_line(tmp_path: Path) -> None:
    written(tmp_path, at_level(4, 400))
    targets = tmp_path / "targets.yaml"
    targets.write_text("targets:\n  - ttfc p95 < 400 ms\n")
    options = ("follow", str(tmp_path), "--targets", str(targets), "--alpha", "0.01")
    done = judge_process(*options, asked='{"level": 4}\n{"level": 9}\n')
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(answer["level"], answer["outcome"]) for answer in answers] == [(4, "pass"), (9, "undecided")]
    assert done.returncode == 0


def test_the_plan_tells_the_cost_and_a_weaker_one(tmp_path: Path) -> None:
    options = ("plan", "--targets", "voice_agent", "--most", "64", "--planned", "12", "--turn-s", "9")
    done = judge_process(*options)
    assert done.returncode == 0
    assert "95% sure" in done.stdout
    assert "--capacity-confidence 0.8" in done.stdout
    assert "min to prove it" in done.stdout


@pytest.mark.parametrize(
    ("lines", "says"),
    [("  - ttfc mean < 4 ms\n", "needs one that turns can prove"), ("  - ttffc < 4 ms\n", "did you mean 'ttfc'?")],
)
def test_targets_that_no_turn_can_prove_are_refused_in_one_line(lines: str, says: str, tmp_path: Path) -> None:
    targets = tmp_path / "targets.yaml"
    targets.write_text("targets:\n" + lines)
    done = judge_process("plan", "--targets", str(targets), "--most", "64", "--planned", "12", "--turn-s", "9")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert says in done.stderr

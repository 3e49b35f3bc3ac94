"""Two runs compared: what is called worse, what is not, what may not be compared, and every file and exit status."""

import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from run_maker import MONOTONIC_AT, Row, calls, clean_seconds, log_of, make_run, manifest, second, turn, turns

from analysis.compare import main
from analysis.comparison import Comparison, Verdict, compare
from analysis.exports.junit import Case, write_junit
from analysis.exports.markdown import write_markdown
from workers.samples.schema import SCHEMA_VERSION

SESSIONS, TURNS = 25, 500


def rows(seed: int, factor: float = 1.0, sessions: int = SESSIONS, **given: Any) -> list[Row]:
    """Requests whose durations are `factor` times a lognormal with a part of the session's own."""
    draw = random.Random(seed)
    of_session = [draw.gauss(0, 0.05) for _ in range(sessions)]
    ttfc_s = [factor * 0.2 * math.exp(draw.gauss(0, 0.15) + of_session[at % sessions]) for at in range(TURNS)]
    fixed = {"ttfc_s": ttfc_s.__getitem__, "ttfa_s": lambda at: 1.2 * ttfc_s[at], "e2e_s": lambda at: 4 * ttfc_s[at]}
    return turns(TURNS, sessions, **{**fixed, **given})


def spoken_rows(seed: int, shift_s: float = 0.0, **given: Any) -> list[Row]:
    draw = random.Random(seed)
    return calls(SESSIONS, 16, **{"floor_s": lambda _: draw.gauss(0.8 + shift_s, 0.1), **given})


def run_of(parent: Path, made: list[Row], **given: Any) -> Path:
    return make_run(parent, log_of(made, clean_seconds(60)), **given)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("base"), rows(1))


@pytest.fixture(scope="module")
def slower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(tmp_path_factory.mktemp("slower"), rows(2, 1.3))


def verdicts(found: Comparison) -> dict[str, Verdict]:
    return {judged.figure.title: judged.verdict for judged in found.figures}


Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Exit status, page (its lines joined) and complaint of a call."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        status = main([*map(str, arguments)])
        captured = capsys.readouterr()
        return status, " ".join(captured.out.split()), captured.err

    return call


# ---- verdicts


def test_a_run_that_is_slower_by_30_percent_is_a_regression(said: Said, base: Path, slower: Path) -> None:
    status, page, _ = said(base, slower)
    assert status == 1
    assert re.search(r"Regression: \d+ of 12 figures got worse by more than 5 % \(shares: 1 point\): TTFC p50 \(", page)
    found = verdicts(compare(base, slower))
    assert {found[f"{name} {q}"] for name in ("TTFC", "TTFA", "E2E") for q in ("p50", "p95")} == {"worse"}
    assert (found["RTF p50"], found["success"]) == ("worse", "same")
    assert found["answers a second"] == "not comparable"


def test_figures_are_those_of_the_rows(base: Path, slower: Path) -> None:
    [median] = [judged for judged in compare(base, slower).figures if judged.figure.title == "TTFC p50"]
    before = sorted(row["ttfc_s"] * 1000 for row in rows(1))
    after = sorted(row["ttfc_s"] * 1000 for row in rows(2, 1.3))
    middle = [(side[TURNS // 2 - 1] + side[TURNS // 2]) / 2 for side in (before, after)]
    assert (median.difference.before, median.difference.after) == pytest.approx(tuple(middle))
    assert median.margin == pytest.approx(0.05 * middle[0])
    assert median.difference.low is not None
    assert median.difference.high is not None
    assert median.difference.low < middle[1] - middle[0] < median.difference.high


def test_a_run_against_itself_is_no_regression(said: Said, base: Path) -> None:
    status, page, _ = said(base, base)
    assert status == 0
    assert "No regression: no figure is shown to be worse by more than 5 %" in page
    assert "the same within 5 %" in page


def test_another_draw_of_the_same_truth_is_no_regression(tmp_path: Path, base: Path) -> None:
    found = compare(base, run_of(tmp_path, rows(3)))
    assert found.exit_status == 0
    assert {"worse", "better"}.isdisjoint(verdicts(found).values())


def test_a_faster_run_is_better_and_passes(said: Said, base: Path, slower: Path) -> None:
    status, page, _ = said(slower, base)
    assert status == 0
    assert re.search(r"of 12, \d+ better", page)


def test_the_margin_is_what_may_change(base: Path, slower: Path) -> None:
    found = verdicts(compare(base, slower, margin=0.4))
    assert "worse" not in found.values()
    assert found["TTFC p50"] == "same"


def test_lost_successes_are_a_regression(tmp_path: Path, base: Path) -> None:
    failing = rows(4)
    for row in failing[::9]:
        row |= {"outcome": "timed_out", "error_kind": "no_answer_in_time"}
    found = verdicts(compare(base, run_of(tmp_path, failing)))
    assert found["success"] == "worse"
    assert {found[f"TTFC {q}"] for q in ("p50", "p95")}.isdisjoint({"worse"})


def test_a_run_in_which_everything_failed_is_a_regression(said: Said, tmp_path: Path, base: Path) -> None:
    refused = {"outcome": "refused", "error_kind": "connection_refused", "error": "connection refused"}
    for sessions in (SESSIONS, 2):
        after = run_of(tmp_path / str(sessions), turns(40, sessions, **refused))
        status, page, _ = said(base, after)
        assert status == 1
        assert "success (100 % to 0 %)" in page
        assert "worse: no turn of AFTER succeeded" in page


def test_a_latency_that_vanished_is_a_regression(tmp_path: Path, base: Path) -> None:
    found = compare(base, run_of(tmp_path, rows(5, ttfa_s=math.nan)))
    assert found.exit_status == 1
    [gone, *_] = found.of("worse")
    assert (gone.figure.title, gone.why) == ("TTFA p50", "none of AFTER's 500 answers tells it")


def test_useless_durations_are_left_out_and_counted(said: Said, tmp_path: Path, base: Path) -> None:
    bad = {3: math.nan, 4: math.inf, 5: -0.2}
    made = rows(1)
    for at, value in bad.items():
        made[at]["ttfa_s"] = value
    status, page, _ = said(base, run_of(tmp_path, made))
    assert status == 0
    assert "AFTER: 3 of 500 answers (requests) left out of TTFA: missing, infinite or negative" in page


# ---- conversations


def test_conversations_are_compared_from_the_users_last_word(said: Said, tmp_path: Path) -> None:
    before, after = run_of(tmp_path / "a", spoken_rows(1)), run_of(tmp_path / "b", spoken_rows(2, 0.3))
    status, page, _ = said(before, after)
    assert status == 1
    assert "floor transfer offset p50 (" in page
    assert said(before, run_of(tmp_path / "c", spoken_rows(3)))[0] == 0


def test_a_floor_transfer_offset_near_zero_has_no_exploding_margin(tmp_path: Path) -> None:
    """From 2 ms to 5 ms is 150 %, but 3 ms of a margin of 5 ms: 5 % of 100 ms, the least base."""
    quick = {
        shift: run_of(tmp_path / str(shift), spoken_rows(1, shift, floor_s=lambda at, s=shift: s + 0.0001 * (at % 7)))
        for shift in (0.002, 0.005, 0.020)
    }
    near = compare(quick[0.002], quick[0.005])
    assert verdicts(near)["floor transfer offset p50"] == "same"
    assert {judged.margin for judged in near.figures if judged.figure.title.startswith("floor")} == {5.0}
    assert verdicts(compare(quick[0.002], quick[0.020]))["floor transfer offset p50"] == "worse"


def test_answering_sooner_by_interrupting_is_no_gain(tmp_path: Path) -> None:
    early = spoken_rows(2, floor_s=lambda at: -0.3 if at % 2 else 0.75)
    found = verdicts(compare(run_of(tmp_path / "a", spoken_rows(1)), run_of(tmp_path / "b", early)))
    assert found["overlaps"] == "worse"


def test_stalls_and_barge_ins_are_compared(tmp_path: Path) -> None:
    def made(seed: int, stalls: int, yields: int) -> list[Row]:
        return spoken_rows(
            seed,
            min_prebuffer_s=lambda at: 0.1 if at % stalls == 0 else 0.0,
            barge_in=lambda at: at % 2 == 0,
            yielded=lambda at: at % 2 == 0 and at % yields != 0,
        )

    before, after = run_of(tmp_path / "a", made(1, 50, 100)), run_of(tmp_path / "b", made(2, 4, 4))
    found = verdicts(compare(before, after))
    assert (found["answers that stall"], found["barge-ins yielded to"]) == ("worse", "worse")
    without = verdicts(compare(before, run_of(tmp_path / "c", spoken_rows(3))))
    assert without["barge-ins yielded to"] == "not comparable"


# ---- open loop


def test_answers_a_second_are_compared_in_an_open_loop(tmp_path: Path) -> None:
    """10 starts a second in both; in the second run every third one fails."""
    scenario = {**manifest()["scenario"], "arrivals": "constant", "rate": 10.0}
    failing = rows(2)
    for row in failing[::3]:
        row |= {"outcome": "timed_out", "error_kind": "no_answer_in_time"}
    before, after = (
        run_of(tmp_path / name, made, scenario=scenario) for name, made in (("a", rows(1)), ("b", failing))
    )
    [rate] = [judged for judged in compare(before, after).figures if judged.figure.title == "answers a second"]
    assert rate.verdict == "worse"
    assert rate.difference.before == pytest.approx(TURNS / 49.9, rel=1e-3)
    assert rate.difference.after == pytest.approx(TURNS * 2 / 3 / 49.9, rel=5e-3)
    assert verdicts(compare(before, before))["answers a second"] == "same"


# ---- what may not be compared


def test_runs_of_different_scenarios_are_not_compared_and_the_keys_are_named(
    said: Said, tmp_path: Path, base: Path
) -> None:
    asked = manifest()["scenario"]
    after = run_of(tmp_path, rows(1), scenario={**asked, "think_s": 2.0, "timeout_s": 5.0, "name": "x", "seed": 9})
    status, page, _ = said(base, after)
    assert status == 2
    assert "scenario: think_s: 0.5 -> 2.0" in page
    assert "scenario: timeout_s: 30.0 -> 5.0" in page
    assert not re.search(r"seed|name:", page)
    assert "Not compared, for 2 reasons; --allow-different compares them all the same." in page
    status, page, _ = said(base, after, "--allow-different")
    assert status == 0
    assert "scenario: think_s: 0.5 -> 2.0" in page


def test_where_and_by_what_is_a_note_only(said: Said, tmp_path: Path, base: Path) -> None:
    scenario = {**manifest()["scenario"], "agent_host": "ws://b:1", "new_key": 1, "keep_audio": 0.5}
    elsewhere = {"host": "http://b:8080", "machine": {"cpus": 16, "system": "Linux"}, "scenario": scenario}
    status, page, _ = said(base, run_of(tmp_path, rows(1), **elsewhere))
    assert status == 0
    assert "target: http://localhost:8080 -> http://b:8080" in page
    assert "machine: cpus: 8 -> 16" in page
    assert "scenario: only AFTER knows new_key" in page


@pytest.mark.parametrize(
    ("after", "named"),
    [
        ((rows(1), {"users": 40}), "users: 20 -> 40"),
        ((rows(1, dialect="synthesize"), {}), "requests: http_tts openai -> http_tts synthesize"),
        ((spoken_rows(1), {}), "conversations: none -> voice_agent pipecat"),
        ((rows(1), {"scenario": None}), "what AFTER was asked is unknown: run.json has no scenario"),
        ((rows(1, phase="warm_up"), {}), "AFTER measured no turn"),
        ((rows(1), {"state": "running"}), "AFTER is not to be believed: unfinished_run"),
    ],
)
def test_unlike_runs_are_not_compared(
    said: Said, tmp_path: Path, base: Path, after: tuple[list[Row], dict[str, Any]], named: str
) -> None:
    made, given = after
    status, page, _ = said(base, run_of(tmp_path, made, **given))
    assert status == 2
    assert named in page


def test_a_generator_that_measured_itself_is_not_compared(said: Said, tmp_path: Path, base: Path) -> None:
    busy = [second(MONOTONIC_AT + 11.0 + at, cpu_share=0.99) for at in range(60)]
    after = make_run(tmp_path, log_of(rows(1), busy))
    for order, name in ((base, after), "AFTER"), ((after, base), "BEFORE"):
        status, page, _ = said(*order, "--allow-different")
        assert status == 2
        assert f"{name} is not to be believed: saturated_generator" in page
        assert "all the same" not in page


@pytest.mark.parametrize("made", [[turn()], [turn(outcome="refused", error_kind="http_503")]])
def test_a_run_of_one_row_is_not_compared(said: Said, tmp_path: Path, base: Path, made: list[Row]) -> None:
    status, page, _ = said(base, run_of(tmp_path, made))
    assert status == 2
    assert "Nothing could be compared: TTFC p50: after: n=" in page


def test_too_few_sessions_are_not_a_green_gate(said: Said, tmp_path: Path, base: Path) -> None:
    status, page, _ = said(base, run_of(tmp_path, rows(1, sessions=10)))
    assert status == 2
    assert "Nothing could be compared: TTFC p50: after: 10 sessions < 20." in page


def test_a_run_whose_every_turn_was_cut_is_not_compared(said: Said, tmp_path: Path, base: Path) -> None:
    status, _, _ = said(base, run_of(tmp_path, rows(1, outcome="cut", error_kind="run_ended")))
    assert status == 2


def test_what_is_no_run_is_told_in_one_line(said: Said, tmp_path: Path, base: Path) -> None:
    newer = run_of(tmp_path / "newer", rows(1), schema_version=SCHEMA_VERSION + 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    cases = {
        newer: "written by a newer Cicada",
        tmp_path / "empty": "is empty",
        tmp_path / "file": "is a file",
        tmp_path / "nowhere": "there is no",
    }
    for path, words in cases.items():
        for order in ((base, path), (path, base)):
            status, page, complaint = said(*order)
            assert (status, page, complaint.count("\n")) == (2, "", 1)
            assert complaint.startswith("compare: ")
            assert words in complaint


# ---- files, options


def test_the_files_say_what_the_page_says(said: Said, tmp_path: Path, base: Path, slower: Path) -> None:
    paths = [tmp_path / f"compare.{kind}" for kind in ("json", "xml", "md")]
    status, _, _ = said(base, slower, "--json", paths[0], "--junit", paths[1], "--markdown", paths[2])
    told = json.loads(paths[0].read_text("utf-8"))
    assert (told["exit_status"], status) == (1, 1)
    worse = [figure["figure"] for figure in told["figures"] if figure["verdict"] == "worse"]
    assert "TTFC p50" in worse
    suite = ElementTree.parse(paths[1]).getroot()[0]
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    skipped = [case.get("name") for case in suite if case.find("skipped") is not None]
    assert failed == [f"requests: {name}" for name in worse]
    assert skipped == ["requests: answers a second"]
    assert [suite.get(count) for count in ("tests", "failures", "skipped")] == ["12", str(len(worse)), "1"]
    page = paths[2].read_text("utf-8")
    assert page.startswith("### Cicada: ")
    assert "\n| figure | before | after | change | 95 % within | relative | verdict |\n| --- | --- |" in page
    assert re.search(r"\n\| TTFC p50 \| \d+ ms \| \d+ ms \| \+[\d.]+ ms \| .* \| worse \|\n", page)
    assert "Regression: " in page


def test_runs_that_are_not_compared_leave_files_too(said: Said, tmp_path: Path, base: Path) -> None:
    after = run_of(tmp_path, rows(1), users=40)
    said(base, after, "--junit", tmp_path / "x.xml", "--markdown", tmp_path / "x.md", "--json", tmp_path / "x.json")
    [case] = ElementTree.parse(tmp_path / "x.xml").getroot()[0]
    skipped = case.find("skipped")
    assert skipped is not None
    assert skipped.get("message") == "users: 20 -> 40"
    assert "users: 20 -> 40" in (tmp_path / "x.md").read_text("utf-8")
    assert json.loads((tmp_path / "x.json").read_text())["bars"] == ["users: 20 -> 40"]


def test_a_file_that_cannot_be_written_is_one_line(said: Said, tmp_path: Path, base: Path) -> None:
    status, _, complaint = said(base, base, "--json", tmp_path / "nowhere" / "x.json")
    assert (status, complaint.count("\n")) == (2, 1)
    assert "nowhere" in complaint


def test_junit_holds_no_character_that_xml_forbids(tmp_path: Path) -> None:
    path = tmp_path / "x.xml"
    write_junit(path, "a\x00b", [Case("<n>\x1b", "fail", 'x\ud800\ufffe & "y"'), Case("p", "pass"), Case("s", "skip")])
    suite = ElementTree.parse(path).getroot()[0]
    assert (suite.get("name"), suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("ab", "3", "1", "1")
    failure = suite[0].find("failure")
    assert failure is not None
    assert (suite[0].get("name"), failure.get("message")) == ("<n>", 'x & "y"')


def test_markdown_shows_texts_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.md"
    write_markdown(path, "a\nb", [["h|1", "h2"], ["<b>", "*x*"]], ["p50_ms `y`"])
    assert path.read_text() == "### a b\n\n| h\\|1 | h2 |\n| --- | --- |\n| \\<b> | \\*x\\* |\n\np50\\_ms \\`y\\`\n"
    write_markdown(path, "none", [])
    assert path.read_text() == "### none\n"


@pytest.mark.parametrize("margin", ["5", "100%", "-1%", "x", "nan", ""])
def test_a_margin_that_is_no_share_is_refused(base: Path, margin: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(base), str(base), f"--margin={margin}"])
    assert stopped.value.code == 2
    assert "write 5% or 0.05" in capsys.readouterr().err


def test_a_margin_is_written_in_two_ways(said: Said, base: Path, slower: Path) -> None:
    assert said(base, slower, "--margin", "40%")[0] == said(base, slower, "--margin", "0.40")[0] == 0


def test_it_is_a_command_of_its_own(base: Path, slower: Path) -> None:
    command = [sys.executable, "-m", "analysis.compare", str(base), str(slower)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "Regression: " in done.stdout

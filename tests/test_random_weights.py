"""Results of a model with random weights: every output that tells them says what they are worth, and no other does."""

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from locust_process import ROOT, SPEAK, locust, run_dirs, run_locust
from run_maker import WALL_AT, calls, clean_seconds, log_of, make_run, trials, turns

from analysis import capacity, compare, report
from workers import target_facts

MARK = "random weights: timing only"
RANDOM = {"http://h": {"engine": "chatterbox", "weights": "random"}}
TARGETS = "targets:\n  - ttfc p95 < 400 ms\n  - success > 99 %\n"

Rows = list[dict[str, Any]]
REQUESTS = partial(turns, 400, 25, level=2)
CALLS = partial(calls, 20, 4)
SESSIONS = partial(trials, 40)


def made(parent: Path, rows: Rows, random: bool = True, **given: Any) -> Path:
    """A run against such a model, or one against a trained model."""
    parent.mkdir(exist_ok=True)
    told = RANDOM if random else {"http://h": {"engine": "chatterbox", "weights": "trained"}}
    run = make_run(parent, log_of(rows, clean_seconds(60)), target_facts=told, **given)
    (run / "targets.yaml").write_text(TARGETS)
    return run


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a verb prints on standard output, its lines joined."""

    def call(verb: Any, *words: Any) -> str:
        assert verb.main([*map(str, words)]) in (0, 1)
        return " ".join(capsys.readouterr().out.split())

    return call


Said = Callable[..., str]


def test_the_report_says_it_before_any_figure(tmp_path: Path, said: Said) -> None:
    page = said(report, made(tmp_path, REQUESTS()))
    assert page.index(MARK) < page.index("Latency")
    assert "WARNING random_weights: random weights: timing only" in page


def test_the_reports_files_say_it(tmp_path: Path, said: Said) -> None:
    rows = [*turns(400, session=lambda at: f"r{at % 25}"), *calls(20, 4), *trials(40)]
    run = made(tmp_path, rows)
    said(report, run, "--markdown", tmp_path / "t.md", "--junit", tmp_path / "t.xml")
    assert json.loads((run / "report.json").read_text())["remark"] == MARK
    assert MARK in (tmp_path / "t.md").read_text()
    for name in ("summary", "conversations", "full_duplex"):
        with (run / f"{name}.csv").open() as file:
            remarks = [row["remark"] for row in csv.DictReader(file)]
        assert remarks
        assert set(remarks) == {MARK}, name


def texts(path: Path) -> list[str]:
    """What a CI server shows of each case."""
    found = []
    for case in ElementTree.parse(path).iter("testcase"):
        (inside,) = case
        found.append(inside.get("message") or inside.text or "")
    return found


@pytest.mark.parametrize("ttfc_s", [0.1, 0.9], ids=["hold", "miss"])
def test_every_case_of_a_ci_server_says_it(tmp_path: Path, said: Said, ttfc_s: float) -> None:
    run = made(tmp_path, turns(400, 25, ttfc_s=ttfc_s))
    said(report, run, "--junit", tmp_path / "t.xml")
    found = texts(tmp_path / "t.xml")
    assert len(found) == 2
    assert all(text.startswith(f"{MARK}; ") for text in found)


def test_a_comparison_says_of_which_run_it_is_true(tmp_path: Path, said: Said) -> None:
    before, after = made(tmp_path / "a", turns(400, 25), random=False), made(tmp_path / "b", turns(400, 25))
    files = [tmp_path / f"compare.{end}" for end in ("md", "xml", "json")]
    page = said(compare, before, after, "--markdown", files[0], "--junit", files[1], "--json", files[2])
    assert f"AFTER: random_weights: {MARK}" in page
    assert "BEFORE: random_weights" not in page
    assert MARK in files[0].read_text()
    assert all(text.startswith(MARK) for text in texts(files[1]))
    assert any(MARK in note for note in json.loads(files[2].read_text())["notes"])


def test_a_capacity_says_it_before_its_answer(tmp_path: Path, said: Said) -> None:
    stay = {
        "users": 2, "entered_wall_at": WALL_AT, "measured_wall_at": WALL_AT + 10, "measured_until_wall_at": WALL_AT + 50
    }  # fmt: skip
    run = made(tmp_path, REQUESTS(), levels=[stay], level_alpha=0.004)
    (run / "targets.yaml").write_text("targets:\n  - ttfc p95 < 400 ms\n")
    page = said(capacity, run)
    assert page.index(MARK) < page.index("2 users at once")
    assert any(reason["line"].startswith(MARK) for reason in json.loads((run / "capacity.json").read_text())["reasons"])


def test_the_form_of_s1_says_it(tmp_path: Path, said: Said) -> None:
    run = made(tmp_path, SESSIONS())
    assert MARK in said(report, run, "--export", "personaplex", "--output", tmp_path / "s1.json")
    lines = [reason["line"] for reason in json.loads((tmp_path / "s1.json").read_text())["distrust"]]
    assert any(line.startswith(MARK) for line in lines)


def test_every_file_in_the_form_of_s3_says_it(tmp_path: Path, said: Said) -> None:
    run = made(tmp_path, CALLS())
    assert MARK in said(report, run, "--export", "voice_agent", "--output", tmp_path / "s3")
    files = sorted((tmp_path / "s3").iterdir())
    assert len(files) == 21
    assert all(json.loads(path.read_text())["remark"] == MARK for path in files)


def test_without_a_result_the_form_of_s3_says_it_too(tmp_path: Path, said: Said) -> None:
    failed = {"outcome": "timed_out", "error_kind": "no_answer_in_time", "error": "no answer within 10 s"}
    assert MARK in said(report, made(tmp_path, calls(4, 2, **failed)), "--export", "voice_agent")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (REQUESTS, ("--markdown", "t.md", "--junit", "t.xml")),
        (CALLS, ("--export", "voice_agent")),
        (SESSIONS, ("--export", "personaplex")),
    ],
    ids=["report", "voice_agent", "personaplex"],
)
def test_results_of_a_trained_model_do_not_say_it(
    tmp_path: Path, said: Said, rows: Callable[[], Rows], words: tuple[str, ...]
) -> None:
    run = made(tmp_path, rows(), random=False)
    page = said(report, run, *(tmp_path / word if "." in word else word for word in words))
    assert MARK not in page
    of_verbs = [path for path in tmp_path.rglob("*") if path.suffix in (".json", ".csv", ".md", ".xml")]
    assert len(of_verbs) > 1
    for path in of_verbs:
        assert MARK not in path.read_text(), path
        assert path.suffix != ".json" or path.parent.name != "voice_agent" or "remark" not in path.read_text()


def test_the_words_are_the_same_for_all() -> None:
    """Workers and the analysis do not import each other."""
    assert target_facts.RANDOM_WEIGHTS == MARK
    assert target_facts.random_weights({**RANDOM, "ws://k": {"engine": "tone"}}) == ["http://h"]


# ------------------------------------------------------------------------------------------------------ the whole way

SERVER = """\
import sys
from gpu_server import speech
from gpu_server.__main__ import main

load = speech.load_tone

def untrained(options):
    engine = load(options)
    engine.weights = "random"
    return engine

speech.ENGINES["tone"] = untrained
sys.exit(main(sys.argv[1:]))
"""


def test_the_server_says_it_and_a_run_against_it_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "untrained.py").write_text(SERVER)
    env = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    serving = ("--engine", "tone", "--port", "0")
    with locust(*serving, cwd=tmp_path, env=env, module="untrained") as server:
        ready = server.wait_for("ready on ")
        assert ready.endswith(MARK)
        url = ready.split(" on ")[1].split()[0]
        run = run_locust(
            "--headless", "--users", "2", "--spawn-rate", "10", "--run-time", "2s", "-f", SPEAK, "--host", url,
            cwd=tmp_path,
        )  # fmt: skip
    assert run.process.returncode == 0, run.said
    assert run.said.count(f"{MARK} ({url})") == 1
    assert run.said.index("nothing lost") < run.said.index(MARK)
    (run_dir,) = run_dirs(tmp_path)
    assert json.loads((run_dir / "run.json").read_text())["target_facts"][url]["weights"] == "random"

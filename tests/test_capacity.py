"""How many at once: real searches against the bundled server, whose capacity and weakest stage are known."""

import json
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.agent_peer import write_clips
from tests.locust_process import ROOT, SPEAK, Locust, free_port, locust, run_dirs, run_locust, turns
from tests.server_process import running_server

SHAPES = ROOT / "locustfiles" / "shapes"
TALK = str(ROOT / "locustfiles" / "talk_voice_agent.py")
# A turn of 0.1 s, its first chunk after 0.05 s, four at a time.
FOUR_STREAMS = ("--engine", "tone", "--tone-seconds", "0.5", "--streams", "4", "--pace", "50,0.1")
# Two streams end at two instants of each 0.1 s, and one of the two gaps between these is 0.05 s or more: with a third
# user every other turn waits for it, whenever the users came. (Of four streams' gaps all may be short enough.)
TWO_STREAMS = ("--engine", "tone", "--tone-seconds", "0.5", "--streams", "2", "--pace", "50,0.1")
# Turns of 0.02 s, the first chunk after 0.01 s: for levels that are soon decided.
QUICK = ("--engine", "tone", "--tone-seconds", "0.2", "--pace", "10,0.05")


def shaped(shape: str, host: str, folder: Path, *more: str, users_of: str = SPEAK) -> list[str]:
    (folder / "texts.txt").write_text("Hello there.\n")
    (folder / "targets.yaml").write_text("targets:\n  - ttfc p90 < 95 ms\n")
    return [
        "-f", f"{users_of},{SHAPES / shape}.py", "--headless", "--host", host, "--texts", "texts.txt",
        "--think-s", "0", "--level-warm-up-s", "1", "--spawn-rate", "50", *more,
    ]  # fmt: skip


def answer(folder: Path) -> dict[str, Any]:
    (run,) = run_dirs(folder)
    found: dict[str, Any] = json.loads((run / "capacity.json").read_text())
    return found


def manifest(folder: Path) -> dict[str, Any]:
    (run,) = run_dirs(folder)
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def test_the_known_capacity_of_two_streams_is_found_within_a_step(tmp_path: Path) -> None:
    with running_server(*TWO_STREAMS) as server:
        options = ("--targets", "targets.yaml", "--capacity-most", "32", "--capacity-confidence", "0.8")
        scraped = ("--metrics", server.url)
        done = run_locust(*shaped("capacity", server.url, tmp_path, *options, *scraped), cwd=tmp_path, within_s=180)
    found = answer(tmp_path)
    assert done.process.returncode == 0, done.said
    assert found["largest_pass"] in (1, 2)
    assert found["smallest_fail"] - found["largest_pass"] == 1
    assert (
        f"{found['largest_pass']} users at once: proven to pass, {found['smallest_fail']} proven to fail" in done.said
    )
    # What it costs, and what a weaker proof would, is said before the first level.
    assert done.said.index("What it costs") < done.said.index("rows go to") < done.said.index("looks well, going on")
    assert "--capacity-confidence 0.5" in done.said
    # Only the target's own queue tells here which part it is: there are no server rows.
    assert found["gave_out"]["part"].startswith("speech")
    waiting = next(one["spans"] for one in found["scraped"] if one["role"] == "queue_depth")
    assert waiting[str(found["smallest_fail"])]["most"] >= 1
    assert waiting["1"]["most"] == 0
    assert "The target's own metrics, mean at each level" in done.said
    # The same rows say the same again.
    levels = {level["users"]: level["outcome"] for level in found["levels"]}
    told = {level["users"]: level["outcome"] for level in manifest(tmp_path)["levels"]}
    assert levels == told


def test_a_first_level_that_fails_ends_the_search_with_status_1(tmp_path: Path) -> None:
    with running_server(*QUICK) as server:
        arguments = shaped("capacity", server.url, tmp_path, "--targets", "targets.yaml")
        (tmp_path / "targets.yaml").write_text("targets:\n  - ttfc p50 < 5 ms\n")
        done = run_locust(*arguments, cwd=tmp_path)
    assert done.process.returncode == 1, done.said
    assert "Not even 1 user: the smallest level already fails" in done.said
    assert "Traceback" not in done.said


@pytest.mark.parametrize(
    ("options", "lines", "says"),
    [
        ((), "", "a search needs one that turns can prove"),
        (("--targets", "targets.yaml"), "  - ttfc p95 < 4 s\n  - ttffc < 4 ms\n", "did you mean 'ttfc'?"),
        (("--targets", "targets.yaml"), "  - ttfc mean < 4 s\n", "a search needs one that turns can prove"),
        (("--targets", "nowhere.yaml"), "", "nowhere.yaml: No such file"),
        (("--targets", "targets.yaml"), "  - floor_transfer_offset p95 < 4 s\n", "is of conversations"),
        (("--targets", "targets.yaml", "--arrivals", "poisson", "--rate", "3"), "  - ttfc p95 < 4 s\n", "closed loop"),
    ],
)
def test_what_cannot_be_searched_with_is_refused_before_anything_runs(
    options: tuple[str, ...], lines: str, says: str, tmp_path: Path
) -> None:
    arguments = shaped("capacity", f"http://127.0.0.1:{free_port()}", tmp_path, *options)
    (tmp_path / "targets.yaml").write_text("targets:\n" + lines)
    done = run_locust(*arguments, cwd=tmp_path)
    assert done.process.returncode == 2, done.said
    assert says in done.said
    assert "Traceback" not in done.said
    assert not (tmp_path / "runs").exists()


def test_wrong_targets_are_refused_before_a_run_without_a_shape(tmp_path: Path) -> None:
    (tmp_path / "targets.yaml").write_text("targets:\n  - ttffc p95 < 4 ms\n")
    host = f"http://127.0.0.1:{free_port()}"
    done = run_locust(
        "-f", SPEAK, "--headless", "--host", host, "--run-time", "3s", "--targets", "targets.yaml", cwd=tmp_path
    )
    assert done.process.returncode == 2, done.said
    assert "did you mean 'ttfc'?" in done.said
    assert not (tmp_path / "runs").exists()


def test_ctrl_c_keeps_what_was_found(tmp_path: Path) -> None:
    with running_server(*QUICK) as server:
        arguments = shaped("capacity", server.url, tmp_path, "--targets", "targets.yaml")
        with locust(*arguments, cwd=tmp_path) as search:
            search.wait_for("1 user: looks well", within_s=60)
            search.signal_group(signal.SIGINT)
            search.end()
    assert search.process.returncode == 2, search.said
    assert "No level was proven to pass" in search.said
    assert answer(tmp_path)["levels"][0]["users"] == 1


def test_a_target_that_dies_ends_the_search_and_fails_no_level(tmp_path: Path) -> None:
    with running_server(*QUICK) as server:
        arguments = shaped("capacity", server.url, tmp_path, "--targets", "targets.yaml", "--capacity-first", "2")
        with locust(*arguments, cwd=tmp_path) as search:
            search.wait_for("2 users: looks well", within_s=60)
            server.stop()
            search.end()
    found = answer(tmp_path)
    assert search.process.returncode == 2, search.said
    assert found["smallest_fail"] is None
    assert "No level was proven to pass, and none to fail" in found["answer"]
    assert "the target was gone, and did not come back" in found["answer"]
    assert "connection_refused" in search.said
    assert "Traceback" not in search.said


def test_a_judge_that_dies_ends_the_run_with_its_name(tmp_path: Path) -> None:
    import psutil

    with running_server(*QUICK) as server:
        arguments = shaped("capacity", server.url, tmp_path, "--targets", "targets.yaml")
        with locust(*arguments, cwd=tmp_path) as search:
            search.wait_for("1 user: looks well", within_s=60)
            for child in psutil.Process(search.process.pid).children(recursive=True):
                if "analysis.judge" in child.cmdline():
                    child.kill()
            search.end()
    assert search.process.returncode == 3, search.said
    assert "the levels can no longer be judged" in search.said
    assert "Traceback" not in search.said


# ------------------------------------------------------------------------------------------------------ fixed levels


# Turns of nearly two seconds: longer than the master's own second, in which it looks whether they have ended.
SLOW = ("--engine", "tone", "--tone-seconds", "3", "--streams", "8", "--pace", "50,0.6")


def leveled(folder: Path, *more: str, served_by: tuple[str, ...] = FOUR_STREAMS) -> Locust:
    port = str(free_port())
    distributed = ("--processes", "2", "--master-bind-host", "127.0.0.1", "--master-bind-port", port)
    with running_server(*served_by) as server:
        options = ("--level-s", "3", "--master-port", port, *distributed, *more)
        return run_locust(*shaped("levels", server.url, folder, *options), cwd=folder, within_s=120)


def test_levels_are_warmed_up_and_left_when_their_turns_have_ended(tmp_path: Path) -> None:
    """On two workers: what counts, from the rows' own instants, against when the master says the levels were."""
    done = leveled(tmp_path, "--levels", "2", "4", "8", served_by=SLOW)
    assert done.process.returncode == 0, done.said
    (run,) = run_dirs(tmp_path)
    rows = turns(run)
    told = manifest(tmp_path)["levels"]
    offsets = {
        worker: facts["wall_at"] - facts["monotonic_at"] for worker, facts in manifest(tmp_path)["workers"].items()
    }
    assert [level["users"] for level in told] == [2, 4, 8]
    assert rows["worker"].nunique() == 2
    began_at = rows["intended_at"] + rows["worker"].map(offsets)
    ended_at = rows["ended_at"] + rows["worker"].map(offsets)
    for level in told:
        mine = (rows["level"] == level["users"]) & (rows["phase"] == "measured")
        assert level["measured_wall_at"] - level["entered_wall_at"] >= 1.0
        assert began_at[mine].min() >= level["measured_wall_at"] - 0.1
        assert ended_at[mine].max() <= level["left_wall_at"] + 0.1, "no measured turn saw the next level's load"
        assert mine.sum() == level["turns"]
        # All of its users were there, and no others.
        assert rows.loc[mine, "session"].nunique() == level["users"]
        warming = (rows["level"] == level["users"]) & (rows["phase"] == "warm_up")
        assert warming.any()
    assert (rows["phase"] == "warm_up").sum() + (rows["phase"] == "measured").sum() == len(rows)
    assert "No targets were given" in done.said


def test_levels_with_targets_are_judged(tmp_path: Path) -> None:
    done = leveled(tmp_path, "--levels", "2", "8", "--targets", "targets.yaml")
    outcomes = {level["users"]: level["outcome"] for level in answer(tmp_path)["levels"]}
    assert outcomes[8] == "fail", done.said
    assert outcomes[2] != "fail"


def test_the_default_levels_are_s4s() -> None:
    from workers.settings import Scenario

    assert Scenario().levels[:5] == [1, 2, 4, 8, 16]


# ------------------------------------------------------------------------------------------------------ ramp and soak


def test_a_ramp_climbs_evenly(tmp_path: Path) -> None:
    with running_server(*FOUR_STREAMS) as server:
        arguments = shaped("ramp", server.url, tmp_path, "--users", "8", "--run-time", "8s")
        done = run_locust(*arguments, cwd=tmp_path)
    (run,) = run_dirs(tmp_path)
    health = pd.read_parquet(run / "workers").sort_values("at")["users"]
    health = health[health > 0]  # the last second is after the end
    assert done.process.returncode == 0, done.said
    assert health.is_monotonic_increasing
    assert health.iloc[0] <= 3
    assert health.iloc[-1] >= 6


def test_a_soak_spreads_its_arrivals_over_the_warm_up(tmp_path: Path) -> None:
    with running_server(*FOUR_STREAMS) as server:
        more = ("--users", "6", "--run-time", "7s", "--warm-up-s", "3")
        done = run_locust(*shaped("soak", server.url, tmp_path, *more), cwd=tmp_path)
    (run,) = run_dirs(tmp_path)
    first = turns(run).groupby("session")["intended_at"].min().sort_values()
    assert done.process.returncode == 0, done.said
    assert len(first) == 6
    assert 1.5 < first.iloc[-1] - first.iloc[0] < 3.5


# ------------------------------------------------------------------------------------------------- what gave out first


@pytest.mark.parametrize(("stage", "part"), [("asr", "ASR"), ("llm", "LLM"), ("tts", "TTS")])
def test_the_stage_that_is_limited_is_the_one_that_is_named(stage: str, part: str, tmp_path: Path) -> None:
    write_clips(tmp_path / "clips", ask=0.4)
    delays = {"asr": 0.02, "llm": 0.02, "tts": 0.02} | {stage: 0.25}
    told = ",".join(f"{name}={seconds}" for name, seconds in delays.items())
    agent = ("--engine", "tone", "--tone-seconds", "0.2", "--agent-vad", "energy", "--agent-delays", told)
    with running_server(*agent, "--agent-slots", f"{stage}=1") as server:
        arguments = shaped(
            "levels", server.url.replace("http", "ws", 1), tmp_path, "--levels", "4", "14", "--level-s", "6",
            "--metrics", server.url, "--audio-dir", "clips", "--greeting-s", "0", "--answer-end-s", "0.3",
            "--keep-audio", "0", users_of=TALK,
        )  # fmt: skip
        done = run_locust(*arguments, cwd=tmp_path, within_s=120)
    assert done.process.returncode == 0, done.said
    found = answer(tmp_path)["gave_out"]
    assert found["part"] == part, found
    assert f"{part} gave out first: from 4 to 14 users" in done.said
    assert any(f"waited for {stage}" in line for line in found["evidence"]), found["evidence"]

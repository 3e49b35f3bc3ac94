"""Runs with a mode, as they are started: exactly N over all workers, part after part, and no server needed."""

import argparse
import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import soundfile

from tests.agent_peer import voice
from tests.duplex_peer import RATE, duplex_peer
from tests.locust_process import ROOT, Locust, free_port, locust, run_dirs, run_locust, turns, until
from workers import targets
from workers.clients.http_connection import BadTarget
from workers.settings import build, read_file, resolve

TALK = str(ROOT / "locustfiles" / "talk_personaplex.py")
OFFICIAL = ROOT.parent / "shared" / "samples" / "personaplex"
QUICK = [
    "--headless", "--only-summary", "--greeting-s", "0.2", "--answer-timeout-s", "3", "--answer-end-s", "0.5",
    "--think-s", "0", "--keep-audio", "0",
]  # fmt: skip

# A user that does nothing but begin and end iterations, and says so in a file: cheap, and nobody else counts.
STAND_IN = """
import json, os
import gevent
from locust import task
from workers.participant import Participant

class StandIn(Participant):
    protocol = "personaplex"
    wait_time = lambda self: 0.0

    @task
    def work(self):
        dealing = self.join().dealing
        iteration = dealing.next()
        self.tell("begun", iteration)
        try:
            gevent.sleep(TAKES_S)
            while iteration.number is None and not dealing.iteration_ended(iteration):
                gevent.sleep(0.02)
            self.tell("ended", iteration)
        finally:
            dealing.over(iteration)

    def tell(self, what, iteration):
        with open("told", "a") as file:
            file.write(json.dumps([what, os.getpid(), *iteration]) + "\\n")

    def session_rows(self):
        return []
"""


def said_folder(cwd: Path) -> Path:
    folder = cwd / "said"
    folder.mkdir(parents=True)
    soundfile.write(folder / "question.wav", voice(1.0, RATE), RATE, subtype="PCM_16")
    return folder


def stand_in(cwd: Path, takes_s: float) -> list[str]:
    (cwd / "stand_in.py").write_text(STAND_IN.replace("TAKES_S", str(takes_s)))
    said = str(said_folder(cwd))
    return ["-f", "stand_in.py", "--headless", "--only-summary", "--samples-dir", said, "--host", "ws://127.0.0.1:9"]


def told(cwd: Path) -> list[list[Any]]:
    """What the stand-ins have told so far: begun or ended, process, mode, number."""
    path = cwd / "told"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def with_workers(
    cwd: Path, args: list[str], count: int, there: Path | None = None
) -> Iterator[tuple[Locust, list[Locust]]]:
    """A master in `cwd`, and workers in `there`, or beside it."""
    port = str(free_port())
    role = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
    with locust(*args, *role, "--expect-workers", str(count), cwd=cwd) as master:
        workers = [Locust([*args[:2], "--worker", "--master-port", port], there or cwd) for _ in range(count)]
        try:
            yield master, workers
        finally:
            for worker in workers:
                worker.kill()


def child(run: Locust, word: str) -> psutil.Process:
    """A process that this run has started, with this word in its command, as soon as it is there."""

    def probe() -> psutil.Process | None:
        with suppress(psutil.NoSuchProcess):
            for one in psutil.Process(run.process.pid).children():
                with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    if word in one.cmdline():
                        return one
        return None

    return until(probe, 30, f"{word} in:\n{run.said}")


def run_json(cwd: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dirs(cwd)[0] / "run.json").read_text())
    return found


# ---- exactly N


def test_n_iterations_and_no_more(tmp_path: Path) -> None:
    with duplex_peer() as peer:
        said = ["--samples-dir", str(said_folder(tmp_path)), "--host", peer.url]
        asked = ["--mode", "text", "--iterations", "10", "--concurrency", "5", "--output", "out/text.json"]
        run = run_locust("-f", TALK, *QUICK, *asked, *said, cwd=tmp_path)
    assert run.process.returncode == 0, run.said
    assert "all iterations are over" in run.said
    assert len(peer.sessions) == 10
    rows = turns(run_dirs(tmp_path)[0])
    assert sorted(rows.iteration) == list(range(10))
    assert set(rows["mode"]) == {"text"}
    assert set(rows.outcome) == {"answered"}
    facts = run_json(tmp_path)
    assert facts["recordings"] == {"source": "local folder", "names": ["question"]}
    assert facts["lost_iterations"] == []
    assert (facts["users"], facts["scenario"]["iterations"], facts["mock"]) == (5, 10, False)
    assert json.loads((tmp_path / "out" / "text.json").read_text())
    assert "out/text.json" in run.said


def test_two_workers_make_n_together_and_parts_do_not_overlap(tmp_path: Path) -> None:
    args = stand_in(tmp_path, takes_s=0.01)
    asked = ["--mode", "full", "--iterations", "31", "--duration", "1", "--concurrency", "5"]
    with with_workers(tmp_path, [*args, *asked], 2) as (master, _):
        master.end()
    lines = told(tmp_path)
    assert len({pid for _, pid, *_ in lines}) == 2, "both took part"
    open_: Counter[str] = Counter()
    for what, _, mode, _ in lines:
        open_[mode] += 1 if what == "begun" else -1
        assert len(+open_) <= 1, "one part at a time"
        assert open_[mode] <= (5 if mode == "throughput" else 1)
    assert not +open_
    begun = [(mode, number) for what, _, mode, number in lines if what == "begun"]
    modes = ["text", "audio", "turn_taking", "interruption"]
    assert begun[: 4 * 31] == [(mode, number) for mode in modes for number in range(31)]
    assert begun[4 * 31 :] == [("throughput", None)] * 5


def test_a_killed_worker_costs_what_it_had_and_the_run_still_ends(tmp_path: Path) -> None:
    """One user, at one of two workers: where that is killed, the other's goes on."""
    args = stand_in(tmp_path, takes_s=0.2)
    with with_workers(tmp_path, [*args, "--mode", "audio", "--iterations", "12"], 2) as (master, workers):
        until(lambda: len(told(tmp_path)) >= 5, 30, "two iterations, and a third that has begun")
        pid = told(tmp_path)[-1][1]
        os.kill(pid, signal.SIGKILL)
        assert master.end() == 3, master.said
        assert pid in [worker.process.pid for worker in workers]
    [lost] = run_json(tmp_path)["lost_iterations"]
    assert lost["mode"] == "audio"
    assert f"mode audio, iteration {lost['number']} was under way at worker {lost['worker']}, which is lost" in (
        master.said
    )
    begun = [number for what, _, _, number in told(tmp_path) if what == "begun"]
    assert begun == list(range(12)), "each once"
    ended = [number for what, _, _, number in told(tmp_path) if what == "ended"]
    assert ended == [number for number in range(12) if number != lost["number"]]
    assert len({pid for _, pid, *_ in told(tmp_path)}) == 2


def test_a_worker_with_other_recordings_is_refused(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, question_s in ((here, 1.0), (there, 1.1)):
        folder.mkdir()
        args = stand_in(folder, takes_s=0.01)
        soundfile.write(folder / "said" / "question.wav", voice(question_s, RATE), RATE, subtype="PCM_16")
    args[args.index("--samples-dir") + 1] = "said"
    with with_workers(here, [*args, "--mode", "text", "--iterations", "10"], 1, there=there) as (master, _):
        assert master.end() == 3, master.said
    assert "cannot take part: its recordings are others than the master's" in master.said
    assert told(there) == []


def test_ctrl_c_keeps_what_there_is(tmp_path: Path) -> None:
    """And two users that wait for an iteration hold nothing up."""
    with duplex_peer() as peer:
        args = ["-f", TALK, *QUICK, "--iterations", "50", "--concurrency", "3", "--users", "5", "--host", peer.url]
        with locust(*args, "--samples-dir", str(said_folder(tmp_path)), cwd=tmp_path) as run:
            until(lambda: len(peer.sessions) > 3, 40, "a fourth session: the first is over")
            run.signal_group(signal.SIGINT)
            run.end()
    assert "Traceback" not in run.said, run.said
    rows = turns(run_dirs(tmp_path)[0])
    assert (rows.outcome == "answered").sum() >= 1
    assert len(rows) <= len(peer.sessions) < 50
    assert set(rows["mode"]) == {"audio"}, "the mode of iterations without one"
    assert (tmp_path / "reports" / f"{run_dirs(tmp_path)[0].name}.json").exists()


def test_throughput_lasts_its_duration(tmp_path: Path) -> None:
    with duplex_peer() as peer:
        asked = ["--mode", "throughput", "--duration", "4", "--concurrency", "3", "--host", peer.url]
        run = run_locust("-f", TALK, *QUICK, *asked, "--samples-dir", str(said_folder(tmp_path)), cwd=tmp_path)
    assert run.process.returncode == 0, run.said
    assert len(peer.sessions) == 3
    run_dir = run_dirs(tmp_path)[0]
    rows = turns(run_dir)
    assert set(rows["mode"]) == {"throughput"}
    assert rows.iteration.isna().all()
    assert set(rows.outcome) == {"answered"}, "turns under way end by themselves"
    assert rows.groupby("session").size().min() >= 2, "sessions go on"
    per_turn_s = (rows.ended_at - rows.intended_at).max()
    lasted_s = rows.ended_at.max() - rows.intended_at.min()
    assert 4.0 - 0.5 < lasted_s < 4.0 + per_turn_s + 0.5


# ---- no server, no network


def test_mock_needs_neither_server_nor_network(tmp_path: Path) -> None:
    """And says so; official recordings are not at hand, so that the embedded speech is heard."""
    asked = ["--mock", "--mode", "text", "--iterations", "10", "--concurrency", "10"]
    run = run_locust("-f", TALK, *QUICK, *asked, cwd=tmp_path, env=_NOWHERE)
    assert run.process.returncode == 0, run.said
    assert "--mock: the bundled server answers at ws://127.0.0.1:" in run.said
    facts = run_json(tmp_path)
    assert facts["mock"] is True
    assert facts["recordings"]["source"] == "synthetic"
    rows = turns(run_dirs(tmp_path)[0])
    assert sorted(rows.iteration) == list(range(10))
    assert set(rows.outcome) == {"answered"}


def test_the_mocked_server_dies_with_its_run(tmp_path: Path) -> None:
    with locust("-f", TALK, *QUICK, "--mock", "--iterations", "50", cwd=tmp_path) as run:
        run.wait_for("the bundled server answers")
        children = psutil.Process(run.process.pid).children()  # another may be speaking what the users will say
        [server] = [child for child in children if {"gpu_server", "--sessions"} <= set(child.cmdline())]
        os.kill(run.process.pid, signal.SIGKILL)
        until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE, 10, "the server's end")


def test_ctrl_c_while_the_mocked_server_starts_ends_in_a_line(tmp_path: Path) -> None:
    said = str(said_folder(tmp_path))
    with locust("-f", TALK, *QUICK, "--mock", "--samples-dir", said, cwd=tmp_path) as run:
        found = child(run, "gpu_server")
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 130, run.said
    assert not found.is_running() or found.status() == psutil.STATUS_ZOMBIE
    assert [line for line in run.lines if "interrupted" in line] == ["cicada: interrupted before the run began"]
    assert "Traceback" not in run.said
    assert "KeyboardInterrupt" not in run.said
    assert not (tmp_path / "runs").exists()


def test_what_is_wrong_with_the_recordings_is_said_before_a_server_is_mocked(tmp_path: Path) -> None:
    run = run_locust("-f", TALK, *QUICK, "--mock", "--samples-dir", str(tmp_path), cwd=tmp_path)
    assert run.process.returncode == 2, run.said
    assert "the bundled server answers" not in run.said


# ---- Ctrl-C as all is over


def test_a_run_that_is_being_closed_is_closed_in_spite_of_ctrl_c(tmp_path: Path) -> None:
    """As a terminal sends it, to the tools that make tables and exports as well."""
    asked = ["--mock", "--mode", "text", "--iterations", "1", "--samples-dir", str(said_folder(tmp_path))]
    with locust("-f", TALK, *QUICK, *asked, cwd=tmp_path) as run:
        child(run, "seal")
        run.signal_group(signal.SIGINT)
        run.wait_for("the run is being closed")
        assert run.end() == 0, run.said
    assert "Traceback" not in run.said
    assert "KeyboardInterrupt" not in run.said
    assert "read it with: python -m analysis.report" in run.said
    assert run_json(tmp_path)["state"] == "finished"
    assert len(list((tmp_path / "reports").iterdir())) == 1


def test_ctrl_c_twice_leaves_a_run_that_is_being_closed(tmp_path: Path) -> None:
    """With the command that mends it, and none of its tools left."""
    with locust(*stand_in(tmp_path, 0.1), "--mode", "text", "--iterations", "2", cwd=tmp_path) as run:
        tool = child(run, "seal")
        run.signal_group(signal.SIGINT)
        run.wait_for("the run is being closed")
        run.signal_group(signal.SIGINT)
        assert run.end() == 130, run.said
    assert not tool.is_running() or tool.status() == psutil.STATUS_ZOMBIE
    assert f"python -m workers seal runs/{run_dirs(tmp_path)[0].name}" in run.said
    assert "Traceback" not in run.said


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (["-f", TALK, "--mock", "--host", "ws://127.0.0.1:9"], ["mock", "--host"]),
        (["-f", TALK, "--mock", "--servers", "ws://127.0.0.1:9"], ["mock", "servers"]),
        (["-f", str(ROOT / "locustfiles" / "speak_http.py"), "--mock"], ["mock", "talk_personaplex.py"]),
        (["-f", TALK, "--host", "http://127.0.0.1:9"], ["--host", "ws://HOST:PORT"]),
        (
            ["-f", f"{TALK},{ROOT}/locustfiles/shapes/levels.py", "--mode", "text", "--host", "ws://127.0.0.1:9"],
            ["mode", "shape"],
        ),
        (["-f", TALK, "--host", "ws://127.0.0.1:9?seed=1"], ["--host", "seed"]),
        (["-f", TALK, "--host", "ws://127.0.0.1:9", "--output", f"{TALK}/run.json"], ["output", TALK, "no folder"]),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(args: list[str], names: list[str], tmp_path: Path) -> None:
    run = run_locust(*args, "--headless", "--samples-dir", str(said_folder(tmp_path)), cwd=tmp_path)
    assert run.process.returncode == 2, run.said
    [line] = [line for line in run.lines if line.startswith("cicada: ")]
    for name in names:
        assert name in line
    assert "Traceback" not in run.said
    assert not (tmp_path / "runs").exists()


def test_download_samples_ends_0_where_all_are_there_and_starts_nothing(tmp_path: Path) -> None:
    if not OFFICIAL.is_dir():
        pytest.skip("shared/samples/personaplex is not here")
    shutil.copytree(OFFICIAL, tmp_path / "cache" / "audio" / "samples")
    run = run_locust("-f", TALK, "--download-samples", "--cache-dir", "cache", cwd=tmp_path, env=_NOWHERE)
    assert run.process.returncode == 0, run.said
    for name in ("input_assistant.wav", "input_service.wav", "prompt_service.txt"):
        assert name in run.said
    assert not (tmp_path / "runs").exists()


def test_download_samples_ends_1_where_one_cannot_be_had(tmp_path: Path) -> None:
    run = run_locust("-f", TALK, "--download-samples", cwd=tmp_path, env=_NOWHERE)
    assert run.process.returncode == 1, run.said
    assert "input_service.wav cannot be downloaded" in run.said
    assert "Traceback" not in run.said


_NOWHERE = {"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}


# ---- configs/


@pytest.mark.parametrize("name", ["default", "quick_test", "stress_test"])
def test_a_config_says_all_that_a_full_run_needs(name: str) -> None:
    path = ROOT / "configs" / f"{name}.yaml"
    keys = read_file(path)
    options = argparse.Namespace(scenario=str(path), num_users=None)
    scenario = resolve(options, ["personaplex"])
    assert scenario.mode == "full"
    for key in ("iterations", "duration", "concurrency"):
        assert keys[key] == getattr(scenario, key), key
    assert scenario.name.startswith("personaplex")


def test_they_differ_in_how_long_they_take() -> None:
    quick, standard, stress = (
        read_file(ROOT / "configs" / f"{name}.yaml") for name in ("quick_test", "default", "stress_test")
    )
    for key in ("iterations", "duration", "concurrency"):
        assert quick[key] < standard[key] < stress[key]


def test_a_changed_value_of_a_config_changes_the_run(tmp_path: Path) -> None:
    config = (ROOT / "configs" / "quick_test.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(config.replace("iterations: 2", "iterations: 3"))
    args = stand_in(tmp_path, takes_s=0.01)
    run_locust(*args, "--scenario", "mine.yaml", "--mode", "audio", cwd=tmp_path)
    begun = [number for what, _, _, number in told(tmp_path) if what == "begun"]
    assert begun == [0, 1, 2]
    facts = run_json(tmp_path)
    assert (facts["name"], facts["users"], facts["scenario"]["answer_timeout_s"]) == ("personaplex_quick", 2, 10)


# ---- where


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("ws://h:9", "ws://h:9"),
        ("wss://h", "wss://h:8998"),
        ("h", "ws://h:8998"),
        ("h:9", "ws://h:9"),
        ("wss://[::1]", "wss://[::1]:8998"),
        ("wss://[::1]:9/x", "wss://[::1]:9/x"),
        ("wss://h/x", "wss://h:8998/x"),
        (None, "ws://0.0.0.0:8998"),
    ],
)
def test_a_host_without_a_port_is_at_personaplexs(asked: str | None, found: str) -> None:
    environment = argparse.Namespace(host=asked)
    assert targets.servers(environment, build({})) == [found]
    if asked is not None:
        both = build({"servers": [asked, "ws://b:1"]})
        assert targets.servers(environment, both) == [found, "ws://b:1"], "not the host"


def test_a_server_that_cannot_be_called_is_named() -> None:
    environment = argparse.Namespace(host="http://localhost:8080")
    assert targets.servers(environment, build({})) == ["ws://0.0.0.0:8998"], "the HTTP users' default host"
    with pytest.raises(BadTarget, match=r"--servers http://a: full-duplex models are called at ws://HOST:PORT"):
        targets.servers(environment, build({"servers": ["ws://b:1", "http://a"]}))

"""What one does with calls: NVIDIA's command line, own locustfiles, several workers, the web UI, Twilio's dialect."""

import asyncio
import json
import signal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import soundfile

from tests.agent_peer import RATE, AgentPeer, Talk, TwilioJson, agent_peer, voice, write_clips
from tests.locust_process import ROOT, Locust, free_port, locust, run_dirs, run_locust, turns, until
from tests.once import once
from tests.test_nothing_lost import _get, _post

TALK = str(ROOT / "locustfiles" / "talk_voice_agent.py")
QUICK = [
    "--greeting-s", "0.2", "--answer-timeout-s", "2", "--answer-end-s", "0.4", "--think-s", "0.5", "--drain-s", "0.5",
]  # fmt: skip
NEAR_S = 0.03


async def answers(talk: Talk) -> None:
    for number in range(100):
        await talk.ear.user_spoke(number)
        await talk.send(voice(0.5))


async def stalls(talk: Talk) -> None:
    for number in range(100):
        await talk.ear.user_spoke(number)
        await talk.send(voice(0.4))
        await asyncio.sleep(0.25)
        await talk.send(voice(0.4), note=False)


def _ports(*more: str) -> list[str]:
    port = str(free_port())
    return ["--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port, *more]


# ---- NVIDIA's command line, on two workers, with audio kept


class Benchmark(NamedTuple):
    status: int
    said: str
    folder: Path
    peer: AgentPeer


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    return once(tmp_path_factory, "benchmark", _benchmark)


def _benchmark(folder: Path) -> Benchmark:
    """`--clients 3 --test-duration 5 --client-start-delay 0.5 --host HOST --port P`, http:// as Locust's own host."""
    write_clips(folder / "audio_files", ask=0.6, order=0.9)
    config = (ROOT / "pyproject.toml").read_text().partition("[tool.locust]")[2].partition("\n[")[0]
    assert "http://" in config
    (folder / "pyproject.toml").write_text(f"[tool.locust]{config}")
    with agent_peer(stalls) as peer:
        run = run_locust(
            "-f", TALK, "--headless", "--clients", "3", "--test-duration", "5", "--client-start-delay", "0.5",
            "--port", str(peer.port), "--output-dir", "results", "--keep-audio", "1", "--only-summary",
            "--processes", "2", *_ports(), *QUICK, cwd=folder,
        )  # fmt: skip
    return Benchmark(run.process.returncode, run.said, folder, peer)


def test_http_is_not_inherited_and_the_default_host_is_this_machine(benchmark: Benchmark) -> None:
    status, said, folder, peer = benchmark
    assert status == 0, said
    assert "Traceback" not in said
    assert len(peer.talks) == 3
    assert peer.wrong == []
    assert {len(talk.path.split("/")) for talk in peer.talks} == {3}, "/ws/{stream_id}"
    facts = json.loads((run_dirs(folder)[0] / "run.json").read_text())
    assert f"ws://0.0.0.0:{peer.port}" in json.dumps(facts)


def test_the_window_opens_when_the_last_client_has_started(benchmark: Benchmark) -> None:
    folder = benchmark.folder
    run_dir = run_dirs(folder)[0]
    rows, sessions = turns(run_dir), pd.read_parquet(run_dir / "sessions")
    starts = np.sort(sessions.started_at.to_numpy())
    assert len(starts) == 3
    assert json.loads((run_dir / "run.json").read_text())["scenario"]["warm_up_s"] == 1.0, "two delays of half a second"
    early, measured = rows[rows.phase == "warm_up"], rows[rows.phase == "measured"]
    assert set(measured.session) == set(sessions.session)
    assert early.empty or early.intended_at.max() < measured.intended_at.min()
    assert measured.intended_at.min() > starts[0] + 0.5
    assert measured.intended_at.max() - measured.intended_at.min() > 2
    assert 5.0 < rows.ended_at.max() - starts[0] < 12.0, "a second of starting, five measured, and what was in flight"


def test_all_workers_rows_are_there(benchmark: Benchmark) -> None:
    folder, peer = benchmark.folder, benchmark.peer
    rows = turns(run_dirs(folder)[0])
    assert rows.worker.nunique() == 2
    assert set(rows.stream_id) == set(peer.by_stream())
    for stream, talk in peer.by_stream().items():
        assert len(rows[rows.stream_id == stream]) in (len(talk.ear.heard), len(talk.ear.heard) + 1)


def test_what_was_kept_is_what_was_heard(benchmark: Benchmark) -> None:
    """FLAC, user left, agent right, on the playout timeline from the user's first sample on."""
    folder = benchmark.folder
    run_dir = run_dirs(folder)[0]
    rows = turns(run_dir).set_index("request_id")
    kept = sorted((run_dir / "clips").glob("*.flac"))
    assert {path.name.split("-")[0] for path in kept} == {"slow", "stalled", "random"}
    for path in kept:
        with soundfile.SoundFile(path) as file:
            samples, rate, title = file.read(dtype="int16"), file.samplerate, file.title
        row = rows.loc[title.split()[0]]
        user, agent = samples[:, 0], samples[:, 1]
        assert rate == RATE
        query, _ = soundfile.read(folder / "audio_files" / row.text_name, dtype="int16")
        assert np.array_equal(user[: len(query)], query)
        assert not user[len(query) :].any()
        begins_s = np.flatnonzero(agent)[0] / rate
        assert begins_s == pytest.approx(row.agent_onset_at - row.user_onset_at, abs=0.002)
        ends_s = (np.flatnonzero(agent)[-1] + 1) / rate
        assert ends_s == pytest.approx(row.agent_offset_at - row.user_onset_at, abs=0.03)
        assert len(samples) / rate < ends_s + 1
        loud = np.flatnonzero(np.abs(agent.astype(np.int32)) > 500)
        assert np.diff(loud).max() / rate == pytest.approx(row.stall_longest_s_0ms, abs=0.02), (
            "the stall is to be heard"
        )


def test_results_are_written_as_nvidias(benchmark: Benchmark) -> None:
    folder, peer = benchmark.folder, benchmark.peer
    found = [json.loads(path.read_text()) for path in (folder / "results").rglob("*.json")]
    clients = {one["stream_id"]: one for one in found if "stream_id" in one}
    assert set(clients) == set(peer.by_stream())
    for one in clients.values():
        assert one["glitch_detected"]
        assert one["num_turns"] >= 1
        assert one["test_duration"] == 5


# ---- an own locustfile

OWN = """
import json
import numpy as np
from locust import task
from workers.conversing import CallUser

class Customer(CallUser):
    keep_audio = True
    wait_time = lambda self: 0.3

    @task
    def order(self):
        with self.call(stream_id="customer-%d" % len(TOLD)) as call:
            call.listen()
            turn = call.say("order.wav")
            TOLD.append({key: getattr(turn, key) for key in KEYS})
            HEARD.append(turn.heard.copy())
            assert turn.heard.dtype == "int16"
            if turn.floor_transfer_offset_s is not None and len(TOLD) == 2:
                turn.reject("no good answer")
            over = call.interrupt("ask", after_s=0.4)
            TOLD[-1]["over"] = {key: getattr(over, key) for key in KEYS}
            np.savez("told.npz", told=json.dumps(TOLD), *HEARD)

TOLD, HEARD = [], []
KEYS = ("ok", "outcome", "error_kind", "request_id", "floor_transfer_offset_s", "ttfc_s", "ttfa_s",
        "time_to_silence_s", "yielded", "sample_rate", "interrupted")
"""


async def _sells(talk: Talk) -> None:
    await talk.send(voice(0.3))  # a greeting
    await talk.ear.user_spoke(0)
    await talk.send(voice(0.7, 24_000), 24_000, 0.04)
    await talk.ear.user_spoke(1)
    speaking = asyncio.ensure_future(talk.send(voice(3.0, 24_000), 24_000, 0.04))
    await talk.ear.user_speaks(2, for_s=0.2)
    speaking.cancel()
    await talk.interruption()
    await talk.ear.user_spoke(2)
    await talk.send(voice(0.5, 24_000), 24_000, 0.04)


def test_an_own_locustfile(tmp_path: Path) -> None:
    (tmp_path / "own_callers.py").write_text(OWN)
    write_clips(tmp_path / "audio_files", ask=0.6, order=0.9)
    args = ["-f", "own_callers.py", "--headless", "--users", "1", *QUICK]
    with agent_peer(_sells) as peer, locust(*args, "--host", peer.url, cwd=tmp_path) as run:
        until(lambda: len(peer.talks) >= 3, 90, "a third call")
        run.signal_group(signal.SIGINT)
        run.end()
    assert "Traceback" not in run.said, run.said
    assert peer.wrong == []
    assert run.process.returncode == 1, "a rejected turn is a failure"
    assert "rejected: no good answer" in run.said
    with np.load(tmp_path / "told.npz") as data:
        told, heard = json.loads(str(data["told"])), [data[f"arr_{number}"] for number in range(len(data) - 1)]
    assert len(told) >= 2
    rows = turns(run_dirs(tmp_path)[0]).set_index("request_id")
    sent = voice(0.7, 24_000)
    for number, (turn, samples) in enumerate(zip(told, heard, strict=True)):
        row = rows.loc[turn["request_id"]]
        assert turn["ok"]
        assert turn["sample_rate"] == 24_000
        assert turn["floor_transfer_offset_s"] == row.floor_transfer_offset_s
        assert row.text_name == "order.wav"
        assert row.stream_id == f"customer-{number}"
        assert np.array_equal(samples, sent), "what the peer sent, sample by sample"
        assert row.error_kind == ("rejected" if number == 1 else None) or pd.isna(row.error_kind)
        over = turn["over"]
        row = rows.loc[over["request_id"]]
        assert row.text_name == "ask.wav"
        assert (over["ok"], over["yielded"]) == (True, True)
        assert over["time_to_silence_s"] == row.time_to_silence_s
        assert 0.15 < over["time_to_silence_s"] < 0.3
        assert row.barge_in_after_s == pytest.approx(0.4, abs=0.021)
    assert rows[rows.error_kind == "rejected"].error.tolist() == ["no good answer"]


# ---- workers that are lost, or are not alike


def _worker(folder: Path, ports: list[str]) -> Locust:
    return Locust(["-f", TALK, "--worker", *ports[-2:]], folder)


def test_killed_worker_costs_no_rows_and_ctrl_c_keeps_all(tmp_path: Path) -> None:
    write_clips(tmp_path / "audio_files", ask=0.5)
    ports = _ports()
    with agent_peer(answers) as peer:
        args = ["-f", TALK, "--headless", "--master", *ports[:-2], "--expect-workers", "2", "--users", "4",
                "--spawn-rate", "4", *QUICK, "--only-summary", "--host", peer.url]  # fmt: skip
        with locust(*args, cwd=tmp_path) as master:
            workers = [_worker(tmp_path, ports) for _ in range(2)]
            try:
                until(lambda: sum(len(talk.said) for talk in peer.talks) >= 8, 40, "8 answers")
                workers[0].process.kill()
                until(lambda: "failed to send heartbeat" in master.said, 30, "the master notices")
                master.signal_group(signal.SIGINT)
                assert master.end() == 3, master.said
            finally:
                for worker in workers:
                    worker.kill()
    assert "was lost; its rows were recovered" in master.said
    rows = turns(run_dirs(tmp_path)[0])
    assert rows.worker.nunique() == 2
    assert rows.request_id.is_unique
    for stream, talk in peer.by_stream().items():
        mine = rows[rows.stream_id == stream]
        assert (mine.outcome == "answered").sum() >= len(talk.said) - 1
        of_it = rows[rows.session.isin(mine.session)]  # a start without an end knows its session, not its stream
        assert len(of_it) >= len(talk.ear.heard)
    lost = rows[rows.error_kind == "worker_lost"]
    assert set(lost.outcome) <= {"cut"}


def test_a_worker_with_other_queries_is_refused(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    write_clips(here / "audio_files", ask=0.5)
    write_clips(there / "audio_files", ask=0.6)
    ports = _ports()
    with agent_peer(answers) as peer:
        args = ["-f", TALK, "--headless", "--master", *ports[:-2], "--expect-workers", "2", "--users", "2",
                "--run-time", "20s", *QUICK, "--host", peer.url]  # fmt: skip
        with locust(*args, cwd=here) as master:
            workers = [_worker(here, ports), _worker(there, ports)]
            try:
                assert master.end(40) == 3, master.said
            finally:
                for worker in workers:
                    worker.kill()
    assert "cannot take part: its audio_files holds other queries than the master's" in master.said


def test_a_second_run_in_one_process(tmp_path: Path) -> None:
    """Stopped and started again in the web UI: a run directory each, and the second measures as the first."""
    write_clips(tmp_path / "audio_files", ask=0.5)
    port = free_port()
    with agent_peer(answers) as peer:
        args = ["-f", TALK, "--web-host", "127.0.0.1", "--web-port", str(port), *QUICK, "--host", peer.url]
        with locust(*args, cwd=tmp_path) as run:
            run.wait_for("Starting web interface")
            for number in (1, 2):
                before = sum(len(talk.said) for talk in peer.talks)
                form = {"user_count": "2", "spawn_rate": "2", "host": peer.url, "keep_audio": "0"}
                started = until(lambda f=form: _post(port, "/swarm", f), 10, "the web UI")  # type: ignore[misc]
                assert started["success"], started
                run.wait_for("rows go to", times=number)
                until(lambda b=before: sum(len(t.said) for t in peer.talks) >= b + 4, 30, "answers")  # type: ignore[misc]
                _get(port, "/stop")
                run.wait_for("nothing lost", times=number)
            run.signal_group(signal.SIGINT)
            assert run.end() in (0, 1), run.said
    assert "Traceback" not in run.said, run.said
    dirs = run_dirs(tmp_path)
    assert len(dirs) == 2
    streams: set[str] = set()
    for run_dir in dirs:
        rows = turns(run_dir)
        answered = rows[rows.outcome == "answered"]
        assert len(answered) >= 2
        assert answered.floor_transfer_offset_s.median() == pytest.approx(0.27, abs=0.05)
        assert streams.isdisjoint(rows.stream_id)
        streams |= set(rows.stream_id)


# ---- Twilio


async def _phones(talk: Talk) -> None:
    for number in range(100):
        await talk.ear.user_spoke(number)
        await talk.send(voice(0.6, 8_000))
        await talk.socket.send(talk.wire.mark(f"answer {number}"))


async def _clears(talk: Talk) -> None:
    """Sends two seconds at once, and takes back what has not been played when the user speaks again."""
    for number in range(0, 100, 2):
        await talk.ear.user_spoke(number)
        await talk.send(voice(2.0, 8_000), lead=100)
        await talk.ear.user_speaks(number + 1, for_s=0.2)
        talk.notes.setdefault("silent_at", []).append(await talk.interruption())
        await talk.ear.user_spoke(number + 1)
        await talk.send(voice(0.4, 8_000))


TWILIO = """
from locust import task
from workers.conversing import CallUser

class Phone(CallUser):
    @task
    def talk(self):
        kind = ("phones", "clears")[next(NUMBERS) % 2]
        with self.call(stream_id=kind) as call:
            while True:
                call.say() if kind == "phones" else call.interrupt(after_s=0.5)

import itertools
NUMBERS = itertools.count()
"""


def test_twilio(tmp_path: Path) -> None:
    """μ-law at 8 kHz in JSON: what the server hears, what it says, its marks, and its `clear`."""
    (tmp_path / "phones.py").write_text(TWILIO)
    clips = write_clips(tmp_path / "audio_files", ask=0.7)

    async def script(talk: Talk) -> None:
        await talk.ear.until(lambda: any(event["event"] == "start" for event in talk.wire.events))
        start = next(event["start"] for event in talk.wire.events if event["event"] == "start")
        talk.notes["kind"] = start["customParameters"]["stream_id"]
        await {"phones": _phones, "clears": _clears}[talk.notes["kind"]](talk)

    args = ["-f", "phones.py", "--headless", "--users", "2", "--spawn-rate", "2", "--dialect", "twilio", *QUICK]
    with agent_peer(script, wire=TwilioJson) as peer, locust(*args, "--host", peer.url, cwd=tmp_path) as run:
        until(lambda: len(peer.talks) == 2 and all(len(talk.ear.heard) >= 5 for talk in peer.talks), 90, "calls enough")
        run.signal_group(signal.SIGINT)
        run.end()
    assert run.process.returncode == 0, run.said
    assert peer.wrong == []
    talks = {talk.notes["kind"]: talk for talk in peer.talks}
    rows = turns(run_dirs(tmp_path)[0])
    assert set(rows.dialect) == {"twilio"}
    rows = rows[rows.outcome != "cut"].sort_values("intended_at")
    assert rows.error_kind.isna().all()
    for talk in talks.values():
        events = [event["event"] for event in talk.wire.events]
        assert events[:2] == ["connected", "start"]
        assert events[-1] == "stop"
    phones, talk = rows[rows.stream_id == "phones"], talks["phones"]
    assert len(phones) >= 3
    assert set(phones.sample_rate) == {8_000}
    for row in phones.itertuples():
        truth_s = talk.said[row.turn][0] - talk.ear.mouth_at(talk.ear.heard[row.turn].last)
        assert row.floor_transfer_offset_s == pytest.approx(truth_s, abs=NEAR_S)
        wrote_s = talk.ended[row.turn] - talk.said[row.turn][0] + 0.04
        assert 0.6 - NEAR_S < row.agent_speech_s < max(0.6, wrote_s) + NEAR_S
        heard = talk.ear.heard[row.turn]
        assert (heard.last - heard.first) / 8_000 == pytest.approx(len(clips["ask"]) / RATE, abs=0.005)
    marks = [event["mark"]["name"] for event in talk.wire.events if event["event"] == "mark"]
    assert marks == [f"answer {number}" for number in range(len(marks))]
    assert len(marks) >= len(phones)
    clears, talk = rows[rows.stream_id == "clears"], talks["clears"]
    over = clears[clears.turn % 2 == 1]
    assert len(over) >= 1
    for row in over.itertuples():
        truth_s = talk.notes["silent_at"][row.turn // 2] - talk.ear.mouth_at(talk.ear.heard[row.turn].first)
        assert row.time_to_silence_s == pytest.approx(truth_s, abs=NEAR_S)

"""Users that speak, end to end: real Locust processes against the bundled server, whose trace is the truth."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gpu_server.trace import read_trace
from tests.bad_peer import bad_peer
from tests.locust_process import ROOT, SPEAK, Locust, free_port, run_dirs, run_locust, turns
from tests.server_process import Server, running_server

FAST = [
    "--headless",
    "--users",
    "6",
    "--spawn-rate",
    "6",
    "--run-time",
    "2s",
    "--think-s",
    "0.05",
    "0.1",
    "--only-summary",
]


@pytest.fixture(scope="module")
def espeak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("espeakng_loader", reason="the extra `espeak` is not installed")
    with running_server("--engine", "espeak", trace=tmp_path_factory.mktemp("espeak") / "trace.jsonl") as server:
        yield server


def joined(run_dir: Path, trace: Path) -> pd.DataFrame:
    """Our rows beside the server's, by request id; the server's columns end in _server."""
    served = pd.DataFrame([row for row in read_trace(trace)[1] if row["request_id"]])
    return turns(run_dir).merge(served, on="request_id", suffixes=("", "_server"), validate="one_to_one")


def test_s2s_own_locustfile_runs_unchanged(tmp_path: Path, espeak: Server) -> None:
    source = ROOT.parent / "shared" / "sources" / "S2_chatterbox_benchmarking.md"
    script = (ROOT / "tests" / "s2_locustfile.py").read_text()
    if source.exists():
        assert script.strip() in source.read_text()
    run = run_locust(
        "-f", str(ROOT / "tests" / "s2_locustfile.py"), "--headless", "--users", "5", "--spawn-rate", "5",
        "--run-time", "4s", "--host", espeak.url, cwd=tmp_path,
    )  # fmt: skip
    assert run.process.returncode == 0, run.said
    assert "/v1/synthesize" in run.said


def test_our_default_user_has_s2s_pace_and_body(tmp_path: Path) -> None:
    """between(1, 3), POST /v1/synthesize, {"text", "speaker_id": "default"}, one of the five standard texts."""
    from workers.settings import Scenario
    from workers.texts import standard

    assert Scenario().think_s == (1.0, 3.0)
    (tmp_path / "texts.txt").write_text("good\n")
    with bad_peer() as peer:
        run_locust(*["-f", SPEAK, *FAST], "--texts", "texts.txt", "--host", peer.url, cwd=tmp_path)
        run_locust("-f", SPEAK, "--headless", "--users", "5", "--spawn-rate", "5", "--run-time", "2s",
                   "--host", peer.url, cwd=tmp_path)  # fmt: skip
    assert peer.heads[0].startswith("POST /v1/synthesize HTTP/1.1")
    assert peer.requests[0] == {"text": "good", "speaker_id": "default"}
    assert {str(body["text"]) for body in peer.requests} - {"good"} <= set(standard().values())


@pytest.mark.parametrize("mode", [["--headless"], ["--headless", "--processes", "2"]], ids=["headless", "processes"])
def test_documented_command_fifty_users(tmp_path: Path, espeak: Server, mode: list[str]) -> None:
    """S2.32: `locust -f FILE --host URL --users 50 --spawn-rate 5 --run-time 5m`, with the time cut short."""
    port = str(free_port())
    run = run_locust(
        "-f", SPEAK, "--host", espeak.url, "--users", "50", "--spawn-rate", "25", "--run-time", "8s",
        "--master-bind-port", port, "--master-port", port, *mode, cwd=tmp_path,
    )  # fmt: skip
    assert run.process.returncode == 0, run.said
    rows = turns(run_dirs(tmp_path)[0])
    assert rows.session.nunique() == 50
    assert rows.error_kind.isna().all()


OWN = """
from locust import constant, task
from workers.users import SpeechUser

class Reader(SpeechUser):
    wait_time = constant(0.1)

    @task
    def say(self):
        speech = self.speak("Your balance is forty-five dollars.", voice="alto")
        assert speech.ok and speech.error_kind is None
        assert speech.samples.dtype == "int16" and len(speech.samples) == round(speech.audio_s * speech.sample_rate)
        assert 0 < speech.ttfc_s <= speech.ttfa_s <= speech.e2e_s + speech.audio_s, speech.ttfa_s
        assert speech.rtf > 0
        second = self.speak("Anything else?", voice="tenor", name="second")
        if abs(second.samples).max() > 0:
            second.reject("wrong voice")
"""


def test_an_own_locustfile(tmp_path: Path, espeak: Server) -> None:
    (tmp_path / "own_readers.py").write_text(OWN)
    run = run_locust("-f", "own_readers.py", "--headless", "--users", "2", "--spawn-rate", "2", "--run-time", "3s",
                     "--host", espeak.url, cwd=tmp_path)  # fmt: skip
    assert "Traceback" not in run.said, run.said
    assert run.process.returncode == 1, "a rejected answer is a failure"
    assert "rejected: wrong voice" in run.said
    rows = turns(run_dirs(tmp_path)[0])
    rejected = rows[rows.text_name == "second"]
    assert len(rejected) >= 5
    assert set(rejected.error_kind) == {"rejected"}
    assert set(rejected.error) == {"wrong voice"}
    assert set(rejected.voice) == {"tenor"}
    others = rows[rows.text_name != "second"]
    assert others.error_kind.isna().all()
    assert set(others.voice) == {"alto"}
    assert set(others.text_name) == {"Your balance is forty-f…"}


@pytest.mark.parametrize(
    ("dialect", "format_", "longer_s"),
    [
        ("synthesize", "wav", 0.0),
        ("synthesize", "pcm", 0.0),
        ("synthesize", "flac", 0.0),
        ("openai", "wav", 0.0),
        ("openai", "pcm", 0.0),
        ("openai", "flac", 0.0),
        ("openai", "mp3", 0.12),  # encoder delay and padding
        ("openai", "opus", 0.03),
        ("openai_sse", "wav", 0.0),
        ("openai_sse", "pcm", 0.0),
    ],
)
def test_every_format_is_heard_to_its_end(
    tmp_path: Path, espeak: Server, dialect: str, format_: str, longer_s: float
) -> None:
    run = run_locust("-f", SPEAK, *FAST, "--dialect", dialect, "--format", format_, "--host", espeak.url, cwd=tmp_path)
    assert run.process.returncode == 0, run.said
    assert espeak.trace is not None
    rows = joined(run_dirs(tmp_path)[0], espeak.trace)
    rows = rows[rows.outcome == "answered"]
    assert len(rows) >= 5
    assert rows.error_kind.isna().all()
    excess = rows.audio_s - rows.audio_s_server
    assert excess.between(-1e-3, longer_s + 1e-3).all(), excess.describe()
    assert (rows.ttfc_s <= rows.ttfa_s).all()
    assert (rows.ttfa_s < 1).all()


def test_ttfc_agrees_with_the_servers_own_stamps(tmp_path: Path) -> None:
    """First byte of audio: our kernel stamp against the server's clock just before it wrote, on one machine."""
    trace = tmp_path / "trace.jsonl"
    with running_server("--engine", "tone", "--pace", "80,0.2", trace=trace) as server:
        run = run_locust("-f", SPEAK, *FAST, "--host", server.url, cwd=tmp_path)
    assert run.process.returncode == 0, run.said
    rows = joined(run_dirs(tmp_path)[0], trace)
    rows = rows[rows.outcome == "answered"]
    error_s = rows.first_chunk_at - rows.first_audio_at_server
    assert error_s.median() < 0.001
    assert error_s.min() > -0.0001, "audio cannot come before it was sent"
    assert (rows.ttfc_s > 0.08).all()
    assert (rows.intended_at <= rows.sent_at).all()
    assert set(rows.clock) == {"kernel"}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """One run in which every fault of the server comes up; our rows beside its trace."""
    folder = tmp_path_factory.mktemp("faults")
    faults = ["delay:p=0.15,s=0.4", "stall:p=0.15,after_s=0.3,s=0.3", "silence:p=0.15,s=0.25", "cut:p=0.08,after_s=0.3",
              "error:p=0.08,status=500", "truncate:p=0.1,keep=0.4", "garbage:p=0.08", "refuse_json:p=0.08"]  # fmt: skip
    args = [word for fault in faults for word in ("--fault", fault)]
    trace = folder / "trace.jsonl"
    with running_server("--engine", "tone", "--pace", "60,0.5", "--tone-seconds", "1", *args, trace=trace) as server:
        run = run_locust(
            "-f", SPEAK, "--headless", "--users", "25", "--spawn-rate", "25", "--run-time", "12s", "--think-s", "0.05",
            "0.1", "--keep-chunks", "1", "--shortest-s-per-char", "0", "--only-summary", "--host", server.url,
            cwd=folder,
        )  # fmt: skip
    assert "Traceback" not in run.said
    rows = joined(run_dirs(folder)[0], trace)
    rows = rows[rows.outcome != "cut"]
    rows["fault"] = rows.fault.fillna("")
    return rows


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("cut", "cut_mid_stream"),
        ("error", "http_500"),
        ("garbage", "wrong_content_type"),
        ("refuse_json", "server_said_failure"),
    ],
)
def test_injected_failures_are_found_and_nothing_else(faulty: pd.DataFrame, fault: str, kind: str) -> None:
    injected = faulty[faulty.fault.str.split(",").map(lambda names: fault in names)]
    assert len(injected) >= 5
    alone = injected[injected.fault == fault]
    assert set(alone.error_kind) == {kind}
    assert set(faulty[faulty.error_kind == kind].request_id) <= set(injected.request_id)


def test_clean_answers_are_clean(faulty: pd.DataFrame) -> None:
    clean = faulty[faulty.fault == ""]
    assert len(clean) >= 50
    assert clean.error_kind.isna().all()
    assert (clean.audio_s == 1.0).all()
    assert (clean.stall_longest_s_60ms < 0.1).all()


def test_injected_delay_is_in_ttfc(faulty: pd.DataFrame) -> None:
    clean, delayed = faulty[faulty.fault == ""], faulty[faulty.fault == "delay"]
    assert len(delayed) >= 5
    found_s = delayed.ttfc_s.median() - clean.ttfc_s.median()
    assert found_s == pytest.approx(delayed.fault_s.median(), abs=0.005)


def test_injected_silence_is_between_ttfc_and_ttfa(faulty: pd.DataFrame) -> None:
    clean, silent = faulty[faulty.fault == ""], faulty[faulty.fault == "silence"]
    assert len(silent) >= 5
    found_s = (silent.ttfa_s - silent.ttfc_s).median() - (clean.ttfa_s - clean.ttfc_s).median()
    assert found_s == pytest.approx(0.25, abs=0.005)


def test_injected_stall_is_one_hole_of_its_length(faulty: pd.DataFrame) -> None:
    """Paced at RTF 0.5 the player is ahead when the hole comes; the longest wait between chunks is the hole."""
    stalled = faulty[faulty.fault == "stall"]
    assert len(stalled) >= 5
    usual_s = faulty[faulty.fault == ""].largest_gap_s.median()
    found_s = (stalled.largest_gap_s - stalled.fault_s).median()
    assert 0 <= found_s <= usual_s + 0.005
    holes = [int((np.diff(at) > 0.15).sum()) for at in stalled.chunk_at]
    assert set(holes) == {1}


def test_truncated_audio_shows_in_its_duration(faulty: pd.DataFrame) -> None:
    short = faulty[faulty.fault == "truncate"]
    assert len(short) >= 5
    assert short.audio_s.round(2).eq(0.4).all()


def test_token_is_sent_and_written_nowhere(tmp_path: Path) -> None:
    secret = "s3cret-token-of-the-test"
    (tmp_path / ".env").write_text(f"CICADA_TOKEN={secret}\n")
    with running_server("--engine", "tone", env={"CICADA_SERVER_TOKEN": secret}) as server:
        good = run_locust("-f", SPEAK, *FAST, "--host", server.url, cwd=tmp_path)
        assert good.process.returncode == 0, good.said
        bad = run_locust("-f", SPEAK, *FAST, "--host", server.url, cwd=tmp_path, env={"CICADA_TOKEN": "wrong-one"})
        assert bad.process.returncode == 1
    good_dir, bad_dir = run_dirs(tmp_path)
    assert turns(good_dir).error_kind.isna().all()
    assert set(turns(bad_dir).error_kind) == {"http_401"}
    for run_dir in (good_dir, bad_dir):
        for file in run_dir.rglob("*"):
            if file.is_file():
                assert secret.encode() not in file.read_bytes()
                assert b"wrong-one" not in file.read_bytes()
    assert secret not in good.said
    assert secret not in server.ready_line + "".join(server.stderr_lines)


def test_one_connection_serves_a_users_turns(tmp_path: Path) -> None:
    with running_server("--engine", "tone") as server:
        run_locust("-f", SPEAK, *FAST, "--host", server.url, cwd=tmp_path)
    sessions = pd.read_parquet(run_dirs(tmp_path)[0] / "sessions")
    assert len(sessions) == 6
    assert (sessions.turns > 5).all()
    assert (sessions.connections == 1).all()
    rows = turns(run_dirs(tmp_path)[0])
    assert rows.connection_new.sum() == 6


def test_open_loop_keeps_the_schedule_and_counts_who_was_dropped(tmp_path: Path) -> None:
    """20 starts a second over two workers; answers of a second and 2 x 5 users: half of the starts find nobody."""
    port = str(free_port())
    with running_server("--engine", "tone", "--pace", "900,0.1", "--tone-seconds", "1") as server:
        run = run_locust(
            "-f", SPEAK, "--headless", "--users", "10", "--spawn-rate", "10", "--run-time", "8s", "--only-summary",
            "--arrivals", "constant", "--rate", "20", "--shortest-s-per-char", "0",
            "--processes", "2", "--master-bind-port", port, "--master-port", port, "--host", server.url, cwd=tmp_path,
        )  # fmt: skip
    assert run.process.returncode == 0, run.said
    run_dir = run_dirs(tmp_path)[0]
    rows = turns(run_dir)
    seconds = pd.read_parquet(run_dir / "workers")
    taken, dropped = len(rows), int(seconds.dropped_starts.sum())
    assert dropped > 20
    # All of one machine: instants of both workers lie on one clock, and on one grid of 1/20 s.
    starts = np.sort(rows.intended_at.to_numpy())
    steps = np.diff(starts) * 20
    assert np.abs(steps - steps.round()).max() < 0.05
    assert (taken + dropped) / 20 == pytest.approx(6, abs=1.5)  # 8 s less the second of ramp-up and the one after
    assert (rows.sent_at - rows.intended_at).median() < 0.005


def test_warm_up_is_a_phase(tmp_path: Path) -> None:
    with running_server("--engine", "tone") as server:
        longer = ("--run-time", "3s", "--warm-up-s", "1")
        run_locust("-f", SPEAK, *FAST, *longer, "--host", server.url, cwd=tmp_path)
    rows = turns(run_dirs(tmp_path)[0])
    assert set(rows.phase) == {"warm_up", "measured"}
    assert rows[rows.phase == "warm_up"].intended_at.max() < rows[rows.phase == "measured"].intended_at.min()


def test_manifest_says_everything(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("name: night shift\ntexts: generated\nthink_s: 0.1\n")
    with running_server("--engine", "tone") as server:
        host = server.url.replace("http://", "http://user:hunter2@")
        args = ["--scenario", "own.yaml", "--think-s", "0.05"]
        run_locust("-f", SPEAK, "--headless", "--users", "2", "--run-time", "2s", *args, "--host", host, cwd=tmp_path)
    [run_dir] = run_dirs(tmp_path)
    assert run_dir.name.endswith("-night_shift")
    text = (run_dir / "run.json").read_text()
    assert "hunter2" not in text
    facts = json.loads(text)
    assert facts["state"] == "finished"
    assert facts["scenario"]["texts"] == "generated"
    assert facts["scenario"]["think_s"] == [0.05, 0.05], "the command line goes before the file"
    assert facts["scenario"]["timeout_s"] == 60.0, "defaults are written out"
    [worker] = facts["workers"].values()
    assert worker["drained"]
    assert (
        worker["log_bytes"] == worker["final_bytes"] == (run_dir / "log" / f"{worker['worker']}.msgpack").stat().st_size
    )
    assert turns(run_dir).text_chars.between(50, 200).all()


def test_locust_in_the_repository_needs_no_options(tmp_path: Path) -> None:
    """`locust --headless` with the default locustfile and host of pyproject.toml."""
    with running_server("--engine", "tone") as server:
        started = Locust(["--headless", "--run-time", "2s", "--host", server.url, "--runs-dir", str(tmp_path)], ROOT)
        assert started.end(40) == 0, started.said
        started.kill()
    assert len(turns(tmp_path / "latest")) >= 1
    assert "http://localhost:8080" in (ROOT / "pyproject.toml").read_text()

"""Whatever a voice agent or a user does wrong: a row under its own kind, one clear line, and no other call suffers."""

import ssl
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import soundfile
import trustme

from tests.agent_peer import write_clips
from tests.bad_agent import BEHAVIOURS, bad_agent
from tests.locust_process import ROOT, Locust, free_port, run_dirs, run_locust, turns
from tests.once import once

TALK = str(ROOT / "locustfiles" / "talk_voice_agent.py")
SHORT = [
    "--greeting-s", "0.3", "--answer-timeout-s", "1.8", "--answer-end-s", "0.4", "--longest-answer-s", "2",
    "--connect-timeout-s", "1", "--think-s", "1", "--keep-audio", "0", "--drain-s", "0", "--only-summary",
]  # fmt: skip


def call(folder: Path, *args: str, clients: int = 1, seconds: int = 12) -> Locust:
    write_clips(folder / "audio_files", ask=0.6, order=0.7)
    count = ["--users", str(clients), "--spawn-rate", str(clients)]
    return run_locust("-f", TALK, "--headless", *count, "--run-time", f"{seconds}s", *SHORT, *args, cwd=folder)


class Held(NamedTuple):
    """A run with every bad behaviour at the same time, among good agents."""

    status: int
    said: str
    rows: pd.DataFrame
    sessions: pd.DataFrame


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    return once(tmp_path_factory, "bad_agents", _hold)


def _hold(folder: Path) -> Held:
    """48 kHz: who reads nothing is full sooner."""
    with bad_agent() as agent:
        run = call(folder, "--send-rate", "48000", "--host", agent.url, clients=len(BEHAVIOURS))
    [run_dir] = run_dirs(folder)
    rows, sessions = turns(run_dir), pd.read_parquet(run_dir / "sessions")
    names = dict(enumerate(BEHAVIOURS, 1))
    for table in (rows, sessions):
        table["behaviour"] = [names[int(stream.split("-")[-2])] for stream in table.stream_id]
    return Held(run.process.returncode, run.said, rows, sessions)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_a_bad_agent_is_a_row_of_its_own_kind(held: Held, behaviour: str) -> None:
    rows = held.rows
    rows = rows[(rows.behaviour == behaviour) & (rows.outcome != "cut")].sort_values("intended_at")
    bad = BEHAVIOURS[behaviour]
    assert len(rows), "it never came up"
    if "between turns" in behaviour:  # after a turn that went well
        assert (rows.groupby("session").outcome.first() == "answered").all()
        rows = rows[rows.turn == 1]
        assert "lost between turns" in set(rows.text_name), "where the agent's clock was not late"
    if behaviour == "reads nothing":  # that nobody listens shows when the buffers between are full
        assert set(rows.error_kind) == {"no_answer_in_time", "half_open"}
        rows = rows[rows.error_kind == "half_open"]
    kinds = set(zip(rows.outcome, rows.error_kind.fillna(""), strict=True))
    assert kinds == {(bad.outcome, bad.kind or "")}, rows[["outcome", "error_kind", "error"]].to_string()
    if bad.kind:
        assert rows.error.str.contains(bad.told, regex=False).all(), rows.error.iloc[0]
        assert not rows.error.str.contains("\n").any()


def test_good_calls_beside_them_are_not_disturbed(held: Held) -> None:
    rows = held.rows
    good = rows[rows.behaviour.isin(["good", "good, too"]) & (rows.outcome != "cut")]
    assert len(good) >= 6
    assert set(good.outcome) == {"answered"}
    assert np.median(good.floor_transfer_offset_s) == pytest.approx(0.2, abs=0.1)


def test_a_call_outlives_what_is_no_end(held: Held) -> None:
    """A message that cannot be used costs the turn, not the call; a broken line or protocol costs the call."""
    sessions = held.sessions
    going_on = [name for name, bad in BEHAVIOURS.items() if bad.kind and bad.outcome == "protocol_error"]
    going_on = [name for name in going_on if BEHAVIOURS[name].kind not in ("bad_websocket", "not_websocket")]
    counts = sessions.behaviour.value_counts()
    assert len(going_on) >= 7
    assert {name: counts[name] for name in going_on} == dict.fromkeys(going_on, 1)
    for name in ("wrong path", "1011 at connect", "reserved bits", "1006 mid-answer"):
        assert counts[name] >= 2, "the user calls again"


def test_nothing_crashed(held: Held) -> None:
    assert "Traceback" not in held.said, held.said
    assert "internal_error" not in set(held.rows.error_kind)
    assert held.status == 1, held.said


def _tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.mark.parametrize(
    ("host", "kind", "told"),
    [
        ("ws://127.0.0.1:{free}", "connection_refused", "nothing listens on 127.0.0.1:{free}"),
        ("wss://127.0.0.1:{plain}", "tls_failure", "TLS handshake with 127.0.0.1:{plain} failed"),
        ("wss://127.0.0.1:{tls}", "tls_failure", "for a self-signed one add --insecure"),
    ],
    ids=["refused", "TLS to plain", "self-signed"],
)
def test_an_agent_that_cannot_be_reached(tmp_path: Path, host: str, kind: str, told: str) -> None:
    """S3: no results gives a message that names the cause, and says where to look; in the report as well."""
    ports = {"free": free_port()}
    with bad_agent() as plain, bad_agent(_tls()) as tls:
        ports |= {"plain": plain.port, "tls": tls.port}
        run = call(tmp_path, "--host", host.format(**ports), "--think-s", "0.2", seconds=2)
    assert "Traceback" not in run.said, run.said
    assert run.process.returncode == 1, run.said
    rows = turns(run_dirs(tmp_path)[0])
    assert len(rows) >= 2
    assert set(rows.error_kind) == {kind}
    assert rows.error.str.contains(told.format(**ports), regex=False).all(), rows.error.iloc[0]
    assert told.format(**ports) in run.said
    assert "check the server's log" in run.said.lower(), run.said


def test_wss_with_a_self_signed_certificate(tmp_path: Path) -> None:
    with bad_agent(_tls()) as agent:  # the first user's is a good one
        run = call(tmp_path, "--host", agent.url, "--insecure", seconds=6)
    assert run.process.returncode == 0, run.said
    rows = turns(run_dirs(tmp_path)[0])
    rows = rows[rows.outcome != "cut"]
    assert len(rows) >= 1
    assert set(rows.outcome) == {"answered"}
    assert rows.floor_transfer_offset_s.iloc[0] == pytest.approx(0.2, abs=0.1)


def _wav(path: Path, rate: int = 16_000, channels: int = 1, subtype: str = "PCM_16") -> None:
    path.parent.mkdir(exist_ok=True)
    soundfile.write(path, np.full((rate, channels), 0.3), rate, subtype=subtype)


def _wrong_audio(folder: Path, case: str) -> None:
    inside = folder / "audio_files"
    if case != "missing":
        inside.mkdir()
    if case == "wrong":
        _wav(inside / "slow.wav", rate=8_000)
        _wav(inside / "wide.wav", channels=2)
        _wav(inside / "deep.wav", subtype="PCM_24")
        (inside / "text.wav").write_text("no audio at all")
        soundfile.write(inside / "mute.wav", np.zeros(16_000), 16_000, subtype="PCM_16")
        write_clips(inside, fine=0.6)


@pytest.mark.parametrize("case", ["missing", "empty", "wrong"])
def test_wrong_audio_is_refused_before_anybody_calls(tmp_path: Path, case: str) -> None:
    _wrong_audio(tmp_path, case)
    with bad_agent() as agent:
        run = run_locust("-f", TALK, "--headless", "--run-time", "2s", *SHORT, "--host", agent.url, cwd=tmp_path)
        assert agent.calls == 0
    assert run.process.returncode == 2, run.said
    assert "Traceback" not in run.said
    assert not (tmp_path / "runs").exists()
    [line] = [line for line in run.lines if line.startswith("cicada: ")]
    named = {"missing": ["audio_files"], "empty": ["audio_files"], "wrong": ["slow", "wide", "deep", "text", "mute"]}
    for name in named[case]:
        assert name in line
    assert "fine.wav" not in line
    if case == "wrong":
        assert "python -m workers clips fix audio_files" in line

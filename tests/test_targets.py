"""Where calls and requests go: what --host may look like, and whose default is not theirs."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from workers import targets
from workers.audio.clips import ClipError
from workers.clients.http_connection import BadTarget
from workers.nothing_came import say_if_nothing_came
from workers.settings import build
from workers.targets import call_host, check, fingerprint, protocols

INHERITED = "http://localhost:8080"  # what [tool.locust] of this project says


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        (None, 8100, "ws://0.0.0.0:8100"),
        ("", 8100, "ws://0.0.0.0:8100"),
        (None, 9000, "ws://0.0.0.0:9000"),
        ("agent.example", 8100, "ws://agent.example:8100"),
        ("10.0.0.7", 9000, "ws://10.0.0.7:9000"),
        ("agent.example:7860", 8100, "ws://agent.example:7860"),
        ("ws://agent.example:7860", 8100, "ws://agent.example:7860"),
        ("wss://agent.example/voice", 8100, "wss://agent.example/voice"),
        ("ws://agent.example:7860/ws", 8100, "ws://agent.example:7860/ws"),
        (INHERITED, 8100, "ws://0.0.0.0:8100"),
        ("https://elsewhere", 9000, "ws://0.0.0.0:9000"),
        ("agent.example/voice", 8100, "ws://agent.example:8100/voice"),
        ("agent.example:7860/voice", 8100, "ws://agent.example:7860/voice"),
        ("[::1]", 8100, "ws://[::1]:8100"),
        ("[::1]:7860", 8100, "ws://[::1]:7860"),
    ],
)
def test_hosts_as_nvidias_benchmark_and_as_locust_take_them(host: str | None, port: int, url: str) -> None:
    assert call_host(host, port, was_asked=False) == url
    if host and not host.startswith("http"):
        assert call_host(host, port, was_asked=True) == url


@pytest.mark.parametrize("host", ["http://agent:8100", "https://agent"])
def test_an_http_host_that_was_asked_for_is_refused(host: str) -> None:
    """It is not quietly called at another address."""
    with pytest.raises(BadTarget) as caught:
        call_host(host, 8100, was_asked=True)
    assert "ws://HOST:PORT" in str(caught.value)
    assert host in str(caught.value)


class Speaker:
    protocol = "http_tts"


class Caller:
    protocol = "voice_agent"


class Stranger:
    """Locust's own kind of user."""


@pytest.mark.parametrize(
    ("users", "expected"),
    [
        ([Speaker], ["http_tts"]),
        ([Caller], ["voice_agent"]),
        ([Caller, Speaker, Caller], ["http_tts", "voice_agent"]),
        ([Stranger], ["http_tts"]),
        ([Stranger, Caller], ["voice_agent"]),
        ([], ["http_tts"]),
    ],
)
def test_what_a_runs_users_speak(users: list[Any], expected: list[str]) -> None:
    assert protocols(users) == expected


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two queries."""
    made = tmp_path / "queries"
    made.mkdir()
    t = np.arange(16_000) / 16_000
    for k in (1, 2):
        tone = sum(np.cos(2 * np.pi * 150 * k * h * t) / h for h in (1, 2, 3)) * 6_000
        soundfile.write(made / f"query_{k}.wav", np.rint(tone).astype(np.int16), 16_000, "PCM_16")
    return made


def environment(host: str | None, *users: Any) -> Any:
    return SimpleNamespace(host=host, user_classes=list(users))


def asked(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.delenv("LOCUST_HOST", raising=False)
    monkeypatch.setattr(sys, "argv", ["locust", *words])


def test_each_protocol_has_its_host(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    asked(monkeypatch)
    scenario = build({"audio_dir": str(folder)})
    assert check(environment(INHERITED, Speaker), scenario) == {"http_tts": INHERITED}
    assert check(environment(INHERITED, Caller), scenario) == {"voice_agent": "ws://0.0.0.0:8100"}
    both = check(environment(INHERITED, Speaker, Caller), scenario)
    assert both == {"http_tts": INHERITED, "voice_agent": "ws://0.0.0.0:8100"}


@pytest.mark.parametrize(
    "words", [["--host", INHERITED], ["-H", INHERITED], [f"--host={INHERITED}"], [f"-H{INHERITED}"]]
)
def test_a_host_on_the_command_line_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, folder: Path, words: list[str]
) -> None:
    asked(monkeypatch, "-f", "talk.py", *words)
    with pytest.raises(BadTarget, match="voice agents are called at"):
        check(environment(INHERITED, Caller), build({"audio_dir": str(folder)}))


def test_a_host_in_the_environment_was_asked_for(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    asked(monkeypatch)
    monkeypatch.setenv("LOCUST_HOST", INHERITED)
    with pytest.raises(BadTarget, match="voice agents are called at"):
        check(environment(INHERITED, Caller), build({"audio_dir": str(folder)}))


def test_what_will_not_work_is_known_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path
) -> None:
    asked(monkeypatch)
    with pytest.raises(ClipError, match="nowhere"):
        check(environment(None, Caller), build({"audio_dir": str(tmp_path / "nowhere")}))
    twilio = build({"audio_dir": str(folder), "dialect": "twilio", "send_rate": 16_000})
    with pytest.raises(BadTarget, match="send_rate"):
        check(environment(None, Caller), twilio)
    with pytest.raises(BadTarget, match="--host"):
        check(environment("ws://:8100", Caller), build({"audio_dir": str(folder)}))
    stereo = np.zeros((16_000, 2), np.int16)
    soundfile.write(folder / "stereo.wav", stereo, 16_000, "PCM_16")
    with pytest.raises(ClipError, match=r"stereo\.wav"):
        check(environment(None, Caller), build({"audio_dir": str(folder)}))


def test_a_fingerprint_is_of_names_and_samples(folder: Path) -> None:
    scenario = build({"audio_dir": str(folder)})
    first = fingerprint(scenario)
    assert fingerprint(scenario) == first
    (folder / "notes.txt").write_text("not audio")
    assert fingerprint(scenario) == first
    (folder / "query_2.wav").rename(folder / "query_3.wav")
    renamed = fingerprint(scenario)
    assert renamed != first
    samples, rate = soundfile.read(folder / "query_1.wav", dtype="int16")
    samples[5_000] += 1
    soundfile.write(folder / "query_1.wav", samples, rate, "PCM_16")
    assert fingerprint(scenario) not in (first, renamed)
    assert targets.fingerprint is fingerprint


def test_callers_may_have_a_host_of_their_own(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """One run, two servers; and what is said there was asked for, wherever it stands."""
    asked(monkeypatch)
    scenario = build({"audio_dir": str(folder), "agent_host": "agent:7860"})
    found = check(environment(INHERITED, Speaker, Caller), scenario)
    assert found == {"http_tts": INHERITED, "voice_agent": "ws://agent:7860"}
    with pytest.raises(BadTarget, match="voice agents are called at"):
        check(environment(None, Caller), build({"audio_dir": str(folder), "agent_host": "http://agent:1"}))


def test_credentials_in_a_callers_host_are_refused(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Hosts are written into the run."""
    asked(monkeypatch)
    for host in ("ws://me:pa55@agent:8100", "me:pa55@agent", "me:pa55@agent:8100"):
        with pytest.raises(BadTarget) as caught:
            check(environment(host, Caller), build({"audio_dir": str(folder)}))
        assert "pa55" not in str(caught.value)


class Talker:
    protocol = "personaplex"


@pytest.mark.parametrize(
    ("query", "says"),
    [("seed=1", "seed"), ("text_prompt=", "text_prompt is empty"), ("voice_prompt=%20", "voice_prompt is empty")],
)
def test_an_address_on_which_the_model_fails_is_refused_before_the_run(
    monkeypatch: pytest.MonkeyPatch, query: str, says: str
) -> None:
    asked(monkeypatch, "--host", "x")
    with pytest.raises(BadTarget, match=f"--host.*{says}|{says}"):
        check(environment(f"ws://model:9?{query}", Talker), build({}))
    second = build({"servers": ["ws://model:9", f"ws://model:10/api/chat?{query}"]})
    with pytest.raises(BadTarget, match=says):
        check(environment(None, Talker), second)


@pytest.mark.parametrize("host", ["model?token=a", "ws://model?token=a", "ws://model:8998?token=a"])
def test_a_query_is_no_part_of_the_place(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    asked(monkeypatch, "--host", host)
    assert check(environment(host, Talker), build({})) == {"personaplex": "ws://model:8998?token=a"}


@pytest.mark.parametrize(
    ("kind", "says", "not_said"),
    [
        ("connection_refused", "cannot be reached", "was reached"),
        ("http_404", "--path", "cannot be reached"),
        ("http_503", "full", "--path"),
        ("not_websocket", "another kind", "cannot be reached"),
        ("tls_failure", "certificate", "cannot be reached"),
        ("ear_lost", "fault of ours", "server's log"),
        ("internal_error", "fault of ours", "server's log"),
    ],
)
def test_why_nothing_came_fits_how_it_failed(
    caplog: pytest.LogCaptureFixture, kind: str, says: str, not_said: str
) -> None:
    failure = SimpleNamespace(error=f"{kind}: it went wrong", occurrences=3)
    stats = SimpleNamespace(
        entries={("turn", "personaplex"): SimpleNamespace(num_requests=3, num_failures=3)}, errors={"e": failure}
    )
    manifest = {"host": "ws://model:8998", "scenario": {"audio_dir": "audio_files"}}
    run: Any = SimpleNamespace(trouble=None, workers={"w": {"turns": 3}}, manifest=manifest)
    where: Any = SimpleNamespace(stats=stats, user_classes=[Talker])
    say_if_nothing_came(where, run)
    [line] = caplog.messages
    assert says in line
    assert not_said not in line
    assert kind in line

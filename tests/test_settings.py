"""The scenario: what is impossible is refused in one line that names the key, and every key has its twin."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from workers import settings
from workers.audio.containers import FORMATS
from workers.clients.codecs import CODECS
from workers.clients.http_speech import DIALECTS
from workers.settings import (
    Scenario,
    ScenarioError,
    add_arguments,
    as_clients,
    build,
    read_file,
    resolve,
    resolve_texts,
)


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def refused(keys: dict[str, Any]) -> str:
    """The line with which these keys are refused."""
    with pytest.raises(ScenarioError) as caught:
        build(keys)
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 1000  # with the names of all keys
    return line


def test_the_defaults_are_s2s_pace_and_body() -> None:
    scenario = build({})
    assert scenario.dialect_of("http_tts") == "synthesize"
    assert scenario.voices == ["default"]
    assert scenario.think_s == (1.0, 3.0)
    assert scenario.arrivals == "closed"
    assert scenario.texts == "standard"


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("dialekt", "dialect"),
        ("voice", "voices"),
        ("think", "think_s"),
        ("timeout", "timeout_s"),
        ("warmup_s", "warm_up_s"),
        ("sampel_rate", "sample_rate"),
        ("run_dir", "runs_dir"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest(wrong: str, meant: str) -> None:
    line = refused({wrong: 1})
    assert f"unknown key {wrong!r}" in line
    assert f"did you mean {meant!r}?" in line


def test_a_key_that_resembles_none_gets_the_whole_list() -> None:
    line = refused({"xyzzy": 1})
    assert all(key in line for key in Scenario.model_fields)


def test_the_token_is_no_key() -> None:
    assert not [key for key in Scenario.model_fields if "token" in key or "secret" in key or "key" in key]
    assert "unknown key 'token'" in refused({"token": "s3cret"})
    assert "s3cret" not in refused({"token": "s3cret"})


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        ({"dialect": "opnai"}, ["dialect", "'opnai'", "did you mean 'openai'?"]),
        ({"format": "aac"}, ["format", "'aac'"]),
        ({"timeout_s": 0}, ["timeout_s", "greater than 0", "0"]),
        ({"timeout_s": -3}, ["timeout_s", "-3"]),
        ({"timeout_s": "soon"}, ["timeout_s", "number", "'soon'"]),
        ({"timeout_s": float("nan")}, ["timeout_s"]),
        ({"timeout_s": float("inf")}, ["timeout_s"]),
        ({"connect_timeout_s": 0}, ["connect_timeout_s"]),
        ({"warm_up_s": -1}, ["warm_up_s", "-1"]),
        ({"warm_up_s": float("inf")}, ["warm_up_s"]),
        ({"drain_s": -0.1}, ["drain_s"]),
        ({"rate": 0, "arrivals": "poisson"}, ["rate"]),
        ({"rate": float("inf"), "arrivals": "constant"}, ["rate"]),
        ({"arrivals": "poisson"}, ["rate", "poisson", "--rate"]),
        ({"arrivals": "constant"}, ["rate", "constant"]),
        ({"rate": 5}, ["rate", "closed loop", "--arrivals"]),
        ({"arrivals": "gamma", "rate": 5}, ["arrivals", "'gamma'"]),
        ({"think_s": [3, 1]}, ["think_s", "3 to 1"]),
        ({"think_s": [-1, 1]}, ["think_s", "-1"]),
        ({"think_s": [1, 2, 3]}, ["think_s"]),
        ({"think_s": []}, ["think_s"]),
        ({"think_s": "soon"}, ["think_s"]),
        ({"think_s": True}, ["think_s"]),
        ({"think_s": [1, float("nan")]}, ["think_s"]),
        ({"think_s": [float("nan"), 1]}, ["think_s"]),
        ({"think_s": [0, float("inf")]}, ["think_s"]),
        ({"voices": []}, ["voices"]),
        ({"voices": ""}, ["voices"]),
        ({"voices": [7]}, ["voices"]),
        ({"speed": 0.1}, ["speed", "0.25"]),
        ({"speed": 9}, ["speed", "4"]),
        ({"speed": float("nan")}, ["speed"]),
        ({"sample_rate": 0}, ["sample_rate", "4000"]),
        ({"sample_rate": 24000.5}, ["sample_rate"]),
        ({"audible_dbfs": 3}, ["audible_dbfs"]),
        ({"audible_dbfs": float("nan")}, ["audible_dbfs"]),
        ({"keep_chunks": 1.5}, ["keep_chunks"]),
        ({"longest_s_per_char": 0}, ["longest_s_per_char"]),
        ({"path": "v1/speech"}, ["path", "'v1/speech'", "/"]),
        ({"path": "/v1 /speech"}, ["path"]),
        ({"path": "/v1\r\nX-Evil: 1"}, ["path"]),
        ({"name": ""}, ["name"]),
        ({"seed": "one"}, ["seed", "'one'"]),
        ({"stream": "maybe"}, ["stream", "'maybe'"]),
        ({"insecure": 3}, ["insecure"]),
        ({"texts": "nowhere.txt"}, ["texts", "nowhere.txt", "No such file"]),
        ({"dialect": "pipcat"}, ["dialect", "'pipcat'", "did you mean 'pipecat'?"]),
        ({"port": 0}, ["port", "0"]),
        ({"port": 65_536}, ["port", "65536"]),
        ({"chunk_ms": 4}, ["chunk_ms", "5"]),
        ({"chunk_ms": 201}, ["chunk_ms", "200"]),
        ({"send_rate": 4_000}, ["send_rate", "8000"]),
        ({"turns_per_call": -1}, ["turns_per_call"]),
        ({"greeting_s": -1}, ["greeting_s"]),
        ({"greeting_s": float("inf")}, ["greeting_s"]),
        ({"answer_timeout_s": 0}, ["answer_timeout_s"]),
        ({"answer_end_s": float("nan")}, ["answer_end_s"]),
        ({"longest_answer_s": 0}, ["longest_answer_s"]),
        ({"barge_in_share": 1.1}, ["barge_in_share", "1"]),
        ({"barge_in_share": float("nan")}, ["barge_in_share"]),
        ({"keep_audio": -0.1}, ["keep_audio"]),
        ({"clients": 0}, ["clients", "1"]),
        ({"clients": 2.5}, ["clients"]),
        ({"test_duration": 0}, ["test_duration"]),
        ({"client_start_delay": -1}, ["client_start_delay"]),
        ({"threshold": -0.5}, ["threshold"]),
        ({"levels": [1, 4, 2]}, ["levels", "1,4,2", "out of order"]),
        ({"levels": [2, 2]}, ["levels", "2,2", "out of order"]),
        ({"levels": []}, ["levels"]),
        ({"levels": [0, 1]}, ["levels", "0"]),
        ({"levels": [1.5, 2]}, ["levels", "1.5"]),
        ({"level_s": 0}, ["level_s"]),
        ({"level_warm_up_s": -1}, ["level_warm_up_s"]),
        ({"capacity_first": 0}, ["capacity_first", "1"]),
        ({"capacity_first": 9, "capacity_most": 8}, ["capacity_most", "8", "9"]),
        ({"capacity_step": 0}, ["capacity_step"]),
        ({"capacity_confidence": 95}, ["capacity_confidence", "95"]),
        ({"level_most_s": 0}, ["level_most_s"]),
        ({"metrics": "localhost:8000/metrics"}, ["metrics", "'localhost:8000/metrics'", "http://HOST:PORT/metrics"]),
        ({"metrics": ["http://a:1", "ftp://b"]}, ["metrics", "'ftp://b'"]),
        ({"metrics": ["http://"]}, ["metrics", "'http://'"]),
        ({"metrics": ["http://h:99999"]}, ["metrics", "99999"]),
        ({"metrics": ["http://[::1"]}, ["metrics", "[::1"]),
        ({"metrics": ["http://a b/m"]}, ["metrics", "'http://a b/m'"]),
        ({"metrics": ["http://u:s3cret@a:x/m"]}, ["metrics", "'http://[redacted]@a:x/m'"]),
        ({"metrics": 7}, ["metrics", "7"]),
        ({"mode": "sound"}, ["mode", "'sound'", "'audio'"]),
        ({"iterations": 0}, ["iterations", "1"]),
        ({"iterations": 2.5}, ["iterations"]),
        ({"duration": 0}, ["duration"]),
        ({"duration": float("inf")}, ["duration"]),
        ({"concurrency": 0}, ["concurrency", "1"]),
        ({"voice_prompt": ""}, ["voice_prompt"]),
        ({"text_prompt": ""}, ["text_prompt"]),
        ({"text_prompt": " \n"}, ["text_prompt", "empty"]),
        ({"servers": [7]}, ["servers"]),
        ({"setup_timeout_s": 0}, ["setup_timeout_s"]),
        ({"decode_share": 1.1}, ["decode_share"]),
        ({"decode_share": float("nan")}, ["decode_share"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_an_impossible_value_is_refused_by_name(keys: dict[str, Any], names: list[str]) -> None:
    line = refused(keys)
    for name in names:
        assert name in line


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (2, (2.0, 2.0)),
        (0.5, (0.5, 0.5)),
        (0, (0.0, 0.0)),
        ([1, 3], (1.0, 3.0)),
        ([2], (2.0, 2.0)),
        ("1 3", (1.0, 3.0)),
        ("1,3", (1.0, 3.0)),
        ("1, 3", (1.0, 3.0)),
        ("2", (2.0, 2.0)),
        (["1", "3"], (1.0, 3.0)),
        ((1, 3), (1.0, 3.0)),
    ],
)
def test_the_forms_of_think_s(given: object, expected: tuple[float, float]) -> None:
    assert build({"think_s": given}).think_s == expected


@pytest.mark.parametrize(
    ("words", "think_s", "voices"),
    [
        (["--think-s", "1", "3"], (1.0, 3.0), ["default"]),
        (["--think-s", "2"], (2.0, 2.0), ["default"]),
        (["--think-s", "1,3"], (1.0, 3.0), ["default"]),
        (["--think-s", "0"], (0.0, 0.0), ["default"]),
        (["--voices", "alto", "tenor"], (1.0, 3.0), ["alto", "tenor"]),
        (["--voices", "alto,tenor"], (1.0, 3.0), ["alto", "tenor"]),
        (["--voices", "alto"], (1.0, 3.0), ["alto"]),
    ],
)
def test_lists_on_the_command_line(words: list[str], think_s: tuple[float, float], voices: list[str]) -> None:
    scenario = resolve(parsed(*words))
    assert (scenario.think_s, scenario.voices) == (think_s, voices)


def test_a_voice_in_a_files_list_may_have_a_space_in_its_name() -> None:
    assert build({"voices": ["Alice B", "alto"]}).voices == ["Alice B", "alto"]


@pytest.mark.parametrize(
    ("words", "stream", "insecure"),
    [
        ([], True, False),
        (["--insecure"], True, True),
        (["--insecure", "yes"], True, True),
        (["--insecure", "no"], True, False),
        (["--stream", "no"], False, False),
    ],
)
def test_switches(words: list[str], stream: bool, insecure: bool) -> None:
    scenario = resolve(parsed(*words))
    assert (scenario.stream, scenario.insecure) == (stream, insecure)


# A value of each key that is not its default, as one writes it on a command line.
TWINS: dict[str, tuple[list[str], object]] = {
    "name": (["night"], "night"),
    "dialect": (["openai"], "openai"),
    "path": (["/tts"], "/tts"),
    "texts": (["generated"], "generated"),
    "voices": (["alto"], ["alto"]),
    "format": (["mp3"], "mp3"),
    "sample_rate": (["16000"], 16000),
    "speed": (["1.5"], 1.5),
    "model": (["kokoro"], "kokoro"),
    "stream": (["no"], False),
    "arrivals": (["poisson", "--rate", "2"], "poisson"),
    "think_s": (["0.5", "0.6"], (0.5, 0.6)),
    "rate": (["7.5", "--arrivals", "constant"], 7.5),
    "seed": (["99"], 99),
    "warm_up_s": (["3"], 3.0),
    "timeout_s": (["9"], 9.0),
    "connect_timeout_s": (["2"], 2.0),
    "drain_s": (["0"], 0.0),
    "insecure": (["yes"], True),
    "audible_dbfs": (["-50"], -50.0),
    "longest_s_per_char": (["0.9"], 0.9),
    "shortest_s_per_char": (["0"], 0.0),
    "keep_chunks": (["1"], 1.0),
    "agent_host": (["ws://h:1"], "ws://h:1"),
    "client_ready": (["yes"], True),
    "port": (["9000"], 9000),
    "audio_dir": (["/tmp/a"], "/tmp/a"),
    "chunk_ms": (["32"], 32),
    "send_rate": (["24000"], 24000),
    "turns_per_call": (["4"], 4),
    "greeting_s": (["0"], 0.0),
    "answer_timeout_s": (["7"], 7.0),
    "answer_end_s": (["0.6"], 0.6),
    "longest_answer_s": (["30"], 30.0),
    "barge_in_share": (["0.25"], 0.25),
    "barge_in_after_s": (["0.5"], 0.5),
    "yield_s": (["1.5"], 1.5),
    "keep_audio": (["0"], 0.0),
    "clients": (["3"], 3),
    "test_duration": (["60"], 60.0),
    "client_start_delay": (["0"], 0.0),
    "threshold": (["0"], 0.0),
    "output_dir": (["/tmp/o"], "/tmp/o"),
    "metrics": (["http://a:1", "https://b/m"], ["http://a:1/metrics", "https://b/m"]),
    "targets": (["mine.yaml"], "mine.yaml"),
    "levels": (["2", "4"], [2, 4]),
    "level_s": (["9"], 9.0),
    "level_warm_up_s": (["0"], 0.0),
    "capacity_first": (["2"], 2),
    "capacity_most": (["64"], 64),
    "capacity_step": (["0.25"], 0.25),
    "capacity_confidence": (["0.8"], 0.8),
    "level_most_s": (["90"], 90.0),
    "runs_dir": (["/tmp/r"], "/tmp/r"),
    "spool_dir": (["/tmp/s"], "/tmp/s"),
}

# Those of full-duplex users; what a file says that is not what the twin says.
DUPLEX_TWINS: dict[str, tuple[list[str], object]] = {
    "servers": (["ws://a:1", "ws://b:2"], ["ws://a:1", "ws://b:2"]),
    "mode": (["full"], "full"),
    "iterations": (["7"], 7),
    "duration": (["30", "--mode", "throughput"], 30.0),
    "concurrency": (["3", "--iterations", "9"], 3),
    "voice_prompt": (["VARM2.pt"], "VARM2.pt"),
    "text_prompt": (["Be brief."], "Be brief."),
    "text_prompt_file": ([__file__], __file__),
    "synthetic": (["yes"], True),
    "mock": (["yes"], True),
    "download_samples": (["yes"], True),
    "cache_dir": (["/tmp/c"], "/tmp/c"),
    "samples_dir": (["/tmp/w"], "/tmp/w"),
    "output": (["o.json"], "o.json"),
    "setup_timeout_s": (["9"], 9.0),
    "decode_share": (["0"], 0.0),
}
DUPLEX_FILED: dict[str, object] = {
    "servers": ["ws://filed:1"], "mode": "audio", "iterations": 50, "concurrency": 2, "voice_prompt": "NATF1.pt",
    "text_prompt": "Filed.", "synthetic": False, "mock": False, "download_samples": False, "cache_dir": "filed",
    "samples_dir": "filed", "output": "filed", "setup_timeout_s": 50, "decode_share": 0.5,
}  # fmt: skip


def test_every_key_is_tried_below() -> None:
    assert {*TWINS, *DUPLEX_TWINS} == set(Scenario.model_fields)
    assert {*DUPLEX_FILED, "duration", "text_prompt_file"} == set(DUPLEX_TWINS)


@pytest.mark.parametrize("key", TWINS | DUPLEX_TWINS)
def test_every_key_has_a_twin(key: str) -> None:
    words, expected = (TWINS | DUPLEX_TWINS)[key]
    flag = "--" + key.replace("_", "-")
    protocols: Any = ["personaplex" if key in DUPLEX_TWINS else "http_tts"]
    assert getattr(resolve(parsed(flag, *words), protocols), key) == expected
    assert getattr(Scenario(), key) != expected


@pytest.mark.parametrize("key", TWINS)
def test_the_command_line_goes_before_the_file(key: str, tmp_path: Path) -> None:
    """Above all where the twin's value is 0 or no: given is given."""
    words, expected = TWINS[key]
    other = {
        "name": "filed", "dialect": "openai_sse", "path": "/filed", "texts": "standard", "voices": ["filed"],
        "format": "pcm", "sample_rate": 8000, "speed": 0.5, "model": "filed", "stream": True, "think_s": [7, 8],
        "seed": 5, "warm_up_s": 50, "timeout_s": 50, "connect_timeout_s": 50, "drain_s": 50, "insecure": False,
        "audible_dbfs": -20, "longest_s_per_char": 0.5, "shortest_s_per_char": 0.001, "keep_chunks": 0.5,
        "runs_dir": "filed", "spool_dir": "filed", "arrivals": "constant", "rate": 50, "port": 5000,
        "agent_host": "ws://filed:1", "client_ready": False,
        "audio_dir": "filed", "chunk_ms": 40, "send_rate": 8000, "turns_per_call": 9, "greeting_s": 5,
        "answer_timeout_s": 50, "answer_end_s": 5, "longest_answer_s": 50, "barge_in_share": 0.5,
        "barge_in_after_s": 5, "yield_s": 5, "keep_audio": 0.5, "clients": 2, "test_duration": 50,
        "client_start_delay": 0.5, "threshold": 5, "output_dir": "filed",
        "metrics": ["http://filed/metrics"], "targets": "filed", "levels": [3, 9], "level_s": 50,
        "level_warm_up_s": 50, "capacity_first": 3, "capacity_most": 500, "capacity_step": 0.5,
        "capacity_confidence": 0.9, "level_most_s": 50,
    }  # fmt: skip
    assert set(other) == set(TWINS)
    path = tmp_path / "scenario.yaml"
    path.write_text(repr(other))  # JSON-like: YAML too
    scenario = resolve(parsed("--scenario", str(path), "--" + key.replace("_", "-"), *words))
    assert getattr(scenario, key) == expected
    for kept in ("runs_dir", "timeout_s", "seed", "drain_s"):
        if kept != key:
            assert getattr(scenario, kept) == other[kept], "keys that were not given come from the file"


@pytest.mark.parametrize("key", DUPLEX_TWINS)
@pytest.mark.parametrize("filed", [DUPLEX_FILED, {"mode": "full", "duration": 50, "text_prompt_file": "filed"}])
def test_the_command_line_goes_before_the_file_of_full_duplex_users(
    key: str, filed: dict[str, object], tmp_path: Path
) -> None:
    words, expected = DUPLEX_TWINS[key]
    (tmp_path / "prompt.txt").write_text("Filed.")
    if "text_prompt_file" in filed:
        filed = filed | {"text_prompt_file": str(tmp_path / "prompt.txt")}
    path = tmp_path / "scenario.yaml"
    path.write_text(repr(filed))
    scenario = resolve(parsed("--scenario", str(path), "--" + key.replace("_", "-"), *words), ["personaplex"])
    assert getattr(scenario, key) == expected
    for kept in ("voice_prompt", "cache_dir", "decode_share"):
        if kept != key and kept in filed:
            assert getattr(scenario, kept) == filed[kept]


@pytest.mark.parametrize("key", ["voice_prompt", "text_prompt", "name"])
def test_an_empty_text_on_the_command_line_is_refused_as_in_a_file(key: str) -> None:
    with pytest.raises(ScenarioError, match=key):
        resolve(parsed(f"--{key.replace('_', '-')}", ""), ["personaplex"])


def test_an_empty_field_of_the_web_ui_is_not_given() -> None:
    options = parsed()
    options.texts = options.dialect = options.format = options.rate = options.targets = ""
    assert resolve(options) == build({})


def test_every_key_has_a_help_that_names_its_default() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    text = " ".join(parser.format_help().split())
    for key, field in Scenario.model_fields.items():
        assert field.description, key
        assert f"--{key.replace('_', '-')}" in text
        assert field.description in text, key
    assert "(default: 1.0 3.0)" in text
    assert "CICADA_TOKEN" in text


def test_a_reader_of_the_options_may_leave() -> None:
    """`python -m workers options | head`."""
    nobody, pipe = os.pipe()
    os.close(nobody)
    done = subprocess.run(
        [sys.executable, "-m", "workers", "options"], stdout=pipe, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(pipe)
    assert done.stderr == ""


def test_what_was_resolved_can_be_sent_and_read_again() -> None:
    scenario = build({"think_s": "1 2", "voices": "a b", "arrivals": "poisson", "rate": 3})
    sent = scenario.model_dump(mode="json")
    assert Scenario.model_validate(sent) == scenario


def test_a_scenario_does_not_change() -> None:
    with pytest.raises(ValidationError):
        build({}).seed = 2  # type: ignore[misc]


# --------------------------------------------------------------------------------------------------- voice agents


@pytest.mark.parametrize(
    ("given", "http", "calls"),
    [(None, "synthesize", "pipecat"), ("openai", "openai", "pipecat"), ("twilio", "synthesize", "twilio")],
)
def test_a_dialect_is_of_one_protocol_and_the_other_keeps_its_usual_one(
    given: str | None, http: str, calls: str
) -> None:
    scenario = build({} if given is None else {"dialect": given})
    assert (scenario.dialect_of("http_tts"), scenario.dialect_of("voice_agent")) == (http, calls)


@pytest.mark.parametrize(
    ("dialect", "protocols", "right"),
    [
        ("openai", ["http_tts"], True),
        ("pipecat", ["voice_agent"], True),
        ("twilio", ["http_tts", "voice_agent"], True),
        ("openai", ["http_tts", "voice_agent"], True),
        ("openai", ["voice_agent"], False),
        ("twilio", ["http_tts"], False),
    ],
)
def test_a_dialect_that_no_user_of_the_run_speaks_is_refused(dialect: str, protocols: Any, right: bool) -> None:
    options = parsed("--dialect", dialect)
    if right:
        assert resolve(options, protocols).dialect == dialect
        return
    with pytest.raises(ScenarioError) as caught:
        resolve(options, protocols)
    for word in ("dialect", repr(dialect), *protocols):
        assert word in str(caught.value)


def test_every_dialect_of_voice_agents_can_be_asked_for() -> None:
    for name in CODECS:
        assert build({"dialect": name}).dialect_of("voice_agent") == name


def test_a_run_of_calls_has_a_name_of_its_own() -> None:
    assert resolve(parsed(), ["voice_agent"]).name == "voice_agent"
    assert resolve(parsed(), ["http_tts", "voice_agent"]).name == resolve(parsed()).name == "speech"
    assert resolve(parsed("--name", "night"), ["voice_agent"]).name == "night"


def test_nvidias_defaults() -> None:
    scenario = build({})
    assert (scenario.port, scenario.client_start_delay, scenario.threshold) == (8100, 1.0, 0.5)
    assert scenario.clients is None
    assert scenario.test_duration is None


@pytest.mark.parametrize(
    ("words", "clients", "warm_up_s", "locusts"),  # users, spawn rate, run time
    [
        # The window opens when the last client has started, a second after the one before it.
        (["--clients", "5", "--test-duration", "150"], 5, 4.0, (5, 1.0, 154.0)),
        (["--clients", "1", "--test-duration", "150"], 1, 0.0, (1, 1.0, 150.0)),
        (["--clients", "5", "--test-duration", "10", "--client-start-delay", "0.5"], 5, 2.0, (5, 2.0, 12.0)),
        (["--clients", "5", "--test-duration", "10", "--client-start-delay", "0"], 5, 0.0, (5, 5.0, 10.0)),
        # A longer warm-up stays; a shorter one would count clients that are still starting.
        (["--clients", "5", "--test-duration", "10", "--warm-up-s", "30"], 5, 30.0, (5, 1.0, 40.0)),
        (["--clients", "5", "--test-duration", "10", "--warm-up-s", "2"], 5, 4.0, (5, 1.0, 14.0)),
        # Without a duration Locust's own --run-time says when it ends.
        (["--clients", "4"], 4, 3.0, (4, 1.0, "60")),
        # Without --clients the number of users is theirs.
        (["--test-duration", "10"], 7, 6.0, (7, 1.0, 16.0)),
    ],
)
def test_what_clients_and_test_duration_mean_to_locust(
    words: list[str], clients: int, warm_up_s: float, locusts: tuple[object, ...]
) -> None:
    options = parsed(*words)
    options.num_users, options.spawn_rate, options.run_time = 7, 99, "60"
    scenario = resolve(options, ["voice_agent"])
    assert (scenario.clients, scenario.warm_up_s) == (clients, warm_up_s)
    as_clients(options, scenario)
    assert (options.num_users, options.spawn_rate, options.run_time) == locusts


def test_test_duration_alone_is_for_one_client() -> None:
    options = parsed("--test-duration", "10")
    options.num_users = None
    scenario = resolve(options, ["voice_agent"])
    assert (scenario.clients, scenario.warm_up_s) == (1, 0.0)


def test_without_them_locusts_options_are_left_alone() -> None:
    options = parsed("--warm-up-s", "3")
    options.num_users, options.spawn_rate, options.run_time = 7, 2, "60"
    scenario = resolve(options, ["voice_agent"])
    as_clients(options, scenario)
    assert (scenario.clients, scenario.warm_up_s) == (None, 3.0)
    assert (options.num_users, options.spawn_rate, options.run_time) == (7, 2, "60")


# --------------------------------------------------------------------------------------------------- modes


def of_duplex(*words: str, users: int | None = None) -> tuple[Scenario, argparse.Namespace]:
    options = parsed(*words)
    options.num_users, options.spawn_rate, options.run_time = users, None, None
    return resolve(options, ["personaplex"]), options


@pytest.mark.parametrize(
    ("words", "users", "expected"),  # mode, iterations, duration, concurrency
    [
        (["--mode", "text"], None, ("text", 100, None, 1)),
        (["--mode", "audio", "--iterations", "50"], None, ("audio", 50, None, 1)),
        (["--iterations", "5"], None, ("audio", 5, None, 1)),
        (["--mode", "turn_taking", "--concurrency", "3"], None, ("turn_taking", 100, None, 3)),
        (["--mode", "interruption"], 6, ("interruption", 100, None, 6)),
        (["--mode", "interruption", "--concurrency", "2"], 6, ("interruption", 100, None, 2)),
        (["--mode", "throughput"], None, ("throughput", None, 60.0, 4)),
        (["--mode", "throughput", "--duration", "9", "--concurrency", "16"], None, ("throughput", None, 9.0, 16)),
        (["--mode", "full", "--iterations", "20", "--duration", "5"], None, ("full", 20, 5.0, 4)),
        (["--mode", "full"], 2, ("full", 100, 60.0, 2)),
    ],
)
def test_what_a_mode_means(words: list[str], users: int | None, expected: tuple[Any, ...]) -> None:
    scenario, options = of_duplex(*words, users=users)
    assert (scenario.mode, scenario.iterations, scenario.duration, scenario.concurrency) == expected
    as_clients(options, scenario)
    there = users or expected[-1]
    assert (options.num_users, options.spawn_rate, options.run_time) == (there, there, None), "all at once"
    assert options.enable_rebalancing
    again = resolve(options, ["personaplex"])
    assert again == scenario, "as Locust's options are when the run starts"


def test_without_a_mode_nothing_is_dealt() -> None:
    scenario, options = of_duplex(users=7)
    as_clients(options, scenario)
    assert (scenario.mode, scenario.iterations, scenario.duration, scenario.concurrency) == (None, None, None, None)
    assert (options.num_users, options.spawn_rate) == (7, None)
    assert scenario.name == "personaplex"


def test_a_spawn_rate_that_was_asked_for_stays() -> None:
    scenario, options = of_duplex("--mode", "throughput")
    options.spawn_rate = 0.5
    as_clients(options, scenario)
    assert options.spawn_rate == 0.5


@pytest.mark.parametrize(
    ("words", "users", "names"),
    [
        (["--duration", "60"], None, ["duration", "--mode throughput", "--run-time"]),
        (["--concurrency", "6"], None, ["concurrency", "--mode", "--users"]),
        (["--mode", "text", "--duration", "60"], None, ["duration", "text"]),
        (["--iterations", "3", "--duration", "60"], None, ["duration", "audio"]),
        (["--mode", "throughput", "--iterations", "9"], None, ["iterations", "throughput", "--duration"]),
        (["--mode", "throughput", "--concurrency", "8"], 3, ["concurrency", "8", "3"]),
        (["--mode", "audio", "--clients", "3"], None, ["clients", "mode"]),
        (["--mode", "audio", "--arrivals", "poisson", "--rate", "2"], None, ["rate", "mode"]),
        (["--text-prompt", "a", "--text-prompt-file", __file__], None, ["text_prompt", "text_prompt_file"]),
        (["--text-prompt-file", "/nowhere.txt"], None, ["text_prompt_file", "/nowhere.txt", "No such file"]),
        (["--text-prompt-file", "/dev/null"], None, ["text_prompt_file", "/dev/null", "empty"]),
    ],
)
def test_what_a_mode_cannot_mean(words: list[str], users: int | None, names: list[str]) -> None:
    with pytest.raises(ScenarioError) as caught:
        of_duplex(*words, users=users)
    line = str(caught.value)
    assert "\n" not in line
    for name in names:
        assert name in line


@pytest.mark.parametrize("words", [["--mode", "audio"], ["--iterations", "5"], ["--concurrency", "2"]])
@pytest.mark.parametrize("protocols", [["http_tts"], ["voice_agent"], ["http_tts", "personaplex"]])
def test_other_users_have_no_modes(words: list[str], protocols: Any) -> None:
    with pytest.raises(ScenarioError) as caught:
        resolve(parsed(*words), protocols)
    for name in (words[0].removeprefix("--"), "talk_personaplex.py", *protocols):
        assert name in str(caught.value)


def test_a_files_keys_for_other_modes_are_no_mistake(tmp_path: Path) -> None:
    """One file serves all modes: configs/default.yaml with --mode text."""
    path = written(tmp_path, "mode: full\niterations: 20\nduration: 30\nconcurrency: 5\n")
    asked = ["--scenario", str(path), "--mode"]
    text, _ = of_duplex(*asked, "text")
    assert (text.iterations, text.duration, text.concurrency) == (20, None, 5)
    throughput, _ = of_duplex(*asked, "throughput")
    assert (throughput.iterations, throughput.duration, throughput.concurrency) == (None, 30.0, 5)


def test_a_prompt_of_a_file_is_read_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("  You work for a café.\n", "utf-8")
    scenario, _ = of_duplex("--text-prompt-file", str(tmp_path / "prompt.txt"))
    assert scenario.text_prompt == "You work for a café."
    (tmp_path / "prompt.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ScenarioError, match=r"prompt\.txt is no UTF-8"):
        of_duplex("--text-prompt-file", str(tmp_path / "prompt.txt"))


# --------------------------------------------------------------------------------------------------- files


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "scenario.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_file_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, "# mine\nname: night\nthink_s: [0.5, 2]\nvoices: [alto]\ninsecure: yes\n")
    scenario = build(read_file(path))
    assert (scenario.name, scenario.think_s, scenario.voices, scenario.insecure) == (
        "night",
        (0.5, 2.0),
        ["alto"],
        True,
    )


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert build(read_file(written(tmp_path, "# nothing\n"))) == Scenario()


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"\xff\xfe\x00", ["no YAML"]),
        ("a: [1", ["no YAML"]),
        ("- dialect\n", ["key: value", "list"]),
        ("just words", ["key: value", "str"]),
        ("!!python/object/apply:os.system [true]", ["no YAML"]),
    ],
)
def test_a_file_that_is_no_scenario(tmp_path: Path, content: str | bytes, names: list[str]) -> None:
    with pytest.raises(ScenarioError) as caught:
        read_file(written(tmp_path, content))
    for name in ["scenario.yaml", *names]:
        assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"nowhere\.yaml: No such file"):
        resolve(parsed("--scenario", str(tmp_path / "nowhere.yaml")))
    with pytest.raises(ScenarioError, match="directory"):
        read_file(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("na\xefve\n".encode("latin-1"), r"mine\.txt is not UTF-8 \(line 1\)"),
        (b"x" * (1 << 20) + b"y", r"mine\.txt .*larger|mine\.txt .*more than"),
        (b"\n", r"mine\.txt holds no text"),
    ],
    ids=["latin-1", "too big", "empty"],
)
def test_a_text_file_that_cannot_be_used(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "mine.txt").write_bytes(content)
    line = refused({"texts": str(tmp_path / "mine.txt")})
    assert re.search(told, line), line


def test_texts(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Hello.\n")
    assert list(resolve_texts(build({})) or {}) == ["ultra_short", "short", "medium", "long", "telephony_typical"]
    assert resolve_texts(build({"texts": "generated"})) is None
    assert resolve_texts(build({"texts": str(tmp_path / "mine.txt")})) == {"1: Hello.": "Hello."}


# --------------------------------------------------------------------------------------------------- token


def test_the_token_comes_from_the_environment_before_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CICADA_TOKEN", raising=False)
    assert settings.token() is None
    (tmp_path / ".env").write_text("CICADA_TOKEN=from-file\n")
    assert settings.token() == "from-file"
    monkeypatch.setenv("CICADA_TOKEN", "from-environment")
    assert settings.token() == "from-environment"
    assert "from-environment" not in build({}).model_dump_json()


def test_every_dialect_and_format_can_be_asked_for() -> None:
    for name in DIALECTS:
        assert build({"dialect": name}).dialect == name
    for name in FORMATS:
        assert build({"format": name}).format == name

"""What is injected into the agent's turns is what a client meets, and what the trace says."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpu_server.faults import Fault, draw
from gpu_server.trace import AgentTurn
from tests.agent_client import Caller, call
from tests.server_process import Server, running_server
from tests.test_agent import TOLERANCE_S, turns_of


@contextmanager
def spoiled(folder: Path, fault: str, *options: str) -> Iterator[tuple[Server, Caller]]:
    tone_s = () if "--tone-seconds" in options else ("--tone-seconds", "0.5")
    arguments = ("--engine", "tone", *tone_s, "--fault", fault, *options)
    with running_server(*arguments, trace=folder / "trace.jsonl") as server, call(server.port, "/ws/x") as caller:
        yield server, caller


def answered(caller: Caller) -> None:
    caller.say(0.3)
    caller.stay_silent_until(caller.bot_stopped)


def wait_s(row: AgentTurn) -> float:
    assert row["first_audio_at"] is not None
    assert row["end_of_speech_at"] is not None
    return row["first_audio_at"] - row["end_of_speech_at"]


def test_delay_holds_the_first_audio(tmp_path: Path) -> None:
    with spoiled(tmp_path, "delay:p=1,s=0.5") as (server, caller):
        answered(caller)
        row = turns_of(server, "x")[0]
    assert (row["outcome"], row["fault"]) == ("ok", "delay")
    assert row["fault_s"] == pytest.approx(0.5, abs=TOLERANCE_S)
    assert 0.5 <= wait_s(row) < 0.5 + TOLERANCE_S


def test_stall_is_one_hole_and_loses_nothing(tmp_path: Path) -> None:
    with spoiled(tmp_path, "stall:p=1,after_s=0.4,s=0.3") as (server, caller):
        answered(caller)
        row = turns_of(server, "x")[0]
        chunks = caller.audio()
    assert (row["outcome"], row["fault"], row["fault_s"], row["audio_s"]) == ("ok", "stall", 0.3, 1.0)
    assert len(chunks) == 50
    holes = [k for k in range(1, 50) if chunks[k].at - chunks[k - 1].at > 0.2]
    assert holes == [20]  # the chunk that begins at 0.4 s
    assert chunks[-1].at - chunks[0].at == pytest.approx(48 * 0.02 + 0.3, abs=TOLERANCE_S)


def test_silence_leads(tmp_path: Path) -> None:
    with spoiled(tmp_path, "silence:p=1,s=0.4") as (server, caller):
        answered(caller)
        row = turns_of(server, "x")[0]
        chunks = caller.audio()
    assert (row["fault"], row["fault_s"], row["audio_s"]) == ("silence", 0.4, 1.4)
    assert [any(came.pcm) for came in chunks] == [False] * 20 + [True] * 50
    assert wait_s(row) < TOLERANCE_S


def test_cut_ends_the_connection_without_a_close(tmp_path: Path) -> None:
    with spoiled(tmp_path, "cut:p=1,after_s=0.33") as (server, caller):
        caller.say(0.3)
        assert caller.close_code() is None
        row = turns_of(server, "x")[0]
    assert (row["outcome"], row["fault"], row["audio_s"]) == ("failed", "cut", 0.33)
    assert sum(len(came.pcm) for came in caller.audio()) == 0.33 * 32_000


def test_error_closes_with_1011(tmp_path: Path) -> None:
    with spoiled(tmp_path, "error:p=1,status=503") as (server, caller):
        caller.say(0.3)
        assert caller.close_code() == 1011
        row = turns_of(server, "x")[0]
    assert (row["outcome"], row["fault"], caller.audio()) == ("failed", "error", [])


def test_garbage_is_one_message_that_is_no_protobuf(tmp_path: Path) -> None:
    with spoiled(tmp_path, "garbage:p=1") as (server, caller):
        caller.say(0.3)
        caller.until(lambda: True if caller.garbage else None)
        row = turns_of(server, "x")[0]
    assert (row["outcome"], row["fault"], caller.audio()) == ("failed", "garbage", [])


def test_mute_never_answers_but_goes_on(tmp_path: Path) -> None:
    with spoiled(tmp_path, "mute:p=1") as (server, caller):
        caller.say(0.3)
        caller.say(0.3)
        rows = turns_of(server, "x", 2)
        assert caller.audio() == []
    assert [(row["outcome"], row["fault"], row["agent_turn"]) for row in rows] == [
        ("mute", "mute", 0),
        ("mute", "mute", 1),
    ]


def test_early_talks_over_the_caller(tmp_path: Path) -> None:
    with spoiled(tmp_path, "early:p=1,s=0.5", "--agent-delays", "asr=1,llm=1,tts=1") as (server, caller):
        caller.say(1.0, 0.5)
        caller.stay_silent_until(caller.bot_stopped)
        row = turns_of(server, "x")[0]
        started_at = next(c.at for c in caller.came if c.kind == "message" and "user-started" in c.rtvi["type"])
    assert (row["outcome"], row["fault"], row["audio_s"], row["transcript_at"]) == ("ok", "early", 1.0, None)
    assert row["first_audio_at"] is not None
    assert row["user_last_voiced_received_at"] is not None
    assert row["first_audio_at"] < row["user_last_voiced_received_at"]
    # The start is certain 60 ms after the first voiced chunk, which is what the half second counts from.
    assert row["first_audio_at"] - started_at == pytest.approx(0.44, abs=TOLERANCE_S)


def test_early_is_nothing_for_one_who_says_less(tmp_path: Path) -> None:
    with spoiled(tmp_path, "early:p=1,s=2") as (server, caller):
        answered(caller)
        row = turns_of(server, "x")[0]
    assert (row["outcome"], row["fault"]) == ("ok", None)


def test_no_yield_talks_on_and_answers_afterwards(tmp_path: Path) -> None:
    with spoiled(tmp_path, "no_yield:p=1", "--tone-seconds", "0.8") as (server, caller):
        caller.say(0.3)
        caller.stay_silent_until(lambda: caller.heard(10))
        caller.say(0.3)
        caller.stay_silent_until(lambda: caller.bot_stopped(2))
        first, second = turns_of(server, "x", 2)
    assert (first["outcome"], first["fault"], first["audio_s"], first["interrupted_at"]) == (
        "ok",
        "no_yield",
        1.6,
        None,
    )
    assert (second["outcome"], second["fault"], second["agent_turn"]) == ("ok", None, 1)
    assert second["first_audio_at"] is not None
    assert second["first_audio_at"] >= first["finished_at"]


def test_seed_and_ordinal_alone_decide(tmp_path: Path) -> None:
    with spoiled(tmp_path, "mute:p=0.5", "--fault-seed", "3", "--tone-seconds", "0.05") as (server, caller):
        for number in range(1, 5):
            caller.say(0.1, 0.32)
            caller.stay_silent_until(functools.partial(ended, server, number))
        outcomes = [row["outcome"] for row in turns_of(server, "x", 4)]
    mute = Fault("mute", 0.5)
    assert outcomes == ["mute" if draw([mute], 3, ordinal) else "ok" for ordinal in range(4)]
    assert set(outcomes) == {"ok", "mute"}


def ended(server: Server, count: int) -> bool | None:
    return True if len(turns_of(server, "x", 0)) >= count else None

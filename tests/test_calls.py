"""Calls, end to end: the shipped locustfile against a scripted agent that knows every instant. One run, many callers.

Truth never comes from a second VAD: the agent's audio begins and ends with loud samples, the queries do as well.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import soundfile

from tests.agent_peer import RATE, AgentPeer, Pcm, Talk, agent_peer, by_user, rtvi, user_number, voice, write_clips
from tests.locust_process import ROOT, Locust, run_dirs, run_locust, turns

TALK = str(ROOT / "locustfiles" / "talk_voice_agent.py")
NEAR_S = 0.03  # truth against row on a machine under load; the median is held to less
SETTINGS = [
    "--greeting-s", "0.6", "--answer-timeout-s", "1.5", "--answer-end-s", "0.7", "--longest-answer-s", "3",
    "--think-s", "0.3", "0.4", "--keep-chunks", "1", "--keep-audio", "0", "--drain-s", "0",
]  # fmt: skip


async def answers(talk: Talk) -> None:
    """A fifth of a second of thinking, six tenths of speech."""
    for number in range(100):
        await talk.ear.user_spoke(number)
        await talk.send(voice(0.6))


async def is_silent(talk: Talk) -> None:
    await asyncio.Event().wait()


async def is_early(talk: Talk) -> None:
    """Begins when the user has spoken for a quarter of a second, and speaks until after the user's end."""
    for number in range(100):
        await talk.ear.user_speaks(number, for_s=0.25)
        await talk.send(voice(1.2))


async def never_stops(talk: Talk) -> None:
    await talk.ear.user_spoke(0)
    await talk.send(voice(60.0))


async def is_late(talk: Talk) -> None:
    """Its first answer comes after the user has given up on it and speaks again; then all is well."""
    await talk.ear.user_speaks(1, for_s=0.1)
    await talk.send(voice(0.3))
    for number in range(1, 100):
        await talk.ear.user_spoke(number)
        await talk.send(voice(0.6))


async def greets(talk: Talk) -> None:
    await asyncio.sleep(0.2)
    await talk.send(voice(1.0))
    await answers(talk)


async def greets_late(talk: Talk) -> None:
    """Nobody waits for it any more."""
    await talk.ear.user_speaks(0, for_s=0.1)
    await talk.send(voice(0.3))
    await answers(talk)


async def hangs_up_mid_answer(talk: Talk) -> None:
    await talk.ear.user_spoke(0)
    await talk.send(voice(0.4))
    await talk.socket.close(1000, "goodbye")


async def hangs_up_mid_think(talk: Talk) -> None:
    await talk.ear.user_spoke(0)
    await talk.send(voice(0.4))
    await asyncio.sleep(0.85)  # the answer has ended for the caller, who thinks
    await talk.socket.close(1001)


async def stalls(talk: Talk) -> None:
    """Every other answer has one hole of 300 ms in the middle of a word."""
    for number in range(100):
        await talk.ear.user_spoke(number)
        if number % 2:
            await talk.send(voice(0.8), lead=0)
            continue
        await talk.send(voice(0.4), lead=0)
        await asyncio.sleep(0.3 + 0.02 - (asyncio.get_running_loop().time() - talk.ended[-1]))
        await talk.send(voice(0.4), lead=0, note=False)


def pauses(how: str) -> Any:
    """Answers of two sentences, four tenths of a second between them in which nothing is sent."""

    async def pause(talk: Talk) -> None:
        for number in range(100):
            await talk.ear.user_spoke(number)
            quiet = np.zeros(round(0.14 * RATE), np.int16)
            first = {"quiet": np.concatenate([voice(0.5), quiet]), "short": voice(0.5)[:-100], "told": voice(0.5)}[how]
            await talk.send(first)
            if how == "told":
                await talk.socket.send(rtvi("bot-stopped-speaking"))
            await asyncio.sleep(0.4)
            await talk.send(voice(0.5), note=False)

    return pause


async def sends_at_once(talk: Talk) -> None:
    """An answer faster than real time: it plays as long as any other."""
    for number in range(100):
        await talk.ear.user_spoke(number)
        await talk.send(voice(1.0), lead=100)


async def speaks_at_24_khz(talk: Talk) -> None:
    """As stock pipecat does: 40 ms a message; hints and figures of its own come with it."""
    for number in range(100):
        await talk.ear.user_spoke(number)
        figures = [{"processor": "AcmeTTSService#0", "value": 0.125}, {"processor": "AcmeLLMService#0", "value": 0.0}]
        await talk.socket.send(rtvi("metrics", ttfb=figures))
        await talk.socket.send(rtvi("bot-started-speaking"))
        await talk.send(voice(0.6, 24_000), 24_000, 0.04)
        await talk.socket.send(rtvi("bot-stopped-speaking"))


SCRIPTS = {
    "answers": answers,
    "is silent": is_silent,
    "is early": is_early,
    "never stops": never_stops,
    "is late": is_late,
    "greets": greets,
    "greets late": greets_late,
    "hangs up mid answer": hangs_up_mid_answer,
    "hangs up mid think": hangs_up_mid_think,
    "stalls": stalls,
    "pauses, with quiet": pauses("quiet"),
    "pauses, with a short chunk": pauses("short"),
    "pauses, as told": pauses("told"),
    "sends at once": sends_at_once,
    "speaks at 24 kHz": speaks_at_24_khz,
}


class Held(NamedTuple):
    """A run against all of SCRIPTS: what was said, its rows with the script of each, and the peer."""

    run: Locust
    rows: pd.DataFrame
    sessions: pd.DataFrame
    server: pd.DataFrame
    peer: AgentPeer
    clips: dict[str, Pcm]

    def of(self, script: str, cut: bool = False) -> pd.DataFrame:
        rows = self.rows[self.rows.script == script].sort_values("intended_at")
        return rows if cut else rows[rows.outcome != "cut"]

    def talks(self, script: str) -> list[Talk]:
        names = list(SCRIPTS)
        return [talk for talk in self.peer.talks if names[user_number(talk.path) - 1] == script]

    def truth(self, row: Any) -> tuple[float, float]:
        """Earliest and latest floor transfer offset of a turn, by the peer's stamps; its n-th answer to its n-th."""
        [talk] = [talk for talk in self.peer.talks if talk.path.endswith(row.stream_id)]
        offset_at = talk.ear.mouth_at(talk.ear.heard[row.turn].last)
        before, after = talk.said[row.turn + len(talk.said) - talk.notes.get("answers", len(talk.said))]
        return before - offset_at, after - offset_at


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Held]:
    folder = tmp_path_factory.mktemp("calls")
    clips = write_clips(folder / "audio_files", ask=0.6125, order=0.85, long=1.1037)
    count = str(len(SCRIPTS))
    with agent_peer(by_user(*SCRIPTS.values())) as peer:
        run = run_locust(
            "-f", TALK, "--headless", "--users", count, "--spawn-rate", count, "--run-time", "16s", "--only-summary",
            *SETTINGS, "--host", peer.url, cwd=folder,
        )  # fmt: skip
    [run_dir] = run_dirs(folder)
    rows = turns(run_dir)
    named = dict(enumerate(SCRIPTS, 1))
    # A caller whose call broke calls again: the user number within the stream id stays.
    rows["script"] = [named[user_number(stream)] for stream in "-" + rows.stream_id]
    sessions = pd.read_parquet(run_dir / "sessions")
    sessions["script"] = [named[number] for number in sessions.user]
    yield Held(run, rows, sessions, pd.read_parquet(run_dir / "server"), peer, clips)


def test_nothing_went_wrong_with_the_test_itself(held: Held) -> None:
    assert held.peer.wrong == []
    assert "Traceback" not in held.run.said, held.run.said


def test_x(held: Held) -> None:
    pd.set_option("display.width", 250, "display.max_columns", 60)
    cols = ["script","turn","text_name","outcome","error_kind","floor_transfer_offset_s","ttfc_s","agent_speech_s","stall_count_0ms","stall_s_0ms","onset_by","utterances","stale_s","send_late_max_s","interruptions", "overlap_s"]
    print(held.rows.sort_values(["script","intended_at"])[cols].to_string())
    print(held.sessions[["script","turns","greeting_s","ended_by","stream_id"]].to_string())
    print(held.server.dropna(axis=1).to_string())
    print(held.run.said[-5000:])

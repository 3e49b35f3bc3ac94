"""Interrupting agents, end to end: the shipped locustfile with `--barge-in-share 1` against scripted agents."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from tests.agent_peer import AgentPeer, Talk, agent_peer, by_user, user_number, voice, write_clips
from tests.locust_process import ROOT, locust, run_dirs, turns, until
from tests.once import once

NEAR_S = 0.03
AFTER_S = 0.7
ASK_S = 0.9  # the query that interrupts
NOTICES_S = 0.3  # how long the user speaks until the agent notices


async def _until_interrupted(talk: Talk, number: int, at_once_s: float = 0.0) -> None:
    """Speak until the user's utterance of this number has lasted NOTICES_S."""
    speaking = asyncio.ensure_future(talk.send(voice(8.0), lead=round(at_once_s / 0.02) or 1))
    await talk.ear.user_speaks(number, for_s=NOTICES_S)
    speaking.cancel()
    await asyncio.gather(speaking, return_exceptions=True)


async def interrupts_itself(talk: Talk) -> None:
    """As pipecat: an `interruption`, which throws away the second of audio that it has sent ahead."""
    for number in range(0, 100, 2):
        await talk.ear.user_spoke(number)
        await _until_interrupted(talk, number + 1, at_once_s=1.0)
        talk.notes.setdefault("silent_at", []).append(await talk.interruption())
        await talk.ear.user_spoke(number + 1)
        await talk.send(voice(0.5))


async def just_stops(talk: Talk) -> None:
    """What it has sent plays to its end."""
    for number in range(0, 100, 2):
        await talk.ear.user_spoke(number)
        await _until_interrupted(talk, number + 1)
        talk.notes.setdefault("silent_at", []).append(talk.plays_until)
        await talk.ear.user_spoke(number + 1)
        await talk.send(voice(0.5))


async def does_not_yield(talk: Talk) -> None:
    """Speaks for four seconds whoever else does, then answers what was said meanwhile."""
    for number in range(0, 100, 2):
        await talk.ear.user_spoke(number)
        await talk.send(voice(4.0))
        await asyncio.sleep(0.7)
        await talk.send(voice(0.5), note=False)


async def takes_fright(talk: Talk) -> None:
    """Falls silent half a second into its answer, though nobody said a word: a false barge-in."""
    for number in range(100):
        await talk.ear.user_spoke(number)
        await asyncio.sleep(0.7)  # too long after the user's end to have been meant for him
        await talk.send(voice(0.6), lead=10)
        await talk.interruption()


async def answers_shortly(talk: Talk) -> None:
    """Too short to be interrupted; pipecat's `interruption` at each of the user's words clears nothing audible."""
    for number in range(100):
        await talk.ear.user_speaks(number, for_s=0.2)
        await talk.interruption()
        await talk.ear.user_spoke(number)
        await talk.send(voice(0.4))


SCRIPTS = {
    "interrupts itself": interrupts_itself,
    "just stops": just_stops,
    "does not yield": does_not_yield,
    "takes fright": takes_fright,
    "answers shortly": answers_shortly,
}


class Held(NamedTuple):
    said: str
    rows: pd.DataFrame
    peer: AgentPeer

    def of(self, script: str) -> pd.DataFrame:
        rows = self.rows[(self.rows.script == script) & (self.rows.outcome != "cut")]
        return rows.sort_values("intended_at")

    def talk(self, script: str) -> Talk:
        [talk] = [talk for talk in self.peer.talks if list(SCRIPTS)[user_number(talk.path) - 1] == script]
        return talk


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    return once(tmp_path_factory, "barge_in", _hold)


def _hold(folder: Path) -> Held:
    write_clips(folder / "audio_files", ask=ASK_S)
    args = [
        "-f", str(ROOT / "locustfiles" / "talk_voice_agent.py"), "--headless", "--users", "5", "--spawn-rate", "5",
        "--barge-in-share", "1", "--barge-in-after-s", str(AFTER_S), "--yield-s", "1.2", "--greeting-s", "0.3",
        "--answer-timeout-s", "4", "--answer-end-s", "0.6", "--think-s", "0.7", "--keep-audio", "0", "--drain-s", "0",
        "--only-summary",
    ]  # fmt: skip
    with agent_peer(by_user(*SCRIPTS.values())) as peer, locust(*args, "--host", peer.url, cwd=folder) as run:
        until(lambda: len(peer.talks) == 5 and all(len(talk.ear.heard) >= 5 for talk in peer.talks), 90, "calls enough")
        run.signal_group(signal.SIGINT)
        run.end()
    rows = turns(run_dirs(folder)[0])
    names = dict(enumerate(SCRIPTS, 1))
    rows["script"] = [names[user_number(f"-{stream}")] for stream in rows.stream_id]
    return Held(run.said, rows, peer)


def test_nothing_went_wrong_with_the_test_itself(held: Held) -> None:
    assert held.peer.wrong == []
    assert "Traceback" not in held.said, held.said


@pytest.mark.parametrize("script", ["interrupts itself", "just stops", "does not yield"])
def test_the_user_begins_as_long_into_the_answer_as_asked(held: Held, script: str) -> None:
    rows, talk = held.of(script), held.talk(script)
    over = rows[rows.turn % 2 == 1]
    assert len(over) >= 2
    assert over.barge_in.all()
    assert not rows[rows.turn % 2 == 0].barge_in.any()
    # To the next chunk; a machine that held the ear up makes one later, never earlier, and the row says by how much.
    assert (over.barge_in_after_s > AFTER_S - 0.021).all()
    assert over.barge_in_after_s.min() < AFTER_S + 0.021
    for row in over.itertuples():
        spoken_at = talk.ear.mouth_at(talk.ear.heard[row.turn].first)
        began_at = talk.said[row.turn // 2 if script == "does not yield" else row.turn - 1][0]
        assert spoken_at - began_at == pytest.approx(row.barge_in_after_s, abs=0.02 + NEAR_S)


@pytest.mark.parametrize("script", ["interrupts itself", "just stops"])
def test_time_to_silence_is_the_peers_own(held: Held, script: str) -> None:
    rows, talk = held.of(script), held.talk(script)
    over = rows[rows.turn % 2 == 1]
    assert (over.yielded == True).all()  # noqa: E712
    for row in over.itertuples():
        onset_at = talk.ear.mouth_at(talk.ear.heard[row.turn].first)
        truth_s = talk.notes["silent_at"][row.turn // 2] - onset_at
        assert row.time_to_silence_s == pytest.approx(truth_s, abs=NEAR_S)
    assert set(over.outcome) == {"answered"}, "what is said over the answer gets one of its own"
    for row in over.itertuples():
        offset_at = talk.ear.mouth_at(talk.ear.heard[row.turn].last)
        assert row.floor_transfer_offset_s == pytest.approx(talk.said[row.turn][0] - offset_at, abs=NEAR_S)


def test_an_agent_that_speaks_on_did_not_yield(held: Held) -> None:
    rows = held.of("does not yield")
    over = rows[rows.turn % 2 == 1]
    assert (over.yielded == False).all()  # noqa: E712
    assert over.time_to_silence_s.isna().all()
    # It speaks 4 s, of which 0.7 s came before the user's first word.
    assert np.allclose(over.stale_s, 4.0 - AFTER_S, atol=0.3)
    assert set(over.outcome) == {"answered"}
    assert (over.floor_transfer_offset_s > 4.0 - AFTER_S - ASK_S).all(), "what goes on is no answer"


def test_a_false_barge_in_is_counted_where_the_user_was_silent(held: Held) -> None:
    rows = held.of("takes fright")
    assert len(rows) >= 3
    assert (rows.false_barge_ins == 1).all()
    assert not rows.barge_in.any()
    others = held.rows[held.rows.script != "takes fright"]
    assert (others.false_barge_ins == 0).all()


def test_an_answer_too_short_to_be_interrupted_is_an_answer(held: Held) -> None:
    rows = held.of("answers shortly")
    assert len(rows) >= 4
    assert set(rows.outcome) == {"answered"}
    assert not rows.barge_in.any()
    assert rows.yielded.isna().all()
    assert (rows.interruptions == 1).all(), "told at each of the user's words"


def test_the_turn_that_is_left_for_a_barge_in_is_answered(held: Held) -> None:
    for script in ("interrupts itself", "just stops", "does not yield"):
        rows = held.of(script)
        left = rows[rows.turn % 2 == 0]
        assert set(left.outcome) == {"answered"}
        assert left.error_kind.isna().all()
        talk = held.talk(script)
        for row in left.itertuples():
            offset_at = talk.ear.mouth_at(talk.ear.heard[row.turn].last)
            began_at = talk.said[row.turn // 2 if script == "does not yield" else row.turn][0]
            assert row.floor_transfer_offset_s == pytest.approx(began_at - offset_at, abs=NEAR_S)


PAUSING = """
from gevent import monkey; monkey.patch_all()
import time
from types import SimpleNamespace
from gevent.event import Event
from workers.call import Call
from workers.clients.inbox import Inbox
from workers.clients.ticker import Ticker

began_at = time.monotonic()

class Hearing:
    older = None
    @property
    def last_loud_at(self):  # speaks for 0.3 s, pauses until 0.8, goes on until 6
        now = time.monotonic() - began_at
        return began_at + (now if now < 0.3 else 0.3 if now < 0.8 else min(now, 6.0))

call = Call.__new__(Call)
call.hearing = Hearing()
call.hearing.stretches = [SimpleNamespace(by="ear", audible_at=began_at, arrived_at=began_at, onset_at=began_at)]
call._scenario = SimpleNamespace(answer_timeout_s=15, longest_answer_s=60, answer_end_s=1.0)
booth, board = SimpleNamespace(chunk_s=0.02), SimpleNamespace(ticker=Ticker())
call._calling = SimpleNamespace(booth=booth, board=board)
call._owed, call._stopped_hint_at, call._changed = False, 0.0, Event()
call.line = SimpleNamespace(gone=None, came=Inbox())
turn = SimpleNamespace(user_offset_at=began_at - 0.5, user_onset_at=began_at - 2, answer=None, interrupted_at=0.0,
                       barge_in=False, outcome="answered")
print(call._await_answer(turn, 0.7), time.monotonic() - began_at)
"""


def test_who_wants_to_break_in_waits_out_a_pause_of_the_agents_and_no_longer() -> None:
    """It pauses where the user was to break in, and goes on: then is the time, not when the answer is over."""
    command = [sys.executable, "-c", PAUSING]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    goes_on, waited_s = done.stdout.split()
    assert goes_on == "True", done.stderr
    assert 0.8 <= float(waited_s) < 4.0, "it speaks on until 6.0"


UNHEARD = (
    PAUSING[: PAUSING.index("print(")]
    + """
def hear_now(call):  # calls are heard in turn: what came since waits for that
    call.line.came.empty()
    Hearing.last_loud_at = began_at + 1.2

Hearing.last_loud_at = began_at + 0.5
call._calling.hear_now = hear_now
call.hearing.ask_for_offset = lambda then: then(None)
call._scenario.answer_end_s = 0.5
board.ticker.call_at(began_at + 0.9, lambda: call.line.came.add(b"words", began_at + 0.9, began_at + 0.9))
print(call._await_answer(turn, None), turn.agent_offset_at - began_at, time.monotonic() - began_at)
"""
)


def test_an_answer_is_not_over_before_what_came_of_it_is_heard() -> None:
    command = [sys.executable, "-c", UNHEARD]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    goes_on, offset_s, waited_s = done.stdout.split()
    assert goes_on == "False", done.stderr
    assert float(offset_s) == pytest.approx(1.2, abs=0.01)
    assert 1.6 <= float(waited_s) < 3.0

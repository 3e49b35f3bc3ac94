"""Calls, end to end: the shipped locustfile against a scripted agent that knows every instant. One run, many callers.

Truth never comes from a second VAD: the agent's audio begins and ends with loud samples, the queries do as well.
"""

import asyncio
import signal
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from analysis.runs import read_table
from tests.agent_peer import RATE, AgentPeer, Pcm, Talk, agent_peer, by_user, rtvi, user_number, voice, write_clips
from tests.locust_process import ROOT, locust, run_dirs, turns, until
from tests.once import once

TALK = str(ROOT / "locustfiles" / "talk_voice_agent.py")
NEAR_S = 0.03  # truth against row on a machine under load; the median is held to less
SETTINGS = [
    "--greeting-s", "0.6", "--answer-timeout-s", "1.5", "--answer-end-s", "0.6", "--longest-answer-s", "3",
    "--think-s", "0.9", "1.0", "--keep-chunks", "1", "--keep-audio", "0", "--drain-s", "0",
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
    while True:
        await talk.send(voice(2.0))


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
    await asyncio.sleep(0.75)  # the answer has ended for the caller, who thinks
    await talk.socket.close(1001)


async def stalls(talk: Talk) -> None:
    """Every other answer has one hole of 300 ms in the middle of a word."""
    for number in range(100):
        await talk.ear.user_spoke(number)
        began_at = await talk.send(voice(0.4), lead=5)
        if number % 2:
            await talk.send(voice(0.4), lead=5, note=False)
            continue
        await asyncio.sleep(began_at + 0.4 + 0.3 - time.monotonic())
        resumed_at = await talk.send(voice(0.4), lead=5, note=False)
        talk.notes.setdefault("holes_s", []).append(resumed_at - began_at - 0.4)


def pauses(how: str) -> Any:
    """Answers of two sentences, four tenths of a second between them in which nothing is sent."""

    async def pause(talk: Talk) -> None:
        for number in range(100):
            await talk.ear.user_spoke(number)
            quiet = np.zeros(round(0.14 * RATE), np.int16)
            first = {"quiet": np.concatenate([voice(0.5), quiet]), "short": voice(0.5)[:-100], "told": voice(0.5)}[how]
            await talk.send(first, lead=5)
            if how == "told":
                await talk.socket.send(rtvi("bot-stopped-speaking"))
            await asyncio.sleep(0.4)
            await talk.send(voice(0.5), lead=5, note=False)

    return pause


async def sends_at_once(talk: Talk) -> None:
    """An answer faster than real time: it plays as long as any other."""
    for number in range(100):
        await talk.ear.user_spoke(number)
        await talk.send(voice(1.0), lead=100)  # 50 chunks


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
    """A run against all of SCRIPTS: what Locust said, its rows with the script of each, and the peer."""

    status: int
    said: str
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

    def talk(self, row: Any) -> Talk:
        return self.peer.by_stream()[row.stream_id]

    def errors_s(self, script: str, answer_of: int = 0) -> list[float]:
        """Row's floor transfer offset less the truth: the peer's writing instant less the mouth time it heard.

        answer_of: how many things the peer said before its answer to the first turn.
        """
        found = []
        for row in self.of(script).itertuples():
            talk = self.talk(row)
            before_at, after_at = talk.said[row.turn + answer_of]
            offset_at = talk.ear.mouth_at(talk.ear.heard[row.turn].last)
            found.append(_outside(row.floor_transfer_offset_s, before_at - offset_at, after_at - offset_at))
        return found


def _outside(value: float, low: float, high: float) -> float:
    """How far a value lies beside what is known of it, signed; the write took [low, high] on a loaded machine."""
    return value - low if value < low else max(0.0, value - high)


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    return once(tmp_path_factory, "calls", _hold)


def _enough(peer: AgentPeer) -> bool:
    """Whether the peer has heard of every caller as much as the tests below count on."""
    talks: dict[str, list[Talk]] = {name: [] for name in SCRIPTS}
    for talk in list(peer.talks):
        talks[list(SCRIPTS)[user_number(talk.path) - 1]].append(talk)
    if any(not found for found in talks.values()):
        return False
    again = all(len(found) > 4 for name, found in talks.items() if name.startswith("hangs up"))
    wanted = {name: 3 if name == "never stops" else 5 for name in SCRIPTS if not name.startswith("hangs up")}
    return again and all(len(talks[name][0].ear.heard) >= times for name, times in wanted.items())


def _hold(folder: Path) -> Held:
    clips = write_clips(folder / "audio_files", ask=0.6125, order=0.85, long=1.1037)
    count = str(len(SCRIPTS))
    args = ["-f", TALK, "--headless", "--users", count, "--spawn-rate", count, "--only-summary", *SETTINGS]
    with agent_peer(by_user(*SCRIPTS.values())) as peer, locust(*args, "--host", peer.url, cwd=folder) as run:
        until(lambda: _enough(peer), 90, "calls enough")
        run.signal_group(signal.SIGINT)
        run.end()
    [run_dir] = run_dirs(folder)
    rows = turns(run_dir)
    named = dict(enumerate(SCRIPTS, 1))
    # A caller whose call broke calls again: the user number within the stream id stays.
    rows["script"] = [named[user_number(stream)] for stream in "-" + rows.stream_id]
    sessions = pd.read_parquet(run_dir / "sessions")
    sessions["script"] = [named[number] for number in sessions.user]
    return Held(run.process.returncode, run.said, rows, sessions, read_table(run_dir, "server"), peer, clips)


def test_nothing_went_wrong_with_the_test_itself(held: Held) -> None:
    assert held.peer.wrong == []
    assert "Traceback" not in held.said, held.said


@pytest.mark.parametrize(
    ("script", "answer_of"),
    [("answers", 0), ("greets", 1), ("sends at once", 0), ("speaks at 24 kHz", 0), ("stalls", 0), ("is early", 0)],
)
def test_floor_transfer_offset_is_the_peers_own(held: Held, script: str, answer_of: int) -> None:
    errors_s = np.array(held.errors_s(script, answer_of))
    assert len(errors_s) >= 3
    assert np.abs(errors_s).max() < NEAR_S, errors_s
    assert np.abs(np.median(errors_s)) < 0.01, errors_s


@pytest.mark.parametrize("script", ["answers", "greets", "sends at once", "speaks at 24 kHz", "stalls"])
def test_answers_are_answered_after_a_gap(held: Held, script: str) -> None:
    rows = held.of(script)
    assert set(rows.outcome) == {"answered"}
    assert rows.error_kind.isna().all()
    assert (rows.floor_transfer_offset_s > 0.2).all()
    assert (rows.overlap_s == 0).all()
    assert (rows.ttfc_s <= rows.ttfa_s + 1e-6).all()
    assert set(rows.onset_by) == {"ear"}
    assert (rows.stale_s == 0).all()
    assert list(rows.turn) == list(range(len(rows)))


def test_an_answer_that_overlaps_is_early_and_negative(held: Held) -> None:
    rows = held.of("is early")
    assert len(rows) >= 3
    assert set(rows.outcome) == {"early"}
    assert rows.error_kind.isna().all(), "an overlap is no failure"
    assert (rows.floor_transfer_offset_s < -0.2).all()
    assert np.allclose(rows.overlap_s, -rows.floor_transfer_offset_s)


def test_a_silent_agent_costs_rows_and_the_call_goes_on(held: Held) -> None:
    rows = held.of("is silent")
    assert len(rows) >= 4
    assert set(zip(rows.outcome, rows.error_kind, strict=True)) == {("timed_out", "no_answer_in_time")}
    assert rows.session.nunique() == 1
    assert rows.error.str.contains("answer_timeout_s (1.5 s)", regex=False).all()
    assert rows.floor_transfer_offset_s.isna().all()
    assert ((rows.ended_at - rows.user_offset_at).between(1.5, 2.0)).all()


def test_an_agent_that_never_stops_is_named_in_every_turn(held: Held) -> None:
    rows = held.of("never stops")
    assert len(rows) >= 2
    assert set(zip(rows.outcome, rows.error_kind, strict=True)) == {("timed_out", "never_stopped")}
    assert rows.floor_transfer_offset_s.notna().tolist() == [True] + [False] * (len(rows) - 1)
    assert (rows.stale_s.iloc[1:] > 1).all(), "the first answer goes on: no answer to what was said since"


def test_a_late_answer_is_not_the_next_turns(held: Held) -> None:
    """Answer 0 comes while the user says turn 1: stale. Turn 1's own answer counts, with its own offset."""
    rows = held.of("is late")
    assert len(rows) >= 4
    assert list(rows.error_kind.fillna("")) == ["no_answer_in_time"] + [""] * (len(rows) - 1)
    assert rows.stale_s.iloc[1] == pytest.approx(0.3, abs=NEAR_S)
    assert (rows.stale_s.drop(rows.index[1]) == 0).all()
    [talk] = held.talks("is late")
    for row in rows.iloc[1:].itertuples():
        truth_s = talk.said[row.turn][0] - talk.ear.mouth_at(talk.ear.heard[row.turn].last)
        assert row.floor_transfer_offset_s == pytest.approx(truth_s, abs=NEAR_S)


def test_a_greeting_is_waited_out_and_no_turn(held: Held) -> None:
    [session] = held.sessions[held.sessions.script == "greets"].itertuples()
    [talk] = held.talks("greets")
    assert 0.97 < session.greeting_s < talk.ended[0] - talk.said[0][0] + 0.3, "a second, and what the peer was late"
    first = talk.ear.mouth_at(talk.ear.heard[0].first)
    assert first > talk.ended[0], "the user began only when the greeting was over"
    assert (held.sessions[held.sessions.script == "answers"].greeting_s == 0).all()


def test_a_greeting_nobody_waits_for_any_more_overlaps(held: Held) -> None:
    rows = held.of("greets late")
    assert list(rows.outcome) == ["early"] + ["answered"] * (len(rows) - 1)
    assert len(rows) >= 3


def test_a_line_lost_in_an_answer_ends_the_call_and_the_user_calls_again(held: Held) -> None:
    rows = held.of("hangs up mid answer")
    assert len(rows) >= 3
    assert set(zip(rows.outcome, rows.error_kind, strict=True)) == {("disconnected", "ws_closed_1000")}
    assert rows.error.str.contains("goodbye").all()
    assert (rows.turn == 0).all()
    assert rows.session.nunique() == len(rows)
    sessions = held.sessions[held.sessions.script == "hangs up mid answer"]
    assert set(rows.session) <= set(sessions.session)
    assert set(sessions[sessions.session.isin(rows.session)].ended_by) == {"ws_closed_1000"}


def test_a_line_lost_between_turns_is_a_row_too(held: Held) -> None:
    rows = held.of("hangs up mid think")
    ended = rows[rows.session.isin(rows[rows.turn == 1].session)]
    assert len(ended) >= 4
    assert ended.groupby("session", sort=False).outcome.agg(list).tolist() == [["answered", "disconnected"]] * (
        len(ended) // 2
    )
    lost = ended[ended.turn == 1]
    assert set(lost.error_kind) == {"ws_closed_1001"}
    assert set(lost.text_name) == {"lost between turns"}
    assert lost.user_offset_at.isna().all()


def test_the_end_of_the_run_cuts(held: Held) -> None:
    """Cut by us: neither success nor failure, and every open call is a session that the run ended."""
    cut = held.rows[held.rows.outcome == "cut"]
    assert len(cut) >= 3
    assert set(cut.error_kind) == {"run_ended"}
    assert set(held.sessions[held.sessions.session.isin(cut.session)].ended_by) == {"run_ended"}


def test_an_injected_hole_is_one_stall_of_its_length(held: Held) -> None:
    rows = held.of("stalls")
    holed, whole = rows[rows.turn % 2 == 0], rows[rows.turn % 2 == 1]
    assert len(holed) >= 2
    assert len(whole) >= 1
    assert (holed.stall_count_0ms == 1).all()
    # The hole begins where the playout runs dry; the peer's own lateness in writing the chunk behind it is on top.
    [talk] = held.talks("stalls")
    truth_s = np.array(talk.notes["holes_s"])[: len(holed)]
    assert np.abs(holed.stall_longest_s_0ms.to_numpy() - truth_s).max() < 0.01
    assert (truth_s > 0.299).all()
    assert (whole.stall_count_0ms == 0).all()
    assert (holed.utterances == 1).all()


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name.startswith("pauses")])
def test_a_pause_between_sentences_is_no_stall(held: Held, script: str) -> None:
    rows = held.of(script)
    assert len(rows) >= 2
    assert rows.error_kind.isna().all()
    assert (rows.stall_count_0ms == 0).all()
    if script != "pauses, as told":  # there the turn may end with the server's word
        assert (rows.utterances == 2).all()
        assert np.median(rows.agent_speech_s) == pytest.approx(1.42 if "quiet" in script else 1.28, abs=0.1)


def test_clean_answers_have_no_stalls(held: Held) -> None:
    rows = pd.concat(held.of(script) for script in ("answers", "sends at once", "speaks at 24 kHz", "greets"))
    assert (rows.stall_longest_s_200ms == 0).all()


def test_speech_sent_at_once_lasts_as_long_as_it_plays(held: Held) -> None:
    rows = held.of("sends at once")
    assert np.allclose(rows.agent_speech_s, 1.0, atol=NEAR_S)
    assert np.allclose(rows.audio_s, 1.0)


def test_figures_told_in_band_are_rows(held: Held) -> None:
    """One a turn; a value of 0.0 only says that one will come."""
    turns_of_it = held.of("speaks at 24 kHz", cut=True)
    figures = held.server
    assert len(turns_of_it) - 1 <= len(figures) <= len(turns_of_it)
    assert set(zip(figures.source, figures.component, figures.metric, figures.value_s, strict=True)) == {
        ("in-band", "tts", "ttfb", 0.125)
    }
    assert set(figures.instance) == {"AcmeTTSService#0"}
    joined = figures.merge(turns_of_it, on=["session", "turn", "stream_id"], validate="one_to_one")
    assert len(joined) == len(figures)
    assert (turns_of_it[turns_of_it.outcome == "answered"].agent_stopped_hint_at > 0).all()


def test_the_microphone_never_pauses_nor_drifts(held: Held) -> None:
    """Chunks of 20 ms at 50 a second, silence included, from the first to the last: media time is wall time."""
    talks = held.talks("is silent") + held.talks("answers") + held.talks("never stops") + held.talks("is early")
    for talk in talks:
        at, sizes = np.array(talk.ear.chunk_at), np.array([len(chunk) for chunk in talk.ear.chunks])
        assert set(sizes) == {RATE // 50}
        assert len(at) > 10 * 50
        delay_s = at - np.cumsum(sizes) / RATE
        # The quickest of each second: what a loaded machine adds to some is no drift, and a hole moves all that follow.
        quickest = np.array([delay_s[start : start + 50].min() for start in range(0, len(at) - 49, 50)])
        assert np.ptp(quickest) < 0.008, quickest
        assert np.median(delay_s - delay_s.min()) < 0.03


def test_queries_are_on_the_wire_as_in_the_files(held: Held) -> None:
    """Byte for byte, at real time, and digital silence between them: no hole, no repeat, nothing else."""
    spoken = {f"{name}.wav": samples for name, samples in held.clips.items()}
    for script in ("answers", "is silent", "is late"):
        [talk] = held.talks(script)
        stream = talk.ear.stream.copy()
        rows = held.of(script, cut=True)
        assert len(talk.ear.heard) in (len(rows), len(rows) - 1)
        for heard, row in zip(talk.ear.heard, rows.itertuples(), strict=False):
            query = spoken[row.text_name]
            found = stream[heard.first : heard.first + len(query)]
            assert heard.first % (RATE // 50) == 0
            assert np.array_equal(found, query[: len(found)])
            stream[heard.first : heard.first + len(query)] = 0
            assert row.user_onset_at == pytest.approx(talk.ear.mouth_at(heard.first), abs=0.01)
            if len(found) == len(query):
                assert row.user_offset_at == pytest.approx(talk.ear.mouth_at(heard.last), abs=0.01)
        assert not stream.any()


def test_callers_think_between_turns(held: Held) -> None:
    """From the agent's last word to the user's next first: 0.9 to 1 s, as asked."""
    rows = held.of("answers", cut=True)
    thought_s = rows.user_onset_at.to_numpy()[1:] - rows.agent_offset_at.to_numpy()[:-1]
    thought_s = thought_s[~np.isnan(thought_s)]
    assert len(thought_s) >= 3
    assert ((thought_s > 0.89) & (thought_s < 1.1)).all(), thought_s


def test_failures_make_the_exit_status_and_locusts_tables_name_them(held: Held) -> None:
    assert held.status == 1
    for told in ("no_answer_in_time: ", "never_stopped: ", "ws_closed_1000: the server closed with 1000: goodbye"):
        assert told in held.said


def test_who_speaks_first_and_what_differs_by_caller(held: Held) -> None:
    """Not everybody begins with the same query, and each takes the next one."""
    first = held.rows[(held.rows.turn == 0) & held.rows.user_offset_at.notna()]
    assert first.text_name.nunique() == 3
    names = list(held.of("is silent").text_name)
    order = ["ask.wav", "long.wav", "order.wav"]
    assert names == [order[(order.index(names[0]) + step) % 3] for step in range(len(names))]

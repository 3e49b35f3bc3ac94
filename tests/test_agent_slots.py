"""Stages with slots: a capacity that is known, waits where they belong, and nobody left in a line. In process."""

import asyncio
import json
import re
import urllib.request
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from gpu_server.agent_settings import AgentSettings, Delays, Slots, parse_slots
from gpu_server.app import build_app
from gpu_server.calls import Calls
from gpu_server.engines.tone import ToneEngine
from gpu_server.pace import Pace
from gpu_server.service import Service, Settings
from gpu_server.speech import Engine
from gpu_server.trace import AgentTurn, TraceLog, read_agent_turns, read_trace
from tests.agent_client import audio_message, call, silence, tone
from tests.server_process import running_server
from tests.test_agent import turns_of
from tests.test_agent_bad_input import Line
from tests.test_gpu_server_cli import run
from tests.test_gpu_server_failing import FailingEngine

STAGES = ("asr", "llm", "tts")
FOREVER_S = 3600.0
WITHIN_S = 15.0

T = TypeVar("T")


class House:
    """A server without sockets. Its callers say a sentence in no time, so that many have asked at one instant."""

    def __init__(self, folder: Path, agent: AgentSettings, engine: Engine, pace: Pace | None = None) -> None:
        self.trace = folder / "trace.jsonl"
        self.service = Service(engine, Settings(pace=pace), TraceLog(self.trace, engine.name))
        self.service.warm = True
        self._calls = Calls(self.service, agent)
        self._open: dict[str, Any] = {}
        self.lines: dict[str, Line] = {}

    def speak(self, *names: str) -> None:
        """Each says something, and has fallen silent when this returns."""
        for name in names:
            if name not in self._open:
                self.lines[name] = line = Line()
                self._open[name] = self._calls.door(f"/ws/{name}", {})  # type: ignore[arg-type]
                self._open[name].opened(line)
            self._open[name].message(audio_message(tone(0.3) + silence(0.4)), 5.0)

    def begin_to_speak(self, name: str) -> None:
        self._open[name].message(audio_message(tone(0.3)), 5.0)

    def hang_up(self, *names: str) -> None:
        for name in names:
            self._open.pop(name).closed(True)

    async def until(self, probe: Callable[[], T | None]) -> T:
        async with asyncio.timeout(WITHIN_S):
            while (found := probe()) is None:
                await asyncio.sleep(0.002)
        return found

    async def turns(self, count: int) -> list[AgentTurn]:
        """The trace's turns by stream, as soon as there are so many."""

        def probe() -> list[AgentTurn] | None:
            rows = read_agent_turns(self.trace)
            return rows if len(rows) >= count else None

        return sorted(await self.until(probe), key=lambda row: row["stream_id"])

    def gauge(self, name: str) -> dict[str, float]:
        """`gpu_server_stage_NAME` by stage, as Prometheus would read it."""
        page = self.service.metrics.exposition().decode()
        found = re.findall(rf'^gpu_server_stage_{name}{{stage="(\w+)"}} (\S+)$', page, re.M)
        return {stage: float(value) for stage, value in found}

    async def becomes(self, stage: str, busy: int, waiting: int) -> None:
        """Wait until the stage is so; the time limit is the failure."""
        wanted = (busy, waiting)
        try:
            await self.until(lambda: (self.gauge("busy")[stage], self.gauge("waiting")[stage]) == wanted or None)
        except TimeoutError:
            pytest.fail(f"busy {self.gauge('busy')}, waiting {self.gauge('waiting')}; expected {wanted}")
        await asyncio.sleep(0)  # a slot is busy a round of the loop before the call that it was given to knows of it

    def close(self) -> None:
        self._calls.close_log()
        self.service.close()


def within(
    folder: Path,
    agent: dict[str, Any],
    scenario: Callable[[House], Coroutine[Any, Any, T]],
    engine: Any = None,
    pace: Pace | None = None,
) -> T:
    async def scene() -> T:
        settings = AgentSettings(log=folder / "agent.log", vad="energy", **agent)
        house = House(folder, settings, engine or ToneEngine(0.04), pace)
        try:
            return await scenario(house)
        finally:
            house.close()

    return asyncio.run(scene())


def slots(**stages: int) -> Slots:
    return Slots(**stages)


def delay(stage: str, seconds: float) -> Delays:
    return Delays(**{f"{stage}_s": seconds})


def wait_s(row: AgentTurn, stage: str) -> float:
    found = row[f"{stage}_wait_s"]  # type: ignore[literal-required]
    assert isinstance(found, float)
    return found


def at(row: AgentTurn, name: str) -> float:
    found = row[f"{name}_at"]  # type: ignore[literal-required]
    assert isinstance(found, float)
    return found


def work(row: AgentTurn, stage: str) -> tuple[float, float]:
    """When a turn came into the stage, and until when it was surely in it."""
    if stage == "asr":
        assert row["asr_s"] is not None
        return at(row, "transcript") - row["asr_s"] + wait_s(row, stage), at(row, "transcript")
    if stage == "llm":
        assert row["processing_s"] is not None
        return at(row, "transcript") + wait_s(row, stage), at(row, "transcript") + row["processing_s"]
    return at(row, "first_sentence") + wait_s(row, stage), at(row, "tts_first_audio")


def most_at_once(spans: list[tuple[float, float]]) -> int:
    """How many of the spans there are at most at one instant; those that only touch do not meet."""
    steps = sorted([(start + 1e-6, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    inside = most = 0
    for _, step in steps:
        inside += step
        most = max(most, inside)
    return most


def test_the_span_count_tells_one_from_two() -> None:
    assert most_at_once([(0, 1), (1, 2), (2, 3)]) == 1
    assert most_at_once([(0, 1), (0.5, 2), (2, 3)]) == 2


@pytest.mark.parametrize("limit", [1, 2])
def test_the_kth_transcript_comes_k_delays_after_the_first_was_asked_for(tmp_path: Path, limit: int) -> None:
    least_s, names = 0.1, "abcde"

    async def scenario(house: House) -> list[AgentTurn]:
        house.speak(*names)
        return await house.turns(len(names))

    rows = within(tmp_path, {"slots": slots(asr=limit), "delays": delay("asr", least_s)}, scenario)
    assert [row["outcome"] for row in rows] == ["ok"] * len(names)
    said = [at(row, "transcript") for row in rows]
    assert said == sorted(said)  # first come first served
    for number, row in enumerate(rows):
        before = number // limit  # how many had this slot before
        assert row["asr_s"] is not None
        # Asked to answer, and the wait is in what a client sees.
        assert row["asr_s"] >= (before + 1) * least_s - 1e-6
        assert wait_s(row, "asr") >= before * least_s - 1e-6
        # The delay counts from the slot, or the whole line would have been served at once.
        assert row["asr_s"] - wait_s(row, "asr") >= least_s - 1e-6
    # Never more than the limit, and not fewer either.
    assert most_at_once([work(row, "asr") for row in rows]) == limit


@pytest.mark.parametrize("stage", STAGES)
def test_the_wait_is_in_the_stage_that_is_short_and_in_no_other(tmp_path: Path, stage: str) -> None:
    least_s, names = 0.15, "abcd"

    async def scenario(house: House) -> list[AgentTurn]:
        house.speak(*names)
        return await house.turns(len(names))

    ample = {name: 1 if name == stage else len(names) for name in STAGES}
    rows = within(tmp_path, {"slots": slots(**ample), "delays": delay(stage, least_s)}, scenario)
    # A reply is two sentences; all the first ones are before any second one in the line.
    came = [work(row, stage)[0] for row in rows]
    assert all(later - sooner >= least_s - 1e-6 for sooner, later in pairwise(came))
    column = {"asr": "asr_s", "llm": "llm_ttfb_s", "tts": "tts_ttfb_s"}[stage]
    for row in rows:
        assert row[column] - wait_s(row, stage) >= least_s - 1e-6  # type: ignore[literal-required]
    elsewhere = max(wait_s(row, other) for row in rows for other in STAGES if other != stage)
    assert wait_s(rows[-1], stage) > elsewhere
    assert most_at_once([work(row, stage) for row in rows]) == 1


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_without_a_limit_has_no_wait_and_no_gauge(tmp_path: Path, stage: str) -> None:
    async def scenario(house: House) -> list[AgentTurn]:
        house.speak("a", "b")
        rows = await house.turns(2)
        assert house.gauge("busy") == house.gauge("waiting") == {stage: 0}
        return rows

    for row in within(tmp_path, {"slots": slots(**{stage: 1})}, scenario):
        assert [name for name in STAGES if row[f"{name}_wait_s"] is not None] == [stage]  # type: ignore[literal-required]


def test_the_language_model_is_busy_until_its_last_token(tmp_path: Path) -> None:
    async def scenario(house: House) -> list[AgentTurn]:
        house.speak("a", "b")
        return await house.turns(2)

    first, second = within(tmp_path, {"slots": slots(llm=1), "words_per_s": 50.0}, scenario)
    assert first["processing_s"] is not None
    assert first["processing_s"] >= 16 / 50  # seventeen words
    assert at(second, "first_token") >= at(first, "transcript") + first["processing_s"]


def test_speech_is_one_sentence_at_a_time_until_its_last_audio_is_made(tmp_path: Path) -> None:
    async def scenario(house: House) -> list[AgentTurn]:
        house.speak("a", "b")
        return await house.turns(2)

    pace = Pace(ttfc_s=0.0, rtf=1.0)
    first, second = within(tmp_path, {"slots": slots(tts=1)}, scenario, ToneEngine(0.4), pace)
    assert first["audio_s"] == second["audio_s"] == 0.8
    # The last of ten chunks of 40 ms is made 0.36 s after the slot was given.
    assert work(second, "tts")[0] >= work(first, "tts")[0] + 0.36
    # The second sentence of the first stood in line behind the other's first one.
    assert at(first, "last_audio") >= work(second, "tts")[0] + 2 * 0.36


def test_who_listens_slowly_holds_no_slot(tmp_path: Path) -> None:
    """Audio is made ahead of real time; a minute of it must not keep the engine from others for a minute."""

    async def scenario(house: House) -> None:
        house.speak("a", "b")
        await house.until(lambda: all(len(line.sent) > 30 for line in house.lines.values()) or None)
        house.hang_up("a", "b")
        await house.becomes("tts", 0, 0)

    within(tmp_path, {"slots": slots(tts=1), "rtvi": False}, scenario, ToneEngine(60.0))


@pytest.mark.parametrize("stage", STAGES)
def test_who_hangs_up_leaves_the_line_and_the_slot(tmp_path: Path, stage: str) -> None:
    async def scenario(house: House) -> list[AgentTurn]:
        house.speak("a")
        await house.becomes(stage, 1, 0)
        house.speak("b", "c")
        await house.becomes(stage, 1, 2)
        house.hang_up("b")  # waits
        await house.becomes(stage, 1, 1)
        house.hang_up("a")  # is served
        await house.becomes(stage, 1, 0)
        house.hang_up("c")  # was given the slot that a left
        await house.becomes(stage, 0, 0)
        assert house.service.calls == 0
        return await house.turns(3)

    rows = within(tmp_path, {"slots": slots(**{stage: 1}), "delays": delay(stage, FOREVER_S)}, scenario)
    assert [row["outcome"] for row in rows] == ["client_gone"] * 3
    # What never came is None: b was in line for as long as it lived.
    assert [row[f"{stage}_wait_s"] is None for row in rows] == [False, True, False]  # type: ignore[literal-required]


@pytest.mark.parametrize("stage", STAGES)
def test_who_speaks_on_leaves_the_line_and_comes_back_at_its_end(tmp_path: Path, stage: str) -> None:
    async def scenario(house: House) -> list[AgentTurn]:
        house.speak("a")
        await house.becomes(stage, 1, 0)
        house.speak("b")
        await house.becomes(stage, 1, 1)
        house.speak("c")
        await house.becomes(stage, 1, 2)
        house.begin_to_speak("b")  # while it waits
        await house.becomes(stage, 1, 1)
        house.begin_to_speak("a")  # while it is served: c has the slot now
        await house.becomes(stage, 1, 0)
        house.speak("b")  # and falls silent
        await house.becomes(stage, 1, 1)
        house.hang_up("c")
        await house.becomes(stage, 1, 0)
        house.hang_up("a", "b")
        await house.becomes(stage, 0, 0)
        return await house.turns(4)

    rows = within(tmp_path, {"slots": slots(**{stage: 1}), "delays": delay(stage, FOREVER_S)}, scenario)
    ended = [(row["stream_id"], row["agent_turn"], row["outcome"]) for row in rows]
    assert ended == [
        ("a", 0, "interrupted"),
        ("b", 0, "interrupted"),
        ("b", 1, "client_gone"),
        ("c", 0, "client_gone"),
    ]
    assert [row[f"{stage}_wait_s"] is None for row in rows] == [False, True, False, False]  # type: ignore[literal-required]


@pytest.mark.parametrize("chunks", [0, 3])
def test_an_engine_that_fails_gives_its_slot_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], chunks: int
) -> None:
    async def scenario(house: House) -> list[AgentTurn]:
        house.speak("a", "b")
        rows = await house.turns(2)
        await house.becomes("tts", 0, 0)
        return rows

    rows = within(tmp_path, {"slots": slots(tts=1)}, scenario, FailingEngine(chunks))
    assert [row["outcome"] for row in rows] == ["failed", "failed"]
    assert capsys.readouterr().err.count("the engine caught fire") == 2


def test_a_greeting_needs_a_slot_to_be_spoken(tmp_path: Path) -> None:
    async def scenario(house: House) -> list[AgentTurn]:
        house.speak("a")
        house.speak("b")
        await house.becomes("tts", 1, 1)
        house.hang_up("a", "b")
        return await house.turns(2)

    agent = {"slots": slots(tts=1), "delays": delay("tts", FOREVER_S), "greeting": "Hello."}
    rows = [row for row in within(tmp_path, agent, scenario) if row["agent_turn"] == -1]
    assert [(row["stream_id"], row["tts_first_audio_at"]) for row in rows] == [("a", None), ("b", None)]


def test_a_server_told_of_its_limits_says_them_and_keeps_them(tmp_path: Path) -> None:
    limits = ("--agent-slots", "asr=1,tts=3", "--calls", "7", "--streams", "5", "--queue", "2")
    options = ("--engine", "tone", "--tone-seconds", "0.2", "--agent-delays", "asr=0.2", *limits)
    with running_server(*options, trace=tmp_path / "trace.jsonl") as server:
        with urllib.request.urlopen(f"{server.url}/health", timeout=5) as answer:
            health = json.load(answer)
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=5) as answer:
            page = answer.read().decode()
        with call(server.port, "/ws/real") as caller:
            caller.say(0.3)
            caller.stay_silent_until(caller.bot_stopped)
        row = turns_of(server, "real")[0]
    assert health["mock"] is True
    assert (health["streams_most"], health["queue_most"], health["calls_most"]) == (5, 2, 7)
    stages = [(stage, name) for stage in ("asr", "tts") for name in ("busy", "waiting")]
    assert sorted(re.findall(r'^gpu_server_stage_(\w+){stage="(\w+)"} 0.0$', page, re.M)) == sorted(
        (name, stage) for stage, name in stages
    )
    assert "gpu_server_queue_depth 0.0" in page
    assert row["asr_s"] is not None
    assert row["asr_s"] - wait_s(row, "asr") >= 0.2 - 1e-6
    assert row["llm_wait_s"] is None


def test_an_engine_that_speaks_is_no_mock() -> None:
    async def ask() -> Any:
        engine: Any = FailingEngine(0)
        service = Service(engine, Settings(), None)
        service.warm = True
        transport = httpx.ASGITransport(app=build_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return (await client.get("/health")).json()

    health = asyncio.run(ask())
    assert health["mock"] is False
    assert health["calls_most"] == 0  # it has no door for calls


def test_slots_are_read() -> None:
    assert parse_slots("asr=2,llm=8,tts=4") == Slots(2, 8, 4)
    assert parse_slots("tts=1") == Slots(tts=1)


WRONG = (
    "asr",
    "asr=",
    "asr=x",
    "asr=0",
    "asr=-1",
    "asr=1.5",
    "asr=1;llm=2",
    "vad=1",
    "asr=1,",
    "asr=1,asr=2",
    "",
    "=1",
)


@pytest.mark.parametrize("text", WRONG)
def test_wrong_slots_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"slots|stage") as wrong:
        parse_slots(text)
    assert "\n" not in str(wrong.value)


def test_wrong_slots_are_one_line_and_status_2() -> None:
    done = run("--agent-slots", "asr=none")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "asr=none" in done.stderr


OLD_TURN = """{"stream_id":"old","agent_turn":0,"user_last_voiced_received_at":6.1,"end_of_speech_at":6.4,\
"transcript_at":6.45,"first_token_at":6.65,"first_sentence_at":6.65,"tts_first_audio_at":6.75,"first_audio_at":6.75,\
"last_audio_at":7.5,"finished_at":7.55,"interrupted_at":null,"asr_s":0.05,"llm_ttfb_s":0.2,"llm_first_sentence_s":0.2,\
"tts_ttfb_s":0.1,"tokens":17,"processing_s":0.2,"transcript":null,"audio_s":0.8,"outcome":"ok","fault":null,\
"fault_s":null}
"""


def test_traces_from_before_there_were_slots_are_still_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(OLD_TURN)
    assert [row["stream_id"] for row in read_agent_turns(path)] == ["old"]
    _, rows, bad_lines = read_trace(path)
    assert (rows, bad_lines) == ([], 0)

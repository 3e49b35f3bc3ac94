"""Calls to the bundled agent: a real server process, real WebSockets, audio in real time."""

import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_server.trace import AgentTurn, read_agent_turns, read_trace
from tests.agent_client import RATE, Caller, audio_message, call, silence, tone
from tests.server_process import Server, running_server

DELAYS = {"asr": 0.05, "llm": 0.2, "tts": 0.1}
HANGOVER_S = 0.3
TOLERANCE_S = 0.1  # a loaded machine of two cores


def turns_of(server: Server, stream_id: str, count: int = 1) -> list[AgentTurn]:
    """A call's turns, as soon as so many are written."""

    def probe() -> list[AgentTurn] | None:
        assert server.trace is not None
        rows = [row for row in read_agent_turns(server.trace) if row["stream_id"] == stream_id]
        return rows if len(rows) >= count else None

    return server.until(probe)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An agent whose every stage is known: 0.65 s from the last voiced audio to the first of the answer."""
    folder = tmp_path_factory.mktemp("known")
    delays = ",".join(f"{stage}={seconds}" for stage, seconds in DELAYS.items())
    options = ("--engine", "tone", "--tone-seconds", "0.4", "--agent-delays", delays)
    with running_server(*options, "--agent-log", str(folder / "agent.log"), trace=folder / "trace.jsonl") as server:
        yield server


@pytest.fixture(scope="module")
def greeting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An agent as NVIDIA's: greets, WAV messages of 100 ms, nothing but audio."""
    trace = tmp_path_factory.mktemp("greeting") / "trace.jsonl"
    form = ("--agent-out", "wav", "--agent-chunk-ms", "100", "--agent-rate", "24000", "--no-agent-rtvi")
    with running_server("--engine", "tone", "--tone-seconds", "0.5", "--greeting", "Hello.", *form, trace=trace) as one:
        yield one


def test_the_time_to_the_answer_is_hangover_and_delays(known: Server) -> None:
    with call(known.port, "/ws/truth") as caller:
        for number in (1, 2):
            caller.say(0.4)
            caller.stay_silent_until(lambda n=number: caller.bot_stopped(n))  # type: ignore[misc]
    for row in turns_of(known, "truth", 2):
        assert row["outcome"] == "ok"
        heard_at, ended_at, said_at = (
            row["user_last_voiced_received_at"],
            row["end_of_speech_at"],
            row["first_audio_at"],
        )
        assert heard_at is not None
        assert ended_at is not None
        assert said_at is not None
        # The hangover is counted in received audio, which a late sender brings late or in a bunch.
        assert ended_at - heard_at == pytest.approx(HANGOVER_S, abs=TOLERANCE_S)
        # A stage never takes less than it was told to.
        assert 0 <= said_at - ended_at - sum(DELAYS.values()) < TOLERANCE_S
        for column, stage in (("asr_s", "asr"), ("llm_ttfb_s", "llm"), ("tts_ttfb_s", "tts")):
            assert 0 <= row[column] - DELAYS[stage] < TOLERANCE_S  # type: ignore[literal-required]
        instants = ("end_of_speech", "transcript", "first_token", "first_sentence", "tts_first_audio", "first_audio")
        ordered = [row[f"{name}_at"] for name in (*instants, "last_audio", "finished")]  # type: ignore[literal-required]
        assert ordered == sorted(ordered)
        assert row["audio_s"] == 0.8  # two sentences
    assert [row["agent_turn"] for row in turns_of(known, "truth", 2)] == [0, 1]


def test_what_the_client_hears_is_what_the_trace_says(known: Server) -> None:
    with call(known.port, "/ws/heard") as caller:
        caller.say(0.4)
        caller.stay_silent_until(caller.bot_stopped)
        chunks = caller.audio()
    row = turns_of(known, "heard")[0]
    assert {(came.body[4], came.body[5], len(came.pcm)) for came in chunks} == {(RATE, 1, 640)}
    assert len(chunks) * 640 == round(row["audio_s"] * 2 * RATE)
    assert row["first_audio_at"] is not None
    assert row["last_audio_at"] is not None
    # One host, one monotonic clock: stamped before the write, so never after the read.
    assert 0 <= chunks[0].at - row["first_audio_at"] < TOLERANCE_S
    # Real time: two chunks together, then one each 20 ms.
    assert row["last_audio_at"] - row["first_audio_at"] == pytest.approx(0.02 * (len(chunks) - 2), abs=TOLERANCE_S)


def test_rtvi_messages_come_in_order_and_carry_the_stage_times(known: Server) -> None:
    with call(known.port, "/ws/rtvi") as caller:
        caller.say(0.4)
        caller.stay_silent_until(caller.bot_stopped)
        said = [came.rtvi["type"] if came.kind == "message" else came.kind for came in caller.came]
        metrics = caller.rtvi("metrics")
        words = [message["data"]["text"] for message in caller.rtvi("bot-llm-text")]
    assert all(message["label"] == "rtvi-ai" for message in metrics)
    order = ["user-started-speaking", "interruption", "user-stopped-speaking", "bot-llm-text", "bot-started-speaking"]
    assert [kind for kind, _ in itertools.groupby(said) if kind in {*order, "audio", "bot-stopped-speaking"}] == [
        *order,
        "audio",
        "bot-stopped-speaking",
    ]
    assert "".join(words).strip() == (
        "The shop opens at nine in the morning on Saturday. It closes at six in the evening."
    )
    ttfb = {entry["processor"].split("#")[0]: entry["value"] for m in metrics for entry in m["data"].get("ttfb", [])}
    row = turns_of(known, "rtvi")[0]
    assert ttfb["NvidiaLLMService"] == pytest.approx(row["llm_ttfb_s"], abs=1e-5)
    assert ttfb["NemotronTTSService"] == pytest.approx(row["tts_ttfb_s"], abs=1e-5)
    assert ttfb["NemotronASRService"] == pytest.approx(HANGOVER_S + (row["asr_s"] or 0), abs=1e-5)


def test_the_log_has_nvidias_lines(known: Server) -> None:
    with call(known.port, "/ws/lines%20of%0Amine") as caller:  # what a client names itself never breaks a line
        caller.say(0.4)
        caller.stay_silent_until(caller.bot_stopped)
    assert known.trace is not None
    row = turns_of(known, "lines_of_mine")[0]
    log = known.trace.with_name("agent.log")
    head = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \| (DEBUG|INFO)\s+\| \S+:\S+:\d+ \| streamId="
    pattern = {
        "accepted": head + r"n/a - Accepted WebSocket connection for stream ID lines_of_mine$",
        "asr": head + r"lines_of_mine - NemotronASRService#\d+ ASR compute latency: ([\d.]+)$",
        "llm": head + r"lines_of_mine - NvidiaLLMService#\d+ TTFB: ([\d.]+)s$",
        "first": head + r"lines_of_mine - NvidiaLLMService#\d+ LLM first sentence generation time: ([\d.]+)$",
        "tokens": head + r"lines_of_mine - NvidiaLLMService#\d+ prompt tokens: \d+, completion tokens: (17)$",
        "processing": head + r"lines_of_mine - NvidiaLLMService#\d+ processing time: ([\d.]+)s$",
        "tts": head + r"lines_of_mine - NemotronTTSService#\d+ TTFB: ([\d.]+)s$",
        "gone": head + r"lines_of_mine - Client disconnected$",
    }
    known.until(lambda: re.search(pattern["gone"], log.read_text(), re.M))
    found = {name: re.findall(expression, log.read_text(), re.M) for name, expression in pattern.items()}
    assert {name: len(lines) for name, lines in found.items()} == dict.fromkeys(pattern, 1)
    for name, column in (
        ("asr", "asr_s"),
        ("llm", "llm_ttfb_s"),
        ("first", "llm_first_sentence_s"),
        ("tts", "tts_ttfb_s"),
    ):
        assert float(found[name][0][1]) == pytest.approx(row[column], abs=0.0006)  # type: ignore[literal-required]


def test_nothing_is_sent_while_silent_and_client_ready_is_answered(known: Server) -> None:
    ready = b'{"label":"rtvi-ai","type":"client-ready","id":"7","data":{"version":"2.2.0","about":{"library":"x"}}}'
    message = b"\x22" + bytes([len(ready) + 2]) + b"\x0a" + bytes([len(ready)]) + ready
    with call(known.port, "/ws") as caller:
        caller.connection.send(message)
        caller.stay_silent_until(lambda: True if caller.rtvi("bot-ready") else None)
        caller.send_audio(silence(0.3))
        assert caller.rtvi("bot-ready")[0]["id"] == "7"
        assert len(caller.came) == 1


def test_a_call_without_an_id_gets_one(known: Server) -> None:
    assert known.trace is not None
    before = {row["stream_id"] for row in read_agent_turns(known.trace)}
    with call(known.port, "/ws") as caller:
        caller.say(0.4)
        caller.stay_silent_until(caller.bot_stopped)
    new = {row["stream_id"] for row in read_agent_turns(known.trace)} - before
    assert [bool(re.fullmatch(r"call_[0-9a-f]{12}", name)) for name in new] == [True]


def test_turns_are_no_rows_of_requests_and_no_bad_lines(known: Server) -> None:
    assert known.trace is not None
    with call(known.port, "/ws/rows") as caller:
        caller.say(0.4)
        caller.stay_silent_until(caller.bot_stopped)
    turns_of(known, "rows")
    header, rows, bad_lines = read_trace(known.trace)
    assert header is not None
    assert (rows, bad_lines) == ([], 0)


def test_it_greets_and_speaks_in_wav_messages(greeting: Server) -> None:
    with call(greeting.port, "/ws/greeted") as caller:
        caller.until(lambda: caller.heard(5))
        row = turns_of(greeting, "greeted")[0]
        assert all(came.kind == "audio" for came in caller.came)
        assert all(came.body[3].startswith(b"RIFF") and len(came.body[3]) == 44 + 4800 for came in caller.audio())
        assert {came.body[4] for came in caller.audio()} == {24_000}
        assert (row["agent_turn"], row["outcome"], row["audio_s"]) == (-1, "ok", 0.5)
        assert (row["end_of_speech_at"], row["transcript_at"], row["transcript"]) == (None, None, None)
        caller.say(0.4)
        caller.stay_silent_until(lambda: caller.heard(15))
        assert all(came.kind == "audio" for came in caller.came)
    assert [row["agent_turn"] for row in turns_of(greeting, "greeted", 2)] == [-1, 0]


def test_wav_messages_are_heard_too(known: Server) -> None:
    pcm = tone(0.4) + silence(0.5)

    def wav(chunk: bytes) -> bytes:
        head = b"RIFF" + (36 + len(chunk)).to_bytes(4, "little") + b"WAVEfmt \x10\0\0\0\1\0\1\0"
        rates = RATE.to_bytes(4, "little") + (2 * RATE).to_bytes(4, "little") + b"\2\0\x10\0"
        return head + rates + b"data" + len(chunk).to_bytes(4, "little") + chunk

    with call(known.port, "/ws/wav-in") as caller:
        for start in range(0, len(pcm), 3200):
            caller.connection.send(audio_message(wav(pcm[start : start + 3200])))
        caller.stay_silent_until(caller.bot_stopped)
    assert turns_of(known, "wav-in")[0]["outcome"] == "ok"


def interrupted(caller: Caller) -> float:
    """Begin to speak over the agent; when it says that it has noticed."""
    caller.stay_silent_until(lambda: caller.heard(10))
    caller.say(0.3, 0)
    caller.until(caller.bot_stopped)
    return next(came.at for came in caller.came[::-1] if came.kind == "interruption")


def test_it_yields_within_one_chunk_when_interrupted(tmp_path: Path) -> None:
    with (
        running_server("--engine", "tone", "--tone-seconds", "20", trace=tmp_path / "trace.jsonl") as server,
        call(server.port, "/ws/barge") as caller,
    ):
        caller.say(0.4)
        noticed_at = interrupted(caller)
        sent = len(caller.audio())
        assert all(came.at <= noticed_at + TOLERANCE_S for came in caller.audio())
        caller.send_audio(silence(0.1))
        assert len(caller.audio()) == sent
        row = turns_of(server, "barge")[0]
        assert row["outcome"] == "interrupted"
        assert row["interrupted_at"] is not None
        assert row["last_audio_at"] is not None
        # Not one chunk leaves after the interruption was decided.
        assert row["last_audio_at"] <= row["interrupted_at"] <= row["finished_at"]
        assert 0.2 <= row["audio_s"] < 5
        # And it answers what it was interrupted with.
        caller.stay_silent_until(lambda: caller.heard(sent + 5))
    assert [row["outcome"] for row in turns_of(server, "barge", 2)] == ["interrupted", "client_gone"]


def test_an_interruption_before_the_first_word_costs_that_turn_only(tmp_path: Path) -> None:
    options = ("--engine", "tone", "--tone-seconds", "0.3", "--agent-delays", "llm=0.6")
    with (
        running_server(*options, trace=tmp_path / "trace.jsonl") as server,
        call(server.port, "/ws/thinking") as caller,
    ):
        caller.say(0.3, 0.4)
        caller.say(0.3, 0.4)
        caller.stay_silent_until(caller.bot_stopped)
        first, second = turns_of(server, "thinking", 2)
    assert (first["outcome"], first["first_audio_at"], first["audio_s"]) == ("interrupted", None, 0)
    assert (second["agent_turn"], second["outcome"]) == (1, "ok")


def test_sentences_are_spoken_while_the_rest_is_still_thought(tmp_path: Path) -> None:
    options = ("--engine", "tone", "--tone-seconds", "0.3", "--agent-words-per-s", "20")
    with (
        running_server(*options, trace=tmp_path / "trace.jsonl") as server,
        call(server.port, "/ws/words") as caller,
    ):
        caller.say(0.3)
        caller.stay_silent_until(caller.bot_stopped)
        row = turns_of(server, "words")[0]
    # Ten words make the first sentence, seventeen the reply.
    assert row["llm_first_sentence_s"] is not None
    assert row["processing_s"] is not None
    assert row["llm_first_sentence_s"] == pytest.approx(9 / 20, abs=TOLERANCE_S)
    assert row["processing_s"] == pytest.approx(16 / 20, abs=TOLERANCE_S)
    assert row["first_audio_at"] is not None
    assert row["transcript_at"] is not None
    assert row["first_audio_at"] - row["transcript_at"] < row["processing_s"]


def test_many_calls_at_once_each_get_their_own_answer(known: Server) -> None:
    with call(known.port, "/ws/one") as one, call(known.port, "/ws/two") as two:
        one.say(0.3)
        started = time.monotonic()
        one.stay_silent_until(one.bot_stopped)
        assert time.monotonic() - started < 10
        assert two.came == []
    assert len(turns_of(known, "one")) == 1

"""Callers that are wrong, rude or gone: each is dealt with, and nobody else notices."""

import asyncio
import contextlib
import json
import re
import signal
import socket
import struct
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gpu_server.agent_settings import AgentSettings, parse_delays
from gpu_server.calls import Calls, stream_id_of
from gpu_server.service import Service, Settings
from gpu_server.trace import TraceLog, read_agent_turns
from gpu_server.websocket import frame_span
from tests.agent_client import audio_message, call, silence, tone
from tests.server_process import Server, running_server
from tests.server_wire import read_until
from tests.test_agent import turns_of
from tests.test_gpu_server_failing import FailingEngine

HANDSHAKE = (
    b"GET /ws/raw HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nsec-websocket-version: 13\r\n\r\n"
)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    trace = tmp_path_factory.mktemp("agent") / "trace.jsonl"
    options = ("--engine", "tone", "--tone-seconds", "0.3", "--calls", "3", "--agent-ping-s", "0.4")
    with running_server(*options, trace=trace) as server:
        yield server


def masked(payload: bytes, first_byte: int = 0x82) -> bytes:
    """A client's frame of less than 64 kB, its mask not zero."""
    size = len(payload)
    head = bytes([first_byte, 0x80 | size]) if size < 126 else struct.pack("!BBH", first_byte, 0xFE, size)
    key = b"\x1b\x02\xf0\x99"
    return head + key + bytes(byte ^ key[k % 4] for k, byte in enumerate(payload))


def no_calls(server: Server) -> None:
    """Wait until the server counts no call, so that none is left over for the next test."""

    def probe() -> bool | None:
        with urllib.request.urlopen(f"{server.url}/health", timeout=5) as answer:
            return True if json.load(answer)["calls"] == 0 else None

    server.until(probe)


def works(server: Server, stream_id: str) -> None:
    """A well-behaved call gets its answer."""
    with call(server.port, f"/ws/{stream_id}") as caller:
        caller.say(0.3)
        caller.stay_silent_until(caller.bot_stopped)
    assert turns_of(server, stream_id)[0]["outcome"] == "ok"
    no_calls(server)


@pytest.mark.parametrize("path", ["/", "/w", "/ws/a/b", "/v1/synthesize", "/wsx"])
def test_an_unknown_path_is_404(agent: Server, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused, call(agent.port, path):
        pass
    assert refused.value.response.status_code == 404
    assert b"/ws/STREAM_ID" in (refused.value.response.body or b"")


def test_the_token_guards_calls_too() -> None:
    with running_server("--engine", "tone", env={"CICADA_SERVER_TOKEN": "s3cret"}) as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            with pytest.raises(InvalidStatus) as refused, call(server.port, headers=headers):
                pass
            assert refused.value.response.status_code == 401
            assert refused.value.response.headers["www-authenticate"] == "Bearer"
        with call(server.port, headers={"Authorization": "Bearer s3cret"}) as caller:
            caller.say(0.3)
            caller.stay_silent_until(lambda: caller.heard(1))


def test_a_call_too_many_is_closed_with_1013(agent: Server) -> None:
    with call(agent.port), call(agent.port), call(agent.port), call(agent.port) as fourth:
        assert fourth.close_code() == 1013
    no_calls(agent)
    works(agent, "after-1013")


def test_a_text_message_closes_the_connection(agent: Server) -> None:
    with call(agent.port) as caller:
        caller.connection.send("hello")
        assert caller.close_code() == 1003
    no_calls(agent)


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (24_000, 1), (16_000, 2)])
def test_audio_it_does_not_understand_closes_with_1003(agent: Server, rate: int, channels: int) -> None:
    with call(agent.port) as caller:
        caller.connection.send(audio_message(bytes(640), rate, channels))
        assert caller.close_code() == 1003
    no_calls(agent)


def test_a_message_too_large_closes_with_1009(agent: Server) -> None:
    with call(agent.port) as caller:
        with contextlib.suppress(ConnectionClosed):  # It may be refused before it is all sent.
            caller.connection.send(bytes(5_000_000))
        assert caller.close_code() == 1009
    no_calls(agent)


def test_garbage_is_counted_and_the_call_goes_on(agent: Server) -> None:
    with call(agent.port, "/ws/garbage") as caller:
        for message in (b"\xff", b"\x12\x7f\x00", b"", b"\x32\x00", b"\x0a\x04\x1a\x02hi", audio_message(b"")):
            caller.connection.send(message)
        caller.connection.send(audio_message(b"RIFF\x00\x00"))
        caller.connection.send(audio_message(bytes(3)))
        caller.send_audio(tone(0.3) + silence(0.4))
        caller.stay_silent_until(caller.bot_stopped)
    no_calls(agent)
    with urllib.request.urlopen(f"{agent.url}/metrics", timeout=5) as answer:
        page = answer.read().decode()
    counted = dict(re.findall(r'gpu_server_agent_ignored_total\{kind="(\w+)"\} ([\d.]+)', page))
    assert {kind: float(count) for kind, count in counted.items() if kind != "text_message"} == {
        "undecodable": 3,  # two torn messages, one torn WAV
        "unknown": 2,  # an empty one, and one of a later dialect
        "text": 1,
        "odd_byte": 1,
    }


def test_messages_split_anywhere_and_fragmented_are_whole(agent: Server) -> None:
    chunks = [tone(0.4)[start : start + 640] for start in range(0, 12_800, 640)] + [bytes(640)] * 20
    whole = b"".join(masked(audio_message(chunk)) for chunk in chunks)
    first = audio_message(bytes(640))
    fragmented = masked(first[:100], 0x02) + masked(b"hi", 0x89) + masked(first[100:], 0x80)
    with socket.create_connection(("127.0.0.1", agent.port), timeout=10) as connection:
        connection.sendall(HANDSHAKE)
        read_until(connection, b"\r\n\r\n")
        connection.sendall(fragmented)
        assert b"\x8a\x02hi" in read_until(connection, b"\x8a\x02hi")  # the ping amid the fragments is answered
        for start in range(0, len(whole), 97):
            connection.sendall(whole[start : start + 97])
        read_until(connection, b"bot-stopped-speaking")
    assert turns_of(agent, "raw")[0]["outcome"] == "ok"
    no_calls(agent)


@pytest.mark.parametrize(
    ("size", "head"),
    [(0, 6), (125, 6), (126, 8), (65_535, 8), (65_536, 14)],
)
def test_the_span_of_a_frame_is_known_once_its_head_is_there(size: int, head: int) -> None:
    if head == 6:
        data = bytes([0x82, 0x80 | size])
    else:
        data = b"\x82\xfe" + size.to_bytes(2) if head == 8 else b"\x82\xff" + size.to_bytes(8)
    for kept in range(len(data)):
        assert frame_span(b"xx" + data[:kept], 2) is None
    assert frame_span(b"xx" + data, 2) == (2 + head, 2 + head + size)


def test_an_unmasked_frame_is_a_protocol_error(agent: Server) -> None:
    with socket.create_connection(("127.0.0.1", agent.port), timeout=10) as connection:
        connection.sendall(HANDSHAKE)
        read_until(connection, b"\r\n\r\n")
        connection.sendall(b"\x82\x01\x00")
        assert (1002).to_bytes(2) in read_until(connection, (1002).to_bytes(2))
    no_calls(agent)


def test_one_who_vanishes_amid_an_answer_is_a_row_of_its_own(tmp_path: Path) -> None:
    with running_server("--engine", "tone", "--tone-seconds", "30", trace=tmp_path / "trace.jsonl") as server:
        with call(server.port, "/ws/gone") as caller:
            caller.say(0.3)
            caller.stay_silent_until(lambda: caller.heard(3))
            caller.connection.socket.shutdown(socket.SHUT_RDWR)
        row = turns_of(server, "gone")[0]
        assert row["outcome"] == "client_gone"
        assert 0 < row["audio_s"] < 30
        no_calls(server)


def test_a_half_open_connection_is_noticed(agent: Server) -> None:
    with socket.create_connection(("127.0.0.1", agent.port), timeout=10) as connection:
        connection.sendall(HANDSHAKE)
        read_until(connection, b"\r\n\r\n")
        no_calls(agent)  # although this end is still open, and has said nothing


def test_one_who_sends_nothing_but_answers_pings_stays(agent: Server) -> None:
    with call(agent.port, "/ws/quiet") as caller:
        assert not caller.closed.wait(1.3)
        caller.say(0.3)
        caller.stay_silent_until(caller.bot_stopped)
    no_calls(agent)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_amid_an_answer(tmp_path: Path, number: int) -> None:
    log = tmp_path / "agent.log"
    options = ("--engine", "tone", "--tone-seconds", "300", "--agent-log", str(log))
    with running_server(*options, trace=tmp_path / "trace.jsonl") as server:
        with call(server.port, "/ws/stopped") as caller:
            caller.say(0.3)
            caller.stay_silent_until(lambda: caller.heard(3))
            started = time.monotonic()
            assert server.stop(number) == 0
            assert time.monotonic() - started < 8
            assert caller.close_code() == 1012
        assert turns_of(server, "stopped")[0]["outcome"] == "failed"
        assert server.stderr_lines == []
    assert "Client disconnected" in log.read_text()


class Line:
    """A connection that only remembers."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.closed_with: tuple[int, str] | None = None

    def send(self, message: bytes) -> None:
        self.sent.append(message)

    def close(self, code: int, reason: str) -> None:
        self.closed_with = (code, reason)


@pytest.mark.parametrize(("chunks", "fails", "closed"), [(0, True, 1011), (3, True, 1011), (0, False, None)])
def test_a_failing_engine_closes_with_1011_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], chunks: int, fails: bool, closed: int | None
) -> None:
    async def talk() -> Line:
        service = Service(FailingEngine(chunks, fails), Settings(), TraceLog(tmp_path / "trace.jsonl", "failing"))
        service.warm = True
        calls = Calls(service, AgentSettings(log=tmp_path / "agent.log"))
        line: Any = Line()
        listener = calls.door("/ws/fire", {})  # type: ignore[arg-type]
        listener.opened(line)
        listener.message(audio_message(tone(0.3) + silence(0.4)), 5.0)
        async with asyncio.timeout(10):
            while not read_agent_turns(tmp_path / "trace.jsonl"):
                await asyncio.sleep(0.005)
        calls.close_log()
        service.close()
        assert isinstance(line, Line)
        return line

    line = asyncio.run(talk())
    (row,) = read_agent_turns(tmp_path / "trace.jsonl")
    assert row["outcome"] == "failed"
    assert (line.closed_with or (None,))[0] == closed
    assert capsys.readouterr().err.count("the engine caught fire") == (1 if fails else 0)


@pytest.mark.parametrize("text", ["asr", "asr=x", "vad=1", "llm=-1", "asr=1;llm=2", ""])
def test_wrong_delays_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"delay|stage"):
        parse_delays(text)


def test_the_id_in_a_path_fits_into_a_line() -> None:
    assert stream_id_of("/ws/a%20b%0Ac?x=1") == "a_b_c"
    assert stream_id_of("/ws/" + "x" * 999) == "x" * 200
    assert stream_id_of("/other/x") is None

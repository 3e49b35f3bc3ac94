"""The bundled full-duplex endpoint, over real sockets: PersonaPlex's wire and habits, and truths in its trace."""

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import numpy.typing as npt
import pytest
import sphn
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gpu_server.duplex_settings import WAITING_MOST
from gpu_server.reply import REPLIES
from gpu_server.trace import DuplexAnswer, DuplexSession, read_duplex, read_trace
from tests.server_process import Server, running_server

RATE, CHUNK = 24_000, 1_920
CHUNK_S = CHUNK / RATE
CODEC_DELAY = 154  # samples by which libopus is late
TONE_S = 0.06  # a character, of the tone engine
QUERY = "voice_prompt=NATF0.pt&text_prompt=You%20enjoy%20having%20a%20good%20conversation."
FAST = ("--engine", "tone", "--duplex-prompt-s", "0.05")
WAIT_S = 10.0

Floats = npt.NDArray[np.float32]


def voice(seconds: float) -> Floats:
    t = np.arange(round(seconds * RATE)) / RATE
    return (0.3 * np.cos(2 * np.pi * 300 * t) * (1 + 0.5 * np.sin(2 * np.pi * 4 * t))).astype(np.float32)


def silence(seconds: float) -> Floats:
    return np.zeros(round(seconds * RATE), np.float32)


def encoded(*parts: Floats) -> list[bytes]:
    """A message a chunk; the first has OpusHead and OpusTags in it."""
    samples = np.concatenate(parts)
    samples = np.concatenate((samples, np.zeros(-len(samples) % CHUNK, np.float32)))
    writer = sphn.OpusStreamWriter(RATE)
    return [b"\x01" + bytes(writer.append_pcm(chunk)) for chunk in samples.reshape(-1, CHUNK)]


class Client:
    """One session as a client sees it."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.came: list[tuple[float, bytes]] = []
        self.sent_at: list[float] = []

    @property
    def port(self) -> int:
        return int(self.socket.local_address[1])

    async def next(self) -> bytes:
        message = await asyncio.wait_for(self.socket.recv(), WAIT_S)
        assert isinstance(message, bytes)
        self.came.append((time.monotonic(), message))
        return message

    async def shake_hands(self) -> None:
        for _ in range(3):
            await self.next()

    async def converse(self, messages: list[bytes], every_s: float = 0.004) -> None:
        """Send a message a step, and take what comes, until a chunk has come for each or the server ends it."""
        before = self.chunks_out

        async def send() -> None:
            for message in messages:
                self.sent_at.append(time.monotonic())
                await self.socket.send(message)
                await asyncio.sleep(every_s)

        sending = asyncio.create_task(send())
        try:
            while self.chunks_out < before + len(messages):
                await self.next()
            await self.settle()
        except ConnectionClosed:
            pass
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def settle(self) -> None:
        """Everything that was sent before the answer to a ping has come."""
        pong = await self.socket.ping()
        while not pong.done():
            receiving = asyncio.ensure_future(self.socket.recv())
            await asyncio.wait((receiving, pong), timeout=WAIT_S, return_when=asyncio.FIRST_COMPLETED)
            if receiving.done():
                self.came.append((time.monotonic(), receiving.result()))  # type: ignore[arg-type]
            else:
                receiving.cancel()
                await asyncio.gather(receiving, return_exceptions=True)

    @property
    def audio(self) -> list[bytes]:
        """Payloads of audio messages after OpusHead and OpusTags."""
        return [message[1:] for _, message in self.came if message[:1] == b"\x01"][2:]

    @property
    def chunks_out(self) -> int:
        return len(self.audio)

    @property
    def texts(self) -> list[tuple[int, bytes]]:
        """Pieces of text, and the number of the chunk that each came after."""
        chunks, found = -3, []
        for _, message in self.came:
            chunks += message[:1] == b"\x01"
            if message[:1] == b"\x02":
                found.append((chunks, message[1:]))
        return found

    def heard(self) -> Floats:
        reader = sphn.OpusStreamReader(RATE)
        parts = [reader.append_bytes(message[1:]) for _, message in self.came if message[:1] == b"\x01"]
        return np.concatenate(parts)


@asynccontextmanager
async def client(port: int, query: str = QUERY, **options: Any) -> AsyncIterator[Client]:
    url = f"ws://127.0.0.1:{port}/api/chat?{query}"
    async with connect(url, ping_interval=None, compression=None, close_timeout=2, **options) as opened:
        yield Client(opened)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def ended(server: Server, port: int) -> DuplexSession:
    """The row of the session whose client had this port."""
    trace = server.trace
    assert trace is not None

    def probe() -> DuplexSession | None:
        return next((row for row in read_duplex(trace)[0] if row["client"].endswith(f":{port}")), None)

    return server.until(probe)


def answers(server: Server, port: int) -> list[DuplexAnswer]:
    session = ended(server, port)["duplex_session"]
    assert server.trace is not None
    return [row for row in read_duplex(server.trace)[1] if row["duplex_session"] == session]


def loud(samples: Floats) -> tuple[int, int]:
    """First and last sample that a tone of 12,000 must have made."""
    found = np.flatnonzero(np.abs(samples) > 0.1)
    return int(found[0]), int(found[-1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("duplex")
    log = folder / "duplex.log"
    with running_server(*FAST, "--sessions", "20", "--duplex-log", str(log), trace=folder / "trace.jsonl") as running:
        yield running


def faulty(tmp_path: Path, *faults: str) -> Any:
    spoilt = [word for fault in faults for word in ("--fault", fault)]
    return running_server(*FAST, *spoilt, trace=tmp_path / "trace.jsonl")


# The wire


def test_handshake_head_and_tags_come_first_and_then_a_chunk_for_a_chunk(server: Server) -> None:
    async def work() -> None:
        async with client(server.port) as session:
            await session.shake_hands()
            kinds = [message for _, message in session.came]
            assert kinds[0] == b"\x00"
            assert kinds[1].startswith(b"\x01OggS")
            assert kinds[1][29:37] == b"OpusHead"
            assert kinds[2][29:37] == b"OpusTags"
            await session.settle()
            assert len(session.came) == 3  # nothing more without input
            await session.converse(encoded(silence(0.4)))
            assert session.chunks_out == 5
            await session.settle()
            assert session.chunks_out == 5
            assert len(session.heard()) == 5 * CHUNK
            assert np.abs(session.heard()).max() < 1e-3

    run(work())


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("text_prompt=x", "KeyError: 'voice_prompt'"),
        ("voice_prompt=NATF0.pt", "KeyError: 'text_prompt'"),
        ("voice_prompt=&text_prompt=x", "no suitable format reader found"),
        ("voice_prompt=NATF0.pt&text_prompt=", "TypeError"),
        ("voice_prompt=NATF0&text_prompt=x", "FileNotFoundError: Requested voice prompt 'NATF0' not found"),
        ("voice_prompt=VARM5.pt&text_prompt=x", "FileNotFoundError: Requested voice prompt 'VARM5.pt' not found"),
        (QUERY + "&seed=1", "KeyError: 'seed'"),
    ],
)
def test_wrong_parameters_are_101_and_then_1006(server: Server, query: str, reason: str) -> None:
    async def work() -> None:
        async with client(server.port, query) as session:
            with pytest.raises(ConnectionClosed):
                await session.next()
            assert session.came == []
            assert session.socket.close_code == 1006
        row = ended(server, session.port)
        assert row["outcome"] == "bad_parameters"
        assert reason in (row["error"] or "")
        assert row["lock_at"] is None

    run(work())


def test_voices_of_both_kinds_are_known(server: Server) -> None:
    async def work() -> None:
        for voice_prompt in ("NATM3.pt", "VARF4.pt", "VARM4.pt"):
            async with client(server.port, f"voice_prompt={voice_prompt}&text_prompt=x") as session:
                assert await session.next() == b"\x00"

    run(work())


def test_what_came_before_the_handshake_is_swallowed_and_the_lost_head_ends_the_session(server: Server) -> None:
    async def work() -> None:
        messages = encoded(silence(1.0))
        async with client(server.port) as session:
            await session.socket.send(messages[0])
            await session.shake_hands()
            await session.socket.send(messages[1])
            with pytest.raises(ConnectionClosed):
                await session.next()
            assert session.socket.close_code == 1000
            assert session.chunks_out == 0
        row = ended(server, session.port)
        assert (row["outcome"], row["swallowed"], row["chunks_in"]) == ("undecodable", 1, 0)

    run(work())


def test_what_is_no_page_ends_the_session_and_no_other(server: Server) -> None:
    async def work() -> None:
        messages = encoded(silence(1.0))
        async with client(server.port) as well, client(server.port) as ill:
            for session in (well, ill):
                await session.shake_hands()
                await session.converse(messages[:3])
            await ill.socket.send(b"\x01garbage that is no page")
            await ill.socket.send(messages[3])
            await ill.converse(messages[4:])
            assert ill.socket.close_code == 1000
            await well.converse(messages[3:6])
            assert well.chunks_out == 6
        assert ended(server, ill.port)["outcome"] == "undecodable"
        assert ended(server, well.port)["outcome"] == "client_gone"

    run(work())


def test_a_page_with_a_wrong_checksum_is_decoded_all_the_same(server: Server) -> None:
    async def work() -> None:
        messages = encoded(silence(0.16), voice(0.4))
        messages[3] = messages[3][:-4] + bytes(byte ^ 0xFF for byte in messages[3][-4:])
        async with client(server.port) as session:
            await session.shake_hands()
            await session.converse(messages)
            assert session.chunks_out == len(messages)

    run(work())


def test_messages_of_other_kinds_are_counted_and_harm_nothing(server: Server) -> None:
    async def work() -> None:
        messages = encoded(silence(0.4))
        async with client(server.port) as session:
            await session.shake_hands()
            await session.converse(messages[:2])
            for odd in (b"\x03\x00", b"", "text", b"\x02hello"):
                await session.socket.send(odd)
            await session.converse(messages[2:])
            assert session.chunks_out == 5
        assert ended(server, session.port)["ignored"] == 4

    run(work())


def test_a_message_that_is_too_big_is_refused(server: Server) -> None:
    async def work() -> None:
        async with client(server.port) as session:
            await session.shake_hands()
            await session.socket.send(b"\x01" + bytes(40_000))
            with pytest.raises(ConnectionClosed):
                await session.next()
            assert session.socket.close_code == 1009

    run(work())


# The lock


def test_others_wait_in_order_silently_and_deaf_to_pings(tmp_path: Path) -> None:
    async def work(server: Server) -> None:
        async with client(server.port) as first:
            await first.shake_hands()
            async with client(server.port) as second, client(server.port) as third:
                pong = await second.socket.ping()
                # The first is served while the others wait: what they were sent would have come by then.
                await first.converse(encoded(silence(0.8)))
                health = await asyncio.to_thread(_health, server)
                assert (health["sessions"], health["sessions_waiting"], health["sessions_most"]) == (1, 2, 1)
                assert not pong.done()
                await first.socket.close()
                assert await second.next() == b"\x00"
                assert not pong.done()
                await second.settle()  # now it answers
                await second.socket.close()
                assert await third.next() == b"\x00"
        rows = [ended(server, session.port) for session in (first, second, third)]
        for ahead, behind in pairwise(rows):
            assert ahead["closed_at"] <= (behind["lock_at"] or 0.0)
        for row in rows:
            assert (row["handshake_at"] or 0.0) >= (row["lock_at"] or 0.0) + 0.05
            assert (row["lock_at"] or 0.0) >= row["connected_at"]

    with running_server(*FAST, trace=tmp_path / "trace.jsonl") as server:
        run(work(server))


def test_who_leaves_the_line_frees_nothing_and_blocks_nobody(tmp_path: Path) -> None:
    async def work(server: Server) -> None:
        async with client(server.port) as first:
            await first.shake_hands()
            async with client(server.port) as second:
                pass
            async with client(server.port) as third:
                assert ended(server, second.port)["lock_at"] is None
                await first.socket.close()
                assert await third.next() == b"\x00"

    with running_server(*FAST, trace=tmp_path / "trace.jsonl") as server:
        run(work(server))


def upgrade(port: int) -> socket.socket:
    """A connection that has asked for a session, and has read nothing."""
    request = f"GET /api/chat?{QUERY} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    request += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", port), WAIT_S)
    connection.sendall(request.encode())
    return connection


def test_who_waits_is_never_pinged_nor_taken_for_dead() -> None:
    async def work(server: Server) -> None:
        async with client(server.port) as first:
            await first.shake_hands()
            with upgrade(server.port) as waiting:
                assert waiting.recv(4096).endswith(b"\r\n\r\n")
                await first.converse(encoded(silence(8.0)))  # 0.4 s at least: eight times as long as a silence may be
                waiting.setblocking(False)
                with pytest.raises(BlockingIOError):
                    waiting.recv(1)

    with running_server(*FAST, "--agent-ping-s", "0.05") as server:
        run(work(server))


def test_a_line_that_is_full_is_503() -> None:
    with running_server(*FAST) as server:
        opened = []
        try:
            statuses = []
            for _ in range(WAITING_MOST + 2):
                opened.append(upgrade(server.port))
                statuses.append(opened[-1].recv(12)[-3:])
        finally:
            for connection in opened:
                connection.close()
        assert statuses == [b"101"] * (WAITING_MOST + 1) + [b"503"]


def test_a_token_is_asked_for_before_the_upgrade() -> None:
    async def work(server: Server) -> None:
        with pytest.raises(InvalidStatus) as refused:
            async with client(server.port):
                pass
        assert refused.value.response.status_code == 401
        async with client(server.port, additional_headers={"authorization": "Bearer secret"}) as session:
            assert await session.next() == b"\x00"

    with running_server(*FAST, env={"CICADA_SERVER_TOKEN": "secret"}) as server:
        run(work(server))


# Pacing


def test_a_model_slower_than_its_audio_falls_behind_by_0_2_s_a_second(tmp_path: Path) -> None:
    async def work(server: Server) -> None:
        messages = encoded(silence(2.4))
        async with client(server.port) as session:
            await session.shake_hands()
            await session.converse(messages, every_s=CHUNK_S)
        got_at = np.array([at for at, message in session.came if message[:1] == b"\x01"][2:])
        sent_at = np.array(session.sent_at)
        assert len(got_at) == len(sent_at) == 30  # nothing is dropped
        steady = got_at < sent_at[-1]
        # What was really sent, so that a client that was late changes nothing.
        sent_s = np.interp(got_at[steady], sent_at, np.arange(1, 31) * CHUNK_S)
        lag_s = sent_s - np.arange(1, steady.sum() + 1) * CHUNK_S
        sending_rate = np.polyfit(sent_at, np.arange(30) * CHUNK_S, 1)[0]
        assert np.polyfit(got_at[steady], lag_s, 1)[0] == pytest.approx(sending_rate - 0.8, abs=0.01)
        row = ended(server, session.port)
        assert row["lag_max_s"] == pytest.approx(got_at[-1] - sent_at[-1], abs=0.03)

    with running_server(*FAST, "--duplex-step-ms", "100", trace=tmp_path / "trace.jsonl") as server:
        run(work(server))


# Answers

TURN = (silence(0.32), voice(0.8))


def answer_s(reply: str) -> float:
    return sum(TONE_S * len(sentence) for sentence in re.split(r"(?<=[.!?]) ", reply))


def test_an_answer_is_heard_where_the_trace_says(server: Server) -> None:
    async def work() -> None:
        async with client(server.port) as session:
            await session.shake_hands()
            await session.converse(encoded(*TURN, silence(7.0)))
        (answer,) = answers(server, session.port)
        first, last = loud(session.heard())
        onset, offset = answer["onset_position_s"] or 0.0, answer["offset_position_s"] or 0.0
        assert round(onset * RATE) % CHUNK == 0
        assert first - CODEC_DELAY == pytest.approx(onset * RATE, abs=0.003 * RATE)
        assert last - CODEC_DELAY == pytest.approx(offset * RATE, abs=0.003 * RATE)
        assert offset - onset == pytest.approx(answer_s(REPLIES[0]), abs=0.001)
        spoken_until_s = sum(map(len, TURN)) / RATE
        assert spoken_until_s + 0.2 <= (answer["end_of_speech_position_s"] or 0.0) <= spoken_until_s + 0.26
        assert onset >= (answer["end_of_speech_position_s"] or 0.0) - CHUNK_S
        number = round(onset * RATE) // CHUNK
        arrived_at = [at for at, message in session.came if message[:1] == b"\x01"][2:]
        assert session.sent_at[number] <= (answer["onset_sent_at"] or 0.0) <= arrived_at[number]
        assert answer["onset_at"] == answer["onset_sent_at"]
        assert (answer["outcome"], answer["fault"]) == ("ok", None)

    run(work())


def test_pieces_of_text_are_spread_over_the_sentence_they_belong_to(server: Server) -> None:
    async def work() -> None:
        async with client(server.port) as session:
            await session.shake_hands()
            await session.converse(encoded(*TURN, silence(7.0)))
        (answer,) = answers(server, session.port)
        assert b"".join(piece for _, piece in session.texts).decode() == " " + REPLIES[0]
        assert answer["pieces"] == len(session.texts) == len(REPLIES[0].split())
        assert answer["text"] == REPLIES[0]
        begin = round((answer["onset_position_s"] or 0.0) * RATE) // CHUNK
        expected, at = [], 0
        for sentence in re.split(r"(?<=[.!?]) ", REPLIES[0]):
            words, samples = sentence.split(), round(TONE_S * len(sentence) * RATE)
            expected += [begin + (at + i * samples // len(words)) // CHUNK for i in range(len(words))]
            at += samples
        assert [chunk for chunk, _ in session.texts] == expected
        row = ended(server, session.port)
        assert row["pieces"] == answer["pieces"]
        assert (answer["onset_sent_at"] or 0.0) <= (row["first_piece_at"] or 0.0)

    run(work())


def test_turns_of_a_session_get_the_replies_in_their_order(server: Server) -> None:
    async def work() -> None:
        async with client(server.port) as session:
            await session.shake_hands()
            await session.converse(encoded(*TURN, silence(6.0), *TURN, silence(5.0)))
        said = answers(server, session.port)
        assert [answer["text"] for answer in said] == list(REPLIES[:2])
        assert [answer["duplex_answer"] for answer in said] == [0, 1]

    run(work())


def test_an_agent_that_is_interrupted_stops_within_a_chunk(server: Server) -> None:
    async def work() -> None:
        async with client(server.port) as session:
            await session.shake_hands()
            await session.converse(encoded(*TURN, silence(1.6), voice(0.8), silence(6.0)))
        first, second = answers(server, session.port)
        assert (first["outcome"], second["outcome"]) == ("interrupted", "ok")
        began_s = sum(map(len, TURN)) / RATE + 1.6
        certain_s = first["interrupted_position_s"] or 0.0
        assert began_s + 0.04 <= certain_s <= began_s + 0.12
        stopped = loud(session.heard()[: round(RATE * (second["onset_position_s"] or 0.0))])[1] - CODEC_DELAY
        assert stopped <= certain_s * RATE + 0.003 * RATE
        assert stopped == pytest.approx((first["offset_position_s"] or 0.0) * RATE, abs=0.003 * RATE)
        assert first["pieces"] < len(REPLIES[0].split())

    run(work())


def test_an_agent_that_does_not_yield_goes_on_and_answers_afterwards(tmp_path: Path) -> None:
    async def work(server: Server) -> None:
        async with client(server.port) as session:
            await session.shake_hands()
            await session.converse(encoded(*TURN, silence(1.6), voice(0.8), silence(9.0)))
        first, second = answers(server, session.port)
        assert (first["outcome"], first["fault"], first["text"]) == ("ok", "no_yield", REPLIES[0])
        assert first["audio_s"] == pytest.approx(answer_s(REPLIES[0]), abs=0.001)
        assert (second["onset_position_s"] or 0.0) > (first["offset_position_s"] or 0.0)

    with faulty(tmp_path, "no_yield:p=1") as server:
        run(work(server))


# Faults


def faulty_answer(tmp_path: Path, *faults: str) -> tuple[Client, DuplexAnswer, DuplexSession]:
    """One turn on a server with faults: what the client got and what the trace says."""
    got: list[Client] = []

    async def work(server: Server) -> None:
        async with client(server.port) as session:
            await session.shake_hands()
            await session.converse(encoded(*TURN, silence(2.0)))
            got.append(session)

    with faulty(tmp_path, *faults) as server:
        run(work(server))
        return got[0], answers(server, got[0].port)[0], ended(server, got[0].port)


def test_silence_before_speech_puts_the_onset_inside_a_chunk(tmp_path: Path) -> None:
    session, answer, _ = faulty_answer(tmp_path, "silence:p=1,s=0.1234")
    onset = (answer["onset_position_s"] or 0.0) * RATE
    inside = round(onset) % CHUNK
    assert inside == round(0.1234 * RATE) % CHUNK
    assert loud(session.heard())[0] - CODEC_DELAY == pytest.approx(onset, abs=0.003 * RATE)
    assert (answer["onset_at"] or 0.0) - (answer["onset_sent_at"] or 0.0) == pytest.approx(inside / RATE, abs=1e-6)
    assert session.texts[0][0] == round(onset) // CHUNK  # the first word comes with its sound


def test_a_delayed_answer_comes_so_much_later_in_the_stream(tmp_path: Path) -> None:
    _, answer, _ = faulty_answer(tmp_path, "delay:p=1,s=0.8")
    late_s = (answer["onset_position_s"] or 0.0) - (answer["end_of_speech_position_s"] or 0.0)
    assert late_s >= 0.8 - CHUNK_S
    assert (answer["fault"], answer["fault_s"]) == ("delay", pytest.approx(0.8))


def test_a_stalled_answer_pauses_and_catches_up(tmp_path: Path) -> None:
    session, answer, row = faulty_answer(tmp_path, "stall:p=1,after_s=0.4,s=0.3")
    assert answer["fault"] == "stall"
    number = round((answer["onset_position_s"] or 0.0) * RATE) // CHUNK + 5
    arrived_at = np.array([at for at, message in session.came if message[:1] == b"\x01"][2:])
    assert np.argmax(np.diff(arrived_at)) == number - 1
    assert np.diff(arrived_at).max() >= 0.25
    assert row["chunks_out"] == row["chunks_in"] == len(arrived_at)
    assert (row["lag_max_s"] or 0.0) >= 0.3


@pytest.mark.parametrize(
    ("fault", "outcome", "code", "chunks"),
    [
        ("cut:p=1,after_s=0.4", "cut", 1006, 5),
        ("close:p=1,after_s=0.4", "close", 1000, 5),
        ("error:p=1,status=500", "error", 1011, 0),
    ],
)
def test_a_session_ends_as_the_fault_says(tmp_path: Path, fault: str, outcome: str, code: int, chunks: int) -> None:
    session, answer, row = faulty_answer(tmp_path, fault)
    assert session.socket.close_code == code
    assert (row["outcome"], answer["outcome"], answer["fault"]) == (outcome, "failed", fault.partition(":")[0])
    assert answer["audio_s"] == pytest.approx(chunks * CHUNK_S)
    assert session.chunks_out == row["chunks_out"]


def test_garbage_is_a_kind_that_nobody_knows_and_a_page_that_is_corrupted(tmp_path: Path) -> None:
    session, answer, row = faulty_answer(tmp_path, "garbage:p=1")
    assert [message for _, message in session.came if message[:1] not in (b"\x00", b"\x01", b"\x02")] == [b"\x09"]
    assert [number for number, payload in enumerate(session.audio) if not _whole(payload)] != []
    assert (answer["outcome"], answer["fault"], answer["audio_s"]) == ("failed", "garbage", 0.0)
    assert row["chunks_out"] == row["chunks_in"]


def test_one_page_is_corrupted_and_one_piece_of_text_is_no_utf_8(tmp_path: Path) -> None:
    session, answer, _ = faulty_answer(tmp_path, "bad_page:p=1", "bad_text:p=1")
    begin = round((answer["onset_position_s"] or 0.0) * RATE) // CHUNK
    assert [number for number, payload in enumerate(session.audio) if not _whole(payload)] == [begin + 1]
    bad = []
    for number, (_, piece) in enumerate(session.texts):
        try:
            piece.decode()
        except UnicodeDecodeError:
            bad.append(number)
    assert bad == [1]
    assert answer["fault"] == "bad_page,bad_text"


def test_an_early_agent_speaks_over_the_user(tmp_path: Path) -> None:
    _, answer, _ = faulty_answer(tmp_path, "early:p=1,s=0.3")
    began_s = len(TURN[0]) / RATE
    assert began_s + 0.3 - CHUNK_S <= (answer["onset_position_s"] or 0.0) <= began_s + 0.3 + 0.3
    assert answer["fault"] == "early"
    assert answer["end_of_speech_position_s"] is not None


def test_a_mute_agent_never_answers(tmp_path: Path) -> None:
    session, answer, _ = faulty_answer(tmp_path, "mute:p=1")
    assert np.abs(session.heard()).max() < 1e-3
    assert session.texts == []
    assert (answer["outcome"], answer["onset_position_s"]) == ("mute", None)


def _whole(payload: bytes) -> bool:
    """Whether each page's checksum is right, bit by bit as RFC 3533 has it."""
    begin = 0
    while begin < len(payload):
        segments = payload[begin + 26]
        end = begin + 27 + segments + sum(payload[begin + 27 : begin + 27 + segments])
        told = int.from_bytes(payload[begin + 22 : begin + 26], "little")
        register = 0
        for byte in payload[begin : begin + 22] + bytes(4) + payload[begin + 26 : end]:
            register ^= byte << 24
            for _ in range(8):
                register = (register << 1 ^ (0x04C11DB7 if register & 0x80000000 else 0)) & 0xFFFFFFFF
        if register != told:
            return False
        begin = end
    return True


# Accounts


def _health(server: Server) -> dict[str, Any]:
    with urlopen(f"{server.url}/health", timeout=WAIT_S) as answer:
        read: dict[str, Any] = json.load(answer)
        return read


def test_pages_count_on_and_their_checksums_are_right(server: Server) -> None:
    async def work() -> None:
        async with client(server.port) as session:
            await session.shake_hands()
            await session.converse(encoded(*TURN, silence(1.0)))
        pages = b"".join(message[1:] for _, message in session.came if message[:1] == b"\x01")
        assert _whole(pages)
        begins = [found.start() for found in re.finditer(b"OggS", pages)]
        assert [int.from_bytes(pages[at + 18 : at + 22], "little") for at in begins] == list(range(len(begins)))
        granules = [int.from_bytes(pages[at + 6 : at + 14], "little") for at in begins]
        assert granules == [0, 0] + [1920 * number for number in range(1, len(begins) - 1)]

    run(work())


def test_the_trace_has_a_session_and_no_bad_line(server: Server) -> None:
    async def work() -> None:
        async with client(server.port) as session:
            await session.shake_hands()
            await session.converse(encoded(silence(0.8)))
        row = ended(server, session.port)
        instants = [row["connected_at"], row["lock_at"], row["handshake_at"], row["closed_at"]]
        assert instants == sorted(instant for instant in instants if instant is not None)
        assert (row["chunks_in"], row["chunks_out"], row["pieces"]) == (10, 10, 0)
        assert (row["voice_prompt"], row["outcome"], row["first_piece_at"]) == ("NATF0.pt", "client_gone", None)
        assert server.trace is not None
        assert read_trace(server.trace)[2] == 0

    run(work())


_COLOURED = re.compile(r"\x1b\[(\d+)m\[([0-9A-Z]{4})\] \x1b\[0m\x1b\[\1m(.*)\x1b\[0m")


def test_the_log_reads_as_the_real_servers_does(tmp_path: Path) -> None:
    log = tmp_path / "personaplex.log"

    async def work(server: Server) -> None:
        async with client(server.port) as session:
            await session.shake_hands()
        ended(server, session.port)
        async with client(server.port, "voice_prompt=NATF0.pt&text_prompt=two%0Alines%1b") as session:
            await session.shake_hands()
        ended(server, session.port)
        async with client(server.port, "text_prompt=x") as session:
            with pytest.raises(ConnectionClosed):
                await session.next()
        ended(server, session.port)

    with running_server(*FAST, "--duplex-log", str(log), trace=tmp_path / "trace.jsonl") as server:
        run(work(server))
    lines = log.read_text(encoding="utf-8").splitlines()
    said = [found[3] if (found := _COLOURED.fullmatch(line)) else line for line in lines]
    path = "/models/voices/NATF0.pt"

    def served(prompt: str) -> list[str]:
        return [
            "accepted connection",
            f"text prompt: {prompt}",
            f"voice prompt: {path} (requested: {path})",
            "Done loading audio silence.",
            "Done loading text prompt.",
            "Done loading audio silence.",
            "done with system prompts",
            "sent handshake bytes",
            "connection closed",
            "session closed",
            "done with connection",
        ]

    assert [line for line in said if not line.startswith("Incoming connection from 127.0.0.1:")] == [
        *served("You enjoy having a good conversation."),
        *served("two lines_"),
        "Error handling request",
        "Traceback (most recent call last):",
        "KeyError: 'voice_prompt'",
    ]
    assert len(said) == 2 * 12 + 4


def test_a_session_that_the_server_ends_by_stopping_is_written_down(tmp_path: Path) -> None:
    async def work(server: Server) -> None:
        async with client(server.port) as session:
            await session.shake_hands()
            await session.converse(encoded(*TURN, silence(0.8)))
            await asyncio.to_thread(server.stop)
        assert ended(server, session.port)["outcome"] == "stopped"
        (answer,) = answers(server, session.port)
        assert answer["outcome"] == "failed"  # half said

    with running_server(*FAST, trace=tmp_path / "trace.jsonl") as server:
        run(work(server))


def test_metrics_and_health_know_of_sessions(server: Server) -> None:
    async def work() -> None:
        async with client(server.port) as session:
            await session.shake_hands()
            health = await asyncio.to_thread(_health, server)
            assert health["sessions"] >= 1
            assert health["sessions_most"] == 20
            assert health["duplex_mock"] is True
            with urlopen(f"{server.url}/metrics", timeout=WAIT_S) as answer:
                metrics = answer.read().decode()
            assert re.search(r"^gpu_server_sessions [1-9]", metrics, re.MULTILINE)

    run(work())

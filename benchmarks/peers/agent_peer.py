"""The voice agent of agent_peer.c in Python, with the same command line, for machines without a C compiler.

It costs several times as much, and stamps arrivals by its own clock: `user_recv_ns` is `user_read_ns`.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import random
import ssl
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np

CHUNK, CHUNK_NS, RATE, LOUD = 320, 20_000_000, 16_000, 500
BEFORE, SLOT_S = 50, 0.001
SAMPLE_NS = 1_000_000_000 // RATE
_TAIL = b"\x20\x80\x7d\x28\x01"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Agent:
    """What all calls share: the answer, the files, the counts since GET /forget."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.random = random.Random(options.seed)
        silence = bytes(2 * CHUNK)
        self.voice = Path(options.answer).read_bytes()
        self.voice_samples = len(self.voice) // 2
        self.padded = silence + self.voice + silence * 2
        self.silence = silence
        self.trace: TextIO | None = open(options.trace, "w") if options.trace else None  # noqa: SIM115
        self.receipts: Any = open(options.receipts, "wb") if options.receipts else None  # noqa: SIM115
        self.calls: set[Call] = set()
        self.opened = 0
        self.forget()

    def forget(self) -> None:
        self.sent = self.heard = self.skipped = self.answers = self.talked_over = self.cut = 0
        self.written_late: list[int] = []
        self.heard_late: list[int] = []
        self.began_at, self.began_cpu_s = time.monotonic(), time.process_time()

    def figures(self) -> dict[str, Any]:
        for file in (self.trace, self.receipts):
            if file is not None:
                file.flush()
        took_s = time.monotonic() - self.began_at
        return {
            "calls": len(self.calls),
            "seconds": round(took_s, 3),
            "cpu_share": (time.process_time() - self.began_cpu_s) / took_s,
            "chunks_sent": self.sent,
            "chunks_heard": self.heard,
            "skipped": self.skipped,
            "answers": self.answers,
            "talked_over": self.talked_over,
            "cut_answers": self.cut,
            "written_late_ms": _quantiles(self.written_late),
            "heard_late_ms": _quantiles(self.heard_late),
        }

    async def run_slots(self) -> None:
        while True:
            now_ns = time.monotonic_ns()
            for call in list(self.calls):
                while call.due_ns <= now_ns and not call.transport.is_closing():
                    call.say()
            await asyncio.sleep(SLOT_S)


class Call(asyncio.Protocol):
    """One connection: a call, or a question for figures."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.inbox = bytearray()
        self.up = False
        self.stream = ""
        self.number = self.turns = self.sent = self.spoken_ns = self.earliest_ns = self.quiet = 0
        self.user_spoke = self.answering = False
        self.due_ns = self.reply_ns = self.answer_at = 0
        self.late_us: list[int] = []
        self.latest_us = 0
        self.turn: dict[str, Any] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def connection_lost(self, _: Exception | None) -> None:
        self.agent.calls.discard(self)
        self.agent.cut += self.answering

    def data_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        self.inbox += data
        if not self.up and not self._open():
            return
        inbox, at = self.inbox, 0
        while len(inbox) - at >= 2:
            length, head = inbox[at + 1] & 127, 2
            if length > 125:
                head = 4 if length == 126 else 10
                length = int.from_bytes(inbox[at + 2 : at + head], "big")
            key = bytes(inbox[at + head : at + head + 4])
            head += 4
            if len(inbox) - at < head + length:
                break
            self._message(inbox[at] & 15, bytes(inbox[at + head : at + head + length]), key, now_ns)
            at += head + length
        del inbox[:at]

    def _open(self) -> bool:
        head, end, rest = bytes(self.inbox).partition(b"\r\n\r\n")
        if not end:
            return False
        lines = head.split(b"\r\n")
        path = lines[0].split(b" ")[1].decode("latin-1")
        fields = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])
        }
        if (key := fields.get(b"sec-websocket-key")) is None:
            body = json.dumps(self.agent.figures()).encode()
            if path == "/forget":
                self.agent.forget()
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            self.transport.close()
            return False
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        self.inbox = bytearray(rest)
        self.up, self.stream = True, path.partition("?")[0].rpartition("/")[2]
        agent = self.agent
        self.due_ns = (time.monotonic_ns() // CHUNK_NS + 2) * CHUNK_NS + agent.opened * 7 % 20 * 1_000_000
        agent.opened += 1
        self.number = agent.opened
        agent.calls.add(self)
        return True

    def _message(self, opcode: int, payload: bytes, key: bytes, now_ns: int) -> None:
        if opcode == 8:
            self.transport.write(b"\x88\x00")
            self.transport.close()
        if opcode not in (2, 9):
            return
        if any(key):
            masked = np.frombuffer(payload, np.uint8)
            payload = (masked ^ np.resize(np.frombuffer(key, np.uint8), len(masked))).tobytes()
        if opcode == 9:
            self.transport.write(bytes([0x8A, len(payload)]) + payload)
        elif (pcm := _audio(payload)) is not None:
            self._hear(np.frombuffer(pcm, "<i2"), now_ns)

    def _hear(self, samples: "np.ndarray[Any, np.dtype[np.int16]]", now_ns: int) -> None:
        agent = self.agent
        agent.heard += 1
        self.spoken_ns += len(samples) * SAMPLE_NS
        began_ns = now_ns - self.spoken_ns
        self.earliest_ns = min(self.earliest_ns or began_ns, began_ns)
        if self.spoken_ns > 1_000_000_000:
            agent.heard_late.append(began_ns - self.earliest_ns)
        if agent.receipts is not None and self.number <= agent.options.receipts_calls:
            agent.receipts.write(np.array([self.number, self.spoken_ns, now_ns], np.int64).tobytes())
        loud = np.flatnonzero(np.abs(samples.astype(np.int32)) >= LOUD)
        if len(loud):
            if self.answering:
                agent.talked_over += 1
                return
            self.user_spoke, self.quiet, self.reply_ns = True, 0, 0
            self.turn = {
                "user_recv_ns": now_ns,
                "user_read_ns": now_ns,
                "user_end": int(loud[-1]) + 1,
                "user_chunk": len(samples),
            }
            return
        self.quiet += len(samples)
        if self.user_spoke and self.quiet * 1000 >= agent.options.hangover_ms * RATE:
            self.user_spoke, self.reply_ns = False, now_ns + agent.options.reply_ms * 1_000_000

    def say(self) -> None:
        agent, options, turn = self.agent, self.agent.options, self.turn
        if self.reply_ns and not self.answering and self.due_ns >= self.reply_ns:
            self.answering, self.answer_at, self.reply_ns = True, 0, 0
            agent.answers += 1
            turn |= {"onset_at": agent.random.randrange(CHUNK), "stall_before_ns": 0, "stall_after_ns": 0}
            turn["stall_ms"] = options.stall_ms
            turn["stalled"] = int(options.stall_ms > 0 and agent.random.random() < options.stall_share)
            turn["late_before_us"], turn["latest_before_us"] = self.late_us[-BEFORE:], self.latest_us
        stall_at = int(options.stall_after_s * RATE) // CHUNK
        if self.answering and turn["stalled"] and not turn["stall_before_ns"] and self.answer_at == stall_at:
            turn["stall_before_ns"] = turn["last_write_ns"]
            self.due_ns += options.stall_ms * 1_000_000
            return
        if self.answering or not options.only_answers:
            pcm = agent.silence
            if self.answering:
                at = 2 * (CHUNK - turn["onset_at"] + self.answer_at * CHUNK)
                pcm = agent.padded[at : at + 2 * CHUNK]
            body = b"\x08" + _varint(self.sent) + b"\x1a\x80\x05" + pcm + _TAIL
            body = b"\x12" + _varint(len(body)) + body
            before_ns = time.monotonic_ns()
            self.transport.write(b"\x82\x7e" + len(body).to_bytes(2, "big") + body)
            late_ns = before_ns - self.due_ns
            if self.answering and self.answer_at == 0:
                turn["onset_write_ns"], turn["onset_wrote_ns"] = before_ns, time.monotonic_ns()
                turn["onset_late_us"] = turn["latest_us"] = late_ns // 1000
            if self.answering:
                if turn["stall_before_ns"] and not turn["stall_after_ns"]:
                    turn["stall_after_ns"], turn["latest_us"] = before_ns, late_ns // 1000
                turn["last_write_ns"] = before_ns
                turn["latest_us"] = max(turn["latest_us"], late_ns // 1000)
            agent.written_late.append(late_ns)
            self.late_us = [*self.late_us[1 - BEFORE :], late_ns // 1000]
            self.latest_us = max(self.latest_us, late_ns // 1000)
            self.sent += 1
            agent.sent += 1
        if self.answering:
            self.answer_at += 1
            if self.answer_at * CHUNK >= turn["onset_at"] + agent.voice_samples:
                self._note_turn()
        self.due_ns += CHUNK_NS

    def _note_turn(self) -> None:
        agent = self.agent
        last_at = (self.turn["onset_at"] + agent.voice_samples - 1) % CHUNK
        known = {"stream": self.stream, "turn": self.turns, "answer_samples": agent.voice_samples, "last_at": last_at}
        if agent.trace is not None:
            agent.trace.write(json.dumps(known | self.turn) + "\n")
        self.answering = False
        self.turns += 1


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _audio(message: bytes) -> bytes | None:
    """The audio of a Frame{audio}; None for any other."""

    def varint(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = message[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at

    if not message or message[0] != 0x12:
        return None
    _, at = varint(1)
    while at < len(message):
        tag, at = varint(at)
        value, at = varint(at)
        if tag == 0x1A:
            return message[at : at + value]
        if tag & 7 == 2:
            at += value
    return None


def _quantiles(values: list[int]) -> dict[str, float] | None:
    if not values:
        return None
    p50, p99, p999 = np.quantile(values, (0.5, 0.99, 0.999)) / 1e6
    return {"n": len(values), "p50": p50, "p99": p99, "p999": p999, "max": max(values) / 1e6}


async def serve(options: argparse.Namespace) -> None:
    agent, context = Agent(options), None
    if options.cert:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.cert, options.key)
    loop = asyncio.get_running_loop()
    if context is not None:  # on a port of its own: telling TLS by its first byte is for the peer in C
        secure = await loop.create_server(lambda: Call(agent), "127.0.0.1", 0, ssl=context, backlog=4096)
        print(f"agent_peer: wss://127.0.0.1:{secure.sockets[0].getsockname()[1]}", flush=True)
    server = await loop.create_server(lambda: Call(agent), "127.0.0.1", options.port, backlog=4096)
    print(f"agent_peer: ready on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await agent.run_slots()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind, default in (
        ("port", int, 0), ("answer", str, None), ("reply-ms", int, 200), ("hangover-ms", int, 300),
        ("trace", str, None), ("stall-ms", int, 0), ("stall-after-s", float, 1.0), ("stall-share", float, 0.0),
        ("receipts", str, None), ("receipts-calls", int, 1), ("cert", str, None), ("key", str, None),
        ("seed", int, 1), ("slot-us", int, 1000),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=default, required=name == "answer")
    parser.add_argument("--only-answers", action="store_true")
    options = parser.parse_args()
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve(options))
    else:
        uvloop.run(serve(options))


if __name__ == "__main__":
    main()

"""Write moshi.json: a session between kyutai's own Moshi server and client, as it went over a WebSocket.

Not run by the tests. In an environment of its own, since neither torch nor weights are needed, from the project's root:

    python -m venv V
    V/bin/pip install aiohttp numpy sphn==0.2.1
    V/bin/pip install --no-deps moshi==0.2.13
    V/bin/python tests/wire/capture_moshi.py

Authentic: `moshi.server`'s ServerState (handle_chat, recv_loop, decode_and_send), `moshi.client`'s Connection, aiohttp,
`sphn`: their code, unchanged. Stood in for: torch (by numpy), the models (Mimi gives out a known signal, the language
model tokens drawn with a fixed seed) and the sound card (which begins with the handshake, not before). So every byte is
what these programs send for that signal; that a real model would say something else is all that differs.

Not captured: `personaplex` are the same pages, cut as NVIDIA's server was seen to send them; `backend` is written from
the source of kyutai's rust/moshi-backend (src/stream_both.rs, src/audio.rs, protocol.md), round Opus packets of `sphn`.
"""

import asyncio
import base64
import contextlib
import importlib.util
import io
import json
import struct
import sys
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import sphn
from aiohttp import web

RATE, CHUNK, CHUNKS = 24_000, 1_920, 38
CLIENT_TONE, SERVER_TONE = (24_500, 48_300), (30_001, 53_777)  # samples; neither begins with a chunk
TONE_HZ, AMPLITUDE = 440.0, 0.3
PIECES = {12: "▁Hel", 13: "lo", 15: "▁là", 16: ",", 20: "▁it", 21: "'", 22: "s", 25: "▁naïve"}
QUIET_TOKENS = (0, 3)
DEP_Q = 8
DELAY = 154  # samples: where a decoded tone fits best


def tone(span: tuple[int, int]) -> np.ndarray:
    """CHUNKS of silence with a tone in it that begins and ends at its peak: the first and last samples are loud."""
    samples = np.zeros(CHUNKS * CHUNK, np.float32)
    begin, end = span
    samples[begin:end] = AMPLITUDE * np.cos(2 * np.pi * TONE_HZ * np.arange(end - begin) / RATE)
    return samples


class Tensor(np.ndarray):
    """As much of a torch tensor as moshi.server asks of one."""

    def to(self, **_: Any) -> "Tensor":
        return self

    def cpu(self) -> "Tensor":
        return self

    def numpy(self) -> np.ndarray:
        return np.asarray(self)


class Mimi:
    """Gives out SERVER_TONE, whatever comes in."""

    sample_rate, frame_rate = RATE, RATE / CHUNK

    def __init__(self) -> None:
        self._says = tone(SERVER_TONE).reshape(-1, CHUNK)
        self.decoded = 0
        self.heard: list[np.ndarray] = []

    def streaming_forever(self, _: int) -> None: ...

    def reset_streaming(self) -> None: ...

    def encode(self, chunk: Tensor) -> Tensor:
        self.heard.append(np.asarray(chunk)[0, 0])
        return np.zeros((1, DEP_Q, 1), np.int64).view(Tensor)

    def decode(self, tokens: Tensor) -> Tensor:
        assert tokens.shape == (1, DEP_Q, 1), tokens.shape
        self.decoded += 1
        return self._says[None, None, self.decoded - 1].view(Tensor)


class LMGen:
    """Audio tokens at random; text tokens by the number of the step: padding, but where PIECES has a word."""

    def __init__(self, lm: Any, **_: Any) -> None:
        self.lm_model, self.steps, self._dice = lm, 0, np.random.default_rng(1)

    def streaming_forever(self, _: int) -> None: ...

    def reset_streaming(self) -> None: ...

    def step(self, codes: Tensor) -> Tensor:
        tokens = self._dice.integers(0, 2048, (1, DEP_Q + 1, 1))
        tokens[0, 0, 0] = 100 + self.steps if self.steps in PIECES else QUIET_TOKENS[self.steps % 2]
        self.steps += 1
        return tokens.view(Tensor)


class Tokenizer:
    """The one that knows PIECES."""

    def id_to_piece(self, token: int) -> str:
        return PIECES[token - 100]


class Stream:
    """A sound card's: it only keeps its callback."""

    def __init__(self, callback: Any, **_: Any) -> None:
        self.callback = callback

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None: ...


class _NoMain(Exception):
    """Where moshi.server would begin to serve."""


@contextlib.contextmanager
def _no_grad() -> Any:
    raise _NoMain
    yield


def stand_in(name: str, **has: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(has)
    sys.modules[name] = module


def kyutai(name: str) -> Any:
    """A module of the installed `moshi`; its package's __init__ would load all models."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with contextlib.suppress(_NoMain):  # it runs main() as it is imported, in `with torch.no_grad()`
        spec.loader.exec_module(module)
    return module


def loaded() -> tuple[Any, Any]:
    """moshi.server and moshi.client."""
    spec = importlib.util.find_spec("moshi")
    assert spec is not None
    stand_in("moshi", __path__=spec.submodule_search_locations, __spec__=spec)
    stand_in("huggingface_hub", hf_hub_download=None)
    stand_in("sentencepiece", SentencePieceProcessor=Tokenizer)
    dtypes = dict.fromkeys(("float16", "bfloat16", "float32"))
    stand_in(
        "torch",
        Tensor=Tensor,
        device=str,
        no_grad=_no_grad,
        from_numpy=lambda samples: np.ascontiguousarray(samples).view(Tensor),
        **dtypes,
    )
    loaders = types.SimpleNamespace(DEFAULT_REPO="")
    stand_in("moshi.models", loaders=loaders, MimiModel=Mimi, LMModel=object, LMGen=LMGen)
    stand_in("moshi.run_inference", get_condition_tensors=lambda *_, **__: {})
    stand_in("sounddevice", InputStream=Stream, OutputStream=Stream)
    return kyutai("moshi.server"), kyutai("moshi.client")


class Tap(aiohttp.ClientWebSocketResponse):
    """The client's end of the connection, with a note of all that passes."""

    def __init__(self, *words: Any, **named: Any) -> None:
        super().__init__(*words, **named)
        self.received: list[bytes] = []
        self.sent: list[bytes] = []
        self.more = asyncio.Event()

    async def receive(self, timeout: float | None = None) -> aiohttp.WSMessage:
        message = await super().receive(timeout)
        if message.type == aiohttp.WSMsgType.BINARY:
            self.received.append(message.data)
            self.more.set()
        return message

    async def send_bytes(self, data: bytes, *words: Any, **named: Any) -> None:
        self.sent.append(data)
        await super().send_bytes(data, *words, **named)

    async def until(self, kind: int, count: int) -> None:
        while sum(message[0] == kind for message in self.received) < count:
            self.more.clear()
            await self.more.wait()


async def session() -> Tap:
    """CHUNKS of the client's, and the server's of each."""
    server, client = loaded()
    mimi = Mimi()
    model = types.SimpleNamespace(dep_q=DEP_Q)
    state = server.ServerState("moshi", mimi, Tokenizer(), model, 1.0, "cpu")
    app = web.Application()
    app.router.add_get("/api/chat", state.handle_chat)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with (
        aiohttp.ClientSession(ws_response_class=Tap) as http,
        http.ws_connect(f"ws://127.0.0.1:{port}/api/chat") as socket,
    ):
        printer = sys.modules["moshi.client_utils"].RawPrinter(io.StringIO(), io.StringIO())
        connection = client.Connection(printer, socket, asyncio.get_running_loop())
        running = asyncio.create_task(connection.run())
        await socket.until(0, 1)
        for number, chunk in enumerate(tone(CLIENT_TONE).reshape(-1, CHUNK, 1), 1):
            connection._in_stream.callback(chunk, CHUNK, None, None)
            await socket.until(1, number)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        heard = np.concatenate([connection._output_queue.get() for _ in range(connection._output_queue.qsize())])
        printed = printer.stream.getvalue()
    await runner.cleanup()
    assert printed == "".join(PIECES.values()).replace("▁", " "), printed
    check(np.concatenate(mimi.heard), tone(CLIENT_TONE))
    check(heard, tone(SERVER_TONE))
    return socket


def check(heard: np.ndarray, said: np.ndarray) -> None:
    """What came out of the other end's decoder is what went in, later by the codec's delay."""
    together = min(len(heard), len(said)) - DELAY
    error = heard[DELAY : DELAY + together] - said[:together]
    assert np.square(error).mean() < 0.01 * np.square(said).mean(), "not the same audio"


# ---- pages


def pages(data: bytes) -> list[bytes]:
    """The Ogg pages of `data`, which is whole pages."""
    found, begin = [], 0
    while begin < len(data):
        assert data[begin : begin + 4] == b"OggS"
        body = begin + 27 + data[begin + 26]
        end = body + sum(data[begin + 27 : body])
        found.append(data[begin:end])
        begin = end
    return found


def crc(page: bytes) -> int:
    """RFC 3533: polynomial 0x04c11db7, from 0, most significant bit first."""
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = value << 1 ^ (0x104C11DB7 if value >> 31 else 0)
    return value


def page_of(packet: bytes, flags: int, granule: int, serial: int, number: int) -> bytes:
    lacing = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, flags, granule, serial, number, 0, len(lacing)) + lacing
    return head[:22] + struct.pack("<I", crc(head + packet)) + head[26:] + packet


def packet_of(page: bytes) -> bytes:
    return page[27 + page[26] :]


def as_personaplex(server: list[bytes]) -> list[bytes]:
    """The same session with OpusHead and OpusTags in messages of their own, directly after the handshake."""
    audio = next(number for number, message in enumerate(server) if message[0] == 1)
    head, tags, *first = pages(server[audio][1:])
    assert b"OpusHead" in head
    assert b"OpusTags" in tags
    return [server[0], b"\1" + head, b"\1" + tags, *server[1:audio], b"\1" + b"".join(first), *server[audio + 1 :]]


def as_backend(server: list[bytes]) -> list[bytes]:
    """What rust/moshi-backend sends for the same signal: a page (40 ms) a message, granules in samples of 24 kHz.

    Both pages of a chunk bear the granule of the chunk's end: it counts samples as the model makes them. The first
    audio message has OpusHead and OpusTags before its page.
    """
    build = dict.fromkeys(
        ("build_timestamp", "build_date", "git_branch", "git_timestamp", "git_date", "git_hash", "git_describe"), ""
    ) | dict.fromkeys(("rustc_host_triple", "rustc_version", "cargo_target_triple"), "")
    metadata = {
        **{"text_temperature": 0.8, "text_topk": 250, "audio_temperature": 0.8, "audio_topk": 250, "pad_mult": 0.0},
        **{"repetition_penalty_context": 32, "repetition_penalty": 1.0},
        **{"lm_model_file": "model.safetensors", "mimi_model_file": "mimi.safetensors"},
        **{"build_info": build, "instance_name": "foo"},
    }
    opus_head = b"OpusHead" + struct.pack("<BBHIhB", 1, 1, 3840, 48_000, 0, 0)
    opus_tags = b"OpusTags" + struct.pack("<I", 11) + b"KyutaiMoshi" + struct.pack("<I", 0)
    rest = page_of(opus_head, 2, 0, 42, 0) + page_of(opus_tags, 0, 0, 42, 1)
    said = [b"\4" + json.dumps(metadata, separators=(",", ":")).encode(), bytes(9)]
    number, chunks = 2, 0
    for message in server[1:]:
        if message[0] != 1:
            said.append(message)
            continue
        chunks += 1
        for page in pages(message[1:]):
            if packet_of(page)[:4] == b"Opus":
                continue
            said.append(b"\1" + rest + page_of(packet_of(page), 0, chunks * CHUNK, 42, number))
            rest, number = b"", number + 1
    return said


def others() -> list[bytes]:
    """One of each of the other kinds of rust/protocol.md: control (end of turn), error, ping; and an unknown one."""
    return [b"\3\1", b"\5" + b"no more room", b"\6", b"\x09whatever"]


def decoded(messages: list[bytes]) -> np.ndarray:
    reader = sphn.OpusStreamReader(RATE)
    return np.concatenate([reader.append_bytes(message[1:]) for message in messages if message[0] == 1])


def text(messages: list[bytes]) -> list[str]:
    return [base64.b64encode(message).decode() for message in messages]


def capture() -> dict[str, Any]:
    socket = asyncio.run(session())
    page = pages(socket.received[1][1:])[0]
    assert crc(page[:22] + bytes(4) + page[26:]) == int.from_bytes(page[22:26], "little"), (
        "another checksum than sphn's"
    )
    truth = {
        "sample_rate": RATE,
        "chunk_samples": CHUNK,
        "chunks": CHUNKS,
        "tone_hz": TONE_HZ,
        "amplitude": AMPLITUDE,
        "client_tone_samples": CLIENT_TONE,
        "server_tone_samples": SERVER_TONE,
        "codec_delay_samples": DELAY,
        "text_pieces": [piece.replace("▁", " ") for piece in PIECES.values()],
        "text_piece_chunks": list(PIECES),
    }
    personaplex, backend = as_personaplex(socket.received), as_backend(socket.received)
    for cut in (personaplex, backend):
        check(decoded(cut), tone(SERVER_TONE))
    return {
        **{name: version(name) for name in ("sphn", "moshi", "aiohttp")},
        "sessions": {
            "moshi": {
                "made": "captured: moshi.server and moshi.client of PyPI, stand-ins for torch and the models",
                "server": text(socket.received),
                "client": text(socket.sent),
                "truth": truth,
            },
            "personaplex": {
                "made": "not captured: the same pages, cut as NVIDIA's server was seen to send them",
                "server": text(personaplex),
                "client": text(socket.sent),
                "truth": truth,
            },
        },
        "backend": {
            "made": "not captured: written from the source of kyutai's rust/moshi-backend, with Opus packets of sphn",
            "server": text(backend),
            "others": text(others()),
            "truth": truth,
        },
    }


if __name__ == "__main__":
    captured = capture()
    Path(__file__).with_name("moshi.json").write_text(json.dumps(captured, indent=1) + "\n")
    for name, one in (*captured["sessions"].items(), ("backend", captured["backend"])):
        print(f"{name}: {len(one['server'])} messages of the server, {len(one.get('client', ()))} of the client")

"""A voice agent whose every instant is known: it hears when the user's voice ends, and answers by a script.

Messages are made and read here with libraries alone, not with the code under test.
"""

import asyncio
import base64
import json
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed


def _frame_class() -> Any:
    """pipecat's frames.proto, as far as the peer speaks it."""
    kinds = {
        "audio": (2, [("id", 4), ("name", 9), ("audio", 12), ("sample_rate", 13), ("num_channels", 13)]),
        "message": (4, [("data", 9)]),
        "interruption": (5, [("id", 4), ("name", 9)]),
    }
    file = descriptor_pb2.FileDescriptorProto(name="peer.proto", package="peer", syntax="proto3")
    frame = file.message_type.add(name="Frame")
    for kind, (number, fields) in kinds.items():
        message = file.message_type.add(name=kind)
        for position, (name, type_) in enumerate(fields, 1):
            message.field.add(name=name, number=position, type=type_, label=1)
        frame.field.add(name=kind, number=number, type=11, type_name=f".peer.{kind}", label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("peer.Frame"))


Frame = _frame_class()
Pcm = npt.NDArray[np.int16]
RATE = 16_000
VOICED = 1000  # amplitude from which the peer takes a sample of the user's for voice
_APART_S = 0.25  # silence that parts two utterances of the user's


@cache
def voice(seconds: float, rate: int = RATE, amplitude: int = 9000, pitch: float = 140.0) -> Pcm:
    """A buzz of twenty harmonics that begins and ends abruptly: its first and last samples are loud."""
    at = np.arange(round(seconds * rate)) / rate
    wave = sum(np.cos(2 * np.pi * pitch * n * at) / n for n in range(1, 21))
    found = (amplitude * wave / np.abs(wave).max()).astype(np.int16)
    found[-1] = found[0] = amplitude
    found.flags.writeable = False
    return found


def write_clips(folder: Path, **seconds: float) -> dict[str, Pcm]:
    """Queries whose first and last samples are voice: name.wav, as long as said; their samples."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = {name: voice(length, pitch=110 + 17 * number) for number, (name, length) in enumerate(seconds.items())}
    for name, samples in clips.items():
        soundfile.write(folder / f"{name}.wav", samples, RATE, subtype="PCM_16")
    return clips


def audio(pcm: Pcm, rate: int = RATE, channels: int = 1) -> bytes:
    """An audio message."""
    message = Frame()
    message.audio.audio = pcm.tobytes()
    message.audio.sample_rate = rate
    message.audio.num_channels = channels
    return bytes(message.SerializeToString())


def rtvi(kind: str, **data: Any) -> bytes:
    """A message as RTVI servers send it."""
    message = Frame()
    message.message.data = json.dumps({"label": "rtvi-ai", "type": kind, "data": data})
    return bytes(message.SerializeToString())


class Protobuf:
    """pipecat's messages."""

    rate = RATE

    def read(self, data: Any) -> Pcm:
        assert isinstance(data, bytes), f"a text message: {data[:60]}"
        message = Frame.FromString(data)
        assert message.audio.sample_rate == self.rate
        assert message.audio.num_channels == 1
        return np.frombuffer(message.audio.audio, np.int16)

    def audio(self, pcm: Pcm, rate: int) -> Any:
        return audio(pcm, rate)

    def interruption(self) -> Any:
        message = Frame()
        message.interruption.SetInParent()
        return message.SerializeToString()


def _segment_of(magnitude: int) -> int:
    return max(0, magnitude.bit_length() - 8)


def _to_ulaw(sample: int) -> int:
    """G.711, as the ITU's reference code says it."""
    sign, magnitude = (0x80, -sample) if sample < 0 else (0, sample)
    magnitude = min(magnitude, 32635) + 132
    segment = _segment_of(magnitude)
    return ~(sign | segment << 4 | magnitude >> segment + 3 & 15) & 0xFF


def _from_ulaw(code: int) -> int:
    code = ~code & 0xFF
    magnitude = ((code & 15) << 3) + 132 << (code >> 4 & 7)
    return 132 - magnitude if code & 0x80 else magnitude - 132


class TwilioJson:
    """Twilio Media Streams, from the server's side."""

    rate = 8_000
    _encoder = np.array([_to_ulaw(sample) for sample in range(-32768, 32768)], np.uint8)
    decoder = np.array([_from_ulaw(code) for code in range(256)], np.int16)

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.sid = ""

    def read(self, data: Any) -> Pcm | None:
        assert isinstance(data, str), "a binary message"
        event = json.loads(data)
        if event["event"] == "media":
            codes = base64.b64decode(event["media"]["payload"], validate=True)
            return self.decoder[np.frombuffer(codes, np.uint8)]
        self.events.append(event)
        self.sid = event.get("streamSid", self.sid)
        return None

    def heard(self, pcm: Pcm) -> Pcm:
        """What comes out at the other end of μ-law."""
        return self.decoder[self._encoder[pcm.astype(np.int32) + 32768]]

    def audio(self, pcm: Pcm, rate: int) -> Any:
        payload = base64.b64encode(self._encoder[pcm.astype(np.int32) + 32768].tobytes()).decode()
        return json.dumps({"event": "media", "streamSid": self.sid, "media": {"payload": payload}})

    def interruption(self) -> Any:
        return json.dumps({"event": "clear", "streamSid": self.sid})

    def mark(self, name: str) -> str:
        return json.dumps({"event": "mark", "streamSid": self.sid, "mark": {"name": name}})


@dataclass
class Heard:
    """One utterance of the user's: positions (samples of the stream) of its first voiced sample and behind its last."""

    first: int
    last: int
    last_at: float  # when the chunk with the last voiced sample was read here


@dataclass
class Ear:
    """What the user said so far."""

    socket: ServerConnection
    wire: Any
    heard: list[Heard] = field(default_factory=list)
    chunks: list[Pcm] = field(default_factory=list)
    chunk_at: list[float] = field(default_factory=list)
    length: int = 0  # samples
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __getstate__(self) -> dict[str, Any]:
        """What it heard, without what it hears with."""
        return {name: value for name, value in vars(self).items() if name not in ("socket", "_changed")}

    async def listen(self) -> None:
        """Receive until the line is gone."""
        try:
            async for data in self.socket:
                now = time.monotonic()
                samples = self.wire.read(data)
                if samples is None:
                    continue
                self.chunks.append(samples)
                self.chunk_at.append(now)
                loud = np.flatnonzero(np.abs(samples.astype(np.int32)) >= VOICED)
                if len(loud):
                    first, last = self.length + int(loud[0]), self.length + int(loud[-1]) + 1
                    if not self.heard or first - self.heard[-1].last > _APART_S * self.wire.rate:
                        self.heard.append(Heard(first, last, now))
                    self.heard[-1].last, self.heard[-1].last_at = last, now
                self.length += len(samples)
                self._changed.set()
        except ConnectionClosed:
            return

    async def until(self, holds: Callable[[], Any]) -> None:
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    async def user_spoke(self, number: int, quiet_s: float = _APART_S) -> Heard:
        """The user's utterance of this number (from 0), once `quiet_s` of its stream's silence have followed it."""
        await self.until(
            lambda: (
                len(self.heard) > number + 1
                or (len(self.heard) > number and self.length - self.heard[number].last >= quiet_s * self.wire.rate)
            )
        )
        return self.heard[number]

    async def user_speaks(self, number: int, for_s: float = 0.0) -> Heard:
        """The user's utterance of this number, as soon as it has lasted `for_s`."""
        await self.until(
            lambda: (
                len(self.heard) > number
                and self.heard[number].last - self.heard[number].first >= for_s * self.wire.rate
            )
        )
        return self.heard[number]

    @property
    def stream(self) -> Pcm:
        """All that came, one chunk after the other."""
        return np.concatenate(self.chunks) if self.chunks else np.empty(0, np.int16)

    def mouth_at(self, position: int) -> float:
        """When the sample at `position` was spoken, by a microphone that hands over each chunk when it is full.

        By the quickest of all chunks: how late this thread read some of them says nothing of the user.
        """
        ends = np.cumsum([len(chunk) for chunk in self.chunks]) / self.wire.rate
        return float(np.min(np.array(self.chunk_at[: len(ends)]) - ends)) + position / self.wire.rate


Script = Callable[["Talk"], Awaitable[None]]


@dataclass
class Talk:
    """One call at the peer. `said`: instants just before and after the first write of each thing it said."""

    socket: ServerConnection
    path: str
    wire: Any
    ear: Ear
    said: list[tuple[float, float]] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)  # when the last chunk of each was written
    plays_until: float = 0.0  # when all that was sent has played, at prebuffer 0
    notes: dict[str, Any] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "socket"}

    async def send(self, pcm: Pcm, rate: int = 0, chunk_s: float = 0.02, lead: int = 1, note: bool = True) -> float:
        """Send audio in real time, the first `lead` + 1 chunks at once; the instant before the first write."""
        rate = rate or self.wire.rate
        size = round(rate * chunk_s)
        began_at = time.monotonic()
        for number, start in enumerate(range(0, len(pcm), size)):
            wait_s = began_at + max(0, number - lead) * chunk_s - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            part = pcm[start : start + size]
            self.plays_until = max(self.plays_until, time.monotonic()) + len(part) / rate
            await self.socket.send(self.wire.audio(part, rate))
            if note and number == 0:
                self.said.append((began_at, time.monotonic()))
        if note:
            self.ended.append(time.monotonic())
        return began_at

    async def interruption(self) -> float:
        at = self.plays_until = time.monotonic()
        await self.socket.send(self.wire.interruption())
        return at


@dataclass
class AgentPeer:
    """A running peer: where it listens, the calls it has had, and what went wrong in its scripts."""

    port: int
    talks: list[Talk] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def by_stream(self) -> dict[str, Talk]:
        """Calls by the stream id in their URL."""
        return {talk.path.rpartition("/")[2]: talk for talk in self.talks}


def by_user(*scripts: Script) -> Script:
    """Each user its own script, by the number in the stream ids that our users make: worker-NUMBER-unique."""

    async def play(talk: Talk) -> None:
        await scripts[(user_number(talk.path) - 1) % len(scripts)](talk)

    return play


def user_number(path: str) -> int:
    found = re.search(r"-(\d+)-[0-9a-f]{8}$", path)
    assert found, path
    return int(found[1])


def by_name(scripts: Mapping[str, Script]) -> Script:
    """Each stream id its own script."""

    async def play(talk: Talk) -> None:
        await scripts[talk.path.rpartition("/")[2]](talk)

    return play


@contextmanager
def agent_peer(script: Script, wire: Callable[[], Any] = Protobuf, **options: Any) -> Iterator[AgentPeer]:
    """A peer that runs `script` for each call, in a thread of its own. options: of `websockets`' serve."""
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    peer = AgentPeer(0)

    async def handle(socket: ServerConnection) -> None:
        assert socket.request is not None
        spoken = wire()
        talk = Talk(socket, socket.request.path, spoken, Ear(socket, spoken))
        peer.talks.append(talk)
        listening = asyncio.create_task(talk.ear.listen())
        speaking = asyncio.ensure_future(script(talk))
        try:
            await asyncio.wait((listening, speaking), return_when=asyncio.FIRST_COMPLETED)
            if speaking.done() and not speaking.cancelled() and speaking.exception() is None:
                await listening
        finally:
            for task in (listening, speaking):
                task.cancel()
            for found in await asyncio.gather(listening, speaking, return_exceptions=True):
                if isinstance(found, Exception) and not isinstance(found, ConnectionClosed):
                    peer.wrong.append(f"{talk.path}: {type(found).__name__}: {found}")

    async def run() -> None:
        async with serve(handle, "127.0.0.1", 0, compression=None, ping_interval=None, **options) as server:
            peer.port = next(iter(server.sockets)).getsockname()[1]
            ready.set()
            await over.wait()

    over = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield peer
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()

"""A voice agent whose every instant is known: it hears when the user's voice ends, and answers by a script.

Audio is pipecat protobuf both ways, made and read here with the library alone, not with the code under test.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
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


def voice(seconds: float, rate: int = RATE, amplitude: int = 9000) -> Pcm:
    """A buzz of twenty harmonics that begins and ends abruptly: its first and last samples are loud."""
    at = np.arange(round(seconds * rate)) / rate
    wave = sum(np.cos(2 * np.pi * 140 * n * at) / n for n in range(1, 21))
    return (amplitude * wave / np.abs(wave).max()).astype(np.int16)


def audio(pcm: Pcm, rate: int = RATE, channels: int = 1) -> bytes:
    """An audio message."""
    message = Frame()
    message.audio.audio = pcm.tobytes()
    message.audio.sample_rate = rate
    message.audio.num_channels = channels
    return bytes(message.SerializeToString())


@dataclass
class Heard:
    """One utterance of the user's, as the peer received it: monotonic instants of the chunks with its edges."""

    first_at: float
    last_at: float = 0.0
    spare_s: float = 0.0  # of the last chunk, behind the last voiced sample
    chunk_s: float = 0.02

    @property
    def offset_at(self) -> float:
        """Mouth time of the last voiced sample, if the chunk left when it was due and took no time."""
        return self.last_at - self.spare_s


@dataclass
class Ear:
    """What the user said so far."""

    socket: ServerConnection
    heard: list[Heard] = field(default_factory=list)
    chunk_at: list[float] = field(default_factory=list)
    messages: int = 0
    quiet_since: float = 0.0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def listen(self) -> None:
        """Receive until the line is gone."""
        try:
            async for data in self.socket:
                now = time.monotonic()
                self.messages += 1
                assert isinstance(data, bytes)
                message = Frame.FromString(data)
                samples = np.frombuffer(message.audio.audio, np.int16)
                self.chunk_at.append(now)
                loud = np.flatnonzero(np.abs(samples.astype(np.int32)) >= VOICED)
                if len(loud):
                    if not self.heard or now - self.heard[-1].last_at > 0.25:
                        self.heard.append(Heard(now))
                    one = self.heard[-1]
                    one.last_at, one.spare_s = now, (len(samples) - 1 - int(loud[-1])) / message.audio.sample_rate
                self._changed.set()
        except ConnectionClosed:
            return

    async def until(self, holds: Callable[[], Any]) -> None:
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    async def user_spoke(self, number: int, quiet_s: float = 0.25) -> Heard:
        """The user's utterance of this number (from 0), once `quiet_s` of quiet have followed it."""
        await self.until(
            lambda: len(self.heard) > number + 1
            or (len(self.heard) > number and time.monotonic() - self.heard[number].last_at >= quiet_s)
        )
        return self.heard[number]

    async def user_speaks(self, number: int) -> Heard:
        """The user's utterance of this number, as soon as it begins."""
        await self.until(lambda: len(self.heard) > number)
        return self.heard[number]


Script = Callable[["Talk"], Awaitable[None]]


@dataclass
class Talk:
    """One call at the peer."""

    socket: ServerConnection
    path: str
    ear: Ear
    wrote: list[tuple[str, float]] = field(default_factory=list)

    async def send(self, pcm: Pcm, rate: int = RATE, chunk_s: float = 0.02, lead: int = 1) -> tuple[float, float]:
        """Send audio in real time, the first `lead` + 1 chunks at once; instants before the first and last write."""
        size = round(rate * chunk_s)
        began_at = time.monotonic()
        last_at = began_at
        for number, start in enumerate(range(0, len(pcm), size)):
            wait_s = began_at + max(0, number - lead) * chunk_s - time.monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            last_at = time.monotonic()
            await self.socket.send(audio(pcm[start : start + size], rate))
        self.wrote.append(("audio", began_at))
        return began_at, last_at

    async def interruption(self) -> float:
        message = Frame()
        message.interruption.SetInParent()
        at = time.monotonic()
        await self.socket.send(message.SerializeToString())
        return at


@dataclass
class AgentPeer:
    """A running peer: where it listens, and the calls it has had."""

    port: int
    talks: list[Talk] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"


@contextmanager
def agent_peer(script: Script, **options: Any) -> Iterator[AgentPeer]:
    """A peer that runs `script` for each call, in a thread of its own. options: of `websockets`' serve."""
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    peer = AgentPeer(0)

    async def handle(socket: ServerConnection) -> None:
        assert socket.request is not None
        talk = Talk(socket, socket.request.path, Ear(socket))
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
            await asyncio.gather(listening, speaking, return_exceptions=True)

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

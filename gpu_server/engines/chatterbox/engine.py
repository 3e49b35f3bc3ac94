"""Chatterbox as an engine of the server: requests in, chunks out, with the step loop between. Knows nothing of HTTP."""

import asyncio
import queue
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gpu_server.engines.chatterbox import checkpoint, upstream, voices
from gpu_server.engines.chatterbox.build import Kind
from gpu_server.engines.chatterbox.stages import ChatterboxStages, Setting
from gpu_server.request import Request
from gpu_server.scheduler import QueueFull
from gpu_server.speech import (
    DEFAULT_VOICE,
    SAMPLE_RATE,
    CannotSpeak,
    Chunks,
    EngineBusy,
    EngineOptions,
    EngineUnavailable,
    Pcm,
    SpeechRequest,
)
from gpu_server.step_loop import StepLoop

NAMES: dict[Kind, str] = {"turbo": "chatterbox-turbo", "original": "chatterbox"}
_MARKED_TOGETHER = 9600  # samples that a watermark needs to hold on to


@dataclass(frozen=True, slots=True)
class Spent:
    """What the stages computed since the start: seconds of T3 and its tokens, seconds of S3Gen and audio made."""

    t3_s: float
    t3_tokens: int
    s3gen_s: float
    audio_s: float


class ChatterboxEngine:
    """One model on one device. The model is loaded by `warm_up`, and runs in a thread of its own."""

    sample_rate = SAMPLE_RATE
    uses_gpu = True

    def __init__(self, kind: Kind, options: EngineOptions) -> None:
        """Raises EngineUnavailable for what can be known without loading: the package, the device, the folders."""
        upstream.load()
        self.name = NAMES[kind]
        self._kind, self._options = kind, options
        self.device = _device(options.device)
        self._recordings = voices.in_folder(options.voices)
        self.voices = tuple(self._recordings)
        self._model: checkpoint.Model | None = checkpoint.load(kind, options.weights, options.random_weights)
        self.weights = self._model.weights
        self.streams = options.streams
        self._stages: ChatterboxStages
        self._loop: StepLoop | None = None
        self._audio_s = 0.0
        self._marker = _watermarker() if options.watermark else None
        self._marking = threading.Lock()

    # ---- start and end

    async def warm_up(self) -> None:
        await asyncio.to_thread(self.start)

    def start(self) -> None:
        """Load onto the device, hear the voices, run every shape once. Raises EngineUnavailable."""
        model, self._model = self._model, None
        assert model is not None
        if self.device.type == "cpu" and model.size == "tiny":
            torch.set_num_threads(1)  # its operations are so small that sharing them out takes longer
        for name, path in self._recordings.items():
            if path is not None:
                print(f"gpu_server: listening to the voice {name} ...", file=sys.stderr)
        self._stages = self._on_device(model)
        self._loop = StepLoop(self._stages, self._options.queue)
        self._loop.start()

    def _on_device(self, model: checkpoint.Model) -> ChatterboxStages:
        """With as many streams as fit into the device's memory."""
        while True:
            cuda = self.device.type == "cuda"
            setting = Setting(
                slots=self.streams,
                device=self.device,
                dtype=torch.bfloat16 if cuda else torch.float32,
                graphs=cuda and self._options.graphs,
                streaming=self._options.streaming,
                prompt_s=self._options.prompt_s,
            )
            try:
                stages = ChatterboxStages(model, setting, self._recordings)
                for name in self.voices:
                    stages.hear(name)
                stages.capture()
                return stages
            except torch.OutOfMemoryError as error:
                fewer = self.streams // 2
                if not fewer:
                    raise EngineUnavailable(f"{self.device} has too little memory for one stream: {error}") from None
                print(f"gpu_server: {self.streams} streams do not fit into {self.device}: {fewer}", file=sys.stderr)
                self.streams = fewer
            del stages
            torch.cuda.empty_cache()

    def close(self) -> None:
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    # ---- speaking

    async def stream(self, request: SpeechRequest) -> Chunks:
        """Raises CannotSpeak and EngineBusy."""
        running = asyncio.get_running_loop()
        arrived: asyncio.Queue[Pcm | Exception | None] = asyncio.Queue()

        def deliver(item: Pcm | Exception | None) -> None:
            try:
                running.call_soon_threadsafe(arrived.put_nowait, item)
            except RuntimeError:  # the server has stopped meanwhile
                pass

        asked = self._ask(request, deliver, whole=False)
        if asked is None:
            return
        try:
            while (item := await arrived.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                self._audio_s += len(item) / SAMPLE_RATE
                yield await asyncio.to_thread(self._marked, item) if self._marker else item
        finally:
            self._leave(asked, request)

    def speak(self, request: SpeechRequest, whole: bool = False) -> Iterator[Pcm]:
        """The same without asyncio, for any thread. whole: in one piece a segment, as a batch job would have it."""
        arrived: queue.SimpleQueue[Pcm | Exception | None] = queue.SimpleQueue()
        asked = self._ask(request, arrived.put, whole=whole)
        if asked is None:
            return
        try:
            while (item := arrived.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                self._audio_s += len(item) / SAMPLE_RATE
                yield self._marked(item) if self._marker else item
        finally:
            self._leave(asked, request)

    def _ask(
        self, request: SpeechRequest, deliver: Callable[[Pcm | Exception | None], None], *, whole: bool
    ) -> Request | None:
        if request.speed != 1:
            raise CannotSpeak(f"{self.name} speaks at its own speed: leave `speed` out, or ask for 1")
        if self._loop is None:
            raise EngineBusy("the engine is not ready")
        voice = self.voices[0] if request.voice == DEFAULT_VOICE else request.voice
        if voice not in self.voices:
            raise CannotSpeak(f"no voice {voice!r} here; there are {', '.join(self.voices)}")
        planned = self._stages.plan(request.text)
        if not planned:
            return None
        seed = zlib.crc32(request.text.encode("utf-8", "replace"))  # the same text sounds the same each time
        asked = Request(planned, voice, seed, time.monotonic(), deliver, whole)
        try:
            self._loop.submit(asked)
        except QueueFull as full:
            raise EngineBusy(str(full)) from None
        return asked

    def _leave(self, asked: Request, request: SpeechRequest) -> None:
        if asked.runaway:
            request.marks.add("runaway")
        if not asked.over and self._loop is not None:
            self._loop.cancel(asked)

    def _marked(self, pcm: Pcm) -> Pcm:
        assert self._marker is not None
        with self._marking, torch.inference_mode(), upstream.quiet():
            samples = pcm.astype(np.float32) / 32768
            short = _MARKED_TOGETHER - len(samples)
            if short > 0:
                samples = np.pad(samples, (0, short))
            marked = self._marker.apply_watermark(samples, sample_rate=SAMPLE_RATE)[: len(pcm)]
        rounded: Pcm = np.clip(np.rint(np.asarray(marked) * 32768), -32768, 32767).astype(np.int16)
        return rounded

    def spent(self) -> Spent:
        stages = self._stages
        return Spent(stages.t3_time.spent_s, stages.t3_tokens, stages.s3gen_time.spent_s, self._audio_s)


def load_engine(kind: Kind, options: EngineOptions) -> ChatterboxEngine:
    """An engine that is ready and warm, for a process without asyncio. Raises EngineUnavailable."""
    engine = ChatterboxEngine(kind, options)
    engine.start()
    return engine


def _device(asked: str | None) -> torch.device:
    if asked in (None, "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if asked in (None, "cpu"):
        return torch.device("cpu")
    raise EngineUnavailable(f"--device {asked}: torch {torch.__version__} sees no such device; try --device cpu")


def _watermarker() -> Any:
    upstream.load()
    import perth

    if perth.PerthImplicitWatermarker is None:
        raise EngineUnavailable("--watermark: the package resemble-perth cannot be used here; leave the switch out")
    with upstream.quiet():
        return perth.PerthImplicitWatermarker()

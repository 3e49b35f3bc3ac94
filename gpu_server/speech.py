"""Say what an engine is: text in, a stream of audio out. Knows nothing of HTTP, containers or any one engine."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 24_000  # Hz, of every engine: one that speaks at another rate resamples inside
DEFAULT_VOICE = "default"

Pcm: TypeAlias = npt.NDArray[np.int16]
Chunks: TypeAlias = AsyncGenerator[Pcm, None]


class EngineUnavailable(Exception):
    """The engine asked for cannot run here; the message says how to get it."""


class CannotSpeak(Exception):
    """The engine cannot do what this request asks; the message says what it can."""


class EngineBusy(Exception):
    """Every stream of the engine is taken, and so is its queue."""


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """What to say and how; `speed` 1.0 is the voice's own, 2.0 twice as fast.

    marks: what the engine says of how it went, for the trace: `runaway`, where it was stopped far beyond its text.
    """

    text: str
    voice: str = DEFAULT_VOICE
    speed: float = 1.0
    marks: set[str] = field(default_factory=set, compare=False)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the command line may tell an engine."""

    tone_s: float | None = None
    streams: int = 64  # spoken at a time
    queue: int = 256  # waiting beyond that
    weights: Path | None = None  # a folder; None: from the hub
    random_weights: Literal["tiny", "full"] | None = None
    device: str | None = None  # cuda or cpu; None: cuda where there is one
    voices: Path | None = None  # a folder of recordings
    prompt_s: float = 10.0  # of a voice's recording that S3Gen hears before it speaks
    streaming: Literal["masks", "overlap"] = "masks"
    watermark: bool = False
    graphs: bool = True  # CUDA graphs, where there is CUDA


class Engine(Protocol):
    """Anything that turns text into speech at 24 kHz."""

    name: str
    sample_rate: int
    voices: tuple[str, ...]  # the first is what "default" means

    async def warm_up(self) -> None:
        """Do once what would slow the first request. Raises EngineUnavailable."""

    def stream(self, request: SpeechRequest) -> Chunks:
        """Yield mono chunks as they are made. Closing the generator stops the work at once."""

    def close(self) -> None:
        """Stop all work and free what the engine holds."""


def load_espeak(options: EngineOptions) -> Engine:
    try:
        from gpu_server.engines.espeak import EspeakEngine
    except ImportError as error:
        raise EngineUnavailable(
            f"the espeak engine is not installed ({error}); run: pip install -e '.[espeak]' or use --engine tone"
        ) from error
    return EspeakEngine()


def load_tone(options: EngineOptions) -> Engine:
    from gpu_server.engines.tone import ToneEngine

    return ToneEngine(options.tone_s)


def load_chatterbox_turbo(options: EngineOptions) -> Engine:
    return _chatterbox("turbo", options)


def load_chatterbox(options: EngineOptions) -> Engine:
    return _chatterbox("original", options)


def _chatterbox(kind: Literal["turbo", "original"], options: EngineOptions) -> Engine:
    try:
        from gpu_server.engines.chatterbox.engine import ChatterboxEngine
    except ImportError as error:
        raise EngineUnavailable(
            f"the chatterbox engine is not installed ({error}); run: pip install -e '.[server,chatterbox]' and"
            " pip install --no-deps -r requirements-chatterbox.txt"
        ) from error
    return ChatterboxEngine(kind, options)


ENGINES: dict[str, Callable[[EngineOptions], Engine]] = {
    "espeak": load_espeak,
    "tone": load_tone,
    "chatterbox-turbo": load_chatterbox_turbo,
    "chatterbox": load_chatterbox,
}

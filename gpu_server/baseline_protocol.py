"""S2's protocol: warm up, time each text, and what the times say. Knows nothing of models, files or screens.

Times are of whole answers, from before the call to the last chunk and the device at rest; the first chunk is stamped as
it comes. A run without audio is a failure that is counted, never a time.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from gpu_server.baseline_device import Device, Memory
from gpu_server.speech import SAMPLE_RATE, Pcm

RUNS, WARM_UPS = 20, 5
WARM_UP_TEXT = "medium"

Clock = Callable[[], float]


class Spent(Protocol):
    """What the stages of a model have computed since it was made."""

    @property
    def t3_s(self) -> float: ...
    @property
    def t3_tokens(self) -> int: ...
    @property
    def s3gen_s(self) -> float: ...
    @property
    def audio_s(self) -> float: ...


class Speaker(Protocol):
    """A model that is ready: text in, chunks of 24 kHz audio out."""

    def speak(self, text: str) -> Iterator[Pcm]: ...

    def spent(self) -> Spent: ...

    def close(self) -> None: ...


class MeasurementFailed(Exception):
    """A model that does not say what it is asked to; the message names the text and the failure."""


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds that each stage computed, the speech tokens that T3 drew, and seconds of audio."""

    t3_s: float
    t3_tokens: int
    s3gen_s: float
    audio_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """One answer: seconds to its first chunk and to its end, chunks, samples."""

    first_chunk_s: float
    total_s: float
    chunks: int
    samples: int


@dataclass(frozen=True, slots=True)
class TextRuns:
    """All runs of one text that gave audio; `failed` gave none. memory: None without a GPU."""

    name: str
    text: str
    runs: tuple[Run, ...]
    failed: int
    memory: Memory | None
    stages: Stages | None  # None where they are not timed apart


@dataclass(slots=True)
class Steps:
    """What was really done: the validation list is made of it."""

    cleared: int = 0  # times that memory of a GPU was emptied
    warm_ups: int = 0
    warmed_up_with: str = f"of {WARM_UP_TEXT}"
    timed: int = 0
    synchronized: int = 0  # timed runs with a GPU waited for before and after
    runs: dict[str, int] = field(default_factory=dict)  # by text, those with audio


@dataclass(slots=True)
class Bench:
    """A model on its device, timed by a clock; `steps` says what was done so far."""

    speaker: Speaker
    device: Device
    clock: Clock = time.perf_counter
    steps: Steps = field(default_factory=Steps)

    def warm_up(self, text: str, runs: int) -> None:
        """Say `text` so many times; nothing of it counts. Raises MeasurementFailed."""
        self.steps.cleared += self.device.clear()
        for _ in range(runs):
            for _ in _sizes(self.speaker, text, "warm-up"):
                pass
            self.device.synchronize()
            self.steps.warm_ups += 1

    def time_text(self, name: str, text: str, runs: int) -> TextRuns:
        """Say one text `runs` times. Raises MeasurementFailed where no run gave audio, or the model fails."""
        self.steps.cleared += self.device.clear()
        self.device.reset_peak()
        before = self.speaker.spent()
        timed = [self._run(name, text) for _ in range(runs)]
        found = tuple(run for run in timed if run is not None)
        if not found:
            raise MeasurementFailed(f"{name}: no audio in {runs} of {runs} runs: there is no time to tell")
        self.steps.runs[name] = len(found)
        stages = since(before, self.speaker.spent())
        return TextRuns(name, text, found, runs - len(found), self.device.memory(), stages)

    def _run(self, name: str, text: str) -> Run | None:
        """None where no audio came."""
        waited = self.device.synchronize()
        began_at = self.clock()
        first_at, chunks, samples = None, 0, 0
        for size in _sizes(self.speaker, text, name):
            if first_at is None:
                first_at = self.clock()
            chunks += 1
            samples += size
        waited &= self.device.synchronize()
        ended_at = self.clock()
        self.steps.timed += 1
        self.steps.synchronized += waited
        return None if first_at is None else Run(first_at - began_at, ended_at - began_at, chunks, samples)


def since(before: Spent, now: Spent) -> Stages:
    """What the stages computed between two accounts."""
    return Stages(
        now.t3_s - before.t3_s,
        now.t3_tokens - before.t3_tokens,
        now.s3gen_s - before.s3gen_s,
        now.audio_s - before.audio_s,
    )


def latency(times_ms: Sequence[float]) -> dict[str, float]:
    """S2's seven figures of times in ms: numpy's linear percentiles, population deviation. Raises ValueError."""
    times = np.asarray(times_ms, dtype=np.float64)
    if not times.size or not np.isfinite(times).all():
        raise ValueError("there are no times, or some are no numbers: nothing can be told of them")
    return {
        "mean_ms": float(np.mean(times)),
        "std_ms": float(np.std(times)),
        "p50_ms": float(np.percentile(times, 50)),
        "p95_ms": float(np.percentile(times, 95)),
        "p99_ms": float(np.percentile(times, 99)),
        "min_ms": float(np.min(times)),
        "max_ms": float(np.max(times)),
    }


def real_time_factor(latency_ms: float, audio_samples: float, sample_rate: int = SAMPLE_RATE) -> float:
    """Time to make audio / its duration: below 1 is faster than real time. Raises ValueError without samples."""
    if not audio_samples > 0:
        raise ValueError("no audio samples: a real-time factor needs some")
    return latency_ms / (audio_samples / sample_rate * 1000)


def streaming(texts: Sequence[TextRuns]) -> dict[str, float]:
    """S2's five figures of streaming and the median first chunk, over all runs of these texts.

    Raises ValueError without any.
    """
    runs = [run for text in texts for run in text.runs]
    first, total = (latency([getattr(run, key) * 1000 for run in runs]) for key in ("first_chunk_s", "total_s"))
    return {
        "ttfc_mean_ms": first["mean_ms"],
        "ttfc_p50_ms": first["p50_ms"],
        "ttfc_p95_ms": first["p95_ms"],
        "total_mean_ms": total["mean_ms"],
        "total_p95_ms": total["p95_ms"],
        "avg_chunks": float(np.mean([run.chunks for run in runs])),
    }


def _sizes(speaker: Speaker, text: str, name: str) -> Iterator[int]:
    """Samples of each chunk that has any; whatever goes wrong inside the model is said with the text's name."""
    try:
        for chunk in speaker.speak(text):
            if len(chunk):
                yield len(chunk)
    except Exception as error:
        raise MeasurementFailed(f"{name}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """An error in one line: foreign ones come with pages."""
    said = str(error).strip()
    return f"{type(error).__name__}: {said.splitlines()[0][:300]}" if said else type(error).__name__


def as_dict(stages: Stages) -> dict[str, Any]:
    """Stages for a result file; seconds to the microsecond."""
    return {
        "t3_s": round(stages.t3_s, 6),
        "t3_tokens": stages.t3_tokens,
        "s3gen_s": round(stages.s3gen_s, 6),
        "audio_s": round(stages.audio_s, 6),
    }

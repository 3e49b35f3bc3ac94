"""What each kind of benchmark runs: a model that is made ready, or a reason why it cannot. Times nothing.

Kinds are S2's names. `baseline` is upstream's own `generate`, unoptimised; `streaming`, `hybrid_pipeline` and
`final_optimized` are the bundled engine; baseline_onnx.py and baseline_vllm.py have the rest.
"""

import contextlib
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gpu_server.baseline_device import Device
from gpu_server.baseline_protocol import Speaker, Stages, first_line
from gpu_server.speech import SAMPLE_RATE, EngineOptions, EngineUnavailable, Pcm, SpeechRequest

ENGINES: dict[str, Literal["turbo", "original"]] = {"chatterbox-turbo": "turbo", "chatterbox": "original"}
FIRST_THAT_IS_NO_SPEECH = 6561


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which model, with which weights, for how many streams at a time."""

    engine: str
    weights: Path | None
    random_weights: Literal["tiny", "full"] | None
    streams: int


@dataclass(frozen=True, slots=True)
class Ready:
    """A model that speaks. optimization: what a result says of it. notes: what its reader must know."""

    speaker: Speaker
    weights: str  # random or trained
    size: str  # tiny or full: none is compared with another
    optimization: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of benchmark. load: None where no model is loaded here. streams: its chunks are always told."""

    means: str
    load: Callable[[Wanted, Device], Ready] | None = None
    streams: bool = False


class Upstream:
    """Upstream's `generate`, one text at a time: its model is not made for two. Its first chunk is the whole answer."""

    def __init__(self, tts: Any, kind: Literal["turbo", "original"], device: Device, cut: bool) -> None:
        """cut: end each answer at its expected length, as random weights never end one."""
        from gpu_server.engines.chatterbox.text import expected_tokens

        self._tts, self._lock = tts, threading.Lock()
        self._text = ""
        self._t3_s, self._t3_tokens, self._s3gen_s, self._samples = 0.0, 0, 0.0, 0
        self._device = device
        name, limit = ("inference_turbo", "max_gen_len") if kind == "turbo" else ("inference", "max_new_tokens")
        draw, make = getattr(tts.t3, name), tts.s3gen.inference
        if cut:
            tts.t3.hp.stop_speech_token = -1  # one in thousands is drawn by chance

        def timed_draw(**asked: Any) -> Any:
            if cut:
                asked[limit] = expected_tokens(self._text) - (kind == "turbo")  # beside the one that it draws first
            tokens, took_s = self._timed(lambda: draw(**asked))
            self._t3_s += took_s
            self._t3_tokens += tokens.shape[-1]
            return tokens % FIRST_THAT_IS_NO_SPEECH if cut else tokens  # as long as was asked for

        def timed_make(*args: Any, **asked: Any) -> Any:
            made, took_s = self._timed(lambda: make(*args, **asked))
            self._s3gen_s += took_s
            return made

        setattr(tts.t3, name, timed_draw)
        tts.s3gen.inference = timed_make

    def speak(self, text: str) -> Iterator[Pcm]:
        from gpu_server.engines.chatterbox import upstream

        with self._lock, upstream.quiet():
            self._text = text
            audio = self._tts.generate(text).squeeze(0).numpy()
            self._samples += len(audio)
        yield (np.clip(audio, -1.0, 1.0) * 32767).astype(np.int16)

    def spent(self) -> Stages:
        return Stages(self._t3_s, self._t3_tokens, self._s3gen_s, self._samples / SAMPLE_RATE)

    def close(self) -> None:
        """Nothing runs between two calls."""

    def _timed(self, work: Callable[[], Any]) -> tuple[Any, float]:
        self._device.synchronize()
        began_at = time.perf_counter()
        made = work()
        self._device.synchronize()
        return made, time.perf_counter() - began_at


class Bundled:
    """The bundled engine."""

    def __init__(self, engine: Any, whole: bool) -> None:
        self._engine, self._whole = engine, whole

    def speak(self, text: str) -> Iterator[Pcm]:
        chunks: Iterator[Pcm] = self._engine.speak(SpeechRequest(text), whole=self._whole)
        return chunks

    def spent(self) -> Stages:
        spent = self._engine.spent()
        return Stages(spent.t3_s, spent.t3_tokens, spent.s3gen_s, spent.audio_s)

    def close(self) -> None:
        self._engine.close()


def load_upstream(wanted: Wanted, device: Device) -> Ready:
    """Upstream's class with its own modules: the folder's weights, random ones, or what it downloads itself."""
    from gpu_server.engines.chatterbox import checkpoint, upstream

    kind = ENGINES[wanted.engine]
    module, name = ("tts_turbo", "ChatterboxTurboTTS") if kind == "turbo" else ("tts", "ChatterboxTTS")
    tts_class = getattr(upstream.module(module), name)
    with upstream.quiet(), contextlib.redirect_stdout(io.StringIO()):
        if wanted.weights is None and wanted.random_weights is None:
            tts, weights, size = _pretrained(tts_class, wanted.engine, device.name), "trained", "full"
        else:
            model = checkpoint.load(kind, wanted.weights, wanted.random_weights)
            if model.size == "tiny" and device.name == "cpu":
                _one_thread()
            parts = (model.t3, model.s3gen, model.voice_encoder)
            t3, s3gen, voice_encoder = (part.to(device.name) for part in parts)
            tts = tts_class(t3, s3gen, voice_encoder, model.tokenizer, device.name, model.conds.to(device.name))
            weights, size = model.weights, model.size
    return Ready(
        Upstream(tts, kind, device, cut=weights == "random"),
        weights,
        size,
        "none",
        ("upstream does not stream: its first chunk is the whole answer; streams wait for each other",),
    )


def _one_thread() -> None:
    """As the bundled engine runs the tiny configuration, whose operations are too small to be shared out."""
    import torch

    torch.set_num_threads(1)


def _pretrained(tts_class: Any, engine: str, device: str) -> Any:
    try:
        return tts_class.from_pretrained(device=device)
    except Exception as error:  # of the network, of the hub, of the disk
        raise EngineUnavailable(
            f"cannot get the weights of {engine} ({first_line(error)}); name a folder by --weights DIR, or run without"
            " any by --random-weights full (timing only)"
        ) from None


def load_streaming(wanted: Wanted, device: Device) -> Ready:
    return _bundled(wanted, device, 1, False, "streaming")


def load_hybrid(wanted: Wanted, device: Device) -> Ready:
    return _bundled(wanted, device, 1, True, "T3 and S3Gen overlapped")


def load_final(wanted: Wanted, device: Device) -> Ready:
    graphs = "CUDA graphs, " if device.name == "cuda" else ""
    return _bundled(wanted, device, wanted.streams, False, f"{graphs}continuous batching, streaming")


def _bundled(wanted: Wanted, device: Device, streams: int, whole: bool, optimization: str) -> Ready:
    try:
        from gpu_server.engines.chatterbox.engine import load_engine
    except ImportError as error:
        raise EngineUnavailable(f"the chatterbox engine is not installed ({error})") from error
    options = EngineOptions(
        weights=wanted.weights, random_weights=wanted.random_weights, device=device.name, streams=streams
    )
    engine = load_engine(ENGINES[wanted.engine], options)
    fewer = f"only {engine.streams} streams at a time fit into the device's memory: the others wait"
    notes = (fewer,) if engine.streams < streams else ()
    return Ready(Bundled(engine, whole), engine.weights, _size(wanted), optimization, notes)


def _size(wanted: Wanted) -> str:
    """Of a model that has been loaded: as asked for, or as its folder says. Upstream's folders say nothing."""
    from gpu_server.engines.chatterbox.checkpoint import SIZE_FILE

    if wanted.random_weights is not None:
        return wanted.random_weights
    told = wanted.weights / SIZE_FILE if wanted.weights is not None else None
    return str(json.loads(told.read_text())["size"]) if told is not None and told.is_file() else "full"


KINDS: dict[str, Kind] = {
    "baseline": Kind("upstream's own generate(), unoptimised: what the others are compared with", load_upstream),
    "streaming": Kind("the bundled engine, one stream: time to each chunk", load_streaming, streams=True),
    "onnx_cpu": Kind("S3Gen's estimator and HiFT in ONNX Runtime on the CPU, beside PyTorch"),
    "onnx_tensorrt": Kind("the same by ONNX Runtime's TensorRT provider (a GPU)"),
    "vllm": Kind("any server of OpenAI's speech route, such as vLLM's, at --host, under Locust"),
    "s3gen_tensorrt": Kind("S3Gen's estimator by TensorRT, HiFT in PyTorch (a GPU)"),
    "hybrid_pipeline": Kind("the bundled engine: T3 and S3Gen overlapped, whole answers", load_hybrid),
    "final_optimized": Kind("the bundled engine, all of it: graphs, batch, streaming", load_final, streams=True),
}
ONNX_PROVIDERS: dict[str, str] = {
    "onnx_cpu": "CPUExecutionProvider",
    "onnx_tensorrt": "TensorrtExecutionProvider",
    "s3gen_tensorrt": "TensorrtExecutionProvider",
}

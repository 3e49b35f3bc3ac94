"""S3Gen's stages by ONNX Runtime beside PyTorch, as a benchmark's results. Times nothing: onnx_stages.py does.

A result's latency and rtf are of the exported stages alone, speech tokens to samples; `pytorch` holds the same stages'
in the same process. T3 is not part of either.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpu_server.baseline_device import Device
from gpu_server.baseline_kinds import ENGINES, ONNX_PROVIDERS, Wanted
from gpu_server.baseline_protocol import Run, TextRuns, latency, real_time_factor
from gpu_server.baseline_result import Document, rounded
from gpu_server.speech import EngineUnavailable

WARM_UPS = 1  # what onnx_stages.measure does before it times a text, both ways


@dataclass(frozen=True, slots=True)
class StageRuns:
    """What was timed. beside: by text, PyTorch's figures and how many times as fast ONNX Runtime was."""

    weights: str
    size: str
    optimization: str
    texts: list[TextRuns]
    beside: dict[str, Document]
    notes: list[str]

    @property
    def runs(self) -> dict[str, int]:
        return {text.name: len(text.runs) for text in self.texts}


def measure(kind: str, wanted: Wanted, device: Device, texts: Mapping[str, str], runs: int) -> StageRuns:
    """Time the stages in turn, on the same speech tokens.

    Raises EngineUnavailable: no onnxruntime, no such provider in it, no CUDA.
    """
    provider = ONNX_PROVIDERS[kind]
    if importlib.util.find_spec("onnxruntime") is None:
        raise EngineUnavailable(f"--kind {kind}: onnxruntime is not installed; run: pip install -e '.[onnx]'")
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        instead = "install onnxruntime-gpu and TensorRT's libraries in its place"
        raise EngineUnavailable(f"--kind {kind}: this onnxruntime has no {provider}; {instead}")
    if kind != "onnx_cpu" and device.name != "cuda":
        raise EngineUnavailable(f"--kind {kind}: no CUDA device, and {provider} runs on nothing else")
    from gpu_server.engines.chatterbox import checkpoint, onnx_stages

    model = checkpoint.load(ENGINES[wanted.engine], wanted.weights, wanted.random_weights)
    stages = ("estimator",) if kind == "s3gen_tensorrt" else onnx_stages.STAGES
    found: dict[str, Any] = onnx_stages.measure(model, [provider], device.name, texts, runs, stages=stages)
    told = [_text_runs(name, text, found[name]) for name, text in texts.items()]
    beside = {name: _beside(found[name]) for name in texts}
    optimization = f"ONNX Runtime, {provider}"
    return StageRuns(model.weights, model.size, optimization, told, beside, ["S3Gen and HiFT alone, without T3"])


def _text_runs(name: str, text: str, found: Mapping[str, Any]) -> TextRuns:
    timed = tuple(Run(ms / 1000, ms / 1000, 1, found["audio_samples"]) for ms in found["onnx_ms"])
    return TextRuns(name, text, timed, 0, None, None)


def _beside(found: Mapping[str, Any]) -> Document:
    onnx, torch = latency(found["onnx_ms"]), latency(found["torch_ms"])
    return {
        "pytorch": {
            "latency": rounded(torch),
            "rtf": round(real_time_factor(torch["mean_ms"], found["audio_samples"]), 3),
        },
        "ratio": round(torch["mean_ms"] / onnx["mean_ms"], 2),
    }

"""S3Gen's stages by ONNX Runtime beside PyTorch, as a benchmark's results. Times nothing: onnx_stages.py does.

A result's latency and rtf are of S3Gen and HiFT alone, speech tokens to samples, with the exported stages in their
place; `pytorch` holds the same without, in the same process, and it is what they are compared with. T3 is in neither.
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gpu_server.baseline_device import Device
from gpu_server.baseline_kinds import ENGINES, ONNX_PROVIDERS, Wanted
from gpu_server.baseline_protocol import Run, Steps, TextRuns, latency, real_time_factor
from gpu_server.baseline_result import Document, ratios, rounded, summary
from gpu_server.speech import EngineUnavailable

WAYS = ("onnx", "torch")
WARM_UPS = 1  # what onnx_stages.measure does before it times a text, both ways
STAGES: dict[str, tuple[Literal["estimator", "hift"], ...]] = {
    "onnx_cpu": ("estimator", "hift"),
    "onnx_tensorrt": ("estimator", "hift"),
    "s3gen_tensorrt": ("estimator",),
}


@dataclass(frozen=True, slots=True)
class StageRuns:
    """What was timed. beside: by text, PyTorch's figures and how many times as fast ONNX Runtime was.

    comparison: the same over all texts, as baseline_result.compare has it.
    """

    weights: str
    size: str
    optimization: str
    texts: list[TextRuns]
    beside: dict[str, Document]
    comparison: Document
    steps: Steps
    notes: list[str]


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
    cleared = int(device.clear())
    found: dict[str, Any] = onnx_stages.measure(model, [provider], device.name, texts, runs, stages=STAGES[kind])
    onnx, torch = ([_text_runs(name, text, found[name], way) for name, text in texts.items()] for way in WAYS)
    timed = sum(len(text.runs) for text in (*onnx, *torch))
    steps = Steps(
        cleared=cleared,
        warm_ups=WARM_UPS,
        warmed_up_with="of each text, each way",
        timed=timed,
        synchronized=timed if device.name == "cuda" else 0,
        runs={text.name: len(text.runs) for text in onnx},
    )
    return StageRuns(
        model.weights,
        model.size,
        f"ONNX Runtime, {provider}: {', '.join(STAGES[kind])}",
        onnx,
        {name: _beside(found[name]) for name in texts},
        ratios("the same in PyTorch, in turn, in the same process", summary(torch, False), summary(onnx, False)),
        steps,
        ["S3Gen and HiFT alone, without T3"],
    )


def _text_runs(name: str, text: str, found: Mapping[str, Any], way: str) -> TextRuns:
    timed = tuple(Run(ms / 1000, ms / 1000, 1, found["audio_samples"]) for ms in found[f"{way}_ms"])
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

"""S3Gen's estimator and HiFT's decoder in ONNX: export them, check them against torch, time them beside torch.

`python -m gpu_server.engines.chatterbox.onnx_stages --help`. The estimator is the net that the flow asks at each of its
steps; HiFT's decoder makes samples of mel frames and the source (whose sines and noise stay in torch). Knows nothing of
T3, of requests or of results' files. Float32; what a provider does inside (TensorRT: TF32) is its own.
"""

import argparse
import copy
import importlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from gpu_server.engines.chatterbox import upstream
from gpu_server.engines.chatterbox.build import Kind
from gpu_server.engines.chatterbox.text import expected_tokens
from gpu_server.speech import EngineUnavailable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gpu_server.engines.chatterbox.checkpoint import Model

Stage = Literal["estimator", "hift"]
Inputs = dict[str, "Tensor"]

STAGES: tuple[Stage, ...] = ("estimator", "hift")
FACTS_FILE = "stages.json"
OPSET = 17
LIMIT = 1e-3  # of the peak: what an exported stage may differ from torch
CPU = "CPUExecutionProvider"

_KINDS: dict[str, Kind] = {"chatterbox-turbo": "turbo", "chatterbox": "original"}
_MELS = 80
_FRAME = 480  # samples of a mel frame
_TRACED = (2, 12)  # rows and mel frames; other than all that is checked, so that no size can have been written down
_CHECKED = ((1, 37), (3, 50))
_SEED = 1
_INSTALL = "pip install -e '.[chatterbox,onnx]'"
_HOW = {
    "TensorrtExecutionProvider": "it needs an NVIDIA GPU: pip uninstall onnxruntime && pip install onnxruntime-gpu"
    " tensorrt",
    "CUDAExecutionProvider": "it needs an NVIDIA GPU: pip uninstall onnxruntime && pip install onnxruntime-gpu",
}

EPILOG = """writes estimator.onnx, hift.onnx and stages.json (shapes, opset, differences) into --out, when all is well.

examples:
  python -m gpu_server.engines.chatterbox.onnx_stages --engine chatterbox-turbo --random-weights tiny --out exported
  python -m gpu_server.engines.chatterbox.onnx_stages --engine chatterbox --weights checkpoints/mine --out exported

exit status: 0 written; 1 something is missing, or a stage differs from torch. Without weights named, the hub's.
"""


class StageDiffers(Exception):
    """An exported stage does not give what torch gives; the message says which and by how much."""


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison with torch. peak: the largest value that torch gave; relative: difference by peak."""

    rows: int
    frames: int
    peak: float
    difference: float
    relative: float

    @property
    def passed(self) -> bool:
        return self.relative <= LIMIT  # false of NaN


def main(arguments: Sequence[str] | None = None) -> int:
    """Export and check; the exit status."""
    options = _parser().parse_args(arguments)
    try:
        upstream.load()
        _need_onnx()
        from gpu_server.engines.chatterbox import checkpoint

        model = checkpoint.load(_KINDS[options.engine], options.weights, options.random_weights)
        facts = export(model, options.out)
    except (EngineUnavailable, StageDiffers) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"cannot write {error.filename or options.out}: {error.strerror or error}")
    except KeyboardInterrupt:
        return 130  # as a shell says it of Ctrl-C
    for stage, told in facts["stages"].items():
        for check in told["checks"]:
            sizes = f"{check['rows']} x {check['frames']} frames"
            print(f"{stage}: {sizes}: max |ONNX - torch| {check['difference']:.2e} of a peak of {check['peak']:.3g}")
    print(f"Written: {', '.join(str(options.out / name) for name in _files(STAGES))}")
    return 0


def export(model: "Model", folder: Path, stages: Sequence[Stage] = STAGES) -> dict[str, Any]:
    """Write the stages and FACTS_FILE into `folder`, each stage checked against upstream's own; returns the facts.

    The model stays as it is, and is to be on the CPU. Raises StageDiffers, with nothing written, and EngineUnavailable
    where a package is missing.
    """
    _need_onnx()
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    facts: dict[str, Any] = {
        "model": model.kind,
        "size": model.size,
        "weights": model.weights,
        "static_chunk_size": model.s3gen.flow.decoder.estimator.static_chunk_size,
        "opset": OPSET,
        "torch": torch.__version__,
        "limit": LIMIT,
        "stages": {},
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as draft:
        for stage in stages:
            path = Path(draft) / f"{stage}.onnx"
            _EXPORTS[stage](model.s3gen, path)
            checks = check(model, stage, path)
            bad = next((one for one in checks if not one.passed), None)
            if bad is not None:
                raise StageDiffers(
                    f"{stage}: ONNX differs from torch by {bad.relative:.1e} of the peak at {bad.rows} x {bad.frames}"
                    f" frames, more than {LIMIT:g}; nothing was written"
                )
            facts["stages"][stage] = _shapes(path) | {"checks": [asdict(one) for one in checks]}
        (Path(draft) / FACTS_FILE).write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n")
        for name in _files(stages):
            os.replace(Path(draft) / name, folder / name)
    return facts


def check(model: "Model", stage: Stage, path: Path) -> list[Check]:
    """Compare an exported stage, run on the CPU, with upstream's own, at each of the sizes that are checked."""
    import torch

    session = open_session(path, CPU)
    found = []
    for rows, frames in _CHECKED:
        inputs = _INPUTS[stage](model.s3gen, rows, frames)
        with torch.inference_mode():
            wanted = _original(model.s3gen, stage)(**inputs)
        got = _run(session, inputs, tuple(wanted.shape), wanted.device)
        peak, difference = float(wanted.abs().max()), float((got - wanted).abs().max())
        found.append(Check(rows, frames, peak, difference, difference / peak if peak > 0 else float("nan")))
    return found


def measure(
    model: "Model",
    providers: Sequence[str],
    device: str,
    texts: Mapping[str, str],
    runs: int,
    *,
    stages: Sequence[Stage] = STAGES,
) -> dict[str, dict[str, Any]]:
    """Time S3Gen and HiFT, speech tokens to samples, with `stages` by ONNX Runtime and without; by the texts' names.

    texts: name to text; only its expected length counts, its speech tokens are random. Both ways run upstream's code on
    the same tokens, voice and noise, in turn, in the same process. Of each run: `onnx_ms` and `torch_ms`, and their
    two parts `onnx_s3gen_ms`, `onnx_hift_ms`, `torch_s3gen_ms`, `torch_hift_ms`. `ratio`: mean torch by mean ONNX;
    `difference`: of the samples, by their peak, None where it is no number; `nodes`: of each stage, how many ran by
    which provider. The model's S3Gen is moved to `device`. Raises EngineUnavailable: a provider that ONNX Runtime has
    not, that did not start, or that computes elsewhere.
    """
    if runs < 1 or not texts:
        raise ValueError("nothing to measure: no text, or no run")
    provider = _provider(providers, device)
    import torch

    sent = {name: _tokens(expected_tokens(text)).to(device) for name, text in texts.items()}
    with tempfile.TemporaryDirectory(prefix="onnx-stages-") as draft:
        model.s3gen.to("cpu")
        export(model, Path(draft), stages)
        model.s3gen.to(device)
        sessions = {stage: open_session(Path(draft) / f"{stage}.onnx", provider) for stage in stages}
        nodes = {stage: nodes_by_provider(session) for stage, session in sessions.items()}
        way = _Way(model, torch.device(device))
        by_length = sorted(sent, key=lambda name: sent[name].shape[1])
        differences = {}
        # The longest first, then the shortest: TensorRT builds its engine anew for a size outside what it has seen.
        for name in (by_length[-1], *by_length[:-1]):
            plain = way.run(sent[name])
            with in_place(model.s3gen, sessions):
                differences[name] = _relative_difference(way.run(sent[name]).samples, plain.samples)
        return {
            name: _timed(way, tokens, sessions, runs) | {"difference": differences[name], "nodes": nodes}
            for name, tokens in sent.items()
        }


def open_session(path: Path, provider: str) -> Any:
    """An ONNX Runtime session whose first choice is `provider`. Raises EngineUnavailable, and never takes another."""
    ort = _need_onnx()
    _check_provider(provider)
    import torch

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as many as torch has
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle, it would slow torch's turn down
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.log_severity_level = 3
    if provider == "TensorrtExecutionProvider" and importlib.util.find_spec("tensorrt") is not None:
        importlib.import_module("tensorrt")  # so that its libraries are found
    session = ort.InferenceSession(str(path), options, providers=[provider])
    if session.get_providers()[0] != provider:
        raise EngineUnavailable(f"ONNX Runtime could not start {provider}; {_how(provider)}")
    if provider not in nodes_by_provider(session):
        raise EngineUnavailable(f"{provider} takes no part of {path.name}: ONNX Runtime runs all of it by another")
    return session


def nodes_by_provider(session: Any) -> dict[str, int]:
    """How many nodes of the graph each provider runs: what one does not know, ONNX Runtime gives to the CPU's."""
    counted: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        counted[part.ep_name] += len(part.get_nodes())
    return dict(counted)


@contextmanager
def in_place(s3gen: Any, sessions: Mapping[Stage, Any]) -> Iterator[None]:
    """Within, upstream's S3Gen asks the sessions in the place of its own estimator and decoder. Not thread-safe."""
    replaced: list[tuple[Any, str]] = []
    try:
        if "estimator" in sessions:
            estimator = s3gen.flow.decoder.estimator
            estimator.forward = _estimator_by(sessions["estimator"])
            replaced.append((estimator, "forward"))
        if "hift" in sessions:
            s3gen.mel2wav.decode = _decoder_by(sessions["hift"])
            replaced.append((s3gen.mel2wav, "decode"))
        yield
    finally:
        for owner, name in replaced:
            delattr(owner, name)  # the class's own is left


def _estimator_by(session: Any) -> Callable[..., "Tensor"]:
    def forward(
        x: "Tensor",
        *,
        mask: "Tensor",
        mu: "Tensor",
        t: "Tensor",
        spks: "Tensor",
        cond: "Tensor",
        r: "Tensor | None" = None,
    ) -> "Tensor":
        rows = x.shape[0]
        inputs = {"x": x, "mask": mask, "mu": mu, "t": t.expand(rows), "spks": spks, "cond": cond}
        if r is not None:
            inputs["r"] = r.expand(rows)
        return _run(session, inputs, tuple(x.shape), x.device)

    return forward


def _decoder_by(session: Any) -> Callable[..., "Tensor"]:
    def decode(x: "Tensor", s: "Tensor") -> "Tensor":
        return _run(session, {"mel": x, "source": s}, (x.shape[0], x.shape[2] * _FRAME), x.device)

    return decode


def _run(session: Any, inputs: Inputs, shape: tuple[int, ...], device: "torch.device") -> "Tensor":
    """Run where the tensors are, without a copy: float32 in, a float32 tensor of `shape` out."""
    import numpy as np
    import torch

    held = {name: value.detach().float().contiguous() for name, value in inputs.items()}
    result = torch.empty(shape, device=device)
    binding, index = session.io_binding(), device.index or 0
    for name, value in held.items():
        binding.bind_input(name, device.type, index, np.float32, tuple(value.shape), value.data_ptr())
    output = session.get_outputs()[0].name
    binding.bind_output(output, device.type, index, np.float32, shape, result.data_ptr())
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # ONNX Runtime computes on a stream of its own
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    return result


@dataclass(frozen=True, slots=True)
class _Made:
    samples: "Tensor"
    s3gen_s: float
    hift_s: float


class _Way:
    """Upstream's own way from speech tokens to samples, timed, with the same noise each time."""

    def __init__(self, model: "Model", device: "torch.device") -> None:
        self.s3gen, self._device = model.s3gen, device
        self._voice = dict(model.conds.gen)  # upstream writes into the one that it is given

    def run(self, tokens: "Tensor") -> _Made:
        import torch

        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(_SEED)
            began_at = self._now()
            mel = self.s3gen.flow_inference(tokens, ref_dict=dict(self._voice), finalize=True)
            between_at = self._now()
            samples, _ = self.s3gen.hift_inference(mel)
            return _Made(samples, between_at - began_at, self._now() - between_at)

    def _now(self) -> float:
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _timed(way: _Way, tokens: "Tensor", sessions: Mapping[Stage, Any], runs: int) -> dict[str, Any]:
    import torch

    made: dict[str, list[_Made]] = {"onnx": [], "torch": []}
    for run in range(runs):
        for name in ("torch", "onnx") if run % 2 == 0 else ("onnx", "torch"):  # so that neither always comes second
            with in_place(way.s3gen, sessions if name == "onnx" else {}):
                made[name].append(way.run(tokens))
    found: dict[str, Any] = {
        "speech_tokens": tokens.shape[1],
        "audio_samples": made["onnx"][0].samples.shape[1],
        "threads": torch.get_num_threads(),
    }
    for name, all_made in made.items():
        found[f"{name}_ms"] = [1000 * (one.s3gen_s + one.hift_s) for one in all_made]
        found[f"{name}_s3gen_ms"] = [1000 * one.s3gen_s for one in all_made]
        found[f"{name}_hift_ms"] = [1000 * one.hift_s for one in all_made]
    return found | {"ratio": sum(found["torch_ms"]) / sum(found["onnx_ms"])}


def _tokens(count: int) -> "Tensor":
    import torch

    return torch.randint(0, 6561, (1, count), generator=torch.Generator().manual_seed(_SEED))


def _relative_difference(got: "Tensor", wanted: "Tensor") -> float | None:
    """By the peak of what is wanted; None where that is no number."""
    import torch

    relative = (got - wanted).abs().max() / wanted.abs().max()
    return float(relative) if torch.isfinite(relative) else None


def _export_estimator(s3gen: Any, path: Path) -> None:
    estimator = s3gen.flow.decoder.estimator
    times = {0: "rows", 2: "frames"}
    inputs = _estimator_inputs(s3gen, *_TRACED)
    axes = {name: times if value.ndim == 3 else {0: "rows"} for name, value in inputs.items()}
    with _chunk_mask_that_asks_nothing():
        _trace(estimator, inputs, "slope", axes | {"slope": times}, path)


def _export_hift(s3gen: Any, path: Path) -> None:
    from gpu_server.engines.chatterbox.fourier import Fourier

    hift = _without_weight_norm(s3gen.mel2wav)
    fourier = Fourier()
    hift._stft, hift._istft = fourier.stft, fourier.istft
    hift.fourier = fourier
    hift.forward = hift.decode
    axes = {
        "mel": {0: "rows", 2: "frames"},
        "source": {0: "rows", 2: "samples"},
        "samples": {0: "rows", 1: "samples"},
    }
    _trace(hift, _hift_inputs(s3gen, *_TRACED), "samples", axes, path)


_EXPORTS: dict[Stage, Callable[[Any, Path], None]] = {"estimator": _export_estimator, "hift": _export_hift}


@upstream.quiet()
def _trace(module: Any, inputs: Inputs, output: str, axes: dict[str, dict[int, str]], path: Path) -> None:
    """By torch's older exporter, which needs no further package."""
    import torch

    with torch.no_grad():
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


@contextmanager
def _chunk_mask_that_asks_nothing() -> Iterator[None]:
    """Upstream's mask looks at its values, to force rows that are masked whole: that would be traced as a constant."""
    decoder = upstream.module("models.s3gen.decoder")
    chunks = upstream.module("models.s3gen.utils.mask").subsequent_chunk_mask

    def chunk_mask(xs: "Tensor", masks: "Tensor", _: bool, __: bool, ___: int, static_chunk: int, ____: int) -> Any:
        return masks & chunks(xs.size(1), static_chunk, -1, xs.device)[None] if static_chunk > 0 else masks

    kept = decoder.add_optional_chunk_mask
    decoder.add_optional_chunk_mask = chunk_mask
    try:
        yield
    finally:
        decoder.add_optional_chunk_mask = kept


def _without_weight_norm(module: Any) -> Any:
    """A copy with plain weights: a weight that is a product would be computed in each run, and TensorRT wants it known.

    torch's remove_parametrizations cannot do it: it takes the weight away from the class, which a copy shares.
    """
    import torch
    from torch.nn.utils import parametrize

    plain = copy.deepcopy(module)
    for part in plain.modules():
        if parametrize.is_parametrized(part):
            weights = {name: getattr(part, name).detach() for name in part.parametrizations}
            part.__class__ = parametrize.type_before_parametrizations(part)
            del part.parametrizations
            for name, weight in weights.items():
                setattr(part, name, torch.nn.Parameter(weight, requires_grad=False))
    return plain


def _original(s3gen: Any, stage: Stage) -> Callable[..., "Tensor"]:
    if stage == "estimator":
        forward: Callable[..., Tensor] = s3gen.flow.decoder.estimator.forward
        return forward
    return lambda mel, source: s3gen.mel2wav.decode(x=mel, s=source)


def _estimator_inputs(s3gen: Any, rows: int, frames: int) -> Inputs:
    """As upstream's solver gives them; of the last of several rows the second half is padding."""
    import torch

    generator = torch.Generator().manual_seed(_SEED)
    mask = torch.ones(rows, 1, frames)
    if rows > 1:
        mask[-1, :, frames // 2 :] = 0
    inputs = {
        "x": torch.randn(rows, _MELS, frames, generator=generator),
        "mask": mask,
        "mu": torch.randn(rows, _MELS, frames, generator=generator),
        "t": torch.rand(rows, generator=generator),
        "spks": torch.randn(rows, _MELS, generator=generator),
        "cond": torch.randn(rows, _MELS, frames, generator=generator),
    }
    return inputs | ({"r": torch.rand(rows, generator=generator)} if s3gen.meanflow else {})


def _hift_inputs(s3gen: Any, rows: int, frames: int) -> Inputs:
    """Mel frames as loud as speech, and a source as loud as upstream's."""
    import torch

    generator = torch.Generator().manual_seed(_SEED)
    return {
        "mel": torch.rand(rows, _MELS, frames, generator=generator) * 10 - 10,
        "source": torch.randn(rows, 1, frames * _FRAME, generator=generator) * 0.1,
    }


_INPUTS: dict[Stage, Callable[[Any, int, int], Inputs]] = {"estimator": _estimator_inputs, "hift": _hift_inputs}


def _shapes(path: Path) -> dict[str, Any]:
    """Names and sizes of what goes in and out; a size that may be any is told by its name."""
    session = open_session(path, CPU)
    return {
        "inputs": {one.name: list(one.shape) for one in session.get_inputs()},
        "outputs": {one.name: list(one.shape) for one in session.get_outputs()},
    }


def _files(stages: Sequence[Stage]) -> list[str]:
    return [*(f"{stage}.onnx" for stage in stages), FACTS_FILE]


def _need_onnx() -> Any:
    """The package onnxruntime. Raises EngineUnavailable."""
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineUnavailable(f"{' and '.join(missing)} not installed; run: {_INSTALL}")
    return importlib.import_module("onnxruntime")


def _provider(providers: Sequence[str], device: str) -> str:
    """The one provider that was asked for. Raises EngineUnavailable where it is not here, or computes elsewhere."""
    if len(providers) != 1:
        raise ValueError(f"one provider at a time, not {', '.join(providers) or 'none'}")
    provider = providers[0]
    _check_provider(provider)
    if (provider == CPU) != (device.partition(":")[0] == "cpu"):
        fit = "cpu" if provider == CPU else "cuda"
        raise EngineUnavailable(f"{provider} does not compute on {device}; use --device {fit}")
    return provider


def _check_provider(provider: str) -> None:
    available = _need_onnx().get_available_providers()
    if provider not in available:
        raise EngineUnavailable(
            f"ONNX Runtime has no {provider} here (it has {', '.join(available)}); {_how(provider)}"
        )


def _how(provider: str) -> str:
    return _HOW.get(provider, "see onnxruntime.ai/docs/execution-providers")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m gpu_server.engines.chatterbox.onnx_stages",
        description="Export S3Gen's flow estimator and HiFT's decoder to ONNX, and check them against PyTorch.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--engine", choices=_KINDS, required=True, help="which model")
    whence = parser.add_mutually_exclusive_group()
    whence.add_argument("--weights", type=Path, metavar="DIR", help="folder of weights (default: from the hub)")
    whence.add_argument("--random-weights", choices=("tiny", "full"), help="no weights: for timing only")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into")
    return parser


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"onnx_stages: {message}; see {self.prog} --help\n")


def _fail(line: str) -> int:
    print(f"onnx_stages: {line}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

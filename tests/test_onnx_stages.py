"""HiFT's Fourier transforms against torch's; S3Gen's exported stages against upstream's own, in a tiny size."""

import importlib
import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpu_server.engines.chatterbox import onnx_stages, upstream
from gpu_server.engines.chatterbox.onnx_stages import CPU, STAGES, Stage, StageDiffers, main, measure
from gpu_server.speech import EngineUnavailable

onnxruntime: Any = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
torch: Any = pytest.importorskip("torch", reason="the extra `chatterbox` is not installed")
if any(importlib.util.find_spec(name) is None for name in ("onnx", "chatterbox")):
    # Not importorskip: importing chatterbox by itself fails where torchaudio finds no CUDA.
    pytest.skip("the extra `onnx`, or chatterbox-tts, is not installed", allow_module_level=True)

checkpoint: Any = importlib.import_module("gpu_server.engines.chatterbox.checkpoint")
fourier: Any = importlib.import_module("gpu_server.engines.chatterbox.fourier")

SIZES = [(1, 23), (4, 64)]  # rows and mel frames; neither traced nor checked by the export itself
TEXTS = {"hello": "Hello, how can I help?", "long": "Your order will arrive on Monday."}


def made(kind: Any, seed: int) -> Any:
    """A tiny model whose output hangs on all of its input: upstream's first weights leave some of it out."""
    upstream.load()
    model = checkpoint.with_random_weights(kind, "tiny")
    generator = torch.Generator().manual_seed(seed)

    def draw(weight: Any, scale: float) -> None:
        weight.data.copy_(torch.randn(weight.shape, generator=generator) * scale)

    mixer = model.s3gen.flow.decoder.estimator.time_embed_mixer
    if mixer is not None:
        draw(mixer.weight, 0.1)
    for layer in (model.s3gen.mel2wav.conv_post, *model.s3gen.mel2wav.ups):
        draw(layer.parametrizations.weight.original0, 1.0)
    return model


@pytest.fixture(scope="module")
def turbo() -> Any:
    return made("turbo", 1)


@pytest.fixture(scope="module")
def exported(turbo: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    onnx_stages.export(turbo, folder)
    return folder


@pytest.fixture(scope="module")
def other() -> Any:
    return made("turbo", 2)


@pytest.fixture(scope="module")
def other_exported(other: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    onnx_stages.export(other, folder)
    return folder


def estimator_inputs(rows: int, frames: int, ends: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(frames)
    mask = torch.ones(rows, 1, frames)
    mask[-1, :, frames - 5 :] = 0
    inputs = {
        **{name: torch.randn(rows, 80, frames, generator=generator) for name in ("x", "mu", "cond")},
        "spks": torch.randn(rows, 80, generator=generator),
        "t": torch.rand(rows, generator=generator),
        "mask": mask,
    }
    return inputs | ({"r": torch.rand(rows, generator=generator)} if ends else {})


def hift_inputs(rows: int, frames: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(frames)
    mel = torch.randn(rows, 80, frames, generator=generator)
    return {"mel": mel, "source": torch.randn(rows, 1, 480 * frames, generator=generator) * 0.1}


def by_onnx(path: Path, inputs: dict[str, Any]) -> Any:
    session = onnxruntime.InferenceSession(str(path), providers=[CPU])
    return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])


@torch.inference_mode()
def by_torch(model: Any, stage: Stage, inputs: dict[str, Any]) -> Any:
    if stage == "hift":
        return model.s3gen.mel2wav.decode(x=inputs["mel"], s=inputs["source"])
    return model.s3gen.flow.decoder.estimator(**inputs)


def same(got: Any, wanted: Any, limit: float = 1e-4) -> bool:
    return got.shape == wanted.shape and float((got - wanted).abs().max() / wanted.abs().max()) < limit


@pytest.mark.parametrize("samples", [9, 10, 11, 12, 480, 4803])
def test_the_transform_is_torchs(samples: int) -> None:
    signal = torch.randn(3, samples, generator=torch.Generator().manual_seed(samples))
    wanted = torch.stft(signal, 16, fourier.HOP, 16, window=torch.hann_window(16), return_complex=True)
    real, imaginary = fourier.Fourier().stft(signal)
    torch.testing.assert_close(real, wanted.real, atol=1e-5, rtol=0)
    torch.testing.assert_close(imaginary, wanted.imag, atol=1e-5, rtol=0)


@pytest.mark.parametrize("times", [2, 3, 4, 5, 121, 1201])
def test_the_inverse_is_upstreams_and_clips_as_it_does(turbo: Any, times: int) -> None:
    generator = torch.Generator().manual_seed(times)
    magnitude = torch.exp(torch.randn(2, 9, times, generator=generator))
    phase = torch.sin(torch.randn(2, 9, times, generator=generator))
    got, wanted = fourier.Fourier().istft(magnitude, phase), turbo.s3gen.mel2wav._istft(magnitude, phase)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    magnitude[:, 4, 1] = 1e4
    wanted = turbo.s3gen.mel2wav._istft(magnitude, phase)
    torch.testing.assert_close(fourier.Fourier().istft(magnitude, phase), wanted, atol=1e-4, rtol=0)


def test_the_inverse_gives_the_samples_back() -> None:
    signal = torch.randn(2, 480, generator=torch.Generator().manual_seed(0))
    transforms = fourier.Fourier()
    spectrum = torch.complex(*transforms.stft(signal))
    torch.testing.assert_close(transforms.istft(spectrum.abs(), spectrum.angle()), signal, atol=1e-5, rtol=0)


def test_the_tables_move_with_the_module_and_are_not_saved() -> None:
    transforms = fourier.Fourier()
    assert transforms.state_dict() == {}
    assert {table.device.type for table in transforms.to("meta").buffers()} == {"meta"}


@pytest.mark.parametrize(("rows", "frames"), SIZES)
def test_the_estimator_is_torchs_at_any_size(turbo: Any, exported: Path, rows: int, frames: int) -> None:
    inputs = estimator_inputs(rows, frames, ends=True)
    assert same(by_onnx(exported / "estimator.onnx", inputs), by_torch(turbo, "estimator", inputs))


@pytest.mark.parametrize(("rows", "frames"), SIZES)
def test_the_decoder_is_torchs_at_any_size(turbo: Any, exported: Path, rows: int, frames: int) -> None:
    inputs = hift_inputs(rows, frames)
    assert same(by_onnx(exported / "hift.onnx", inputs), by_torch(turbo, "hift", inputs))


@pytest.mark.parametrize(
    ("stage", "name"),
    [*(("estimator", name) for name in ("x", "mu", "t", "spks", "cond", "r")), ("hift", "mel"), ("hift", "source")],
)
def test_each_input_counts(exported: Path, stage: Stage, name: str) -> None:
    inputs = hift_inputs(1, 12) if stage == "hift" else estimator_inputs(1, 12, ends=True)
    before = by_onnx(exported / f"{stage}.onnx", inputs)
    assert not same(by_onnx(exported / f"{stage}.onnx", inputs | {name: inputs[name] * 0.5}), before)


@pytest.mark.parametrize("chunk", [0, 8])
def test_the_originals_estimator_is_torchs_with_its_chunks(tmp_path: Path, chunk: int) -> None:
    original = made("original", 1)
    estimator = original.s3gen.flow.decoder.estimator
    estimator.static_chunk_size = chunk
    facts = onnx_stages.export(original, tmp_path, ["estimator"])
    assert facts["static_chunk_size"] == chunk
    assert "r" not in facts["stages"]["estimator"]["inputs"]
    inputs = estimator_inputs(2, 40, ends=False)
    got = by_onnx(tmp_path / "estimator.onnx", inputs)
    assert same(got, by_torch(original, "estimator", inputs))
    estimator.static_chunk_size = 8 - chunk
    assert not same(got, by_torch(original, "estimator", inputs))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_of_other_weights_is_refused_and_nothing_is_written(
    turbo: Any, other_exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    wrong = other_exported / f"{stage}.onnx"
    monkeypatch.setitem(onnx_stages._EXPORTS, stage, lambda _, path: shutil.copy(wrong, path))
    with pytest.raises(StageDiffers, match=rf"^{stage}: .* nothing was written$"):
        onnx_stages.export(turbo, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_stage_that_gives_no_numbers_is_refused(tmp_path: Path) -> None:
    broken = made("turbo", 1)
    broken.s3gen.mel2wav.conv_pre.bias.data[0] = float("nan")
    with pytest.raises(StageDiffers, match=r"^hift: ONNX differs from torch by nan"):
        onnx_stages.export(broken, tmp_path, ["hift"])


def test_the_model_is_as_it_was_after_an_export_and_a_measurement(turbo: Any) -> None:
    model, inputs = turbo, hift_inputs(1, 12)
    before, voice = by_torch(model, "hift", inputs), dict(model.conds.gen)
    measure(model, [CPU], "cpu", {"short": "Hi."}, 1)
    assert torch.equal(by_torch(model, "hift", inputs), before)
    assert torch.nn.utils.parametrize.is_parametrized(model.s3gen.mel2wav.conv_pre)
    assert all(model.conds.gen[name] is value for name, value in voice.items())
    assert "decode" not in vars(model.s3gen.mel2wav)
    assert "forward" not in vars(model.s3gen.flow.decoder.estimator)


def test_in_place_of_upstreams_own_the_sessions_are_asked(turbo: Any, other: Any, other_exported: Path) -> None:
    sessions = {stage: onnx_stages.open_session(other_exported / f"{stage}.onnx", CPU) for stage in STAGES}
    given = {"estimator": estimator_inputs(2, 20, ends=True), "hift": hift_inputs(2, 20)}
    own = {stage: by_torch(turbo, stage, given[stage]) for stage in STAGES}
    with onnx_stages.in_place(turbo.s3gen, sessions):
        replaced = {stage: by_torch(turbo, stage, given[stage]) for stage in STAGES}
    for stage in STAGES:
        assert same(replaced[stage], by_torch(other, stage, given[stage]))
        assert not same(replaced[stage], own[stage])


def test_a_measurement_holds_both_ways_and_their_ratio(turbo: Any) -> None:
    found = measure(turbo, [CPU], "cpu", TEXTS, 3)
    assert list(found) == list(TEXTS)
    for figures in found.values():
        assert figures["audio_samples"] == figures["speech_tokens"] * 960  # 25 tokens a second, at 24 kHz
        for way in ("onnx", "torch"):
            assert len(figures[f"{way}_ms"]) == 3
            parts = zip(figures[f"{way}_s3gen_ms"], figures[f"{way}_hift_ms"], strict=True)
            assert figures[f"{way}_ms"] == pytest.approx([sum(pair) for pair in parts])
            assert min(figures[f"{way}_s3gen_ms"] + figures[f"{way}_hift_ms"]) > 0
        assert figures["ratio"] == pytest.approx(sum(figures["torch_ms"]) / sum(figures["onnx_ms"]))
        assert figures["difference"] < onnx_stages.LIMIT
        assert list(figures["nodes"]) == list(STAGES)
        assert all(list(by_provider) == [CPU] for by_provider in figures["nodes"].values())
    assert found["long"]["speech_tokens"] > found["hello"]["speech_tokens"]


def test_a_stage_that_is_not_asked_for_stays_in_torch(
    turbo: Any, other_exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = measure(turbo, [CPU], "cpu", {"short": "Hi."}, 1, stages=("estimator",))["short"]
    assert list(plain["nodes"]) == ["estimator"]
    monkeypatch.setattr(
        onnx_stages, "export", lambda model, folder, stages: shutil.copytree(other_exported, folder, dirs_exist_ok=True)
    )
    faulty = measure(turbo, [CPU], "cpu", {"short": "Hi."}, 1, stages=("hift",))["short"]
    assert plain["difference"] < onnx_stages.LIMIT < faulty["difference"]


def test_nothing_to_measure_is_an_error(turbo: Any) -> None:
    for texts, runs in ((TEXTS, 0), ({}, 3)):
        with pytest.raises(ValueError, match="nothing to measure"):
            measure(turbo, [CPU], "cpu", texts, runs)


@pytest.mark.parametrize(("provider", "how"), [("TensorrtExecutionProvider", "tensorrt"), ("NoProvider", "docs")])
def test_a_missing_provider_is_refused_by_name(
    turbo: Any, monkeypatch: pytest.MonkeyPatch, provider: str, how: str
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    with pytest.raises(EngineUnavailable, match=rf"no {provider} here \(it has {CPU}\); .*{how}"):
        measure(turbo, [provider], "cuda", TEXTS, 1)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_onnx_runtime_leaves_out_is_refused(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has it")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU])
    with pytest.raises(EngineUnavailable, match="could not start CUDAExecutionProvider"):
        onnx_stages.open_session(exported / "hift.onnx", "CUDAExecutionProvider")


def test_a_provider_that_takes_no_part_is_refused(exported: Path) -> None:
    idle = "AzureExecutionProvider"  # started without complaint, and computes none of it
    if idle not in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no {idle}")
    with pytest.raises(EngineUnavailable, match=f"{idle} takes no part of hift.onnx"):
        onnx_stages.open_session(exported / "hift.onnx", idle)


@pytest.mark.parametrize(("provider", "device"), [(CPU, "cuda"), ("TensorrtExecutionProvider", "cpu")])
def test_a_provider_that_computes_elsewhere_is_refused(
    turbo: Any, monkeypatch: pytest.MonkeyPatch, provider: str, device: str
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider", CPU])
    with pytest.raises(EngineUnavailable, match=f"{provider} does not compute on {device}"):
        measure(turbo, [provider], device, TEXTS, 1)


def test_the_command_writes_the_stages_and_their_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "folder"
    assert main(["--engine", "chatterbox-turbo", "--random-weights", "tiny", "--out", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["estimator.onnx", "hift.onnx", "stages.json"]
    facts = json.loads((folder / "stages.json").read_text())
    assert (facts["model"], facts["size"], facts["weights"], facts["opset"]) == ("turbo", "tiny", "random", 17)
    assert facts["stages"]["estimator"]["inputs"]["x"] == ["rows", 80, "frames"]
    assert facts["stages"]["hift"]["inputs"] == {"mel": ["rows", 80, "frames"], "source": ["rows", 1, "samples"]}
    for told in facts["stages"].values():
        sizes = {(check["rows"], check["frames"]) for check in told["checks"]}
        assert len(sizes) == 2
        assert all(0 <= check["relative"] <= facts["limit"] for check in told["checks"])
    out = capsys.readouterr().out
    assert [line.partition(":")[0] for line in out.splitlines()] == [*["estimator"] * 2, *["hift"] * 2, "Written"]


def missing_folder(folder: Path) -> list[str]:
    return ["--weights", str(folder / "none"), "--out", str(folder / "out")]


def out_is_a_file(folder: Path) -> list[str]:
    (folder / "file").write_text("")
    return ["--random-weights", "tiny", "--out", str(folder / "file")]


@pytest.mark.parametrize(
    ("given", "line"), [(missing_folder, "no such folder"), (out_is_a_file, "cannot write .*file: File exists")]
)
def test_the_command_says_in_one_line_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: Callable[[Path], list[str]], line: str
) -> None:
    assert main(["--engine", "chatterbox-turbo", *given(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith("onnx_stages: ")
    assert re.search(line, err)


def test_the_command_names_a_package_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    assert main(["--engine", "chatterbox", "--random-weights", "tiny", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "onnx_stages: onnxruntime not installed; run: pip install -e '.[chatterbox,onnx]'\n"
    )


def test_the_command_wants_to_know_where_to(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--engine", "chatterbox"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1

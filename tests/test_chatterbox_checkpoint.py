"""Weights from a folder: what is saved is loaded to the last digit, and whatever is wrong is named with its file."""

import functools
import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chatterbox_fixtures import KINDS, checkpoint, made, text_tokens, torch

from gpu_server.speech import EngineUnavailable

build: Any = importlib.import_module("gpu_server.engines.chatterbox.build")
safetensors: Any = importlib.import_module("safetensors.torch")

FILES = {
    "turbo": ("ve.safetensors", "t3_turbo_v1.safetensors", "s3gen_meanflow.safetensors"),
    "original": ("ve.safetensors", "t3_cfg.safetensors", "s3gen.safetensors"),
}
T3 = {"turbo": "t3_turbo_v1.safetensors", "original": "t3_cfg.safetensors"}
TOKENIZER = {"turbo": "tokenizer_config.json", "original": "tokenizer.json"}


@functools.cache
def model(kind: str) -> Any:
    """Of these tests alone: upstream's inference leaves things in a model."""
    return made(kind)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def saved(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(kind) / "weights"
    checkpoint.save(model(kind), folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to break. Files are links until they are written to: break them by replacing them."""
    copied = tmp_path / "weights"
    shutil.copytree(saved, copied, copy_function=lambda src, dst: Path(dst).symlink_to(src))
    return copied


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def refusal(kind: str, folder: Path) -> str:
    with pytest.raises(EngineUnavailable) as found:
        checkpoint.from_folder(kind, folder)
    said = str(found.value)
    assert "\n" not in said
    return said


# ---- what is right


def test_what_is_saved_is_loaded_to_the_last_digit(kind: str, saved: Path) -> None:
    saved_one, loaded = model(kind), checkpoint.from_folder(kind, saved)
    assert (loaded.kind, loaded.size, loaded.weights) == (kind, "tiny", "random")
    for part in ("t3", "s3gen", "voice_encoder"):
        before, after = getattr(saved_one, part).state_dict(), getattr(loaded, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before), part
    assert saved_one.conds.gen.keys() == loaded.conds.gen.keys()
    for name, value in saved_one.conds.gen.items():
        assert value is None or torch.equal(value, loaded.conds.gen[name]), name
    assert torch.equal(saved_one.conds.t3.speaker_emb, loaded.conds.t3.speaker_emb)
    assert torch.equal(saved_one.conds.t3.cond_prompt_speech_tokens, loaded.conds.t3.cond_prompt_speech_tokens)


def test_the_tokenizer_that_is_loaded_reads_texts_as_before(kind: str, saved: Path) -> None:
    loaded = checkpoint.from_folder(kind, saved)
    words = "Hello there, this is a test of 7 things."
    ids = text_tokens(kind, words).tolist()
    if kind == "turbo":
        assert loaded.tokenizer(words).input_ids == ids
    else:
        assert loaded.tokenizer.encode(words) == ids[1:-1]


def test_a_saved_folder_has_upstreams_files(kind: str, saved: Path) -> None:
    names = {path.name for path in saved.iterdir()}
    assert {*FILES[kind], TOKENIZER[kind], "conds.pt"} <= names


def test_random_weights_are_the_same_each_time_and_leave_the_seed_of_others_alone(kind: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = checkpoint.load(kind, None, "tiny")
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(6)
    second = checkpoint.load(kind, None, "tiny")
    assert first.weights == "random"
    for part in ("t3", "s3gen", "voice_encoder"):
        one, other = getattr(first, part).state_dict(), getattr(second, part).state_dict()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(first.conds.t3.speaker_emb, second.conds.t3.speaker_emb)


# ---- what is wrong


def test_a_folder_that_is_not_there_is_named(kind: str, tmp_path: Path) -> None:
    assert str(tmp_path / "nothing") in refusal(kind, tmp_path / "nothing")
    file = tmp_path / "file"
    file.write_text("")
    assert str(file) in refusal(kind, file)


@pytest.mark.parametrize("number", range(5))
def test_a_file_that_is_not_there_is_named(kind: str, folder: Path, number: int) -> None:
    name = (*FILES[kind], TOKENIZER[kind], "conds.pt")[number]
    (folder / name).unlink()
    said = refusal(kind, folder)
    assert str(folder) in said
    assert name in said


def test_a_folder_of_the_other_kind_says_which_engine_it_is_for(kind: str, saved: Path) -> None:
    other = "original" if kind == "turbo" else "turbo"
    engine = "--engine chatterbox-turbo" if kind == "turbo" else "--engine chatterbox"
    assert refusal(other, saved).endswith(engine)


def test_an_empty_folder_says_what_it_lacks_and_no_more(kind: str, tmp_path: Path) -> None:
    said = refusal(kind, tmp_path)
    assert "ve.safetensors" in said
    assert "--engine" not in said


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(
    "broken",
    [lambda content: content[: len(content) // 2], lambda _: b"", lambda _: b"<html>not found</html>"],
    ids=["truncated", "empty", "a web page"],
)
def test_a_broken_file_is_named(kind: str, folder: Path, number: int, broken: Callable[[bytes], bytes]) -> None:
    path = folder / FILES[kind][number]
    replace(path, broken(path.read_bytes()))
    assert str(path) in refusal(kind, folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "conds.pt"])
def test_a_broken_tokenizer_or_voice_is_named(kind: str, folder: Path, name: str) -> None:
    replace(folder / name, b"{ nonsense")
    said = refusal(kind, folder)
    assert str(folder) in said
    assert ("tokenizer" if name == "tokenizer.json" else name) in said


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = safetensors.load_file(str(path))
    change(tensors)
    path.unlink()
    safetensors.save_file(tensors, str(path))


def test_a_weight_of_another_shape_is_named_with_both_shapes(kind: str, folder: Path) -> None:
    path = folder / T3[kind]
    shape = tuple(model(kind).t3.speech_head.weight.shape)
    other = (shape[0] + 1, shape[1])
    rewritten(path, lambda tensors: tensors.update({"speech_head.weight": torch.zeros(other)}))
    said = refusal(kind, folder)
    assert str(path) in said
    assert "speech_head.weight" in said
    assert str(shape) in said
    assert str(other) in said


def test_a_weight_that_is_missing_is_named(kind: str, folder: Path) -> None:
    path = folder / T3[kind]
    rewritten(path, lambda tensors: tensors.pop("speech_head.weight"))
    said = refusal(kind, folder)
    assert str(path) in said
    assert "speech_head.weight" in said


def test_weights_that_nobody_knows_do_no_harm(kind: str, folder: Path) -> None:
    """Upstream's own files have some: Turbo's T3 brings an embedding that its loader takes away."""
    rewritten(folder / T3[kind], lambda tensors: tensors.update({"tfmr.wte.weight": torch.zeros(2, 2)}))
    loaded = checkpoint.from_folder(kind, folder)
    assert torch.equal(loaded.t3.speech_head.weight, model(kind).t3.speech_head.weight)


@pytest.mark.parametrize("content", ["nonsense", "[]", json.dumps({"size": "huge", "weights": "random"})])
def test_a_size_that_cannot_be_read_is_named(kind: str, folder: Path, content: str) -> None:
    replace(folder / "cicada.json", content.encode())
    assert "cicada.json" in refusal(kind, folder)


def test_a_folder_that_says_no_size_is_of_the_full_one(kind: str, folder: Path) -> None:
    """As upstream's are: the tiny weights are then of another shape, and the file is named."""
    (folder / "cicada.json").unlink()
    build_t3, build_s3gen, sizes = build.build_t3, build.build_s3gen, []

    def noted(kind: str, size: str) -> Any:
        sizes.append(size)
        return build_t3(kind, "tiny")  # the full one would take gigabytes

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build, "build_t3", noted)
        patched.setattr(build, "build_s3gen", lambda kind, size: build_s3gen(kind, "tiny"))
        assert checkpoint.from_folder(kind, folder).weights == "trained"
    assert sizes == ["full"]

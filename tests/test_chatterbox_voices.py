"""Voices: as upstream makes them of a recording, few kept, each recording that is no good named."""

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chatterbox_fixtures import KINDS, ours, theirs, torch, upstream

from gpu_server.speech import EngineUnavailable

soundfile: Any = pytest.importorskip("soundfile")
voices: Any = importlib.import_module("gpu_server.engines.chatterbox.voices")

RATE = 24_000


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode(), upstream.quiet():
        yield


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def speech(seconds: float, rate: int = RATE, loudness: float = 0.2) -> Any:
    """Something like it: tones and noise that come and go, all below 4 kHz."""
    at = np.arange(round(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * pitch * at + number) / (number + 1) for number, pitch in enumerate((140, 700, 1900)))
    return (loudness * tones * (0.6 + 0.4 * np.sin(2 * np.pi * 2.3 * at))).astype(np.float32)


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def call(samples: Any, rate: int = RATE, name: str = "anna.wav", **how: Any) -> Path:
        path = tmp_path / name
        soundfile.write(path, samples, rate, **how)
        return path

    return call


# ---- what is kept


class Maker:
    """Makes a voice of a recording, and notes it."""

    def __init__(self) -> None:
        self.made: list[Path | None] = []

    def __call__(self, path: Path | None) -> object:
        self.made.append(path)
        return object()


def test_no_more_voices_are_kept_than_fit_and_those_lately_used_are() -> None:
    make = Maker()
    names = {str(number): Path(str(number)) for number in range(20)}
    kept = voices.Voices(names, make)
    assert voices.KEPT == 16
    for number in range(16):
        kept.get(str(number))
    first = kept.get("0")
    assert len(make.made) == 16
    kept.get("16")  # in the place of 1, as 0 was used since
    assert kept.get("0") is first
    assert len(make.made) == 17
    kept.get("1")
    assert make.made[-1] == Path("1")
    for _ in range(5):
        for name in names:
            kept.get(name)
    assert len(kept._kept) == 16


def test_a_voice_is_made_once_and_is_the_same_for_all() -> None:
    make = Maker()
    kept = voices.Voices({"default": None, "anna": Path("anna.wav")}, make)
    assert kept.get("anna") is kept.get("anna")
    assert kept.get("default") is not kept.get("anna")
    assert make.made == [Path("anna.wav"), None]
    assert kept.names == ("default", "anna")
    assert kept.recording("anna") == Path("anna.wav")


def test_a_name_that_nobody_has_is_named() -> None:
    with pytest.raises(LookupError, match="bert"):
        voices.Voices({"default": None}, Maker()).get("bert")


def test_a_voice_that_cannot_be_made_is_not_kept() -> None:
    def fail(_: Any) -> Any:
        raise EngineUnavailable("no")

    kept = voices.Voices({"default": None}, fail)
    for _ in range(2):
        with pytest.raises(EngineUnavailable):
            kept.get("default")


# ---- the folder


def test_without_a_folder_there_is_the_models_own_voice() -> None:
    assert voices.in_folder(None) == {"default": None}


def test_recordings_of_a_folder_are_found_by_their_names(tmp_path: Path) -> None:
    for name in ("bert.WAV", "anna.flac", "carl.ogg", "dora.mp3", "notes.txt", "README"):
        (tmp_path / name).write_bytes(b"")
    found = voices.in_folder(tmp_path)
    assert list(found) == ["default", "anna", "bert", "carl", "dora"]
    assert found["default"] is None
    assert found["bert"] == tmp_path / "bert.WAV"


def test_a_folder_that_is_not_there_or_has_no_recording_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    for folder in (tmp_path, tmp_path / "nothing", tmp_path / "notes.txt"):
        with pytest.raises(EngineUnavailable) as found:
            voices.in_folder(folder)
        assert str(folder) in str(found.value)


# ---- a recording


def upstreams(kind: str, path: Path) -> Any:
    """Upstream's Conditionals, by its own prepare_conditionals."""
    model = theirs(kind)
    module = upstream.module("tts_turbo" if kind == "turbo" else "tts")
    its_class = module.ChatterboxTurboTTS if kind == "turbo" else module.ChatterboxTTS
    tts = its_class.__new__(its_class)
    tts.t3, tts.s3gen, tts.ve, tts.device, tts.conds = model.t3, model.s3gen, model.voice_encoder, "cpu", None
    if kind == "turbo":  # with numpy 2 what it returns is of 64 bits, which its next step refuses
        tts.norm_loudness = lambda samples, rate: its_class.norm_loudness(tts, samples, rate).astype(np.float32)
    tts.prepare_conditionals(str(path))
    return tts.conds


def test_a_voice_is_what_upstream_makes_of_the_recording(kind: str, write: Write) -> None:
    path = write(speech(8.0), subtype="FLOAT")
    ours_made, expected = voices.conditionals(ours(kind), path, 10.0), upstreams(kind, path)
    assert torch.equal(ours_made.t3.cond_prompt_speech_tokens, expected.t3.cond_prompt_speech_tokens)
    torch.testing.assert_close(ours_made.t3.speaker_emb, expected.t3.speaker_emb, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours_made.t3.emotion_adv, expected.t3.emotion_adv)
    assert ours_made.gen.keys() == expected.gen.keys()
    assert torch.equal(ours_made.gen["prompt_token"], expected.gen["prompt_token"])
    for name in ("prompt_feat", "embedding"):
        torch.testing.assert_close(ours_made.gen[name], expected.gen[name], atol=1e-4, rtol=1e-4)


def test_the_prompt_is_as_long_as_asked_and_two_frames_a_token(write: Write) -> None:
    path = write(speech(12.0))
    for prompt_s in (3.0, 10.0, 30.0):
        prompt = voices.conditionals(ours("turbo"), path, prompt_s).gen
        tokens = prompt["prompt_token"].shape[1]
        assert tokens == round(25 * min(prompt_s, 10.0))  # upstream hears 10 s
        assert prompt["prompt_feat"].shape[1] == 2 * tokens


def test_a_prompt_is_cut_to_its_first_seconds() -> None:
    prompt = theirs("turbo").conds.gen
    cut = voices.shortened(prompt, 0.2)
    assert torch.equal(cut["prompt_token"], prompt["prompt_token"][:, :5])
    assert torch.equal(cut["prompt_feat"], prompt["prompt_feat"][:, :10])
    assert cut["embedding"] is prompt["embedding"]
    whole = voices.shortened(prompt, 100.0)
    assert torch.equal(whole["prompt_token"], prompt["prompt_token"])
    assert torch.equal(whole["prompt_feat"], prompt["prompt_feat"])


def near(one: Any, other: Any) -> float:
    """How alike two speakers are: the cosine."""
    return float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_a_recording_of_another_rate_is_the_same_voice(write: Write, rate: int) -> None:
    expected = voices.conditionals(ours("turbo"), write(speech(6.0)), 10.0)
    found = voices.conditionals(ours("turbo"), write(speech(6.0, rate), rate, name="other.wav"), 10.0)
    assert found.gen["prompt_token"].shape == expected.gen["prompt_token"].shape
    assert near(found.t3.speaker_emb, expected.t3.speaker_emb) > 0.98
    mel, other = expected.gen["prompt_feat"], found.gen["prompt_feat"]
    loud = mel > mel.max() - 4
    assert loud.float().mean() > 0.05
    assert (mel - other)[loud].abs().mean() < 0.05


def test_a_stereo_recording_is_the_mean_of_both_sides(write: Write) -> None:
    mono = speech(6.0)
    expected = voices.conditionals(ours("turbo"), write(mono, subtype="FLOAT"), 10.0)
    both = np.stack([mono * 1.5, mono * 0.5], axis=1)
    found = voices.conditionals(ours("turbo"), write(both, name="both.wav", subtype="FLOAT"), 10.0)
    torch.testing.assert_close(found.gen["prompt_feat"], expected.gen["prompt_feat"], atol=1e-3, rtol=1e-3)
    assert torch.equal(found.t3.cond_prompt_speech_tokens, expected.t3.cond_prompt_speech_tokens)


def test_turbos_voices_are_of_one_loudness(write: Write) -> None:
    """-27 LUFS, as upstream's: a faint recording is the same voice as a loud one."""
    faint, loud = (
        voices.conditionals(ours("turbo"), write(speech(6.0, loudness=loudness), subtype="FLOAT"), 10.0)
        for loudness in (0.02, 0.4)
    )
    torch.testing.assert_close(faint.gen["prompt_feat"], loud.gen["prompt_feat"], atol=1e-3, rtol=1e-3)


def refusal(path: Path) -> str:
    with pytest.raises(EngineUnavailable) as found:
        voices.conditionals(ours("turbo"), path, 10.0)
    said = str(found.value)
    assert str(path) in said
    assert "\n" not in said
    return said


def test_a_recording_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "anna.wav"
    for content in (None, b"", b"no sound at all", b"RIFF\x00\x00\x00\x00WAVE"):
        if content is not None:
            path.write_bytes(content)
        assert "cannot be read" in refusal(path)
    folder = tmp_path / "bert.wav"
    folder.mkdir()
    assert "cannot be read" in refusal(folder)


@pytest.mark.parametrize("seconds", [0.05, 1.0, 5.0])
def test_a_recording_that_is_too_short_is_named_with_its_length(write: Write, seconds: float) -> None:
    said = refusal(write(speech(seconds)))
    assert f"{seconds:.1f} s" in said
    assert "more than 5 s" in said


def test_a_recording_of_nothing_is_named(write: Write) -> None:
    refusal(write(np.zeros(0, dtype=np.float32)))
    assert "silent" in refusal(write(np.zeros(6 * RATE, dtype=np.float32)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_recording_that_is_no_numbers_is_named(write: Write, value: float) -> None:
    samples = speech(6.0)
    samples[1000] = value
    refusal(write(samples, subtype="FLOAT"))


def test_of_a_long_recording_only_the_beginning_is_read(write: Write) -> None:
    """An hour would take long, and upstream hears but 15 s of it."""
    expected = voices.conditionals(ours("turbo"), write(speech(30.0), subtype="FLOAT"), 10.0)
    longer = np.concatenate([speech(30.0), np.full(5 * RATE, 0.9, dtype=np.float32)])
    found = voices.conditionals(ours("turbo"), write(longer, name="longer.wav", subtype="FLOAT"), 10.0)
    assert torch.equal(found.t3.speaker_emb, expected.t3.speaker_emb)
    assert torch.equal(found.gen["prompt_feat"], expected.gen["prompt_feat"])

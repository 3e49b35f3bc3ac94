"""Tiny Chatterbox models for the tests: ours to run, and upstream's own beside it, untouched by our code."""

import functools
import importlib
import importlib.util
from typing import Any

import pytest

torch: Any = pytest.importorskip("torch", reason="the extra `chatterbox` is not installed")
if importlib.util.find_spec("chatterbox") is None:
    # Not importorskip: importing chatterbox by itself fails where torchaudio finds no CUDA.
    pytest.skip("chatterbox-tts is not installed", allow_module_level=True)

checkpoint: Any = importlib.import_module("gpu_server.engines.chatterbox.checkpoint")
upstream: Any = importlib.import_module("gpu_server.engines.chatterbox.upstream")

KINDS = ("turbo", "original")
SENTENCES = (
    "Hello there, this is a test.",
    "Yes.",
    "How are you today? I would like to know about it, please, before seven in the evening.",
    "Your order has been shipped.",
)


@torch.inference_mode(False)
def made(kind: str) -> Any:
    """A tiny model whose output hangs on all of its input: what weights begin with leaves some of it out."""
    torch.set_num_threads(1)
    upstream.load()
    model = checkpoint.with_random_weights(kind, "tiny")
    generator = torch.Generator().manual_seed(7)

    def draw(weight: Any, scale: float) -> None:
        weight.data.copy_(torch.randn(weight.shape, generator=generator) * scale)

    for name, weight in model.t3.named_parameters():
        if weight.dim() == 2 and "pos" not in name and "wpe" not in name:
            draw(weight, weight.shape[1] ** -0.5 if "emb" not in name else 1.0)
    mixer = model.s3gen.flow.decoder.estimator.time_embed_mixer
    if mixer is not None:
        draw(mixer.weight, 0.1)
    hift = model.s3gen.mel2wav
    for layer, gain in ((hift.conv_pre, 2.0), (hift.conv_post, 1.0), *((layer, 1.5) for layer in hift.ups)):
        layer.parametrizations.weight.original0.data.fill_(gain)
    for module in (model.t3, model.s3gen, model.voice_encoder):
        module.requires_grad_(False)
    return model


@functools.cache
def ours(kind: str) -> Any:
    """For our code, which changes some of its parts."""
    return made(kind)


@functools.cache
def theirs(kind: str) -> Any:
    """The same weights, for upstream's own code."""
    return made(kind)


def text_tokens(kind: str, words: str) -> Any:
    """As upstream's `generate` makes them, int64 [length]."""
    model = theirs(kind)
    if kind == "turbo":
        return model.tokenizer(words, return_tensors="pt").input_ids[0]
    hp = model.t3.hp
    return torch.tensor([hp.start_text_token, *model.tokenizer.encode(words), hp.stop_text_token])


def cond(kind: str, seed: int | None = None) -> Any:
    """The built-in voice as T3 knows it, or a random one."""
    built_in = theirs(kind).conds.t3
    if seed is None:
        return built_in
    generator = torch.Generator().manual_seed(seed)
    length = built_in.cond_prompt_speech_tokens.shape[1]
    return type(built_in)(
        speaker_emb=torch.rand(1, 256, generator=generator),
        cond_prompt_speech_tokens=torch.randint(0, 6561, (1, length), generator=generator),
        emotion_adv=built_in.emotion_adv,
    )


def gen(kind: str, seed: int | None = None, tokens: int = 10) -> dict[str, Any]:
    """The built-in voice as S3Gen knows it, or a random one of so many tokens."""
    built_in: dict[str, Any] = theirs(kind).conds.gen
    if seed is None:
        return built_in
    generator = torch.Generator().manual_seed(seed)
    return {
        "prompt_token": torch.randint(0, 6561, (1, tokens), generator=generator),
        "prompt_token_len": torch.tensor([tokens]),
        "prompt_feat": torch.rand(1, 2 * tokens, 80, generator=generator) * 4 - 8,
        "prompt_feat_len": None,
        "embedding": torch.randn(1, 192, generator=generator),
    }


def speech_tokens(length: int, seed: int = 1) -> Any:
    return torch.randint(0, 6561, (length,), generator=torch.Generator().manual_seed(seed))


def upstream_mel(kind: str, voice: dict[str, Any], tokens: Any, noise: Any) -> Any:
    """By upstream's own flow, [80, frames of what is said]. noise: [80, frames], of the voice's too."""
    model, meanflow = theirs(kind), kind == "turbo"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "randn_like", lambda _: noise[None].clone())
        found, _ = model.s3gen.flow.inference(
            tokens[None],
            torch.tensor([len(tokens)]),
            **voice,
            finalize=True,
            n_timesteps=2 if meanflow else 10,
            meanflow=meanflow,
        )
    return found[0]


def upstream_samples(kind: str, mel: Any, phases: Any, noise: Any) -> Any:
    """By upstream's own HiFT, [samples]. phases: [harmonics]; noise: [harmonics, samples]."""
    made = importlib.import_module("chatterbox.models.s3gen.hifigan")

    class Given:
        """In the place of a uniform distribution."""

        def __init__(self, low: float, high: float) -> None:
            assert (round(low, 4), round(high, 4)) == (-3.1416, 3.1416)

        def sample(self, sample_shape: Any) -> Any:
            return phases[None, :, None].clone()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(made, "Uniform", Given)
        patched.setattr(torch, "randn_like", lambda like: noise[None] if like.shape[1] > 1 else torch.zeros_like(like))
        samples, _ = theirs(kind).s3gen.mel2wav.inference(mel[None])
    return samples[0]


def voiced(kind: str, monkeypatch: pytest.MonkeyPatch, hertz: float) -> None:
    """Random weights find no pitch: give them one that glides, so that there are sine waves."""

    def pitch(frames: Any) -> Any:
        return hertz + frames[:, 0] * 5

    for model in (ours(kind), theirs(kind)):
        monkeypatch.setattr(model.s3gen.mel2wav.f0_predictor, "forward", pitch)

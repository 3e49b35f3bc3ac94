"""Voices, ready for the model, the most lately used kept. Knows nothing of requests.

A voice is made once and never changes: requests with different voices run side by side, where upstream's `conds` is one
for all. One of Turbo's takes about 40 MB, of the original's 8 MB; so the number kept is bounded.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpu_server.engines.chatterbox import upstream
from gpu_server.engines.chatterbox.checkpoint import Model
from gpu_server.engines.chatterbox.t3 import VoicePrefix
from gpu_server.speech import DEFAULT_VOICE, EngineUnavailable

KEPT = 16
SHORTEST_S = 5.0  # as upstream's Turbo has it
LONGEST_S = 30.0  # of a recording that is read; upstream hears 15 s of it at most
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_MELS_S = 50


@dataclass(frozen=True, slots=True)
class Voice:
    """What the stages need of a voice, on the device.

    prompt_tokens: int64 [length]; prompt_mel: [80, 2 x length]; speaker: [80]; noise: of the prompt's frames,
    [80, 2 x length].
    """

    prefix: VoicePrefix
    prompt_tokens: Tensor
    prompt_mel: Tensor
    speaker: Tensor
    noise: Tensor


class Voices:
    """By name: the model's own, and one a recording of a folder."""

    def __init__(self, names: dict[str, Path | None], make: Callable[[Path | None], Voice]) -> None:
        """names: None stands for the model's own voice. make: takes some milliseconds."""
        self._names, self._make = names, make
        self._kept: OrderedDict[str, Voice] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._names)

    def recording(self, name: str) -> Path | None:
        return self._names[name]

    def get(self, name: str) -> Voice:
        voice = self._kept.pop(name, None)
        if voice is None:
            voice = self._make(self._names[name])
            while len(self._kept) >= KEPT:
                self._kept.popitem(last=False)
        self._kept[name] = voice
        return voice


def in_folder(folder: Path | None) -> dict[str, Path | None]:
    """`default`, and the recordings of a folder by their names without suffix. Raises EngineUnavailable."""
    found: dict[str, Path | None] = {DEFAULT_VOICE: None}
    if folder is None:
        return found
    if not folder.is_dir():
        raise EngineUnavailable(f"--voices {folder}: no such folder")
    recordings = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not recordings:
        raise EngineUnavailable(f"--voices {folder}: no recording in it ({', '.join(SUFFIXES)})")
    return found | {path.stem: path for path in recordings}


@upstream.quiet()
def conditionals(model: Model, path: Path, prompt_s: float) -> Any:
    """Upstream's Conditionals of a recording, as its `prepare_conditionals` makes them, on the CPU.

    prompt_s: how much of it S3Gen hears before it speaks (upstream: 10). Raises EngineUnavailable that names the file.
    """
    import librosa

    turbo = model.kind == "turbo"
    samples = _recording(path)
    if turbo:
        samples = _loudness(samples)
    rate = 24_000
    at_16k = librosa.resample(samples, orig_sr=rate, target_sr=16_000)
    prompt = model.s3gen.embed_ref(samples[: round(min(prompt_s, 10.0) * rate)], rate, device="cpu")
    longest = model.t3.hp.speech_cond_prompt_len
    heard = at_16k[: (15 if turbo else 6) * 16_000]
    tokens, _ = model.s3gen.tokenizer.forward([heard], max_len=longest)
    speaker = torch.from_numpy(model.voice_encoder.embeds_from_wavs([at_16k], sample_rate=16_000))
    cond = upstream.module("models.t3.modules.cond_enc").T3Cond(
        speaker_emb=speaker.mean(0, keepdim=True),
        cond_prompt_speech_tokens=torch.atleast_2d(tokens),
        emotion_adv=0.5 * torch.ones(1, 1, 1),
    )
    return upstream.module("tts_turbo" if turbo else "tts").Conditionals(cond, prompt)


def shortened(prompt: dict[str, Any], prompt_s: float) -> dict[str, Any]:
    """A prompt cut to its first seconds: S3Gen's arithmetic grows with it."""
    tokens = min(int(prompt_s * _MELS_S) // 2, int(prompt["prompt_token"].shape[1]))
    return prompt | {
        "prompt_token": prompt["prompt_token"][:, :tokens],
        "prompt_feat": prompt["prompt_feat"][:, : 2 * tokens],
    }


def _recording(path: Path) -> "np.ndarray[Any, np.dtype[np.float32]]":
    import soundfile
    import soxr

    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            samples = file.read(int(LONGEST_S * rate), dtype="float32", always_2d=True).mean(axis=1)
    except (OSError, RuntimeError) as error:
        raise EngineUnavailable(f"the voice {path} cannot be read ({error}); name a WAV, FLAC, OGG or MP3") from None
    if not len(samples) or not np.isfinite(samples).all():
        raise EngineUnavailable(f"the voice {path} has no sound that can be used")
    if len(samples) / rate <= SHORTEST_S:
        found = f"{len(samples) / rate:.1f} s"
        raise EngineUnavailable(f"the voice {path} has {found}; a voice needs more than {SHORTEST_S:g} s of speech")
    if np.abs(samples).max() < 1e-3:
        raise EngineUnavailable(f"the voice {path} is silent")
    resampled: np.ndarray[Any, np.dtype[np.float32]] = soxr.resample(samples, rate, 24_000).astype(np.float32)
    return resampled


def _loudness(samples: "np.ndarray[Any, np.dtype[np.float32]]") -> "np.ndarray[Any, np.dtype[np.float32]]":
    """To -27 LUFS, as upstream's Turbo."""
    import pyloudnorm

    loudness = pyloudnorm.Meter(24_000).integrated_loudness(samples)
    gain = 10.0 ** ((-27 - loudness) / 20.0)
    louder: np.ndarray[Any, np.dtype[np.float32]] = (samples * gain).astype(np.float32)
    return louder if np.isfinite(gain) and gain > 0 else samples

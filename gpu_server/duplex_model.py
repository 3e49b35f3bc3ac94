"""Answer with kyutai's Moshi itself, from weights in a local folder. Knows nothing of sockets or of pages.

Follows moshi/server.py of PyPI `moshi` 0.2.13. The model takes neither voice nor text prompt; the server's habits are
those of the endpoint. It says nothing of where it begins to speak, so there are no answers in the trace. Never
downloads.
"""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from gpu_server.duplex_opus import CHUNK, Floats
from gpu_server.duplex_talk import Step
from gpu_server.duplex_wire import Prompts
from gpu_server.trace import TurnOutcome

# moshi.models.loaders names them so, where no config.json names them.
_MOSHI: Final = ("model.safetensors", "model.q8.safetensors")
_MIMI: Final = "tokenizer-e351c8d8-checkpoint125.safetensors"
_TOKENIZER: Final = "tokenizer_spm_32k_3.model"
_CONFIG: Final = "config.json"
_UNSPOKEN: Final = (0, 3)  # text tokens: end of padding, padding
_WARM_UP: Final = 4  # chunks


class ModelUnavailable(Exception):
    """The model cannot be had; the message says what is missing and how to get it."""


class LanguageModel(Protocol):
    """What hears and speaks, one chunk at a time, for one session at a time. Blocks; called from one thread."""

    def reset(self) -> None:
        """Forget the last session."""

    def step(self, heard: Floats) -> tuple[Floats | None, str | None]:
        """1,920 samples for 1,920, None while it has none yet; and a piece of text, if there is one."""


class Model:
    """A language model and the one thread it runs in. `load` may be slow."""

    def __init__(self, load: "Load") -> None:
        self._load = load
        self._model: LanguageModel | None = None
        self._thread = ThreadPoolExecutor(1, "duplex-model")

    async def warm_up(self) -> None:
        """Load it and step once through silence. Raises ModelUnavailable."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._warm_up)

    def mind(self) -> "ModelMind":
        assert self._model is not None, "the model is loaded before anybody is let in"
        return ModelMind(self._model, self._thread)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _warm_up(self) -> None:
        model = self._load()
        model.reset()
        for _ in range(_WARM_UP):
            model.step(np.zeros(CHUNK, np.float32))
        self._model = model


class Load(Protocol):
    def __call__(self) -> LanguageModel:
        """Raises ModelUnavailable."""


class ModelMind:
    """One session's. A Mind."""

    def __init__(self, model: LanguageModel, thread: ThreadPoolExecutor) -> None:
        self._model = model
        self._thread = thread

    async def prepare(self, prompts: Prompts) -> None:
        # In the model's thread: a step of the last session may still be under way there.
        await asyncio.get_running_loop().run_in_executor(self._thread, self._model.reset)

    def stall_s(self) -> float:
        return 0.0

    def step(self, heard: Floats) -> "asyncio.Future[Step]":
        return asyncio.get_running_loop().run_in_executor(self._thread, self._step, heard)

    def note_written(self, step: Step, now: float) -> None:
        """Nothing to stamp."""

    def leave(self, outcome: TurnOutcome) -> None:
        """Nothing to free."""

    def _step(self, heard: Floats) -> Step:
        spoken, piece = self._model.step(heard)
        pcm = None if spoken is None else np.clip(np.rint(spoken * 32768), -32768, 32767).astype("<i2").tobytes()
        return Step(pcm, () if piece is None else (piece.encode(),))


@dataclass(frozen=True, slots=True)
class Weights:
    """The files of a checkpoint."""

    moshi: Path
    mimi: Path
    tokenizer: Path
    config: Path | None
    mimi_config: Path | None
    lora: Path | None


def moshi_in(folder: Path) -> Load:
    """How to load Moshi from a folder; what can be found out at once is. Raises ModelUnavailable."""
    weights = find_weights(folder)
    for package in ("torch", "moshi"):
        if find_spec(package) is None:
            raise ModelUnavailable(
                f"--duplex-model needs the package {package}, which is not installed; run: pip install -e '.[moshi]'"
            )
    return lambda: _load(weights)


def find_weights(folder: Path) -> Weights:
    """The checkpoint's files, by the names in its config.json or else the usual ones. Raises ModelUnavailable."""
    if not folder.is_dir():
        raise ModelUnavailable(f"--duplex-model: there is no folder {folder}; put a checkpoint of moshi's there")
    config_path = folder / _CONFIG
    names: dict[str, Any] = {}
    if config_path.is_file():
        try:
            names = json.loads(config_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelUnavailable(f"--duplex-model: {config_path} is no JSON that can be read: {error}") from None
        if not isinstance(names, dict):
            raise ModelUnavailable(f"--duplex-model: {config_path} holds no JSON object")
    moshi = next((name for name in _MOSHI if (folder / name).is_file()), _MOSHI[0])
    wanted = {
        "moshi": names.get("moshi_name") or moshi,
        "mimi": names.get("mimi_name") or _MIMI,
        "tokenizer": names.get("tokenizer_name") or _TOKENIZER,
        "mimi_config": names.get("mimi_config_name"),
        "lora": names.get("lora_name"),
    }
    paths = {part: None if name is None else folder / str(name) for part, name in wanted.items()}
    missing = [path.name for path in paths.values() if path is not None and not path.is_file()]
    if missing:
        raise ModelUnavailable(
            f"--duplex-model: {folder} lacks {', '.join(missing)}; download a whole checkpoint, such as "
            "kyutai/moshiko-pytorch-bf16 from Hugging Face, and name its folder"
        )
    moshi_path, mimi_path, tokenizer_path = paths["moshi"], paths["mimi"], paths["tokenizer"]
    assert moshi_path is not None
    assert mimi_path is not None
    assert tokenizer_path is not None
    config = config_path if names else None
    return Weights(moshi_path, mimi_path, tokenizer_path, config, paths["mimi_config"], paths["lora"])


def _load(weights: Weights) -> LanguageModel:
    try:
        return _Moshi(weights)
    except ImportError as error:
        raise ModelUnavailable(f"moshi cannot be imported ({error}); run: pip install -e '.[moshi]'") from error
    except Exception as error:  # of torch, safetensors, sentencepiece: files that are not what their names say
        words = " ".join(str(error).split())[:300]
        raise ModelUnavailable(
            f"moshi cannot load {weights.moshi.parent}: {type(error).__name__}: {words}; is the checkpoint whole?"
        ) from error


class _Moshi:
    """moshi.server's ServerState, without its server."""

    def __init__(self, weights: Weights) -> None:
        import torch
        from moshi.models import LMGen, loaders
        from moshi.run_inference import get_condition_tensors

        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        if weights.config is None:  # from_hf_repo would look for one on the network
            info = loaders.CheckpointInfo(weights.moshi, weights.mimi, weights.tokenizer)
        else:
            info = loaders.CheckpointInfo.from_hf_repo(
                "",
                moshi_weights=weights.moshi,
                mimi_weights=weights.mimi,
                tokenizer=weights.tokenizer,
                config_path=weights.config,
                mimi_config_path=weights.mimi_config,
                lora_weights=weights.lora,
            )
        with torch.no_grad():
            self._mimi = info.get_mimi(device=self._device)
            language_model = info.get_moshi(device=self._device, fuse_lora=True)
            conditions = get_condition_tensors(info.model_type, language_model, batch_size=1, cfg_coef=1.0)
            self._generator = LMGen(language_model, condition_tensors=conditions, **info.lm_gen_config)
            self._mimi.streaming_forever(1)
            self._generator.streaming_forever(1)
        self._tokenizer = info.get_text_tokenizer()
        self._first = True

    def reset(self) -> None:
        self._mimi.reset_streaming()
        self._generator.reset_streaming()
        self._first = True

    def step(self, heard: Floats) -> tuple[Floats | None, str | None]:
        torch = self._torch
        with torch.no_grad():
            codes = self._mimi.encode(torch.from_numpy(heard.copy()).to(self._device)[None, None])
            if self._first:
                # The first chunk's codes are special for their left padding: it is applied anew to the next.
                self._mimi.reset_streaming()
                self._first = False
            tokens = self._generator.step(codes)  # 1,920 samples are one step
            if tokens is None:
                return None, None
            spoken: Floats = self._mimi.decode(tokens[:, 1:])[0, 0].float().cpu().numpy()
            token = tokens[0, 0, 0].item()
        if token in _UNSPOKEN:
            return spoken, None
        return spoken, self._tokenizer.id_to_piece(token).replace("\u2581", " ")

"""Get a model: from a folder of weights, from the hub, or with random weights. Knows nothing of how it is run.

A folder holds upstream's files (FILES). One that `save` made says its size in `cicada.json`: a tiny stand-in for tests.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpu_server.engines.chatterbox import build, stand_in, upstream
from gpu_server.engines.chatterbox.build import Kind, Size
from gpu_server.speech import EngineUnavailable

FILES: dict[Kind, dict[str, str]] = {
    "turbo": {
        "voice_encoder": "ve.safetensors",
        "t3": "t3_turbo_v1.safetensors",
        "s3gen": "s3gen_meanflow.safetensors",
    },
    "original": {"voice_encoder": "ve.safetensors", "t3": "t3_cfg.safetensors", "s3gen": "s3gen.safetensors"},
}
REPOSITORIES: dict[Kind, str] = {"turbo": "ResembleAI/chatterbox-turbo", "original": "ResembleAI/chatterbox"}
CONDS = "conds.pt"
SIZE_FILE = "cicada.json"
RANDOM_SEED = 20251125

_TOKENIZER_FILES: dict[Kind, tuple[str, ...]] = {"turbo": ("tokenizer_config.json",), "original": ("tokenizer.json",)}
_UNSAVED = ("tokenizer._mel_filters", "tokenizer.window")  # made when it is built; upstream's own list


@dataclass
class Model:
    """Upstream's modules with their weights, on the CPU in float32, as upstream loads them.

    conds: the built-in voice (upstream's Conditionals). weights: `random` where it knows no voice, else `trained`.
    """

    kind: Kind
    size: Size
    t3: Any
    s3gen: Any
    voice_encoder: Any
    tokenizer: Any
    conds: Any
    weights: str


def load(kind: Kind, folder: Path | None, random_size: Size | None) -> Model:
    """The model from `folder`, with random weights of a size, or from the hub where neither is given."""
    upstream.load()
    if random_size is not None:
        return with_random_weights(kind, random_size)
    return from_folder(kind, folder if folder is not None else _from_hub(kind))


@upstream.quiet()
def with_random_weights(kind: Kind, size: Size) -> Model:
    """The same weights each time. Timing is real, the sound is noise, and no end token ever comes by itself."""
    state = torch.random.get_rng_state()
    torch.manual_seed(RANDOM_SEED)
    try:
        t3, s3gen = build.build_t3(kind, size), build.build_s3gen(kind, size)
        voice_encoder = build.build_voice_encoder()
        tokenizer = stand_in.tokenizer(kind)
        return Model(kind, size, t3, s3gen, voice_encoder, tokenizer, stand_in.conds(kind, size), "random")
    finally:
        torch.random.set_rng_state(state)


@upstream.quiet()
def from_folder(kind: Kind, folder: Path) -> Model:
    """Load upstream's files. Raises EngineUnavailable that names what is missing, broken or of another shape."""
    if not folder.is_dir():
        raise EngineUnavailable(f"--weights {folder}: no such folder")
    names = (*FILES[kind].values(), *_TOKENIZER_FILES[kind], CONDS)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        others = [other for other in build.KINDS if (folder / FILES[other]["t3"]).is_file()]
        found = _engine(others[0]) if others and kind not in others else ""
        hint = f"; it is a folder of {found}: use --engine {found}" if found else ""
        raise EngineUnavailable(f"--weights {folder}: no {missing[0]}{hint}")
    size, weights = _size_of(folder)
    t3 = build.build_t3(kind, size)
    _fill(t3, folder / FILES[kind]["t3"])
    s3gen = build.build_s3gen(kind, size)
    _fill(s3gen, folder / FILES[kind]["s3gen"])
    voice_encoder = build.build_voice_encoder()
    _fill(voice_encoder, folder / FILES[kind]["voice_encoder"])
    tokenizer = _read(folder, "the tokenizer", lambda: _tokenizer(kind, folder))
    conditionals = upstream.module("tts_turbo" if kind == "turbo" else "tts").Conditionals
    conds = _read(folder, CONDS, lambda: conditionals.load(folder / CONDS))
    return Model(kind, size, t3, s3gen, voice_encoder, tokenizer, conds, weights)


def save(model: Model, folder: Path) -> None:
    """Write a folder that `from_folder` reads."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for part, name in FILES[model.kind].items():
        state = getattr(model, part).state_dict()
        kept = {key: value.contiguous().clone() for key, value in state.items() if key not in _UNSAVED}
        save_file(kept, str(folder / name))
    if model.kind == "turbo":
        model.tokenizer.save_pretrained(folder)
    else:
        model.tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
    model.conds.save(folder / CONDS)
    (folder / SIZE_FILE).write_text(json.dumps({"size": model.size, "weights": model.weights}) + "\n")


def _from_hub(kind: Kind) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "*.txt", "*.pt", "*.model"]  # as upstream asks for them
    try:
        return Path(snapshot_download(repo_id=REPOSITORIES[kind], allow_patterns=patterns))
    except Exception as error:  # of the network, of the hub, of the disk: one line, whatever it was
        line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise EngineUnavailable(
            f"cannot get {REPOSITORIES[kind]} from the hub ({line}); name a folder by --weights DIR, or run without"
            " any by --random-weights tiny (timing only)"
        ) from None


def _size_of(folder: Path) -> tuple[Size, str]:
    told = folder / SIZE_FILE
    if not told.is_file():
        return "full", "trained"
    found = _read(folder, SIZE_FILE, lambda: json.loads(told.read_text()))
    if not isinstance(found, dict) or found.get("size") not in ("tiny", "full"):
        raise EngineUnavailable(f"--weights {folder}: {SIZE_FILE} says no size (tiny or full)")
    return found["size"], "random" if found.get("weights") == "random" else "trained"


def _fill(module: Any, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(str(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise EngineUnavailable(f"{path}: cannot be read ({error}); get it anew") from None
    wanted = module.state_dict()
    for name, value in wanted.items():
        if name not in found:
            if name in _UNSAVED:
                continue
            raise EngineUnavailable(f"{path}: no {name} in it; it is partial, or of another model")
        if found[name].shape != value.shape:
            shapes = f"{tuple(found[name].shape)}, where {tuple(value.shape)} is needed"
            raise EngineUnavailable(f"{path}: {name} has the shape {shapes}; it is of another model")
    module.load_state_dict(found, strict=False)


def _tokenizer(kind: Kind, folder: Path) -> Any:
    if kind == "original":
        return upstream.module("models.tokenizers").EnTokenizer(str(folder / "tokenizer.json"))
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _read(folder: Path, what: str, reading: Callable[[], Any]) -> Any:
    try:
        return reading()
    except Exception as error:  # a file of somebody else's: whatever is wrong with it is said, in one line
        line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise EngineUnavailable(f"--weights {folder}: {what} cannot be read ({line}); get it anew") from None


def _engine(kind: Kind) -> str:
    return "chatterbox-turbo" if kind == "turbo" else "chatterbox"

"""Say what the Chatterbox engines can be told, and read it from the command line. Knows nothing of how they do it."""

import argparse
from pathlib import Path
from typing import Any

EXAMPLES = """Chatterbox (its packages first: see README.md):
  python -m gpu_server --engine chatterbox-turbo           weights from the hub, or from where it keeps them here
  python -m gpu_server --engine chatterbox --weights DIR   the original, from a folder
  python -m gpu_server --engine chatterbox-turbo --random-weights full
                                     no weights at hand: real timing of noise; marked so in every report
  python -m gpu_server --engine chatterbox-turbo --random-weights tiny --device cpu
                                     a few narrow layers: to try everything on any machine
  python -m gpu_server --engine chatterbox-turbo --voices recordings/
                                     a voice for each WAV, FLAC, OGG or MP3 there, by its name"""


def add_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("chatterbox")
    weights = group.add_mutually_exclusive_group()
    weights.add_argument("--weights", type=Path, metavar="DIR", help="a folder of weights (default: from the hub)")
    weights.add_argument(
        "--random-weights",
        choices=("tiny", "full"),
        nargs="?",
        const="full",
        help="none at all: timing only; tiny is for tests (without a word: full)",
    )
    group.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    group.add_argument("--voices", type=Path, metavar="DIR", help="a folder of recordings of more than 5 s each")
    group.add_argument(
        "--prompt-s",
        type=_prompt_s,
        default=10.0,
        metavar="S",
        help="of a voice that S3Gen hears before it speaks: 3 costs far less than 10 (default: 10)",
    )
    group.add_argument(
        "--s3gen-streaming",
        choices=("masks", "overlap"),
        default="masks",
        help="masks: no piece of audio changes one before; overlap: pieces see a little of each other and are blended",
    )
    group.add_argument("--watermark", action="store_true", help="Perth's, in the audio; it takes time on the CPU")


def read_options(options: argparse.Namespace) -> dict[str, Any]:
    """Fields of EngineOptions. Raises ValueError for options that another engine was given, and missing folders."""
    given: dict[str, Any] = {
        "--weights": options.weights,
        "--random-weights": options.random_weights,
        "--device": options.device,
        "--voices": options.voices,
        "--watermark": options.watermark,
    }
    if not options.engine.startswith("chatterbox"):
        for name, value in given.items():
            if value:
                raise ValueError(f"{name} is for --engine chatterbox-turbo and chatterbox, not for {options.engine}")
    for name in ("--weights", "--voices"):
        if given[name] is not None and not given[name].is_dir():
            raise ValueError(f"{name} {given[name]}: no such folder")
    return {
        "weights": options.weights,
        "random_weights": options.random_weights,
        "device": options.device,
        "voices": options.voices,
        "prompt_s": options.prompt_s,
        "streaming": options.s3gen_streaming,
        "watermark": options.watermark,
    }


def _prompt_s(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.4 <= seconds <= 10:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.4 to 10")
    return seconds

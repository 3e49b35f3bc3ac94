"""Say what the full-duplex endpoint can be told, and read it from the command line. Knows nothing of how it does it."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gpu_server.agent_settings import checked
from gpu_server.voice_activity import Detector

EXAMPLES: Final = """full duplex (PersonaPlex's wire at ws://HOST:PORT/api/chat?voice_prompt=NATF0.pt&text_prompt=TEXT):
  python -m gpu_server --engine tone
                                     one session at a time, as PersonaPlex serves: others wait, silently
  python -m gpu_server --engine tone --sessions 40 --duplex-prompt-s 2
                                     forty at a time, each with a handshake two seconds after its turn came
  python -m gpu_server --engine tone --duplex-step-ms 100
                                     a model too slow for 80 ms of audio: lag grows by 0.2 s a second
  python -m gpu_server --duplex-stop-ms 400 --duplex-log personaplex.log
                                     more patient; its log in the form of PersonaPlex's
  python -m gpu_server --duplex-model moshi:/models/moshiko-pytorch-bf16
                                     the real model, with weights from that folder (pip install -e '.[moshi]')
  python -m gpu_server --fault close:p=0.1,after_s=0.5 --fault bad_page:p=0.1
                                     ends one answer in ten by closing with 1000; corrupts a page of one in ten"""

WAITING_MOST: Final = 256


@dataclass(frozen=True, slots=True)
class DuplexSettings:
    """What the command line decided about full-duplex sessions."""

    sessions: int = 1
    prompt_s: float = 0.5
    step_s: float = 0.0  # 0: at once
    vad: Detector = "webrtc"
    vad_start_s: float = 0.06
    vad_stop_s: float = 0.2
    model: Path | None = None  # folder of moshi's weights; None: scripted replies
    log: Path | None = None


def add_options(parser: argparse.ArgumentParser, whole: Callable[..., Callable[[str], int]]) -> None:
    """Add the group of options; `whole(low, high)` makes the reader of a whole number."""
    add = parser.add_argument_group("full duplex").add_argument
    add(
        "--sessions",
        type=whole(1, 10_000),
        default=1,
        metavar="N",
        help=f"at a time; {WAITING_MOST} more wait in line (default: 1, as PersonaPlex)",
    )
    add(
        "--duplex-prompt-s",
        type=_seconds,
        default=0.5,
        metavar="S",
        help="from a session's turn to its handshake (default: 0.5)",
    )
    add(
        "--duplex-step-ms",
        type=whole(0, 10_000),
        default=0,
        metavar="N",
        help="what each 80 ms of audio takes, one after the other (default: 0)",
    )
    add(
        "--duplex-stop-ms",
        type=whole(20, 10_000),
        default=200,
        metavar="N",
        help="silence that ends the user's speech (default: 200); what is speech, --agent-vad says",
    )
    add(
        "--duplex-model",
        type=checked(parse_model),
        metavar="moshi:FOLDER",
        help="a real model with its weights in a folder, one session at a time (default: scripted replies)",
    )
    add("--duplex-log", type=Path, metavar="FILE", help="its log, in the form of PersonaPlex's (default: stderr)")


def read_options(options: argparse.Namespace) -> DuplexSettings:
    return DuplexSettings(
        sessions=options.sessions,
        prompt_s=options.duplex_prompt_s,
        step_s=options.duplex_step_ms / 1000,
        vad=options.agent_vad,
        vad_stop_s=options.duplex_stop_ms / 1000,
        model=options.duplex_model,
        log=options.duplex_log,
    )


def parse_model(text: str) -> Path:
    """Read `moshi:FOLDER`. Raises ValueError that says what is wrong."""
    kind, _, folder = text.partition(":")
    if kind != "moshi" or not folder:
        raise ValueError(f"a model is moshi:FOLDER such as moshi:/models/moshiko-pytorch-bf16, not {text!r}")
    return Path(folder)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to 3600")
    return value

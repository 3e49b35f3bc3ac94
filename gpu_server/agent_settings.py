"""Say what the voice agent can be told, and read it from the command line. Knows nothing of how it does it."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from gpu_server.ask_http import endpoint
from gpu_server.voice_activity import Detector

EXAMPLES = """voice agent (pipecat's protobuf dialect at ws://HOST:PORT/ws/STREAM_ID):
  python -m gpu_server --engine tone --agent-delays asr=0.05,llm=0.2,tts=0.1
                                     answers 0.65 s after the user's last voiced audio: 0.3 of it waiting for silence
  python -m gpu_server --engine tone --agent-slots asr=1 --agent-delays asr=0.5
                                     recognizes two turns a second and no more: a capacity that is known
  python -m gpu_server --greeting "Hello, how can I help?" --agent-out wav --agent-chunk-ms 100
                                     greets, and sends audio as NVIDIA's bots do
  python -m gpu_server --recognizer pocketsphinx --known-queries queries.txt
                                     understands those sentences, one a line
  python -m gpu_server --recognizer http://localhost:8000 --reply-url http://localhost:8001 --reply-model llama
                                     hears and thinks elsewhere (OpenAI-compatible; OPENAI_API_KEY is sent if set)
  python -m gpu_server --fault no_yield:p=0.1 --fault mute:p=0.05
                                     talks on when interrupted, one turn in ten; never answers one in twenty"""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Delays:
    """The least a stage takes, seconds. A stage that takes longer by itself is not delayed further."""

    asr_s: float = 0.0
    llm_s: float = 0.0
    tts_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Slots:
    """How many calls at a time a stage serves; None: all that come. With a limit, delays count from the slot."""

    asr: int | None = None
    llm: int | None = None
    tts: int | None = None


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """What the command line decided about calls."""

    calls: int = 1000
    greeting: str | None = None
    output: Literal["raw", "wav"] = "raw"
    output_rate: int = 16_000  # Hz
    chunk_s: float = 0.02
    rtvi: bool = True
    vad: Detector = "webrtc"
    vad_start_s: float = 0.06
    vad_stop_s: float = 0.3
    delays: Delays = Delays()
    slots: Slots = Slots()
    recognizer: str = "none"
    recognizer_model: str = "default"
    known_queries: Path | None = None
    reply_url: str | None = None
    reply_model: str = "default"
    words_per_s: float = 0.0  # 0: all at once
    ping_s: float = 20.0
    log: Path | None = None


def add_options(parser: argparse.ArgumentParser, whole: Callable[..., Callable[[str], int]]) -> None:
    """Add the agent's group of options; `whole(low, high)` makes the reader of a whole number."""
    add = parser.add_argument_group("voice agent").add_argument
    add(
        "--calls", type=whole(1), default=1000, metavar="N", help="at a time; more are closed with 1013 (default: 1000)"
    )
    add("--greeting", metavar="TEXT", help="said as soon as somebody calls (default: wait for the caller)")
    add("--agent-out", choices=("raw", "wav"), default="raw", help="PCM, or a WAV file a message (default: raw)")
    add("--agent-rate", type=whole(8000, 48000), default=16_000, metavar="HZ", help="of its audio (default: 16000)")
    add("--agent-chunk-ms", type=whole(10, 1000), default=20, metavar="N", help="audio a message (default: 20)")
    add(
        "--agent-rtvi",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also send RTVI messages: speaking, transcripts, metrics (default: on)",
    )
    add(
        "--agent-vad",
        choices=("webrtc", "energy"),
        default="webrtc",
        help="what takes audio for speech; energy is exact for audio made for measuring (default: webrtc)",
    )
    add(
        "--agent-vad-stop-ms",
        type=whole(20, 10_000),
        default=300,
        metavar="N",
        help="silence that ends the caller's speech (default: 300)",
    )
    add(
        "--agent-delays",
        type=checked(parse_delays),
        default=Delays(),
        metavar="asr=S,llm=S,tts=S",
        help="the least each stage takes, seconds (default: 0)",
    )
    add(
        "--agent-slots",
        type=checked(parse_slots),
        default=Slots(),
        metavar="asr=N,llm=N,tts=N",
        help="at most so many calls at a time in a stage, more wait in line (default: no limit)",
    )
    add(
        "--recognizer",
        default="none",
        metavar="none|pocketsphinx|URL",
        help="URL: OpenAI-compatible, /v1/audio/transcriptions (default: none)",
    )
    add("--recognizer-model", default="default", metavar="NAME", help="told to the recognizer's URL")
    add("--known-queries", type=Path, metavar="FILE", help="what pocketsphinx may hear, one sentence a line")
    add(
        "--reply-url",
        type=_url,
        metavar="URL",
        help="OpenAI-compatible, /v1/chat/completions (default: scripted replies)",
    )
    add("--reply-model", default="default", metavar="NAME", help="told to the reply URL")
    add(
        "--agent-words-per-s",
        type=_rate,
        default=0.0,
        metavar="N",
        help="pace of scripted replies; 0 is all at once (default: 0)",
    )
    add("--agent-ping-s", type=_seconds, default=20.0, metavar="S", help="silence until a client is asked for life")
    add("--agent-log", type=Path, metavar="FILE", help="its log, in the form NVIDIA's analysers read (default: stderr)")


def read_options(options: argparse.Namespace) -> AgentSettings:
    return AgentSettings(
        calls=options.calls,
        greeting=options.greeting,
        output=options.agent_out,
        output_rate=options.agent_rate,
        chunk_s=options.agent_chunk_ms / 1000,
        rtvi=options.agent_rtvi,
        vad=options.agent_vad,
        vad_stop_s=options.agent_vad_stop_ms / 1000,
        delays=options.agent_delays,
        slots=options.agent_slots,
        recognizer=options.recognizer,
        recognizer_model=options.recognizer_model,
        known_queries=options.known_queries,
        reply_url=options.reply_url,
        reply_model=options.reply_model,
        words_per_s=options.agent_words_per_s,
        ping_s=options.agent_ping_s,
        log=options.agent_log,
    )


def parse_delays(text: str) -> Delays:
    """Read `asr=0.05,llm=0.2,tts=0.1`, any of the three. Raises ValueError that says what is wrong."""
    seconds: dict[str, float] = {}
    for part in text.split(","):
        stage, _, value = part.partition("=")
        if stage not in ("asr", "llm", "tts"):
            raise ValueError(f"no stage is called {stage!r}; delays are asr=S,llm=S,tts=S")
        try:
            seconds[f"{stage}_s"] = float(value)
        except ValueError:
            raise ValueError(f"the delay {part!r} is no number of seconds") from None
        if not 0 <= seconds[f"{stage}_s"] <= 3600:
            raise ValueError(f"the delay {part!r} lies outside 0-3600 seconds")
    return Delays(**seconds)


def parse_slots(text: str) -> Slots:
    """Read `asr=2,llm=8,tts=4`, any of the three. Raises ValueError that says what is wrong."""
    slots: dict[str, int] = {}
    for part in text.split(","):
        stage, _, value = part.partition("=")
        if stage not in ("asr", "llm", "tts"):
            raise ValueError(f"no stage is called {stage!r}; slots are asr=N,llm=N,tts=N")
        if stage in slots:
            raise ValueError(f"the stage {stage} has its slots twice in {text!r}")
        if not value.isdecimal() or int(value) < 1:
            raise ValueError(f"the slots {part!r} are no whole number of 1 or more")
        slots[stage] = int(value)
    return Slots(**slots)


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Let argparse show what a parser's ValueError says; by itself it would hide it."""

    def read(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _url(text: str) -> str:
    try:
        return endpoint(text, "/v1/chat/completions")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _rate(text: str) -> float:
    return _number(text, 0.0, "words a second")


def _seconds(text: str) -> float:
    return _number(text, 0.05, "seconds")


def _number(text: str, low: float, unit: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not low <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of {unit} from {low:g} to 3600")
    return value

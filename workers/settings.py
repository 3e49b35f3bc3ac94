"""What a run is asked to do: the scenario file, its command-line twins, its defaults. Read on the master only.

Precedence: default < scenario file < command line (or the web UI's start form). Secrets are no settings: the token
comes from the environment of each worker and is never part of what is sent or stored.
"""

import argparse
import difflib
import itertools
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit, urlunsplit

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from workers import manifest
from workers import texts as texts_of
from workers.audio.containers import FORMATS
from workers.clients.codecs import CODECS
from workers.clients.http_speech import DIALECTS
from workers.clients.personaplex import DIALECTS as DUPLEX_DIALECTS

TOKEN_VARIABLE = "CICADA_TOKEN"

Protocol = Literal["http_tts", "voice_agent", "personaplex"]
Mode = Literal["text", "audio", "turn_taking", "interruption", "throughput", "full"]
_NVIDIAS_TEST_S = 150.0
_HTTP_ONLY: tuple[Protocol, ...] = ("http_tts",)
_HTTP_DEFAULT, _CALL_DEFAULT, _DUPLEX_DEFAULT = "synthesize", "pipecat", "personaplex"
_DIALECTS: dict[Protocol, tuple[Collection[str], str]] = {
    "http_tts": (DIALECTS, _HTTP_DEFAULT),
    "voice_agent": (CODECS, _CALL_DEFAULT),
    "personaplex": (DUPLEX_DIALECTS, _DUPLEX_DEFAULT),
}


class ScenarioError(ValueError):
    """A scenario that cannot be run; its text is one line that names the key and the fix."""


def _split(value: Any) -> Any:
    """Lists on a command line or in the web UI are separated by spaces or commas; a file's words keep their spaces."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return [word.strip() for part in value for word in part.split(",") if word.strip()]
    return value.replace(",", " ").split() if isinstance(value, str) else value


def _pair(value: Any) -> Any:
    parts = _split(value)
    return parts * 2 if isinstance(parts, list) and len(parts) == 1 else [value, value] if _is_number(value) else parts


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ascending(levels: list[int]) -> list[int]:
    if any(later <= earlier for earlier, later in itertools.pairwise(levels)):
        shown = ",".join(map(str, levels))
        raise ValueError(f"levels: {shown} is out of order; each level must be larger than the one before")
    return levels


def _endpoints(urls: list[str]) -> list[str]:
    found = []
    for url in urls:
        try:
            parts = urlsplit(url)
            right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port or an IPv6 address that is none
            right = False
        if not right or not re.fullmatch(r"[!-~]+", url):
            shown = manifest.without_credentials(url)
            raise ValueError(f"metrics: {shown!r} is no Prometheus endpoint; expected http://HOST:PORT/metrics")
        found.append(urlunsplit(parts._replace(path="/metrics")) if parts.path in ("", "/") else url)
    return found


Endpoints = Annotated[list[str], BeforeValidator(_split), AfterValidator(_endpoints)]
Level = Annotated[int, Field(ge=1)]
Levels = Annotated[list[Level], Field(min_length=1), BeforeValidator(_split), AfterValidator(_ascending)]
Servers = Annotated[list[str], BeforeValidator(_split)]
Names = Annotated[list[str], BeforeValidator(_split), Field(min_length=1)]
Pair = Annotated[tuple[float, float], BeforeValidator(_pair)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Scenario(BaseModel):
    """Everything a run needs, by key. The descriptions are the command line's help."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field("speech", description="name of the scenario; part of the run directory's name", min_length=1)
    dialect: str | None = Field(
        None,
        description=f"how the server is spoken to: {', '.join(DIALECTS)} (the default for HTTP is {_HTTP_DEFAULT});"
        f" voice agents: {', '.join(CODECS)} (the default there is {_CALL_DEFAULT});"
        f" full duplex: {', '.join(DUPLEX_DIALECTS)} (the default there is {_DUPLEX_DEFAULT})",
    )
    path: str | None = Field(None, description="path of the endpoint, where it is not the dialect's own")
    texts: str = Field(
        "standard", description="what is said: standard (five texts), generated, or a UTF-8 file, one a line"
    )
    voices: Names = Field(["default"], description="voices to ask for, one picked at random for each turn")
    format: str = Field("wav", description=f"audio format to ask for: {', '.join(FORMATS)}")
    sample_rate: int = Field(24000, description="sample rate (Hz) of headerless pcm", ge=4000, le=192000)
    speed: float = Field(1.0, description="speaking rate to ask for", ge=0.25, le=4.0)
    model: str = Field("tts-1", description="model to ask for (OpenAI dialects)")
    stream: bool = Field(True, description="ask for audio as it is made; no: the whole file at once")
    arrivals: Literal["closed", "constant", "poisson"] = Field(
        "closed",
        description="closed: users think between turns; constant, poisson: starts come at --rate, whoever is free",
    )
    think_s: Pair = Field((1.0, 3.0), description="closed loop: seconds between turns, uniformly between two numbers")
    rate: Positive | None = Field(None, description="open loop: starts a second over all workers")
    seed: int = Field(1, description="seed of the arrival schedule")
    warm_up_s: NotNegative = Field(0.0, description="turns that start in the first seconds are not counted")
    timeout_s: Positive = Field(60.0, description="longest wait for a whole answer (s)")
    connect_timeout_s: Positive = Field(10.0, description="longest wait for a connection (s)")
    drain_s: NotNegative = Field(
        10.0, description="at the end of a run, seconds for turns in flight (a --stop-timeout given goes before)"
    )
    insecure: bool = Field(False, description="do not verify TLS certificates (self-signed servers)")
    audible_dbfs: float = Field(-40.0, description="level from which a sample counts as audible (dBFS)", ge=-90, le=0)
    longest_s_per_char: Positive = Field(0.4, description="an answer longer than 2 s + this a character is too_long")
    shortest_s_per_char: NotNegative = Field(0.015, description="an answer shorter than this a character is too_short")
    agent_host: str | None = Field(
        None, description="voice agents: where they are called, in a run in which --host is for HTTP"
    )
    port: int = Field(8100, description="voice agents: port, where --host is a bare name", ge=1, le=65535)
    audio_dir: str = Field("audio_files", description="voice agents: folder of the queries (16 kHz mono 16-bit WAV)")
    chunk_ms: int = Field(20, description="voice agents: audio a message to the server (ms)", ge=5, le=200)
    send_rate: int | None = Field(
        None,
        description="voice agents: sample rate (Hz) the server wants, where it is not the dialect's",
        ge=8000,
        le=48000,
    )
    client_ready: bool = Field(False, description="pipecat: say RTVI's client-ready, which some bots wait for")
    turns_per_call: int = Field(0, description="voice agents: turns before a caller hangs up; 0: until the end", ge=0)
    greeting_s: NotNegative = Field(2.0, description="voice agents: longest wait for a greeting to begin (s)")
    answer_timeout_s: Positive = Field(
        15.0, description="voice agents: longest wait from the user's last word to the agent's first (s)"
    )
    answer_end_s: Positive = Field(1.0, description="voice agents: quiet that ends an answer (s)")
    longest_answer_s: Positive = Field(60.0, description="voice agents: an answer that lasts longer never_stopped (s)")
    barge_in_share: float = Field(0.0, description="voice agents: share of turns that are interrupted", ge=0, le=1)
    barge_in_after_s: Positive = Field(1.0, description="voice agents: how long the agent speaks until then (s)")
    yield_s: Positive = Field(2.0, description="voice agents: an agent that speaks on for longer did not yield (s)")
    keep_audio: float = Field(
        0.02, description="voice agents: share of sessions whose worst turns are kept as FLAC", ge=0, le=1
    )
    clients: int | None = Field(None, description="voice agents, as NVIDIA's benchmark: callers at a time", ge=1)
    test_duration: Positive | None = Field(
        None,
        description="voice agents: seconds measured once the last of --clients has started, then the run ends;"
        " with --clients 150, where there is no --run-time",
    )
    client_start_delay: NotNegative = Field(1.0, description="voice agents: seconds between starts of --clients")
    threshold: NotNegative = Field(
        0.5, description="voice agents: an answer sooner than this counts as NVIDIA's reverse barge-in (s)"
    )
    output_dir: str | None = Field(None, description="voice agents: write NVIDIA's JSON files there when the run ends")
    servers: Servers = Field(
        [], description="full duplex: several servers, wss://HOST:PORT ..., shared out over sessions (not --host)"
    )
    mode: Mode | None = Field(
        None,
        description="full duplex: text, audio, turn_taking, interruption: --iterations of that; throughput: --duration"
        " seconds of --concurrency sessions; full: all of them, one after the other",
    )
    iterations: int | None = Field(
        None, description="full duplex: so many over all workers, then the run ends (with --mode: 100)", ge=1
    )
    duration: Positive | None = Field(
        None, description="full duplex: seconds that --mode throughput lasts (with --mode throughput or full: 60)"
    )
    concurrency: int | None = Field(
        None, description="full duplex: sessions at a time (with --mode throughput or full: 4, else 1)", ge=1
    )
    voice_prompt: str = Field("NATF0.pt", description="full duplex: voice the model takes, with its .pt", min_length=1)
    text_prompt: str = Field(
        "You are a wise and friendly teacher. Answer questions or provide advice in a clear and engaging way.",
        description="full duplex: what the model is told to be, where the recording has no prompt of its own",
        min_length=1,
    )
    text_prompt_file: str | None = Field(None, description="full duplex: UTF-8 file of the text prompt of all sessions")
    synthetic: bool = Field(False, description="full duplex: speak synthetic speech instead of the official recordings")
    mock: bool = Field(False, description="full duplex: no server, no network: start the bundled server for this run")
    download_samples: bool = Field(False, description="full duplex: download the official recordings, list them, exit")
    cache_dir: str = Field(".", description="full duplex: the recordings are kept in audio/samples/ in this folder")
    samples_dir: str | None = Field(None, description="full duplex: folder with recordings (WAV) to speak instead")
    output: str | None = Field(
        None, description="full duplex: the run as a JSON file (default: reports/RUN.json, with --mode)"
    )
    setup_timeout_s: Positive = Field(
        60.0, description="full duplex: longest wait for the server's handshake: its lock, and its prompts (s)"
    )
    decode_share: float = Field(
        1.0, description="full duplex: share of sessions whose audio is decoded and heard", ge=0, le=1
    )
    keep_chunks: float = Field(0.01, description="share of rows that keep every chunk's arrival", ge=0, le=1)
    targets: str | None = Field(
        None, description="what is wanted: a YAML file of targets, or chatterbox, personaplex, voice_agent"
    )
    levels: Levels = Field([1, 2, 4, 8, 16, 32], description="shapes/levels.py: users of each level, ascending")
    level_s: Positive = Field(60.0, description="shapes/levels.py: seconds measured at each level")
    level_warm_up_s: NotNegative = Field(5.0, description="shapes: seconds at each level before its turns count")
    capacity_first: int = Field(1, description="shapes/capacity.py: users of the first level", ge=1)
    capacity_most: int = Field(256, description="shapes/capacity.py: users of the largest level", ge=1)
    capacity_step: float = Field(
        0.1, description="shapes/capacity.py: how close the search comes, as a share of its answer", gt=0, le=1
    )
    capacity_confidence: float = Field(
        0.95, description="shapes/capacity.py: how sure the whole answer is; less is quicker", ge=0.5, le=0.999
    )
    level_most_s: Positive = Field(
        1800.0, description="shapes/capacity.py: a level that is not decided after these seconds is left undecided"
    )
    metrics: Endpoints = Field(
        [], description="the target's own Prometheus endpoints, asked every second: http://HOST:PORT/metrics ..."
    )
    runs_dir: str = Field("runs", description="where run directories are made (on the master)")
    spool_dir: str = Field("spool", description="where each worker keeps its rows until the master has them")

    @model_validator(mode="after")
    def _fits_together(self) -> "Scenario":
        known = [*DIALECTS, *CODECS, *DUPLEX_DIALECTS]
        if self.dialect is not None and self.dialect not in known:
            raise ValueError(f"dialect: {self.dialect!r} is unknown{_nearest(self.dialect, known)}")
        if self.format not in FORMATS:
            raise ValueError(f"format: {self.format!r} cannot be heard{_nearest(self.format, list(FORMATS))}")
        low, high = self.think_s
        if not 0 <= low <= high < float("inf"):
            raise ValueError(f"think_s: {low:g} to {high:g} is no range; two numbers, the smaller first")
        if self.arrivals != "closed" and self.rate is None:
            raise ValueError(f"rate: arrivals {self.arrivals} need a rate, e.g. --rate 5 (starts a second)")
        if self.arrivals == "closed" and self.rate is not None:
            raise ValueError("rate: a closed loop has none; add --arrivals poisson, or leave the rate out")
        if self.capacity_most < self.capacity_first:
            raise ValueError(f"capacity_most: {self.capacity_most} is below capacity_first, {self.capacity_first}")
        if not self.text_prompt.strip():
            raise ValueError("text_prompt: is empty; the model must be told what to be")
        if self.path is not None and not re.fullmatch(r"/[!-~]*", self.path):
            raise ValueError(f"path: {self.path!r} must begin with / and hold printable ASCII without spaces")
        return self

    def dialect_of(self, protocol: Protocol) -> str:
        """The dialect of users of this protocol: the one asked for where it is of that protocol, else the usual one."""
        known, usual = _DIALECTS[protocol]
        return self.dialect if self.dialect is not None and self.dialect in known else usual


# Of a run with a mode, where it is not said.
_ITERATIONS, _DURATION_S, _SESSIONS = 100, 60.0, 4
_LASTING: tuple[Mode, ...] = ("throughput", "full")

_IN_WEB_UI = (
    *("dialect", "texts", "voices", "format", "arrivals", "think_s", "rate", "warm_up_s", "timeout_s"),
    *("audio_dir", "answer_timeout_s", "barge_in_share", "keep_audio", "targets"),
)
_OF_MODES = ("mode", "iterations", "duration", "concurrency")
_SEVERAL = ("think_s", "voices", "levels", "metrics", "servers")


class _Words(argparse.Action):
    """Several words as one text, so that the web UI, which keeps an option's type, can replace it with another."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, ",".join(values))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every key of the scenario as an option; None stands for "not given"."""
    group = parser.add_argument_group(
        "Cicada", f"A bearer token comes from {TOKEN_VARIABLE} in the environment or .env."
    )
    group.add_argument(
        "--scenario", default=None, metavar="FILE", help="scenario file (YAML); the options below go before its keys"
    )
    for key, field in Scenario.model_fields.items():
        flag = "--" + key.replace("_", "-")
        shown = " ".join(map(str, field.default)) if isinstance(field.default, list | tuple) else field.default
        text = f"{field.description} (default: {'none' if shown in (None, '') else shown})".replace("%", "%%")
        words: dict[str, Any] = {"nargs": "+", "action": _Words} if key in _SEVERAL else {}
        if field.annotation is bool:
            words = {"nargs": "?", "const": "yes", "choices": ["yes", "no"]}
        action: Any = group.add_argument(flag, default=None, help=text, **words)
        # Locust asks its own parser's actions this; a group's actions are plain ones.
        action.include_in_web_ui = key in _IN_WEB_UI
        action.is_secret = action.is_required = action.is_multiple = False


def resolve(options: argparse.Namespace, protocols: Sequence[Protocol] = _HTTP_ONLY) -> Scenario:
    """The scenario of the given options and file, for users of these protocols. Raises ScenarioError with one line."""
    keys = read_file(Path(options.scenario)) if getattr(options, "scenario", None) else {}
    given = {
        key: value
        for key, field in Scenario.model_fields.items()
        if (value := getattr(options, key, None)) not in (None, "", []) or (value == "" and _is_said(key, field))
    }
    if given.get("mode", "full") != "full":  # what a file says for modes of its own
        keys.pop("iterations" if given["mode"] == "throughput" else "duration", None)
    for key, other in (("text_prompt", "text_prompt_file"), ("text_prompt_file", "text_prompt")):
        if key in given:
            keys.pop(other, None)
    keys |= given
    if keys.get("text_prompt") and keys.get("text_prompt_file"):
        raise ScenarioError("scenario: text_prompt: there is a text_prompt_file too; leave one of them out")
    if "http_tts" not in protocols:
        keys.setdefault("name", protocols[0] if len(protocols) == 1 else "voice_agent")
    scenario = build(keys)
    of_them = [name for protocol in protocols for name in _DIALECTS[protocol][0]]
    if scenario.dialect is not None and scenario.dialect not in of_them:
        raise ScenarioError(
            f"scenario: dialect: {scenario.dialect!r} is none of these users' protocol ({', '.join(protocols)});"
            f" there are {', '.join(of_them)}"
        )
    if scenario.test_duration is not None or scenario.clients is not None:
        callers = scenario.clients or getattr(options, "num_users", None) or 1
        starting_s = (callers - 1) * scenario.client_start_delay
        window: dict[str, Any] = {"clients": callers, "warm_up_s": max(scenario.warm_up_s, starting_s)}
        if scenario.test_duration is None and not getattr(options, "run_time", None):
            window["test_duration"] = _NVIDIAS_TEST_S
        scenario = scenario.model_copy(update=window)
    if scenario.text_prompt_file is not None:
        scenario = scenario.model_copy(update={"text_prompt": _prompt_in(Path(scenario.text_prompt_file))})
    return _with_iterations(scenario, protocols, getattr(options, "num_users", None))


def _is_said(key: str, field: FieldInfo) -> bool:
    """Whether an empty text was asked for: the web UI's form has them for what was not filled in."""
    return (
        key not in _IN_WEB_UI
        and field.annotation is str
        and any(getattr(rule, "min_length", 0) for rule in field.metadata)
    )


def _with_iterations(scenario: Scenario, protocols: Sequence[Protocol], users: int | None) -> Scenario:
    """The scenario with all that its mode needs; as it is where it has none. Raises ScenarioError.

    users: as given with --users. A number of iterations without a mode is of mode audio.
    """
    told = {key: value for key in _OF_MODES if (value := getattr(scenario, key)) is not None}
    if not told:
        return scenario
    key = next(iter(told))
    if list(protocols) != ["personaplex"]:
        raise ScenarioError(
            f"scenario: {key}: is for full-duplex users only (locustfiles/talk_personaplex.py); those of this run"
            f" speak {', '.join(protocols)}"
        )
    if scenario.mode is None and scenario.iterations is None:
        instead = "--run-time" if key == "duration" else "--users"
        raise ScenarioError(f"scenario: {key}: needs a mode, e.g. --mode throughput; without one there is {instead}")
    mode = scenario.mode or "audio"
    if scenario.duration is not None and mode not in _LASTING:
        raise ScenarioError(
            f"scenario: duration: mode {mode} ends with its iterations; only throughput and full have a duration"
        )
    if scenario.iterations is not None and mode == "throughput":
        raise ScenarioError(
            "scenario: iterations: mode throughput lasts for its --duration, whatever number that makes"
        )
    for other in ("clients", "test_duration", "rate"):
        if getattr(scenario, other) is not None:
            raise ScenarioError(f"scenario: {other}: does not go with {key}: iterations begin as others end")
    concurrency = scenario.concurrency or users or (_SESSIONS if mode in _LASTING else 1)
    if users is not None and users < concurrency:
        raise ScenarioError(
            f"scenario: concurrency: {concurrency} sessions at a time need as many --users, not {users}"
        )
    iterations = None if mode == "throughput" else scenario.iterations or _ITERATIONS
    duration = scenario.duration or _DURATION_S if mode in _LASTING else None
    return scenario.model_copy(
        update={"mode": mode, "iterations": iterations, "duration": duration, "concurrency": concurrency}
    )


def _prompt_in(path: Path) -> str:
    try:
        text = path.read_text("utf-8").strip()
    except OSError as error:
        raise ScenarioError(f"scenario: text_prompt_file: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ScenarioError(f"scenario: text_prompt_file: {path} is no UTF-8 text") from None
    if not text:
        raise ScenarioError(f"scenario: text_prompt_file: {path} is empty; the model must be told what to be")
    return text


def as_clients(options: argparse.Namespace, scenario: Scenario) -> None:
    """Tell Locust what --mode, or --clients and --test-duration, mean: users, spawn rate, and when the run ends."""
    if scenario.mode is not None:
        options.num_users = options.num_users or scenario.concurrency
        options.spawn_rate = options.spawn_rate or float(options.num_users)
        options.enable_rebalancing = True  # a lost worker's users begin anew at others, or nobody would ask
    if scenario.clients is None:
        return
    options.num_users = scenario.clients
    delay_s = scenario.client_start_delay
    options.spawn_rate = 1 / delay_s if delay_s else float(scenario.clients)
    if scenario.test_duration is not None:
        options.run_time = scenario.warm_up_s + scenario.test_duration


def read_file(path: Path) -> dict[str, Any]:
    """The keys of a scenario file. Raises ScenarioError."""
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ScenarioError(f"scenario {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ScenarioError(f"scenario {path} is no YAML: {' '.join(str(error).split())}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ScenarioError(f"scenario {path}: expected `key: value` lines, found a {type(found).__name__}")
    return found


def build(keys: dict[str, Any]) -> Scenario:
    """A checked scenario. Raises ScenarioError naming the key and the fix."""
    for key in keys:
        if key not in Scenario.model_fields:
            raise ScenarioError(f"scenario: unknown key {key!r}{_nearest(str(key), list(Scenario.model_fields))}")
    try:
        scenario = Scenario.model_validate(keys)
        resolve_texts(scenario)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:1])
        what = str(first["ctx"]["error"]) if first["type"] == "value_error" else f"{where}: {first['msg']}"
        given = "" if first["type"] == "value_error" else f" (given: {first['input']!r})"
        raise ScenarioError(f"scenario: {what}{given}") from None
    except ValueError as error:
        raise ScenarioError(f"scenario: {error}") from None
    return scenario


def resolve_texts(scenario: Scenario) -> dict[str, str] | None:
    """The texts by name; None where they are generated for each turn. Raises ValueError."""
    match scenario.texts:
        case "standard":
            return texts_of.standard()
        case "generated":
            return None
        case path:
            return texts_of.from_file(Path(path))


def token() -> str | None:
    """The bearer token of this process's environment or .env file; never stored, sent on or printed."""
    from dotenv import dotenv_values

    found = (os.environ.get(TOKEN_VARIABLE) or dotenv_values(".env").get(TOKEN_VARIABLE) or "").strip()
    if not found.isprintable():
        raise ValueError(f"{TOKEN_VARIABLE} holds control characters, which no header may")
    return found or None


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"

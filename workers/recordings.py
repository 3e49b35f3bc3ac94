"""What users say to full-duplex models: recordings, NVIDIA's two or one's own, or synthetic speech; cut into queries.

Knows nothing of sessions or of the wire. NVIDIA's are told by SHA-256, downloaded once and kept.
"""

import hashlib
import http.client
import json
import logging
import os
import secrets
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import soundfile
import soxr

from workers.audio import clips, turns
from workers.audio.clips import Clip, ClipError, Samples

if TYPE_CHECKING:
    from workers.settings import Scenario

_log = logging.getLogger("cicada")

RATE = 24_000
COMMIT = "3428dfd95309a7f3c84fd93259ded0f810d1ff91"
OFFICIAL_URL = f"https://raw.githubusercontent.com/NVIDIA/personaplex/{COMMIT}/assets/test"

QUESTIONS = (
    "Hello, I would like to book a table for four people on Friday evening. Is there one left?",
    "What time do you open on Saturday, and is there parking nearby?",
    "My order has not arrived yet. Could you find out where it is?",
    "What is the difference between the basic plan and the family plan?",
    "How long does it take to charge the battery when it is empty?",
)

PAUSE_S = 1.5  # a shorter pause belongs to a query
LEAD_S = 0.2  # what is kept before a query's voice
_FAINT_DB = 26.0  # below the voice's level: a breath or a released consonant so faint does not end a query
_LEVEL_S = 0.02
_CONNECT_S = 30.0  # also the longest pause in a download
_DOWNLOAD_S = 300.0
_START_S = 60.0
_STOP_S = 10.0
_SPEAK_S = 60.0
_LARGEST_BYTES = 8 << 20
_ROOT = Path(__file__).resolve().parent.parent


class RecordingError(ValueError):
    """No recording to speak; its text is one line that names the file and the fix."""


class _Official(NamedTuple):
    sha256: str
    length_s: float | None = None  # of audio
    prompt: str | None = None  # name of its file


_OFFICIAL = {
    "input_assistant.wav": _Official("6fefe378a39602d83d8ea0ef165309b7a7508bd371c1d5bea6196e6ff6f57d2e", 40.0),
    "input_service.wav": _Official(
        "523e129a58c55f9caca7cf87683b51d6bf5fd362d08eb4e2a226b0bde10e3ab5", 20.0, "prompt_service.txt"
    ),
    "prompt_service.txt": _Official("3146717ba30b34656b0f6e71c12a249dea5f0eb4599f09d696e48dbb12be4316"),
}


@dataclass(frozen=True, slots=True)
class Recording:
    """One script a user speaks: its queries, and the text prompt that goes with it (None: the scenario's own).

    queries: int16 mono at RATE, each ends with its last voiced sample. offsets_s: where that is in the recording.
    source: official (by SHA-256), local folder, or synthetic.
    """

    name: str
    prompt: str | None
    queries: tuple[Clip, ...]
    offsets_s: tuple[float, ...]
    source: str


# ---- which


def of_scenario(scenario: "Scenario") -> list[Recording]:
    """What the scenario's users speak. Raises RecordingError."""
    return choose(
        scenario.cache_dir, scenario.samples_dir, synthesized=scenario.synthetic, mock=scenario.mock, say=_log.info
    )


def choose(
    cache_dir: str = ".",
    samples_dir: str | None = None,
    *,
    synthesized: bool = False,
    mock: bool = False,
    say: Callable[[str], None] = _log.info,
    base_url: str = OFFICIAL_URL,
) -> list[Recording]:
    """NVIDIA's recordings, downloaded when absent; those of `samples_dir` if named; synthetic speech if asked for.

    mock: never the network: NVIDIA's if they are cached and right, else synthetic speech. Raises RecordingError.
    """
    where = folder(cache_dir, samples_dir)
    if synthesized:
        return synthetic(QUESTIONS)
    if samples_dir is not None:
        return load(where)
    if not mock:
        download(where, say, base_url)
    elif not all(_is_right(where / name) for name in _OFFICIAL):
        say(f"the official recordings are not in {where}: users speak synthetic speech")
        return synthetic(QUESTIONS)
    return [_loaded(where / name) for name, known in _OFFICIAL.items() if known.length_s is not None]


def folder(cache_dir: str, samples_dir: str | None) -> Path:
    """Where recordings are: the folder that is named, else audio/samples/ in the cache."""
    return Path(samples_dir) if samples_dir is not None else Path(cache_dir) / "audio" / "samples"


# ---- download


def download(into: Path, say: Callable[[str], None], base_url: str = OFFICIAL_URL) -> None:
    """Fetch those of NVIDIA's files that are not in `into` with the right SHA-256. Raises RecordingError at the first
    that cannot be had."""
    for name in _OFFICIAL:
        _fetch(name, into, say, base_url)


def download_command(where: Path, base_url: str = OFFICIAL_URL) -> int:
    """Fetch them and print a line a file; 1 if one cannot be had (the others are still tried), else 0."""
    width = max(map(len, _OFFICIAL))
    failed = 0
    for name, known in _OFFICIAL.items():
        path = where / name
        try:
            _fetch(name, where, lambda line: print(line, flush=True), base_url)
        except RecordingError as error:
            failed += 1
            print(error, file=sys.stderr)
            continue
        length = "text" if known.length_s is None else f"{soundfile.info(path).duration:.1f} s"
        print(f"{name:{width}}  {length:>6}  {path.stat().st_size:>9,} bytes  {path}", flush=True)
    return 1 if failed else 0


def _fetch(name: str, into: Path, say: Callable[[str], None], base_url: str) -> None:
    if _is_right(into / name):
        return
    url = f"{base_url}/{name}"
    say(f"downloading {url}")
    data = _bytes_of(name, url)
    if hashlib.sha256(data).hexdigest() != _OFFICIAL[name].sha256:
        raise _not_had(name, f"{len(data)} bytes with a wrong checksum came from {url}; thrown away")
    # Its own name: several workers may download at once.
    part = into / f".{name}.{os.getpid()}.part"
    try:
        into.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, into / name)  # whole or not at all
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise RecordingError(
            f"{name} cannot be kept in {into}: {error.strerror}; name another folder: --cache-dir DIR"
        ) from None


def _bytes_of(name: str, url: str) -> bytes:
    request = urllib.request.Request(url, headers={"user-agent": "cicada"})
    opener = urllib.request.build_opener()  # with the environment's proxies as they are now
    until = time.monotonic() + _DOWNLOAD_S
    data = bytearray()
    try:
        with opener.open(request, timeout=_CONNECT_S) as answer:
            while piece := answer.read1(1 << 16):
                data += piece
                if len(data) > _LARGEST_BYTES:
                    raise _not_had(name, f"more than {_LARGEST_BYTES >> 20} MB came from {url}")
                if time.monotonic() > until:
                    raise _not_had(name, f"not there after {_DOWNLOAD_S:.0f} s")
    except (OSError, http.client.HTTPException) as error:
        raise _not_had(name, _network_reason(error, request.host)) from None  # the host: a proxy's where there is one
    return bytes(data)


def _network_reason(error: Exception, host: str | None) -> str:
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        return f"HTTP {error.code} from {host}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, socket.gaierror):
        return f"no address for {host}"
    if isinstance(reason, TimeoutError):
        return f"no answer from {host} within {_CONNECT_S:.0f} s"
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"the certificate of {host} is not trusted: {reason.verify_message}"
    what = reason.strerror if isinstance(reason, OSError) and reason.strerror else str(reason)
    return f"{host}: {' '.join(what.split()) or type(reason).__name__}"


def _not_had(name: str, why: str) -> RecordingError:
    return RecordingError(
        f"{name} cannot be downloaded ({why}); offline, name a folder that has it: --samples-dir DIR,"
        " or use --synthetic"
    )


def _is_right(path: Path) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == _OFFICIAL[path.name].sha256
    except OSError:
        return False


# ---- load


def load(where: Path) -> list[Recording]:
    """Every *.wav of a folder, of any rate and format. Raises RecordingError that names each that cannot be spoken.

    NVIDIA's, by name, are 24 kHz mono 16-bit of their lengths; input_service.wav goes with prompt_service.txt.
    Others go with NAME.txt or prompt_NAME.txt beside them, if there is one.
    """
    try:
        paths = [path for path in clips.audio_files(where) if path.suffix.lower() == ".wav"]
    except ClipError:
        paths = []
    found: list[Recording] = []
    wrong: list[str] = []
    for path in paths:
        try:
            found.append(_loaded(path))
        except RecordingError as error:
            wrong.append(str(error))
    if wrong:
        raise RecordingError(f"{where}: {'; '.join(wrong)}")
    if not found:
        missing = "" if where.is_dir() else " (there is no such folder)"
        raise RecordingError(
            f"no recordings (*.wav) in {where}{missing}; name a folder that has some: --samples-dir DIR, leave that"
            " out to download the official ones, or use --synthetic"
        )
    return found


def _loaded(path: Path) -> Recording:
    known = _OFFICIAL.get(path.name)
    is_official = known is not None and _is_right(path)
    if known is None:
        prompt = _prompt_beside(path)
    else:
        prompt = None if known.prompt is None else _prompt(path, path.with_name(known.prompt))
    try:
        recording = _cut(path, prompt, "official" if is_official else "local folder")
    except ClipError as error:
        raise RecordingError(f"{error}; mend it, or take it out of the folder") from None
    if known is not None and known.length_s is not None:
        _refuse_unlike(path, known.length_s)
    return recording


def _refuse_unlike(path: Path, length_s: float) -> None:
    """Who calls a file like one of NVIDIA's has it like theirs: results under its name are compared with others'."""
    info = soundfile.info(path)
    is_like = (info.samplerate, info.channels, info.subtype) == (RATE, 1, "PCM_16")
    if not is_like or abs(info.duration - length_s) > 0.005:
        raise RecordingError(
            f"{path.name}: {info.duration:.2f} s, {info.samplerate} Hz, channels: {info.channels}, {info.subtype}; the"
            f" official one has {length_s:.2f} s, {RATE} Hz, channels: 1, PCM_16. Rename it, or delete it and use"
            " --download-samples"
        )


def _prompt_beside(path: Path) -> str | None:
    for name in (f"{path.stem}.txt", f"prompt_{path.stem}.txt"):
        if path.with_name(name).is_file():
            return _prompt(path, path.with_name(name))
    return None


def _prompt(spoken: Path, path: Path) -> str:
    try:
        text = path.read_text("utf-8-sig").strip()
    except OSError as error:
        raise RecordingError(
            f"{spoken.name}: its prompt {path.name} cannot be read: {error.strerror}; put it beside, or use"
            " --download-samples"
        ) from None
    except UnicodeDecodeError:
        raise RecordingError(
            f"{spoken.name}: its prompt {path.name} is not UTF-8; convert it: iconv -t UTF-8 {path}"
        ) from None
    if not text:
        raise RecordingError(f"{spoken.name}: its prompt {path.name} is empty, which servers refuse; write one into it")
    return text


def _cut(path: Path, prompt: str | None, source: str) -> Recording:
    """The recording, parted into queries at its pauses. Raises ClipError that names it."""
    samples = _samples(path)
    queries = _queries(samples)
    if not queries:
        raise ClipError(f"{path.name}: no speech in it")
    found = []
    for number, (onset, offset) in enumerate(queries, start=1):
        begin = max(0, onset - round(LEAD_S * RATE))
        name = path.stem if len(queries) == 1 else f"{path.stem}_{number}"
        voice = np.ascontiguousarray(samples[begin:offset])
        found.append(Clip(name, voice, RATE, (onset - begin) / RATE, (offset - begin) / RATE))
    return Recording(path.stem, prompt, tuple(found), tuple(offset / RATE for _, offset in queries), source)


def _samples(path: Path) -> Samples:
    """(n,) int16 at RATE: the mean of all channels; samples that need no change are as they are in the file."""
    try:
        heard, rate = clips.read(path)
    except ClipError as error:
        raise ClipError(f"{path.name}: {error}") from None
    mixed = heard.mean(axis=1, dtype=np.float64)
    mixed -= mixed.mean() if abs(mixed.mean()) > clips.DC_OFFSET else 0.0
    if rate != RATE:
        mixed = soxr.resample(mixed, rate, RATE)
    mixed /= max(1.0, float(np.abs(mixed).max(initial=0.0)))  # float files may exceed full scale
    return clips.int16(mixed * 32768)


def _queries(samples: Samples) -> list[turns.Span]:
    """Speech between pauses of PAUSE_S."""
    joined: list[turns.Span] = []
    for span in turns.speech(samples, RATE):
        end = span.onset + _fading(samples[span.onset : span.offset])
        if joined and span.onset - joined[-1].offset < PAUSE_S * RATE:
            joined[-1] = joined[-1]._replace(offset=end)
        else:
            joined.append(turns.Span(span.onset, end))
    return joined


def _fading(voice: Samples) -> int:
    """One past the last sample of the last 20 ms that are no fainter than _FAINT_DB below the voice's level."""
    size = round(_LEVEL_S * RATE)
    energy = np.concatenate([[0.0], np.cumsum(np.square(voice.astype(np.float64)))])
    powers = (energy[size:] - energy[:-size]) / size
    loud = np.flatnonzero(powers >= energy[-1] / len(voice) * 10 ** (-_FAINT_DB / 10))
    return int(loud[-1]) + size if loud.size else len(voice)


# ---- synthetic speech


def synthetic(texts: Sequence[str]) -> list[Recording]:
    """These texts, spoken by the bundled server's engine, one recording each. Raises RecordingError."""
    found = []
    # A proxy has no part in what stays on this machine.
    ask = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with tempfile.TemporaryDirectory() as spoken, _bundled_server() as (url, token):
        headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
        for number, text in enumerate(texts, start=1):
            body = json.dumps({"text": text, "speaker_id": "default", "format": "wav"}).encode()
            path = Path(spoken) / f"synthetic_{number}.wav"
            try:
                with ask.open(
                    urllib.request.Request(f"{url}/v1/synthesize", body, headers), timeout=_SPEAK_S
                ) as answer:
                    path.write_bytes(answer.read())
            except (OSError, http.client.HTTPException) as error:
                raise _unspoken(f"{_network_reason(error, 'the bundled server')} for {text[:40]!r}") from None
            try:
                found.append(_cut(path, None, "synthetic"))
            except ClipError as error:
                raise _unspoken(f"{error}, which is {text[:40]!r}") from None
    return found


@contextmanager
def _bundled_server() -> Iterator[tuple[str, str]]:
    """Start it on a free loopback port, yield its URL and token, end it whatever happens."""
    token = secrets.token_hex(16)  # whatever token the user's own server has, from the environment or .env
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "gpu_server", "--port", "0", "--engine", "espeak"],
        cwd=_ROOT,
        env=os.environ | {"CICADA_SERVER_TOKEN": token},
        encoding="utf-8",
        errors="replace",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    with process:
        try:
            yield _ready_url(process), token
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _ready_url(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    watchdog = threading.Timer(_START_S, process.kill)
    watchdog.daemon = True
    watchdog.start()
    line = ""
    try:
        for said in process.stdout:
            line = said.strip() or line
            if line.startswith("gpu_server: ready on "):
                return line.split(" on ", 1)[1].split()[0]
    finally:
        watchdog.cancel()
    raise _unspoken(line.removeprefix("gpu_server: ").removesuffix(" or use --engine tone") or "it did not start")


def _unspoken(why: str) -> RecordingError:
    return RecordingError(f"no synthetic speech by the bundled server: {why}")

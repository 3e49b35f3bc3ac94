"""The audio a user speaks: read it, find its voice, refuse what would be measured wrongly. Knows nothing of sessions.

A clip is 16 kHz mono 16-bit. It ends with its last voiced sample: latency counts from the end of the user's speech, and
silence after it would be taken for waiting.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from workers.audio import turns

Samples = npt.NDArray[np.int16]

RATE = 16_000
LONG_S = 60.0
LONGEST_S = 600.0  # a clip is held in memory, once a worker
LEADING_S = 1.0
TRAILING_S = 0.02
CLIPPED_SHARE = 0.001
DC_OFFSET = 0.01  # of full scale
OTHER_SUFFIXES = (".flac", ".mp3", ".ogg", ".opus", ".aif", ".aiff")  # what can be made a query
_LARGEST_BYTES = 512 << 20
_WAV = ("WAV", "WAVEX", "RF64")


class ClipError(ValueError):
    """Audio that cannot be spoken; the text names each file, what is wrong with it, and what mends it."""


class Problem(NamedTuple):
    """What is wrong with a file, and whether a run refuses it for that."""

    what: str
    refused: bool

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True, slots=True)
class Clip:
    """int16 mono samples that end with the last voiced one; the voice is in [onset_s, offset_s)."""

    name: str
    samples: Samples
    rate: int
    onset_s: float
    offset_s: float


def load(folder: Path) -> list[Clip]:
    """Every *.wav of a folder, query_2 before query_10. Raises ClipError where any is not as a query must be."""
    clips: list[Clip] = []
    wrong: list[str] = []
    for path in audio_files(folder):
        if path.suffix.lower() != ".wav":
            continue
        problems, clip = _examined(path)
        refused = [str(problem) for problem in problems if problem.refused]
        if clip is not None and not refused:
            clips.append(clip)
        else:
            wrong.append(f"{path.name}: {', '.join(refused)}")
    if wrong:
        raise ClipError(f"{folder}: {'; '.join(wrong)} (mended copies: python -m workers clips fix {folder})")
    if not clips:
        raise _no_audio(folder)
    return clips


def audio_files(folder: Path) -> list[Path]:
    """Audio files of a folder in their natural order. Raises ClipError if there are none."""
    suffixes = (".wav", *OTHER_SUFFIXES)
    try:
        inside = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    except OSError as error:
        raise ClipError(f"no audio files in {folder}: {error.strerror}") from None
    found = [path for path in inside if path.suffix.lower() in suffixes]
    if not found:
        raise _no_audio(folder)
    return sorted(found, key=_natural)


def examine(path: Path) -> list[Problem]:
    """Everything that is wrong with a file as a query, the worst first; empty if nothing is."""
    return sorted(_examined(path)[0], key=lambda problem: not problem.refused)


def fixed(path: Path) -> Clip:
    """What the file says as a query: one channel, 16 kHz, 16 bit, no silence behind it. Raises ClipError if nothing."""
    try:
        heard, rate = read(path)
    except ClipError as error:
        raise ClipError(f"{path.name}: {error}") from None
    mixed = heard.mean(axis=1, dtype=np.float64)
    mixed -= mixed.mean() if abs(mixed.mean()) > DC_OFFSET else 0.0
    if rate != RATE:
        mixed = soxr.resample(mixed, rate, RATE)
    mixed /= max(1.0, float(np.abs(mixed).max(initial=0.0)) / (32767 / 32768))  # float files may exceed full scale
    clip = _clip(path.name, int16(mixed * 32768), RATE)
    if clip is None:
        raise ClipError(f"{path.name}: no speech in it")
    return clip


def resampled(clip: Clip, rate: int) -> Clip:
    """The same clip at another rate; its onset and offset are where they were."""
    if rate == clip.rate:
        return clip
    # In float: soxr dithers int16 at random, and every worker must speak the same bytes.
    return replace(clip, samples=int16(soxr.resample(clip.samples.astype(np.float64), clip.rate, rate)), rate=rate)


def _examined(path: Path) -> tuple[list[Problem], Clip | None]:
    try:
        heard, rate = read(path)
    except ClipError as error:
        return [Problem(str(error), True)], None
    problems = [Problem(what, True) for what in _format_faults(path)]
    mixed = heard.mean(axis=1, dtype=np.float64)
    samples = int16(mixed * 32768)
    clip = _clip(path.name, samples, rate)
    if clip is None:
        return [*problems, Problem("silence only" if not _audible(samples) else "no speech in it", True)], None
    trailing_s = len(samples) / rate - clip.offset_s
    warnings = {
        f"{trailing_s * 1000:.0f} ms of silence behind the voice (left out when spoken)": trailing_s >= TRAILING_S,
        f"{clip.onset_s:.1f} s of silence before the voice": clip.onset_s > LEADING_S,
        f"{clip.offset_s:.0f} s long": clip.offset_s > LONG_S,
        f"clipped: {_clipped(heard):.1%} of its samples are at full scale": _clipped(heard) > CLIPPED_SHARE,
        f"a DC offset of {mixed.mean():+.1%} of full scale": abs(mixed.mean()) > DC_OFFSET,
    }
    return problems + [Problem(what, False) for what, so in warnings.items() if so], clip


def _format_faults(path: Path) -> list[str]:
    info = soundfile.info(path)
    faults = []
    if info.format not in _WAV:
        faults.append(f"{info.format}, no WAV")
    if info.samplerate != RATE:
        faults.append(f"{info.samplerate} Hz, not {RATE} Hz")
    if info.channels != 1:
        faults.append(f"{info.channels} channels, not 1")
    if info.format in _WAV and info.subtype != "PCM_16":
        faults.append(f"{info.subtype_info}, not 16-bit PCM")
    return faults


def read(path: Path) -> tuple[npt.NDArray[np.float32], int]:
    """Samples (n, channels) within ±1 and their rate. Raises ClipError with what is wrong, in a few words."""
    try:
        size = path.stat().st_size
        if not size:
            raise ClipError("an empty file")
        if size > _LARGEST_BYTES:
            raise ClipError(f"{size >> 20} MB: more than {LONGEST_S / 60:.0f} minutes of a query")
        with path.open("rb") as bytes_, soundfile.SoundFile(bytes_) as file:
            if file.frames > LONGEST_S * file.samplerate:
                raise ClipError(f"{file.frames / file.samplerate:.0f} s long, at most {LONGEST_S:.0f} s")
            # A header may promise more than memory holds; what is there bounds what is asked for.
            heard = file.read(min(file.frames, 8 * size), dtype="float32", always_2d=True)
            rate = int(file.samplerate)
    except OSError as error:
        raise ClipError(f"cannot be read: {error.strerror}") from None
    except (soundfile.LibsndfileError, RuntimeError, ValueError) as error:
        if isinstance(error, ClipError):
            raise
        raise ClipError(f"not audio that can be read: {_reason(error)}") from None
    if not len(heard):
        raise ClipError("no samples in it")
    if missing := _missing_bytes(path, size):
        raise ClipError(f"cut off: {missing} bytes that its header promises are not there")
    return np.nan_to_num(heard, nan=0.0, posinf=1.0, neginf=-1.0), rate


def _reason(error: Exception) -> str:
    text = str(getattr(error, "error_string", "") or error)
    return " ".join(text.split())[:100].rstrip(".")


def _missing_bytes(path: Path, size: int) -> int:
    """Bytes that a WAV's data chunk promises beyond the file's end; a length that a pipe left open promises none."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
    at = 12
    while head[:4] == b"RIFF" and len(head) >= at + 8:
        length = int.from_bytes(head[at + 4 : at + 8], "little")
        if head[at : at + 4] == b"data":
            return 0 if length >= 0x7FFF0000 else max(0, at + 8 + length - size)
        at += 8 + length + length % 2
    return 0


def _clip(name: str, samples: Samples, rate: int) -> Clip | None:
    spans = turns.speech(samples, rate)
    if not spans:
        return None
    end = spans[-1].offset
    return Clip(name, np.ascontiguousarray(samples[:end]), rate, spans[0].onset / rate, end / rate)


def _clipped(heard: npt.NDArray[np.float32]) -> float:
    """Share of the samples that stand at full scale beside another one that does."""
    full = np.abs(heard) >= 32766 / 32768
    return float((full[1:] & full[:-1]).mean()) if len(full) > 1 else 0.0


def _audible(samples: Samples) -> bool:
    return len(samples) > 0 and int(samples.max()) - int(samples.min()) > 16


def int16(heard: npt.NDArray[np.float64]) -> Samples:
    return np.clip(np.rint(heard), -32768, 32767).astype(np.int16)


def _natural(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name.lower())]


def _no_audio(folder: Path) -> ClipError:
    return ClipError(f"no audio files in {folder}: a query is a 16 kHz mono 16-bit WAV file, *.wav")

"""What the users of a full-duplex run speak: chosen once, on the master, and kept where its workers find it.

Workers on other machines have their own copy, or are refused: they must have the master's (see targets.fingerprint_of).
"""

import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from workers import recordings
from workers.recordings import RATE, Recording, RecordingError
from workers.settings import Scenario

_QUIET_S = 0.5  # after a query; between two it must be longer than what a query may hold
_SYNTHETIC = "synthetic"

_log = logging.getLogger("cicada")
_said: set[str] = set()


class Spoken(NamedTuple):
    """The recordings of a run. scenario: with which its workers find the same ones."""

    recordings: list[Recording]
    source: str
    scenario: Scenario

    def told(self) -> dict[str, object]:
        """As run.json keeps it."""
        return {"source": self.source, "names": [one.name for one in self.recordings]}


def choose(scenario: Scenario) -> Spoken:
    """Download, find or synthesize them, as the scenario says. Raises RecordingError."""
    found = recordings.choose(
        scenario.cache_dir, scenario.samples_dir, synthesized=scenario.synthetic, mock=scenario.mock, say=_say_once
    )
    source = ", ".join(sorted({one.source for one in found}))
    plain = scenario.model_copy(update={"synthetic": False, "mock": False})
    if source != _SYNTHETIC:
        return Spoken(found, source, plain)
    folder = Path(scenario.cache_dir, "audio", _SYNTHETIC).absolute()
    _keep(found, folder)
    return Spoken(recordings.load(folder), source, plain.model_copy(update={"samples_dir": str(folder)}))


def _say_once(line: str) -> None:
    """A run's recordings are looked at before it begins, and again when it does."""
    if line not in _said:
        _said.add(line)
        _log.info(line)


def _keep(spoken: list[Recording], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one in spoken:
            quiet = np.zeros(round((recordings.PAUSE_S + _QUIET_S) * RATE), np.int16)
            samples = np.concatenate([part for query in one.queries for part in (query.samples, quiet)])
            part = folder / f".{one.name}.{os.getpid()}.part"
            soundfile.write(part, samples, RATE, subtype="PCM_16", format="WAV")
            part.replace(folder / f"{one.name}.wav")  # whole or not at all: another run may be reading
        for path in folder.glob("*.wav"):
            if path.stem not in {one.name for one in spoken}:
                path.unlink()
    except OSError as error:
        raise RecordingError(
            f"synthetic speech cannot be kept in {folder}: {error.strerror}; name another folder: --cache-dir DIR"
        ) from None

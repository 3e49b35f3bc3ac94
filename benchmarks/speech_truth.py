"""How far off is the onset of real speech? Recordings as answers, against a peer that stamps what it says.

Where a recording begins is a matter of judgement: here, with its first sample of -35 dB of its peak, which is not what
the hearing goes by. Recordings: the queries of audio_files/, and the WAV files of the folder in CICADA_VOICES, cut at
their pauses.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import soundfile
import soxr

from benchmarks import call_truth, calls
from benchmarks.peers.starting import agent_peer
from benchmarks.processes import ROOT
from benchmarks.results import Outcome, Target
from benchmarks.voice import RATE, Samples

VOICES_VARIABLE = "CICADA_VOICES"
COUNT, MOST_VOICES = 10, 16
MEDIAN_MS, P99_MS = 10.0, 30.0
_BEGINS_DB, _BEFORE_S = -35.0, 0.15
_PAUSE_S, _SHORTEST_S, _LONGEST_S = 0.3, 0.6, 4.0


def run(quick: bool, folder: Path) -> Outcome:
    seconds = 8.0 if quick else 12.0
    voices = list(recordings())[: 2 if quick else MOST_VOICES]
    outcome = Outcome({"calls": COUNT, "window_s": seconds, "voices": [name for name, _, _ in voices]})
    errors: list[pd.Series[float]] = []
    for number, (name, samples, begins_s) in enumerate(voices):
        where = folder / str(number)
        with agent_peer(where, says=samples) as peer:
            with calls.our_calls(calls.our_load(peer, COUNT, where / "client")) as live:
                window, _ = calls.watched(live, peer, seconds)
                live.window(4.0)
                peer.figures()
            rows = window.of(live.rows(), "user_offset_at")
            met = call_truth.joined(rows[rows["outcome"] != "cut"], peer.trace)
        errors.append(met["onset_error_s"] - begins_s)
        found = outcome.figures[name] = call_truth.error_figures(errors[-1])
        print(f"  {name}: {found}", flush=True)
    error = outcome.figures["all"] = call_truth.error_figures(pd.concat(errors))
    outcome.targets = [
        Target("onset of real speech: error, median", error.get("median"), MEDIAN_MS, "ms"),
        Target("onset of real speech: error, p99", error.get("p99"), P99_MS, "ms"),
    ]
    outcome.notes.append("error: |onset heard - onset by the criterion|; mean: signed, negative is heard early.")
    return outcome


def recordings() -> Iterator[tuple[str, Samples, float]]:
    """Name and 16 kHz samples of what is said, with what the recording has just before, and how long that is (s)."""
    folders = [ROOT / "audio_files", *map(Path, filter(None, [os.environ.get(VOICES_VARIABLE)]))]
    for folder in folders:
        for path in sorted(folder.glob("*.wav")):
            heard, rate = soundfile.read(path, dtype="float32", always_2d=True)
            mono = soxr.resample(heard.mean(axis=1), rate, RATE)
            for number, (part, begins) in enumerate(parts(mono)):
                samples = np.round(part * (32767 / max(1.0, np.abs(part).max()))).astype(np.int16)
                yield f"{path.stem}-{number}", samples, begins / RATE


def parts(mono: npt.NDArray[np.float32]) -> Iterator[tuple[npt.NDArray[np.float32], int]]:
    """What lies between pauses, no more than _LONGEST_S of it, and at which sample it begins by the criterion."""
    loud = np.flatnonzero(np.abs(mono) >= np.abs(mono).max() * 10 ** (_BEGINS_DB / 20))
    for part in np.split(loud, np.flatnonzero(np.diff(loud) > _PAUSE_S * RATE) + 1):
        begins = min(int(part[0]), round(_BEFORE_S * RATE))
        said = mono[part[0] - begins : part[-1] + 1]
        if len(said) - begins >= _SHORTEST_S * RATE:
            yield said[: round(_LONGEST_S * RATE)], begins

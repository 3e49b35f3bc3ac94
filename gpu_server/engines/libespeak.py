"""Call libespeak-ng from Python: one utterance at a time. Knows nothing of asyncio, sample rates asked for or HTTP.

The library keeps its whole state in globals and crashes when two threads enter it, so one lock guards every call.
Source of the calls: espeak-ng's speak_lib.h.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import espeakng_loader
import numpy as np

from gpu_server.speech import EngineUnavailable, Pcm

_SYNCHRONOUS = 2
_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_POS_CHARACTER = 1
_RATE, _PITCH, _WORD_GAP = 1, 3, 7
_CHUNK_MS = 60
_SLOWEST_WPM = 80  # libespeak takes less as 80
_WORD_GAP_S = 0.03  # one unit of it, as measured at the slowest rate
_LONGEST_PATH_BYTES = 150  # libespeak cuts a longer one off without a word

_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True, slots=True)
class Timbre:
    """A libespeak voice with its variant, and a pitch of 0-99."""

    voice: str
    pitch: int = 50


class Libespeak:
    """The loaded library. Make one a process: a second one would share the first one's globals."""

    def __init__(self) -> None:
        home = os.fsencode(Path(espeakng_loader.get_data_path()).parent)
        if len(home) > _LONGEST_PATH_BYTES:
            raise EngineUnavailable(
                f"libespeak-ng cannot read its data from a path of {len(home)} bytes (at most {_LONGEST_PATH_BYTES}): "
                f"{os.fsdecode(home)}; install into a shorter path"
            )
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._library.espeak_Synth.argtypes = [
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        ]
        self._lock = threading.Lock()
        self._sink: Callable[[Pcm], bool] | None = None
        self._sink_error: BaseException | None = None
        self._callback = _Callback(self._on_audio)  # kept: the library holds only a bare pointer to it
        self.sample_rate: int = self._library.espeak_Initialize(_SYNCHRONOUS, _CHUNK_MS, home, _DONT_EXIT)
        if self.sample_rate <= 0:
            raise EngineUnavailable(f"libespeak-ng found no data in {os.fsdecode(home)}; reinstall espeakng-loader")
        self._library.espeak_SetSynthCallback(self._callback)

    def speak(self, text: str, timbre: Timbre, words_per_minute: float, sink: Callable[[Pcm], bool]) -> None:
        """Say `text`, handing each chunk (own memory) to `sink`, which returns False to stop. Blocks until done."""
        utf8 = text.replace("\0", " ").encode()
        rate = max(_SLOWEST_WPM, round(words_per_minute))
        # Slower than the library speaks, words are set apart instead.
        gap_s = max(0.0, 60 / words_per_minute - 60 / _SLOWEST_WPM)
        with self._lock:
            if self._library.espeak_SetVoiceByName(timbre.voice.encode()) != 0:
                raise EngineUnavailable(f"libespeak-ng has no voice {timbre.voice!r}; reinstall espeakng-loader")
            self._library.espeak_SetParameter(_RATE, rate, 0)
            self._library.espeak_SetParameter(_PITCH, timbre.pitch, 0)
            self._library.espeak_SetParameter(_WORD_GAP, round(gap_s / _WORD_GAP_S), 0)
            self._sink, self._sink_error = sink, None
            try:
                status = self._library.espeak_Synth(utf8, len(utf8) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
            finally:
                self._sink = None
            if self._sink_error is not None:
                raise self._sink_error
        if status != 0:
            raise RuntimeError(f"espeak_Synth returned {status} for a text of {len(text)} characters")

    def _on_audio(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int) -> int:
        if not samples or count <= 0 or self._sink is None:
            return 0
        try:
            # Copied: the library reuses the buffer as soon as this returns.
            return 0 if self._sink(np.ctypeslib.as_array(samples, (count,)).copy()) else 1
        except BaseException as error:  # An exception cannot cross C: carried over it by hand.
            self._sink_error = error
            return 1

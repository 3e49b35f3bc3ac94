"""RTVI messages, which pipecat's servers send unasked beside the audio, as events. Knows nothing of what carries them.

The same words are told under several names, by version and by setting: the first name that brings the agent's words (or
the user's) is listened to for the rest of the session, the others are passed over, so that nothing is counted twice.
`bot-transcription`, `bot-output` and the `tts` texts repeat the language model's words and are never listened to.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Final, Literal

from workers.events import Event, Fault, Hint, ServerFigure, Text

CLIENT_READY: Final = json.dumps(
    {
        "label": "rtvi-ai",
        "type": "client-ready",
        "id": "1",
        "data": {"version": "2.2.0", "about": {"library": "cicada"}},
    }
)

_HINTS: Final[dict[str, Sequence[Event]]] = {
    "bot-started-speaking": (Hint("agent_started"),),
    "bot-stopped-speaking": (Hint("agent_stopped"),),
    "user-started-speaking": (Hint("user_started"),),
    "user-stopped-speaking": (Hint("user_stopped"),),
    "bot-ready": (Hint("ready"),),
}
_AGENT_TEXTS: Final = ("bot-llm-text", "llm-raw-text")
_USER_TEXTS: Final = ("user-transcription", "user-input", "stt-raw-text")
_METRICS: Final = ("ttfb", "ttfa", "ttfat", "processing")
_LONGEST_S: Final = 1e6
# Before `Service`, else anywhere: `DeepgramSTTService` holds a `tts` too (of `mSTTS…`), `AWSTTSService` an `stt`.
_COMPONENT: Final = (re.compile("(LLM|TTS|STT|ASR)Service"), re.compile("(LLM|STT|ASR|TTS)", re.IGNORECASE))
_COMPONENTS: Final = {"LLM": "llm", "TTS": "tts", "STT": "asr", "ASR": "asr"}


class Rtvi:
    """One session's messages. State: under which name the agent's words and the user's words come."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def decode(self, data: str | bytes) -> Sequence[Event]:
        """Events of one JSON text; none for types that are not known."""
        try:
            message = json.loads(data)
        except (ValueError, RecursionError) as error:
            return (Fault("bad_json", f"a message that is no JSON ({one_line(error)}): {one_line(data[:80])}"),)
        return self.events(message) if isinstance(message, dict) else ()

    def events(self, message: dict[str, Any]) -> Sequence[Event]:
        """Events of one message, parsed."""
        kind, data = message.get("type"), message.get("data")
        if not isinstance(kind, str) or not isinstance(data, dict):
            return _HINTS.get(kind, ()) if isinstance(kind, str) else ()
        if kind in _AGENT_TEXTS:
            return self.text("agent", kind, data.get("text"))
        if kind in _USER_TEXTS:
            return self.text("user", kind, data.get("text")) if data.get("final") else ()
        if kind in ("error", "error-response"):
            return (Fault("server_said_failure", f"the server says: {one_line(data.get('error'))}"),)
        return _figures(data) if kind == "metrics" else _HINTS.get(kind, ())

    def text(self, who: Literal["agent", "user"], name: str, text: object) -> Sequence[Event]:
        """Words that came under `name`, unless the words of `who` come under another."""
        if not isinstance(text, str) or not text or self._names.setdefault(who, name) != name:
            return ()
        return (Text(who, _storable(text)),)


def _figures(data: dict[str, Any]) -> Sequence[Event]:
    """`{"ttfb": [{"processor": "AcmeLLMService#0", "value": 0.2}], …}`; a value of 0.0 only says that one will come."""
    found = []
    for metric in _METRICS:
        entries = data.get(metric)
        for entry in entries if isinstance(entries, list) else ():
            if not isinstance(entry, dict):
                continue
            instance, value = entry.get("processor"), entry.get("value", entry.get(metric))
            if not isinstance(instance, str) or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if 0 < value < _LONGEST_S:
                instance = _storable(instance)
                found.append(ServerFigure(_component(instance), metric, float(value), instance))
    return found


def _component(instance: str) -> str:
    name = instance.partition("#")[0]
    found = next((match for pattern in _COMPONENT if (match := pattern.search(name))), None)
    return _COMPONENTS[found[1].upper()] if found else name


def _storable(text: str) -> str:
    """JSON can name halves of surrogate pairs (`\\ud800`), which no UTF-8 can hold."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def one_line(what: object) -> str:
    """A short, printable piece of what a server sent."""
    if isinstance(what, bytes | bytearray):
        what = what.decode("utf-8", "replace")
    return " ".join(_storable(str(what)).split())[:200]

"""Write the log of full-duplex sessions in the lines PersonaPlex's server writes, so that parsers of its log read ours.

Form: `ESC[97m[2P8H] ESC[0mESC[97maccepted connection ESC[0m`, a colour a session. A failure is `Error handling request`
and the first and the last line of a Python traceback, so that what looks for one finds it. Knows nothing of sessions
or sockets.
"""

import secrets
import string
from typing import Final

from gpu_server.agent_log import AgentLog
from gpu_server.duplex_wire import VOICE_FOLDER, Prompts

_COLOURS: Final = (97, 95, 91, 94, 92, 93, 96)
_LETTERS: Final = string.ascii_uppercase + string.digits
_LONGEST: Final = 2000  # of what a client makes up


class SessionLog:
    """One session's lines."""

    def __init__(self, log: AgentLog) -> None:
        self._log = log
        self.id = "".join(secrets.choice(_LETTERS) for _ in range(4))
        self._colour = f"\x1b[{secrets.choice(_COLOURS)}m"

    def incoming(self, client: str) -> None:
        self._say(f"Incoming connection from {client}")

    def accepted(self, prompts: Prompts) -> None:
        self._say("accepted connection")
        self._say(f"text prompt: {_one_line(prompts.text)}")
        path = f"{VOICE_FOLDER}/{prompts.voice}"
        self._say(f"voice prompt: {path} (requested: {path})")

    def prompted(self) -> None:
        for what in ("audio silence", "text prompt", "audio silence"):
            self._log.put(f"Done loading {what}.")
        self._say("done with system prompts")

    def shaken_hands(self) -> None:
        self._say("sent handshake bytes")

    def gone(self) -> None:
        self._say("connection closed")

    def closed(self) -> None:
        self._say("session closed")
        self._say("done with connection")

    def failed(self, error: str) -> None:
        self._log.put("Error handling request")
        self._log.put("Traceback (most recent call last):")
        self._log.put(_one_line(error))

    def _say(self, text: str) -> None:
        self._log.put(f"{self._colour}[{self.id}] \x1b[0m{self._colour}{text}\x1b[0m")


def _one_line(text: str) -> str:
    """Fit for a line of a log, whatever a client makes up."""
    words = " ".join(text.split())[:_LONGEST]
    return "".join(letter if letter.isprintable() else "_" for letter in words)

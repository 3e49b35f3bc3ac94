"""The dialects of voice agents: what a session needs of one, and which there are. Knows nothing of sockets or clocks.

A codec is sans-I/O: it turns audio into messages and messages into events (workers/events.py), one object a session. A
new dialect is a class like these and a line in CODECS.
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from workers.clients.twilio import Twilio
from workers.clients.voice_agent import Pipecat
from workers.clients.websocket import Message
from workers.events import Audio, Event


class Codec(Protocol):
    """One session's messages, both ways."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> str:
        """Where such servers usually listen; `{stream_id}` stands for the session's id."""

    @property
    def send_rate(self) -> int:
        """Hz of the audio that the server wants."""

    @property
    def shares_audio(self) -> bool:
        """Whether `audio` makes the same message of the same chunk in every session: encode once, send often.

        Where it does not, `audio` is called for each chunk sent, in the order of sending.
        """

    def opening(self) -> list[Message]:
        """What is sent right after the handshake."""

    def audio(self, pcm: bytes) -> Message:
        """One chunk of int16 mono at `send_rate`."""

    def closing(self) -> list[Message]:
        """What is sent before the close."""

    def owed(self, played: int) -> list[Message]:
        """Answers due now that so many of the samples received have been played, or were cleared unplayed."""

    def decode(self, opcode: int, payload: bytes) -> Sequence[Event]:
        """Events of one whole TEXT or BINARY message; a message that cannot be used is a Fault. Never raises."""

    def cut(self, data: bytearray, end: int, framing: bytes, count: int) -> Audio | None:
        """All samples of `count` messages at once: `data` up to `end`, each message behind the same `framing`.

        Only where each is known to be audio of the same length and rate as the last that was decoded: else None, and
        `decode` is asked.
        """


CODECS: Final[dict[str, Callable[[str, int | None], Codec]]] = {"pipecat": Pipecat, "twilio": Twilio}

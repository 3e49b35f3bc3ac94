"""What a conversation's connection tells: frozen facts, decoded from messages. Knows nothing of sockets or clocks.

A codec (`clients/voice_agent.py`, `clients/twilio.py`) turns a message into these; whoever reads the socket knows when.
"""

from typing import Literal, NamedTuple, TypeAlias

HintKind = Literal["agent_started", "agent_stopped", "user_started", "user_stopped", "ready"]


class Audio(NamedTuple):
    """Speech of the agent: int16 little-endian mono samples."""

    pcm: bytes
    rate: int


class Compressed(NamedTuple):
    """Speech of the agent as it came: Ogg-Opus bytes, to be decoded in the order in which they came."""

    data: bytes


class Handshake(NamedTuple):
    """The server is ready to hear; nothing may be sent before. dialect: which kind of server says so."""

    dialect: str


class Unknown(NamedTuple):
    """A message of a kind that is not known, which harms nobody."""

    kind: int


class Interruption(NamedTuple):
    """The server threw away what it had sent and was not yet played: the playout is cleared here."""


class Text(NamedTuple):
    """Words: what the agent says (`agent`), or what the server understood (`user`)."""

    who: Literal["agent", "user"]
    text: str


class Hint(NamedTuple):
    """What the server believes about who speaks. Never the truth of a measurement."""

    kind: HintKind


class ServerFigure(NamedTuple):
    """A figure the server tells in band. component: llm, tts, asr, or the processor's own name; metric: ttfb, ..."""

    component: str
    metric: str
    value_s: float
    instance: str


class Fault(NamedTuple):
    """A message that cannot be used. kind: an `error_kind` (see failures.py); line: one line for people."""

    kind: str
    line: str


Event: TypeAlias = Audio | Compressed | Handshake | Unknown | Interruption | Text | Hint | ServerFigure | Fault

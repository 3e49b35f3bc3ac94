"""The wire of full-duplex speech models: NVIDIA's PersonaPlex, kyutai's Moshi in Python and in Rust (moshi-backend).

The first byte of a binary message is its kind. From the server: 0 handshake, 1 Ogg-Opus, 2 a piece of text. To it: 1
only, and nothing before its handshake: a server that waits for its lock swallows what comes. moshi-backend sends
metadata (4) before a handshake of nine bytes, an error is of kind 5, and there are more. Knows nothing of sockets.

Source: moshi/server.py of either, moshi's rust/protocol.md. Checked against bytes captured from kyutai's (tests/wire).
"""

from collections.abc import Sequence
from typing import ClassVar, Final
from urllib.parse import parse_qsl, quote, urlencode

from workers.audio import opus
from workers.clients.http_connection import BadTarget
from workers.clients.rtvi import one_line
from workers.clients.websocket import BINARY, TEXT, Message
from workers.events import Audio, Compressed, Event, Fault, Handshake, Text, Unknown

PATH: Final = "/api/chat"
PORT: Final = 8998
DIALECTS: Final = ("personaplex", "moshi")

_HANDSHAKE, _AUDIO = 0, 1
_BACKEND_HANDSHAKE_BYTES: Final = 9  # kind, protocol version (u32), model version (u32)


class Personaplex:
    """One session's messages, both ways. `name` is the dialect as asked, until the server shows itself as another."""

    path: ClassVar[str] = PATH
    send_rate: ClassVar[int] = opus.RATE
    shares_audio: ClassVar[bool] = True

    def __init__(self, dialect: str, pages: opus.Pages) -> None:
        self.name = dialect
        self._pages = pages

    def opening(self) -> list[Message]:
        """OpusHead and OpusTags, once the server has shaken hands."""
        return [self.audio(self._pages.head)]

    def audio(self, payload: bytes) -> Message:
        """One message of Ogg pages."""
        return BINARY, bytes((_AUDIO,)) + payload

    def closing(self) -> list[Message]:
        return []

    def owed(self, played: int) -> list[Message]:
        """Nothing: this server asks for no answers."""
        return []

    def cut(self, data: bytearray, end: int, framing: bytes, count: int) -> Audio | None:
        """Nothing: messages of compressed audio are no two alike."""
        return None

    def decode(self, opcode: int, payload: bytes) -> Sequence[Event]:
        """Events of one message. Never raises."""
        if opcode != BINARY:
            line = f"a text message, where only binary ones are due: {one_line(payload[:80])}"
            return (Fault("text_message", line),) if opcode == TEXT else ()
        if not payload:
            return (Fault("empty_message", "a message without a kind byte"),)
        kind, rest = payload[0], payload[1:]
        if kind == _HANDSHAKE and len(payload) == _BACKEND_HANDSHAKE_BYTES:
            self.name = "moshi_backend"
        match kind:
            case 0:
                event: Event = Handshake(self.name)
            case 1:
                event = Compressed(rest) if rest else Fault("empty_audio", "an audio message without a page")
            case 2:
                event = _text(rest)
            case 4:
                return ()
            case 5:
                event = Fault("server_said_failure", f"the server says: {one_line(rest[:200])}")
            case _:
                event = Unknown(kind)
        return (event,)


def _text(data: bytes) -> Text | Fault:
    try:
        return Text("agent", data.decode())
    except UnicodeDecodeError as error:
        return Fault("bad_text", f"a text piece that is no UTF-8 ({error.reason}): {data[:20]!r}")


def query_of(query: str, voice_prompt: str, text_prompt: str) -> str:
    """The query of a session's URL: what the host's own says goes first. Raises BadTarget.

    Both parameters are mandatory, or the server drops the connection; on `seed` PersonaPlex's crashes.
    """
    told = dict(parse_qsl(query, keep_blank_values=True))
    if "seed" in told:
        raise BadTarget("--host: leave `seed` out of the address: PersonaPlex's server crashes on it")
    found = {"voice_prompt": voice_prompt, "text_prompt": text_prompt} | told
    if empty := [key for key in ("voice_prompt", "text_prompt") if not found[key].strip()]:
        raise BadTarget(
            f"{empty[0]} is empty: the server drops such a connection; name one (--{empty[0].replace('_', '-')})"
        )
    return urlencode(found, quote_via=quote)

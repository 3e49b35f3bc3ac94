"""Read what a client of PersonaPlex asks for, and name what goes over its wire. Knows nothing of audio or of sockets.

The first byte of a binary message is its kind. From the server: HANDSHAKE alone, AUDIO and Ogg-Opus bytes, TEXT and
UTF-8 of a piece of text; from the client AUDIO only. NVIDIA's personaplex, commit 3428dfd.
"""

from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, urlsplit

PATH: Final = "/api/chat"
HANDSHAKE: Final = b"\x00"
AUDIO: Final = b"\x01"
TEXT: Final = b"\x02"
UNKNOWN: Final = b"\x09"  # a kind that no server sends

VOICES: Final = tuple(f"{kind}{number}.pt" for kind in ("NATF", "NATM") for number in range(4)) + tuple(
    f"{kind}{number}.pt" for kind in ("VARF", "VARM") for number in range(5)
)
VOICE_FOLDER: Final = "/models/voices"  # as in its log
_LONGEST: Final = 200  # of what a client makes up, in a log


class Unanswerable(Exception):
    """Parameters at which the server falls over; the text is what its log says of it."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """What a session is to be like."""

    voice: str  # a file name, with its .pt
    text: str


def read_prompts(path: str) -> Prompts:
    """Both prompts in the query of a path, which must be there and not empty. Raises Unanswerable."""
    query = parse_qs(urlsplit(path).query, keep_blank_values=True)
    voices, texts = query.get("voice_prompt"), query.get("text_prompt")
    if voices is None:
        raise Unanswerable("KeyError: 'voice_prompt'")
    if not voices[0]:
        raise Unanswerable(
            f'ValueError: "{VOICE_FOLDER}/": unsupported feature: core (probe): no suitable format reader found'
        )
    if voices[0] not in VOICES:
        shown = ascii(voices[0][:_LONGEST])
        raise Unanswerable(f"FileNotFoundError: Requested voice prompt {shown} not found in '{VOICE_FOLDER}'")
    if "seed" in query:
        raise Unanswerable("KeyError: 'seed'")
    if texts is None:
        raise Unanswerable("KeyError: 'text_prompt'")
    if not texts[0]:
        raise Unanswerable("TypeError: object of type 'NoneType' has no len()")
    return Prompts(voices[0], texts[0])

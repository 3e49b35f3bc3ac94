"""Cut a text into segments that T3 can speak in one go, and say how long each should take. Knows nothing of tokens.

T3 was trained on utterances of some seconds: a long text in one go wanders off. Segments end with sentences; a sentence
that is too long is cut at its commas, then at its spaces, then anywhere.
"""

import re
import unicodedata
from collections.abc import Iterator

from gpu_server.request import TOKENS_S, Segment

LONGEST = 200  # characters of a segment
MOST_TOKENS = 740  # speech tokens of a segment: half a minute
_CHARACTERS_S = 14.0  # as people read aloud, spaces included
_SLACK_S = 1.0
_RUNAWAY = 2.0  # a generation that is so many times longer than its text is no longer of its text

_ENDS = re.compile(r"(?<=[.!?;:])\s+|(?<=[。！？।])\s*")  # noqa: RUF001 - those of other scripts, which have no spaces
_COMMAS = re.compile(r"(?<=,)\s+|(?<=[،、])\s*")
_SPACES = re.compile(r"\s+")


def segments(text: str, longest: int = LONGEST) -> list[Segment]:
    """Segments in order; none where the text has nothing that can be spoken (no letter, no digit)."""
    clean = " ".join(_speakable(text).split())
    return [_segment(part) for part in _packed(clean, longest) if any(character.isalnum() for character in part)]


def expected_tokens(text: str) -> int:
    """Speech tokens that a text should take, at least one second's."""
    return max(TOKENS_S, round(len(text) / _CHARACTERS_S * TOKENS_S))


def _segment(text: str) -> Segment:
    expected = expected_tokens(text)
    return Segment(text, min(expected, MOST_TOKENS), min(round(expected * _RUNAWAY + _SLACK_S * TOKENS_S), MOST_TOKENS))


def _speakable(text: str) -> str:
    """Without control characters, lone surrogates and what only joins pictures."""
    return "".join(" " if unicodedata.category(one) in ("Cc", "Cf", "Cs", "Co", "Cn") else one for one in text)


def _packed(text: str, longest: int) -> Iterator[str]:
    """Pieces of whole sentences, as long as they may be."""
    if len(text) <= longest:
        yield from filter(None, [text])
        return
    held = ""
    for piece in _cut(text, longest, (_ENDS, _COMMAS, _SPACES)):
        joined = f"{held} {piece}" if held else piece
        if len(joined) <= longest:
            held = joined
        else:
            yield held
            held = piece
    if held:
        yield held


def _cut(text: str, longest: int, ways: tuple[re.Pattern[str], ...]) -> Iterator[str]:
    if not ways:
        for start in range(0, len(text), longest):
            yield text[start : start + longest]
        return
    for piece in filter(None, ways[0].split(text)):
        if len(piece) <= longest:
            yield piece
        else:
            yield from _cut(piece, longest, ways[1:])

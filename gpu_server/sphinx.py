"""Run pocketsphinx as a child process over pipes. Knows nothing of who asks.

In: a length (4 bytes, little endian) and as many bytes: first the known sentences as JSON, then an utterance each time,
s16le mono 16 kHz. Out: a JSON line for each. The language model is made of the known sentences: with the stock one,
two words of three of synthetic speech come out wrong.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

_SILENCE = bytes(2 * 1600)  # pocketsphinx drops a word that begins with the audio


def main() -> int:
    try:
        from pocketsphinx import Decoder  # noqa: F401
    except ImportError as error:
        _say({"error": f"pocketsphinx is not installed ({error}); run: pip install -e '.[server]'"})
        return 1
    sentences = _read(sys.stdin.buffer)
    if sentences is None:
        return 0
    decoder = make_decoder(json.loads(sentences))
    _say({"text": ""})
    while (pcm := _read(sys.stdin.buffer)) is not None:
        _say({"text": transcribe(decoder, pcm)})
    return 0


def make_decoder(sentences: Sequence[str]) -> Any:
    """A pocketsphinx Decoder that expects these sentences, and warns of words it cannot know."""
    from pocketsphinx import Decoder
    from pocketsphinx.lm import ArpaBoLM

    plain = [plain_words(sentence) for sentence in sentences]
    model = ArpaBoLM(text="\n".join(plain) + "\n", add_start=True)
    model.compute()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "known.lm"
        with path.open("w", encoding="utf-8") as out:
            model.write(out)
        # Dithered, always alike: in digital silence pocketsphinx's features have no floor, and words are lost.
        decoder = Decoder(lm=str(path), loglevel="FATAL", dither=True, seed=1)
    unknown = sorted({word for words in plain for word in words.split() if decoder.lookup_word(word) is None})
    if unknown:
        names = ", ".join(unknown[:10])
        print(f"gpu_server: pocketsphinx cannot pronounce and so never hears: {names}", file=sys.stderr, flush=True)
    return decoder


def transcribe(decoder: Any, pcm: bytes) -> str:
    decoder.start_utt()
    decoder.process_raw(_SILENCE + pcm + _SILENCE, full_utt=True)
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return "" if hypothesis is None else str(hypothesis.hypstr)


def plain_words(sentence: str) -> str:
    """As the dictionary spells: lower case, apostrophes kept, nothing else between words than a space."""
    kept = "".join(
        letter if letter.isalnum() or letter == "'" else " " for letter in sentence.lower().replace("\u2019", "'")
    )
    return " ".join(kept.split())


def _read(source: IO[bytes]) -> bytes | None:
    head = source.read(4)
    if len(head) < 4:
        return None
    data = source.read(int.from_bytes(head, "little"))
    return data


def _say(answer: dict[str, str]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    sys.exit(main())

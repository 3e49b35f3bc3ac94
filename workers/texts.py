"""What users say: the five standard texts, generated ones, or a file's. Knows nothing of speech."""

import json
import random
import re
from pathlib import Path

MAX_FILE_BYTES = 1 << 20

# Plain words of spoken service English; enough for texts that differ in every request and defeat caches.
_WORDS = """
account address agent amount answer appointment balance because before between billing booking branch call
card change charge check clear confirm contact could customer date delay delivery detail difference email
evening every expect first follow friday further hello help history hour however include information invoice
issue later letter line little message minute monday morning need network number office order other package
payment period please possible price problem process product question quick reason receipt recent record
refund remember renew repeat report request reserve review saturday schedule second security send service
several should since small someone soon statement store street support system table technical thank their
there ticket today together tomorrow total transfer travel tuesday twenty understand update urgent value visit
wait wednesday weekend welcome without would
""".split()  # noqa: SIM905 - a paragraph of words reads better than a list of literals


def standard() -> dict[str, str]:
    """The five texts to use for comparable figures, by name (source: S2, "ALWAYS use these")."""
    found: dict[str, str] = json.loads(Path(__file__).with_name("standard_texts.json").read_text("utf-8"))
    return found


def generated(rng: random.Random, shortest: int = 50, longest: int = 200) -> str:
    """A sentence of `shortest` to `longest` characters, never the same twice in practice."""
    length = rng.randint(shortest, longest)
    words: list[str] = []
    size = 0
    while size < length:
        word = rng.choice(_WORDS)
        words.append(word)
        size += len(word) + 1
    text = " ".join(words)[: length - 1].rstrip()
    return (text[0].upper() + text[1:]).ljust(shortest - 1, "s") + "."


def from_file(path: Path) -> dict[str, str]:
    """One text a line, named by its line number and first words; empty lines and # comments left out.

    Raises ValueError with one clear line.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"texts: cannot read {path}: {error.strerror}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise ValueError(f"texts: {path} is larger than {MAX_FILE_BYTES} bytes; it travels to every worker")
    try:
        # Not splitlines: it also splits at U+2028 and the like, where no editor counts a line.
        lines = re.split(r"\r\n?|\n", raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        where = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"texts: {path} is not UTF-8 (line {where}); convert it: iconv -t UTF-8 {path}") from None
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and not text.startswith("#"):
            found[f"{number}: {shortened(text)}"] = text
    if not found:
        raise ValueError(f"texts: {path} holds no text; one a line, # begins a comment")
    return found


def shortened(text: str, longest: int = 24) -> str:
    """The text's first words, as a name for tables."""
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"

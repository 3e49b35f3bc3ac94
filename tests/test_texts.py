"""What is said: S2's five texts to the letter, generated ones within their bounds, and people's own files."""

import ast
import random
import re
from pathlib import Path

import pytest

from workers import texts

S2 = Path(__file__).parents[2] / "shared" / "sources" / "S2_chatterbox_benchmarking.md"


def test_the_five_standard_texts_are_those_of_s2() -> None:
    if not S2.exists():
        pytest.skip(f"{S2.name} is not beside this checkout; the word counts below still hold")
    block = re.search(r"\*\*ALWAYS use these.*?```python\n(.*?)```", S2.read_text("utf-8"), re.DOTALL)
    assert block is not None
    assert texts.standard() == ast.literal_eval(block[1].partition("=")[2].strip())


def test_the_standard_texts_are_whole() -> None:
    """The trap: S2's script template has shortened three of them."""
    counts = {name: len(text.split()) for name, text in texts.standard().items()}
    assert counts == {"ultra_short": 2, "short": 13, "medium": 26, "long": 46, "telephony_typical": 35}


def test_generated_texts_have_50_to_200_characters() -> None:
    rng = random.Random(1)
    made = [texts.generated(rng) for _ in range(5_000)]
    lengths = [len(text) for text in made]
    assert min(lengths) == 50
    assert max(lengths) == 200
    assert sum(lengths) / len(lengths) == pytest.approx(125, abs=3)
    assert all(text.endswith(".") and text[0].isupper() and "  " not in text for text in made)
    assert all(text.isascii() and "\n" not in text for text in made)
    assert len(set(made)) == len(made), "texts that repeat meet a cache"


def test_generated_texts_follow_the_seed() -> None:
    assert texts.generated(random.Random(5)) == texts.generated(random.Random(5))
    assert texts.generated(random.Random(5)) != texts.generated(random.Random(6))


def made(folder: Path, content: bytes) -> Path:
    path = folder / "mine.txt"
    path.write_bytes(content)
    return path


def test_a_file_has_one_text_a_line(tmp_path: Path) -> None:
    found = texts.from_file(made(tmp_path, "# greetings\n\nHello.\n  Grüß Gott.  \r\n#\nLast, unended".encode()))
    assert list(found.values()) == ["Hello.", "Grüß Gott.", "Last, unended"]
    assert list(found) == ["3: Hello.", "4: Grüß Gott.", "6: Last, unended"]


def test_lines_end_as_they_do_anywhere(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        content = end.join(["One.", "", "Three."]).encode()
        assert list(texts.from_file(made(tmp_path, content))) == ["1: One.", "3: Three."]


def test_names_are_short_and_do_not_collide(tmp_path: Path) -> None:
    line = "The very same beginning of a long sentence, twice over."
    found = texts.from_file(made(tmp_path, f"{line}\n{line} More.\n".encode()))
    assert len(found) == 2
    assert all(len(name) < 32 and "\n" not in name for name in found)


def test_a_byte_order_mark_is_not_spoken(tmp_path: Path) -> None:
    assert list(texts.from_file(made(tmp_path, b"\xef\xbb\xbfHello.\n")).values()) == ["Hello."]


def test_a_line_separator_inside_a_text_is_no_new_line(tmp_path: Path) -> None:
    """One a line: U+2028 and the like come with text pasted from the web."""
    found = texts.from_file(made(tmp_path, "One\u2028two\u2029three\x85four\nFive\n".encode()))
    assert len(found) == 2
    assert list(found)[1] == "2: Five"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"texts: cannot read .*nowhere\.txt: No such file"):
        texts.from_file(tmp_path / "nowhere.txt")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="texts: cannot read"):
        texts.from_file(tmp_path)


def test_a_file_that_is_not_utf_8_is_named_with_its_line_and_the_fix(tmp_path: Path) -> None:
    path = made(tmp_path, "fine\nna\xefve\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"mine\.txt is not UTF-8 \(line 2\); convert it: iconv"):
        texts.from_file(path)


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"# only\n#comments\n"])
def test_a_file_without_texts_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match="holds no text"):
        texts.from_file(made(tmp_path, content))


def test_the_largest_file(tmp_path: Path) -> None:
    line = b"x" * 1023 + b"\n"
    assert len(texts.from_file(made(tmp_path, line * 1024))) == 1024
    with pytest.raises(ValueError, match=r"mine\.txt is larger than 1048576 bytes"):
        texts.from_file(made(tmp_path, line * 1024 + b"x"))


def test_a_file_that_is_far_too_big_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.txt"
    with path.open("wb") as file:
        file.truncate(1 << 42)  # 4 TiB, without a block on disk
    with pytest.raises(ValueError, match=r"huge\.txt"):
        texts.from_file(path)


def test_a_device_that_never_ends_is_not_read_for_ever() -> None:
    with pytest.raises(ValueError, match="/dev/zero"):
        texts.from_file(Path("/dev/zero"))

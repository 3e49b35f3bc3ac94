"""A text as segments that can be spoken: nothing lost, none too long, and how long each should take."""

import importlib
import random
import re
import unicodedata
from typing import Any

import pytest

pytest.importorskip("torch", reason="the extra `chatterbox` is not installed")
text: Any = importlib.import_module("gpu_server.engines.chatterbox.text")

TOKENS_S = 25  # of speech, by S3Tokenizer's definition
SENTENCE = "The quick brown fox jumps over the lazy dog, and then it sleeps until the evening. "


def parts(words: str, longest: int = 200) -> list[str]:
    return [segment.text for segment in text.segments(words, longest)]


def letters(words: str) -> str:
    """What is read of a text: spaces are not."""
    return "".join(words.split())


def test_a_short_text_is_one_segment_as_it_is() -> None:
    assert parts("Hello, how are you today?") == ["Hello, how are you today?"]


@pytest.mark.parametrize(
    "words", ["", " ", "\n\t ", ".", "…", "?! -- ;", "😀", "😀 🎉", "👨‍👩‍👧‍👦", "\ud83d", "\x00\x07", "\u200b"]
)
def test_what_has_nothing_to_be_said_has_no_segments(words: str) -> None:
    assert parts(words) == []


@pytest.mark.parametrize(
    "words",
    [
        "สวัสดีครับ",
        "你好，你今天怎么样？",  # noqa: RUF001 - its own marks
        "مرحبا، كيف حالك؟",
        "नमस्ते, आप कैसे हैं।",
        "Привет!",
        "ᚠᛇᚻ᛫ᛒᛦᚦ",
        "𒀀𒀁",
        "½",
        "7",
        "Hello 😀 world",
    ],
)
def test_every_script_is_spoken_whole(words: str) -> None:
    assert letters("".join(parts(words))) == letters(words)


def test_combining_marks_stay_with_their_letters() -> None:
    words = unicodedata.normalize("NFD", "é ñ ü naïve café")
    assert parts(words) == [words]


def test_control_characters_and_lone_surrogates_are_no_part_of_it() -> None:
    assert parts("Hello\x00\x1b[31m\n\n\n  wor\ud83dld") == ["Hello [31m wor ld"]


def test_ten_thousand_characters_are_said_whole_and_in_order() -> None:
    words = (SENTENCE * 200)[:10_000]
    found = parts(words)
    assert letters("".join(found)) == letters(words)
    assert max(map(len, found)) <= 200
    assert len(found) < 2 * len(words) / 200


def test_segments_end_with_sentences_where_they_can() -> None:
    found = parts(SENTENCE * 10)
    assert all(part.endswith("evening.") for part in found)
    assert [part.count("evening.") for part in found] == [2] * 5


def test_a_sentence_that_is_too_long_is_cut_at_its_commas_then_at_its_spaces() -> None:
    words = "one two three four five, six seven eight nine ten, eleven"
    assert parts(words, 30) == ["one two three four five,", "six seven eight nine ten,", "eleven"]
    assert parts(words.replace(",", ""), 30) == ["one two three four five six", "seven eight nine ten eleven"]


@pytest.mark.parametrize("length", [199, 200, 201, 5000])
def test_a_word_that_is_too_long_is_cut_anywhere(length: int) -> None:
    word = "".join(random.Random(1).choices("abcdefgh", k=length))
    found = parts(word)
    assert "".join(found) == word
    assert len(found) == -(-length // 200)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_said_is_lost_or_said_twice_whatever_the_text(seed: int) -> None:
    drawn = random.Random(seed)
    words = "".join(drawn.choices("abcxyz019   ,.;!?。-\n'\"", k=drawn.randrange(1500)))
    longest = drawn.choice([5, 20, 200])
    found = parts(words, longest)
    assert all(0 < len(part) <= longest for part in found)
    assert all(any(one.isalnum() for one in part) for part in found)
    spoken = re.sub(r"[\W_]", "", words)
    assert re.sub(r"[\W_]", "", "".join(found)) == spoken


@pytest.mark.parametrize(
    "words", ["It costs 3.14 dollars.", "Come at 7:30, please.", "See example.com for more.", "Wait... what?!"]
)
def test_a_text_that_fits_is_not_changed(words: str) -> None:
    assert parts(words) == [words]


# ---- how long it takes


def test_the_expected_length_is_that_of_people_who_read_aloud() -> None:
    """Between 10 and 20 characters a second, spaces included."""
    words = "Your order has been shipped and will arrive on Monday morning."
    (segment,) = text.segments(words)
    assert len(words) / 20 * TOKENS_S < segment.expected < len(words) / 10 * TOKENS_S


def test_the_expected_length_grows_with_the_text_and_is_a_second_at_least() -> None:
    lengths = [text.expected_tokens("a" * length) for length in range(200)]
    assert lengths == sorted(lengths)
    assert lengths[0] == lengths[1] == TOKENS_S
    assert text.expected_tokens("a" * 140) == pytest.approx(2 * text.expected_tokens("a" * 70), abs=1)


@pytest.mark.parametrize("words", ["a", "Yes.", SENTENCE, SENTENCE * 3, "a" * 200, "7 " * 100])
def test_a_segment_is_stopped_well_beyond_its_text_and_within_what_a_slot_holds(words: str) -> None:
    for segment in text.segments(words):
        assert 1.5 * segment.expected < segment.most <= text.MOST_TOKENS

"""Where the samples and words of an answer go."""

import asyncio

import numpy as np

from gpu_server.duplex_answer import AUDIBLE, Answer, Speech
from gpu_server.duplex_opus import CHUNK


def spoken(*sentences: tuple[str, list[bytes]], whole: bool = True) -> Speech:
    speech = Speech()

    async def speak() -> None:
        for words, made in sentences:
            speech.begin(words)
            for pcm in made:
                await speech.feed(pcm)
            if whole:
                speech.end()

    asyncio.run(speak())
    speech.complete = whole
    return speech


def level(chunks: float, amplitude: int) -> bytes:
    return np.full(round(chunks * CHUNK), amplitude, "<i2").tobytes()


def words_by_chunk(speech: Speech) -> list[list[str]]:
    found = []
    while speech.ready:
        found.append(speech.take()[1])
    return found


def test_the_first_word_comes_with_the_first_audible_sample_and_the_others_at_their_share() -> None:
    speech = spoken(("one two three four", [level(1.5, 0), level(2.5, 5000)]))
    # Sound from 1.5 chunks on; the words of four chunks at 0 (held until 1.5), 1 (held likewise), 2 and 3.
    assert words_by_chunk(speech) == [[], ["one", "two"], ["three"], ["four"]]


def test_words_wait_until_the_length_of_their_sentence_is_known() -> None:
    speech = spoken(("one two", [level(3, 5000)]), whole=False)
    assert words_by_chunk(speech) == [["one"], [], []]
    asyncio.run(speech.feed(level(1, 5000)))
    speech.end()
    assert words_by_chunk(speech) == [["two"]]


def test_a_sentence_that_nobody_can_hear_has_its_words_all_the_same() -> None:
    assert words_by_chunk(spoken(("one two", [level(2, AUDIBLE - 1)]))) == [["one"], ["two"]]


def test_the_last_chunk_is_filled_up_with_silence() -> None:
    speech = spoken(("one", [level(1.25, 5000)]))
    speech.take()
    pcm, _ = speech.take()
    assert pcm == level(0.25, 5000) + level(0.75, 0)
    assert speech.over


def test_onset_and_offset_are_the_first_and_last_sample_of_that_amplitude() -> None:
    answer = Answer(0, 0, ())
    samples = np.zeros(CHUNK, "<i2")
    samples[[100, 200, 300, 400]] = (AUDIBLE - 1, -AUDIBLE, 32767, -AUDIBLE + 1)
    answer.place(samples.tobytes(), 5 * CHUNK)
    answer.place(level(1, AUDIBLE - 1), 6 * CHUNK)
    assert (answer.onset, answer.offset) == (5 * CHUNK + 200, 5 * CHUNK + 301)


def test_who_makes_much_more_than_can_be_sent_waits() -> None:
    async def work() -> None:
        speech = Speech()
        speech.begin("long")
        feeding = asyncio.create_task(speech.feed(level(126, 5000)))  # 10.08 s
        await asyncio.sleep(0)
        assert not feeding.done()
        for _ in range(64):
            speech.take()
        await feeding

    asyncio.run(work())

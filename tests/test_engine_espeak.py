"""The espeak engine: streams, repeats itself exactly, never blocks the loop, stops when told."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from itertools import combinations

import numpy as np
import pytest

from gpu_server.speech import Pcm, SpeechRequest

pytest.importorskip("espeakng_loader", reason="the espeak extra is not installed")

from gpu_server.engines import espeak
from gpu_server.engines.espeak import EspeakEngine, pieces

SENTENCE = "Hi, this is Sarah from customer service. How can I help you today?"
LONG = " ".join(f"This is sentence number {number}, and it says very little indeed." for number in range(60))


@pytest.fixture
def engine() -> Iterator[EspeakEngine]:
    engine = EspeakEngine()
    yield engine
    engine.close()


async def say(engine: EspeakEngine, text: str, voice: str = "default", speed: float = 1.0) -> Pcm:
    chunks = [chunk async for chunk in engine.stream(SpeechRequest(text, voice, speed))]
    return np.concatenate(chunks) if chunks else np.empty(0, np.int16)


def spoken_s(pcm: Pcm) -> float:
    """From the first to the last sample that is clearly audible."""
    loud = np.flatnonzero(np.abs(pcm.astype(int)) > 500)
    return float(loud[-1] - loud[0]) / 24_000


def test_it_speaks(engine: EspeakEngine) -> None:
    pcm = asyncio.run(say(engine, SENTENCE))
    assert pcm.dtype == np.int16
    assert 2.5 < spoken_s(pcm) < 6.0
    assert np.sqrt(np.mean(pcm.astype(float) ** 2)) > 500


def test_audio_comes_in_many_chunks(engine: EspeakEngine) -> None:
    async def scenario() -> list[int]:
        return [len(chunk) async for chunk in engine.stream(SpeechRequest(SENTENCE))]

    sizes = asyncio.run(scenario())
    assert len(sizes) > 20
    assert min(sizes) > 0
    assert max(sizes) <= 0.2 * 24_000


def test_voices_differ(engine: EspeakEngine) -> None:
    async def scenario() -> dict[str, Pcm]:
        return {voice: await say(engine, SENTENCE, voice) for voice in engine.voices}

    said = asyncio.run(scenario())
    assert len(said) >= 4
    for one, other in combinations(said.values(), 2):
        assert not np.array_equal(one, other)


@pytest.mark.parametrize("speed", [0.25, 0.4, 0.5, 2.0, 4.0])
def test_speed(engine: EspeakEngine, speed: float) -> None:
    async def scenario() -> tuple[Pcm, Pcm]:
        return await say(engine, SENTENCE), await say(engine, SENTENCE, speed=speed)

    plain, changed = asyncio.run(scenario())
    assert spoken_s(plain) / spoken_s(changed) == pytest.approx(speed, rel=0.2)


def test_streams_at_once_do_not_disturb_each_other(engine: EspeakEngine) -> None:
    async def scenario() -> list[list[Pcm]]:
        rounds = [asyncio.gather(*(say(engine, SENTENCE, voice) for voice in engine.voices)) for _ in range(4)]
        return list(await asyncio.gather(*rounds))

    first, *others = asyncio.run(scenario())
    for other in others:
        assert all(np.array_equal(one, two) for one, two in zip(first, other, strict=True))


def test_threads_at_once_do_not_crash_the_library() -> None:
    library = espeak._libespeak()

    def speak(number: int) -> bytes:
        heard: list[bytes] = []

        def keep(pcm: Pcm) -> bool:
            heard.append(pcm.tobytes())
            return True

        library.speak(SENTENCE, espeak.VOICES[("default", "alto")[number % 2]], 175, keep)
        return b"".join(heard)

    with ThreadPoolExecutor(4) as threads:
        said = list(threads.map(speak, range(24)))
    assert len(set(said)) == 2
    assert len(set(said[::2])) == 1


def test_an_abandoned_stream_stops_and_leaves_the_next_untouched(engine: EspeakEngine) -> None:
    async def scenario() -> tuple[Pcm, Pcm]:
        alone = await say(engine, SENTENCE)
        async with aclosing(engine.stream(SpeechRequest(LONG))) as chunks:
            await anext(chunks)
            await anext(chunks)
        return alone, await say(engine, SENTENCE)

    before, after = asyncio.run(scenario())
    assert np.array_equal(before, after)


def test_an_abandoned_text_is_not_spoken_to_its_end(engine: EspeakEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    spoken: list[str] = []
    speak = engine._library.speak

    def noting(text: str, *rest: object) -> None:
        spoken.append(text)
        speak(text, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(engine._library, "speak", noting)

    async def scenario() -> None:
        async with aclosing(engine.stream(SpeechRequest(LONG))) as chunks:
            await anext(chunks)

    asyncio.run(scenario())
    engine.close()
    assert len(spoken) == 1
    assert len(spoken[0]) < len(LONG) / 10


def test_the_loop_runs_on_while_the_library_works(engine: EspeakEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is held until the loop lets it go: only a loop that is not blocked can."""
    released = threading.Event()
    speak = engine._library.speak

    def held(*call: object) -> None:
        assert released.wait(20), "the event loop was blocked"
        speak(*call)  # type: ignore[arg-type]

    monkeypatch.setattr(engine._library, "speak", held)

    async def scenario() -> Pcm:
        speaking = asyncio.create_task(say(engine, SENTENCE))
        await asyncio.sleep(0)
        released.set()
        return await speaking

    assert len(asyncio.run(scenario())) > 0


def test_a_failing_library_fails_the_stream(engine: EspeakEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_call: object) -> None:
        raise RuntimeError("espeak_Synth returned 268435967")

    monkeypatch.setattr(engine._library, "speak", broken)
    with pytest.raises(RuntimeError, match="268435967"):
        asyncio.run(say(engine, SENTENCE))


@pytest.mark.parametrize("text", ["Grüße aus Łódź, naïve café", "<b>1 & 2</b> [[h@l'oU]]", "one\0two three", "日本"])
def test_any_text_is_taken(engine: EspeakEngine, text: str) -> None:
    assert len(asyncio.run(say(engine, text))) > 2400


@pytest.mark.parametrize("text", ["", "   ", "\n\n"])
def test_nothing_said_is_no_audio(engine: EspeakEngine, text: str) -> None:
    assert len(asyncio.run(say(engine, text))) == 0


def test_pieces_keep_every_word_and_end_with_sentences() -> None:
    cut = list(pieces(LONG))
    assert " ".join(cut) == LONG
    assert len(cut) > 10
    assert all(piece.endswith(".") for piece in cut)


def test_a_title_ends_no_sentence() -> None:
    assert list(pieces("I saw Dr. Smith. He saw Mrs. Jones! Who? Me.", at_least=0)) == [
        "I saw Dr. Smith.",
        "He saw Mrs. Jones!",
        "Who?",
        "Me.",
    ]

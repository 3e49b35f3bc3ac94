"""The Chatterbox engine from a request to its chunks, on the tiny configuration: real modules, threads, the CPU."""

import asyncio
import dataclasses
import gc
import importlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gpu_server.speech import DEFAULT_VOICE, CannotSpeak, EngineBusy, EngineOptions, EngineUnavailable, SpeechRequest

torch: Any = pytest.importorskip("torch", reason="the extra `chatterbox` is not installed")
if importlib.util.find_spec("chatterbox") is None:
    pytest.skip("chatterbox-tts is not installed", allow_module_level=True)

engines: Any = importlib.import_module("gpu_server.engines.chatterbox.engine")
text: Any = importlib.import_module("gpu_server.engines.chatterbox.text")
sampling: Any = importlib.import_module("gpu_server.engines.chatterbox.sampling")
stages: Any = importlib.import_module("gpu_server.engines.chatterbox.stages")

KINDS = ("turbo", "original")
SHORT, LONG = "Hello there.", "Hello there, this goes on for a little while, so that several pieces are made of it."
SAMPLES_A_TOKEN = 960
WAIT_S = 30.0


def options(**changed: Any) -> EngineOptions:
    return EngineOptions(**({"random_weights": "tiny", "device": "cpu", "streams": 4, "queue": 4} | changed))


@pytest.fixture(scope="module", params=KINDS)
def engine(request: pytest.FixtureRequest) -> Iterator[Any]:
    """One whose audio tells texts and tokens apart, and the same tokens each time.

    Random weights make audio that hardly depends on the mel: the vocoder's first layer is made louder. Their chances
    are so flat that a token drawn by chance turns with the last digit of a sum: the likeliest one is taken.
    """
    engine = engines.ChatterboxEngine(request.param, options())
    engine._model.s3gen.mel2wav.conv_pre.parametrizations.weight.original0.data *= 30
    engine.start()
    engine._stages._sampling = dataclasses.replace(sampling.DEFAULTS[request.param], temperature=0.0)
    yield engine
    engine.close()


def said(engine: Any, words: str, **how: Any) -> np.ndarray[Any, Any]:
    return np.concatenate(list(engine.speak(SpeechRequest(words), **how)))


def together(engine: Any, texts: list[str]) -> list[np.ndarray[Any, Any]]:
    """What each says while all speak at once."""
    found: dict[int, np.ndarray[Any, Any]] = {}

    def speak(number: int, words: str) -> None:
        found[number] = said(engine, words)

    threads = [threading.Thread(target=speak, args=item) for item in enumerate(texts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    return [found[number] for number in range(len(texts))]


def until_idle(engine: Any) -> None:
    deadline = time.monotonic() + WAIT_S
    while engine._loop.counts() != (0, 0):
        assert time.monotonic() < deadline, f"still {engine._loop.counts()}"
        time.sleep(0.005)


def test_random_weights_speak_for_as_long_as_the_text_should_take(engine: Any) -> None:
    """They never end by themselves. Turbo's answers close with three tokens of silence, as upstream's do."""
    closing = 3 if engine.name == "chatterbox-turbo" else 0
    assert len(said(engine, LONG)) == (text.expected_tokens(LONG) + closing) * SAMPLES_A_TOKEN
    assert engine.weights == "random"


def test_audio_comes_in_growing_pieces(engine: Any) -> None:
    sizes = [len(chunk) for chunk in engine.speak(SpeechRequest(LONG))]
    held_back = 4 * 480
    assert sizes[0] == 4 * SAMPLES_A_TOKEN - held_back  # its last frames wait for what follows
    assert sizes[1:4] == [8 * SAMPLES_A_TOKEN, 25 * SAMPLES_A_TOKEN, 50 * SAMPLES_A_TOKEN]


def test_the_same_text_sounds_the_same_alone_and_among_others(engine: Any) -> None:
    alone = [said(engine, LONG), said(engine, SHORT)]
    assert len(alone[0]) != len(alone[1])
    for one, other in zip(together(engine, [LONG, SHORT] * 2), alone * 2, strict=True):
        assert one.shape == other.shape
        assert np.abs(one.astype(int) - other).max() <= 2  # of 32767: sums in another order


def test_other_texts_sound_otherwise(engine: Any) -> None:
    one, other = said(engine, "One two three four."), said(engine, "Five six seven eig.")
    size = min(len(one), len(other))
    assert np.abs(one[:size].astype(int) - other[:size]).max() > 1000


def test_a_long_text_is_spoken_in_segments_and_whole(engine: Any) -> None:
    words = "This sentence is one of very many that follow each other. " * 12
    planned = text.segments(words)
    closing = 3 if engine.name == "chatterbox-turbo" else 0
    assert len(planned) > 2
    assert len(said(engine, words)) == sum(part.expected + closing for part in planned) * SAMPLES_A_TOKEN


def test_who_leaves_takes_nothing_from_the_others_and_leaves_no_slot_behind(engine: Any) -> None:
    alone = said(engine, LONG)
    leaving = [engine.speak(SpeechRequest(LONG + " More.")) for _ in range(3)]
    for chunks in leaving:
        next(chunks)
    found: list[np.ndarray[Any, Any]] = []
    staying = threading.Thread(target=lambda: found.append(said(engine, LONG)))
    staying.start()
    for chunks in leaving:
        chunks.close()
    staying.join(WAIT_S)
    assert np.abs(found[0].astype(int) - alone).max() <= 2
    until_idle(engine)
    assert [len(each) for each in together(engine, [LONG] * 4)] == [len(alone)] * 4  # all four slots are there


def test_a_full_queue_is_busy_and_free_again(engine: Any) -> None:
    """Four are spoken to and four wait; twenty come at once."""
    heard: list[int] = []
    refused: list[str] = []

    def speak() -> None:
        try:
            heard.append(len(said(engine, LONG)))
        except EngineBusy as busy:
            refused.append(str(busy))

    threads = [threading.Thread(target=speak) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert len(heard) >= 8
    assert len(heard) + len(refused) == 20
    assert refused
    assert all("requests waiting" in line for line in refused)
    assert len(set(heard)) == 1
    until_idle(engine)
    assert together(engine, [SHORT] * 8)[7].size


def test_a_voice_or_a_speed_that_it_has_not_is_refused(engine: Any) -> None:
    with pytest.raises(CannotSpeak, match="no voice 'nobody' here; there are default"):
        next(engine.speak(SpeechRequest(SHORT, voice="nobody")))
    with pytest.raises(CannotSpeak, match="speed"):
        next(engine.speak(SpeechRequest(SHORT, speed=1.5)))
    assert said(engine, SHORT).size


@pytest.mark.parametrize("words", ["😀😀", ".", "…"])
def test_what_cannot_be_spoken_gives_no_audio(engine: Any, words: str) -> None:
    assert list(engine.speak(SpeechRequest(words))) == []


@pytest.mark.parametrize("words", ["日本語のテキスト", "Здравствуй, мир", "مرحبا", "a" * 600])
def test_any_script_and_a_word_without_end_get_audio(engine: Any, words: str) -> None:
    assert said(engine, words).size


def test_the_stages_say_what_they_computed(engine: Any) -> None:
    before = engine.spent()
    samples = len(said(engine, LONG))
    spent = engine.spent()
    assert spent.audio_s - before.audio_s == pytest.approx(samples / 24_000)
    assert spent.t3_tokens - before.t3_tokens >= text.expected_tokens(LONG)
    assert spent.t3_s > before.t3_s
    assert spent.s3gen_s > before.s3gen_s


def test_streaming_from_asyncio_and_a_client_who_leaves(engine: Any) -> None:
    async def run() -> tuple[int, int]:
        whole = sum([len(chunk) async for chunk in engine.stream(SpeechRequest(LONG))])
        leaving = engine.stream(SpeechRequest(LONG))
        first = len(await anext(leaving))
        await leaving.aclose()
        return whole, first

    whole, first = asyncio.run(run())
    assert whole == len(said(engine, LONG))
    assert 0 < first < whole
    until_idle(engine)


def test_an_answer_that_does_not_end_is_stopped_and_marked() -> None:
    """Weights that pass for trained ones and never draw the end token: twice the expected length and a second."""
    engine = engines.ChatterboxEngine("turbo", options())
    engine._model.weights = "trained"
    engine._model.t3.speech_head.weight.data[6562] = 0
    engine._model.t3.speech_head.bias.data[6562] = -1e4
    engine.start()
    try:
        request = SpeechRequest(SHORT)
        samples = sum(len(chunk) for chunk in engine.speak(request))
        most = text.segments(SHORT)[0].most
        assert most == 2 * text.expected_tokens(SHORT) + 25
        assert samples == (most + 3) * SAMPLES_A_TOKEN
        assert request.marks == {"runaway"}
    finally:
        engine.close()


def test_both_ways_to_stream_make_as_much_audio() -> None:
    found = []
    for way in ("masks", "overlap"):
        engine = engines.load_engine("turbo", options(streaming=way))
        found.append(said(engine, LONG))
        engine.close()
    assert len(found[0]) == len(found[1])
    assert np.abs(found[1]).max() > 100


def test_a_watermark_is_in_the_audio_when_asked_for() -> None:
    perth = pytest.importorskip("perth")
    engine = engines.load_engine("turbo", options(watermark=True))
    try:
        samples = said(engine, LONG).astype(np.float32) / 32768
        plain = engines.load_engine("turbo", options())
        without = said(plain, LONG).astype(np.float32) / 32768
        plain.close()
        marker = perth.PerthImplicitWatermarker()
        assert len(samples) == len(without)
        assert marker.get_watermark(samples, sample_rate=24_000) > marker.get_watermark(without, sample_rate=24_000)
    finally:
        engine.close()


def test_too_little_memory_means_fewer_streams_and_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = stages.ChatterboxStages.capture

    def capture(self: Any) -> int:
        if self.slots > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        captured: int = real(self)
        return captured

    monkeypatch.setattr(stages.ChatterboxStages, "capture", capture)
    engine = engines.load_engine("turbo", options(streams=8))
    try:
        assert engine.streams == 2
        assert "8 streams do not fit" in capsys.readouterr().err
        assert [chunk.size > 0 for chunk in together(engine, [SHORT] * 3)] == [True] * 3
    finally:
        engine.close()


def test_no_memory_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def capture(self: Any) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(stages.ChatterboxStages, "capture", capture)
    with pytest.raises(EngineUnavailable, match="too little memory for one stream"):
        engines.load_engine("turbo", options(streams=2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_no_cuda_is_said() -> None:
    with pytest.raises(EngineUnavailable, match=r"--device cuda: .* try --device cpu"):
        engines.ChatterboxEngine("turbo", options(device="cuda"))


def test_an_engine_that_is_closed_ends_what_it_speaks() -> None:
    engine = engines.load_engine("turbo", options())
    chunks = engine.speak(SpeechRequest(LONG * 20))
    next(chunks)
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        list(chunks)
    assert DEFAULT_VOICE in engine.voices
    gc.collect()

"""Tokens to samples in pieces: as many as there are tokens for, no seams, as the whole answer, alone or together."""

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from chatterbox_fixtures import (
    KINDS,
    gen,
    ours,
    speech_tokens,
    theirs,
    torch,
    upstream,
    upstream_mel,
    upstream_samples,
    voiced,
)

from gpu_server.request import Request, Segment

flow: Any = importlib.import_module("gpu_server.engines.chatterbox.flow")
graphs: Any = importlib.import_module("gpu_server.engines.chatterbox.graphs")
sounds: Any = importlib.import_module("gpu_server.engines.chatterbox.sounds")
vocoder: Any = importlib.import_module("gpu_server.engines.chatterbox.vocoder")
voices: Any = importlib.import_module("gpu_server.engines.chatterbox.voices")

SAMPLES = 960  # of a token
FRAME = 480
WAYS = ("masks", "overlap")


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode(), upstream.quiet():
        yield


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Studio:
    """Both stages of a model, and voices."""

    def __init__(self, kind: str, streaming: str) -> None:
        s3gen = ours(kind).s3gen
        self.kind = kind
        self.flow = flow.Flow(s3gen, graphs.Graphs(False))
        self.vocoder = vocoder.Vocoder(s3gen, graphs.Graphs(False))
        self.sounds = sounds.Sounds(self.flow, self.vocoder, streaming, 740)

    def voice(self, seed: int | None = None, tokens: int = 10) -> Any:
        prompt = gen(self.kind, seed, tokens)
        mel = prompt["prompt_feat"][0].T.contiguous()
        noise = torch.randn(mel.shape, generator=torch.Generator().manual_seed(0))
        return voices.Voice(None, prompt["prompt_token"][0], mel, self.flow.speaker(prompt["embedding"]), noise)

    def request(self, voice: Any, seed: int = 1, whole: bool = False) -> Request:
        asked = Request([Segment("words", 100, 200)], "default", 0, 0.0, print, whole)
        asked.begin_segment(0)
        asked.state = self.sounds.begin(voice, seed)
        return asked

    def make(self, requests: Sequence[Request]) -> list[Any]:
        """The next piece of each, int16."""
        made = self.sounds.make(list(requests))
        for asked in requests:
            asked.made += asked.next_hop
            asked.hops += 1
        return [one.numpy() for one in made]

    def say(self, tokens: Any, voice: Any = None, seed: int = 1, whole: bool = False) -> list[Any]:
        """The pieces of an answer whose tokens come one by one."""
        asked, pieces = self.request(voice or self.voice(), seed, whole), []
        for token in tokens.tolist():
            asked.tokens.append(token)
            if asked.next_hop:
                pieces += self.make([asked])
        asked.ended = True
        while asked.next_hop:
            pieces += self.make([asked])
        self.said = asked.state
        return pieces


def faded(samples: Any) -> Any:
    """As upstream's inference does it: 20 ms of silence, 20 ms in which the sound rises."""
    fade = theirs("turbo").s3gen.trim_fade
    found = samples.clone()
    size = min(len(fade), len(found))
    found[:size] *= fade[:size]
    return (found * 32767).numpy()


def rms(samples: Any) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(samples, dtype=np.float64)))))


# ---- how much


@pytest.mark.parametrize("streaming", WAYS)
def test_there_are_960_samples_a_token_however_many_tokens(streaming: str) -> None:
    studio = Studio("turbo", streaming)
    for length in (1, 2, 3, 4, 5, 7, 8, 12, 13, 37, 40, 88, 140):
        pieces = studio.say(speech_tokens(length))
        assert sum(map(len, pieces)) == length * SAMPLES, length
        assert all(piece.dtype == np.int16 for piece in pieces)


@pytest.mark.parametrize("streaming", WAYS)
def test_the_first_piece_holds_four_frames_back_and_the_others_are_as_long_as_their_hops(
    kind: str, streaming: str
) -> None:
    pieces = Studio(kind, streaming).say(speech_tokens(100))
    assert [len(piece) for piece in pieces] == [
        4 * SAMPLES - 4 * FRAME,
        8 * SAMPLES,
        25 * SAMPLES,
        50 * SAMPLES,
        13 * SAMPLES + 4 * FRAME,
    ]


# ---- what


def test_what_is_made_in_one_go_is_upstreams(kind: str) -> None:
    """Nobody hears it before its end: no masks. Upstream's flow, upstream's HiFT, upstream's fade."""
    studio = Studio(kind, "masks")
    tokens = speech_tokens(60)
    (piece,) = studio.say(tokens, whole=True)
    state = studio.said
    noise = torch.cat((studio.voice().noise, state.noise[:, :120]), 1)
    mel = upstream_mel(kind, gen(kind), tokens, noise)
    source_noise = studio.vocoder._noise[:, torch.arange(120 * FRAME) % studio.vocoder._noise.shape[1]]
    expected = faded(upstream_samples(kind, mel, state.phases, source_noise))
    assert np.abs(piece - expected).max() <= 20  # of 32767
    assert rms(piece - expected) < 1e-3 * rms(expected)


def test_streamed_mel_under_masks_is_made_once_and_never_changes(kind: str) -> None:
    """Against the flow run once over all tokens, with the hops' parts."""
    studio, tokens = Studio(kind, "masks"), speech_tokens(100)
    studio.say(tokens)
    state, voice = studio.said, studio.voice()
    parts = torch.tensor([0] * 10 + [1] * 4 + [2] * 8 + [3] * 25 + [4] * 50 + [5] * 13)[None]
    prompt = torch.zeros(1, 80, 220)
    prompt[0, :, :20] = voice.prompt_mel
    noise = torch.cat((voice.noise, state.noise[:, :200]), 1)[None]
    whole = studio.flow.mel(torch.cat((voice.prompt_tokens, tokens))[None], parts, prompt, voice.speaker[None], noise)
    assert state.mel.shape == (80, 200)
    assert (state.mel - whole[0, :, 20:]).abs().max() < 1e-4


@pytest.mark.parametrize("hertz", [None, 150.0])
@pytest.mark.parametrize("streaming", WAYS)
def test_streamed_samples_are_those_of_the_whole_mel(
    kind: str, streaming: str, hertz: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vocoder sees 16 frames behind and 4 ahead of what is emitted, of some 12 that HiFT of this size looks at:
    what is 12 frames from the end of its piece is the whole's, and of all the error's RMS is a hundredth of the
    signal's. With a pitch, the sine waves go on as well."""
    if hertz is not None:
        voiced(kind, monkeypatch, hertz)
    studio = Studio(kind, streaming)
    pieces = studio.say(speech_tokens(140))
    heard, state = np.concatenate(pieces), studio.said
    piece = vocoder.Piece(state.mel, 0, 0, torch.zeros(0), torch.zeros(()), state.phases)
    expected = faded(studio.vocoder.make([piece])[0][0])
    assert rms(expected) > 300
    assert rms(heard - expected) < 0.01 * rms(expected)
    ends = 0
    for size in map(len, pieces):
        begins, ends = ends, ends + size
        sees_all = slice(begins, max(begins, ends - (12 - vocoder.AHEAD) * FRAME))
        assert np.abs(heard[sees_all] - expected[sees_all]).max(initial=0) <= 40  # of 32767


def test_a_piece_is_made_with_as_much_before_it_as_hift_of_the_full_size_looks_back_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """15 frames, by its kernels and dilations: of mel and of source alike. That of the tests looks less far."""
    studio, given = Studio("turbo", "masks"), []
    make = studio.vocoder.make
    monkeypatch.setattr(studio.vocoder, "make", lambda pieces: given.append(pieces[0]) or make(pieces))
    studio.say(speech_tokens(240))
    assert len(given) == 8  # 4, 8, 25, four times 50, and 3
    for piece in given:
        emitted = piece.first + piece.begins
        assert piece.begins >= min(emitted, 15)
        assert len(piece.source) >= min(emitted, 15) * FRAME


@pytest.mark.parametrize("streaming", WAYS)
def test_no_step_at_a_join_is_larger_than_those_inside(kind: str, streaming: str) -> None:
    for seed in range(3):
        pieces = Studio(kind, streaming).say(speech_tokens(140, seed), seed=seed)
        heard = np.concatenate(pieces).astype(np.int64)
        steps = np.abs(np.diff(heard))
        joins = np.cumsum([len(piece) for piece in pieces])[:-1] - 1
        inside = np.delete(steps, joins)
        assert steps[joins].max() <= inside.max()
        assert steps[joins].mean() <= 3 * inside.mean()


def test_the_beginning_is_faded_in(kind: str) -> None:
    heard = np.concatenate(Studio(kind, "masks").say(speech_tokens(20)))
    assert not heard[:480].any()
    assert rms(heard[480:600]) < 0.3 * rms(heard[960:])
    assert rms(heard[960:]) > 300


# ---- by whom, with whom


@pytest.mark.parametrize("streaming", WAYS)
def test_an_answer_hangs_on_its_seed_and_its_voice_alone(kind: str, streaming: str) -> None:
    studio, tokens = Studio(kind, streaming), speech_tokens(20)
    first = np.concatenate(studio.say(tokens))
    np.testing.assert_array_equal(np.concatenate(studio.say(tokens)), first)
    for other in (studio.say(tokens, seed=2), studio.say(tokens, studio.voice(5))):
        assert rms(np.concatenate(other) - first.astype(np.int64)) > 0.05 * rms(first)


@pytest.mark.parametrize("streaming", WAYS)
def test_pieces_made_together_are_each_as_alone(kind: str, streaming: str) -> None:
    """Three voices, one of them with another prompt; one at its first hop, others further on; in rows for four."""
    studio = Studio(kind, streaming)
    who = [(studio.voice(5, 10), 90, 1), (studio.voice(6, 12), 60, 2), (studio.voice(7, 10), 70, 3)]
    alone = [np.concatenate(studio.say(speech_tokens(length, seed), voice, seed)) for voice, length, seed in who]
    requests = [studio.request(voice, seed) for voice, _, seed in who]
    heard: list[list[Any]] = [[] for _ in who]
    for request, (_, length, seed) in zip(requests, who, strict=True):
        request.tokens, request.ended = speech_tokens(length, seed).tolist(), True
    heard[0] += studio.make(requests[:1])
    counts = []
    while ready := [request for request in requests if request.next_hop]:
        length = studio.sounds.length(ready[0])
        together = [request for request in ready if studio.sounds.length(request) == length]
        counts.append(len(together))
        for request, piece in zip(together, studio.make(together), strict=True):
            heard[requests.index(request)].append(piece)
    assert max(counts) > 1
    for pieces, expected in zip(heard, alone, strict=True):
        together_heard = np.concatenate(pieces).astype(np.int64)
        assert np.abs(together_heard - expected).max() <= 4  # of 32767
        assert rms(together_heard - expected) < 1e-3 * rms(expected)


# ---- the two ways


def lengths(studio: Studio) -> list[int]:
    """Tokens that each piece of a long answer is made of."""
    asked, found = studio.request(studio.voice()), []
    asked.tokens, asked.ended = speech_tokens(600).tolist(), True
    while asked.next_hop:
        found.append(studio.sounds.length(asked))
        asked.made += asked.next_hop
        asked.hops += 1
    return found


def test_a_piece_under_masks_is_made_of_all_before_it_and_in_overlap_of_what_is_near() -> None:
    masked, overlapped = lengths(Studio("turbo", "masks")), lengths(Studio("turbo", "overlap"))
    assert masked == sorted(masked)
    assert masked[-1] >= 10 + 600
    assert max(overlapped) <= 10 + sounds.CONTEXT + 50 + 3 + 32
    assert all(length % 32 == 0 for length in (*masked, *overlapped))


def test_what_is_heard_in_overlap_goes_over_from_one_piece_into_the_next(kind: str) -> None:
    """The frames that a piece had beyond its end fade out under those of the next one."""
    studio = Studio(kind, "overlap")
    tokens = speech_tokens(40)
    asked = studio.request(studio.voice())
    asked.tokens = tokens.tolist()
    studio.make([asked])
    before, tail = asked.state.mel.clone(), asked.state.tail.clone()
    assert tail.shape == (80, 6)
    studio.make([asked])
    blended = asked.state.mel
    assert torch.equal(blended[:, :8], before)
    fresh = fresh_mel(studio, asked.state, tokens, 4, 12 + 3)
    rising = torch.arange(1, 7) / 7
    torch.testing.assert_close(blended[:, 8:14], tail * (1 - rising) + fresh[:, 8:14] * rising, atol=1e-4, rtol=0)
    torch.testing.assert_close(blended[:, 14:24], fresh[:, 14:24], atol=1e-4, rtol=0)


def fresh_mel(studio: Studio, state: Any, tokens: Any, begins: int, known: int) -> Any:
    """All of what is known, all seeing all: upstream's own."""
    assert begins < sounds.CONTEXT
    noise = torch.cat((studio.voice().noise, state.noise[:, : 2 * known]), 1)
    return upstream_mel(studio.kind, gen(studio.kind), tokens[:known], noise)

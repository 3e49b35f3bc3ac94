"""The flow in rows of one batch against upstream's own, whole and in chunks, and its hops against the whole."""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from chatterbox_fixtures import KINDS, gen, ours, speech_tokens, theirs, torch, upstream, upstream_mel

flow: Any = importlib.import_module("gpu_server.engines.chatterbox.flow")
graphs: Any = importlib.import_module("gpu_server.engines.chatterbox.graphs")

LOOKAHEAD = 3  # tokens: upstream's pre-lookahead layer
HOPS = (4, 8, 25, 50)
NEAR = 1e-4  # of frames whose largest values are some units


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode(), upstream.quiet():
        yield


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ours_made(kind: str) -> Any:
    return flow.Flow(ours(kind).s3gen, graphs.Graphs(False))


@dataclass
class Row:
    """A voice, what it says, and the noise of both."""

    voice: dict[str, Any]
    said: Any
    seed: int = 3
    parts: Sequence[int] | None = None  # of what is said; None: all see all
    of_all: Sequence[int] | None = None  # of the voice's tokens too

    @property
    def prompt(self) -> int:
        return int(self.voice["prompt_token"].shape[1])

    @property
    def length(self) -> int:
        return self.prompt + len(self.said)

    @property
    def noise(self) -> Any:
        return torch.randn((80, 2 * 400), generator=torch.Generator().manual_seed(self.seed))[:, : 2 * self.length]

    def first(self, said: int) -> "Row":
        """The same, of which no more is known yet."""
        assert self.parts is not None
        return Row(self.voice, self.said[:said], self.seed, self.parts[:said])


def mels(made: Any, rows: list[Row], padding: int = 0) -> list[Any]:
    """What each says, [80, frames], made together."""
    length = max(row.length for row in rows) + padding
    tokens = torch.full((len(rows), length), 77)
    parts = torch.full((len(rows), length), flow.NEVER)
    prompt, noise = torch.zeros(len(rows), 80, 2 * length), torch.full((len(rows), 80, 2 * length), 9.0)
    for number, row in enumerate(rows):
        tokens[number, : row.length] = torch.cat((row.voice["prompt_token"][0], row.said))
        said_parts = [0] * len(row.said) if row.parts is None else row.parts
        parts[number, : row.length] = torch.tensor(row.of_all or [*[0] * row.prompt, *said_parts])
        prompt[number, :, : 2 * row.prompt] = row.voice["prompt_feat"][0].T
        noise[number, :, : 2 * row.length] = row.noise
    speakers = torch.stack([made.speaker(row.voice["embedding"]) for row in rows])
    found = made.mel(tokens, parts, prompt, speakers, noise)
    return [found[number, :, 2 * row.prompt : 2 * row.length] for number, row in enumerate(rows)]


def in_hops(length: int) -> list[int]:
    """The part of each token that is said, where it is streamed."""
    parts: list[int] = []
    while len(parts) < length:
        number = len(set(parts))
        parts += [number + 1] * HOPS[min(number, len(HOPS) - 1)]
    return parts[:length]


def far(one: Any, other: Any) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize(("length", "voice"), [(1, None), (60, None), (33, 5)])
def test_what_all_see_is_upstreams_mel(kind: str, ours_made: Any, length: int, voice: int | None) -> None:
    row = Row(gen(kind, voice, 23), speech_tokens(length))
    expected = upstream_mel(kind, row.voice, row.said, row.noise)
    assert expected.shape == (80, 2 * length)
    assert far(mels(ours_made, [row])[0], expected) < NEAR
    assert expected.abs().max() > 0.5


def test_rows_of_any_length_and_voice_are_each_as_alone(kind: str, ours_made: Any) -> None:
    """Prompts of 5, 23 and 10 tokens, what is said 40, 7 and 61: a row's padding and its neighbours do nothing."""
    rows = [
        Row(gen(kind, 5, 5), speech_tokens(40, 1), 3),
        Row(gen(kind, 6, 23), speech_tokens(7, 2), 4),
        Row(gen(kind), speech_tokens(61, 3), 5),
    ]
    for row, found in zip(rows, mels(ours_made, rows, padding=9), strict=True):
        assert far(found, upstream_mel(kind, row.voice, row.said, row.noise)) < NEAR


def test_a_voice_is_heard(kind: str, ours_made: Any) -> None:
    said = speech_tokens(20)
    one, other = mels(ours_made, [Row(gen(kind, 5, 10), said), Row(gen(kind, 6, 10), said)])
    assert far(one, other) > 0.1


def test_equal_chunks_are_upstreams_static_ones(kind: str, ours_made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream's own chunk masks, which it has and does not use, cut the whole row, the voice too, into equal parts."""
    model = theirs(kind).s3gen.flow
    monkeypatch.setattr(model.encoder, "static_chunk_size", 25)
    monkeypatch.setattr(model.decoder.estimator, "static_chunk_size", 50)
    row = Row(gen(kind), speech_tokens(83))
    row.of_all = [number // 25 for number in range(row.length)]
    expected = upstream_mel(kind, row.voice, row.said, row.noise)
    assert far(mels(ours_made, [row])[0], expected) < NEAR
    row.of_all = None
    assert far(mels(ours_made, [row])[0], expected) > 100 * NEAR


@pytest.mark.parametrize("padding", [0, 13])
def test_what_is_made_in_hops_is_what_is_made_whole(kind: str, ours_made: Any, padding: int) -> None:
    """A hop is made of the tokens up to its end and of the three after it."""
    row = Row(gen(kind), speech_tokens(100), parts=in_hops(100))
    (whole,) = mels(ours_made, [row])
    ends = 0
    for hop in (*HOPS, 13):
        begins, ends = ends, ends + hop
        (made,) = mels(ours_made, [row.first(min(ends + LOOKAHEAD, 100))], padding)
        assert far(made[:, 2 * begins : 2 * ends], whole[:, 2 * begins : 2 * ends]) < NEAR
    assert ends == 100


def test_hops_of_several_voices_made_together_are_each_as_whole(kind: str, ours_made: Any) -> None:
    rows = [
        Row(gen(kind, seed, prompt), speech_tokens(40, seed), seed, in_hops(40)) for seed, prompt in ((1, 5), (2, 20))
    ]
    wholes = [mels(ours_made, [row])[0] for row in rows]
    made = mels(ours_made, [rows[0].first(15), rows[1].first(40)])
    assert far(made[0][:, :24], wholes[0][:, :24]) < NEAR
    assert far(made[1], wholes[1]) < NEAR


def test_the_masks_are_needed_and_so_is_the_look_ahead(kind: str, ours_made: Any) -> None:
    """Or the equalities above would show nothing."""
    row = Row(gen(kind), speech_tokens(60), parts=in_hops(60))
    (whole,) = mels(ours_made, [row])
    (all_see_all,) = mels(ours_made, [Row(row.voice, row.said)])
    assert far(whole[:, :8], all_see_all[:, :8]) > 100 * NEAR
    (too_early,) = mels(ours_made, [row.first(12)])
    assert far(too_early[:, 8:24], whole[:, 8:24]) > 100 * NEAR


def test_no_frame_sees_a_later_part(kind: str, ours_made: Any) -> None:
    row = Row(gen(kind), speech_tokens(60), parts=in_hops(60))
    changed = row.said.clone()
    changed[12 + LOOKAHEAD :] = speech_tokens(60, 9)[12 + LOOKAHEAD :]
    (before,), (after,) = mels(ours_made, [row]), mels(ours_made, [Row(row.voice, changed, parts=row.parts)])
    assert far(before[:, :24], after[:, :24]) < NEAR
    assert far(before[:, 24:], after[:, 24:]) > 100 * NEAR

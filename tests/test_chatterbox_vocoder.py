"""HiFT in rows against upstream's own, and in windows against itself whole: the same samples but at a window's edge."""

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
from chatterbox_fixtures import KINDS, ours, torch, upstream, upstream_samples, voiced

graphs: Any = importlib.import_module("gpu_server.engines.chatterbox.graphs")
vocoder: Any = importlib.import_module("gpu_server.engines.chatterbox.vocoder")

FRAME = 480
NEAR = 1e-4  # of samples between -0.99 and 0.99


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.inference_mode(), upstream.quiet():
        yield


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def made(kind: str) -> Any:
    return vocoder.Vocoder(ours(kind).s3gen, graphs.Graphs(False))


def mel(frames: int, seed: int = 1) -> Any:
    """Frames that go up and down, as loud as those of speech."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn((80, frames), generator=generator)
    return torch.nn.functional.avg_pool1d(steps[None], 3, 1, 1)[0] * 3 - 3


def phases(of: Any, seed: int = 1) -> Any:
    return of.phases(torch.Generator().manual_seed(seed))


def whole(of: Any, frames: Any, phases: Any) -> Any:
    return of.make([vocoder.Piece(frames, 0, 0, torch.zeros(0), torch.zeros(()), phases)])


@pytest.mark.parametrize("hertz", [None, 0.0, 150.0])
@pytest.mark.parametrize("frames", [2, 60, 300])
def test_samples_are_upstreams(
    kind: str, made: Any, frames: int, hertz: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its pitch, without any voice, and with a pitch that glides; noise and phases are given to both."""
    if hertz is not None:
        voiced(kind, monkeypatch, hertz)
    heard, start = mel(frames), phases(made)
    noise = made._noise[:, torch.arange(frames * FRAME) % made._noise.shape[1]]
    expected = upstream_samples(kind, heard, start, noise)
    samples, source, cycles = whole(made, heard, start)
    assert samples.shape == source.shape == (1, frames * FRAME)
    assert cycles.shape == (1, frames)
    assert (samples[0] - expected).abs().max() < NEAR
    assert expected.abs().max() > 0.05


def test_the_fundamental_starts_at_nought_and_the_others_anywhere(made: Any) -> None:
    start = phases(made)
    assert start[0] == 0
    assert start[1:].abs().max() <= torch.pi
    assert not torch.equal(start, phases(made, 2))


def test_rows_are_each_as_alone(made: Any) -> None:
    rows = [(mel(40, seed), phases(made, seed)) for seed in range(3)]
    together = made.make([vocoder.Piece(heard, 0, 0, torch.zeros(0), torch.zeros(()), start) for heard, start in rows])
    for number, row in enumerate(rows):
        for found, expected in zip(together, whole(made, *row), strict=True):
            assert (found[number] - expected[0]).abs().max() < NEAR


def test_the_source_goes_on_where_it_was(kind: str, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later window has the source of the whole, from its beginning to its end: no phase jumps."""
    voiced(kind, monkeypatch, 220.0)
    heard, start = mel(80), phases(made)
    _, source, cycles = whole(made, heard, start)
    begins, first = 50, 30
    piece = vocoder.Piece(heard[:, first:], begins - first, first, source[0, : begins * FRAME], cycles[0, 49], start)
    _, found, ends = made.make([piece])
    assert (found[0] - source[0, first * FRAME :]).abs().max() < 1e-3
    turned = (ends[0, begins - first :] - cycles[0, begins:] + 0.5) % 1 - 0.5
    assert turned.abs().max() < 1e-3


def test_a_window_has_the_samples_of_the_whole_but_at_its_edges(made: Any) -> None:
    """HiFT of this size looks some ten frames ahead, and at the nearest ones most: what is BEHIND frames from a
    window's beginning and 12 from its end is the whole's, and at AHEAD frames the error's RMS is a hundredth of the
    signal's."""
    heard, start = mel(120), phases(made)
    samples, source, cycles = whole(made, heard, start)
    first, ends = 40, 100
    window = vocoder.Piece(heard[:, first:ends], 20, first, source[0, : 60 * FRAME], cycles[0, 59], start)
    found, *_ = made.make([window])
    error = (found[0] - samples[0, first * FRAME : ends * FRAME])[vocoder.BEHIND * FRAME :]
    assert error[: -12 * FRAME].abs().max() < 1e-3
    loud = samples.square().mean().sqrt()
    assert error[: -vocoder.AHEAD * FRAME].square().mean().sqrt() < 0.01 * loud
    assert error[-FRAME:].square().mean().sqrt() > 0.01 * loud  # so it is not for nothing that frames are held back


def test_known_source_may_be_longer_or_shorter_than_the_window(made: Any) -> None:
    heard, start = mel(60), phases(made)
    _, source, cycles = whole(made, heard, start)
    known = source[0, : 30 * FRAME]
    exact, longer, shorter = (
        made.make([vocoder.Piece(heard[:, 20:], 10, 20, part, cycles[0, 29], start)])[1][0]
        for part in (known[-10 * FRAME :], known, known[-4 * FRAME :])
    )
    assert torch.equal(exact, longer)
    assert torch.equal(shorter[6 * FRAME :], exact[6 * FRAME :])
    assert not shorter[: 6 * FRAME].any()

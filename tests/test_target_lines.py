"""Targets: what can be aimed at, how it is written, and how a wrong line is refused."""

import math
from pathlib import Path

import pytest

from analysis.targets import Limit, TargetError, parse_target, read_targets

S2 = [
    ("TTFC mean", "< 400.0 ms", "< 300.0 ms"),
    ("RTF mean", "< 0.5", "< 0.4"),
    ("end-to-end latency p50", "< 450.0 ms", "< 350.0 ms"),
    ("end-to-end latency p95", "< 500.0 ms", "< 400.0 ms"),
    ("end-to-end latency p99", "< 750.0 ms", "< 600.0 ms"),
    ("concurrent streams a GPU", "> 3", "> 5"),
    ("GPU memory", "< 16.0 GB", "< 12.0 GB"),
]


def test_s2s_seven_targets_with_their_stretch_goals() -> None:
    found = read_targets("chatterbox").targets
    shown = [(t.name, t.show_limit(t.limit), t.show_limit(t.stretch)) for t in found if t.stretch]
    assert shown == S2


def test_s1s_band() -> None:
    (band,) = read_targets("personaplex").targets
    assert band.metric.column == "floor_transfer_offset_s"
    assert (band.limit.low, band.limit.high) == (pytest.approx(0.170), pytest.approx(0.270))


@pytest.mark.parametrize(
    ("limit", "value", "holds"),
    [
        (Limit(None, 0.4), 0.4, False),
        (Limit(None, 0.4), 0.399_999, True),
        (Limit(None, 0.4), 0.4 - 1e-12, False),  # what floats make of 400.0 ms
        (Limit(3.0, None), 3.0, False),
        (Limit(3.0, None), 3.1, True),
        (Limit(0.17, 0.27), 0.17, False),
        (Limit(0.17, 0.27), 0.27, False),
        (Limit(0.17, 0.27), 0.2, True),
        (Limit(None, 0.4), math.inf, False),
        (Limit(None, 0.4), math.nan, False),
    ],
)
def test_comparisons_are_strict(limit: Limit, value: float, holds: bool) -> None:
    assert limit.holds(value) is holds


@pytest.mark.parametrize(
    ("line", "quantile", "low", "high"),
    [
        ("ttfc p95 < 400 ms", 0.95, None, 0.4),
        ("ttfc p99.9<1 s", 0.999, None, 1.0),
        ("rtf < 0.5", 0.5, None, 0.5),
        ("floor_transfer_offset p50 > -100 ms", 0.5, -0.1, None),
        ("floor_transfer_offset p50 within 170 to 270 ms", 0.5, 0.17, 0.27),
        ("success > 99 %", None, 0.99, None),
        ("vram < 16 GiB", None, None, 16 * 2**30),
    ],
)
def test_a_line_says_metric_figure_and_limit(
    line: str, quantile: float | None, low: float | None, high: float | None
) -> None:
    target = parse_target(line)
    assert target.quantile == (None if quantile is None else pytest.approx(quantile))
    assert target.limit == Limit(
        None if low is None else pytest.approx(low), None if high is None else pytest.approx(high)
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("ttffc < 400 ms", "did you mean 'ttfc'?"),
        ("ttfc p95 < 400", "told in ms or s, not in 'no unit'"),
        ("ttfc p95 < 400 kg", "not in 'kg'"),
        ("rtf < 0.5 ms", "told in no unit, not in 'ms'"),
        ("ttfc p95 <= 400 ms", "write < instead of <="),
        ("ttfc p100 < 1 s", "it has p50, p95, p99"),
        ("ttfc p0 < 1 s", "it has p50, p95, p99"),
        ("vram p95 < 3 GB", "it has peak"),
        ("ttfc p95 < 1 s, stretch > 2 s", "point the same way"),
        ("floor_transfer_offset p50 within 270-170 ms", "the smaller one"),
        ("ttfc p95 < -1 ms", "never negative"),
        ("success > 101 %", "between 0 and 100 %"),
        ("success < 5 %", "`success > 99 %`"),
        ("success > 0 %", "`success > 99 %`"),
        ("success > 100 %", "`success > 99 %`"),
        ("ttfc p99.9999 < 1 s", "it has p50, p95, p99"),
        ("ttfc p95 < 300 ms, stretch < 400 ms", "harder to reach"),
        ("concurrent_streams > 5, stretch > 3", "harder to reach"),
        ("ttfc", "is no target"),
        ("", "is no target"),
        ("ttfc p95 < . ms", "is no number"),
    ],
)
def test_a_wrong_line_is_refused_with_the_fix(line: str, says: str) -> None:
    with pytest.raises(TargetError) as caught:
        parse_target(line)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("targets:\n  - ttffc < 4 ms\n", "did you mean 'ttfc'?"),
        ("targets: []\n", "no target"),
        ("ttfc: 4\n", "expected `targets:`"),
        ("targets:\n  - ttfc p95 < 4 ms\n  - ttfc p95 < 5 ms\n", "there twice"),
        ("targets:\n  - ttfc p95 < 4 ms\ngpu: 2\n", "did you mean 'gpus'?"),
        ("targets:\n  - ttfc p95 < 4 ms\ngpus: 0\n", "gpus"),
        ("targets:\n  - ttfc: 4\n   x", "no YAML"),
        ("- a\n", "expected `targets:`"),
        ("", "expected `targets:`"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(TargetError) as caught:
        read_targets(str(path))
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_a_missing_file_is_told_with_the_names_there_are() -> None:
    with pytest.raises(TargetError, match="chatterbox, personaplex, voice_agent"):
        read_targets("chaterbox")

"""What is wanted of a system: targets by name, read from a file or taken from a source. Judges nothing (verdicts.py).

A target is one line: a metric, which figure of it, what it must stay below or above, and optionally a stretch goal:

    floor_transfer_offset p95 < 800 ms, stretch < 500 ms

Comparisons are strict: 400.0 ms misses "< 400 ms".
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

COPY = "targets.yaml"  # in a run's directory

Unit = Literal["s", "share", "ratio", "count", "bytes", "growth"]
Spoken = Literal["requests", "conversations", "full duplex", "both"]

# How a unit may be written, and what makes the unit of the rows of it.
_UNITS: dict[Unit, dict[str, float]] = {
    "s": {"ms": 0.001, "s": 1.0},
    "share": {"%": 0.01, "": 1.0},
    "ratio": {"": 1.0},
    "count": {"": 1.0},
    "bytes": {"GB": 1e9, "GiB": 2.0**30, "MB": 1e6},
    "growth": {"s/min": 1.0},
}


@dataclass(frozen=True, slots=True)
class Metric:
    """What can be aimed at. column: of a turn's row; None where the figure is one of the whole run."""

    name: str
    title: str
    unit: Unit
    column: str | None
    of: Spoken
    figures: tuple[str, ...]  # which figures of it make sense; the first is the usual one


_QUANTILES = ("p50", "mean")
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("ttfc", "TTFC", "s", "ttfc_s", "both", _QUANTILES),
        Metric("ttfa", "TTFA", "s", "ttfa_s", "both", _QUANTILES),
        Metric("e2e", "end-to-end latency", "s", "e2e_s", "both", _QUANTILES),
        Metric("rtf", "RTF", "ratio", "rtf", "requests", _QUANTILES),
        Metric("prebuffer", "prebuffer without a stall", "s", "min_prebuffer_s", "both", _QUANTILES),
        Metric(
            "floor_transfer_offset",
            "floor transfer offset",
            "s",
            "floor_transfer_offset_s",
            "conversations",
            _QUANTILES,
        ),
        Metric("time_to_silence", "time to silence", "s", "time_to_silence_s", "conversations", _QUANTILES),
        Metric("ttft", "TTFT", "s", "ttft_s", "full duplex", _QUANTILES),
        Metric("itl", "ITL", "s", "itl_s", "full duplex", _QUANTILES),
        Metric("tps", "tokens a second", "count", None, "full duplex", ("average",)),
        Metric("setup", "session set-up", "s", None, "full duplex", ("p95", "p50", "max")),
        Metric("lag_growth", "growth of the lag", "growth", None, "full duplex", ("worst", "median")),
        Metric("success", "success", "share", None, "both", ("share",)),
        Metric("concurrent_streams", "concurrent streams a GPU", "count", None, "both", ("average",)),
        Metric("vram", "GPU memory", "bytes", None, "both", ("peak",)),
    )
}


class TargetError(ValueError):
    """Targets that cannot be judged; its text is one line that names the target and the fix."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Strictly above `low` and strictly below `high`, in the unit of the rows; None where that side is open."""

    low: float | None
    high: float | None

    def holds(self, value: float) -> bool:
        """Whether a value lies within; NaN does not. Beyond a nanosecond floats only pretend: 400.0 ms is 400.0 ms."""
        value = round(value, 9) if math.isfinite(value) else value
        return (self.low is None or value > self.low) and (self.high is None or value < self.high)


@dataclass(frozen=True, slots=True)
class Target:
    """One target. figure: p50, p95, p99.9 ..., mean, or what is said of a whole run (share, average, peak)."""

    text: str
    metric: Metric
    figure: str
    limit: Limit
    stretch: Limit | None = None

    @property
    def quantile(self) -> float | None:
        """0.95 of a p95 of turns; None where the figure is no quantile of turns."""
        return float(self.figure[1:]) / 100 if self.metric.column and self.figure.startswith("p") else None

    @property
    def name(self) -> str:
        """Such as `TTFC p95`."""
        told = self.metric.column or len(self.metric.figures) > 1
        return f"{self.metric.title} {self.figure}" if told else self.metric.title

    def show(self, value: float | None) -> str:
        """A value of this target with its unit: `412 ms`."""
        return show(self.metric.unit, value)

    def show_limit(self, limit: Limit) -> str:
        """A limit of it: `< 400 ms`, `170-270 ms`."""
        if limit.low is not None and limit.high is not None:
            return f"{self.show(limit.low)} to {self.show(limit.high)}"
        return f"< {self.show(limit.high)}" if limit.high is not None else f"> {self.show(limit.low)}"


@dataclass(frozen=True, slots=True)
class Targets:
    """What is wanted, and where it is written. gpus: on how many GPUs the system runs."""

    source: str
    targets: tuple[Target, ...]
    gpus: int = 1


def show(unit: Unit, value: float | None) -> str:
    """A value with its unit, as people read it."""
    if value is None or not math.isfinite(value):
        return "-" if value is None or math.isnan(value) else "∞"
    match unit:
        case "s":
            return f"{value * 1000:,.{0 if abs(value) >= 1 else 1}f} ms"
        case "share":
            return f"{value * 100:.4g} %"
        case "bytes":
            return f"{value / 1e9:.1f} GB"
        case "growth":
            return f"{value:.3g} s/min"
        case _:
            return f"{value:.3g}"


# What the sources ask for. S2 names no figure of TTFC and RTF: its own protocol tells means.
_SOURCES: dict[str, tuple[str, ...]] = {
    "chatterbox": (
        "ttfc mean < 400 ms, stretch < 300 ms",
        "rtf mean < 0.50, stretch < 0.40",
        "e2e p50 < 450 ms, stretch < 350 ms",
        "e2e p95 < 500 ms, stretch < 400 ms",
        "e2e p99 < 750 ms, stretch < 600 ms",
        "concurrent_streams > 3, stretch > 5",
        "vram < 16 GB, stretch < 12 GB",
    ),
    "personaplex": ("floor_transfer_offset p50 within 170-270 ms",),
    "voice_agent": (
        "floor_transfer_offset p50 < 800 ms, stretch < 500 ms",
        "floor_transfer_offset p95 < 1500 ms, stretch < 1000 ms",
    ),
}


def read_targets(named: str) -> Targets:
    """The targets of a file, or those of a source by its name. Raises TargetError."""
    if named in _SOURCES:
        return Targets(named, tuple(parse_target(line) for line in _SOURCES[named]))
    path = Path(named)
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        known = ", ".join(_SOURCES)
        raise TargetError(f"targets {named}: {error.strerror}; name a YAML file, or one of {known}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TargetError(f"targets {named} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or not isinstance(found.get("targets"), list):
        raise TargetError(f"targets {named}: expected `targets:` with a list of lines such as - ttfc p95 < 400 ms")
    for key in found:
        if key not in ("targets", "gpus"):
            raise TargetError(f"targets {named}: unknown key {key!r}{_nearest(str(key), ['targets', 'gpus'])}")
    gpus = found.get("gpus", 1)
    if not isinstance(gpus, int) or isinstance(gpus, bool) or gpus < 1:
        raise TargetError(f"targets {named}: gpus: {gpus!r} is no whole number of 1 or more")
    try:
        targets = tuple(parse_target(str(line)) for line in found["targets"])
        _check_different(targets)
    except TargetError as error:
        raise TargetError(f"targets {named}: {error}") from None
    return Targets(named, targets, gpus)


def targets_of(run_dir: Path, scenario: Mapping[str, Any], named: str | None = None) -> Targets | None:
    """The targets named, else a run's own: the copy in it, or what its scenario names. Raises TargetError."""
    copy = run_dir / COPY
    chosen = named or (str(copy) if copy.exists() else scenario.get("targets"))
    return read_targets(chosen) if chosen else None


def _check_different(targets: Sequence[Target]) -> None:
    if not targets:
        raise TargetError("it lists no target")
    seen: set[tuple[str, str]] = set()
    for target in targets:
        if (key := (target.metric.name, target.figure)) in seen:
            raise TargetError(f"{target.metric.name} {target.figure} is there twice: keep one of them")
        seen.add(key)


_LINE = re.compile(
    r"(?P<metric>\w+)(?:\s+(?P<figure>[a-z][\w.]*?))?\s*(?P<limit>(?:within\b|[<>]).*?)"
    r"(?:\s*,\s*stretch\s*(?P<stretch>(?:within\b|[<>]).*))?"
)


def parse_target(line: str) -> Target:
    """Read one target's line. Raises TargetError."""
    found = _LINE.fullmatch(line.strip())
    if found is None:
        raise TargetError(f"{line!r} is no target; write one as `ttfc p95 < 400 ms, stretch < 300 ms`")
    metric = METRICS.get(found["metric"])
    if metric is None:
        raise TargetError(f"{line!r}: no metric is called {found['metric']!r}{_nearest(found['metric'], [*METRICS])}")
    figure = found["figure"] or metric.figures[0]
    if not _is_figure_of(metric, figure):
        known = "p50, p95, p99 (any quantile), mean" if metric.column else ", ".join(metric.figures)
        raise TargetError(f"{line!r}: {metric.name} has no {figure!r}; it has {known}")
    limit = _limit(line, metric, found["limit"])
    stretch = _limit(line, metric, found["stretch"]) if found["stretch"] else None
    if stretch is not None and (stretch.low is None, stretch.high is None) != (limit.low is None, limit.high is None):
        raise TargetError(f"{line!r}: the stretch goal must point the same way as the target")
    if metric.unit == "share" and (limit.low is None or limit.high is not None or not 0 < limit.low < 1):
        raise TargetError(f"{line!r}: say what share must be exceeded, such as `{metric.name} > 99 %`")
    if stretch is not None and not _harder(stretch, limit):
        raise TargetError(f"{line!r}: the stretch goal must be harder to reach than the target")
    return Target(line.strip(), metric, figure, limit, stretch)


def _harder(stretch: Limit, limit: Limit) -> bool:
    low = stretch.low is None or limit.low is None or stretch.low >= limit.low
    return low and (stretch.high is None or limit.high is None or stretch.high <= limit.high)


def _is_figure_of(metric: Metric, figure: str) -> bool:
    if metric.column is None:
        return figure in metric.figures
    quantile = re.fullmatch(r"p(\d{1,2}(?:\.\d+)?)", figure)
    return figure == "mean" or (quantile is not None and 0.01 <= float(quantile[1]) <= 99.99)


def _limit(line: str, metric: Metric, text: str) -> Limit:
    if text.startswith("within"):
        band = re.fullmatch(r"within\s+(-?[\d.]+)\s*(?:-|to|\.\.)\s*(-?[\d.]+)\s*(\S*)", text)
        if band is None:
            raise TargetError(f"{line!r}: write a band as `within 170-270 ms`")
        low, high = (_number(line, metric, number, band[3]) for number in (band[1], band[2]))
        if not low < high:
            raise TargetError(f"{line!r}: the band's first number must be the smaller one")
        return Limit(low, high)
    one = re.fullmatch(r"([<>])\s*(=?)\s*(-?[\d.]+)\s*(\S*)", text)
    if one is None:
        raise TargetError(f"{line!r}: {text!r} is no limit; write one as `< 400 ms`")
    if one[2]:
        raise TargetError(f"{line!r}: comparisons are strict; write {one[1]} instead of {one[1]}=")
    value = _number(line, metric, one[3], one[4])
    return Limit(None, value) if one[1] == "<" else Limit(value, None)


def _number(line: str, metric: Metric, number: str, unit: str) -> float:
    units = _UNITS[metric.unit]
    if unit not in units:
        wanted = " or ".join(name or "no unit" for name in units)
        raise TargetError(f"{line!r}: {metric.name} is told in {wanted}, not in {unit or 'no unit'!r}")
    try:
        value = float(number) * units[unit]
    except ValueError:
        raise TargetError(f"{line!r}: {number!r} is no number") from None
    if value < 0 and metric.name not in ("floor_transfer_offset", "lag_growth"):
        raise TargetError(f"{line!r}: {metric.name} is never negative")
    if metric.unit == "share" and value > 1:
        raise TargetError(f"{line!r}: a share lies between 0 and 100 %")
    return value


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"

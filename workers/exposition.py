"""Read Prometheus' text format, and of it only what is kept. Knows nothing of sockets, files or rows.

Kept: gauges, counters, untyped metrics, `_sum` and `_count` of histograms and summaries. Left out: buckets, quantiles,
`_created`, what an exporter says of its own process, and values that are no numbers (NaN, infinities).

Format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text, 0.0.4). The official parser for Python takes
14 us a line of vLLM's and 36 of DCGM's with its many labels, this one 0.7 and 5.7: it may not hold up a master. And it
leaves a counter without `_total` its name.
"""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

LONGEST_LABEL = 120  # characters; a longer label is a text, and no name of a series

_OWN_PROCESS = ("python_", "process_", "go_", "promhttp_")
_DISTRIBUTIONS = ("histogram", "summary")

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,255}+(?![a-zA-Z0-9_:])")
_KEY = r"[a-zA-Z_][a-zA-Z0-9_]*+"
_TEXT = r'[^"\\]*+(?:\\.[^"\\]*+)*+'
_LABEL = re.compile(rf'({_KEY})\s*+=\s*+"({_TEXT})"')
# Possessive throughout: no answer, however strange, may cost more than its length.
_AFTER_NAME = re.compile(
    rf'\s*+(?:\{{\s*+((?:{_KEY}\s*+=\s*+"{_TEXT}"\s*+,?\s*+)*+)\}}\s*+)?'
    r"([^\s#{]++)(?:\s++-?\d++(?:\.\d++)?)?(?:\s++#.*+)?"
)


class Sample(NamedTuple):
    """One value of one series. `labels`: `k="v",...` by name, values escaped as on the wire, long ones left out."""

    metric: str
    labels: str
    kind: str
    value: float


class Exposition:
    """One answer of an endpoint, read in pieces of whole lines. `samples`: how many there were, kept or not."""

    def __init__(self) -> None:
        self.samples = 0
        self._lines = 0
        self._types: dict[str, str] = {}
        self._kinds: dict[str, str | None] = {}

    def read(self, lines: Iterable[str]) -> list[Sample]:
        """What is to be kept of the next lines. Raises ValueError, naming the line that is none of the format."""
        kept = []
        for raw in lines:
            self._lines += 1
            line = raw.strip()
            if not line:
                continue
            if line[0] == "#":
                words = line.split(None, 3)
                if len(words) == 4 and words[1] == "TYPE":
                    self._types[words[2]] = words[3]
                continue
            named = _NAME.match(line)
            if named is None:
                raise self._no_sample(line)
            self.samples += 1
            name = named[0]
            if name not in self._kinds:
                self._kinds[name] = self._kind(name)
            kind = self._kinds[name]
            if kind is None:
                continue
            rest = _AFTER_NAME.fullmatch(line, named.end())
            if rest is None or "_" in rest[2]:
                raise self._no_sample(line)
            try:
                value = float(rest[2])
            except ValueError:
                raise self._no_sample(line) from None
            if math.isfinite(value):
                kept.append(Sample(name, _labels(rest[1]) if rest[1] else "", kind, value))
        return kept

    def _kind(self, name: str) -> str | None:
        """gauge, counter, histogram, summary, untyped; None for a metric that is left out."""
        if name.startswith(_OWN_PROCESS) or name.endswith("_created"):
            return None
        own = self._types.get(name)
        if own in _DISTRIBUTIONS:  # a summary's quantiles
            return None
        if own is None:
            family, _, suffix = name.rpartition("_")
            if suffix == "bucket":
                return None
            own = self._types.get(family) if suffix in ("sum", "count", "total") else None
        return "untyped" if own in (None, "unknown") else own

    def _no_sample(self, line: str) -> ValueError:
        return ValueError(f"line {self._lines} of its answer is no metric: {line[:60]!r}")


def _labels(text: str) -> str:
    pairs = sorted(_LABEL.findall(text))
    return ",".join(f'{name}="{value}"' for name, value in pairs if len(name) + len(value) <= LONGEST_LABEL)

"""What a benchmark found, beside what was asked of it: one JSON file each, and a table. Measures nothing."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that is asked for: at most `limit`, or at least that."""

    what: str
    figure: float | None  # None: could not be measured, which is a miss
    limit: float
    unit: str
    at_least: bool = False

    @property
    def met(self) -> bool:
        if self.figure is None:
            return False
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit

    @property
    def asked(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g} {self.unit}".rstrip()

    @property
    def found(self) -> str:
        return "-" if self.figure is None else f"{self.figure:.4g} {self.unit}".rstrip()


@dataclass(slots=True)
class Outcome:
    """One benchmark's parameters, figures and targets; `notes`: what a reader must know to believe them."""

    parameters: dict[str, Any]
    figures: dict[str, Any] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def met(self) -> bool:
        return all(target.met for target in self.targets)


def write(name: str, machine: dict[str, Any], outcome: Outcome, quick: bool, took_s: float) -> Path:
    """Replace `results/<name>.json`; a quick run goes beside it as `<name>.quick.json`."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}{'.quick' if quick else ''}.json"
    found = {
        "benchmark": name,
        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "took_s": round(took_s, 1),
        "machine": machine,
        "parameters": outcome.parameters,
        "figures": rounded(outcome.figures),
        "targets": [
            {"what": t.what, "asked": t.asked, "figure": rounded(t.figure), "unit": t.unit, "met": t.met}
            for t in outcome.targets
        ],
        "notes": outcome.notes,
        "met": outcome.met,
    }
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return path


def rounded(value: Any) -> Any:
    """The same with floats of four significant digits: more would only pretend."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def table(outcomes: Iterable[tuple[str, Outcome | str]]) -> str:
    """Target, figure, ok: a line each. A benchmark that failed stands with its reason."""
    lines = [("benchmark", "target", "asked", "figure", "")]
    for name, outcome in outcomes:
        if isinstance(outcome, str):
            lines.append((name, outcome, "", "-", "FAILED"))
            continue
        lines += [(name, t.what, t.asked, t.found, "ok" if t.met else "MISSED") for t in outcome.targets]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join("  ".join((*(line[i].ljust(widths[i]) for i in range(4)), line[4])).rstrip() for line in lines)

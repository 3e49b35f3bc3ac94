"""What a reason to distrust a run is, and the words it is told in. Checks nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from analysis.counting import Counted
from analysis.runs import Run

Severity = Literal["invalid", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("invalid", "warning", "note")


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason for distrust. invalid: figures are wrong; warning: they may be; note: know it when you read them."""

    severity: Severity
    code: str
    line: str


Check = Callable[[Run, Counted], Reason | None]


def n_of(count: int, one: str, many: str = "") -> str:
    """`1 turn`, `1,000 turns`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def share_of(share: float) -> str:
    """A share as a percentage."""
    return f"{share * 100:.1f} %"


def ms(seconds: float) -> str:
    """Seconds as milliseconds."""
    return f"{seconds * 1000:,.1f} ms"


def some(items: list[Any], most: int = 3) -> str:
    """The first few, and how many more there are."""
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most:,} more"

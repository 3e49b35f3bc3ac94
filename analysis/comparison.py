"""Is one run better or worse than another, figure by figure, and may they be compared at all?

Computes and judges; reads no options and lays out no page. docs/metrics.md has the rules.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import duplex_rows
from analysis.checks import Reason, reasons, target
from analysis.counting import Counted, agent_calls, count, full_duplex, requests
from analysis.runs import Run, open_run
from analysis.stats import (
    Difference,
    holm,
    mean_difference,
    permutation_p,
    quantile_difference,
    share_difference,
    turns_needed,
)
from workers.samples.schema import CENSORED

Kind = Literal["requests", "conversations", "full duplex"]
Verdict = Literal["worse", "better", "same", "no evidence", "not comparable"]
Unit = Literal["ms", "rtf", "%", "/s"]

KINDS: dict[Kind, Callable[[Counted], Counted]] = {
    "requests": requests,
    "conversations": agent_calls,
    "full duplex": full_duplex,
}

MARGIN = 0.05
SHARE_MARGIN = 0.01
LEAST_MARGIN_MS = 1.0  # arrivals are not known better than that
SIGNED_BASE_MS = 100.0  # the floor transfer offset may be 0, and so would be any share of it
BLOCKS = 30  # of the measured window, for rates: neighbouring seconds resemble each other

# What two runs may differ in and still be asked for the same. Where the target is, is told as a note.
IGNORED = (
    *("name", "seed", "runs_dir", "spool_dir", "output_dir", "output", "cache_dir", "keep_audio", "keep_chunks"),
    *("targets", "text_prompt_file"),  # whose text is compared
)
WHERE = ("agent_host", "port", "metrics", "servers")
# Invalid figures that are the target's own doing are what is compared; all other reasons of that weight are a bar.
OF_THE_TARGET = ("nothing_answered", "failures")


@dataclass(frozen=True, slots=True)
class Figure:
    """What is compared. sample: whose values; q: which quantile, None for a mean, and for a share of true flags."""

    of: Kind
    name: str
    sample: str
    q: float | None
    unit: Unit
    more_is_better: bool = False

    @property
    def title(self) -> str:
        """Such as `TTFC p95`."""
        return self.name if self.q is None else f"{self.name} p{self.q * 100:g}"


_QUANTILES = (0.50, 0.95, 0.99)
_OFFSET = "floor_transfer_offset_s"
FIGURES: tuple[Figure, ...] = (
    *(Figure("requests", "TTFC", "ttfc_s", q, "ms") for q in _QUANTILES),
    *(Figure("requests", "TTFA", "ttfa_s", q, "ms") for q in _QUANTILES),
    *(Figure("requests", "E2E", "e2e_s", q, "ms") for q in _QUANTILES),
    Figure("requests", "RTF", "rtf", 0.50, "rtf"),
    Figure("requests", "success", "success", None, "%", more_is_better=True),
    Figure("requests", "answers a second", "answers", None, "/s", more_is_better=True),
    *(Figure("conversations", "floor transfer offset", _OFFSET, q, "ms") for q in _QUANTILES),
    *(Figure("conversations", "TTFC", "ttfc_s", q, "ms") for q in _QUANTILES),
    *(Figure("conversations", "TTFA", "ttfa_s", q, "ms") for q in _QUANTILES),
    Figure("conversations", "overlaps", "overlaps", None, "%"),
    Figure("conversations", "answers that stall", "stalls", None, "%"),
    Figure("conversations", "success", "success", None, "%", more_is_better=True),
    Figure("conversations", "barge-ins yielded to", "yielded", None, "%", more_is_better=True),
    *(Figure("full duplex", "floor transfer offset", _OFFSET, q, "ms") for q in _QUANTILES),
    *(Figure("full duplex", "TTFT", "ttft_s", q, "ms") for q in _QUANTILES),
    *(Figure("full duplex", "ITL", "itl_s", q, "ms") for q in _QUANTILES),
    *(Figure("full duplex", "session set-up", "setup_s", q, "ms") for q in _QUANTILES),
    Figure("full duplex", "overlaps", "overlaps", None, "%"),
    Figure("full duplex", "answers that stall", "stalls", None, "%"),
    Figure("full duplex", "success", "success", None, "%", more_is_better=True),
    Figure("full duplex", "barge-ins yielded to", "yielded", None, "%", more_is_better=True),
)


@dataclass(frozen=True, slots=True)
class Judged:
    """A figure of both runs, in its unit. margin: what a change must exceed; p: adjusted by Holm's method."""

    figure: Figure
    difference: Difference
    margin: float | None
    p: float | None
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs, compared. bars: why they cannot be; notes: what to know when one reads the figures.

    only_different: nothing but that they were asked for different things bars them. remark: what every output of such
    runs says (checks.target.remark), of either of them.
    """

    before: str
    after: str
    margin: float
    share_margin: float
    confidence: float
    bars: tuple[str, ...]
    notes: tuple[str, ...]
    figures: tuple[Judged, ...]
    only_different: bool = False
    remark: str = ""

    def of(self, *verdicts: Verdict) -> list[Judged]:
        """The figures with one of these verdicts."""
        return [judged for judged in self.figures if judged.verdict in verdicts]

    @property
    def exit_status(self) -> int:
        """0 no regression, 1 a regression, 2 nothing that could be compared.

        Shares alone are no comparison where there are latencies: a gate that sees nothing must not be green.
        """
        if self.bars:
            return 2
        if self.of("worse"):
            return 1
        return 0 if any(j.figure.q is not None and j.verdict != "not comparable" for j in self.figures) else 2


def compare(
    before: Path,
    after: Path,
    *,
    margin: float = MARGIN,
    share_margin: float = SHARE_MARGIN,
    confidence: float = 0.95,
    allow_different: bool = False,
) -> Comparison:
    """Compare the run at `after` with the one at `before`. Raises ForeignRun, OSError (see open_run)."""
    old, new = _read(before), _read(after)
    bars, notes = _differing(old, new)
    if allow_different:
        notes, bars = [*bars, *notes], []
    only_different = bool(bars) and not (old.invalid or new.invalid)
    for name, side in zip(("BEFORE", "AFTER"), (old, new), strict=True):
        bars += [f"{name} is not to be believed: {reason.code}: {reason.line}" for reason in side.invalid]
        notes += [f"{name}: {line}" for line in side.notes]
    figures: tuple[Judged, ...] = ()
    if not bars:
        told = [figure for figure in FIGURES if (figure.of, figure.sample) in {*old.samples, *new.samples}]
        margins = {"margin": margin, "share_margin": share_margin, "confidence": confidence}
        figures = judge(old.samples, new.samples, told, **margins)
    return Comparison(
        before=old.name,
        after=new.name,
        margin=margin,
        share_margin=share_margin,
        confidence=confidence,
        bars=tuple(bars),
        notes=tuple(notes),
        figures=figures,
        only_different=only_different,
        remark=old.remark or new.remark,
    )


# ------------------------------------------------------------------------------------------------------------ one run


@dataclass(frozen=True, slots=True)
class Sample:
    """What a figure is made of: values (n,) in the figure's unit (flags: 0 or 1), and whose session each is."""

    values: NDArray[np.float64]
    sessions: NDArray[np.int64]
    absent: str = ""  # why there can be none


Samples = dict[tuple[Kind, str], Sample]


@dataclass(frozen=True, slots=True)
class _Side:
    """What is kept of a run once its rows are let go."""

    name: str
    manifest: dict[str, Any]
    manifest_fault: str
    measured: dict[Kind, tuple[str, ...]]  # the kinds it measured, and their protocols with their dialects
    samples: Samples
    invalid: list[Reason]
    notes: list[str]
    remark: str


def _read(path: Path) -> _Side:
    run = open_run(path)
    counted = count(run.turns)
    found = reasons(run, counted)
    samples: Samples = {}
    measured: dict[Kind, tuple[str, ...]] = {}
    invalid = [reason for reason in found if reason.severity == "invalid" and reason.code not in OF_THE_TARGET]
    notes = [f"{reason.code}: {reason.line}" for reason in found if reason.severity != "note" and reason not in invalid]
    for kind, of_kind in KINDS.items():
        part = of_kind(counted)
        if part.measured.empty:
            continue
        pairs = part.measured[["protocol", "dialect"]].drop_duplicates()
        measured[kind] = tuple(sorted(f"{row.protocol} {row.dialect}" for row in pairs.itertuples()))
        made, left_out = _samples(kind, part, _is_open_loop(run))
        if kind == "full duplex":
            setups = duplex_rows.asked_for(run)
            made[kind, "setup_s"] = _of_sessions(setups[setups["setup_s"].notna()])
            if waiting := len(duplex_rows.still_waiting_s(setups)):
                notes.append(f"{waiting:,} sessions were still waiting for their handshake at its end: in no set-up")
            if len(modes := duplex_rows.modes_of(part)) > 1:
                notes.append(f"its modes are compared together ({', '.join(modes)}): runs of one mode say more")
        samples |= made
        notes += left_out
    return _Side(
        name=run.id,
        manifest=run.manifest,
        manifest_fault=run.manifest_fault,
        measured=measured,
        samples=samples,
        invalid=invalid,
        notes=notes,
        remark=target.remark(run),
    )


def _is_open_loop(run: Run) -> bool:
    scenario: dict[str, Any] = run.manifest.get("scenario") or {}
    return bool(scenario.get("arrivals", "closed") != "closed")


def _samples(kind: Kind, counted: Counted, open_loop: bool) -> tuple[Samples, list[str]]:
    """The samples of a run's turns of a kind, and what was left out of them."""
    answered = counted.answered
    handled = counted.measured[counted.measured["outcome"] != CENSORED]
    made: Samples = {(kind, "success"): _flags(handled, handled.index.isin(answered.index))}
    left_out = []
    for figure in FIGURES:
        key = (kind, figure.sample)
        if figure.of != kind or figure.q is None or key in made or figure.sample == "setup_s":
            continue
        rows = answered
        if kind == "full duplex" and figure.sample == _OFFSET:  # what follows a barge-in is another figure
            rows = duplex_rows.asked(answered)
        values = rows[figure.sample].to_numpy(dtype=np.float64)
        # From the user's last word an early answer's latency is negative; of a request's none is.
        usable = np.isfinite(values) & ((values >= 0) | (kind != "requests"))
        if unusable := len(values) - int(usable.sum()):
            of = f"{unusable:,} of {len(values):,} answers ({kind})"
            left_out.append(f"{of} left out of {figure.name}: missing, infinite or negative")
        scale = 1000.0 if figure.unit == "ms" else 1.0
        made[key] = Sample(values[usable] * scale, rows["cluster"].to_numpy(dtype=np.int64)[usable])
    if kind == "requests":
        made[kind, "answers"] = _answers(counted, open_loop)
        return made, left_out
    offset_s = answered[_OFFSET]
    heard = answered[np.isfinite(offset_s.to_numpy(dtype=np.float64))]
    made[kind, "overlaps"] = _flags(heard, heard[_OFFSET] < 0)
    played = answered[answered["min_prebuffer_s"].notna()]
    made[kind, "stalls"] = _flags(played, played["stall_count_0ms"] > 0)
    tried = handled[handled["barge_in"]]
    if len(tried):
        made[kind, "yielded"] = _flags(tried, tried["yielded"])
    return made, left_out


def _of_sessions(sessions: pd.DataFrame) -> Sample:
    return Sample(sessions["setup_s"].to_numpy(dtype=np.float64) * 1000, sessions["cluster"].to_numpy(dtype=np.int64))


def _flags(rows: pd.DataFrame, flags: Any) -> Sample:
    return Sample(np.asarray(flags, dtype=np.float64), rows["cluster"].to_numpy(dtype=np.int64))


def _answers(counted: Counted, open_loop: bool) -> Sample:
    """Answers a second, by when the turns were due, in each of BLOCKS parts of the window: they stand for sessions."""
    nothing = np.zeros(0), np.zeros(0, dtype=np.int64)
    if not open_loop:
        return Sample(*nothing, absent="a closed loop: follows from latency")
    due = counted.measured["intended_wall_at"].to_numpy(dtype=np.float64)
    due = due[np.isfinite(due)]
    begins, ends = (float(due.min()), float(due.max())) if due.size else (0.0, 0.0)
    if ends - begins < BLOCKS:
        return Sample(*nothing, absent=f"{ends - begins:.0f} s of open loop < {BLOCKS}")
    answered, _ = np.histogram(counted.answered["intended_wall_at"].dropna(), bins=BLOCKS, range=(begins, ends))
    return Sample(answered / ((ends - begins) / BLOCKS), np.arange(BLOCKS))


# ----------------------------------------------------------------------------------------------- may they be compared?


def _differing(before: _Side, after: _Side) -> tuple[list[str], list[str]]:
    """Why two runs cannot be compared, and what else they differ in."""
    bars, notes = [], []
    for name, side in (("BEFORE", before), ("AFTER", after)):
        if not isinstance(side.manifest.get("scenario"), dict):
            bars.append(f"what {name} was asked is unknown: {side.manifest_fault or 'run.json has no scenario'}")
        if len(side.manifest.get("levels") or ()) > 1:
            bars.append(
                f"{name} has several load levels (analysis.capacity tells them apart): compare runs of one load"
            )
        if not side.measured:
            bars.append(f"{name} measured no turn")
    told, now = (side.manifest.get("scenario") or {} for side in (before, after))
    for key in sorted({*told, *now} - {*IGNORED}):
        if told and now and (key in told) != (key in now):
            notes.append(f"scenario: only {'BEFORE' if key in told else 'AFTER'} knows {key}")
        elif told.get(key) != now.get(key) and key in told and key in now:
            (notes if key in WHERE else bars).append(f"scenario: {key}: {_shown(told[key])} -> {_shown(now[key])}")
    for kind in KINDS:
        if before.measured and after.measured and before.measured.get(kind) != after.measured.get(kind):
            spoken = (", ".join(side.measured.get(kind, ())) or "none" for side in (before, after))
            bars.append(f"{kind}: {' -> '.join(spoken)}")
    for key, what in (("users", "users"), ("host", "target")):
        if before.manifest.get(key) != after.manifest.get(key):
            changed = f"{what}: {_shown(before.manifest.get(key))} -> {_shown(after.manifest.get(key))}"
            (bars if key == "users" else notes).append(changed)
    machines = ({**(side.manifest.get("machine") or {}), "boot_id": None} for side in (before, after))
    notes += _changed("machine", *machines)
    notes += _changed("version", *(side.manifest.get("versions") or {} for side in (before, after)))
    return bars, notes


def _changed(what: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What of the generator's own differs, a line each."""
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [f"{what}: {key}: {_shown(before.get(key))} -> {_shown(after.get(key))}" for key in keys]


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return "none" if value is None else str(value)


# ------------------------------------------------------------------------------------------------------------ verdicts


def judge(
    before: Samples,
    after: Samples,
    figures: Sequence[Figure] = FIGURES,
    *,
    margin: float = MARGIN,
    share_margin: float = SHARE_MARGIN,
    confidence: float = 0.95,
) -> tuple[Judged, ...]:
    """Every figure's verdict. margin: share of BEFORE's figure; share_margin: of the whole, for figures in percent."""
    empty = Sample(np.zeros(0), np.zeros(0, dtype=np.int64))
    pairs = [
        (before.get((figure.of, figure.sample), empty), after.get((figure.of, figure.sample), empty))
        for figure in figures
    ]
    differences = [_difference(figure, *pair, confidence) for figure, pair in zip(figures, pairs, strict=True)]
    tested = [place for place, found in enumerate(differences) if found.low is not None]
    p_values = {place: _p(figures[place], *pairs[place]) for place in tested}
    told = [place for place, p in p_values.items() if p is not None]
    adjusted = dict(zip(told, holm([p for p in p_values.values() if p is not None]), strict=True))
    judged = []
    for place, (figure, found) in enumerate(zip(figures, differences, strict=True)):
        reach, p = _margin(figure, found.before, margin, share_margin), adjusted.get(place)
        lost = _lost(figure, *pairs[place], after)
        if lost:
            judged.append(Judged(figure, found, reach, p, "worse", lost))
            continue
        if reach is not None and p is not None:
            call = verdict(found, reach, p, 1 - confidence, more_is_better=figure.more_is_better)
            judged.append(Judged(figure, found, reach, p, call, _why(found, reach, p) if call == "no evidence" else ""))
            continue
        why = pairs[place][0].absent or pairs[place][1].absent or found.reason
        judged.append(Judged(figure, found, reach, p, "not comparable", why or "fewer than two sessions in a run"))
    return tuple(judged)


def verdict(
    found: Difference, margin: float, p: float, alpha: float = 0.05, *, more_is_better: bool = False
) -> Verdict:
    """Worse: the whole interval lies beyond the margin, on the bad side, and the test, too, finds a difference.

    Better: the same on the good side. Same: the whole interval lies within the margin. An open limit lies nowhere.
    """
    if found.low is None or found.high is None:
        return "not comparable"
    low = -math.inf if found.open_low else found.low
    high = math.inf if found.open_high else found.high
    if more_is_better:
        low, high = -high, -low
    if low > margin and p < alpha:
        return "worse"
    if high < -margin and p < alpha:
        return "better"
    return "same" if -margin <= low and high <= margin else "no evidence"


def _why(found: Difference, margin: float, p: float) -> str:
    """What speaks against a verdict, where the interval says that there is a difference; "" where it does not."""
    low, high = found.low or 0.0, found.high or 0.0
    if low <= 0 <= high:
        return ""
    beyond = low > margin or high < -margin
    return f"beyond the margin, but p = {p:.2g}" if beyond else "changed, maybe within the margin"


def _difference(figure: Figure, before: Sample, after: Sample, confidence: float) -> Difference:
    call: Callable[..., Difference] = share_difference if figure.unit == "%" else mean_difference
    if figure.q is not None:
        call = partial(quantile_difference, q=figure.q)
    return call(before.values, before.sessions, after.values, after.sessions, confidence=confidence)


def _p(figure: Figure, before: Sample, after: Sample) -> float | None:
    return permutation_p(before.values, before.sessions, after.values, after.sessions, figure.q)


def _margin(figure: Figure, before: float | None, margin: float, share_margin: float) -> float | None:
    """What a change must exceed, in the figure's unit; None without a figure to take a share of."""
    if figure.unit == "%":
        return share_margin
    if before is None:
        return None
    if figure.unit != "ms":
        return margin * abs(before)
    signed = figure.of == "conversations" or figure.sample == _OFFSET
    base = max(abs(before), SIGNED_BASE_MS) if signed else abs(before)
    return max(margin * base, LEAST_MARGIN_MS)


def _lost(figure: Figure, before: Sample, after: Sample, samples: Samples) -> str:
    """What AFTER lost altogether: every success, or a latency that no answer of it tells; "" if it did not."""
    enough = turns_needed(0.5)
    if figure.sample == "success":
        gone = len(after.values) >= enough and not after.values.any() and bool(before.values.any())
        return "no turn of AFTER succeeded" if gone else ""
    if figure.q is None or len(before.values) < turns_needed(figure.q) or len(after.values):
        return ""
    succeeded = samples.get((figure.of, "success"))
    answers = 0 if succeeded is None else int(succeeded.values.sum())
    return f"none of AFTER's {answers:,} answers tells it" if answers >= enough else ""

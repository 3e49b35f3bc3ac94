"""Which turns violate a target? Turns in, with what a verdict needs to know of each; no verdict. Pure.

A failed turn is an answer that never came: it is worse than any limit. So "p95 < 400 ms" says that fewer than 5 % of
the turns failed or took 400 ms or more, and a server that drops its slow turns gains nothing by it.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.counting import CONVERSATIONS, FULL_DUPLEX
from analysis.targets import Limit, Spoken, Target
from workers.samples.schema import ANSWERS, CENSORED

# Failures of a target that is not there. A target that is there and overloaded fails otherwise.
AWAY = ("connection_refused", "dns_failure", "unreachable")
DEAF = "ear_lost"  # our own hearing process died


def handled(turns: pd.DataFrame) -> pd.DataFrame:
    """The measured turns, with what a verdict needs to know of each.

    ok: answered, rightly. cut: we ended it: neither success nor failure. away: nobody was there to answer.
    spoken: of a conversation. duplex: of one with a full-duplex model. waited_s: from where its latency counts to its
    end; NaN where we had ceased to hear, and the answer may have come.
    """
    kept = turns[turns["phase"] == "measured"]
    spoken = kept["protocol"].isin(CONVERSATIONS)
    begins = kept["intended_at"].astype(float)
    if "user_offset_at" in kept:
        begins = begins.where(~spoken, kept["user_offset_at"].astype(float))
    waited_s = kept["ended_at"].astype(float) - begins
    return kept.assign(
        ok=kept["outcome"].isin(ANSWERS) & kept["error_kind"].isna(),
        cut=kept["outcome"] == CENSORED,
        away=kept["error_kind"].isin(AWAY),
        spoken=spoken,
        duplex=kept["protocol"] == FULL_DUPLEX,
        waited_s=waited_s.where(kept["error_kind"] != DEAF),
    )


def apart(target: Target, turns: pd.DataFrame) -> list[tuple[Spoken, pd.DataFrame]]:
    """The turns of each kind that a target speaks of, by themselves; all of them where there is but one kind."""
    kinds: dict[Spoken, pd.Series] = {
        "requests": ~turns["spoken"],
        "conversations": turns["spoken"] & ~turns["duplex"],
        "full duplex": turns["duplex"],
    }
    spoken_of: dict[Spoken, tuple[Spoken, ...]] = {
        "both": ("requests", "conversations", "full duplex"),
        "conversations": ("conversations", "full duplex"),
    }
    of = target.metric.of
    there: list[Spoken] = [kind for kind in spoken_of.get(of, (of,)) if kinds[kind].any()]
    if of == "both" and len(there) < 2:
        return [("both", turns)]
    return [(kind, turns[kinds[kind]]) for kind in there] or [(of, turns.iloc[:0])]


# Figures of an answer's beginning: a turn that was cut later has them all the same.
_OF_THE_BEGINNING = ("ttfc", "ttfa", "ttft", "floor_transfer_offset")


def applicable(target: Target, turns: pd.DataFrame) -> pd.DataFrame:
    """Of handled turns (of one kind: see `apart`) those that a target counts: failed ones, and those with the figure.

    A turn that we cut counts where it has the figure, or had waited beyond the limit without it; else it tells nothing.
    A negative duration of a request is no figure. An answer may begin before the user has ended. The floor transfer
    offset of a full-duplex model is that of turn-taking; what follows a barge-in is another figure.
    """
    metric = target.metric
    if metric.name == "floor_transfer_offset" and "barge_in" in turns:
        turns = turns[~(turns["duplex"] & turns["barge_in"].astype(bool))]
    if metric.column is None:
        return turns[~turns["cut"]]
    if metric.column not in turns:  # a figure of conversations, in a run without any
        return turns.iloc[:0]
    values = turns[metric.column].astype(float)
    told = values.notna() & np.isfinite(values) & ((values >= 0) | turns["spoken"])
    if metric.name == "time_to_silence":  # an agent that talks on has none, and that is its fault
        return turns[turns["barge_in"].astype(bool) & ~turns["cut"] & (told | ~turns["yielded"].astype(bool))]
    late = turns["cut"] & ~told & (turns["waited_s"] >= (math.inf if target.limit.high is None else target.limit.high))
    begun = told & (~turns["cut"] | (metric.name in _OF_THE_BEGINNING))
    return turns[begun | late | ~(turns["ok"] | turns["cut"])]


def values_of(target: Target, turns: pd.DataFrame) -> NDArray[np.float64]:
    """The figure of each applicable turn; infinite where it failed (minus infinite where more is better)."""
    worst = -math.inf if target.limit.high is None else math.inf
    if target.metric.column is None:
        return np.where(turns["ok"].to_numpy(bool), 1.0, 0.0)
    if target.metric.column not in turns:
        return np.full(len(turns), worst)
    values = turns[target.metric.column].to_numpy(dtype=np.float64, na_value=math.nan)
    told = (turns["ok"] | turns["cut"]).to_numpy(bool) & ~np.isnan(values)
    return np.where(told, values, worst)


def beyond(limit: Limit, values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which values lie outside a limit; a value that equals it does."""
    rounded = np.round(values, 9)
    bad = np.zeros(values.shape, dtype=bool)
    if limit.high is not None:
        bad |= rounded >= limit.high
    if limit.low is not None:
        bad |= rounded <= limit.low
    return bad


@dataclass(frozen=True, slots=True)
class Share:
    """A target as a test of a proportion: at most `allowed` of the turns may lie outside `limit`."""

    limit: Limit
    allowed: float


def shares_of(target: Target, limit: Limit) -> tuple[Share, ...]:
    """The proportions that a quantile or share target stands for; none where it is a mean, or of the whole run.

    A band's two ends are two of them: p50 within 170-270 ms allows half of the turns on either side.
    """
    if target.metric.name == "success":
        allowed = 1 - (limit.low or 0.0)
        return (Share(Limit(0.5, None), round(allowed, 12)),) if allowed else ()
    if (q := target.quantile) is None:
        return ()
    ends = []
    if limit.high is not None:
        ends.append(Share(Limit(None, limit.high), round(1 - q, 12)))
    if limit.low is not None:
        ends.append(Share(Limit(limit.low, None), round(q, 12)))
    return tuple(ends)


def quantile_with_failures(values: NDArray[np.float64], q: float) -> float:
    """numpy's linear percentile, infinite as soon as an infinite value has a part in it. `values` (n,), n >= 1."""
    ordered = np.sort(values)
    place = q * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    if math.isinf(low) or math.isinf(high):
        return float(high if place > math.floor(place) else low)
    return float(np.quantile(ordered, q))

"""Which component gave out first: whose part of a turn grew with the load, and what else says so. Pure but for a run.

A turn's time is split into the parts that the server's own rows tell (waterfall.py; requests: queue, synthesis, rest).
The part that takes most at rest is not what gives out: the one that grows is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from scipy import stats as scipy_stats

from analysis import server_join, turn_join, waterfall
from analysis.counting import Counted, agent_calls, requests
from analysis.runs import Run
from analysis.scraped import series, within

Figures = dict[str, Any]

FEWEST_TURNS = 10
MOST_OF_IT = 0.5  # a part is named if this share of the growth is its own
SURE = 3.0  # standard errors
GREW_S = 0.005  # less growth than this is none
QUEUE_GREW = 0.5
GPU_FULL = 95.0  # %
CORRELATED_TURNS = 36

QUEUE, SYNTHESIS, REST = "the wait for a stream", "TTS", "network and client"
_NO_ROWS = (
    "cannot tell: there are no server rows of these turns (--server-log FILE, RTVI metrics in band, or --metrics URL)"
)


@dataclass(frozen=True, slots=True)
class Window:
    """A time in which a level was measured, unix seconds."""

    users: int
    begins_at: float
    ends_at: float


def find(
    run: Run, counted: Counted, windows: Sequence[Window], scraped: pd.DataFrame, failed_at: int | None
) -> Figures:
    """What gave out between the smallest level and the one that failed first (or the largest, if none did).

    counted: turns with a `level`. Returns `part` (None: cannot tell), `sentence`, `parts` (each with its mean at both
    levels and its growth, ms), `evidence` (sentences).
    """
    parts = turn_parts(run, counted)
    shown = _by_level(scraped, "queue_depth", windows)
    sizes = parts["level"].value_counts()
    told = sorted(int(users) for users in sizes[sizes >= FEWEST_TURNS].index)
    if len({window.users for window in windows}) < 2:
        return {"part": None, "sentence": "cannot tell: there is only one level", "parts": [], "evidence": []}
    if len(told) < 2:
        return _by_queues(shown, windows, failed_at)
    low, high = told[0], failed_at if failed_at in told else told[-1]
    if low == high:
        return {"part": None, "sentence": f"cannot tell: {low} users, the smallest level, is the one that failed",
                "parts": [], "evidence": []}  # fmt: skip
    grown = _grown(parts, low, high)
    whole_s = sum(part["growth_ms"] for part in grown) / 1000
    evidence = [
        *_queue_evidence(shown, low, high),
        *_gpu_evidence(scraped, windows, high),
        *_correlations(parts, scraped),
    ]
    leader = grown[0]
    base = {"parts": grown, "evidence": evidence, "from_users": low, "to_users": high}
    if whole_s < GREW_S:
        sentence = f"nothing gave out: a turn took {whole_s * 1000:+.1f} ms more at {high} users than at {low}"
        return base | {"part": None, "sentence": sentence}
    share = leader["growth_ms"] / 1000 / whole_s
    if share < MOST_OF_IT or not leader["sure"]:
        two = " and ".join(f"{part['part']} {part['growth_ms']:+.0f} ms" for part in grown[:2])
        sentence = f"no single component: from {low} to {high} users a turn grew by {whole_s * 1000:.0f} ms ({two})"
        return base | {"part": None, "sentence": sentence}
    sentence = (
        f"{leader['part']} gave out first: from {low} to {high} users its part of a turn grew from "
        f"{leader['from_ms']:.0f} to {leader['to_ms']:.0f} ms, {min(share, 1):.0%} of all that the turn grew by"
    )
    return base | {"part": leader["part"], "sentence": sentence}


def turn_parts(run: Run, counted: Counted) -> pd.DataFrame:
    """A row an answered turn of a level that the server tells of: `level`, `at`, and the seconds of each part."""
    spoken, asked = agent_calls(counted), requests(counted)
    found = []
    if len(spoken.answered) and (heard := turn_join.join_turns(run)) is not None:
        stages = spoken.answered.join(heard.stages, how="inner")
        by_stage = waterfall.by_instants(stages) if heard.one_clock else waterfall.by_durations(stages)
        owners: dict[str, list[str]] = {}
        for stage in map(str, by_stage):
            owners.setdefault(waterfall.OWNERS[stage], []).append(stage)
        parts = {owner: by_stage[its].sum(axis=1) for owner, its in owners.items()}
        found.append(pd.DataFrame(parts).assign(level=stages["level"], at=stages["intended_wall_at"]))
    if len(asked.answered) and (joined := server_join.join(run, asked)) is not None:
        rows = joined.rows
        found.append(
            pd.DataFrame(
                {
                    QUEUE: rows["server_queue_wait_s"],
                    SYNTHESIS: rows["server_ttfb_s"] - rows["server_queue_wait_s"],
                    REST: rows["rest_s"],
                    "level": rows["level"],
                    "at": rows["intended_wall_at"],
                }
            ).dropna()
        )
    empty = pd.DataFrame({"level": pd.Series(dtype=float), "at": pd.Series(dtype=float)})
    whole = pd.concat(found, ignore_index=True) if found else empty
    return whole[whole["level"].notna()]


def _grown(parts: pd.DataFrame, low: int, high: int) -> list[Figures]:
    """Each part's mean at both levels (ms), the largest growth first; sure: it is no chance."""
    names = [name for name in parts.columns if name not in ("level", "at")]
    before, after = parts[parts["level"] == low][names].fillna(0.0), parts[parts["level"] == high][names].fillna(0.0)
    found = []
    for name in names:
        growth_s = float(after[name].mean() - before[name].mean())
        error_s = math.sqrt(float(before[name].var()) / len(before) + float(after[name].var()) / len(after))
        found.append(
            {
                "part": name,
                "from_ms": float(before[name].mean()) * 1000,
                "to_ms": float(after[name].mean()) * 1000,
                "growth_ms": growth_s * 1000,
                "sure": growth_s > SURE * error_s,
            }
        )
    return sorted(found, key=lambda part: -part["growth_ms"])


# ------------------------------------------------------------------------------------------------- what was scraped


def _by_level(scraped: pd.DataFrame, role: str, windows: Sequence[Window]) -> pd.DataFrame:
    """Mean of each series of a role, by name (rows) and level (columns)."""
    spans: dict[int, list[tuple[float, float]]] = {}
    for window in windows:
        spans.setdefault(window.users, []).append((window.begins_at, window.ends_at))
    told = [one for one in within(scraped, spans) if one["role"] == role]
    means = {one["name"]: {users: span["mean"] for users, span in one["spans"].items()} for one in told}
    return pd.DataFrame.from_dict(means, orient="index")


def _queue_evidence(queues: pd.DataFrame, low: int, high: int) -> list[str]:
    if not {low, high} <= set(queues.columns):
        return []
    grown = (queues[high] - queues[low]).dropna().sort_values(ascending=False)
    return [
        f"{_depth(queues, name, high):.1f} requests waited for {name} on average at {high} users, "
        f"{_depth(queues, name, low):.1f} at {low}"
        for name in map(str, grown[grown > QUEUE_GREW].index[:2])
    ]


def _depth(queues: pd.DataFrame, name: str, users: int) -> float:
    return float(queues[users].to_dict()[name])


def _gpu_evidence(scraped: pd.DataFrame, windows: Sequence[Window], high: int) -> list[str]:
    busy = _by_level(scraped, "gpu_busy_share", windows)
    if high not in busy:
        return []
    full = busy[high][busy[high] > GPU_FULL].to_dict()
    return [f"{name!s} was busy {share:.0f} % of the time at {high} users" for name, share in full.items()]


def _correlations(parts: pd.DataFrame, scraped: pd.DataFrame) -> list[str]:
    """How the time of a turn goes with the length of each queue when it began, over all levels."""
    names = [name for name in parts.columns if name not in ("level", "at")]
    turns = pd.DataFrame({"at": parts["at"].astype(float), "took_s": parts[names].sum(axis=1)}).sort_values("at")
    found = []
    for name, values in ((str(name), values) for name, values in series(scraped, "queue_depth").groupby("name")):
        beside = pd.merge_asof(turns, values[["at", "value"]].sort_values("at"), on="at", tolerance=2).dropna()
        if len(beside) < CORRELATED_TURNS or beside["value"].nunique() < 2 or beside["took_s"].nunique() < 2:
            continue
        rho = float(scipy_stats.spearmanr(beside["took_s"], beside["value"]).statistic)
        if rho >= 0.3:
            found.append((rho, f"a turn's time goes with the queue for {name}: rank correlation {rho:+.2f}"))
    return [line for _, line in sorted(found, reverse=True)[:2]]


def _by_queues(queues: pd.DataFrame, windows: Sequence[Window], failed_at: int | None) -> Figures:
    """Without rows of turns: the queue that grew, if the target's own metrics show one."""
    nothing: Figures = {"part": None, "sentence": _NO_ROWS, "parts": [], "evidence": []}
    users = sorted({window.users for window in windows})
    if len(users) < 2 or queues.empty:
        return nothing
    low, high = users[0], failed_at if failed_at in users else users[-1]
    if low == high or not {low, high} <= set(queues.columns):
        return nothing
    grown = (queues[high] - queues[low]).dropna().sort_values(ascending=False)
    if grown.empty or grown.iloc[0] <= QUEUE_GREW:
        sentence = "cannot tell: there are no server rows of these turns, and no scraped queue grew"
        return nothing | {"sentence": sentence}
    name = str(grown.index[0])
    sentence = (
        f"{name} gave out first, by its queue alone (there are no server rows of these turns): "
        f"{_depth(queues, name, low):.1f} requests waited on average at {low} users, "
        f"{_depth(queues, name, high):.1f} at {high}"
    )
    return {"part": name, "sentence": sentence, "parts": [], "evidence": _queue_evidence(queues, low, high)}


def refusals(failed: pd.DataFrame) -> str | None:
    """Why most turns of a level failed, if that is why it failed: the kind, its share, an example."""
    kinds = failed["error_kind"].astype(object).fillna("unknown").value_counts()
    if kinds.empty:
        return None
    kind, n = str(kinds.index[0]), int(kinds.iloc[0])
    example = failed.loc[failed["error_kind"] == kind, "error"].dropna()
    said = f' ("{example.iloc[0]}")' if len(example) else ""
    return f"{n:,} turns failed as {kind}{said}"

"""Which rows of a full-duplex run (protocol `personaplex`) a figure is made of. Pure; makes no figure.

A request is what S1 counts: one iteration where iterations are numbered, else one turn. docs/metrics.md has the rules.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.counting import FULL_DUPLEX, Counted, wall_s, where
from analysis.runs import Run
from analysis.targets import Limit

PARTS = ("text", "audio", "turn_taking", "interruption", "throughput")  # of mode full, in its order
BAND_S = (0.170, 0.270)  # of turn-taking latency; source: S1, PersonaPlex Benchmark Suite
GROWTH_S_PER_MIN = 1.0  # of lag: more, and figures by arrival are of how long a session lasted
_LEAST_GROWN_S = 0.16
OURS = ("run_ended", "part_ended", "user_stopped", "ear_lost")  # what ended a session that we ended


def modes_of(counted: Counted) -> list[str]:
    """The modes of the measured turns, in the order in which a run has them; none where the run has no modes."""
    told = {str(mode) for mode in counted.measured["mode"].dropna().unique()}
    return [mode for mode in PARTS if mode in told] + sorted(told - set(PARTS))


def of_mode(counted: Counted, mode: str) -> Counted:
    """The turns of one part of a run."""
    return where(counted, lambda turns: turns["mode"] == mode)


def requests_of(counted: Counted) -> Counted:
    """The turns that stand for requests: of a numbered iteration its last one (the barge-in of an interruption).

    An interruption that ended with the run before the user broke in is cut, though its question was answered.
    """
    turns = counted.measured
    numbered = turns[turns["iteration"].notna()].sort_values(["intended_wall_at", "turn"], kind="stable")
    last = numbered[~numbered.duplicated(["mode", "iteration"], keep="last")].index
    kept = turns.index[turns["iteration"].isna()].union(last)
    found = where(counted, lambda rows: pd.Series(rows.index.isin(kept), index=rows.index, dtype=bool))
    answered = found.answered
    left = (answered["mode"] == "interruption") & answered["decoded"].astype(bool) & answered["agent_onset_at"].notna()
    left &= answered["agent_offset_at"].isna() & ~answered["barge_in"].astype(bool)
    if not left.any():
        return found
    return replace(found, answered=answered[~left], cut=pd.concat([found.cut, answered[left]]))


def sessions_of(run: Run, turns: pd.DataFrame) -> pd.DataFrame:
    """The sessions of these turns: rows of `sessions`, with the turns' `cluster`."""
    sessions = run.sessions[run.sessions["protocol"] == FULL_DUPLEX]
    known = turns[~turns.duplicated("cluster")]
    keys = zip(known["worker"], known["session"], strict=True)
    clusters = dict(zip(keys, known["cluster"], strict=True))
    mine = [clusters.get(key, -1) for key in zip(sessions["worker"], sessions["session"], strict=True)]
    found = sessions.assign(cluster=pd.Series(mine, index=sessions.index, dtype="int64"))
    return found[found["cluster"] >= 0]


def asked_for(run: Run, mode: str | None = None, host: str | None = None) -> pd.DataFrame:
    """Every session begun in the measured window, whether or not it came to a turn: what set-up is told of.

    Those with a turn alone would leave out the ones that waited longest. Rows of `sessions`, each its own `cluster`.
    """
    sessions = run.sessions[(run.sessions["protocol"] == FULL_DUPLEX) & _begun_measured(run)]
    for column, wanted in (("mode", mode), ("host", host)):
        if wanted is not None:
            sessions = sessions[sessions[column] == wanted]
    return sessions.assign(cluster=np.arange(len(sessions)))


def _begun_measured(run: Run) -> pd.Series:
    """Which sessions began neither in the warm-up nor between the stays of a run with load levels."""
    sessions, told = run.sessions, run.manifest
    ready_at = sessions["ready_at"].fillna(sessions["started_at"])
    began = (sessions["started_at"] - ready_at + sessions["ready_wall_at"]).astype(float)
    levels = told.get("levels")
    stays = [
        (begins, stay.get("measured_until_wall_at") or math.inf)
        for stay in (levels if isinstance(levels, list) else [])
        if isinstance(stay, dict) and isinstance(begins := stay.get("measured_wall_at"), float)
    ]
    if stays:
        inside = [began.between(begins, ends) for begins, ends in stays]
        return pd.Series(np.logical_or.reduce(inside), index=sessions.index)
    warming = run.turns[(run.turns["protocol"] == FULL_DUPLEX) & (run.turns["phase"] == "warm_up")]
    if warming.empty:
        return pd.Series(True, index=sessions.index)
    scenario, started = told.get("scenario"), told.get("started_wall_at")
    warm_up_s = scenario.get("warm_up_s") if isinstance(scenario, dict) else None
    begins = float(warming["intended_wall_at"].max())
    if isinstance(started, int | float) and isinstance(warm_up_s, int | float):
        begins = started + warm_up_s
    return began.ge(begins)


def still_waiting_s(sessions: pd.DataFrame) -> pd.Series:
    """How long those had waited that we ended before they had their handshake."""
    waiting = sessions[sessions["setup_s"].isna() & sessions["ended_by"].isin(OURS)]
    return (waiting["ended_at"] - waiting["started_at"]).astype(float)


def falling_behind(sessions: pd.DataFrame) -> pd.DataFrame:
    """The sessions whose lag grew by more than GROWTH_S_PER_MIN; of a short one, too, by more than chance (two frames).

    One that was no longer behind at its end had but paused. The worst comes last.
    """
    grown_s = sessions["lag_growth_s_per_min"] / 60 * sessions["sent_s"]
    growing = sessions[(sessions["lag_growth_s_per_min"] > GROWTH_S_PER_MIN) & (grown_s > _LEAST_GROWN_S)]
    growing = growing[growing["lag_series_s"].map(_last).fillna(np.inf).astype(float) > _LEAST_GROWN_S]
    return growing.sort_values("lag_growth_s_per_min", kind="stable")


def _last(series: Any) -> float:
    """The last of a row's floats; NaN where it has none."""
    return float(series[-1]) if series is not None and len(series) else math.nan


def setup_s(sessions: pd.DataFrame) -> pd.Series:
    """Connection, wait for the server's lock, prompts: of each session that came up."""
    return sessions["setup_s"].dropna().astype(float)


def ttft_from_handshake_s(sessions: pd.DataFrame) -> pd.Series:
    """The handshake to the session's first text piece, whoever spoke first."""
    return (sessions["first_token_at"] - sessions["ready_at"]).dropna().astype(float)


def by_arrival_s(turns: pd.DataFrame) -> pd.Series:
    """The transfer offset by stream position, and how far the answer's stream was behind when it came."""
    return turns["stream_transfer_offset_s"] + turns["lag_s"]


def tokens_a_second(counted: Counted) -> float | None:
    """TPS: text pieces of the answered turns, over the window's seconds; None without either."""
    wall = wall_s(counted)
    if not wall or counted.answered.empty:
        return None
    return float(counted.answered["tokens"].fillna(0).sum()) / wall


def requests_a_second(counted: Counted) -> float | None:
    """RPS: handled requests over the window's seconds; None without an answer (refusals are nobody's rate)."""
    wall, found = wall_s(counted), requests_of(counted)
    return found.handled / wall if wall and len(found.answered) else None


def asked(turns: pd.DataFrame) -> pd.DataFrame:
    """The turns in which the user let the agent end: smooth turn-taking."""
    return turns[~turns["barge_in"].astype(bool)]


def broken_in(turns: pd.DataFrame) -> pd.DataFrame:
    """The turns in which the user broke in on purpose."""
    return turns[turns["barge_in"].astype(bool)]


def band_shares(offsets_s: pd.Series) -> dict[str, float | int | bool | None]:
    """Where offsets lie: shares (percent) below, inside and above BAND_S, and whether the median lies inside.

    Null without offsets. Strict, as targets are: 170.0 ms is not inside.
    """
    low, high = BAND_S
    told = offsets_s.dropna().astype(float).round(9)
    if told.empty:
        nothing = dict.fromkeys(("median_ms", "inside_percent", "below_percent", "above_percent", "median_inside"))
        return {"n": 0, **nothing}
    below, above, median_s = float((told <= low).mean()), float((told >= high).mean()), float(told.median())
    return {
        "n": len(told),
        "median_ms": median_s * 1000,
        "inside_percent": float(((told > low) & (told < high)).mean()) * 100,
        "below_percent": below * 100,
        "above_percent": above * 100,
        "median_inside": Limit(low, high).holds(median_s),
    }

"""Which rows of a full-duplex run (protocol `personaplex`) a figure is made of. Pure; makes no figure.

A request is what S1 counts: one iteration where iterations are numbered, else one turn. docs/metrics.md has the rules.
"""

from dataclasses import replace

import pandas as pd

from analysis.counting import FULL_DUPLEX, Counted, wall_s, where
from analysis.runs import Run
from analysis.targets import Limit

PARTS = ("text", "audio", "turn_taking", "interruption", "throughput")  # of mode full, in its order
BAND_S = (0.170, 0.270)  # of turn-taking latency; source: S1, PersonaPlex Benchmark Suite
GROWTH_S_PER_MIN = 1.0  # of lag: more, and figures by arrival are of how long a session lasted
_LEAST_GROWN_S = 0.16


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


def falling_behind(sessions: pd.DataFrame) -> pd.DataFrame:
    """The sessions whose lag grew by more than GROWTH_S_PER_MIN; of a short one, too, by more than chance (two frames).

    The worst comes last.
    """
    grown_s = sessions["lag_growth_s_per_min"] / 60 * sessions["sent_s"]
    growing = sessions[(sessions["lag_growth_s_per_min"] > GROWTH_S_PER_MIN) & (grown_s > _LEAST_GROWN_S)]
    return growing.sort_values("lag_growth_s_per_min", kind="stable")


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

"""Can sessions with full-duplex models be believed? Servers that fall behind, ears that do, sessions nobody heard."""

from analysis import duplex_rows
from analysis.checks.generator import measured_seconds
from analysis.checks.reason import Reason, n_of, share_of
from analysis.counting import Counted, full_duplex
from analysis.runs import Run

BEHIND_S = 1.0


def lag_grows(run: Run, counted: Counted) -> Reason | None:
    """Sessions in which the server fell ever further behind: latency by arrival says how long they were."""
    turns = full_duplex(counted).measured
    if turns.empty:
        return None
    sessions = duplex_rows.sessions_of(run, turns)
    growing = duplex_rows.falling_behind(sessions)
    if growing.empty:
        return None
    worst = growing.iloc[-1]
    worst_s, where = worst["lag_growth_s_per_min"], f"{worst['session']} on {worst['host']}"
    return Reason(
        "warning",
        "lag_grows",
        f"the server fell behind in {len(growing):,} of {n_of(len(sessions), 'session')}, by more than "
        f"{duplex_rows.GROWTH_S_PER_MIN:g} s a minute (at worst {worst_s:.1f} s, {where}): latency as heard and by "
        "arrival grows with a session's length there, and latency by stream position does not show it; fewer sessions "
        "a server",
    )


def ear_behind(run: Run, counted: Counted) -> Reason | None:
    """A hearing process that decoded late: no instant is moved by it, but turns ended late."""
    seconds = measured_seconds(run, counted)
    told = seconds[seconds["ear_behind_s"].notna()]
    if told.empty:
        return None
    p99_s = told.groupby("worker", observed=True)["ear_behind_s"].quantile(0.99)
    behind = p99_s[p99_s > BEHIND_S].sort_values(ascending=False)
    if behind.empty:
        return None
    return Reason(
        "warning",
        "ear_behind",
        f"hearing fell behind at {n_of(len(behind), 'worker')} (p99 {behind.iloc[0]:.1f} s at {behind.index[0]}): ends "
        "of answers were found late, so users waited longer and interrupted later than they meant to; fewer sessions a "
        "machine, or a smaller --decode-share",
    )


def not_decoded(run: Run, counted: Counted) -> Reason | None:
    """Sessions whose audio nobody heard: in figures of text, of set-up and of lag only."""
    turns = full_duplex(counted).measured
    if turns.empty:
        return None
    sessions = duplex_rows.sessions_of(run, turns[turns["text_name"] != "connect"])
    unheard = int((~sessions["decoded"].astype(bool)).sum())
    if not unheard:
        return None
    return Reason(
        "note",
        "not_decoded",
        f"{unheard:,} of {n_of(len(sessions), 'session')} ({share_of(unheard / len(sessions))}) were not decoded "
        "(--decode-share): transfer offsets, interruptions and stalls are those of the others",
    )

"""What did we measure, and is there enough of it? Few turns, many failures, figures that still moved."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from analysis.checks.reason import Reason, n_of, share_of, some
from analysis.counting import Counted, agent_calls, full_duplex, requests, where
from analysis.runs import Run
from analysis.stats import SESSIONS_NEEDED, mser5, trend, turns_needed

SHORT_SHARE = 0.7
SHORTEST_WARM_UP = 20  # answers: fewer are no warm-up but a slow first connection
FEWEST_ALIKE = 5  # answers to one text in one voice from which a median is worth comparing with


def nothing_measured(run: Run, counted: Counted) -> Reason | None:
    """Every turn fell into the warm-up."""
    if len(counted.measured):
        return None
    warm_up_s = (run.manifest.get("scenario") or {}).get("warm_up_s")
    return Reason(
        "invalid",
        "all_warm_up",
        f"all {n_of(len(run.turns), 'turn')} began in the warm-up ({warm_up_s} s) and none is counted: run longer, or "
        "make warm_up_s shorter",
    )


def nothing_answered(run: Run, counted: Counted) -> Reason | None:
    """Turns were measured and not one succeeded."""
    if counted.measured.empty or len(counted.answered):
        return None
    kinds = counted.failed["error_kind"].value_counts()
    kinds = kinds[kinds > 0]
    leading = f"{n_of(len(counted.measured), 'turn')}, all cut"
    if len(kinds):
        example = counted.failed.loc[counted.failed["error_kind"] == kinds.index[0], "error"].dropna()
        leading = f"{kinds.iloc[0]:,} of {n_of(len(counted.measured), 'turn')} ended as {kinds.index[0]}"
        leading += f', e.g. "{example.iloc[0]}"' if len(example) else ""
    return Reason("invalid", "nothing_answered", f"no measured turn succeeded, so there is no latency: {leading}")


def too_few(run: Run, counted: Counted) -> Reason | None:
    """Too few sessions or turns for an interval, or for a p95."""
    if counted.answered.empty:
        return None
    sessions, turns = int(counted.answered["cluster"].nunique()), len(counted.answered)
    wants = []
    if sessions < SESSIONS_NEEDED:
        wants.append(f"{n_of(sessions, 'session')} (an interval needs {SESSIONS_NEEDED}: more users)")
    if turns < turns_needed(0.95):
        wants.append(f"{n_of(turns, 'success', 'successes')} (a p95 needs {turns_needed(0.95)}: run longer)")
    if not wants:
        return None
    return Reason("warning", "too_few", "too little to go by: " + " and ".join(wants))


def cut_turns(run: Run, counted: Counted) -> Reason | None:
    """Turns we ended: the slow ones are more often among them."""
    if counted.cut.empty:
        return None
    share = len(counted.cut) / len(counted.measured)
    return Reason(
        "warning" if share > 0.05 else "note",
        "cut_turns",
        f"{n_of(len(counted.cut), 'turn')} ({share_of(share)}) cut before the answer was over; they count neither as "
        "success nor as failure, and slow turns are cut more often than quick ones",
    )


def moving(run: Run, counted: Counted) -> Reason | None:
    """Latency that still moved: neither its quantiles nor their intervals mean much."""
    if counted.measured["level"].nunique() > 1:
        return None  # the load changed on purpose
    return next((found for kind in _kinds(counted) if (found := _moving(*kind))), None)


def _kinds(counted: Counted) -> Iterator[tuple[str, str, Counted]]:
    """What may move, of each kind of turns: of full-duplex ones where a run has but one mode, and without barge-ins."""
    yield "TTFC", "ttfc_s", requests(counted)
    yield _OFFSET, "floor_transfer_offset_s", agent_calls(counted)
    duplex = full_duplex(counted)
    if len(duplex.measured) and duplex.measured["mode"].nunique() < 2:
        yield _OFFSET, "floor_transfer_offset_s", where(duplex, lambda turns: ~turns["barge_in"].astype(bool))


def _relative(title: str, column: str, answered: pd.DataFrame) -> pd.Series:
    """A latency relative to its text's own median: which text came when is chance."""
    usual_s = answered.groupby("text_name", observed=True)[column].transform("median")
    if title == _OFFSET:  # signed, and near 0 where the agent is quick: differences, on a level no ratio explodes at
        return 1 + (answered[column] - usual_s) / max(float(answered[column].median()), 0.1)
    return answered[column] / usual_s


def unsettled(run: Run, counted: Counted) -> Reason | None:
    """A beginning that differs from the rest: a warm-up that was too short. MSER-5 says where it ends."""
    if counted.measured["level"].nunique() > 1:
        return None
    return next((found for kind in _kinds(counted) if (found := _unsettled(*kind))), None)


def _unsettled(title: str, column: str, counted: Counted) -> Reason | None:
    if counted.answered.empty:
        return None
    answered = counted.answered[counted.answered[column].notna()].sort_values("intended_wall_at", kind="stable")
    relative = _relative(title, column, answered).to_numpy(dtype=float)
    relative = relative[np.isfinite(relative)]
    cut = mser5(relative)
    if not cut or cut < SHORTEST_WARM_UP or abs(np.median(relative[:cut]) / np.median(relative[cut:]) - 1) < 0.10:
        return None
    starts = answered["intended_wall_at"].to_numpy()
    return Reason(
        "note",
        "warm_up",
        f"{title} of the first {n_of(cut, 'answer')} ({starts[cut] - starts[0]:.0f} s) differs from the rest (MSER-5): "
        "a warm-up of that length would leave them out",
    )


def several_levels(run: Run, counted: Counted) -> Reason | None:
    """Figures over all of a run's load levels are of no load at all."""
    levels = sorted(int(users) for users in counted.measured["level"].dropna().unique())
    if len(levels) < 2:
        return None
    return Reason(
        "warning",
        "several_levels",
        f"turns of {len(levels)} load levels ({some(levels, 8)} users) are counted together: "
        "`python -m analysis.capacity RUN` tells them apart",
    )


_OFFSET = "the floor transfer offset"


def _moving(title: str, column: str, counted: Counted) -> Reason | None:
    if counted.answered.empty:
        return None
    answered = counted.answered[counted.answered[column].notna()]
    if answered.empty:
        return None
    whole_s = float(answered[column].median())
    relative = _relative(title, column, answered)
    if title == _OFFSET:
        whole_s = max(whole_s, 0.1)
    found = trend(answered["intended_wall_at"].to_numpy(), relative.to_numpy())
    if found is None or found.p > 0.001 or abs(found.rho) < 0.1:
        return None
    if abs(found.ratio - 1) < 0.10 or abs(found.ratio - 1) * whole_s < 0.002:
        return None
    way = "rose" if found.ratio > 1 else "fell"
    advice = "the target does not keep up" if found.ratio > 1 else "the warm-up was too short"
    return Reason(
        "warning",
        "trend",
        f"{title} {way} during the run: the last third's median is {found.ratio:.2f} times the first third's (rank "
        f"correlation with time {found.rho:+.2f}); {advice}, or the load still changed",
    )


def failures(run: Run, counted: Counted) -> Reason | None:
    """Many failures: the latency told is that of the survivors."""
    if counted.answered.empty:
        return None
    share = len(counted.failed) / counted.handled
    if share <= 0.01:
        return None
    return Reason(
        "invalid" if share > 0.20 else "warning",
        "failures",
        f"{n_of(len(counted.failed), 'turn')} ({share_of(share)}) failed: the latencies are those of the survivors",
    )


def refusals(run: Run, counted: Counted) -> Reason | None:
    """Turns that the target turned away."""
    refused = counted.failed[counted.failed["outcome"] == "refused"]
    if refused.empty:
        return None
    kinds = refused["error_kind"].value_counts()
    shown = kinds[kinds > 0].head(3)
    counts = ", ".join(f"{kind} {n:,}" for kind, n in shown.items())
    why: dict[str, list[str]] = {}
    for kind in map(str, shown.index):
        why.setdefault(_why_refused(kind), []).append(kind)
    told = "; ".join(meaning if len(why) == 1 else f"{', '.join(its)}: {meaning}" for meaning, its in why.items())
    return Reason("warning", "refused", f"the target refused {n_of(len(refused), 'turn')} ({counts}): {told}")


_REFUSALS = {
    "connection_refused": "nothing listened there",
    "dns_failure": "its name has no address (--host)",
    "unreachable": "no way leads there (--host)",
    "tls_failure": "its certificate is not trusted, or it speaks no TLS there",
    "http_400": "it did not understand what was asked",
    "http_401": "it wants a token, or another one",
    "http_403": "it does not let this token in",
    "http_404": "it knows no such path (the path of --host, or the scenario's)",
    "http_429": "it was offered too much",
    "http_503": "it was offered too much, or was not ready",
}


def _why_refused(kind: str) -> str:
    """What a kind of refusal says of target and request."""
    if kind in _REFUSALS:
        return _REFUSALS[kind]
    if kind.startswith("http_5"):
        return "it failed by itself, or what it depends on did; see its log"
    if kind.startswith("http_3"):
        return "it sends users elsewhere: name that address as --host"
    if kind.startswith("http_"):
        return "it did not accept what was asked"
    return "see the turns' errors"


def short_answers(run: Run, counted: Counted) -> Reason | None:
    """Answers much shorter than others to the same text in the same voice: cut off without an error."""
    asked = requests(counted).answered  # what an agent answers to a query may be long or short
    answered = asked[asked["audio_s"].notna()]
    if answered.empty:
        return None
    lengths = answered.groupby("text_name", observed=True)["text_chars"].transform("nunique")
    same = answered[lengths == 1]  # one name, one text: not so where texts are generated
    alike = same.groupby(["text_name", "voice"], observed=True, dropna=False)["audio_s"]
    median_s, n = alike.transform("median"), alike.transform("size")
    short = same[(n >= FEWEST_ALIKE) & (same["audio_s"] < SHORT_SHARE * median_s)]
    if short.empty:
        return None
    return Reason(
        "warning",
        "short_answers",
        f"{n_of(len(short), 'answer')} shorter than {SHORT_SHARE:g} of the median for the same text and voice, counted "
        f"as successes: probably cut off ({some([str(name) for name in short['request_id']])})",
    )

"""Put the server's figures beside the turns of conversations: whose turn a figure belongs to, and which of them count.

Figures are rows of the `server` table that hold one figure each. Makes no stages of them: waterfall.py does.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.counting import FULL_DUPLEX, VOICE_AGENT
from analysis.log_lines import ASR_TTFB
from analysis.runs import Run
from analysis.server_join import CLOCKS_AGREE_S, INSTANTS
from analysis.server_sources import IN_BAND, Source, SourceKind, sources

HEARD_SLACK_S = 0.25  # a log's clock and the clients' may differ by this much beyond what was corrected

# Column of a turn, and the figure it is taken from.
STAGES = {
    "asr_s": ("asr", "compute_latency"),
    "asr_with_wait_s": ("asr", ASR_TTFB),
    "llm_ttfb_s": ("llm", "ttfb"),
    "llm_first_sentence_s": ("llm", "first_sentence"),
    "tts_ttfb_s": ("tts", "ttfb"),
    "leading_silence_s": ("tts", "leading_silence"),
}


@dataclass(frozen=True, slots=True)
class Heard:
    """Turns of conversations beside the server's figures.

    kind: where the figures come from; a better kind leaves the others aside. figures: rows with a known stream, with
    `row` (index of the run's turn, -1 for none) and `when` (unix seconds by the clients' clock). stages: a turn a row
    (indexed like run.turns), the columns of STAGES, and the server's instants by its own clock where a trace has them.
    greeting: figures from before the user's first word. unplaced: of a stream of ours, but of no turn. unknown: of the
    run's time, but of no stream that can be told, by reason.
    """

    kind: SourceKind
    sources: tuple[Source, ...]
    figures: pd.DataFrame
    stages: pd.DataFrame
    joined: int
    greeting: int
    unplaced: int
    unknown: dict[str, int]
    one_clock: bool


def join_turns(run: Run) -> Heard | None:
    """The run's calls to voice agents beside their server's figures; None without either."""
    if "stream_id" not in run.turns:
        return None
    turns = run.turns[(run.turns["protocol"] == VOICE_AGENT) & run.turns["stream_id"].notna()]
    rows = run.server[run.server["metric"].notna() & run.server["stream_id"].notna()]
    rows = rows[rows["component"] != FULL_DUPLEX]  # of sessions: duplex_join.py
    imported = sources(run)
    if turns.empty or (rows.empty and not any(source.kind == "log" for source in imported)):
        return None
    kind, rows = _best(rows, imported)
    chosen = tuple(source for source in imported if source.kind == kind)
    figures = _placed(rows, turns, {source.path: source.offset_s for source in chosen})
    before = figures["when"] < figures["stream_id"].map(_begins(turns).groupby(_names(turns)).min())
    stages = _stages(figures[figures["row"] >= 0], turns)
    unknown: dict[str, int] = {}
    for source in chosen:
        for reason, n in source.unknown.items():
            unknown[reason] = unknown.get(reason, 0) + n
    return Heard(
        kind=kind,
        sources=chosen,
        figures=figures,
        stages=stages,
        joined=int((figures["row"] >= 0).sum()),
        greeting=int((before & (figures["row"] < 0)).sum()),
        unplaced=int((~before & (figures["row"] < 0)).sum()),
        unknown=unknown,
        one_clock=_one_clock(run, chosen, stages, turns),
    )


def _best(rows: pd.DataFrame, imported: tuple[Source, ...]) -> tuple[SourceKind, pd.DataFrame]:
    """One kind of source for all: a trace knows more than a log, a log more than what is told in band."""
    of_kind = {source.path: source.kind for source in imported}
    kinds = rows["source"].astype(object).map(lambda name: IN_BAND if name == IN_BAND else of_kind.get(name, "log"))
    for kind in ("trace", "log", "in-band"):
        if (kinds == kind).any():
            return kind, _once(rows[kinds == kind])
    return "log", rows


def _once(rows: pd.DataFrame) -> pd.DataFrame:
    """Each figure once: a log may have been imported under two names, or captured twice. A figure that one source
    tells twice was measured twice."""
    if rows["source"].nunique() < 2:
        return rows
    same = ["stream_id", "component", "metric", "instance", "at", "value_s", "value"]
    place = rows.groupby([*same, "source"], observed=True, dropna=False, sort=False).cumcount()
    return rows[~rows[same].assign(place=place).duplicated()]


def _names(turns: pd.DataFrame) -> pd.Series:
    return turns["stream_id"].astype(object)


def _begins(turns: pd.DataFrame) -> pd.Series:
    """When the user began to speak, else when the turn was begun, in unix seconds."""
    begun = turns["user_onset_at"].fillna(turns["sent_at"]).fillna(turns["intended_at"])
    return begun + (turns["intended_wall_at"] - turns["intended_at"])


def _placed(rows: pd.DataFrame, turns: pd.DataFrame, offsets: dict[str, float | None]) -> pd.DataFrame:
    """Figures with their turn: the last one of their stream that the user had begun when the figure was known."""
    names = _names(turns)
    figures = rows[["source", "component", "metric", "value_s", "value", "instance", "at", "turn"]].copy()
    figures["stream_id"] = rows["stream_id"].astype(object)
    late = (figures["component"] == "asr") & (figures["metric"] == "ttfb")  # as pipecat calls it in band
    figures["metric"] = figures["metric"].astype(object).where(~late, ASR_TTFB)
    figures = figures[figures["stream_id"].isin(set(names))]
    offset = figures["source"].astype(object).map(lambda name: offsets.get(name, 0.0)).astype(float)
    figures["when"] = figures["at"] - offset
    figures["row"] = -1
    told = figures["turn"].notna()
    if told.any():
        key = pd.MultiIndex.from_arrays([names, turns["turn"]])
        of_turn = pd.Series(turns.index, index=key)
        of_turn = of_turn[~of_turn.index.duplicated()]
        wanted = pd.MultiIndex.from_arrays([figures.loc[told, "stream_id"], figures.loc[told, "turn"]])
        figures.loc[told, "row"] = of_turn.reindex(wanted).fillna(-1).to_numpy(np.int64)
    timed = ~told & figures["when"].notna()
    if timed.any():
        figures.loc[timed, "row"] = _by_time(figures.loc[timed, ["stream_id", "when"]], turns)
    timeless = ~told & figures["when"].isna()
    if timeless.any():
        figures.loc[timeless, "row"] = _by_order(figures[timeless], turns)
    return figures


def _by_time(figures: pd.DataFrame, turns: pd.DataFrame) -> Any:
    begun = pd.DataFrame({"stream_id": _names(turns), "begins": _begins(turns), "row": turns.index})
    begun = begun.dropna(subset="begins").sort_values("begins")
    wanted = figures.assign(place=np.arange(len(figures))).sort_values("when")
    met = pd.merge_asof(wanted, begun, left_on="when", right_on="begins", by="stream_id", direction="backward")
    return met.sort_values("place")["row"].fillna(-1).to_numpy(np.int64)


def _by_order(figures: pd.DataFrame, turns: pd.DataFrame) -> Any:
    """Figures without a time: the k-th call of a stream's LLM is its k-th turn, or one earlier where it greeted."""
    begins_call = (figures["component"] == "llm") & (figures["metric"] == "ttfb")
    streams = figures["stream_id"]
    call = begins_call.astype(int).groupby(streams).cumsum() - 1
    call = call.where(figures["component"] != "asr", call + 1)  # recognition comes before its answer
    calls = begins_call.groupby(streams).sum()
    ordered = turns.assign(name=_names(turns)).sort_values(["name", "turn"])
    count = ordered.groupby("name").size()
    ahead = streams.map(calls - count.reindex(calls.index))  # 0: one call a turn; 1: and a greeting
    place = (call - ahead).where(ahead.isin((0, 1)), -1)
    rank = ordered.groupby("name").cumcount()
    of_rank = pd.Series(ordered.index, index=pd.MultiIndex.from_arrays([ordered["name"], rank]))
    return of_rank.reindex(pd.MultiIndex.from_arrays([streams, place])).fillna(-1).to_numpy(np.int64)


# ------------------------------------------------------------------------------------------- which call was the answer?


def _stages(figures: pd.DataFrame, turns: pd.DataFrame) -> pd.DataFrame:
    """The figures of the call that became the answer: the last LLM call before the agent was heard, the recognition
    before it and the speech after it. Calls that were thrown away, and later ones, do not count."""
    figures = figures[["row", "component", "metric", "value_s", "value", "instance", "when"]].copy()
    heard_at = turns["agent_onset_at"] + (turns["intended_wall_at"] - turns["intended_at"])
    figures["heard_at"] = figures["row"].map(heard_at) + HEARD_SLACK_S
    late = figures["when"] > figures["heard_at"]
    stages = pd.DataFrame(index=turns.index, columns=[*STAGES, *INSTANTS], dtype=np.float64)
    instants = figures[figures["component"] == "agent"]
    if len(instants):
        return _of_trace(stages, figures, instants)
    call = _pick(figures, "llm_ttfb_s", "last", ~late)
    stages["llm_ttfb_s"] = call["value_s"]
    called_at = figures["row"].map(call["when"])
    before = ~(figures["when"] > called_at)
    after = ~(figures["when"] < called_at)
    for column in ("asr_s", "asr_with_wait_s"):
        stages[column] = _pick(figures, column, "last", before & ~late)["value_s"]
    stages["llm_first_sentence_s"] = _pick(figures, "llm_first_sentence_s", "first", after)["value_s"]
    spoken = _pick(figures, "tts_ttfb_s", "first", after)
    stages["tts_ttfb_s"] = spoken["value_s"]
    stages["leading_silence_s"] = _pick(figures, "leading_silence_s", "first", after)["value_s"]
    return stages


def _pick(figures: pd.DataFrame, column: str, which: Any, fitting: pd.Series) -> pd.DataFrame:
    """Of each turn the first or last fitting figure; where none fits, the first: the clocks do not tell."""
    component, metric = STAGES[column]
    its = figures[(figures["component"] == component) & (figures["metric"] == metric)]
    its = its.sort_values("when", kind="stable")
    fit = its[fitting.reindex(its.index)].drop_duplicates("row", keep=which).set_index("row")
    others = its.drop_duplicates("row").set_index("row")
    return fit.combine_first(others[~others.index.isin(fit.index)])[["value_s", "when"]] if len(others) else fit


def _of_trace(stages: pd.DataFrame, figures: pd.DataFrame, instants: pd.DataFrame) -> pd.DataFrame:
    """A trace tells which figures belong together: of each turn, the agent's turn that was heard."""
    key = ["row", "instance"]
    wide = instants.pivot_table("value", key, "metric", aggfunc="first", observed=True)
    begun = instants[instants["metric"] == "first_audio_at"].set_index(key)
    heard = begun["when"] <= begun["heard_at"]
    order = begun.assign(heard=heard).sort_values(["heard", "when"]).reset_index().drop_duplicates("row", keep="last")
    wanted = pd.MultiIndex.from_frame(order[key])
    found = wide.reindex(wanted).droplevel("instance")
    for column in found.columns:
        stages[str(column)] = found[column].reindex(stages.index)
    durations = figures[figures["value_s"].notna()].set_index(key)
    durations = durations[durations.index.isin(wanted)].reset_index()
    for column, (component, metric) in STAGES.items():
        its = durations[(durations["component"] == component) & (durations["metric"] == metric)]
        stages[column] = its.drop_duplicates("row").set_index("row")["value_s"].reindex(stages.index)
    return stages


def _one_clock(run: Run, chosen: tuple[Source, ...], stages: pd.DataFrame, turns: pd.DataFrame) -> bool:
    """Whether the server's instants may be subtracted from the clients': one host, and nothing comes too early."""
    hosts = {log.facts.get("host") for log in run.sealed.logs.values()} | {source.host for source in chosen}
    if len(hosts) != 1 or None in hosts:
        return False
    there = stages["first_audio_at"].notna() & turns["agent_onset_at"].notna()
    if not there.any():
        return False
    early = turns["agent_onset_at"] - stages["first_audio_at"] < -CLOCKS_AGREE_S
    return bool(early[there].mean() <= 0.01)

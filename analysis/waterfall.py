"""Where the time between the user's last sample and the agent's first one went. Pure: tables in, tables out.

Two ways to tell. By instants, where client and server share a clock: stages that follow each other and leave no rest.
By durations, where they do not: what the server says each stage took, and a rest (network, waiting, playout) that is
the floor transfer offset less all of them; the rest may be negative where stages ran at the same time.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of the way from the user's last sample to the agent's first. owner: which part of the system it is."""

    key: str
    title: str
    owner: str


STAGES = (
    Stage("to_server", "to the server", "network"),
    Stage("end_of_speech_wait", "wait for the end of speech", "end-of-speech detection"),
    Stage("asr", "speech recognition", "ASR"),
    Stage("asr_and_wait", "end-of-speech wait and recognition", "ASR"),
    Stage("llm_first_token", "LLM to its first token", "LLM"),
    Stage("llm_first_sentence", "LLM on to its first sentence", "LLM"),
    Stage("tts", "speech synthesis to first audio", "TTS"),
    Stage("leading_silence", "silence before the first sound", "TTS"),
    Stage("hand_over", "until the first audio was sent", "server"),
    Stage("to_client", "to the client, and playout", "network"),
    Stage("rest", "network, waiting and the unexplained rest", "rest"),
)
OWNERS = {stage.key: stage.owner for stage in STAGES}


def by_durations(turns: pd.DataFrame) -> pd.DataFrame:
    """Stages (s) of turns whose server tells durations.

    Columns read: floor_transfer_offset_s; asr_s (compute alone), asr_with_wait_s (from the end of speech: holds the
    wait), llm_ttfb_s, llm_first_sentence_s (holds the TTFB), tts_ttfb_s, leading_silence_s; and, of one server clock,
    user_last_voiced_received_at and end_of_speech_at. A stage that nobody told of is NaN. Turns without any are left
    out.
    """
    known = pd.DataFrame(index=turns.index)
    if {"user_last_voiced_received_at", "end_of_speech_at"} <= set(turns.columns):
        known["end_of_speech_wait"] = turns["end_of_speech_at"] - turns["user_last_voiced_received_at"]
    else:
        known["end_of_speech_wait"] = float("nan")
    waited = (turns["asr_with_wait_s"] - turns["asr_s"]).clip(lower=0.0)
    known["end_of_speech_wait"] = known["end_of_speech_wait"].fillna(waited)
    known["asr"] = turns["asr_s"]
    known["asr_and_wait"] = turns["asr_with_wait_s"].where(turns["asr_s"].isna())
    known["llm_first_token"] = turns["llm_ttfb_s"]
    known["llm_first_sentence"] = (turns["llm_first_sentence_s"] - turns["llm_ttfb_s"].fillna(0.0)).clip(lower=0.0)
    known["tts"] = turns["tts_ttfb_s"]
    known["leading_silence"] = turns["leading_silence_s"]
    told = known.notna().any(axis=1) & turns["floor_transfer_offset_s"].notna()
    known = known[told]
    known["rest"] = turns.loc[told, "floor_transfer_offset_s"] - known.sum(axis=1)
    return known.dropna(axis=1, how="all")


def by_instants(turns: pd.DataFrame) -> pd.DataFrame:
    """Stages (s) of turns whose client and server share a clock: they add up to the floor transfer offset.

    Columns read: user_offset_at, agent_onset_at, and the server's user_last_voiced_received_at, end_of_speech_at,
    transcript_at, first_token_at, first_sentence_at, tts_first_audio_at, first_audio_at. Turns that lack one are left
    out.
    """
    way = (
        ("to_server", "user_offset_at", "user_last_voiced_received_at"),
        ("end_of_speech_wait", "user_last_voiced_received_at", "end_of_speech_at"),
        ("asr", "end_of_speech_at", "transcript_at"),
        ("llm_first_token", "transcript_at", "first_token_at"),
        ("llm_first_sentence", "first_token_at", "first_sentence_at"),
        ("tts", "first_sentence_at", "tts_first_audio_at"),
        ("hand_over", "tts_first_audio_at", "first_audio_at"),
        ("to_client", "first_audio_at", "agent_onset_at"),
    )
    stages = pd.DataFrame({key: turns[later] - turns[earlier] for key, earlier, later in way}, index=turns.index)
    return stages.dropna(how="any")


def summarise(stages: pd.DataFrame) -> Figures | None:
    """Mean and p50 of each stage (ms), its share of the mean total, and the part of the system that takes most.

    A stage's mean is over all turns, one without the stage counting as 0, so that means add up; its p50 is over the
    turns that have it. bottleneck: the part with the largest mean; of_the_known: the largest one with the rest left
    aside. Shares are of the sum of positive stages, so that none exceeds 100 %.
    """
    if stages.empty:
        return None
    means = stages.fillna(0.0).mean()
    whole = float(means.clip(lower=0.0).sum())
    parts = means.clip(lower=0.0).groupby(OWNERS.get).sum().sort_values(ascending=False, kind="stable")
    known = parts.drop("rest", errors="ignore")
    return {
        "n": len(stages),
        "total_mean_ms": float(means.sum()) * 1000,
        "total_p50_ms": float(stages.sum(axis=1).median()) * 1000,
        "stages": [
            {
                "stage": stage.key,
                "title": stage.title,
                "part": stage.owner,
                "n": int(stages[stage.key].notna().sum()),
                "mean_ms": float(means[stage.key]) * 1000,
                "p50_ms": float(stages[stage.key].median()) * 1000,
                "share_percent": max(0.0, float(means[stage.key])) / whole * 100 if whole else None,
            }
            for stage in STAGES
            if stage.key in stages
        ],
        "bottleneck": _share(parts, whole),
        "bottleneck_of_the_known": _share(known, whole),
    }


def _share(parts: pd.Series, whole: float) -> Figures | None:
    if parts.empty or not whole:
        return None
    return {
        "part": str(parts.index[0]),
        "mean_ms": float(parts.iloc[0]) * 1000,
        "share_percent": float(parts.iloc[0]) / whole * 100,
    }


def of_turn(stages: pd.Series) -> list[Figures]:
    """One turn's stages (ms), in their order."""
    told = stages.dropna()
    return [
        {"stage": stage.key, "title": stage.title, "part": stage.owner, "ms": float(told[stage.key]) * 1000}
        for stage in STAGES
        if stage.key in told
    ]

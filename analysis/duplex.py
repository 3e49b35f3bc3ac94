"""Every figure of a run's sessions with full-duplex models, as plain data. Knows rows; nothing of how figures look.

Latency of successes only, from the user's last voiced sample; turn-taking without barge-ins, which have figures of
their own. docs/metrics.md says what each figure means, and from which source.
"""

from typing import Any

import pandas as pd

from analysis import duplex_join
from analysis import duplex_rows as rows
from analysis.conversation import Figures, Metric, gaps, no_results, outcomes, stalls
from analysis.counting import Counted, wall_s, where
from analysis.runs import Run
from workers.samples.schema import CENSORED

# Ends of a turn that let Full-Duplex-Bench's question be asked: did the agent take the floor?
_SPOKEN_OUT = ("answered", "early", "timed_out")

HUMAN_MS = 200.0  # Stivers et al. 2009, PNAS 106(26): the usual gap between turns, over ten languages
# Full-Duplex-Bench's README, v1.0: turn-taking latency and interruption response (s), by stream position.
PUBLISHED_S: dict[str, tuple[float, float]] = {
    "PersonaPlex": (0.070, 0.400),
    "Moshi": (0.265, 0.257),
    "Freeze-Omni": (0.953, 1.409),
    "Gemini Live 2.0": (1.301, 1.183),
    "GPT-Realtime": (1.470, 1.500),
}


def summarise_duplex(run: Run, counted: Counted, metric: Metric) -> Figures | None:
    """The figures of a run's full-duplex sessions; None if it measured none. `metric` makes quantiles of a column."""
    if counted.measured.empty:
        return None
    measured, answered = counted.measured, counted.answered
    sessions = rows.sessions_of(run, measured)
    modes = rows.modes_of(counted)
    return {
        **_counts(counted),
        "outcomes": outcomes(counted),
        "no_results": no_results(counted),
        "modes": {
            mode: _part(part, rows.sessions_of(run, part.measured), rows.asked_for(run, mode), metric)
            for mode in modes
            if (part := rows.of_mode(counted, mode))
        },
        "recordings": run.manifest.get("recordings"),
        "mock": run.manifest.get("mock"),
        "not_decoded": int((~_up(sessions)["decoded"].astype(bool)).sum()),
        "sessions_up": len(_up(sessions)),
        **_latencies(answered, metric),
        **_set_up(rows.asked_for(run), metric),
        **_from_handshake(sessions, metric),
        "wall_s": wall_s(counted),
        "tokens_per_second": rows.tokens_a_second(counted),
        "requests_per_second": rows.requests_a_second(counted),
        "request_tokens_per_second": metric(answered, "tokens_per_s", 1.0),
        "turn_taking": _turn_taking(rows.asked(answered)),
        "interruption": _interruption(counted, metric),
        "full_duplex_bench": _full_duplex_bench(counted, metric),
        "lag": _lag(_up(sessions), metric),
        "stalls": stalls(answered, metric),
        "client": _client(_up(sessions)),
        "hosts": _hosts(run, counted, metric),
        "unknown_messages": int(sessions["unknown_messages"].fillna(0).sum()),
        "server_log": duplex_join.summary(run, metric),
        "traces": duplex_join.traces(run),
    }


def _up(sessions: pd.DataFrame) -> pd.DataFrame:
    """Those that came up."""
    return sessions[sessions["setup_s"].notna()]


def _percent(share: float | None) -> float | None:
    return None if share is None else share * 100


def _counts(counted: Counted) -> Figures:
    asked = rows.requests_of(counted)
    kinds = counted.failed["error_kind"].astype(object).fillna(counted.failed["outcome"].astype(object))
    return {
        "started": len(counted.measured),
        "answered": len(counted.answered),
        "failed": len(counted.failed),
        "cut": len(counted.cut),
        "sessions": int(counted.measured["cluster"].nunique()),
        "success_rate_percent": _percent(counted.success_share),
        "failures": {str(kind): int(n) for kind, n in kinds.value_counts().items() if n},
        "requests": {
            "handled": asked.handled,
            "answered": len(asked.answered),
            "failed": len(asked.failed),
            "cut": len(asked.cut),
            "success_rate_percent": _percent(asked.success_share),
        },
    }


def _part(counted: Counted, sessions: pd.DataFrame, asked_for: pd.DataFrame, metric: Metric) -> Figures:
    """What is told of each mode by itself. asked_for: its sessions, also those that came to no turn."""
    return {
        **_counts(counted),
        **_latencies(counted.answered, metric),
        **_set_up(asked_for, metric),
        **_from_handshake(sessions, metric),
        "wall_s": wall_s(counted),
        "tokens_per_second": rows.tokens_a_second(counted),
        "requests_per_second": rows.requests_a_second(counted),
    }


def _latencies(answered: pd.DataFrame, metric: Metric) -> Figures:
    asked = rows.asked(answered)
    by_arrival = asked.assign(by_arrival_s=rows.by_arrival_s(asked))
    return {
        "floor_transfer_offset_ms": metric(asked, "floor_transfer_offset_s", 1000.0),
        "arrival_transfer_offset_ms": metric(by_arrival, "by_arrival_s", 1000.0),
        "stream_transfer_offset_ms": metric(asked, "stream_transfer_offset_s", 1000.0),
        "ttft_ms": metric(answered, "ttft_s", 1000.0),
        "itl_ms": metric(answered, "itl_s", 1000.0),
        "e2e_ms": metric(answered, "e2e_s", 1000.0),
    }


def _set_up(asked_for: pd.DataFrame, metric: Metric) -> Figures:
    """Set-up of sessions that came up; beside it those that we ended while they waited for it."""
    waiting_s = rows.still_waiting_s(asked_for)
    return {
        "setup_ms": metric(_up(asked_for), "setup_s", 1000.0),
        "still_waiting": {"sessions": len(waiting_s), "longest_s": float(waiting_s.max()) if len(waiting_s) else None},
    }


def _from_handshake(sessions: pd.DataFrame, metric: Metric) -> Figures:
    """What came first after set-up, of sessions that came up."""
    up = _up(sessions)
    up = up.assign(text_s=up["first_token_at"] - up["ready_at"], audio_s=up["first_audio_at"] - up["ready_at"])
    return {
        "text_from_handshake_ms": metric(up, "text_s", 1000.0),
        "audio_from_handshake_ms": metric(up, "audio_s", 1000.0),
    }


# ------------------------------------------------------------------------------------------------------- turn-taking


def _turn_taking(asked: pd.DataFrame) -> Figures | None:
    """Gaps and overlaps as heard, and S1's band, as heard and by arrival."""
    heard_s = asked["floor_transfer_offset_s"].dropna()
    if heard_s.empty:
        return None
    low, high = rows.BAND_S
    return {
        **gaps(heard_s),
        "band_ms": [low * 1000, high * 1000],
        "heard": rows.band_shares(heard_s),
        "by_arrival": rows.band_shares(rows.by_arrival_s(asked)),
        "human_ms": HUMAN_MS,
        "published_ms": {name: taking_s * 1000 for name, (taking_s, _) in PUBLISHED_S.items()},
    }


def _interruption(counted: Counted, metric: Metric) -> Figures | None:
    """Turns in which the user broke in on purpose; ones that we cut are left out."""
    tried = rows.broken_in(counted.measured[counted.measured["outcome"] != CENSORED])
    if tried.empty:
        return None
    yielded = tried[tried["yielded"].astype(bool)]
    trials = rows.asked(rows.requests_of(counted).answered)  # whose answer was over before it could be interrupted
    answered = rows.broken_in(counted.answered)
    return {
        "n": len(tried),
        "yielded": len(yielded),
        "yielded_percent": len(yielded) / len(tried) * 100,
        "answered": len(answered),
        "too_short": int((trials["mode"] == "interruption").sum()),
        "stop_ms": metric(yielded, "time_to_silence_s", 1000.0),
        "response_ms": metric(answered, "floor_transfer_offset_s", 1000.0),
        "published_ms": {name: response_s * 1000 for name, (_, response_s) in PUBLISHED_S.items()},
    }


def _full_duplex_bench(counted: Counted, metric: Metric) -> Figures | None:
    """Full-Duplex-Bench's figures (arXiv 2503.04721) as far as audio alone tells them; None where nothing was heard.

    Of turns that were spoken to their end in sessions that were heard. Takeover rate and latency are of those that
    broke in on nobody; an answer that our own user interrupted before it had lasted long enough tells nothing.
    """
    spoken = counted.measured[counted.measured["decoded"].astype(bool) & counted.measured["user_offset_at"].notna()]
    spoken = spoken[spoken["outcome"].isin(_SPOKEN_OUT)]
    if spoken.empty:
        return None
    asked = rows.asked(spoken)
    over = asked["agent_onset_at"].isna() | asked["agent_offset_at"].notna() | asked["takeover"].astype(bool)
    asked = asked[over]
    taken = asked[asked["takeover"].astype(bool)]
    paused = spoken[spoken["user_pauses"].fillna(0) > 0]
    user_s = float((spoken["user_offset_at"] - spoken["user_onset_at"]).sum())
    backchannels = int(spoken["backchannels"].fillna(0).sum())
    return {
        "turns": len(asked),
        "takeover_percent": float(asked["takeover"].astype(bool).mean()) * 100 if len(asked) else None,
        "latency_ms": metric(taken, "floor_transfer_offset_s", 1000.0),
        "pauses": {
            "turns": len(paused),
            "takeover_percent": float(paused["pause_takeover"].astype(bool).mean()) * 100 if len(paused) else None,
        },
        "backchannels": {
            "n": backchannels,
            "user_s": user_s,
            "per_minute": backchannels / user_s * 60 if user_s > 0 else None,
        },
    }


# --------------------------------------------------------------------------------------------------- lag and playback


def _lag(sessions: pd.DataFrame, metric: Metric) -> Figures | None:
    """Seconds sent - seconds received: quantiles over sessions of each session's own figures."""
    told = sessions[sessions["lag_p50_s"].notna()]
    if told.empty:
        return None
    growth = told["lag_growth_s_per_min"].dropna()
    worst: Any = told.loc[growth.index].assign(growth=growth).sort_values("growth").iloc[-1] if len(growth) else None
    return {
        "sessions": len(told),
        "p50_ms": metric(told, "lag_p50_s", 1000.0),
        "p99_ms": metric(told, "lag_p99_s", 1000.0),
        "max_ms": metric(told, "lag_max_s", 1000.0),
        "growth_s_per_min": {
            "sessions": len(growth),
            "median": float(growth.median()) if len(growth) else None,
            "worst": float(growth.max()) if len(growth) else None,
            "worst_session": None if worst is None else str(worst["session"]),
            "worst_host": None if worst is None or pd.isna(worst["host"]) else str(worst["host"]),
            "over": len(rows.falling_behind(told)),
            "limit": rows.GROWTH_S_PER_MIN,
        },
        "interarrival_p50_ms": metric(told, "interarrival_p50_s", 1000.0),
        "interarrival_p99_ms": metric(told, "interarrival_p99_s", 1000.0),
    }


def _client(sessions: pd.DataFrame) -> Figures | None:
    """What the reference browser client would have played: it buffers 80 ms, and throws away what is too late."""
    told = sessions[sessions["client_stalls"].notna()]
    if told.empty:
        return None
    received_s = float(told["received_s"].fillna(0).sum())
    return {
        "sessions": len(told),
        "stalled_percent": float((told["client_stalls"] > 0).mean()) * 100,
        "stalls": int(told["client_stalls"].sum()),
        "stalled_s": float(told["client_stalled_s"].fillna(0).sum()),
        "dropped_s": float(told["client_dropped_s"].fillna(0).sum()),
        "received_s": received_s,
        "stalls_per_minute": float(told["client_stalls"].sum()) / received_s * 60 if received_s > 0 else None,
    }


def _hosts(run: Run, counted: Counted, metric: Metric) -> dict[str, Figures]:
    """By server, where there are several."""
    names = sorted(str(name) for name in counted.measured["host"].dropna().unique())
    if len(names) < 2:
        return {}
    found = {}
    for name in names:
        part = where(counted, lambda turns, name=name: turns["host"] == name)  # type: ignore[misc]
        sessions = rows.sessions_of(run, part.measured)
        asked = rows.requests_of(part)
        found[name] = {
            "sessions": int(part.measured["cluster"].nunique()),
            "requests": asked.handled,
            "failed": len(asked.failed),
            **_set_up(rows.asked_for(run, host=name), metric),
            "ttft_ms": metric(part.answered, "ttft_s", 1000.0),
            "floor_transfer_offset_ms": metric(rows.asked(part.answered), "floor_transfer_offset_s", 1000.0),
            "lag_p99_ms": metric(_up(sessions), "lag_p99_s", 1000.0),
        }
    return found

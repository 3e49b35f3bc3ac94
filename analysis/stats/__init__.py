"""Figures from lists of numbers: quantiles, shares, rates, differences, laws. Pure; knows nothing of runs or tables."""

from analysis.stats.differences import (
    Difference,
    holm,
    mean_difference,
    permutation_p,
    quantile_difference,
    sessions_for_difference,
    share_difference,
)
from analysis.stats.quantiles import SESSIONS_NEEDED, Quantile, quantile_interval, summarise, turns_needed
from analysis.stats.rates import asps, cps, rps, rtf
from analysis.stats.scaling import Knee, Usl, knee, usl
from analysis.stats.shares import Looks, bound, design_effect, looks_for, turns_for_proof
from analysis.stats.steady import Trend, mser5, trend

__all__ = [
    "SESSIONS_NEEDED",
    "Difference",
    "Knee",
    "Looks",
    "Quantile",
    "Trend",
    "Usl",
    "asps",
    "bound",
    "cps",
    "design_effect",
    "holm",
    "knee",
    "looks_for",
    "mean_difference",
    "mser5",
    "permutation_p",
    "quantile_difference",
    "quantile_interval",
    "rps",
    "rtf",
    "sessions_for_difference",
    "share_difference",
    "summarise",
    "trend",
    "turns_for_proof",
    "turns_needed",
    "usl",
]

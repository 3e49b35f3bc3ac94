"""Do intervals of quantiles hold the truth as often as they say? Simulated systems with exactly known quantiles."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from analysis.stats import quantile_interval


@pytest.mark.parametrize(
    ("icc", "most"),
    [
        # The wider of two intervals is taken: that of differing sessions, and that of coin tosses. Where turns are
        # coin tosses, it holds the truth more often than it says: 97.1 % of 3,000 times for p95 of 20 sessions.
        (0.0, 0.98),
        (0.2, 0.97),
        (0.5, 0.97),
    ],
)
@pytest.mark.parametrize("sessions", [20, 40])
def test_95_of_100_intervals_hold_the_true_quantile(sessions: int, icc: float, most: float) -> None:
    """Lognormal latencies: median 0.5 s, p95 0.96 s; 1 to 20 turns a session; 2,000 runs, so within 1 % of the truth.

    A Gaussian copula: the logarithm is a session's own part and a turn's, their variances as icc to 1 - icc, so that
    the distribution over all is the same for each icc.
    """
    draw = np.random.default_rng(47)
    rounds = 2_000
    truth = {q: math.exp(math.log(0.5) + 0.4 * norm.ppf(q)) for q in (0.5, 0.95)}
    hits, told = dict.fromkeys(truth, 0), dict.fromkeys(truth, 0)
    for _ in range(rounds):
        of = np.repeat(np.arange(sessions), draw.integers(1, 21, sessions))
        own, noise = draw.standard_normal(sessions)[of], draw.standard_normal(of.size)
        latencies = 0.5 * np.exp(0.4 * (math.sqrt(icc) * own + math.sqrt(1 - icc) * noise))
        for q, true in truth.items():
            found = quantile_interval(latencies, of, q)
            if found.low is not None and found.high is not None:
                told[q] += 1
                hits[q] += found.low <= true <= found.high
    assert told == dict.fromkeys(truth, rounds)
    coverage = {q: held / rounds for q, held in hits.items()}
    assert all(0.90 <= share <= most for share in coverage.values()), coverage

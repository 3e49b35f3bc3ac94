"""Reasons to distrust a run, as data. Knows how a run can mislead; knows nothing of how a page looks.

A check looks at one way in which the figures of a run may be wrong and gives a Reason, or None.
"""

from analysis.checks import completeness, duplex, generator, measured, target
from analysis.checks.reason import SEVERITIES, Check, Reason
from analysis.counting import Counted
from analysis.runs import Run

__all__ = ["CHECKS", "Check", "Reason", "reasons"]


def reasons(run: Run, counted: Counted) -> list[Reason]:
    """Every reason to distrust the run's figures, the gravest first."""
    found = [reason for check in CHECKS if (reason := check(run, counted))]
    return sorted(found, key=lambda reason: SEVERITIES.index(reason.severity))


CHECKS: tuple[Check, ...] = (
    completeness.unfinished,
    measured.nothing_measured,
    measured.nothing_answered,
    completeness.unreadable_logs,
    completeness.lost_rows,
    completeness.lost_workers,
    generator.saturated,
    generator.lagging,
    generator.late_sends,
    generator.late_microphone,
    generator.lost_ears,
    generator.dead_ears,
    duplex.ear_behind,
    duplex.lag_grows,
    generator.dropped_starts,
    target.mock,
    target.random_weights,
    measured.failures,
    measured.refusals,
    measured.short_answers,
    measured.too_few,
    measured.moving,
    measured.unsettled,
    measured.several_levels,
    generator.flagged_arrivals,
    generator.user_clock,
    measured.cut_turns,
    completeness.spoilt_bytes,
    completeness.listener_errors,
    duplex.not_decoded,
    target.full,
    target.clocks,
    generator.slow_connections,
    completeness.repeated_rows,
)

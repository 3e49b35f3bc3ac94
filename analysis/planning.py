"""What a capacity search will cost, in words, and whether targets fit the users of a run. Reads no rows."""

import argparse

from analysis import levels
from analysis.counting import CONVERSATIONS, FULL_DUPLEX
from analysis.targets import TargetError, Targets
from analysis.violations import shares_of


def told(targets: Targets | None, options: argparse.Namespace) -> str:
    """What the proof costs, and what a weaker one would. Raises TargetError where there is nothing to search with."""
    if targets is None or not levels.proportions(targets):
        known = "a quantile such as `ttfc p95 < 400 ms`, or `success > 99 %`"
        where = targets.source if targets else "none given; --targets FILE"
        raise TargetError(f"targets ({where}): a search needs one that turns can prove: {known}")
    check(targets, options)
    left_out = [target.text for target in targets.targets if not shares_of(target, target.limit)]
    lines = [f"The search asks of every level, from {options.first} to {options.most} users:"]
    lines += [f"  {target.name} {target.show_limit(target.limit)}" for target in targets.targets
              if target.text not in left_out]  # fmt: skip
    lines += [f"  (not part of the search, judged by its report: {text})" for text in left_out]
    lines.append(f"What it costs, if a turn takes {options.turn_s:.1f} s ({options.turn_from}):")
    weaker = [confidence for confidence in (0.80, 0.50) if confidence < options.confidence]
    for confidence in (options.confidence, *weaker):
        chosen = "this run" if confidence == options.confidence else f"--capacity-confidence {confidence:g}"
        lines.append(f"  {confidence:.0%} sure of the whole answer ({chosen}):")
        for users in sorted({4, 16, 64} & set(range(options.first, options.most + 1))) or [options.most]:
            found = levels.cost(
                users,
                targets,
                (1 - confidence) / options.planned,
                first=options.first,
                step=options.step,
                turns_a_minute=60 / options.turn_s,
                warm_up_min=options.warm_up_s / 60,
            )
            given_up_min = min(found.most_min, options.level_most_s / 60)
            proof = f"{_min(found.proving_min)} min to prove it"
            if found.flawless_min > options.level_most_s / 60:
                proof = f"no proof within --level-most-s (it takes {_min(found.flawless_min)} min without a violation)"
            lines.append(
                f"    if it lies near {users:,} users: about {_min(found.scouting_min)} min to find it, {proof}; "
                f"a level is given up after {_min(given_up_min)} min"
            )
    return "\n".join(lines)


def check(targets: Targets, options: argparse.Namespace) -> None:
    """Refuse targets of what these users do not do. Raises TargetError."""
    for target in targets.targets:
        where = f"targets ({targets.source}): {target.text!r}"
        if target.metric.of == "conversations" and not {*CONVERSATIONS} & {*options.protocols}:
            raise TargetError(f"{where} is of conversations, and these users make requests")
        if target.metric.of == "full duplex" and FULL_DUPLEX not in options.protocols:
            raise TargetError(f"{where} is of full-duplex sessions, and these users have none")
        if target.metric.of == "requests" and "http_tts" not in options.protocols:
            raise TargetError(f"{where} is of requests, and these users make calls")
        breaks_in = options.barge_in_share or FULL_DUPLEX in options.protocols  # whose modes may break in by themselves
        if target.metric.name == "time_to_silence" and not breaks_in:
            raise TargetError(f"{where} needs --barge-in-share above 0")


def _min(minutes: float) -> str:
    return f"{minutes:,.0f}" if minutes >= 10 else f"{minutes:.1f}"

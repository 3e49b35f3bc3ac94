"""What a load level proves: exact bounds, planned looks, and turns in the order in which they began."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis.levels import cost, decide, plan, promising, proportions
from analysis.stats import bound, design_effect, looks_for, turns_for_proof
from analysis.targets import Targets, parse_target

P95 = Targets("test", (parse_target("ttfc p95 < 400 ms"),))
ALPHA = 0.002


def level(ttfc_s: list[float], sessions: int = 40, failed: int = 0, away: int = 0) -> pd.DataFrame:
    """Handled turns that came in this order, dealt out to sessions in turn; the first `failed` of them failed.

    The first `away` of those found nobody.
    """
    n = len(ttfc_s)
    return pd.DataFrame(
        {
            "ttfc_s": ttfc_s,
            "ok": [at >= failed for at in range(n)],
            "away": [at < away for at in range(n)],
            "cut": False,
            "spoken": False,
            "duplex": False,
            "waited_s": ttfc_s,
            "cluster": [at % sessions for at in range(n)],
            "intended_wall_at": np.arange(n, dtype=float),
        }
    )


def test_121_flawless_turns_do_not_prove_and_122_do() -> None:
    """The figure of the method: at alpha 0.002 a p95 needs ln(0.002) / ln(0.95) = 121.2 turns without a violation."""
    assert turns_for_proof(0.05, 0.002) == 122
    assert bound(0, 122, 0.002, "below") < 0.05 < bound(0, 121, 0.002, "below")
    assert turns_for_proof(0.05, 0.002, effect=2.0) == math.ceil(2 * math.log(0.002) / math.log(0.95))


def test_bounds_are_the_exact_binomials() -> None:
    # Clopper and Pearson's own table: 3 of 20, 95 % two-sided: 0.0321 to 0.3789.
    assert bound(3, 20, 0.025, "above") == pytest.approx(0.0321, abs=1e-4)
    assert bound(3, 20, 0.025, "below") == pytest.approx(0.3789, abs=1e-4)
    assert (bound(0, 20, 0.025, "above"), bound(20, 20, 0.025, "below")) == (0.0, 1.0)


def test_looks_double_and_spend_no_more_than_they_have() -> None:
    looks = looks_for(0.05, ALPHA)
    assert looks.at[-1] == looks.most
    assert all(
        later / earlier == pytest.approx(2, rel=0.1) for earlier, later in zip(looks.at, looks.at[1:], strict=False)
    )
    assert sum(looks.spend(number) for number in range(len(looks.at))) == pytest.approx(ALPHA)
    assert all(looks.spend(number) > 0 for number in range(len(looks.at)))


def test_turns_that_resemble_each_other_count_for_less() -> None:
    bad = np.zeros(400, dtype=bool)
    bad[:20] = True
    alike = np.repeat(np.arange(20), 20)  # all violations are one session's: 20 turns tell what one would
    assert design_effect(bad, alike) == pytest.approx(20, rel=0.1)
    assert design_effect(bad, np.arange(400) % 20) == pytest.approx(1.0)
    assert design_effect(bad, np.arange(400) % 20, at=np.arange(400)) > 10, "a burst is one event, whoever it hit"
    assert design_effect(np.zeros(100, dtype=bool), np.arange(100) % 4) == 2.0, "4 sessions cannot tell: assumed"


def test_a_flawless_level_passes_at_the_first_look_that_can_prove_it() -> None:
    looks = plan(proportions(P95)[0][1], ALPHA)
    for n in looks.at:
        found = decide(level([0.1] * n), P95, ALPHA)
        if found.outcome == "pass":
            break
        assert not found.done
    assert n == next(n for number, n in enumerate(looks.at) if turns_for_proof(0.05, looks.spend(number)) <= n), (
        "no earlier, no later"
    )


def test_a_level_that_fails_badly_is_known_after_the_first_looks() -> None:
    found = decide(level([0.9] * 60), P95, ALPHA)
    assert (found.outcome, found.done) == ("fail", True)
    assert found.tests[0].n < 60
    assert "at least" in found.reason


def test_failed_turns_count_as_violations() -> None:
    assert decide(level([0.1] * 100, failed=40), P95, ALPHA).outcome == "fail"


def test_a_level_at_the_limit_stays_undecided_and_says_when_more_would_not_help() -> None:
    most = plan(proportions(P95)[0][1], ALPHA).most
    values = [0.9 if at % 20 == 7 else 0.1 for at in range(most)]  # 5 %, what is just allowed
    assert decide(level(values[: most // 2]), P95, ALPHA).outcome == "undecided"
    assert not decide(level(values[: most // 2]), P95, ALPHA).done
    last = decide(level(values), P95, ALPHA)
    assert (last.outcome, last.done) == ("undecided", True)


def test_more_turns_do_not_take_back_a_decision() -> None:
    """The first look that decides is the one that counts: the same during the run and when it is read again."""
    looks = plan(proportions(P95)[0][1], ALPHA)
    proven = level([0.1] * looks.most)
    spoilt = level([0.1] * (looks.most - 30) + [0.9] * 30)
    assert decide(proven, P95, ALPHA) == decide(spoilt, P95, ALPHA)


def test_every_target_must_pass_and_one_is_enough_to_fail() -> None:
    two = Targets("test", (parse_target("ttfc p95 < 400 ms"), parse_target("ttfc p50 < 50 ms")))
    assert decide(level([0.1] * 800), two, ALPHA).outcome == "fail"
    wide = Targets("test", (parse_target("ttfc p95 < 400 ms"), parse_target("ttfc p50 < 150 ms")))
    assert decide(level([0.1] * 800), wide, ALPHA).outcome == "pass"


def test_a_band_has_two_ends() -> None:
    band = Targets("test", (parse_target("ttfc p50 within 170-270 ms"),))
    assert decide(level([0.2] * 300), band, ALPHA).outcome == "pass"
    assert decide(level([0.1] * 300), band, ALPHA).outcome == "fail"
    assert decide(level([0.3] * 300), band, ALPHA).outcome == "fail"


def test_means_are_no_part_of_a_search() -> None:
    assert proportions(Targets("test", (parse_target("ttfc mean < 400 ms"), parse_target("vram < 3 GB")))) == []


def test_scouting_wants_thirty_turns_and_no_more_violations_than_allowed() -> None:
    assert not promising(level([0.1] * 29), P95)
    assert promising(level([0.1] * 30), P95)
    assert promising(level([0.9] + [0.1] * 29), P95)
    assert not promising(level([0.9] * 2 + [0.1] * 28), P95)


def test_no_turns_decide_nothing() -> None:
    found = decide(level([]), P95, ALPHA)
    assert (found.outcome, found.done, found.reason) == ("undecided", False, "too few turns have ended to look at them")


def test_the_cost_falls_with_the_users_and_with_the_confidence() -> None:
    few, many = (cost(users, P95, ALPHA, first=1, step=0.1, turns_a_minute=6, warm_up_min=0.1) for users in (4, 64))
    assert few.proving_min > many.proving_min
    weaker = cost(4, P95, 0.05, first=1, step=0.1, turns_a_minute=6, warm_up_min=0.1)
    assert weaker.proving_min < few.proving_min
    # 8 sessions at 6 turns a minute each, at alpha 0.002: the method's "about 40 minutes" is the last look.
    assert 20 < cost(8, P95, ALPHA, first=1, step=0.1, turns_a_minute=6, warm_up_min=0.0).most_min < 60


def test_a_target_that_was_away_for_a_while_is_not_failed_for_it() -> None:
    """A restart: 12 turns found nobody. The same turns failed otherwise are a proof."""
    assert decide(level([0.1] * 40, failed=12), P95, ALPHA).outcome == "fail"
    found = decide(level([0.1] * 40, failed=12, away=12), P95, ALPHA)
    assert (found.outcome, found.done, found.gone) == ("undecided", False, False)
    assert "the target was not there for 12 of" in found.reason


def test_a_target_that_refuses_a_few_when_full_fails_by_how_it_serves_the_others() -> None:
    rows = level([0.9 if at % 2 else 0.1 for at in range(400)])
    rows.loc[rows.index % 20 == 0, ["ok", "away"]] = [False, True]
    assert decide(rows, P95, ALPHA).outcome == "fail"


def test_a_figure_that_these_turns_do_not_have_fails_no_level() -> None:
    """Calls that failed have no RTF, and failed requests no floor transfer offset: a target of that says nothing."""
    rows = level([0.1] * 400, failed=100).assign(rtf=0.2, floor_transfer_offset_s=float("nan"))
    of_calls = Targets("test", (parse_target("floor_transfer_offset p95 < 800 ms"),))
    assert decide(rows, of_calls, ALPHA).outcome == "undecided"
    of_requests = Targets("test", (parse_target("rtf p95 < 0.5"),))
    assert decide(rows.assign(spoken=True), of_requests, ALPHA).outcome == "undecided"


def test_turns_that_hang_until_they_are_cut_are_violations() -> None:
    """40 % waited 20 s without a first chunk when we cut them; those cut at once tell nothing."""
    rows = level([0.1] * 300)
    rows.loc[rows.index % 5 < 2, ["ok", "cut", "ttfc_s", "waited_s"]] = [False, True, float("nan"), 20.0]
    assert decide(rows, P95, ALPHA).outcome == "fail"
    rows.loc[rows["cut"], "waited_s"] = 0.2
    assert decide(rows.iloc[:300], P95, ALPHA).outcome != "fail"


def test_a_target_that_does_not_come_back_is_gone() -> None:
    found = decide(level([0.1] * 30, failed=30, away=30), P95, ALPHA)
    assert (found.outcome, found.done, found.gone) == ("undecided", True, True)

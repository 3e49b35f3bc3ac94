"""What a capacity search needs of a scenario: its levels, what its adviser is told, what it will cost, what it says."""

import logging
from collections.abc import Collection
from pathlib import Path

from workers import adviser
from workers.audio import clips
from workers.levels import Answer
from workers.search import Search, Told
from workers.settings import Protocol, Scenario, ScenarioError

_ANSWER_S = 4.0  # a guess at how long an answer is
_SAYS: dict[Told, str] = {
    "promising": "looks well, going on",
    "pass": "PASSES",
    "fail": "FAILS",
    "undecided": "undecided",
}

_log = logging.getLogger("cicada")


def search_of(scenario: Scenario) -> Search:
    return Search(scenario.capacity_first, scenario.capacity_most, scenario.capacity_step)


def say_cost(scenario: Scenario, protocols: Collection[Protocol]) -> None:
    """Print what the search will cost, before it begins. Raises ScenarioError where it cannot be run."""
    if scenario.arrivals != "closed":
        raise ScenarioError("scenario: arrivals: a capacity search counts users in a closed loop; leave arrivals out")
    if len(protocols) > 1:
        raise ScenarioError("a capacity search counts one kind of users: name one locustfile besides the shape")
    search = search_of(scenario)
    turn_s, whence = _turn_s(scenario, protocols)
    options = {
        "--first": search.first,
        "--most": search.most,
        "--step": search.step,
        "--planned": search.planned,
        "--confidence": scenario.capacity_confidence,
        "--warm-up-s": scenario.level_warm_up_s,
        "--level-most-s": scenario.level_most_s,
        "--barge-in-share": scenario.barge_in_share,
        "--turn-s": turn_s,
        "--turn-from": whence,
        **({"--targets": scenario.targets} if scenario.targets else {}),
    }
    try:
        told = adviser.plan(*(str(word) for pair in options.items() for word in pair), "--protocols", *protocols)
    except ValueError as error:
        raise ScenarioError(str(error)) from None
    print(told, flush=True)


def _turn_s(scenario: Scenario, protocols: Collection[Protocol]) -> tuple[float, str]:
    """A guess at the seconds from one turn of a user to the next, and what it is made of."""
    think_s = sum(scenario.think_s) / 2
    if "voice_agent" in protocols:
        found = clips.load(Path(scenario.audio_dir))
        query_s = sum(len(clip.samples) for clip in found) / len(found) / 16_000
        made_of = f"{query_s:.1f} s of query, {_ANSWER_S:g} s of answer by guess, {think_s:.1f} s of thinking"
        return query_s + _ANSWER_S + scenario.answer_end_s + think_s, made_of
    return _ANSWER_S + think_s, f"{_ANSWER_S:g} s of answer by guess, {think_s:.1f} s of thinking"


def log_level(users: int, told: Told, answer: Answer) -> None:
    """Say what became of a level."""
    who = "1 user" if users == 1 else f"{users:,} users"
    _log.info("%s: %s after %d turns. %s", who, _SAYS[told], answer["turns"], answer["reason"])

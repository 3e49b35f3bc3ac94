"""Load in levels: so many users are reached, warmed up, measured, and kept until their measured turns have ended.

A level that is left while its turns are under way would be judged by the next one's load. Knows nothing of what is
enough (a subclass does) and nothing of what a row holds (the adviser does).
"""

import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from locust import LoadTestShape

from workers import hooks
from workers.adviser import Adviser, AdviserGone
from workers.collector import Collector
from workers.settings import Protocol, Scenario, ScenarioError

_log = logging.getLogger("cicada")

Answer = dict[str, Any]  # of the adviser: level, turns, unfinished, outcome, done, gone, promising, reason
Tick = tuple[int, float] | None

BEGIN_S = 60.0
CLIMB_S = 5.0
_SETTLE_EXTRA_S = 5.0


@dataclass(slots=True)
class Visit:
    """One stay at a level. since: monotonic instant at which its stage began."""

    users: int
    prove: bool
    stage: Literal["climbing", "warming", "measuring", "settling"] = "climbing"
    since: float = 0.0


class LevelShape(LoadTestShape):
    """A shape whose load is constant but for the steps between levels. A subclass says which levels, and how long."""

    runner: Any

    abstract: ClassVar[bool] = True
    use_common_options = True

    def reset_time(self) -> None:
        """Locust's word for a new run."""
        super().reset_time()  # type: ignore[no-untyped-call]
        self._visit: Visit | None = None
        self._adviser: Adviser | None = None

    # ---- what a subclass says

    def check(self, scenario: Scenario, protocols: Collection[Protocol]) -> None:
        """Called before anything starts. Raises ScenarioError where the run cannot be made."""

    def begin(self, scenario: Scenario) -> tuple[int, bool]:
        """The first level of a run, and whether it is to be proven."""
        raise NotImplementedError

    def enough(self, visit: Visit, answer: Answer, measured_s: float) -> bool:
        """Whether the level has been measured for long enough."""
        raise NotImplementedError

    def after(self, visit: Visit, answer: Answer) -> tuple[int, bool] | None:
        """The next level, and whether it is to be proven; None where the run is over."""
        raise NotImplementedError

    def alpha(self, scenario: Scenario) -> float:
        """The chance of an error that one level may take."""
        raise NotImplementedError

    # ---- what Locust asks each second

    @property
    def level(self) -> int | None:
        """Users of the level that the run is at, or begins with."""
        return self._visit.users if self._visit is not None else None

    def tick(self) -> Tick:
        environment = self.runner.environment
        if self._visit is None:
            try:
                self._scenario = hooks.scenario_of(environment)
            except ScenarioError as error:  # a slip in the web UI's form
                _log.error("no run was started: %s", error)
                return None
            self._visit = Visit(*self.begin(self._scenario), since=time.monotonic())
            return self._users(self._visit.users)
        collector = hooks.collector()
        if collector is None:  # the run has not begun yet; one that cannot begin is ended by hooks
            return None if self.get_run_time() > BEGIN_S else self._users(self._visit.users)  # type: ignore[no-untyped-call]
        if self._adviser is None:
            self._adviser = self._new_adviser(collector)
        try:
            return self._go_on(self._visit, collector)
        except AdviserGone as error:
            hooks.stop_for(environment, str(error))
            return None

    def _new_adviser(self, collector: Collector) -> Adviser:
        """Told what the manifest keeps, so that the run can be judged again as it was."""
        if collector.targets is None:
            return Adviser(collector.run_dir)
        alpha = collector.manifest["level_alpha"] = self.alpha(self._scenario)
        return Adviser(collector.run_dir, "--targets", collector.targets, "--alpha", repr(alpha))

    def _users(self, users: int) -> Tick:
        return users, self._rate(users)

    def _rate(self, users: int) -> float:
        """Users a second: a --spawn-rate above 1 (Locust's default), else as many as climb in five seconds."""
        asked = self.runner.environment.parsed_options.spawn_rate
        return float(asked) if asked and asked > 1 else max(1.0, users / CLIMB_S)

    def _go_on(self, visit: Visit, collector: Collector) -> Tick:
        """One second further. The load changes only between two visits."""
        now = time.monotonic()
        match visit.stage:
            case "climbing" if now - visit.since > visit.users / self._rate(visit.users) + BEGIN_S:
                there = self.runner.user_count
                hooks.stop_for(self.runner.environment, f"only {there} of {visit.users} users are there: do they stop?")
                return None
            case "climbing" if self.runner.user_count == visit.users:
                collector.enter_level(visit.users)
                self._turn_to(visit, "warming", now)
            case "warming" if now - visit.since >= self._scenario.level_warm_up_s:
                self._measured(visit.users, True)
                collector.level_is(measured_wall_at=time.time())
                self._turn_to(visit, "measuring", now)
            case "measuring":
                answer = self._ask(visit.users)
                if self.enough(visit, answer, now - visit.since):
                    self._measured(visit.users, False)
                    collector.level_is(measured_until_wall_at=time.time())
                    self._turn_to(visit, "settling", now)
            case "settling":
                answer = self._ask(visit.users)
                if not answer["unfinished"] or now - visit.since > _longest_turn_s(self._scenario):
                    return self._leave(visit, answer, collector)
        return self._users(visit.users)

    def _turn_to(self, visit: Visit, stage: Literal["warming", "measuring", "settling"], now: float) -> None:
        visit.stage, visit.since = stage, now

    def _leave(self, visit: Visit, answer: Answer, collector: Collector) -> Tick:
        told = {"outcome": answer["outcome"], "promising": answer["promising"]} if collector.targets else {}
        collector.level_is(left_wall_at=time.time(), turns=answer["turns"], reason=answer["reason"] or None, **told)
        found = self.after(visit, answer)
        if found is None:
            return None
        self._visit = Visit(*found, since=time.monotonic())
        self._measured(found[0], False)
        return self._users(found[0])

    def _measured(self, users: int, measured: bool) -> None:
        hooks.enter_level(self.runner.environment, users, measured)

    def _ask(self, users: int) -> Answer:
        assert self._adviser is not None
        return self._adviser.ask(users)

    def end(self) -> None:
        """The run is over."""
        if self._adviser is not None:
            self._adviser.close()
            self._adviser = None


def _longest_turn_s(scenario: Scenario) -> float:
    return max(scenario.timeout_s, scenario.answer_timeout_s + scenario.longest_answer_s) + _SETTLE_EXTRA_S

"""How many at once? Doubles the users while the targets look well, then bisects, proving; with any locustfile."""

from collections.abc import Collection

from workers.capacity import adviser_options, log_level, say_cost, search_of
from workers.collector import Collector
from workers.levels import Answer, LevelShape, Visit
from workers.settings import Protocol, Scenario


class Capacity(LevelShape):
    def check(self, scenario: Scenario, protocols: Collection[Protocol]) -> None:
        say_cost(scenario, protocols)

    def begin(self, scenario: Scenario) -> int:
        self._search = search_of(scenario)
        self._most_s = scenario.level_most_s
        return self._search.first

    def advice(self, collector: Collector) -> tuple[str, ...]:
        return adviser_options(collector)

    def enough(self, visit: Visit, answer: Answer, measured_s: float) -> bool:
        if answer["done"] or measured_s >= self._most_s:
            return True
        return answer["promising"] and not visit.prove

    def after(self, visit: Visit, answer: Answer) -> tuple[int, bool] | None:
        scouted = answer["promising"] and not visit.prove and answer["outcome"] == "undecided"
        self._search.told[visit.users] = "promising" if scouted else answer["outcome"]
        log_level(visit.users, self._search.told[visit.users], answer)
        return self._search.next()

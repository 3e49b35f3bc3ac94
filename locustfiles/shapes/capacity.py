"""How many at once? Doubles the users while the targets look well, then bisects, proving; with any locustfile."""

from collections.abc import Collection

from workers.capacity import log_level, say_cost, search_of
from workers.levels import Answer, LevelShape, Visit
from workers.settings import Protocol, Scenario


class Capacity(LevelShape):
    def check(self, scenario: Scenario, protocols: Collection[Protocol]) -> None:
        say_cost(scenario, protocols)

    def begin(self, scenario: Scenario) -> tuple[int, bool]:
        self._search = search_of(scenario)
        self._most_s = scenario.level_most_s
        return self._search.next() or (self._search.first, True)

    def alpha(self, scenario: Scenario) -> float:
        return (1 - scenario.capacity_confidence) / search_of(scenario).planned

    def enough(self, visit: Visit, answer: Answer, measured_s: float) -> bool:
        if answer["done"] or measured_s >= self._most_s:
            return True
        return answer["promising"] and not visit.prove

    def after(self, visit: Visit, answer: Answer) -> tuple[int, bool] | None:
        scouted = answer["promising"] and not visit.prove and answer["outcome"] == "undecided"
        self._search.told[visit.users] = "promising" if scouted else answer["outcome"]
        log_level(visit.users, self._search.told[visit.users], answer)
        return None if answer["gone"] else self._search.next()

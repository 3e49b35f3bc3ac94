"""Users in levels (1, 2, 4, 8, 16, 32 by default), each warmed up and measured for a while; with any locustfile."""

from workers.levels import Answer, LevelShape, Visit
from workers.settings import Scenario


class Levels(LevelShape):
    def begin(self, scenario: Scenario) -> tuple[int, bool]:
        self._left = list(scenario.levels)
        self._level_s = scenario.level_s
        return self._left.pop(0), False

    def alpha(self, scenario: Scenario) -> float:
        return 0.05 / len(scenario.levels)

    def enough(self, visit: Visit, answer: Answer, measured_s: float) -> bool:
        return measured_s >= self._level_s

    def after(self, visit: Visit, answer: Answer) -> tuple[int, bool] | None:
        return (self._left.pop(0), False) if self._left else None

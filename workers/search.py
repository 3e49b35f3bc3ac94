"""Which level a capacity search tries next: double while it looks well, then bisect, proving. Pure.

Doubling only scouts: a level that looks well is gone beyond without a proof, since few users make few turns a minute.
Near the answer every level is proven, and so is the largest that passed.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

Told = Literal["promising", "pass", "fail", "undecided"]


@dataclass(slots=True)
class Search:
    """Levels of users from `first` to `most`; ends when those that pass and those that do not are near enough.

    step: how near, as a share of the answer; always at least one user. Assumed: what fails at a level fails above it.
    """

    first: int
    most: int
    step: float = 0.1
    told: dict[int, Told] = field(default_factory=dict)

    @property
    def passed(self) -> int:
        """The largest level proven to pass, below any that did not; 0 where there is none."""
        return max((n for n, told in self.told.items() if told == "pass" and n < self._beyond), default=0)

    @property
    def failed(self) -> int | None:
        """The smallest level proven to fail."""
        return min((n for n, told in self.told.items() if told == "fail"), default=None)

    @property
    def undecided(self) -> list[int]:
        """Levels of which neither was proven, ascending."""
        return sorted(n for n, told in self.told.items() if told == "undecided")

    @property
    def planned(self) -> int:
        """How many levels may be judged: doublings, bisections, and two more. The search ends where these are spent."""
        return math.ceil(math.log2(max(1.0, self.most / self.first))) + 2 + math.ceil(math.log2(1 / self.step))

    @property
    def _beyond(self) -> float:
        return min((n for n, told in self.told.items() if told in ("fail", "undecided")), default=math.inf)

    def next(self) -> tuple[int, bool] | None:
        """The next level, and whether it is to be proven; None when the search is over."""
        found = self._next()
        spent = len(self.told) >= self.planned and found is not None and found[0] not in self.told
        return None if spent else found

    def _next(self) -> tuple[int, bool] | None:
        if not self.told:
            return self.first, self.first == self.most
        beyond = self._beyond
        good = max((n for n, told in self.told.items() if told in ("pass", "promising") and n < beyond), default=0)
        if math.isinf(beyond):
            if good < self.most:
                return min(2 * good, self.most), False
        elif beyond - good > max(1, math.floor(self.step * good)):
            return int(good + beyond) // 2, True
        return (good, True) if good and self.told[good] == "promising" else None

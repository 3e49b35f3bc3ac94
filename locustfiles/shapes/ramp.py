"""Users climb evenly from 1 to --users over --run-time; with any locustfile. Reports of calls tell latency by load."""

from typing import Any

from locust import LoadTestShape

_FASTEST = 100.0


class Ramp(LoadTestShape):
    runner: Any
    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        options = self.runner.environment.parsed_options
        most, over_s = options.num_users or 1, float(options.run_time or 300)
        passed_s = self.get_run_time()  # type: ignore[no-untyped-call]
        if passed_s >= over_s:
            return None
        return max(1, min(most, round(most * passed_s / over_s))), _FASTEST

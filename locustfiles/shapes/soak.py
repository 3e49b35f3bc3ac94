"""--users arrive evenly over the warm-up, not all at once, and stay until --run-time is over; with any locustfile."""

from typing import Any

from locust import LoadTestShape

from workers import hooks


class Soak(LoadTestShape):
    runner: Any
    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        options = self.runner.environment.parsed_options
        users, warm_up_s = options.num_users or 1, hooks.scenario_of(self.runner.environment).warm_up_s
        if self.get_run_time() >= float(options.run_time or 1800):  # type: ignore[no-untyped-call]
            return None
        return users, max(users / warm_up_s, 0.01) if warm_up_s else float(users)

"""The master's end of dealing: hears users' wishes, passes on what the Dealer deals, and ends the run when all is over.

hooks.py registers the messages in which it talks with workers; in a single process the two ends call each other.
"""

import logging
import time
from collections.abc import Callable, Collection
from typing import Any

import gevent
from locust.runners import STATE_MISSING, STATE_SPAWNING, MasterRunner

from workers.dealing import Dealing, Said
from workers.iterations import Dealer, Grant, Iteration, parts_of
from workers.settings import Scenario
from workers.station import worker_name

LOCAL = "local"
SAID = "cicada_iteration"  # worker to master: run, said, iteration
GRANT = "cicada_grant"  # master to worker: run, iteration, left_s

_LOOK_S = 0.5  # between two looks at which workers are there
_SPAWNING_S = 5.0

_log = logging.getLogger("cicada")


class Dealt:
    """A run's iterations, as the master deals them."""

    def __init__(
        self,
        scenario: Scenario,
        send: Callable[[Grant], None],
        workers: Callable[[], Collection[str]],
        end: Callable[[], None],
    ) -> None:
        """workers: those that are there now. end: called once, when there is nothing left to deal."""
        assert scenario.mode is not None
        assert scenario.concurrency is not None
        parts = parts_of(scenario.mode, scenario.iterations, scenario.duration, scenario.concurrency)
        self._dealer = Dealer(parts)
        self._send, self._workers, self._end = send, workers, end
        self._mode: str | None = None
        self._told_of = 0
        self._closed = False
        self._looking = gevent.spawn(self._look)

    @property
    def lost(self) -> list[dict[str, object]]:
        """What was under way at workers that were lost."""
        return [{"worker": worker_name(worker), **iteration._asdict()} for worker, iteration in self._dealer.lost]

    def hear(self, worker: str, said: Said, iteration: Iteration) -> None:
        """A worker says that a user waits, is through, or was gone when its iteration came."""
        now = time.monotonic()
        match said:
            case "ask":
                self._pass_on(self._dealer.ask(worker, now))
            case "over":
                self._pass_on(self._dealer.over(worker, iteration, now))
            case "back":
                self._pass_on(self._dealer.give_back(worker, iteration, now))

    def close(self) -> None:
        """Nothing more is dealt."""
        self._closed = True
        self._looking.kill(block=False)

    def _look(self) -> None:
        """A worker that was killed says nothing, and the time of a part may be up while nobody asks."""
        while not self._closed:
            gevent.sleep(_LOOK_S)
            self._pass_on(self._dealer.here(self._workers(), time.monotonic()))

    def _pass_on(self, grants: list[Grant]) -> None:
        for worker, iteration in self._dealer.lost[self._told_of :]:
            where = worker_name(worker)
            _log.error("%s was under way at worker %s, which is lost: it is not made again", _named(iteration), where)
        self._told_of = len(self._dealer.lost)
        if self._closed:
            return
        for grant in grants:
            if grant.iteration.mode != self._mode:
                self._mode = grant.iteration.mode
                _log.info("mode %s begins", self._mode)
            self._send(grant)
        if self._dealer.all_over and not self._closed:  # sending may have ended it
            self._closed = True
            self._end()


def begin(environment: Any, scenario: Scenario, run: str, here: Callable[[], Dealing]) -> Dealt | None:
    """The master's end of a run that begins; None in one without iterations. here: the end in this very process."""
    runner = environment.runner
    if scenario.mode is None:
        return None
    if not isinstance(runner, MasterRunner):
        return Dealt(
            scenario,
            lambda grant: here().granted(grant.iteration, grant.left_s),
            lambda: [LOCAL],
            lambda: _end(environment),
        )
    return Dealt(
        scenario,
        lambda grant: runner.send_message(
            GRANT, {"run": run, "iteration": list(grant.iteration), "left_s": grant.left_s}, grant.worker
        ),
        lambda: [client.id for client in runner.clients.all if client.state != STATE_MISSING],
        lambda: _end(environment),
    )


def _end(environment: Any) -> None:
    _log.info("all iterations are over")
    gevent.spawn(_end_run, environment)


def _end_run(environment: Any) -> None:
    """As Locust does when a --run-time is over."""
    runner, options = environment.runner, environment.parsed_options
    until = time.monotonic() + _SPAWNING_S
    while runner.state == STATE_SPAWNING and time.monotonic() < until:
        gevent.sleep(0.02)  # a run that is stopped while users are on their way is set to running again when they came
    if options.headless:
        runner.quit()
        return
    runner.stop()
    if options.autostart and options.autoquit != -1:
        gevent.sleep(options.autoquit)
        runner.quit()
        environment.web_ui.stop()


def _named(iteration: Iteration) -> str:
    number = "" if iteration.number is None else f", iteration {iteration.number}"
    return f"mode {iteration.mode}{number}"

"""The only file that registers Locust events: it ties runs, logs and messages to a master's and a worker's life.

Where what happens:
    init          options checked, messages registered, SIGINT of workers tamed
    test_start    master: run directory, identity into parsed_options; worker: joins the run it finds there
    test_stopping master (or a single process): the drain; never in a worker, whose receive loop must stay free
    test_stop     master: run.json closed, tables made; worker: what is left is closed
"""

import gc
import logging
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import gevent
from gevent.event import Event
from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import STATE_MISSING, LocalRunner, MasterRunner, WorkerRunner

from workers import asked, manifest, master_dealing, target_facts, targets
from workers import spoken as spoken_of
from workers.audio.clips import ClipError
from workers.clients.http_connection import BadTarget
from workers.collector import Collector
from workers.dealing import Dealing, Said
from workers.iterations import Iteration
from workers.nothing_came import say_if_nothing_came
from workers.recordings import RecordingError
from workers.run import LiveRun
from workers.samples.measure import Turn
from workers.samples.recorder import LogFull
from workers.settings import Scenario, ScenarioError, add_arguments, resolve, resolve_texts
from workers.station import HAND_OVER_S, Station, worker_name

EXIT_INCOMPLETE = 3  # a worker or rows were lost, or recording had to stop

_MASTER_SILENT_S = 5.0
_LOOK_S = 0.2

_log = logging.getLogger("cicada")


class _Failure(Exception):
    """What Locust's failure table shows, which prints reprs."""

    def __repr__(self) -> str:
        return str(self)


class _Closing(NamedTuple):
    """A run that this master (or single process) is closing, and who is at it."""

    collector: Collector
    greenlet: Any
    done: Event

    @property
    def over(self) -> bool:
        return self.done.is_set() or bool(self.greenlet.dead)


_station: Station | None = None
_master: Collector | None = None
_closing: _Closing | None = None
_quitting = False  # the process is on its way out


def live_run() -> LiveRun | None:
    """The run this process takes part in, if any."""
    return _station.run if _station is not None else None


def collector() -> Collector | None:
    """The run that this master (or single process) leads, if any."""
    return _master


def scenario_of(environment: Environment) -> Scenario:
    """What the options and the scenario file ask for. Raises ScenarioError."""
    options: Any = environment.parsed_options
    return resolve(options, targets.protocols(environment.user_classes))


def enter_level(environment: Environment, users: int, measured: bool) -> None:
    """Tell all workers that turns belong to this level from now on, and whether they count."""
    runner: Any = environment.runner
    if isinstance(runner, MasterRunner):
        runner.send_message("cicada_level", _level(users, measured))
    elif (run := live_run()) is not None:
        run.enter_level(users, measured=measured)


def _level(users: int, measured: bool) -> dict[str, Any]:
    assert _master is not None
    _master.level = (users, measured)
    return {"run": _master.run, "users": users, "measured": measured}


def tell_locust(environment: Any, run: LiveRun, turn: Turn, took_s: float, figures: dict[str, float | None]) -> None:
    """Give Locust's tables their figures: a turn is a request; `figures` (TTFC, TTFA ...) stand beside it, as none."""
    failure = None
    if turn.error_kind is not None:
        # One line a kind: Locust groups failures by their text.
        failure = run.error_lines.setdefault(turn.error_kind, f"{turn.error_kind}: {turn.error}")
    try:
        environment.events.request.fire(
            request_type=turn.dialect,
            name="turn",
            response_time=took_s * 1000,
            response_length=turn.audio_bytes,
            exception=_Failure(failure) if failure else None,
            context={"request_id": turn.request_id, "text_name": turn.text_name},
            response=None,
        )
        if turn.ok:
            entries = environment.stats.entries
            for name, seconds in figures.items():
                if seconds is not None:
                    entries[name, turn.dialect].log(max(0.0, seconds) * 1000, 0)
    except Exception:  # a listener of the user's: its failure must not cost the turn
        run.listener_errors += 1
        _log.exception("telling Locust of a turn failed")


@events.init_command_line_parser.add_listener
def _on_parser(parser: LocustArgumentParser, **_: Any) -> None:
    add_arguments(parser)


@events.init.add_listener
def _on_init(environment: Environment, runner: Any, **_: Any) -> None:
    global _station  # noqa: PLW0603 - a process is in one run at a time
    _tame_sigint(runner)
    if isinstance(runner, MasterRunner | LocalRunner):
        asked.check_options(environment)
    if isinstance(runner, MasterRunner):
        runner.register_message("cicada_joined", _on_joined)
        runner.register_message("cicada_rows", _on_rows)
        runner.register_message("cicada_drained", _on_drained)
        runner.register_message("cicada_trouble", _on_trouble, concurrent=True)
        runner.register_message("cicada_parcel", _on_parcel)
        runner.register_message(master_dealing.SAID, _on_iteration)
    else:
        _station = Station(
            runner,
            lambda line: _tell_trouble(environment, line),
            lambda run, said, iteration: _say_of_iteration(runner, run, said, iteration),
        )
    if isinstance(runner, WorkerRunner):
        runner.register_message("cicada_ack", _on_ack)
        runner.register_message("cicada_level", _on_level)
        runner.register_message(master_dealing.GRANT, _on_grant)
        runner.register_message("cicada_parcel_ack", _on_parcel_ack)
        runner.register_message("cicada_drain", _on_drain, concurrent=True)
    # libev counts timers from when it last looked at the clock, before the imports: --run-time would be short by them.
    gevent.get_hub().loop.update_now()


# ---- test_start


@events.test_start.add_listener
def _on_test_start(environment: Environment, **_: Any) -> None:
    runner: Any = environment.runner
    options: Any = environment.parsed_options
    if not isinstance(runner, WorkerRunner):
        options.cicada_run = None
        try:
            options.cicada_run = _begin_run(environment)
        except (ScenarioError, BadTarget, ClipError, RecordingError, OSError) as error:
            line = f"no run was started: {error}"
            stop_for(environment, line, asked.EXIT_ASKED_WRONG)
            return
    if _station is None or options.cicada_run is None:
        return
    facts = _station.join(options.cicada_run)
    if facts is not None and isinstance(runner, WorkerRunner):
        runner.send_message("cicada_joined", facts)
    elif facts is not None and _master is not None:
        _master.joined(facts)


def _begin_run(environment: Environment) -> dict[str, Any]:
    global _master  # noqa: PLW0603 - as above
    options: Any = environment.parsed_options
    runner: Any = environment.runner
    scenario = scenario_of(environment)
    hosts = asked.check(environment, scenario)
    shape: Any = environment.shape_class
    if hasattr(shape, "check"):
        shape.check(scenario, list(hosts))
    spoken = spoken_of.choose(scenario) if "personaplex" in hosts else None
    run_dir = manifest.new_run_dir(Path(scenario.runs_dir), scenario.name)
    users = options.num_users
    servers = targets.servers(environment, scenario) if "personaplex" in hosts else []
    places = {*hosts.values(), *servers}
    facts = manifest.opening(run_dir.name, " ".join(sorted(places)), scenario.model_dump(mode="json"), users, sys.argv)
    if spoken is not None:
        facts |= {"mock": scenario.mock, "recordings": spoken.told()}
    _master = Collector(run_dir, facts)
    _master.dealt = master_dealing.begin(environment, scenario, _master.run, _dealing_here)
    gevent.spawn(_master.ask_target, places)
    _log.info("rows go to %s", run_dir)
    if "voice_agent" in hosts and hosts["voice_agent"] != environment.host:
        _log.info("calls go to %s", manifest.without_credentials(hosts["voice_agent"]))
    distributed = isinstance(runner, MasterRunner)
    names = [worker_name(client.id) for client in runner.clients.ready] if distributed else []
    if isinstance(runner, LocalRunner) and _station is not None:
        names = [_station.worker]
    ramp_s = (users or 1) / (options.spawn_rate or 1) if environment.shape_class is None else 0.0
    now = time.time()
    told = scenario if spoken is None else spoken.scenario
    return {
        "run": run_dir.name,
        "run_dir": str(run_dir),
        "scenario": told.model_dump(mode="json", exclude={"metrics"}),  # whose URLs may hold a password
        "texts": resolve_texts(scenario),
        "hosts": hosts,
        "servers": servers,
        "clips": targets.fingerprint(scenario) if "voice_agent" in hosts else None,
        "recordings": targets.fingerprint_of(spoken.recordings) if spoken is not None and distributed else None,
        "starts_wall_at": now,
        # An open loop begins when its users are there: starts nobody could take would say nothing of the target.
        "open_loop_wall_at": now + ramp_s + 1.0,
        "share": {name: [index, len(names)] for index, name in enumerate(names)},
        "level": getattr(shape, "level", None),
        "dealt": scenario.mode is not None,
    }


def stop_for(environment: Environment, line: str, code: int = EXIT_INCOMPLETE) -> None:
    """Something makes going on pointless: say it once, and end the run (and the process, where nobody is watching)."""
    if _master is not None:
        if _master.trouble is not None and environment.process_exit_code is not None:
            return
        _master.trouble = line
    options: Any = environment.parsed_options
    if code != asked.EXIT_ASKED_WRONG or options.headless:  # a slip in the web UI's form is no verdict on the session
        environment.process_exit_code = code
    _log.error(line)
    runner: Any = environment.runner
    gevent.spawn(runner.quit if options.headless else runner.stop)


@events.spawning_complete.add_listener
def _on_spawning_complete(**_: Any) -> None:
    if live_run() is not None:
        gc.freeze()  # all users are here now, and stay: looking through a thousand again and again costs 50 ms each


# ---- messages at the master


def _on_joined(environment: Environment, msg: Any, **_: Any) -> None:
    if _master is not None and msg.data["run"] == _master.run:
        _master.joined(msg.data)
        if _master.level is not None:  # it came while the run was at a level
            runner: Any = environment.runner
            runner.send_message("cicada_level", _level(*_master.level), msg.node_id)


def _on_rows(environment: Environment, msg: Any, **_: Any) -> None:
    data = msg.data
    runner: Any = environment.runner
    if _master is None or data["run"] != _master.run:
        # A worker that was cut off while its run ended: it must stop too. Its rows stay in its spool, which was named.
        runner.send_message("stop", None, msg.node_id)
        return
    try:
        offset = _master.take(data["worker"], data["offset"], data["data"])
    except LogFull:
        assert _master.trouble is not None
        stop_for(environment, _master.trouble)
        return
    runner.send_message("cicada_ack", {"run": _master.run, "offset": offset}, msg.node_id)


def _on_drained(environment: Environment, msg: Any, **_: Any) -> None:
    if _master is not None and msg.data["run"] == _master.run:
        _master.drained(msg.data)


def _on_parcel(environment: Environment, msg: Any, **_: Any) -> None:
    data = msg.data
    runner: Any = environment.runner
    if _master is not None and data["run"] == _master.run:
        _master.take_parcel(data["name"], data["offset"], data["data"])
    runner.send_message("cicada_parcel_ack", {"run": data["run"]}, msg.node_id)


def _on_trouble(environment: Environment, msg: Any, **_: Any) -> None:
    stop_for(environment, msg.data["line"])


def _on_iteration(environment: Environment, msg: Any, **_: Any) -> None:
    data = msg.data
    if _master is not None and _master.dealt is not None and data["run"] == _master.run:
        _master.dealt.hear(msg.node_id, data["said"], Iteration(*data["iteration"]))


# ---- messages at a worker


def _on_ack(environment: Environment, msg: Any, **_: Any) -> None:
    station = _station
    if station is None or station.relay is None or station.run is None or msg.data["run"] != station.run.id:
        return  # of a run that is over for this worker
    station.relay.acknowledge(msg.data["offset"])


def _on_level(environment: Environment, msg: Any, **_: Any) -> None:
    run = live_run()
    if run is not None and msg.data["run"] == run.id:
        run.enter_level(msg.data["users"], measured=msg.data["measured"])


def _on_grant(environment: Environment, msg: Any, **_: Any) -> None:
    run = live_run()
    if run is not None and msg.data["run"] == run.id:
        run.dealing.granted(Iteration(*msg.data["iteration"]), msg.data["left_s"])


def _on_parcel_ack(environment: Environment, msg: Any, **_: Any) -> None:
    if _station is not None and _station.parcels is not None:
        _station.parcels.acknowledge()


def _on_drain(environment: Environment, msg: Any, **_: Any) -> None:
    if _station is not None and _station.run is not None and msg.data["run"] == _station.run.id:
        _drain_here(environment, msg.data["grace_s"])


# ---- the end


@events.test_stopping.add_listener
def _on_test_stopping(environment: Environment, **_: Any) -> None:
    global _closing  # noqa: PLW0603 - as above
    runner: Any = environment.runner
    if _master is not None and (_closing is None or _closing.collector is not _master):
        _closing = _Closing(_master, gevent.getcurrent(), Event())
    if _master is not None and _master.dealt is not None:
        _master.dealt.close()
    if isinstance(runner, MasterRunner) and _master is not None:
        _drain_workers(runner, environment)
    elif isinstance(runner, LocalRunner):
        _drain_here(environment, _grace_s(environment))


def _drain_here(environment: Environment, grace_s: float) -> None:
    told = _station.drain(grace_s) if _station is not None else None
    if told is None:
        return
    if isinstance(environment.runner, WorkerRunner):
        environment.runner.send_message("cicada_drained", told)
    elif _master is not None:
        _master.drained(told)


def _tell_trouble(environment: Environment, line: str) -> None:
    """Something here makes going on pointless: the master decides."""
    if isinstance(environment.runner, WorkerRunner):
        environment.runner.send_message("cicada_trouble", {"line": line})
    else:
        stop_for(environment, line)


def _say_of_iteration(runner: Any, run: str, said: Said, iteration: Iteration) -> None:
    if isinstance(runner, WorkerRunner):
        runner.send_message(master_dealing.SAID, {"run": run, "said": said, "iteration": list(iteration)})
    elif _master is not None and _master.dealt is not None:
        _master.dealt.hear(master_dealing.LOCAL, said, iteration)


def _dealing_here() -> Dealing:
    run = live_run()
    assert run is not None
    return run.dealing


def _grace_s(environment: Environment) -> float:
    options: Any = environment.parsed_options
    run: dict[str, Any] | None = getattr(options, "cicada_run", None)
    return float(environment.stop_timeout or (Scenario.model_validate(run["scenario"]).drain_s if run else 0.0))


def _drain_workers(runner: MasterRunner, environment: Environment) -> None:
    """Ask every worker for the rest of its rows and wait while any is coming."""
    collector = _master  # a second stop may end the run while this one waits
    assert collector is not None
    grace_s = _grace_s(environment)
    clients = {worker_name(client): client for client in runner.clients}
    for client in clients.values():
        runner.send_message("cicada_drain", {"run": collector.run, "grace_s": grace_s}, client)
    quiet_until = time.monotonic() + grace_s + HAND_OVER_S
    say_at = time.monotonic() + 5.0
    seen = -1
    while True:
        waiting = [
            worker
            for worker in collector.workers
            if not collector.complete(worker)
            and worker in clients
            and clients[worker] in runner.clients
            and runner.clients[clients[worker]].state != STATE_MISSING
        ]
        now = time.monotonic()
        here = sum(collector.size(worker) for worker in collector.workers)
        if here > seen:
            seen, quiet_until = here, max(quiet_until, now + HAND_OVER_S)
        if not waiting or now > quiet_until or collector.full:
            return
        if now > say_at:
            _log.info("waiting for %d workers to end their turns and hand over their rows", len(waiting))
            say_at = now + 5.0
        gevent.sleep(0.02)


@events.test_stop.add_listener
def _on_test_stop(environment: Environment, **_: Any) -> None:
    global _master
    if _station is not None:
        _station.leave()
    if _master is None:
        return
    collector, _master = _master, None
    shape: Any = environment.shape_class
    if hasattr(shape, "end"):
        shape.end()
    missing = collector.finish()
    for line in missing:
        _log.error(line)
    if missing or collector.trouble:
        environment.process_exit_code = environment.process_exit_code or EXIT_INCOMPLETE
    elif collector.targets:  # they, not Locust's count of failures, say whether it went well
        environment.process_exit_code = collector.exit_code
    say_if_nothing_came(environment, collector)
    turns = sum(facts["turns"] or 0 for facts in collector.workers.values())
    lost = "not all of it went well, see above" if missing or collector.trouble else "nothing lost"
    _log.info("run %s: %d turns of %d workers, %s", collector.run, turns, len(collector.workers), lost)
    if hosts := target_facts.random_weights(collector.manifest.get("target_facts", {})):
        _log.warning("%s (%s)", target_facts.RANDOM_WEIGHTS, ", ".join(hosts))
    verb = "capacity" if collector.manifest.get("levels") else "report"
    _log.info("read it with: python -m analysis.%s %s", verb, collector.run_dir)
    if _closing is not None:
        _closing.done.set()


@events.quitting.add_listener
def _on_quitting(environment: Environment, **_: Any) -> None:
    """A run that is being closed is closed first: the exit status is read after this.

    A worker that is told to go (SIGTERM, Ctrl-C twice) ends its turns and hands over before it says goodbye.
    """
    global _quitting  # noqa: PLW0603 - as above
    _quitting = True
    closing = _closing
    while closing is not None and not closing.over and closing.greenlet is not gevent.getcurrent():
        closing.done.wait(_LOOK_S)
    station = _station
    if isinstance(environment.runner, WorkerRunner) and station is not None and not station.drain_asked:
        _drain_here(environment, _grace_s(environment))


def _tame_sigint(runner: Any) -> None:
    """Let Ctrl-C reach the main greenlet, and there only.

    Python runs a signal's handler in whatever greenlet happens to run: a KeyboardInterrupt in the greenlet that
    receives messages, or in a callback that reads sockets, would end it, and rows with it.

    Ctrl-C reaches every process of a terminal. Workers leave it to the master, which drains them first; a second
    one, or one while the master is silent, is for the worker itself. A run that is being closed is closed all the
    same, unless Ctrl-C comes twice.
    """
    times = 0

    def on_sigint() -> None:
        nonlocal times
        times += 1
        if isinstance(runner, WorkerRunner) and live_run() is not None and times == 1:
            heard_at = runner.last_heartbeat_timestamp or 0.0
            if time.time() - heard_at <= _MASTER_SILENT_S:
                gevent.spawn_later(_MASTER_SILENT_S, alone)
                return
        main = gevent.get_hub().parent
        closing = _closing
        if closing is not None and not closing.over:
            if times == 1:
                _log.info("the run is being closed; Ctrl-C again leaves it as it is")
            else:
                _log.error("run %s is left half closed; then: %s", closing.collector.run, closing.collector.mended_by())
                gevent.kill(closing.greenlet, SystemExit(asked.EXIT_INTERRUPTED))
                return
            if closing.greenlet is main:
                return
        if not _quitting:
            interrupt()
        elif times > 1:
            gevent.kill(main, SystemExit(asked.EXIT_INTERRUPTED))

    def alone() -> None:
        if _station is not None and _station.run is not None and not _station.drain_asked:
            interrupt()

    def interrupt() -> None:
        gevent.kill(gevent.get_hub().parent, KeyboardInterrupt)

    gevent.signal_handler(signal.SIGINT, on_sigint)

"""What a run is asked to do, looked at before anything starts: refused in a line, or made ready (mock, download).

Knows nothing of runs under way.
"""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import gevent
from locust.env import Environment
from locust.runners import MasterRunner

from workers import adviser, mock_server, recordings, spoken, targets
from workers.audio.clips import ClipError
from workers.clients.http_connection import BadTarget
from workers.recordings import RecordingError
from workers.settings import Scenario, ScenarioError, as_clients, resolve

EXIT_ASKED_WRONG = 2  # the scenario or the target cannot be run
EXIT_INTERRUPTED = 130  # as a shell says it of Ctrl-C

_MOCK_SESSIONS = 64


def check_options(environment: Environment) -> None:
    """Refuse a scenario or target that cannot be run before anything starts; a web UI may be told the target later."""
    options: Any = environment.parsed_options
    try:
        scenario = resolve(options, targets.protocols(environment.user_classes))
        if scenario.download_samples:
            _download(environment, scenario)
        if scenario.mock:
            _mock(environment, scenario)
        hosts = check(environment, scenario) if options.headless or options.autostart or environment.host else {}
        if "personaplex" in hosts and not scenario.mock:
            spoken.choose(scenario)
        as_clients(options, scenario)
    except (ScenarioError, BadTarget, ClipError, RecordingError, OSError) as error:
        print(f"cicada: {error}", file=sys.stderr, flush=True)
        _dismiss_forked_workers(environment)
        sys.exit(EXIT_ASKED_WRONG)
    except KeyboardInterrupt:
        print("cicada: interrupted before the run began", file=sys.stderr, flush=True)
        with suppress(KeyboardInterrupt):
            _dismiss_forked_workers(environment)
        sys.exit(EXIT_INTERRUPTED)


def _download(environment: Environment, scenario: Scenario) -> NoReturn:
    """--download-samples: fetch and list the official recordings, and begin no run."""
    status = recordings.download_command(recordings.folder(scenario.cache_dir, scenario.samples_dir))
    _dismiss_forked_workers(environment)
    sys.exit(status)


def _mock(environment: Environment, scenario: Scenario) -> None:
    """--mock: the run's host is a server of its own. Raises ScenarioError, RecordingError, OSError."""
    if "personaplex" not in targets.protocols(environment.user_classes):
        raise ScenarioError("scenario: mock: is for full-duplex users only (locustfiles/talk_personaplex.py)")
    if scenario.servers or targets.host_was_asked():
        raise ScenarioError("scenario: mock: starts a server of its own; leave out --host and servers, or --mock")
    spoken.choose(scenario)  # what is wrong with it is said before a server is there
    options: Any = environment.parsed_options
    sessions = max(scenario.concurrency or 0, options.num_users or 0) or _MOCK_SESSIONS
    environment.host, engine = mock_server.start(sessions)
    print(
        f"cicada: --mock: the bundled server answers at {environment.host}, with {engine} speech:"
        " figures of this run are of no model",
        flush=True,
    )


def check(environment: Environment, scenario: Scenario) -> dict[str, str]:
    """Hosts by protocol, once what was asked for can be run and judged. Raises ScenarioError, BadTarget, ClipError."""
    if scenario.mode is not None and environment.shape_class is not None:
        raise ScenarioError("scenario: mode: iterations and a load shape do not go together; leave one of them out")
    hosts = targets.check(environment, scenario)
    if output := scenario.output or ("reports" if scenario.mode is not None else None):
        _refuse_unwritable(Path(output))
    if scenario.targets is not None:
        try:
            adviser.check(scenario.targets, hosts, scenario.barge_in_share)
        except ValueError as error:
            raise ScenarioError(str(error)) from None
    return hosts


def _refuse_unwritable(output: Path) -> None:
    """The file (or the folder) for the run as JSON, found wanting before the run. Raises ScenarioError."""
    there = next(path for path in (output, *output.absolute().parents) if path.exists())
    if there != output and not there.is_dir():
        why = f"{there} is no folder"
    elif not os.access(there, os.W_OK):
        why = f"{there} is not to be written to"
    else:
        return
    raise ScenarioError(f"scenario: output: {output} cannot be written: {why}; name another file: --output FILE")


def _dismiss_forked_workers(environment: Environment) -> None:
    """Workers that `--processes` has forked are told to go: nobody else would, and they would wait for a minute."""
    options: Any = environment.parsed_options
    runner: Any = environment.runner
    if isinstance(runner, MasterRunner) and options.processes:
        until = time.monotonic() + 5.0
        while len(runner.clients) < options.processes and time.monotonic() < until:
            gevent.sleep(0.01)
        gevent.sleep(0.5)  # they say that they are ready a little before they are
        runner.quit()

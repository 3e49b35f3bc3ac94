"""Say it where a run brought nothing, and what that may come from: S3's "no results". Knows Locust's tables only."""

import logging

from locust.env import Environment

from workers import targets
from workers.collector import Collector

_NOT_REACHED = ("connection_refused", "dns_failure", "unreachable", "tls_failure", "connect_timeout", "http_", "not_")

_log = logging.getLogger("cicada")


def say_if_nothing_came(environment: Environment, collector: Collector) -> None:
    """S3: no results, and why that may be."""
    turns = [entry for (name, _), entry in environment.stats.entries.items() if name == "turn"]
    if collector.trouble:
        return
    if not turns and not any(facts["turns"] for facts in collector.workers.values()):
        _log.warning("no turn was begun: the run was over too soon, or no worker took part; a longer --run-time?")
        return
    if any(entry.num_requests > entry.num_failures for entry in turns):
        return
    failures = sorted(environment.stats.errors.values(), key=lambda error: -error.occurrences)
    most = f" Most often: {str(failures[0].error).rstrip('.?')}." if failures else ""
    if failures and str(failures[0].error).startswith("rejected"):
        _log.error("no turn was accepted by your own checks.%s", most)
        return
    host = collector.manifest["host"]
    kind = str(failures[0].error).partition(":")[0] if failures else ""
    if kind == "ws_closed_1003":
        guess = "The server may speak another dialect (--dialect)"
    elif kind == "handshake_timeout":
        guess = "Such a server serves one session at a time: another may have it"
    elif kind == "ws_closed_1006" and "personaplex" in targets.protocols(environment.user_classes):
        guess = "It may not know the voice_prompt, or not take the text_prompt"
    elif kind.startswith(_NOT_REACHED):
        guess = f"It may be that {host} cannot be reached"
    else:
        folder = collector.manifest["scenario"]["audio_dir"]
        calls = "voice_agent" in targets.protocols(environment.user_classes)
        audio = f", or that it does not take these queries (python -m workers clips check {folder})" if calls else ""
        guess = f"It may be that {host} answers nobody{audio}"
    _log.error("no turn was answered.%s %s; check the server's log", most, guess)

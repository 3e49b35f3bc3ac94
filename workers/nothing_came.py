"""Say it where a run brought nothing, and what that may come from: S3's "no results". Knows Locust's tables only."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workers import targets
from workers.collector import Collector
from workers.settings import Protocol

if TYPE_CHECKING:
    from locust.env import Environment

_OURS = ("ear_lost", "internal_error")
_UNREACHED = "It may be that {host} cannot be reached"
_ANOTHER = "{host} was reached: it may be a server of another kind, or at another port"
_FULL = "{host} was reached: it may be full, or not be ready yet"
_GUESSES = {
    "ws_closed_1003": "The server may speak another dialect (--dialect)",
    "handshake_timeout": "Such a server serves one session at a time: another may have it",
    **dict.fromkeys(("connection_refused", "dns_failure", "unreachable", "connect_timeout"), _UNREACHED),
    **dict.fromkeys(("not_websocket", "not_http"), _ANOTHER),
    **dict.fromkeys(("http_429", "http_503"), _FULL),
    "tls_failure": "{host} was reached: it may speak no TLS, or nobody may vouch for its certificate (--insecure)",
    "http_": "{host} was reached: it may want another path (--path), or a token (CICADA_TOKEN)",
    "http_5": "{host} was reached: it failed",
}

_log = logging.getLogger("cicada")


def say_if_nothing_came(environment: "Environment", collector: Collector) -> None:
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
    kind = str(failures[0].error).partition(":")[0] if failures else ""
    if kind in _OURS:
        _log.error("no turn was answered.%s That is a fault of ours, not of the server's: please report it", most)
        return
    folder = collector.manifest["scenario"]["audio_dir"]
    guess = _guess(kind, collector.manifest["host"], targets.protocols(environment.user_classes), folder)
    _log.error("no turn was answered.%s %s; check the server's log", most, guess)


def _guess(kind: str, host: str, protocols: Sequence[Protocol], audio_dir: str) -> str:
    """What a server that failed in this way may be."""
    if kind == "ws_closed_1006" and "personaplex" in protocols:
        return "It may not know the voice_prompt, or not take the text_prompt"
    if kind in _GUESSES:
        return _GUESSES[kind].format(host=host)
    if kind.startswith("http_"):
        return _GUESSES["http_5" if kind.startswith("http_5") else "http_"].format(host=host)
    calls = "voice_agent" in protocols
    audio = f", or that it does not take these queries (python -m workers clips check {audio_dir})" if calls else ""
    return f"It may be that {host} answers nobody{audio}"

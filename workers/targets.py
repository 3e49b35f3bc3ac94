"""Where a run's users go, by protocol, checked before anything starts. Knows nothing of connections."""

import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workers.audio import clips
from workers.clients import personaplex
from workers.clients.codecs import CODECS
from workers.clients.http_connection import BadTarget, target
from workers.clients.http_speech import DIALECTS
from workers.clients.line import call_target
from workers.recordings import Recording
from workers.settings import Protocol, Scenario

_ANYWHERE = "0.0.0.0"  # S3's default: this machine


def protocols(user_classes: Iterable[Any]) -> list[Protocol]:
    """What the users of this run speak, http_tts first; users of other kinds than ours speak none of them."""
    found = {getattr(user, "protocol", None) for user in user_classes}
    known: tuple[Protocol, ...] = ("http_tts", "voice_agent", "personaplex")
    return [name for name in known if name in found] or ["http_tts"]


def check(environment: Any, scenario: Scenario) -> dict[str, str]:
    """Host by protocol, all else that workers will need tried out. Raises BadTarget, ClipError.

    Where there are several servers of full-duplex models, the first stands for them: see `servers`.
    """
    hosts: dict[str, str] = {}
    for protocol in protocols(environment.user_classes):
        match protocol:
            case "http_tts":
                dialect = DIALECTS[scenario.dialect_of(protocol)]
                target(environment.host, dialect, scenario.path, scenario.insecure, None)
                hosts[protocol] = environment.host
            case "voice_agent":
                hosts[protocol] = _agent(environment, scenario)
                clips.load(Path(scenario.audio_dir))
            case "personaplex":
                hosts[protocol] = servers(environment, scenario)[0]
    return hosts


def _agent(environment: Any, scenario: Scenario) -> str:
    """Where voice agents are called. Raises BadTarget."""
    asked = scenario.agent_host or environment.host
    host = call_host(asked, scenario.port, was_asked=scenario.agent_host is not None or host_was_asked())
    codec = CODECS[scenario.dialect_of("voice_agent")]
    try:
        path = scenario.path or codec("", scenario.send_rate).path
    except ValueError as error:
        raise BadTarget(f"send_rate: {error}") from None
    try:
        call_target(host, path, scenario.insecure, None)
    except BadTarget as error:
        named = "--agent-host" if scenario.agent_host else "--host"
        raise BadTarget(str(error).replace("--host", named, 1)) from None
    return host


def servers(environment: Any, scenario: Scenario) -> list[str]:
    """Where full-duplex models are: the scenario's servers, else the host. Raises BadTarget."""
    asked = scenario.servers or [environment.host]
    named = "--servers" if scenario.servers else "--host"
    was_asked = bool(scenario.servers) or scenario.mock or host_was_asked()
    found = []
    for one in asked:
        try:
            host = _with_port(call_host(one, personaplex.PORT, was_asked=was_asked))
            where = call_target(host, scenario.path or personaplex.PATH, scenario.insecure, None)
            personaplex.query_of(where.url.query, scenario.voice_prompt, scenario.text_prompt)
        except BadTarget as error:
            line = str(error).replace("--host", named, 1)
            raise BadTarget(line.replace("voice agents", "full-duplex models", 1)) from None
        found.append(host)
    return found


def _with_port(host: str) -> str:
    """Servers of full-duplex models listen at a port of their own, whatever the scheme."""
    scheme, _, rest = host.partition("://")
    place, path = _split(rest)
    return host if ":" in place.rpartition("]")[2] else f"{scheme}://{place}:{personaplex.PORT}{path}"


def _split(rest: str) -> tuple[str, str]:
    """Where, and the path or query there."""
    end = min((at for mark in "/?#" if (at := rest.find(mark)) >= 0), default=len(rest))
    return rest[:end], rest[end:]


def call_host(host: str | None, port: int, *, was_asked: bool) -> str:
    """ws:// or wss:// of a voice agent. An http:// host that nobody asked for is the HTTP users' default. BadTarget."""
    if host and host.startswith(("http://", "https://")):
        if was_asked:
            raise BadTarget(f"--host {host}: voice agents are called at ws://HOST:PORT or wss://HOST:PORT")
        host = None
    if host and "://" in host:
        return host
    place, path = _split(host or _ANYWHERE)
    named = ":" in place.rpartition("]")[2]  # an IPv6 address has colons of its own
    return f"ws://{place}{'' if named else f':{port}'}{path}"


def host_was_asked() -> bool:
    said = any(word in ("-H", "--host") or word.startswith(("--host=", "-H")) for word in sys.argv[1:])
    return said or "LOCUST_HOST" in os.environ


def fingerprint(scenario: Scenario) -> str:
    """Of the queries in the audio folder: workers must have the master's."""
    return _of_clips(clips.load(Path(scenario.audio_dir)))


def fingerprint_of(spoken: Iterable[Recording]) -> str:
    """Of recordings: workers must have the master's."""
    return _of_clips(clip for one in spoken for clip in one.queries)


def _of_clips(queries: Iterable[clips.Clip]) -> str:
    digest = hashlib.sha256()
    for clip in queries:
        digest.update(clip.name.encode() + b"\0" + clip.samples.tobytes())
    return digest.hexdigest()[:16]

"""Where a run's users go, by protocol, checked before anything starts. Knows nothing of connections."""

import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workers.audio import clips
from workers.clients.codecs import CODECS
from workers.clients.http_connection import BadTarget, target
from workers.clients.http_speech import DIALECTS
from workers.clients.line import call_target
from workers.settings import Protocol, Scenario

_ANYWHERE = "0.0.0.0"  # S3's default: this machine


def protocols(user_classes: Iterable[Any]) -> list[Protocol]:
    """What the users of this run speak, http_tts first; users of other kinds than ours speak none of them."""
    found = {getattr(user, "protocol", None) for user in user_classes}
    known: tuple[Protocol, ...] = ("http_tts", "voice_agent")
    return [name for name in known if name in found] or ["http_tts"]


def check(environment: Any, scenario: Scenario) -> dict[str, str]:
    """Host by protocol, all else that workers will need tried out. Raises BadTarget, ClipError."""
    hosts: dict[str, str] = {}
    for protocol in protocols(environment.user_classes):
        if protocol == "http_tts":
            dialect = DIALECTS[scenario.dialect_of(protocol)]
            target(environment.host, dialect, scenario.path, scenario.insecure, None)
            hosts[protocol] = environment.host
        else:
            asked = scenario.agent_host or environment.host
            was_asked = scenario.agent_host is not None or _host_was_asked()
            hosts[protocol] = call_host(asked, scenario.port, was_asked=was_asked)
            codec = CODECS[scenario.dialect_of(protocol)]
            try:
                path = scenario.path or codec("", scenario.send_rate).path
            except ValueError as error:
                raise BadTarget(f"send_rate: {error}") from None
            try:
                call_target(hosts[protocol], path, scenario.insecure, None)
            except BadTarget as error:
                named = "--agent-host" if scenario.agent_host else "--host"
                raise BadTarget(str(error).replace("--host", named, 1)) from None
            clips.load(Path(scenario.audio_dir))
    return hosts


def call_host(host: str | None, port: int, *, was_asked: bool) -> str:
    """ws:// or wss:// of a voice agent. An http:// host that nobody asked for is the HTTP users' default. BadTarget."""
    if host and host.startswith(("http://", "https://")):
        if was_asked:
            raise BadTarget(f"--host {host}: voice agents are called at ws://HOST:PORT or wss://HOST:PORT")
        host = None
    if host and "://" in host:
        return host
    place, slash, path = (host or _ANYWHERE).partition("/")
    named = ":" in place.rpartition("]")[2]  # an IPv6 address has colons of its own
    return f"ws://{place}{'' if named else f':{port}'}{slash}{path}"


def _host_was_asked() -> bool:
    said = any(word in ("-H", "--host") or word.startswith(("--host=", "-H")) for word in sys.argv[1:])
    return said or "LOCUST_HOST" in os.environ


def fingerprint(scenario: Scenario) -> str:
    """Of the queries in the audio folder: workers must have the master's."""
    digest = hashlib.sha256()
    for clip in clips.load(Path(scenario.audio_dir)):
        digest.update(clip.name.encode() + b"\0" + clip.samples.tobytes())
    return digest.hexdigest()[:16]

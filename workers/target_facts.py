"""What a target says of itself at /health, where it is a bundled server. Any other answer, or none, says nothing."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from geventhttpclient import HTTPClient

RANDOM_WEIGHTS = "random weights: timing only"  # as the analysis says it (analysis/checks/target.py)
TIMEOUT_S = 2.0
MOST_BYTES = 1 << 16

# What is kept, and what it must be. mock: the engine makes no speech; weights: `random` where it knows no voice.
KNOWN: dict[str, type] = {
    "engine": str,
    "weights": str,
    "mock": bool,
    "streams_most": int,
    "queue_most": int,
    "calls_most": int,
}


def ask(host: str, *, insecure: bool = False) -> dict[str, Any]:
    """The known facts at HOST/health (http, https, ws or wss); none where the answer is not one of ours."""
    where = urlsplit(host)
    if where.hostname is None:
        return {}
    client = HTTPClient(
        where.hostname,
        where.port,
        ssl=where.scheme in ("https", "wss"),
        insecure=insecure,
        connection_timeout=TIMEOUT_S,
        network_timeout=TIMEOUT_S,
    )
    try:
        answer = client.get("/health")
        told = json.loads(answer.read(MOST_BYTES))
    except Exception:  # whatever is wrong with it, the run itself will find out
        return {}
    finally:
        client.close()
    if not isinstance(told, dict):
        return {}
    return {name: _short(told[name]) for name, kind in KNOWN.items() if type(told.get(name)) is kind}


def random_weights(facts: Mapping[str, dict[str, Any]]) -> list[str]:
    """The hosts, of those asked, whose model has random weights."""
    return [host for host, told in facts.items() if told.get("weights") == "random"]


def _short(value: Any) -> Any:
    """What a server says may hold anything, terminal control sequences included."""
    return "".join(filter(str.isprintable, value[:80])) if isinstance(value, str) else value

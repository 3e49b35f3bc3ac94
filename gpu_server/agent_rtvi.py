"""Word the RTVI messages that pipecat's bots send beside their audio. Knows nothing of protobuf, sockets or clocks.

Names and fields are those of pipecat 1.14, pipecat/processors/frameworks/rtvi/models.py.
"""

import json
from typing import Any

PROTOCOL_VERSION = "2.2.0"


def event(kind: str) -> str:
    """A message that says only that something happened: `user-started-speaking`, `bot-stopped-speaking` …"""
    return json.dumps({"label": "rtvi-ai", "type": kind})


def bot_ready(request_id: str) -> str:
    about = {"library": "cicada-gpu-server"}
    return _with_data("bot-ready", {"version": PROTOCOL_VERSION, "about": about}, id=request_id)


def user_transcription(text: str, timestamp: str) -> str:
    return _with_data("user-transcription", {"text": text, "user_id": "", "timestamp": timestamp, "final": True})


def bot_llm_text(text: str) -> str:
    return _with_data("bot-llm-text", {"text": text})


def seconds_of(metric: str, processor: str, value: float) -> str:
    """One measured time; `metric` is `ttfb` or `processing`."""
    return _with_data("metrics", {metric: [{"processor": processor, "value": value}]})


def tokens_of(prompt: int, completion: int) -> str:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return _with_data("metrics", {"tokens": [usage]})


def client_ready_id(data: str) -> str | None:
    """The id of a client's `client-ready`; None for every other message, also a broken one."""
    try:
        message = json.loads(data)
    except ValueError:
        return None
    if not isinstance(message, dict) or message.get("type") != "client-ready":
        return None
    return str(message.get("id", ""))[:200]


def _with_data(kind: str, data: dict[str, Any], **more: str) -> str:
    return json.dumps({"label": "rtvi-ai", "type": kind, **more, "data": data})

"""An engine that fails: an honest error while that is possible, a cut connection after. In process, over ASGI."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_server.app import build_app
from gpu_server.service import Service, Settings
from gpu_server.speech import Chunks, SpeechRequest
from gpu_server.trace import TraceLog, TraceRow, read_trace


class FailingEngine:
    """Gives so many chunks, then fails; or ends, without a failure."""

    name = "failing"
    sample_rate = 24_000
    voices = ("only",)

    def __init__(self, chunks: int, fails: bool = True) -> None:
        self.chunks = chunks
        self.fails = fails

    async def warm_up(self) -> None: ...

    async def stream(self, request: SpeechRequest) -> Chunks:
        for _ in range(self.chunks):
            yield np.full(960, 5000, np.int16)
        if self.fails:
            raise RuntimeError("the engine caught fire")

    def close(self) -> None: ...


async def converse(service: Service, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The ASGI messages of one answer."""
    sent: list[dict[str, Any]] = []

    async def messages() -> AsyncIterator[dict[str, Any]]:
        yield {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        await asyncio.Event().wait()  # connected for as long as it takes

    source = messages()

    async def receive() -> dict[str, Any]:
        return await anext(source)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/synthesize", "headers": [], "query_string": b""}
    await build_app(service)(scope, receive, send)
    return sent


def answer(
    engine: FailingEngine, tmp_path: Path, body: dict[str, Any] | None = None, warm: bool = True
) -> tuple[list[dict[str, Any]], TraceRow]:
    trace = TraceLog(tmp_path / "trace.jsonl", engine.name)
    service = Service(engine, Settings(), trace)
    service.warm = warm
    sent = asyncio.run(converse(service, body or {"text": "Hello.", "speaker_id": "default"}))
    service.close()
    return sent, read_trace(trace.path)[1][0]


@pytest.mark.parametrize("stream", [True, False])
def test_before_the_first_audio_it_is_an_error(
    tmp_path: Path, stream: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    sent, row = answer(FailingEngine(0), tmp_path, {"text": "Hello.", "stream": stream})
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 500
    assert "caught fire" in json.loads(sent[1]["body"])["error"]["message"]
    assert (row["outcome"], row["status"], row["audio_s"]) == ("failed", 500, 0)
    said = capsys.readouterr().err
    assert "caught fire" in said
    assert said.count("\n") == 1


def test_a_whole_answer_is_never_begun_by_an_engine_that_fails_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent, _ = answer(FailingEngine(3), tmp_path, {"text": "Hello.", "stream": False})
    assert sent[0]["status"] == 500
    assert "caught fire" in capsys.readouterr().err


def test_after_it_the_answer_is_left_without_an_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sent, row = answer(FailingEngine(3), tmp_path)
    assert sent[0]["status"] == 200
    assert len(sent) == 4
    assert all(message["more_body"] for message in sent[1:])
    assert (row["outcome"], row["status"], row["audio_s"]) == ("failed", 200, 0.12)
    assert "caught fire" in capsys.readouterr().err


def test_no_audio_at_all_is_said_so(tmp_path: Path) -> None:
    sent, row = answer(FailingEngine(0, fails=False), tmp_path)
    assert sent[0]["status"] == 422
    assert json.loads(sent[1]["body"])["error"]["code"] == "no_speech"
    assert row["outcome"] == "bad_request"


def test_default_is_the_first_voice_whatever_it_is_called(tmp_path: Path) -> None:
    sent, row = answer(FailingEngine(1, fails=False), tmp_path)
    assert sent[0]["status"] == 200
    assert (row["voice"], row["outcome"]) == ("only", "ok")


def test_who_comes_while_the_engine_warms_up_is_told_to_come_again(tmp_path: Path) -> None:
    sent, row = answer(FailingEngine(1), tmp_path, warm=False)
    assert sent[0]["status"] == 503
    assert dict(sent[0]["headers"])[b"retry-after"] == b"1"
    assert row["outcome"] == "refused"

"""A real model behind the full-duplex endpoint: refused in one line when it is absent; the loop, with a fake one."""

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sphn

from gpu_server.admission import Admission
from gpu_server.duplex_model import LanguageModel, Model, ModelUnavailable, find_weights, moshi_in
from gpu_server.duplex_session import Line, Session
from gpu_server.duplex_settings import parse_model
from gpu_server.ticker import Ticker
from gpu_server.trace import DuplexSession
from tests.server_process import ROOT

RATE, CHUNK = 24_000, 1_920
MIMI, TOKENIZER = "tokenizer-e351c8d8-checkpoint125.safetensors", "tokenizer_spm_32k_3.model"
QUERY = "/api/chat?voice_prompt=NATF0.pt&text_prompt=x"

Floats = npt.NDArray[np.float32]


def folder(path: Path, *names: str, config: dict[str, Any] | None = None) -> Path:
    for name in names:
        (path / name).write_bytes(b"")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


# Refusals


def test_a_whole_checkpoint_is_found_by_its_usual_names(tmp_path: Path) -> None:
    weights = find_weights(folder(tmp_path, "model.q8.safetensors", MIMI, TOKENIZER))
    assert (weights.moshi.name, weights.mimi.name, weights.tokenizer.name) == ("model.q8.safetensors", MIMI, TOKENIZER)
    assert weights.config is None


def test_names_in_its_config_count(tmp_path: Path) -> None:
    config = {"moshi_name": "a", "mimi_name": "b", "tokenizer_name": "c", "lora_name": "d", "dim": 4096}
    weights = find_weights(folder(tmp_path, *"abcd", config=config))
    assert (weights.moshi.name, weights.mimi.name, weights.tokenizer.name) == ("a", "b", "c")
    assert weights.lora == tmp_path / "d"
    assert weights.config == tmp_path / "config.json"


@pytest.mark.parametrize(
    ("present", "config", "named"),
    [
        ((), None, "model.safetensors"),
        (("model.safetensors", MIMI), None, TOKENIZER),
        (("model.safetensors", TOKENIZER), None, MIMI),
        (("model.safetensors", MIMI, TOKENIZER), {"lora_name": "lora.safetensors"}, "lora.safetensors"),
        (("model.safetensors", MIMI, TOKENIZER), {"moshi_name": "other.safetensors"}, "other.safetensors"),
    ],
)
def test_a_missing_file_is_named(
    tmp_path: Path, present: tuple[str, ...], config: dict[str, Any] | None, named: str
) -> None:
    with pytest.raises(ModelUnavailable, match=named):
        find_weights(folder(tmp_path, *present, config=config))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_no_object_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelUnavailable, match=r"config\.json"):
        find_weights(tmp_path)


@pytest.mark.parametrize("absent", ["torch", "moshi"])
def test_a_missing_package_is_named_with_its_remedy(
    tmp_path: Path, absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_server.duplex_model.find_spec", lambda name: None if name == absent else object())
    with pytest.raises(ModelUnavailable, match=rf"package {absent},.*pip install"):
        moshi_in(folder(tmp_path, "model.safetensors", MIMI, TOKENIZER))


def test_the_server_says_it_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpu_server", "--engine", "tone", "--port", "0"]
    command += ["--duplex-model", f"moshi:{tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, "")
    assert str(tmp_path) in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("text", ["", "moshi", "moshi:", "personaplex:/x"])
def test_a_model_has_a_kind_and_a_folder(text: str) -> None:
    with pytest.raises(ValueError, match="moshi:FOLDER"):
        parse_model(text)


# The loop


class FakeMoshi:
    """Says back what it hears, at half its level; has nothing for its first chunk."""

    def __init__(self) -> None:
        self.resets = 0
        self.chunks = 0
        self.threads: set[str] = set()
        self.broken = False

    def reset(self) -> None:
        self.resets += 1
        self.chunks = 0

    def step(self, heard: Floats) -> tuple[Floats | None, str | None]:
        self.threads.add(threading.current_thread().name)
        assert heard.shape == (CHUNK,)
        if self.broken:
            raise RuntimeError("out of memory")
        self.chunks += 1
        if self.chunks == 1:
            return None, None
        return heard / 2, " yes" if self.chunks == 3 else None


class FakeConnection:
    """What a session needs of a connection."""

    client = "127.0.0.1:1"
    answers_pings = True

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.holds: list[str] = []
        self.closed: tuple[int, str] | None = None
        self.session: Session | None = None

    def leave_in_peace(self) -> None: ...

    def send(self, message: bytes) -> None:
        self.sent.append(message)

    def hold(self) -> None:
        self.holds.append("hold")

    def release(self) -> None:
        self.holds.append("release")

    def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)
        assert self.session is not None
        self.session.closed(by_client=False)


def line(mind: Any, step_s: float = 0.0) -> tuple[Line, list[DuplexSession]]:
    ended: list[DuplexSession] = []
    log = SimpleNamespace(put=lambda text: None)
    ticker = Ticker(lambda _: None)
    return Line(Admission(1, 8), ticker, step_s, False, log, mind, lambda _: None, ended.append), ended  # type: ignore[arg-type]


def messages(samples: Floats) -> list[bytes]:
    writer = sphn.OpusStreamWriter(RATE)
    return [b"\x01" + bytes(writer.append_pcm(chunk)) for chunk in samples.reshape(-1, CHUNK)]


async def until(probe: Any) -> None:
    async def poll() -> None:
        while not probe():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(poll(), 10)


def voice(chunks: int) -> Floats:
    return (0.5 * np.cos(2 * np.pi * 300 * np.arange(chunks * CHUNK) / RATE)).astype(np.float32)


async def opened(shared: Line, number: int) -> tuple[Session, FakeConnection]:
    session, connection = Session(shared, number, QUERY), FakeConnection()
    connection.session = session
    session.opened(connection)  # type: ignore[arg-type]
    await until(lambda: len(connection.sent) == 3)
    return session, connection


def test_what_the_model_says_is_sent_chunk_by_chunk_from_one_thread() -> None:
    fake = FakeMoshi()

    async def work() -> None:
        model = Model(lambda: fake)
        await model.warm_up()
        shared, ended = line(lambda number, fail: model.mind())
        session, connection = await opened(shared, 0)
        sent = voice(12)
        for message in messages(sent):
            session.message(message, asyncio.get_running_loop().time())
        await until(lambda: len(connection.sent) == 3 + 11 + 1)
        assert connection.sent[0] == b"\x00"
        assert connection.sent[3 + 2] == b"\x02 yes"  # with the second chunk it says, its third
        reader = sphn.OpusStreamReader(RATE)
        heard = np.concatenate([reader.append_bytes(m[1:]) for m in connection.sent if m[:1] == b"\x01"])
        middle = heard[4 * CHUNK : 10 * CHUNK]
        assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.25 / np.sqrt(2), rel=0.05)
        session.closed(by_client=True)
        assert (ended[0]["chunks_in"], ended[0]["chunks_out"], ended[0]["pieces"]) == (12, 11, 1)
        _, following = await opened(shared, 1)
        assert following.sent[0] == b"\x00"
        assert fake.resets == 3  # warm-up and two sessions
        assert len(fake.threads) == 1
        model.close()

    asyncio.run(work())


def test_a_model_that_fails_ends_the_session_with_1011(capsys: pytest.CaptureFixture[str]) -> None:
    fake = FakeMoshi()

    async def work() -> None:
        model = Model(lambda: fake)
        await model.warm_up()
        fake.broken = True
        shared, ended = line(lambda number, fail: model.mind())
        session, connection = await opened(shared, 0)
        session.message(messages(voice(1))[0], 0.0)
        await until(lambda: connection.closed is not None)
        assert connection.closed == (1011, "RuntimeError: out of memory")
        assert ended[0]["outcome"] == "failed"
        model.close()

    asyncio.run(work())
    assert "out of memory" in capsys.readouterr().err


def test_a_model_that_cannot_be_loaded_says_so() -> None:
    def load() -> LanguageModel:
        raise ModelUnavailable("no such weights")

    async def work() -> None:
        model = Model(load)
        with pytest.raises(ModelUnavailable, match="no such weights"):
            await model.warm_up()
        model.close()

    asyncio.run(work())


class Stuck:
    """A mind that never finishes its first step, until it is told to."""

    def __init__(self) -> None:
        self.done: asyncio.Future[Any] | None = None

    async def prepare(self, prompts: Any) -> None: ...

    def stall_s(self) -> float:
        return 0.0

    def step(self, heard: Floats) -> Any:
        self.done = self.done or asyncio.get_running_loop().create_future()
        return self.done

    def note_written(self, step: Any, now: float) -> None: ...

    def leave(self, outcome: str) -> None: ...


def test_a_client_far_ahead_of_the_model_is_no_longer_read() -> None:
    async def work() -> None:
        mind = Stuck()
        shared, ended = line(lambda number, fail: mind)
        session, connection = await opened(shared, 0)
        pages = messages(np.zeros(2 * CHUNK, np.float32))
        session.message(pages[0], 0.0)
        for _ in range(750):
            session.message(pages[1], 0.0)
        assert connection.holds == []
        session.message(pages[1], 0.0)
        assert connection.holds == ["hold"]
        assert mind.done is not None
        mind.done.set_exception(RuntimeError("gone"))
        await until(lambda: connection.closed is not None)
        assert ended[0]["chunks_in"] == 752

    asyncio.run(work())

"""The bundled server with Chatterbox: real processes, real sockets, the tiny configuration on the CPU."""

import asyncio
import importlib.util
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from tests.server_process import ROOT, Server, running_server
from tests.server_wire import open_request, read_until

if any(importlib.util.find_spec(name) is None for name in ("torch", "chatterbox")):
    pytest.skip("the extra `chatterbox` is not installed", allow_module_level=True)

TEXT = "Hi, this is Sarah from customer service. How can I help you today?"
TINY = ("--random-weights", "tiny", "--device", "cpu")
ROUTE = "/v1/synthesize"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    trace = tmp_path_factory.mktemp("server") / "trace.jsonl"
    with running_server(
        "--engine", "chatterbox-turbo", *TINY, "--streams", "8", "--queue", "16", trace=trace
    ) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def idle(server: Server) -> bool | None:
    health = httpx.get(f"{server.url}/health").json()
    return True if health["streams"] == health["queued"] == 0 else None


def test_it_is_ready_when_it_says_so_and_says_what_its_weights_are(server: Server, client: httpx.Client) -> None:
    assert server.ready_line.endswith("engine=chatterbox-turbo voices=default random weights: timing only")
    health = client.get("/health").json()
    assert health["status"] == "ready"
    assert health["weights"] == "random"
    assert health["mock"] is False


@pytest.mark.parametrize("route", ["/v1/synthesize", "/v1/audio/speech"])
def test_speech_is_streamed_and_traced(client: httpx.Client, server: Server, route: str) -> None:
    field = "text" if route == ROUTE else "input"
    answer = client.post(
        route, json={field: TEXT, "response_format": "pcm"}, headers={"X-Request-ID": f"one {route[-6:]}"}
    )
    assert answer.status_code == 200
    row = server.row(f"one {route[-6:]}")
    assert row["outcome"] == "ok"
    assert row["marks"] is None
    assert row["ttfb_s"] is not None
    assert row["ttfb_s"] < row["finished_at"] - row["received_at"]
    assert row["audio_s"] == pytest.approx(4, abs=2)


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        ({"text": ""}, 400, "empty"),
        ({"text": "  \n"}, 400, "empty"),
        ({"text": "x" * 10_000}, 413, "10000 characters; this server takes 4096"),
        ({"text": "😀"}, 422, "nothing that can be spoken"),
        ({"text": TEXT, "speaker_id": "nobody"}, 400, "no voice 'nobody' here; there are default"),
        ({"text": TEXT, "speed": 2.0}, 400, "its own speed"),
    ],
)
def test_refusals_say_what_would_be_right(
    client: httpx.Client, body: dict[str, object], status: int, named: str
) -> None:
    answer = client.post(ROUTE, json=body)
    assert answer.status_code == status
    assert named in answer.json()["error"]["message"]


def test_a_client_who_leaves_frees_its_stream_at_once(server: Server) -> None:
    connection = open_request(server.port, ROUTE, {"text": TEXT * 40}, {"X-Request-ID": "gone"})
    read_until(connection, b"\r\n\r\n")
    connection.close()
    row = server.row("gone")
    assert row["outcome"] == "client_gone"
    assert row["audio_s"] < 60
    server.until(lambda: idle(server))


def test_500_at_once_are_answered_or_refused_and_memory_returns(server: Server) -> None:
    """8 are spoken to and 16 wait. After a first crowd, a second one leaves no more behind."""

    async def crowd() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=500)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(client.post(ROUTE, json={"text": TEXT}) for _ in range(500)))

    process = psutil.Process(server.process.pid)
    resident = []
    for _ in range(2):
        answers = asyncio.run(crowd())
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 24
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert refused.headers["retry-after"] == "1"
        assert "no stream free" in refused.json()["error"]["message"]
        assert len({len(answer.content) for answer in answers if answer.status_code == 200}) == 1
        server.until(lambda: idle(server))
        resident.append(process.memory_info().rss / 1e6)
    assert resident[1] - resident[0] < 30, f"MB: {resident}"


def test_nothing_was_said_on_stderr(server: Server) -> None:
    assert server.stderr_lines == []


def test_the_original_and_a_voice_of_a_recording(tmp_path: Path) -> None:
    rate, seconds = 16_000, 6
    times = np.arange(rate * seconds) / rate
    samples = (8000 * np.sin(2 * np.pi * 150 * times) * (np.sin(2 * np.pi * 3 * times) > 0)).astype(np.int16)
    with wave.open(str(tmp_path / "anna.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    with running_server("--engine", "chatterbox", *TINY, "--voices", str(tmp_path)) as server:
        assert "engine=chatterbox voices=default,anna" in server.ready_line
        assert server.stderr_lines == ["gpu_server: listening to the voice anna ...\n"]
        found = {
            voice: httpx.post(f"{server.url}{ROUTE}", json={"text": TEXT, "speaker_id": voice}, timeout=60)
            for voice in ("default", "anna")
        }
    assert all(answer.status_code == 200 for answer in found.values())
    assert found["default"].content != found["anna"].content
    assert len(found["default"].content) == len(found["anna"].content)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--engine", "chatterbox-turbo", "--weights", "nowhere"), "--weights nowhere: no such folder"),
        (("--engine", "chatterbox", *TINY, "--voices", "nowhere"), "--voices nowhere: no such folder"),
        (("--engine", "tone", "--weights", "x"), "--weights is for --engine chatterbox-turbo and chatterbox, not for"),
        (("--engine", "chatterbox", *TINY, "--prompt-s", "60"), "not a number of seconds from 0.4 to 10"),
        (("--engine", "chatterbox", *TINY, "--weights", "x"), "not allowed with"),
    ],
)
def test_what_cannot_be_started_is_said_in_a_line(args: tuple[str, ...], named: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gpu_server", *args, "--port", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_bad_recording_is_named(tmp_path: Path) -> None:
    (tmp_path / "noise.wav").write_bytes(b"RIFF no wave")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "gpu_server",
            "--engine",
            "chatterbox-turbo",
            *TINY,
            "--voices",
            tmp_path,
            "--port",
            "0",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "noise.wav cannot be read" in done.stderr
    assert "Traceback" not in done.stderr

"""The command line: help that teaches, one clear line for a mistake, a quick and clean end."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gpu_server.__main__ import _token
from gpu_server.faults import KINDS
from tests.server_process import ROOT, running_server
from tests.server_wire import open_request, read_until


def run(*args: str, program: str = "") -> subprocess.CompletedProcess[str]:
    start = ["-c", program] if program else ["-m", "gpu_server"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *start, *args],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env=environment,
    )


def test_help_teaches() -> None:
    said = run("--help").stdout
    assert "examples:" in said
    assert all(kind in said for kind in KINDS)
    assert "CICADA_SERVER_TOKEN" in said


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (("--fault", "delya:p=1"), "delya"),
        (("--fault", "delay:p=1,ms=3"), "'ms'"),
        (("--pace", "fast"), "'fast'"),
        (("--port", "99999"), "99999"),
        (("--streams", "0"), "'0'"),
        (("--engine", "chatterbox9000"), "chatterbox9000"),
        (("--tone-seconds", "-1"), "-1"),
        (("--no-such-option",), "--no-such-option"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(args: tuple[str, ...], named: str) -> None:
    done = run(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert named in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_busy_port_is_one_line_and_status_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run("--engine", "tone", "--port", str(port))
    assert done.returncode == 1
    assert str(port) in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_trace_that_cannot_be_written_is_one_line_and_status_1(tmp_path: Path) -> None:
    done = run("--engine", "tone", "--port", "0", "--trace", str(tmp_path))
    assert done.returncode == 1
    assert str(tmp_path) in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_engine_names_its_remedy() -> None:
    program = """
import sys
sys.modules["espeakng_loader"] = None
from gpu_server.__main__ import main
sys.exit(main(["--port", "0"]))
"""
    done = run(program=program)
    assert done.returncode == 1
    assert "pip install -e '.[espeak]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_even_amid_a_stream(tmp_path: Path, number: int) -> None:
    args = ("--engine", "tone", "--tone-seconds", "3600", "--pace", "0,1")
    with running_server(*args, trace=tmp_path / "trace.jsonl") as server:
        with open_request(server.port, "/v1/synthesize", {"text": "x"}) as connection:
            read_until(connection, b"RIFF")
            assert server.stop(number) == 0
        rows = server.rows(1)
    assert (rows[0]["outcome"], rows[0]["status"]) == ("failed", 200)
    assert server.stderr_lines == []


def test_the_token_comes_from_the_environment_or_else_from_dotenv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CICADA_SERVER_TOKEN", raising=False)
    assert _token() is None
    Path(".env").write_text("CICADA_SERVER_TOKEN=from-dotenv\n")
    assert _token() == "from-dotenv"
    monkeypatch.setenv("CICADA_SERVER_TOKEN", "from-environment")
    assert _token() == "from-environment"

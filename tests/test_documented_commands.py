"""Every command that README.md and docs/running.md show is run as it stands, with host, times and folders replaced."""

import re
import shlex
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.locust_process import ROOT, Locust, free_port, locust, until
from tests.server_process import Server, running_server

_BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def documented() -> list[str]:
    """Command lines of the `sh` blocks, comments cut off."""
    found = []
    for page in ("README.md", "docs/running.md"):
        for block in _BLOCK.findall((ROOT / page).read_text("utf-8")):
            lines = (line.partition("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines())
            found += [line for line in lines if line and line not in found]
    return found


COMMANDS = documented()
LOAD = [line for line in COMMANDS if line.startswith("locust") and not {"--master", "--worker"} & set(line.split())]
SERVERS = [line for line in COMMANDS if line.startswith("python -m gpu_server")]


def test_there_is_nothing_else() -> None:
    """A new kind of command needs a test here before it is documented."""
    known = ("locust", "python -m gpu_server", "python -m analysis.report", "python -m workers", "make ", "git ", "cd ")
    assert [line for line in COMMANDS if not line.startswith(known)] == []
    assert len(LOAD) >= 6
    assert len(SERVERS) >= 2


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server("--engine", "tone") as started:
        yield started


def _words(line: str, server: Server) -> list[str]:
    words = shlex.split(line)[1:]
    run_time = "4s" if "--rate" in words else "2s"  # an open loop begins when its users are there
    for flag, value in (("--run-time", run_time), ("--users", "20"), ("--spawn-rate", "20")):
        if flag in words:
            words[words.index(flag) + 1] = value
    return [word.replace("http://localhost:8080", server.url) for word in words]


def _folders(folder: Path) -> list[str]:
    return ["--runs-dir", str(folder / "runs"), "--spool-dir", str(folder / "spool"), "--think-s", "0.2"]


@pytest.mark.parametrize("line", LOAD)
def test_load(tmp_path: Path, server: Server, line: str) -> None:
    words = _words(line, server)
    extra = [] if "--headless" in words else ["--headless", "--run-time", "2s", "--host", server.url]
    port = str(free_port())
    ports = ["--master-bind-port", port, "--master-port", port] if "--processes" in words else []
    with locust(*words, *extra, *ports, *_folders(tmp_path), "--only-summary", cwd=ROOT) as run:
        assert run.end() == 0, run.said
    assert "nothing lost" in run.said
    reports = [line for line in COMMANDS if line == "python -m analysis.report runs/latest"]
    assert reports
    with locust(str(tmp_path / "runs" / "latest"), cwd=ROOT, module="analysis.report") as report:
        assert report.end() == 0, report.said
    assert "Reasons to distrust" in report.said or "No reason to distrust" in report.said


def test_master_and_worker(tmp_path: Path, server: Server) -> None:
    [master_line] = [line for line in COMMANDS if "--master " in line]
    [worker_line] = [line for line in COMMANDS if "--worker" in line]
    port = str(free_port())
    worker = [*_words(worker_line, server), "--master-port", port]
    started = [Locust(worker, ROOT) for _ in range(2)]
    try:
        master = [*_words(master_line, server), "--master-bind-port", port, *_folders(tmp_path), "--only-summary"]
        with locust(*master, cwd=ROOT) as run:
            assert run.end() == 0, run.said
        assert [process.end() for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    assert "turns of 2 workers, nothing lost" in run.said


@pytest.mark.parametrize("line", SERVERS)
def test_servers_and_their_trace(tmp_path: Path, line: str) -> None:
    if "espeak" in line:
        pytest.importorskip("espeakng_loader", reason="the extra `espeak` is not installed")
    words = shlex.split(line)[3:]
    del words[words.index("--port") : words.index("--port") + 2]
    if "--trace" in words:
        words[words.index("--trace") + 1] = str(tmp_path / "server_trace.jsonl")
    with running_server(*words) as server:
        args = ["--headless", "--users", "5", "--run-time", "2s", "--host", server.url, "--only-summary"]
        with locust(*args, *_folders(tmp_path), cwd=ROOT) as run:
            assert run.end() == 0, run.said
    if "--trace" in words:
        assert "python -m analysis.report runs/latest --server-log server_trace.jsonl" in COMMANDS
        args = [str(tmp_path / "runs" / "latest"), "--server-log", str(tmp_path / "server_trace.jsonl")]
        with locust(*args, cwd=ROOT, module="analysis.report") as report:
            assert report.end() == 0, report.said
        assert "server: TTFB" in report.said


def test_options_are_listed() -> None:
    """Every key of a scenario, with its default, since `locust --help` cannot show them."""
    from workers.settings import Scenario

    assert "python -m workers options" in COMMANDS
    with locust("options", cwd=ROOT, module="workers") as options:
        assert options.end() == 0, options.said
    for key in Scenario.model_fields:
        assert f"--{key.replace('_', '-')} " in options.said
    assert "default: 60.0" in options.said


def test_recover_as_documented(tmp_path: Path, server: Server) -> None:
    """A folder of spools and a run directory, in that order."""
    assert any(line.startswith("python -m workers recover spool/") for line in COMMANDS)
    args = ["--headless", "--users", "2", "--run-time", "2s", "--host", server.url, "--only-summary"]
    with locust(*args, *_folders(tmp_path), cwd=ROOT) as run:
        assert run.end() == 0, run.said
    run_dir = (tmp_path / "runs" / "latest").resolve()
    [log] = (run_dir / "log").iterdir()
    spool = tmp_path / "spool" / run_dir.name
    spool.mkdir(parents=True)
    whole = log.read_bytes()
    (spool / log.name).write_bytes(whole)
    log.write_bytes(whole[: len(whole) // 2])
    with locust("recover", str(spool), str(run_dir), cwd=ROOT, module="workers") as recovery:
        assert recovery.end() == 0, recovery.said
    assert log.read_bytes() == whole


def test_demo_that_is_interrupted_keeps_its_results_and_leaves_nothing_behind() -> None:
    pytest.importorskip("espeakng_loader", reason="the extra `espeak` is not installed")
    with locust("demo", "--run-time", "60s", cwd=ROOT, module="workers") as demo:
        url = demo.wait_for("ready on http").split(" on ")[1].split()[0]
        log = ROOT / demo.wait_for("rows go to", 60).rpartition("rows go to ")[2] / "log"
        until(lambda: sum(file.stat().st_size for file in log.glob("*.msgpack")) > 30_000, 30, "rows")
        assert _answers(url)
        demo.signal_group(signal.SIGINT)
        assert demo.end(60) == 0, demo.said
        assert not _answers(url)
    assert "nothing lost" in demo.said
    assert "The run directory: runs/" in demo.lines[-1]


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_demo(tmp_path: Path) -> None:
    """What `make demo` starts; its report and the path of the run directory are the last it says."""
    pytest.importorskip("espeakng_loader", reason="the extra `espeak` is not installed")
    assert "$(BIN)/python -m workers demo" in (ROOT / "Makefile").read_text()
    with locust("demo", "--run-time", "6s", cwd=ROOT, module="workers") as demo:
        assert demo.end(90) == 0, demo.said
    assert "nothing lost" in demo.said
    assert "server: TTFB" in demo.said
    run_dir = ROOT / demo.lines[-1].removeprefix("The run directory: ")
    assert (run_dir / "report.json").is_file()
    assert (run_dir / "server_trace.jsonl").is_file()

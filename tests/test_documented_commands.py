"""Every command that README.md and docs/running.md show is run as it stands, with host, times and folders replaced."""

import json
import re
import shlex
import signal
import ssl
import sys
import tomllib
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import trustme

from gpu_server.speech import ENGINES, EngineOptions, EngineUnavailable
from tests import run_maker
from tests.agent_peer import RATE, Talk, TwilioJson, agent_peer, voice, write_clips
from tests.bad_agent import bad_agent
from tests.locust_process import ROOT, Locust, free_port, locust, turns, until
from tests.server_process import Server, running_server

_BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)
_PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
_OF_LOG = re.compile(r"python -m analysis\.(?:report runs/latest --server-log|server_logs) (\S+\.(?:log|txt))")
_PLAIN = re.compile(r"locust -f locustfiles/talk_voice_agent.py --host ws://\S+ --users \d+ --run-time \S+ --headless")
_PAGES = ("README.md", "docs/running.md")
_CALLERS = "talk_voice_agent.py"


def documented() -> list[str]:
    """Command lines of the `sh` blocks, comments cut off."""
    found = []
    for page in _PAGES:
        for block in _BLOCK.findall((ROOT / page).read_text("utf-8")):
            lines = (line.partition("  #")[0].strip() for line in block.replace("\\\n", " ").splitlines())
            found += [line for line in lines if line and line not in found]
    return found


COMMANDS = documented()
RUNNING = (ROOT / "docs" / "running.md").read_text("utf-8")
ROLES = [line for line in COMMANDS if {"--master", "--worker"} & set(line.split())]
SHAPES = [line for line in COMMANDS if line.startswith("locust") and ("/shapes/" in line or "--targets" in line)]
CALLS = [line for line in COMMANDS if line.startswith("locust") and _CALLERS in line and line not in SHAPES]
PLAIN = [line for line in CALLS if _PLAIN.fullmatch(line)]  # they differ in what is replaced only
DUPLEX = [line for line in COMMANDS if line.startswith("locust") and "talk_personaplex.py" in line]
LOAD = [line for line in COMMANDS if line.startswith("locust") and line not in [*ROLES, *CALLS, *SHAPES, *DUPLEX]]
AGENTS = [line for line in COMMANDS if line.startswith("python -m gpu_server") and "--agent-log" in line]
SERVERS = [line for line in COMMANDS if line.startswith("python -m gpu_server") and line not in AGENTS]
# Each of these is run by a test of its own below.
REPORT, OPTIONS = "python -m analysis.report runs/latest", "python -m workers options"
REPORT_TRACE = f"{REPORT} --server-log server_trace.jsonl"
REPORT_DUPLEX = f"{REPORT} --server-log personaplex_server.log"
EXPORT = f"{REPORT} --export voice_agent --output results"
CHECK, FIX = "python -m workers clips check my_queries", "python -m workers clips fix my_queries"
RECOVER = "python -m workers recover spool/20261120-101500-speech runs/20261120-101500-speech"
OTHERS = [REPORT, OPTIONS, REPORT_TRACE, REPORT_DUPLEX, EXPORT, CHECK, FIX, RECOVER]
LOGS = [line for line in COMMANDS if _OF_LOG.fullmatch(line) and line != REPORT_DUPLEX]
CAPACITY = "python -m analysis.capacity runs/latest"
VERDICTS = [line for line in COMMANDS if line.startswith(f"{REPORT} --targets") or "analysis.compare" in line]
MAKE = {"make demo", "make test"}  # the one below, without its virtual environment; the other is what runs this
INSTALLS = [line for line in COMMANDS if line.startswith("pip install")]


def test_there_is_nothing_else() -> None:
    """A new kind of command needs a test here before it is documented."""
    known = {*ROLES, *CALLS, *LOAD, *AGENTS, *SERVERS, *LOGS, *OTHERS, *SHAPES, *VERDICTS, CAPACITY, *MAKE, *DUPLEX,
             *INSTALLS}  # fmt: skip
    assert [line for line in COMMANDS if line not in known] == []
    assert [line for line in OTHERS if line not in COMMANDS] == []
    assert len(LOAD) >= 6
    assert len(CALLS) >= 8
    assert len(SHAPES) >= 5
    assert len(DUPLEX) >= 6
    assert len(VERDICTS) >= 4
    assert len(SERVERS) >= 2
    assert len(AGENTS) == 1
    assert {line.split()[2] for line in LOGS} == {"analysis.report", "analysis.server_logs"}
    assert len(INSTALLS) == 2


def test_an_engine_that_is_not_installed_asks_for_what_is_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same words, of extras and a file that there are; `make test` installs from the same."""
    monkeypatch.setitem(sys.modules, "gpu_server.engines.chatterbox.engine", None)
    with pytest.raises(EngineUnavailable) as refused:
        ENGINES["chatterbox-turbo"](EngineOptions())
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    makefile = (ROOT / "Makefile").read_text()
    for line in INSTALLS:
        assert line in str(refused.value)
        what = shlex.split(line)[-1]
        if what.startswith(".["):
            assert set(what[2:-1].split(",")) <= extras
        else:
            assert (ROOT / what).is_file()
            assert line.removeprefix("pip install ") in makefile


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
    said = _said(REPORT, tmp_path)
    assert "Reasons to distrust" in said or "No reason to distrust" in said


# Instead of the documented levels and times.
_BRIEF = {"--run-time": "3s", "--users": "4", "--spawn-rate": "4", "--level-s": "3", "--warm-up-s": "1",
          "--capacity-first": "1"}  # fmt: skip


@pytest.mark.parametrize("line", SHAPES)
def test_shapes_and_targets(tmp_path: Path, server: Server, line: str) -> None:
    """A search that ends soon, and is undecided: what it finds is tested elsewhere."""
    write_clips(tmp_path / "clips", ask=0.4)
    _write_targets(tmp_path)
    words = shlex.split(line.replace("1 2 4 8 16 32", "1 2"))[1:]
    for flag, value in _BRIEF.items():
        if flag in words:
            words[words.index(flag) + 1] = value
    asked = {
        "http://localhost:8080": server.url,
        "http://127.0.0.1:8080/metrics": f"{server.url}/metrics",
        "ws://127.0.0.1:8080": server.url.replace("http", "ws", 1),
        **{name: str(tmp_path / name) for name in ("targets.yaml", "speech_targets.yaml")},
    }
    brief = ["--level-warm-up-s", "0.5", "--capacity-most", "2", "--level-most-s", "6", "--audio-dir",
             str(tmp_path / "clips"), "--greeting-s", "0", "--answer-end-s", "0.4"]  # fmt: skip
    with locust(
        *(asked.get(word, word) for word in words), *brief, *_folders(tmp_path), "--only-summary", cwd=ROOT
    ) as run:
        code = run.end()
    assert code in ((0, 1, 2) if "--targets" in words else (0,)), run.said
    assert "nothing lost" in run.said
    assert "Traceback" not in run.said
    assert ("Capacity: " if "capacity.py" in line or "levels.py" in line else "read it with") in run.said
    if "capacity.py" in line:
        assert "What it costs" in run.said
        assert "What gave out first" in _said(CAPACITY, tmp_path, code)


def _write_targets(folder: Path) -> None:
    """The targets files that are documented, by the names in their first lines."""
    blocks = re.findall(r"```yaml\n(# (\S*targets\.yaml).*?)```", RUNNING, re.DOTALL)
    assert {name for _, name in blocks} == {"targets.yaml", "speech_targets.yaml"}
    for block, name in blocks:
        (folder / name).write_text(block)


@pytest.mark.parametrize("line", VERDICTS)
def test_verdicts(tmp_path: Path, line: str) -> None:
    """On runs that are alike, and for which all but what was never measured holds."""
    rows = run_maker.turns(400, sessions=40, ttfc_s=lambda at: 0.1 + at % 7 / 1000)
    for where in ("baseline", "runs"):
        made = run_maker.make_run(tmp_path / f"made_{where}", run_maker.log_of(rows, run_maker.clean_seconds(45)))
        (tmp_path / where).mkdir()
        made.rename(tmp_path / where / "latest")
    _write_targets(tmp_path)
    # Of S2's targets GPU memory was never measured; all else holds.
    status, word = (
        (2, "cannot tell") if "chatterbox" in line else (0, "no regression" if "compare" in line else "holds")
    )
    said = _said(line.replace("compare baseline", "compare baseline/latest"), tmp_path, status)
    assert word in said.lower()
    assert [name for name in line.split() if name.endswith((".xml", ".md")) and not (tmp_path / name).is_file()] == []


def test_master_and_worker(tmp_path: Path, server: Server) -> None:
    [master_line] = [line for line in ROLES if "--master " in line]
    [worker_line] = [line for line in ROLES if "--worker" in line]
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
        assert "server: TTFB" in _said(REPORT_TRACE, tmp_path)


# ---- calls


async def _is_talkative(talk: Talk) -> None:
    for number in range(100):
        await talk.ear.user_spoke(number)
        await talk.send(voice(0.5, talk.wire.rate))


def _tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    return context


# The Python of the documentation in which calls are made.
OWN = {block for page in _PAGES for block in _PYTHON.findall((ROOT / page).read_text("utf-8")) if "CallUser" in block}

# Instead of the documented times and numbers. Locust's clock for --run-time begins while it still reads its libraries.
_QUICK = {"--users": "1", "--run-time": "9s", "--clients": "2", "--test-duration": "8", "--barge-in-share": "1",
          "--barge-in-after-s": "0.4", "--keep-audio": "1"}  # fmt: skip


def _call_words(line: str, urls: Mapping[str, str], queries: Path) -> list[str]:
    words = shlex.split(line)[1:]
    for flag, value in _QUICK.items():
        if flag in words:
            words[words.index(flag) + 1] = value
    if "http://" in line:
        words[words.index("--users") + 1] = "2"  # one of each kind
    for flag in ("--host", "--agent-host"):
        if flag in words:
            at = words.index(flag) + 1
            words[at] = urls["twilio" if "twilio" in words else words[at].partition(":")[0]]
    if "--audio-dir" in words:
        at = words.index("--audio-dir") + 1
        words[at] = str(queries / words[at])
    else:
        words += ["--audio-dir", str(queries / "audio_files")]
    if "--host" not in words:
        words += ["--port", urls["ws"].rpartition(":")[2]]
    if "--clients" in words:
        words += ["--client-start-delay", "0.5"]
    return words


def _make_queries(folder: Path) -> None:
    """Good ones, and as documented a folder with two that a run would refuse and that can be mended."""
    write_clips(folder / "audio_files", ask=0.6, order=0.7, query_1=0.8)
    own = folder / "my_queries"
    write_clips(own, good=0.6)
    soundfile.write(own / "telephone.wav", voice(0.6, 8_000), 8_000, subtype="PCM_16")
    soundfile.write(own / "order.flac", np.stack([voice(0.6), voice(0.6)], axis=1), RATE, subtype="PCM_16")
    for line, status, told in ((CHECK, 1, "2 of 3 would be refused"), (FIX, 0, "3 of 3 are in my_queries/fixed")):
        assert told in _said(line, folder, status)


def test_calls(tmp_path: Path) -> None:
    """All documented calls, beside each other: how well they measure is tested elsewhere.

    One test, since they share their servers and their time.
    """
    _make_queries(tmp_path)
    ways: dict[str, list[str]] = {}
    with ExitStack() as stack:
        tones = ("--engine", "tone", "--tone-seconds", "2", "--agent-log", "/dev/null")
        server = stack.enter_context(running_server(*tones))
        urls = {
            "http": stack.enter_context(running_server("--engine", "tone")).url,
            "ws": server.url.replace("http:", "ws:"),
            "wss": stack.enter_context(bad_agent(_tls())).url,  # its first caller meets a good one
            "twilio": stack.enter_context(agent_peer(_is_talkative, wire=TwilioJson)).url,
        }
        logged = tmp_path / "0"
        logged.mkdir()
        agent = stack.enter_context(running_server(*_agent_words(AGENTS[0], logged)))
        ways[PLAIN[0]] = _call_words(PLAIN[0], urls | {"ws": agent.url.replace("http:", "ws:")}, tmp_path)
        for number, source in enumerate(OWN):
            own = tmp_path / f"own_callers_{number}.py"
            own.write_text(source)
            words = _call_words(f"locust -f {own} --users 1 --headless --host ws://HOST", urls, tmp_path)
            ways[source] = [*words, "--run-time", "14s"]  # two turns and a barge-in
        for line in CALLS:
            if line not in PLAIN:
                ways[line] = _call_words(line, urls, tmp_path)
        started: list[Locust] = []
        for number, words in enumerate(ways.values()):
            folder = tmp_path / str(number)
            quick = ["--greeting-s", "0.5", "--answer-end-s", "0.5", "--only-summary", *_folders(folder)]
            if "--output-dir" in words:
                words[words.index("--output-dir") + 1] = str(folder / "results")
            started.append(stack.enter_context(locust(*words, *quick, cwd=ROOT)))
            if number:  # two at a time: those that come up beside many need long
                started[number - 1].wait_for("All users spawned", 60)
        for number, (line, run) in enumerate(zip(ways, started, strict=True)):
            assert run.end(90) == 0, f"{line}\n{run.said}"
            _check_call(line, run, tmp_path / str(number))
    _check_logs(logged)


def _agent_words(line: str, folder: Path) -> list[str]:
    words = shlex.split(line)[3:]
    del words[words.index("--port") : words.index("--port") + 2]
    words[words.index("--agent-log") + 1] = str(folder / "bot.log")
    return words if find_spec("espeakng_loader") else [*words, "--engine", "tone"]


def _check_call(line: str, run: Locust, folder: Path) -> None:
    assert "Traceback" not in run.said, run.said
    assert "nothing lost" in run.said, run.said
    rows = turns(folder / "runs" / "latest")
    rows = rows[(rows.protocol == "voice_agent") & (rows.outcome != "cut")]
    assert len(rows), f"{line}\n{run.said}"
    assert set(rows.outcome) <= {"answered", "early"}, line
    if "--barge-in-share" in line or "call.interrupt" in line:
        assert rows.barge_in.any(), f"{line}\n{run.said}"
    if "--keep-audio" in line:
        assert list((folder / "runs" / "latest" / "clips").glob("*.flac")), run.said
    if "--audio-dir" in line:
        assert set(rows.text_name) <= {"good.wav", "telephone.wav", "order.wav"}
    if "--output-dir" in line:
        summary = json.loads((folder / "results" / "summary.json").read_text())
        assert summary["config"]["num_clients"] == 2
        assert "Voice agent benchmark" in run.said


def _check_logs(folder: Path) -> None:
    """Everything documented that is made of a run and its agent's bot.log."""
    told: dict[str, str] = {}  # some differ in the log's name only
    for command in LOGS:
        told.setdefault(command.removesuffix(name := command.split()[-1]), command)
        if name != "bot.log":
            (folder / name).write_bytes((folder / "bot.log").read_bytes())
    for command in told.values():
        said = _said(command, folder)
        assert "Components" in said
        if "--server-log" in command:
            assert "1 calls opened with a greeting" in said
            assert "Waterfall" in said
    assert "Voice agent benchmark" in _said(EXPORT, folder)
    assert (folder / "results" / "summary.json").is_file()


# ---- full duplex

_FEW = {"--iterations": "1", "--duration": "2", "--concurrency": "2", "--scenario": "quick_test.yaml"}


def test_full_duplex_models(tmp_path: Path) -> None:
    """All documented modes, beside each other, the wss ones against the bundled server in the clear."""
    soundfile.write(_folder(tmp_path / "said") / "question.wav", voice(0.8, 24_000), 24_000, subtype="PCM_16")
    quick = (ROOT / "configs" / "quick_test.yaml").read_text("utf-8")
    (tmp_path / "quick_test.yaml").write_text(
        quick.replace("mode: full", "mode: text")
        .replace("iterations: 2", "iterations: 1")
        .replace("duration: 10\n", "")
    )
    log = tmp_path / "personaplex_server.log"
    tones = ("--engine", "tone", "--tone-seconds", "1.2", "--sessions", "20", "--duplex-prompt-s", "0.1")
    with ExitStack() as stack:
        server = stack.enter_context(running_server(*tones, "--duplex-log", str(log)))
        runs: list[tuple[str, Path, Locust]] = []
        for number, line in enumerate(DUPLEX):
            words = shlex.split(line)[1:]
            for flag, value in _FEW.items():
                if flag in words:
                    words[words.index(flag) + 1] = value
            if "full" in words:
                words += ["--duration", "2"]
            if "--host" in words:
                words[words.index("--host") + 1] = server.url.replace("http", "ws", 1)
            words[words.index("-f") + 1] = str(ROOT / words[words.index("-f") + 1])
            folder = _folder(tmp_path / str(number))
            if "--scenario" in words:
                (folder / "quick_test.yaml").write_bytes((tmp_path / "quick_test.yaml").read_bytes())
            said = ["--samples-dir", str(tmp_path / "said")]
            brief = ["--greeting-s", "0.2", "--answer-end-s", "0.4", "--only-summary", *said]
            runs.append((line, folder, stack.enter_context(locust(*words, *brief, cwd=folder))))
        for line, folder, run in runs:
            assert run.end(120) == 0, f"{line}\n{run.said}"
            assert "nothing lost" in run.said
            rows = turns(folder / "runs" / "latest")
            assert len(rows) >= 1
            assert rows.error_kind.isna().all(), f"{line}\n{rows.error.dropna().tolist()}"
            named = (
                "reports/full_benchmark.json"
                if "--output" in line
                else f"reports/{(folder / 'runs' / 'latest').resolve().name}.json"
            )
            assert json.loads((folder / named).read_text())["summary"]["success_rate"] == 100.0
        _, folder, _ = next(one for one in runs if "--mode turn_taking" in one[0])
        (folder / log.name).write_bytes(log.read_bytes())
        assert "PersonaPlex" in _said(REPORT_DUPLEX, folder)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _said(line: str, folder: Path, status: int = 0) -> str:
    """Run a documented `python -m MODULE …` in a folder in which its files are, and return what it says."""
    _, _, module, *words = shlex.split(line)
    with locust(*words, cwd=folder, module=module) as started:
        assert started.end() == status, started.said
    return started.said


def test_options_are_listed() -> None:
    """Every key of a scenario, with its default, since `locust --help` cannot show them."""
    from workers.settings import Scenario

    said = _said(OPTIONS, ROOT)
    for key in Scenario.model_fields:
        assert f"--{key.replace('_', '-')} " in said
    assert "default: 60.0" in said


def test_recover_as_documented(tmp_path: Path, server: Server) -> None:
    """A folder of spools and a run directory, in that order."""
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


@pytest.mark.alone
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


@pytest.mark.alone
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

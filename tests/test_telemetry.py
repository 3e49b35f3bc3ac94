"""GPUs of the bundled server: scripted drivers, and traces written by hand. No GPU is needed, and none is used."""

import asyncio
import inspect
import json
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from nvml_driver import CALM, FUNCTION_NOT_FOUND, GPU_IS_LOST, NO_PERMISSION, NOT_SUPPORTED, Driver, NVMLError
from rich.console import Console
from run_maker import (
    MASTER_BOOT,
    MONOTONIC_AT,
    RUN,
    WALL_AT,
    clean_seconds,
    facts,
    log_of,
    make_run,
    packed,
    packed_header,
    turns,
)
from server_process import ROOT, running_server

from analysis.page import render
from analysis.report import report
from analysis.runs import open_run
from analysis.scraped import read_scraped, series
from analysis.server_join import import_server_log
from gpu_server import telemetry
from gpu_server.engines.tone import ToneEngine
from gpu_server.service import Service, Settings
from gpu_server.telemetry import Gpus, NoGpu, Telemetry, chosen
from gpu_server.trace import GpuSample, TraceLog, parse_gpu, parse_trace, read_gpu, read_trace
from workers.exposition import Exposition
from workers.samples import schema

WITHIN_S = 10.0
HEADER = {
    "cicada_trace": 1, "server": "gpu_server", "engine": "chatterbox", "pid": 9, "host": "box-a",
    "wall_at": WALL_AT, "monotonic_at": MONOTONIC_AT, "boot_id": MASTER_BOOT,
}  # fmt: skip

Install = Callable[[Driver], Driver]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Install:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(driver: Driver) -> Driver:
        monkeypatch.setitem(sys.modules, "pynvml", driver)
        return driver

    return install


# ------------------------------------------------------------------------------------------------------- one look


def test_a_look_is_what_the_driver_says_in_units_without_prefixes(installed: Install) -> None:
    installed(Driver([CALM]))
    (sample,) = Gpus().look()
    assert {**sample, "at": None} == {
        "gpu": 0,
        "name": "NVIDIA H000",
        "at": None,
        "utilisation_ratio": 0.25,
        "memory_used_bytes": 5 * 2**30,
        "memory_total_bytes": 80 * 2**30,
        "power_w": 123.456,
        "sm_clock_hz": 1_980_000_000,
        "memory_clock_hz": 2_619_000_000,
        "temperature_c": 41.0,
    }


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND])
@pytest.mark.parametrize(
    ("what", "untold"),
    [
        ("busy", {"utilisation_ratio"}),
        ("used", {"memory_used_bytes", "memory_total_bytes"}),
        ("mw", {"power_w"}),
        ("sm", {"sm_clock_hz"}),
        ("mem", {"memory_clock_hz"}),
        ("celsius", {"temperature_c"}),
    ],
)
def test_what_a_gpu_does_not_tell_is_none_and_costs_nothing_else(
    installed: Install, what: str, untold: set[str], code: int
) -> None:
    installed(Driver([{**CALM, what: NVMLError(code)}]))
    (sample,) = Gpus().look()
    assert {key for key, value in sample.items() if value is None} == untold


def test_any_other_error_is_the_drivers_failure(installed: Install) -> None:
    installed(Driver([{**CALM, "mw": NVMLError(GPU_IS_LOST, "GPU is lost")}]))
    with pytest.raises(NoGpu, match=r"^NVML: GPU is lost$"):
        Gpus().look()


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("1", [1]),
        ("2,0", [0, 2]),
        ("0,7,1", [0]),
        ("0, 1", [0, 1]),
        ("1,1", [1]),
        ("GPU-2a", [2]),
        ("GPU-1a-uuid,GPU-0a-uuid", [0, 1]),
        ("GPU-9", []),
        ("MIG-41c5", [0, 1, 2]),
        ("all", [0, 1, 2]),
    ],
)
def test_the_gpus_looked_at_are_those_that_cuda_would_use(visible: str | None, expected: list[int]) -> None:
    assert chosen(visible, ["GPU-0a-uuid", "GPU-1a-uuid", "GPU-2a-uuid"]) == expected


def test_a_gpu_keeps_its_index_when_others_are_hidden(installed: Install) -> None:
    installed(Driver([CALM], [{**CALM, "busy": 75}]))
    assert [(s["gpu"], s["name"], s["utilisation_ratio"]) for s in Gpus("1").look()] == [(1, "NVIDIA H100", 0.75)]


@pytest.mark.parametrize(
    ("driver", "visible", "why"),
    [
        (Driver([CALM], init=NVMLError(12, "NVML Shared Library Not Found")), None, "NVML Shared Library Not Found"),
        (Driver(), None, "NVML counts none"),
        (Driver([CALM]), "3", "CUDA_VISIBLE_DEVICES=3 hides all 1"),
    ],
    ids=["no driver", "no GPU", "hidden"],
)
def test_no_gpu_has_its_reason(installed: Install, driver: Driver, visible: str | None, why: str) -> None:
    installed(driver)
    with pytest.raises(NoGpu, match=re.escape(why)):
        Gpus(visible)


def test_no_library_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as an import system does where there is none
    with pytest.raises(NoGpu, match="pip install nvidia-ml-py"):
        Gpus()


def test_all_that_is_asked_is_in_the_real_library() -> None:
    """The scripted driver would hide a name that NVML does not have."""
    real = pytest.importorskip("pynvml")
    asked = set(re.findall(r"\bnvml\.(\w+)", inspect.getsource(telemetry)))
    asked |= set(re.findall(r"\bpynvml\.(\w+)", inspect.getsource(telemetry)))
    assert len(asked) > 12
    assert not [name for name in asked if not hasattr(real, name)]
    assert real.NVMLError(NOT_SUPPORTED).value == real.NVML_ERROR_NOT_SUPPORTED == NOT_SUPPORTED


def test_looking_needs_neither_torch_nor_the_library_before_it_begins() -> None:
    program = "import sys, gpu_server.telemetry; print([n for n in ('torch', 'pynvml', 'numpy') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


# ----------------------------------------------------------------------------------------------------- look by look


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "EVERY_S", 0.002)


def watched(record: Callable[[list[GpuSample]], bool], *, expected: bool = False) -> None:
    """Watch until `record` says that it has had enough, or the watching ends by itself."""

    async def watch() -> None:
        enough = asyncio.Event()
        watching = Telemetry(lambda samples: enough.set() if record(samples) else None, expected=expected)
        watching.start()
        thread = watching._thread
        assert thread is not None
        assert thread.daemon
        async with asyncio.timeout(WITHIN_S):
            ended = asyncio.create_task(asyncio.to_thread(thread.join))
            await asyncio.wait((asyncio.create_task(enough.wait()), ended), return_when=asyncio.FIRST_COMPLETED)
            watching.stop()
            assert not thread.is_alive()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    asyncio.run(watch())


@pytest.mark.usefixtures("quick")
def test_every_look_is_recorded_in_order_and_the_library_is_left_in_order(installed: Install) -> None:
    driver = installed(Driver([{**CALM, "busy": busy} for busy in (10, 20, 30)]))
    seen: list[GpuSample] = []

    def record(samples: list[GpuSample]) -> bool:
        seen.extend(samples)
        return len(seen) >= 4

    watched(record)
    assert [sample["utilisation_ratio"] for sample in seen[:4]] == [0.1, 0.2, 0.3, 0.3]
    ats = [sample["at"] for sample in seen]
    assert ats == sorted(ats)
    assert driver.shut_down == 1


@pytest.mark.parametrize("expected", [True, False])
def test_a_missing_gpu_is_said_once_and_only_where_the_engine_wants_one(
    installed: Install, capsys: pytest.CaptureFixture[str], expected: bool
) -> None:
    installed(Driver(init=NVMLError(12, "NVML Shared Library Not Found")))
    watched(lambda samples: pytest.fail("there was nothing to record"), expected=expected)
    said = capsys.readouterr()
    line = "gpu_server: no NVIDIA GPU found: no GPU telemetry (NVML: NVML Shared Library Not Found)\n"
    assert (said.out, said.err) == ("", line if expected else "")


def gauges(exposition: bytes) -> dict[str, float]:
    lines = exposition.decode().splitlines()
    found = (line.rpartition(" ") for line in lines if line.startswith("gpu_server_gpu_"))
    return {name.removeprefix("gpu_server_gpu_"): float(value) for name, _, value in found}


CALM_FIGURES = {
    'utilisation_ratio{gpu="0"}': 0.25,
    'memory_used_bytes{gpu="0"}': 5 * 2**30,
    'memory_total_bytes{gpu="0"}': 80 * 2**30,
    'power_watts{gpu="0"}': 123.456,
    'sm_clock_hertz{gpu="0"}': 1.98e9,
    'memory_clock_hertz{gpu="0"}': 2.619e9,
    'temperature_celsius{gpu="0"}': 41.0,
}


@pytest.mark.usefixtures("quick")
def test_a_driver_that_fails_in_the_middle_leaves_a_gap_one_line_and_no_old_figure(
    installed: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = {**CALM, "busy": NVMLError(GPU_IS_LOST, "GPU is lost")}
    installed(Driver([CALM, CALM, lost, lost, {**CALM, "busy": 50}, lost, CALM]))
    service = Service(ToneEngine(None), Settings(), TraceLog(tmp_path / "trace.jsonl", "tone"))
    shown: list[dict[str, float]] = []

    def record(samples: list[GpuSample]) -> bool:
        service.record_gpus(samples)
        shown.append(gauges(service.metrics.exposition()))
        return len(shown) >= 7

    watched(record)
    service.close()
    assert shown[0] == shown[1] == shown[6] == CALM_FIGURES
    assert shown[2] == shown[3] == shown[5] == {}
    assert shown[4] == {**CALM_FIGURES, 'utilisation_ratio{gpu="0"}': 0.5}
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "GPU is lost" in said
    rows = read_gpu(tmp_path / "trace.jsonl")
    assert [row["utilisation_ratio"] for row in rows[:4]] == [0.25, 0.25, 0.5, 0.25]


@pytest.mark.usefixtures("quick")
def test_a_driver_that_hangs_holds_up_no_end(installed: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "_STOP_S", 0.01)
    driver, asked, goes_on = installed(Driver([CALM])), threading.Event(), threading.Event()

    def hang(gpu: int) -> int:
        asked.set()
        goes_on.wait(WITHIN_S)
        return 0

    driver.nvmlDeviceGetPowerUsage = hang  # type: ignore[method-assign]

    async def end() -> threading.Thread:
        watching = Telemetry(lambda samples: None, expected=False)
        watching.start()
        assert await asyncio.to_thread(asked.wait, WITHIN_S)
        watching.stop()
        assert watching._thread is not None
        assert watching._thread.is_alive()
        return watching._thread

    thread = asyncio.run(end())
    goes_on.set()  # and finds its loop closed
    thread.join(WITHIN_S)
    assert not thread.is_alive()


# --------------------------------------------------------------------------------------------------- trace, /metrics


def sample(at: float, **given: Any) -> dict[str, Any]:
    return {
        "gpu": 0,
        "name": "NVIDIA H100",
        "at": at,
        "utilisation_ratio": 0.5,
        "memory_used_bytes": 10 * 10**9,
        "memory_total_bytes": 80 * 10**9,
        "power_w": 300.0,
        "sm_clock_hz": 1_980_000_000,
        "memory_clock_hz": 2_619_000_000,
        "temperature_c": None,
        **given,
    }


def test_samples_are_rows_of_their_own_and_no_bad_lines() -> None:
    lines = [*map(json.dumps, (HEADER, sample(1.0), sample(2.0, gpu=1, new_column=5)))]
    torn = [json.dumps(sample(3.0))[:90], '{"utilisation_ratio": 1}']
    found, rows, bad_lines = parse_trace([*lines, *torn])
    assert (found is not None, rows, bad_lines) == (True, [], 2)
    assert [(row["gpu"], row["at"]) for row in parse_gpu([*lines, *torn])] == [(0, 1.0), (1, 2.0)]


@pytest.fixture
def fake_pynvml(tmp_path: Path) -> dict[str, str]:
    """The environment of a server whose driver is the scripted one."""
    (tmp_path / "nvml").mkdir()
    (tmp_path / "nvml" / "pynvml.py").write_text(
        "import sys\n"
        f"sys.path.append({str(ROOT / 'tests')!r})\n"
        "from nvml_driver import CALM, Driver\n"
        "sys.modules['pynvml'] = Driver([CALM])\n"
    )
    return {"PYTHONPATH": f"{tmp_path / 'nvml'}:{ROOT}"}


def test_a_server_tells_of_its_gpu_in_its_metrics_and_its_trace(fake_pynvml: dict[str, str], tmp_path: Path) -> None:
    with running_server("--engine", "tone", trace=tmp_path / "trace.jsonl", env=fake_pynvml) as server:
        first = server.until(lambda: next(iter(read_gpu(tmp_path / "trace.jsonl")), None))
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=WITHIN_S) as answer:
            said = answer.read()
        assert server.stop() == 0
        assert server.stderr_lines == []
    assert (first["gpu"], first["name"], first["power_w"]) == (0, "NVIDIA H000", 123.456)
    header, rows, bad_lines = read_trace(tmp_path / "trace.jsonl")
    assert header is not None
    assert (rows, bad_lines) == ([], 0)
    assert first["at"] >= header["monotonic_at"]
    assert gauges(said) == CALM_FIGURES


def test_the_default_engine_says_nothing_of_gpus(tmp_path: Path) -> None:
    (tmp_path / "pynvml.py").write_text("raise ImportError('No module named pynvml')\n")
    with running_server("--engine", "tone", env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}) as server:
        assert server.stop() == 0
        assert (server.stderr_lines, len(server.stdout_lines)) == ([], 1)


# ------------------------------------------------------------------------------------------------------- the report


def traced(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """100 turns, due from 10 s to 19.9 s after the worker's start; the run began at 5 s."""
    return make_run(tmp_path, log_of(turns(100), clean_seconds()))


def gpu_figures(run: Path, *logs: Path) -> dict[tuple[str, str], dict[str, float]]:
    found = report(run, logs)["scraped"]
    return {(one["role"], one["name"]): one["spans"]["measured"] for one in found}


KNOWN = (
    (2.0, {"memory_used_bytes": 70 * 10**9}),  # before the run
    (7.0, {"memory_used_bytes": 15 * 10**9, "power_w": 100.0, "sm_clock_hz": 345_000_000}),  # before its window
    (12.0, {"utilisation_ratio": 0.2, "memory_used_bytes": 11 * 10**9, "power_w": 250.0}),
    (13.0, {"utilisation_ratio": 0.6, "memory_used_bytes": 14 * 10**9, "sm_clock_hz": 1_410_000_000}),
    (14.0, {"utilisation_ratio": 1.0, "power_w": 500.0}),
    (99.0, {"memory_used_bytes": 70 * 10**9}),  # when it was over
)


def known(path: Path, **header: Any) -> Path:
    shift = header.pop("shift", 0.0)
    rows = (sample(MONOTONIC_AT + at + shift, **given) for at, given in KNOWN)
    return traced(path, {**HEADER, **header}, *rows)


def test_the_windows_figures_are_those_of_its_samples(run: Path, tmp_path: Path) -> None:
    path = known(tmp_path / "trace.jsonl")
    found = gpu_figures(run, path)
    name = f"GPU 0 NVIDIA H100, {path}"
    told = {role: (one["least"], one["mean"], one["most"]) for (role, of), one in found.items() if of == name}
    assert told["gpu_busy_share"] == pytest.approx((20.0, 60.0, 100.0))
    assert told["gpu_memory_bytes"] == pytest.approx((10.0, 35 / 3, 14.0))  # GB
    assert told["gpu_power_w"] == pytest.approx((250.0, 350.0, 500.0))
    assert told["gpu_sm_clock_hz"] == pytest.approx((1410.0, (1980 + 1410 + 1980) / 3, 1980.0))  # MHz
    assert {one["scrapes"] for one in found.values()} == {3}
    assert len(told) == len(found) == 4


def test_the_page_shows_them_in_a_line_each(run: Path, tmp_path: Path) -> None:
    path = known(tmp_path / "t.jsonl")
    page = render(report(run, [path]), Console(width=200))
    lines = {title: next(line for line in page.splitlines() if title in line) for title in
             ("GPU busy", "GPU memory", "GPU power", "GPU SM clock")}  # fmt: skip
    assert re.search(r"20\.0 % +60\.0 % +100 %$", lines["GPU busy"])
    assert re.search(r"10\.0 GB +11\.7 GB +14\.0 GB$", lines["GPU memory"])
    assert re.search(r"250 W +350 W +500 W$", lines["GPU power"])
    assert re.search(r"1,410 MHz +1,790 MHz +1,980 MHz$", lines["GPU SM clock"])


@pytest.mark.parametrize(("gigabytes", "status"), [(15, "hold"), (17, "miss")])
def test_the_peak_of_the_whole_run_is_what_a_target_of_memory_is_held_against(
    run: Path, tmp_path: Path, gigabytes: int, status: str
) -> None:
    """Also before its window, and not beyond the run."""
    rows = [
        sample(MONOTONIC_AT + at, memory_used_bytes=used * 10**9) for at, used in ((2, 70), (7, gigabytes), (13, 9))
    ]
    path = traced(tmp_path / "t.jsonl", HEADER, *rows)
    (verdict,) = (
        one for one in report(run, [path], "chatterbox")["targets"]["verdicts"] if one["name"] == "GPU memory"
    )
    assert (verdict["status"], verdict["value"]) == (status, gigabytes * 10**9)


def test_samples_of_an_earlier_boot_are_of_no_run(run: Path, tmp_path: Path) -> None:
    """The same monotonic instants, a day before."""
    earlier = {**HEADER, "wall_at": WALL_AT - 86_400, "boot_id": "boot-before"}
    its = (sample(MONOTONIC_AT + at, power_w=999.0) for at in (12, 13))
    path = traced(tmp_path / "t.jsonl", earlier, *its, HEADER, sample(MONOTONIC_AT + 13))
    power = gpu_figures(run, path)["gpu_power_w", f"GPU 0 NVIDIA H100, {path}"]
    assert (power["scrapes"], power["most"]) == (1, 300.0)


def test_a_step_of_the_wall_clock_moves_no_sample_of_the_same_boot(run: Path, tmp_path: Path) -> None:
    path = known(tmp_path / "t.jsonl", wall_at=WALL_AT + 3600)
    assert {one["scrapes"] for one in gpu_figures(run, path).values()} == {3}


def test_another_hosts_samples_are_laid_on_the_wall_clock(run: Path, tmp_path: Path) -> None:
    far = {"host": "box-b", "boot_id": "boot-b", "monotonic_at": MONOTONIC_AT - 4_000}
    path = known(tmp_path / "t.jsonl", **far, shift=-4_000.0)
    assert {one["scrapes"] for one in gpu_figures(run, path).values()} == {3}


def test_importing_again_replaces_and_two_gpus_stand_apart(run: Path, tmp_path: Path) -> None:
    two = (sample(MONOTONIC_AT + at, gpu=gpu, name=f"NVIDIA H{gpu + 1}00") for at in (12, 13) for gpu in (0, 1))
    path = traced(tmp_path / "t.jsonl", HEADER, *two)
    for _ in range(2):
        source = import_server_log(open_run(run), path)
        assert (source.gpu_samples, source.rows, source.bad_lines) == (4, 0, 0)
    memory = series(read_scraped(run), "gpu_memory_bytes")
    assert list(memory["name"]) == [f"GPU 0 NVIDIA H100, {path}"] * 2 + [f"GPU 1 NVIDIA H200, {path}"] * 2
    traced(path, HEADER, sample(MONOTONIC_AT + 99))
    assert import_server_log(open_run(run), path).gpu_samples == 0
    assert read_scraped(run).empty


def test_what_is_no_number_is_left_out(run: Path, tmp_path: Path) -> None:
    odd = [
        sample(MONOTONIC_AT + 12, power_w=float("nan"), utilisation_ratio="busy", memory_used_bytes=None),
        sample(None),  # type: ignore[arg-type]
        sample(float("inf")),
        sample(MONOTONIC_AT + 13, name='H"\\\n1'),
    ]
    path = traced(tmp_path / "t.jsonl", HEADER, *odd)
    found = gpu_figures(run, path)
    names = {name for _, name in found}
    assert names == {f"GPU 0 NVIDIA H100, {path}", f'GPU 0 H"\\\n1, {path}'}
    assert [role for role, name in found if "H100" in name] == ["gpu_sm_clock_hz"]


def test_a_trace_without_gpus_leaves_no_table(run: Path, tmp_path: Path) -> None:
    import_server_log(open_run(run), traced(tmp_path / "t.jsonl", HEADER))
    assert not (run / "server" / "metrics").exists()


def scraped(run_dir: Path, exposition: str) -> pd.DataFrame:
    """The table of one scrape."""
    kept = Exposition().read(exposition.split("\n"))
    log = packed_header(facts())
    for one in kept:
        row = {**one._asdict(), "run": RUN, "endpoint": "http://h:8080/metrics", "at": 5.0}
        log += packed("metrics", row)
    (run_dir / "server").mkdir()
    (run_dir / schema.METRICS_LOG).write_bytes(log)
    return read_scraped(run_dir)


def test_the_servers_own_gauges_are_understood_where_they_are_scraped(installed: Install, tmp_path: Path) -> None:
    """What a server's registry says, through the reader of scrapes, into roles."""
    installed(Driver([CALM], [CALM]))
    service = Service(ToneEngine(None), Settings(), None)
    service.record_gpus(Gpus().look())
    frame = scraped(tmp_path, service.metrics.exposition().decode())
    expected = {
        "gpu_busy_share": 0.25,
        "gpu_memory_bytes": 5 * 2**30,
        "gpu_power_w": 123.456,
        "gpu_sm_clock_hz": 1.98e9,
    }
    for role, value in expected.items():
        found = series(frame, role)
        assert list(zip(found["name"], found["value"], strict=True)) == [
            ("GPU 0, h:8080", value),
            ("GPU 1, h:8080", value),
        ], role


def test_other_exporters_power_and_clocks_play_the_same_roles(tmp_path: Path) -> None:
    """dcgm-exporter's fields: W and MHz, the second GPU's blank (no measurement); Triton's power."""
    frame = scraped(
        tmp_path,
        'DCGM_FI_DEV_POWER_USAGE{gpu="0"} 315.5\nDCGM_FI_DEV_POWER_USAGE{gpu="1"} 140737488355328\n'
        'DCGM_FI_DEV_SM_CLOCK{gpu="0"} 1410\nDCGM_FI_DEV_SM_CLOCK{gpu="1"} 9223372036854775794\n'
        'nv_gpu_power_usage{gpu_uuid="GPU-7"} 62.25\n',
    )
    power, clock = (series(frame, role) for role in ("gpu_power_w", "gpu_sm_clock_hz"))
    assert dict(zip(power["name"], power["value"], strict=True)) == {"GPU 0, h:8080": 315.5, "GPU GPU-7, h:8080": 62.25}
    assert list(zip(clock["name"], clock["value"], strict=True)) == [("GPU 0, h:8080", 1.41e9)]

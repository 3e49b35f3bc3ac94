"""The GPU's figures in one command: its time shared out, what each figure is judged by, and a rehearsal for real."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from gpu_server import bench_gpu
from gpu_server.baseline_device import Cpu
from gpu_server.bench_gpu import LIMIT_S, Part, plan, run_part, share_s
from gpu_server.bench_gpu_figures import ASKED, Found, figure_line, figures, floor, ratio_lines, ratios, remarks

CHATTERBOX = all(importlib.util.find_spec(name) is not None for name in ("torch", "chatterbox"))
needs_chatterbox = pytest.mark.skipif(not CHATTERBOX, reason="the extra `chatterbox` is not installed")
TURBO, ORIGINAL = "chatterbox-turbo", "chatterbox"
H200 = "NVIDIA H200"


def level(streams: int, p95_ms: float | None, kept_up: int | None = None, failed: int = 0, gb: float = 10.0) -> Any:
    return {
        "streams": streams,
        "ttfc_p95_ms": p95_ms,
        "streams_in_real_time": streams if kept_up is None else kept_up,
        "failed": failed,
        "vram_peak_gb": gb,
    }


def text(mean_ms: float, ttfc_ms: float, audio_ms: float = 1000.0, t3_s: float = 1.0, t3_tokens: int = 1000) -> Any:
    return {
        "latency": {"mean_ms": mean_ms},
        "streaming": {"ttfc_mean_ms": ttfc_ms},
        "audio_duration_ms": audio_ms,
        "stages": {"t3_s": t3_s, "t3_tokens": t3_tokens},
    }


def document(*levels: Any, p50_ms: float = 30.0, rtf: float = 0.03, texts: Any = None, **configuration: Any) -> Any:
    return {
        "configuration": {"device": "cuda", "size": "full", "gpu": H200, "weights": "random"} | configuration,
        "results": texts or {"short": text(100.0, 30.0)},
        "summary": {"overall_rtf": rtf, "streaming": {"ttfc_p50_ms": p50_ms}},
        "concurrency": {"levels": list(levels)},
    }


def judged(found: Found, engine: str = TURBO) -> dict[tuple[str, int], str]:
    return {(one["figure"], one["streams"]): one["verdict"] for one in figures(found) if one["engine"] == engine}


def test_what_was_asked_for_is_what_is_judged() -> None:
    """The issue's own table."""
    asked = {(one.engine, one.key, one.streams): one.limit for one in ASKED}
    assert asked == {
        (TURBO, "ttfc_p50_ms", 1): 40,
        (TURBO, "rtf", 1): 0.04,
        (TURBO, "ttfc_p95_ms", 64): 150,
        (TURBO, "ttfc_p95_ms", 128): 150,
        (TURBO, "vram_peak_gb", 8): 12,
        (ORIGINAL, "ttfc_p50_ms", 1): 100,
        (ORIGINAL, "rtf", 1): 0.1,
        (ORIGINAL, "ttfc_p95_ms", 24): 300,
        (ORIGINAL, "vram_peak_gb", 8): 12,
    }


def test_a_figure_is_reached_at_its_limit_and_missed_beyond_it() -> None:
    whole = document(level(64, 150.0), level(128, 150.01), p50_ms=40.0, rtf=0.041)
    memory = document(level(8, 1.0, gb=11.99))
    verdicts = judged(Found({}, {TURBO: whole}, {TURBO: memory}))
    assert list(verdicts.values()) == ["reached", "missed", "reached", "missed", "reached"]
    assert judged(Found({}, {}, {TURBO: document(level(8, 1.0, gb=12.0))}))[("peak of GPU memory", 8)] == "missed"


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (level(64, 100.0, kept_up=63), "missed"),  # one stream stalled
        (level(64, None), "not measured"),  # too few answers for a 95th percentile
        (level(64, 100.0, failed=1), "not measured"),
        (level(32, 100.0), "not measured"),
    ],
)
def test_streams_that_stall_or_were_not_there_reach_nothing(found: Any, verdict: str) -> None:
    assert judged(Found({}, {TURBO: document(found)}, {}))[("first chunk, p95", 64)] == verdict


@pytest.mark.parametrize("otherwise", [{"device": "cpu"}, {"size": "tiny"}])
def test_a_rehearsal_reaches_nothing(otherwise: dict[str, str]) -> None:
    found = Found({}, {TURBO: document(level(64, 1.0), **otherwise)}, {})
    assert set(judged(found).values()) == {"not as asked for", "not measured"}
    assert any(remark.startswith("a rehearsal") for remark in remarks(found))
    assert floor(found)["times_the_floor"] is None


def test_what_was_not_measured_is_told_and_not_left_out() -> None:
    told = figures(Found({}, {}, {}))
    assert len(told) == len(ASKED)
    assert {one["verdict"] for one in told} == {"not measured"}
    assert all(figure_line(one).endswith("| - | not measured") for one in told)
    assert all(line.endswith("not measured") for line in ratio_lines(ratios(Found({}, {}, {}))))


def test_another_gpu_is_named() -> None:
    assert remarks(Found({}, {TURBO: document(gpu="NVIDIA H100")}, {})) == [
        "random weights: timing only",
        "asked for of an H200; measured on NVIDIA H100",
    ]
    assert remarks(Found({}, {TURBO: document(weights="trained")}, {})) == []


def test_ratios_are_of_the_texts_that_both_said() -> None:
    """Upstream: 400 + 800 ms, the engine 100 + 200 ms; first chunks 1200 by 60 ms; RTF 0.4 by 0.125."""
    before = {"short": text(400.0, 400.0, 1000.0), "medium": text(800.0, 800.0, 2000.0), "long": text(9e9, 9e9)}
    after = {"short": text(100.0, 30.0, 1000.0), "medium": text(200.0, 30.0, 1400.0)}
    turbo, original = ratios(Found({TURBO: document(texts=before)}, {TURBO: document(texts=after)}, {}))
    assert turbo == {
        "engine": TURBO,
        "texts": ["short", "medium"],
        "mean_latency": 4.0,
        "first_chunk": 20.0,
        "rtf": 3.2,
    }
    assert original["mean_latency"] is None


def test_a_t3_step_is_compared_with_the_least_it_can_take() -> None:
    """3000 steps in 1.2 s are 0.4 ms each: 2.5 times 0.16 ms."""
    texts = {"short": text(1, 1, t3_s=0.2, t3_tokens=1000), "long": text(1, 1, t3_s=1.0, t3_tokens=2000)}
    found = floor(Found({}, {TURBO: document(texts=texts)}, {}))
    assert (found["t3_step_ms"], found["times_the_floor"]) == (0.4, 2.5)


# ---- the time


def test_shares_fill_the_limit_and_nothing_beyond_it() -> None:
    parts = plan(cuda=True)
    assert sum(part.weight for part in parts) == LIMIT_S == 540
    left_s = 100.0
    for number in range(len(parts)):
        left_s -= share_s(parts[number:], left_s)
    assert left_s == pytest.approx(0)


def test_what_a_part_leaves_is_shared_out_again() -> None:
    parts = [Part(TURBO, "engine", "final_optimized", weight, ()) for weight in (1.0, 2.0, 1.0)]
    assert share_s(parts, 80.0) == 20.0
    assert share_s(parts[1:], 75.0) == 50.0  # the first one took 5 of its 20
    assert share_s(parts[2:], 25.0) == 25.0


def test_both_engines_are_measured_beside_upstream_and_up_to_128_streams() -> None:
    parts = plan(cuda=True)
    assert {(part.engine, part.name) for part in parts} == {
        (engine, name) for engine in (TURBO, ORIGINAL) for name in ("beside", "engine", "memory")
    }
    for part in parts:
        streams = part.options[part.options.index("--concurrency") + 1 :] if "--concurrency" in part.options else ()
        wanted = {str(one.streams) for one in ASKED if one.engine == part.engine and one.streams > 1}
        if part.name == "engine":
            assert wanted - {"8"} <= set(streams)
            assert "128" in streams
            assert set(streams[: len(wanted) - 1]) == wanted - {"8"}, "what was asked for comes first"
        assert (part.name == "memory") == (streams == ("8",))


PART = Part(TURBO, "engine", "final_optimized", 1.0, ())


def child(program: str) -> list[str]:
    return [sys.executable, "-c", f"import pathlib, signal, sys, time\n{program}"]


def test_a_part_that_ends_in_time_leaves_its_file(tmp_path: Path) -> None:
    (tmp_path / "earlier.json").touch()
    done = run_part(PART, 60.0, tmp_path, child(f"pathlib.Path({str(tmp_path)!r}, 'a.json').write_text(sys.argv[-1])"))
    assert (done.path, done.why) == (tmp_path / "a.json", "")
    assert (tmp_path / "a.json").read_text() == "50.0"  # its --limit-s: the grace is not its own


def test_a_part_that_cannot_run_says_why(tmp_path: Path) -> None:
    done = run_part(PART, 60.0, tmp_path, child("sys.exit('a warning of somebody\\nbaseline: no such folder')"))
    assert (done.path, done.why) == (None, "no such folder")


def test_a_part_that_outruns_its_share_keeps_what_it_finished(tmp_path: Path) -> None:
    program = f"""
def end(*_):
    pathlib.Path({str(tmp_path)!r}, "a.json").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, end)
time.sleep(600)
"""
    done = run_part(PART, 4.0, tmp_path, child(program))
    assert done.path == tmp_path / "a.json"
    assert done.why == "its share of 4 s ended before it had all"


def test_ctrl_c_is_handed_on_and_keeps_what_was_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ready").touch()
    program = f"""
folder = pathlib.Path({str(tmp_path)!r})
def end(*_):
    (folder / "a.json").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, end)
(folder / "ready").unlink()
time.sleep(600)
"""
    waited: list[float] = []

    def wait(process: Any, within_s: float) -> tuple[str, bool]:
        waited.append(within_s)
        if len(waited) > 1:
            return bench_gpu_wait(process, within_s)
        while (tmp_path / "ready").exists():
            assert process.poll() is None
        raise KeyboardInterrupt

    bench_gpu_wait = bench_gpu._wait
    monkeypatch.setattr(bench_gpu, "_wait", wait)
    done = run_part(PART, 60.0, tmp_path, child(program))
    assert done.interrupted
    assert (done.path, done.why) == (tmp_path / "a.json", "interrupted before it had all")
    assert waited == [50.0, 10.0]


def test_a_part_that_will_not_end_is_ended(tmp_path: Path) -> None:
    done = run_part(PART, 3.0, tmp_path, child("signal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(600)"))
    assert done.path is None
    assert done.why == "its share of 3 s ended before it had anything"


def test_a_part_without_time_is_not_begun(tmp_path: Path) -> None:
    done = run_part(PART, 2.0, tmp_path, child(f"pathlib.Path({str(tmp_path)!r}, 'a.json').touch()"))
    assert (done.path, done.why) == (None, "no time left of --limit-s")
    assert list(tmp_path.iterdir()) == []


# ---- the command


def test_without_a_gpu_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_gpu, "open_device", lambda name: Cpu(None))
    assert bench_gpu.main(["--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("bench_gpu: no CUDA device was found")
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@needs_chatterbox
def test_a_rehearsal_runs_for_real(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("--texts", "ultra_short", "--runs", "1", "--warm-up", "1")
    parts = [
        Part(TURBO, "beside", "baseline", 1.0, few),
        Part(ORIGINAL, "engine", "final_optimized", 1e-9, few),  # no time for this one
        Part(TURBO, "engine", "final_optimized", 1.0, (*few, "--listeners", "--level-s", "0.5", "--concurrency", "2")),
    ]
    monkeypatch.setattr(bench_gpu, "plan", lambda cuda: parts)
    asked = ["--device", "cpu", "--random-weights", "tiny", "--limit-s", "200", "--out", str(tmp_path)]
    assert bench_gpu.main(asked) == 0
    said = capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    turbo = [part for part in summary["parts"] if part["engine"] == TURBO]
    assert all((folder / part["file"]).is_file() and part["why"] is None for part in turbo)
    assert summary["parts"][1]["why"] == "no time left of --limit-s"
    assert summary["machine"]["gpu"].startswith("none (CPU: ")
    assert summary["ratios"][0]["texts"] == ["ultra_short"]
    assert summary["ratios"][0]["mean_latency"] > 0
    assert summary["figures"][0]["found"] > 0
    assert {one["verdict"] for one in summary["figures"]} == {"not as asked for", "not measured"}
    assert summary["notes"][0] == "random weights: timing only"
    assert "a rehearsal" in said
    assert f"Results saved to: {folder / 'summary.json'}" in said
    whole = json.loads((folder / turbo[1]["file"]).read_text())
    assert whole["comparison"]["baseline"] == turbo[0]["file"]
    assert whole["concurrency"]["listeners"] is True

"""S2's benchmark inside one process: its statistics, its schema, its validation list; and its kinds, run on the CPU."""

import importlib.util
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_server import baseline, baseline_levels, baseline_result, baseline_vllm
from gpu_server.baseline_device import Cpu, Cuda, Memory
from gpu_server.baseline_levels import Answer, figures, stalls
from gpu_server.baseline_protocol import Bench, MeasurementFailed, Stages, latency, real_time_factor
from gpu_server.baseline_result import standard_texts
from gpu_server.speech import Pcm
from tests.server_process import ROOT, running_server

CHATTERBOX = all(importlib.util.find_spec(name) is not None for name in ("torch", "chatterbox"))
needs_chatterbox = pytest.mark.skipif(not CHATTERBOX, reason="the extra `chatterbox` is not installed")
TINY = ("--engine", "chatterbox-turbo", "--random-weights", "tiny", "--device", "cpu")
LATENCY = {"mean_ms", "std_ms", "p50_ms", "p95_ms", "p99_ms", "min_ms", "max_ms"}
SECOND = 24_000  # samples


class Clock:
    """Stands still unless somebody speaks."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """A model that takes as long as it is told: seconds before each chunk, and its samples."""

    def __init__(self, clock: Clock, chunks: list[tuple[float, int]]) -> None:
        self.clock, self.chunks, self.said = clock, chunks, list[str]()

    def speak(self, text: str) -> Iterator[Pcm]:
        self.said.append(text)
        for wait_s, samples in self.chunks:
            self.clock.now += wait_s
            yield np.zeros(samples, np.int16)

    def spent(self) -> Stages:
        return Stages(0.5 * len(self.said), 25 * len(self.said), 0.25 * len(self.said), 1.0 * len(self.said))

    def close(self) -> None:
        pass


class FakeGpu(Cpu):
    """Counts what the protocol asks of a GPU."""

    name = "cuda"

    def __init__(self) -> None:
        self.did: list[str] = []

    def clear(self) -> bool:
        self.did.append("clear")
        return True

    def synchronize(self) -> bool:
        self.did.append("synchronize")
        return True

    def reset_peak(self) -> None:
        self.did.append("reset_peak")

    def memory(self) -> Memory | None:
        return Memory(3.14159, 2.71828)

    def facts(self) -> dict[str, Any]:
        return {"gpu": "a card", "gpu_memory_gb": 80.0, "cuda_version": "13.0", "pytorch_version": "2.13.0"}


def bench(chunks: list[tuple[float, int]], device: Any = None) -> Bench:
    clock = Clock()
    return Bench(Scripted(clock, chunks), device or FakeGpu(), clock)


def test_the_seven_figures_are_numpys_linear_percentiles_and_population_deviation() -> None:
    """By hand, of 1, 2, 3, 4, 100: p95 is 4 + 0.8 x 96."""
    found = latency([100.0, 1.0, 2.0, 3.0, 4.0])
    assert set(found) == LATENCY
    assert found["mean_ms"] == 22
    assert found["p50_ms"] == 3
    assert found["min_ms"] == 1
    assert found["max_ms"] == 100
    assert found["p95_ms"] == pytest.approx(80.8)
    assert found["p99_ms"] == pytest.approx(96.16)
    assert found["std_ms"] == pytest.approx(1522**0.5)


@pytest.mark.parametrize("times", [[], [float("nan")], [1.0, float("inf")]])
def test_no_times_have_no_figures(times: list[float]) -> None:
    with pytest.raises(ValueError, match="no times"):
        latency(times)


def test_rtf_is_latency_by_duration_and_zero_samples_are_an_error() -> None:
    assert real_time_factor(500, SECOND) == 0.5
    assert real_time_factor(500, 8000, 8000) == 0.5
    with pytest.raises(ValueError, match="no audio samples"):
        real_time_factor(500, 0)


def test_a_text_is_timed_from_before_the_call_to_the_last_chunk() -> None:
    """First chunk after 0.2 s, the second 0.3 s later: one second of audio in 0.5 s."""
    timed = bench([(0.2, SECOND // 4), (0.3, SECOND * 3 // 4)])
    told = baseline_result.text_result(timed.time_text("short", "one two three", 20), with_streaming=True)
    assert told["latency"]["mean_ms"] == 500
    assert told["latency"]["std_ms"] == 0
    assert told["rtf"] == 0.5
    assert told["text_length_words"] == 3
    assert told["audio_samples"] == SECOND
    assert told["audio_duration_ms"] == 1000
    assert told["vram_peak_gb"] == 3.14
    assert told["vram_current_gb"] == 2.72
    assert told["streaming"] == {
        "ttfc_mean_ms": 200.0,
        "ttfc_p50_ms": 200.0,
        "ttfc_p95_ms": 200.0,
        "total_mean_ms": 500.0,
        "total_p95_ms": 500.0,
        "avg_chunks": 2.0,
    }
    assert told["stages"] == {"t3_s": 10.0, "t3_tokens": 500, "s3gen_s": 5.0, "audio_s": 20.0}


def test_memory_is_cleared_its_peak_reset_and_each_run_waited_for_before_and_after() -> None:
    gpu = FakeGpu()
    timed = bench([(0.1, SECOND)], gpu)
    timed.warm_up("words", 5)
    assert gpu.did == ["clear", *["synchronize"] * 5]
    gpu.did.clear()
    timed.time_text("short", "words", 3)
    assert gpu.did == ["clear", "reset_peak", *["synchronize"] * 6]


def test_what_is_asked_of_cuda_is_what_s2_writes() -> None:
    """The calls themselves, on a module that stands in for torch."""
    called: list[str] = []

    class Named:
        def __getattr__(self, name: str) -> Any:
            def call(*_: Any) -> int:
                called.append(name)
                return 2_500_000_000

            return call

    class Torch:
        cuda = Named()

    device = Cuda(Torch())
    device.clear()
    device.synchronize()
    device.reset_peak()
    assert device.memory() == Memory(2.5, 2.5)
    assert called == [
        "empty_cache",
        "synchronize",
        "reset_peak_memory_stats",
        "max_memory_allocated",
        "memory_allocated",
    ]


def test_a_gpu_is_told_by_name_memory_and_cuda_version() -> None:
    class Properties:
        name, total_memory = "NVIDIA H200", 150_123_456_789

    class Module:
        @staticmethod
        def current_device() -> int:
            return 1

        @staticmethod
        def get_device_properties(number: int) -> Properties:
            assert number == 1
            return Properties()

    class Version:
        cuda = "13.0"

    class Torch:
        cuda, version, __version__ = Module, Version, "2.13.0"

    assert Cuda(Torch()).facts() == {
        "gpu": "NVIDIA H200",
        "gpu_memory_gb": 150.12,
        "cuda_version": "13.0",
        "pytorch_version": "2.13.0",
    }


def test_without_options_it_is_s2s_protocol() -> None:
    options = baseline._parser().parse_args(["--engine", "chatterbox-turbo"])
    assert (options.runs, options.warm_up, baseline.WARM_UP_TEXT) == (20, 5, "medium")
    assert options.texts == ["ultra_short", "short", "medium", "long", "telephony_typical"]
    assert options.out == Path("benchmarks/results")


def test_warm_up_runs_are_in_no_result() -> None:
    timed = bench([(0.1, SECOND)])
    timed.warm_up("words", 5)
    assert timed.steps.warm_ups == 5
    assert len(timed.time_text("short", "words", 2).runs) == 2


def test_runs_without_a_chunk_are_counted_as_failed() -> None:
    timed = bench([])
    with pytest.raises(MeasurementFailed, match="short: no audio in 4 of 4 runs"):
        timed.time_text("short", "words", 4)
    assert timed.steps.runs == {}


def test_a_model_that_fails_is_named_with_its_text() -> None:
    timed = bench([(0.1, SECOND)])

    def broken(text: str) -> Iterator[Pcm]:
        raise RuntimeError("out of luck\nand more lines")
        yield

    timed.speaker.speak = broken  # type: ignore[method-assign]
    with pytest.raises(MeasurementFailed, match=r"^short: RuntimeError: out of luck$"):
        timed.time_text("short", "words", 4)


# ---- the file


def finished(device: Any = None, runs: int = 20, warm_ups: int = 5, kind: str = "final_optimized") -> Any:
    timed = bench([(0.2, SECOND), (0.05, SECOND)], device)
    timed.warm_up("words", warm_ups)
    texts = [timed.time_text(name, text, runs) for name, text in standard_texts().items()]
    configuration = {
        **timed.device.facts(),
        "model": "chatterbox-turbo",
        "optimization": "none",
        "batch_size": 1,
        "weights": "random",
        "size": "full",
    }
    document = baseline_result.document(
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), kind, timed.steps, runs, configuration
    )
    document["results"] = {text.name: baseline_result.text_result(text, True) for text in texts}
    document["summary"] = baseline_result.summary(texts, True)
    return document, timed.steps


def test_the_file_has_s2s_schema() -> None:
    document, _ = finished()
    assert document["metadata"] == {
        "timestamp": "2026-01-02T03:04:05Z",
        "benchmark_type": "final_optimized",
        "warmup_runs": 5,
        "measurement_runs": 20,
    }
    wanted = {"gpu", "gpu_memory_gb", "cuda_version", "pytorch_version", "model", "optimization", "batch_size"}
    assert wanted <= set(document["configuration"])
    assert list(document["results"]) == ["ultra_short", "short", "medium", "long", "telephony_typical"]
    for text in document["results"].values():
        assert {"text_name", "text_length_words", "audio_duration_ms", "audio_samples", "latency", "rtf"} <= set(text)
        assert set(text["latency"]) == LATENCY
        assert text["vram_peak_gb"] == 3.14
    assert {key: document["summary"][key] for key in ("overall_mean_ms", "overall_p95_ms", "overall_rtf")} == {
        "overall_mean_ms": 250.0,
        "overall_p95_ms": 250.0,
        "overall_rtf": 0.125,
    }
    assert document["summary"]["max_vram_gb"] == 3.14
    assert document["notes"] == ["random weights: timing only"]


def test_a_file_is_named_by_type_and_time_and_written_over_no_other(tmp_path: Path) -> None:
    document, _ = finished()
    document["validation"] = []
    first, second = (baseline_result.write(document, tmp_path) for _ in range(2))
    assert first.name == "final_optimized_20260102_030405.json"
    assert second.name == "final_optimized_20260102_030406.json"
    assert first.read_text().startswith('{\n  "metadata": {\n')  # indent 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, second.name]


def test_the_nine_items_are_checked_from_what_was_done() -> None:
    document, steps = finished()
    document["comparison"] = {"baseline": "baseline_1.json"}
    checks = baseline_result.validation(document, steps, cuda=True)
    assert [check.done for check in checks] == [True] * 9


@pytest.mark.parametrize(
    ("item", "how"),
    [
        ("Warmup", {"warm_ups": 4}),
        ("Sufficient", {"runs": 19}),
        ("cleared", {}),
    ],
)
def test_an_item_that_was_not_done_is_not_ticked(item: str, how: dict[str, Any]) -> None:
    document, steps = finished(**how)
    if item == "cleared":
        steps.cleared = 0
    checks = {check.item: check.done for check in baseline_result.validation(document, steps, cuda=True)}
    assert [done for name, done in checks.items() if item in name] == [False]


def test_items_about_a_file_are_read_off_the_file() -> None:
    document, steps = finished()
    document["results"]["short"]["rtf"] = 0.126
    document["results"]["long"]["vram_peak_gb"] = None
    del document["results"]["medium"]
    document["metadata"]["timestamp"] = "yesterday"
    steps.synchronized -= 1
    found = {check.item.split()[0]: check for check in baseline_result.validation(document, steps, cuda=True)}
    assert found["RTF"].done is False
    assert "short" in found["RTF"].found
    assert found["VRAM"].done is False
    assert "long" in found["VRAM"].found
    assert found["All"].done is False
    assert "medium" in found["All"].found
    assert found["Results"].done is False
    assert found["torch.cuda.synchronize()"].done is False
    assert found["Comparison"].done is False


def test_a_comparison_is_with_the_newest_baseline_of_the_same_model(tmp_path: Path) -> None:
    document, _ = finished(kind="final_optimized")
    for place, (mean_ms, model) in enumerate([(500.0, "chatterbox-turbo"), (750.0, "chatterbox-turbo"), (1.0, "x")]):
        before, _ = finished(kind="baseline")
        before["summary"] |= {"overall_mean_ms": mean_ms, "overall_p95_ms": 500.0, "overall_rtf": 0.25}
        before["configuration"]["model"] = model
        (tmp_path / f"baseline_2026010{place}_000000.json").write_text(json.dumps(before))
    (tmp_path / "baseline_20990101_000000.json").write_text("not JSON")
    told = baseline_result.compare(document, tmp_path)
    assert told is not None
    assert told["baseline"] == "baseline_20260101_000000.json"
    assert told["mean_ms"] == {"before": 750.0, "after": 250.0, "change_percent": -66.7, "ratio": 3.0}
    assert told["rtf"]["ratio"] == 2.0
    assert "3.00 times as fast" in baseline_result.comparison_line(told)


# ---- many streams


def answer(stream: int, began_at: float, chunks: list[tuple[float, float]], error: str = "") -> Answer:
    """chunks: when each came after the start, and its seconds of audio."""
    found = Answer(stream, began_at, counted=True, error=error, ended=True)
    found.chunk_at = [began_at + at for at, _ in chunks]
    found.chunk_samples = [round(audio_s * SECOND) for _, audio_s in chunks]
    return found


def test_a_stream_stalls_where_a_player_with_a_prebuffer_would_run_dry() -> None:
    """Half a second of audio at 0.1 s, the rest at 0.65 s: 50 ms after a player without prebuffer ran dry."""
    late = answer(0, 10.0, [(0.1, 0.5), (0.65, 0.5)])
    assert stalls(late, prebuffer_s=0.0)
    assert not stalls(late, prebuffer_s=0.1)
    assert stalls(answer(0, 10.0, [(0.1, 0.5), (0.75, 0.5)]), prebuffer_s=0.1)
    assert not stalls(answer(0, 10.0, [(3.0, 0.5)]))  # the first chunk is no stall, however late


def test_a_levels_figures_are_of_its_answers() -> None:
    level = baseline_levels.Level(
        2,
        [
            answer(0, 0.0, [(0.1, 1.0), (0.2, 1.0)]),
            answer(1, 0.0, [(0.3, 0.1), (0.9, 1.9)]),
            answer(1, 1.0, [], error="no audio"),
        ],
        full_at=0.0,
        over_at=2.0,
    )
    found = figures(level)
    assert found["answers"] == 2
    assert found["failed"] == 1
    assert found["error"] == "no audio"
    assert found["ttfc_p50_ms"] == 200
    assert found["ttfc_max_ms"] == 300
    assert found["ttfc_p95_ms"] is None  # of two answers
    assert found["rtf"] == pytest.approx(1.1 / 4)
    assert found["streams_in_real_time"] == 1
    assert found["audio_s_per_s"] == 2.0


def test_so_many_streams_speak_at_once() -> None:
    class Busy(Scripted):
        now_most = 0, 0

        def speak(self, text: str) -> Iterator[Pcm]:
            now, most = self.now_most
            self.now_most = now + 1, max(most, now + 1)
            yield np.zeros(480, np.int16)
            yield np.zeros(480, np.int16)
            self.now_most = self.now_most[0] - 1, self.now_most[1]

    level = baseline_levels.run_level(Busy(Clock(), []), 3, standard_texts(), window_s=0.2)
    assert {found.stream for found in level.answers} == {0, 1, 2}
    assert all(found.ended and not found.error for found in level.answers if found.counted)


class Quick(Scripted):
    """Says whatever it is asked at once, in one chunk of so many seconds."""

    def __init__(self, audio_s: float) -> None:
        super().__init__(Clock(), [(0.0, round(audio_s * SECOND))])


def test_a_stream_that_is_heard_asks_again_when_its_listener_has_heard_it_all() -> None:
    """0.1 s of audio after a prebuffer of 0.1 s: the sixth answer cannot begin within a second of the first."""
    level = baseline_levels.run_level(Quick(0.1), 1, {"short": "words"}, window_s=0.9, heard=True)
    counted = [found for found in level.answers if found.counted]
    assert 1 <= len(counted) <= 5
    for before, after in itertools.pairwise(counted):
        assert after.began_at - before.chunk_at[0] >= 0.2


def test_a_level_ends_while_all_its_listeners_listen() -> None:
    """An answer of an hour each: nobody waits for its end."""
    level = baseline_levels.run_level(Quick(3600.0), 3, {"short": "words"}, window_s=0.2, heard=True)
    assert len(level.answers) == 3
    assert all(found.ended and found.counted for found in level.answers)


# ---- the command


def run_main(*arguments: str) -> int:
    return baseline.main(arguments)


def test_an_unknown_kind_is_answered_with_the_eight(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_main("--engine", "chatterbox-turbo", "--kind", "quick")
    said = capsys.readouterr().err
    for kind in ("baseline", "streaming", "onnx_cpu", "onnx_tensorrt", "vllm", "s3gen_tensorrt", "hybrid_pipeline"):
        assert kind in said
    assert "final_optimized" in said
    assert len(said.splitlines()) == 1


@needs_chatterbox
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("onnx_tensorrt", "TensorrtExecutionProvider"),
        ("s3gen_tensorrt", "TensorrtExecutionProvider"),
        ("vllm", "name it by --host"),
    ],
)
def test_a_kind_that_cannot_run_here_says_why_and_writes_nothing(
    kind: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(*TINY, "--kind", kind, "--out", str(tmp_path / "out")) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"baseline: --kind {kind}")
    assert why in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@needs_chatterbox
@pytest.mark.parametrize("kind", ["baseline", "streaming", "hybrid_pipeline", "final_optimized", "onnx_cpu"])
def test_each_kind_runs_for_real_and_writes_its_file(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    levels = ("--concurrency", "2", "--level-s", "0.5") if kind == "final_optimized" else ()
    few = ("--runs", "2", "--warm-up", "1", "--texts", "ultra_short")
    assert run_main(*TINY, "--kind", kind, *few, *levels, "--out", str(tmp_path)) == 0
    import torch

    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    said = capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    assert re.fullmatch(rf"{kind}_\d{{8}}_\d{{6}}\.json", path.name)
    document = json.loads(path.read_text())
    text = document["results"]["ultra_short"]
    assert text["latency"]["mean_ms"] > 0
    assert text["runs"] == 2
    assert text["audio_samples"] > SECOND / 4
    assert text["rtf"] == pytest.approx(text["latency"]["mean_ms"] / text["audio_duration_ms"], abs=0.001)
    assert text["vram_peak_gb"] is None
    assert document["configuration"]["gpu"].startswith("none (CPU: ")
    assert "random weights: timing only" in document["notes"]
    assert "random weights: timing only" in said
    assert re.search(r"^ultra_short +\| Mean: +[\d.]+ms \| RTF: \d\.\d{3}$", said, re.MULTILINE)
    assert said.rstrip().endswith(f"Results saved to: {path}")
    assert said.count("[x]") + said.count("[ ]") + said.count("[-]") == 9 == len(document["validation"])
    if kind == "onnx_cpu":
        assert text["pytorch"]["latency"]["mean_ms"] > 0
        assert text["ratio"] > 0
        assert "[ ] Warmup phase completed (5 runs): 1 run of each text, each way" in said
        assert document["comparison"]["baseline"].startswith("the same in PyTorch")
    else:
        assert said.index("Running warmup...") < said.index("Warmup complete") < said.index("Benchmarking")
    if kind in ("streaming", "final_optimized"):
        assert set(text["streaming"]) == {
            "ttfc_mean_ms",
            "ttfc_p50_ms",
            "ttfc_p95_ms",
            "total_mean_ms",
            "total_p95_ms",
            "avg_chunks",
        }
    if kind == "final_optimized":
        (level,) = document["concurrency"]["levels"]
        assert level["streams"] == 2
        assert level["answers"] >= 2
        assert level["failed"] == 0
        assert level["stages"]["t3_s"] > 0
        assert level["stages"]["s3gen_s"] > 0


@needs_chatterbox
def test_upstreams_own_loader_is_what_trained_weights_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a folder and without random weights: `ChatterboxTurboTTS.from_pretrained(device=...)`."""
    from gpu_server import baseline_kinds
    from gpu_server.engines.chatterbox import upstream
    from gpu_server.speech import EngineUnavailable

    asked: list[str] = []

    def from_pretrained(device: str) -> None:
        asked.append(device)
        raise OSError("no network here")

    monkeypatch.setattr(upstream.module("tts_turbo").ChatterboxTurboTTS, "from_pretrained", from_pretrained)
    with pytest.raises(EngineUnavailable, match=r"cannot get the weights of chatterbox-turbo .*no network here"):
        baseline_kinds.load_upstream(baseline_kinds.Wanted("chatterbox-turbo", None, None, 1), Cpu(None))
    assert asked == ["cpu"]


def test_vllm_is_a_locust_run_through_openais_dialect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(baseline_vllm, "WARM_UP_S", 1.0)
    with running_server("--engine", "tone", "--tone-seconds", "0.2") as server:
        asked = baseline_vllm.Asked("chatterbox-turbo", server.url, 4, 3.0, None, tmp_path / "out")
        assert baseline_vllm.run(asked) == 0
    (path,) = (tmp_path / "out").iterdir()
    assert re.fullmatch(r"vllm_\d{8}_\d{6}\.json", path.name)
    document = json.loads(path.read_text())
    assert document["metadata"]["benchmark_type"] == "vllm"
    assert set(document["results"]) <= set(standard_texts())
    assert document["results"]
    for text in document["results"].values():
        assert set(text["latency"]) == LATENCY
        assert text["audio_duration_ms"] == pytest.approx(200, abs=1)
    assert document["configuration"]["gpu"] is None
    assert len(document["validation"]) == 9


@needs_chatterbox
def test_engines_and_benchmark_import_without_web_server_and_load_generator() -> None:
    """A bare GPU machine has torch and Chatterbox's own needs, and nothing else."""
    program = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"fastapi", "starlette", "uvicorn", "locust", "gevent", "websockets", "pandas",
                                      "pyarrow", "workers", "analysis", "locustfiles"}:
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Absent())
import gpu_server.baseline, gpu_server.bench_gpu, gpu_server.engines, gpu_server.scheduler, gpu_server.step_loop
import gpu_server.engines.chatterbox.engine, gpu_server.engines.chatterbox.onnx_stages
assert gpu_server.baseline_result.standard_texts()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr

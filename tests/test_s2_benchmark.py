"""A run of requests in the benchmark's format: figures counted by hand, and what a client cannot know."""

import json
from pathlib import Path
from typing import Any

import pytest
from run_maker import WALL_AT, log_of, make_run, turns

from analysis.exports.s2_benchmark import main


def known_run(parent: Path, **given: Any) -> Path:
    """`short`: 10 answers of 2 s after 0.5 s, but for one after 1.5 s; `long`: 4 of 4 s after 1 s; 2 failures; a
    warm-up of 6 that took 9 s each."""
    rows = [
        *turns(10, ttfc_s=0.1, e2e_s=lambda at: 1.5 if at == 9 else 0.5, audio_s=2.0, chunks=10),
        *turns(4, text_name="long", session=lambda at: f"l{at}", ttfc_s=0.3, e2e_s=1.0, audio_s=4.0, chunks=20),
        *turns(2, session=lambda at: f"f{at}", outcome="refused", status=503, error_kind="http_503", error="busy"),
        *turns(6, session=lambda at: f"w{at}", phase="warm_up", e2e_s=9.0),
    ]
    return make_run(parent, log_of(rows), **given)


def exported(run: Path, out: Path) -> Any:
    assert main([str(run), "--type", "vllm", "--engine", "chatterbox", "--out", str(out)]) == 0
    (path,) = out.iterdir()
    return path.name, json.loads(path.read_text())


def test_its_figures_are_the_answered_requests_of_the_measured_window(tmp_path: Path) -> None:
    name, found = exported(known_run(tmp_path), tmp_path / "out")
    assert name.startswith("vllm_2026")
    assert found["metadata"]["benchmark_type"] == "vllm"
    assert (found["metadata"]["warmup_runs"], found["metadata"]["measurement_runs"]) == (6, 4)
    short, long = found["results"]["short"], found["results"]["long"]
    assert (short["runs"], short["failed_runs"], long["runs"], long["failed_runs"]) == (10, 2, 4, 0)
    assert short["latency"]["mean_ms"] == 600.0
    assert short["latency"]["std_ms"] == 300.0  # of the population
    assert short["latency"]["p50_ms"] == 500.0
    assert short["latency"]["p95_ms"] == 1050.0  # between the ninth, 500 ms, and the tenth: 0.55 of the way
    assert short["rtf"] == 0.3
    assert (short["audio_samples"], short["audio_duration_ms"]) == (48_000, 2000.0)
    assert (short["text_length_words"], long["text_length_words"]) == (13, 46)
    assert long["streaming"] == {
        "ttfc_mean_ms": 300.0,
        "ttfc_p95_ms": 300.0,
        "total_mean_ms": 1000.0,
        "total_p95_ms": 1000.0,
        "avg_chunks": 20.0,
    }
    assert found["summary"]["overall_mean_ms"] == pytest.approx(10_000 / 14, abs=0.01)
    assert found["summary"]["overall_rtf"] == pytest.approx(10 / 36, abs=0.001)


def test_what_a_client_cannot_know_is_null(tmp_path: Path) -> None:
    _, found = exported(known_run(tmp_path), tmp_path / "out")
    configuration = found["configuration"]
    unknown = ("gpu", "gpu_memory_gb", "cuda_version", "pytorch_version", "weights")
    assert [configuration[key] for key in unknown] == [None] * 5
    assert (configuration["model"], configuration["batch_size"]) == ("chatterbox", 20)
    assert found["results"]["short"]["vram_peak_gb"] is None
    assert found["summary"]["max_vram_gb"] is None
    done = [check["done"] for check in found["validation"]]
    assert done == [None, True, False, None, True, False, False, True, False]


def test_a_target_that_says_its_weights_are_random_is_marked(tmp_path: Path) -> None:
    run = known_run(tmp_path, target_facts={"http://h": {"weights": "random"}})
    _, found = exported(run, tmp_path / "out")
    assert found["configuration"]["weights"] == "random"
    assert found["notes"][0] == "random weights: timing only"


def test_a_run_without_standard_texts_is_refused_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, log_of(turns(3, text_name="own")))
    assert main([str(run), "--out", str(tmp_path / "out")]) == 1
    assert "no request for a standard text was answered" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_older_file_of_the_same_second_stays(tmp_path: Path) -> None:
    run, out = known_run(tmp_path, started_wall_at=WALL_AT), tmp_path / "out"
    assert [main([str(run), "--out", str(out)]) for _ in range(2)] == [0, 0]
    first, second = sorted(path.name for path in out.iterdir())
    assert int(second[-11:-5]) - int(first[-11:-5]) == 1

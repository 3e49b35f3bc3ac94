"""The trace file: written whole, read whatever became of it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpu_server.trace import TraceLog, TraceRow, parse_trace, read_trace

ROW = TraceRow(
    request_id="a-1",
    route="/v1/synthesize",
    received_at=10.0,
    admitted_at=10.1,
    first_audio_at=10.25,
    finished_at=11.0,
    queue_wait_s=0.1,
    ttfb_s=0.25,
    audio_s=2.5,
    characters=12,
    voice="default",
    format="wav",
    outcome="ok",
    status=200,
    fault=None,
    fault_s=None,
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on" / "the" / "way.jsonl"
    before = time.time(), time.monotonic()
    log = TraceLog(path, "tone")
    log.write(ROW)
    header, rows, bad_lines = read_trace(path)  # before it is closed: rows do not wait in a buffer
    log.close()
    assert (rows, bad_lines) == ([ROW], 0)
    assert header is not None
    assert (header["cicada_trace"], header["server"], header["engine"]) == (1, "gpu_server", "tone")
    assert before[0] <= header["wall_at"] <= time.time()
    assert before[1] <= header["monotonic_at"] <= time.monotonic()


def test_a_restarted_server_appends(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    for engine in ("tone", "espeak"):
        log = TraceLog(path, engine)
        log.write(ROW)
        log.close()
    header, rows, bad_lines = read_trace(path)
    assert header is not None
    assert (header["engine"], len(rows), bad_lines) == ("espeak", 2, 0)


@pytest.mark.parametrize("keep", [1, 20, 100])
def test_a_torn_last_line_costs_only_itself(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "trace.jsonl"
    log = TraceLog(path, "tone")
    log.write(ROW)
    log.close()
    path.write_bytes(path.read_bytes() + json.dumps(ROW).encode()[:keep])
    assert read_trace(path)[1:] == ([ROW], 1)


@pytest.mark.parametrize("line", ["hello", "[]", "3", "null", "{}", '{"route": "/"}', '"x', "\ufffd\ufffd"])
def test_garbage_is_counted(line: str) -> None:
    assert parse_trace([line, json.dumps(ROW), ""]) == (None, [ROW], 1)


def test_columns_of_a_later_version_are_kept() -> None:
    _, rows, bad_lines = parse_trace([json.dumps({**ROW, "gpu": 3})])
    assert bad_lines == 0
    assert rows[0] == {**ROW, "gpu": 3}


def test_a_full_disk_costs_the_rows_and_says_so_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class FullDisk:
        def write(self, _text: str) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            pass

    log = TraceLog(tmp_path / "trace.jsonl", "tone")
    log.close()
    log._file = FullDisk()  # type: ignore[assignment]
    log.write(ROW)
    log.write(ROW)
    assert log.lost == 2
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_the_parser_costs_its_importer_nothing() -> None:
    heavy = ("numpy", "fastapi", "starlette", "uvicorn", "soundfile", "pydantic")
    program = f"import sys, gpu_server.trace; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

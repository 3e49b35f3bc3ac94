"""The log: what was appended is there whole, whatever happens to the process or to the disk."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest

from workers.samples.recorder import LogFull, Recorder
from workers.samples.schema import SCHEMA_VERSION, TABLES, names
from workers.samples.shards import read_log

FACTS = {"run": "r1", "worker": "host_1", "boot_id": "b", "pid": 7, "wall_at": 1.5, "monotonic_at": 0.25}
ROOT = Path(__file__).parents[1]


def values(path: Path) -> list[Any]:
    """Every msgpack value of a file; fails where the last one is torn."""
    unpacker = msgpack.Unpacker(raw=False, strict_map_key=False)
    data = path.read_bytes()
    unpacker.feed(data)
    found = list(unpacker)
    assert unpacker.tell() == len(data), "the log ends in the middle of a row"
    return found


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path / "deep" / "spool" / "host_1.msgpack", FACTS)


def test_the_first_value_says_what_the_others_are(recorder: Recorder) -> None:
    recorder.close()
    [first] = values(recorder.path)
    assert first == {
        "cicada": SCHEMA_VERSION,
        "tables": {table: names(table) for table in TABLES},
        "worker": FACTS,
    }


def test_rows_come_back_as_they_were(recorder: Recorder) -> None:
    rows: list[tuple[str, list[Any]]] = [
        ("turn_starts", ["r1", "host_1", "s", 0, "http_tts"]),
        ("turns", ["r1", None, "Grüße · 你好", -1, 2**40, 0.1 + 0.2, 1e-12, True, False, None, [1.5, 2.5], []]),
        ("sessions", []),
    ]
    for table, row in rows:
        recorder.append(table, row)
        assert recorder.size == recorder.path.stat().st_size
    assert recorder.rows == len(rows)
    recorder.close()
    assert [(table, row) for table, *row in values(recorder.path)[1:]] == rows


def test_whole_rows_are_read_by_the_schemas_names(recorder: Recorder) -> None:
    whole = [f"value of {name}" for name in names("turns")]
    short = whole[:20]  # trailing nulls may be left out
    recorder.append("turns", whole)
    recorder.append("turns", short)
    recorder.close()
    log = read_log(recorder.path)
    assert log.header is not None
    assert log.header.tables["turns"] == names("turns")
    assert log.header.worker == FACTS
    [(table, rows)] = list(log.batches())
    assert (table, rows) == ("turns", [whole, short])
    assert (log.lost_bytes, log.torn_bytes) == (0, 0)


def test_a_log_is_never_written_over(recorder: Recorder) -> None:
    recorder.append("turns", ["precious"])
    with pytest.raises(FileExistsError):
        Recorder(recorder.path, FACTS)
    recorder.close()
    assert values(recorder.path)[1] == ["turns", "precious"]


def test_a_text_that_is_no_unicode_costs_no_row(recorder: Recorder) -> None:
    """A server's JSON may hold half a surrogate pair; its error message goes into a row."""
    said = json.loads('"no \\ud83d voice"')
    recorder.append("turns", ["r1", said])
    recorder.append("turns", ["r1", "next"])
    recorder.close()
    assert values(recorder.path)[1:] == [["turns", "r1", "no ? voice"], ["turns", "r1", "next"]]


def test_a_row_that_cannot_be_packed_spoils_no_other(recorder: Recorder) -> None:
    recorder.append("turns", ["before"])
    with pytest.raises(TypeError):
        recorder.append("turns", ["half", object()])
    recorder.append("turns", ["after"])
    recorder.close()
    assert values(recorder.path)[1:] == [["turns", "before"], ["turns", "after"]]
    assert recorder.rows == 2


def run_script(tmp_path: Path, body: str) -> subprocess.Popen[str]:
    """A process with a recorder of its own on tmp_path/log.msgpack."""
    script = (
        "import json, resource, sys\n"
        "from pathlib import Path\n"
        "from workers.samples.recorder import LogFull, Recorder\n"
        f"path = Path({str(tmp_path / 'log.msgpack')!r})\n"
        f"recorder = Recorder(path, {FACTS!r})\n"
    )
    return subprocess.Popen([sys.executable, "-c", script + body], cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("room", [1, 100, 150, 151, 1000, 1001, 1002, 1003])
def test_a_disk_that_fills_up_keeps_whole_rows(tmp_path: Path, room: int) -> None:
    """A limit on file size cuts a write in its middle, as a full disk does; with room again, it goes on."""
    body = f"""
resource.setrlimit(resource.RLIMIT_FSIZE, (recorder.size + {room}, resource.RLIM_INFINITY))
told = []
kept = 0
for k in range(60):
    try:
        recorder.append("turns", ["r1", k, "x" * 40])
        kept += 1
    except LogFull as error:
        told.append(str(error))
        assert recorder.size == path.stat().st_size, "a torn row is left in the log"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
recorder.append("turns", ["r1", "again"])
print(json.dumps([kept, recorder.rows, recorder.size, told]))
"""
    with run_script(tmp_path, body) as process:
        assert process.stdout is not None
        kept, rows, size, told = json.loads(process.stdout.read())
    path = tmp_path / "log.msgpack"
    found = values(path)[1:]
    assert [row[2] for row in found] == [*range(kept), "again"]
    assert kept < 60
    assert rows == kept + 1
    assert size == path.stat().st_size
    assert len(told) == 60 - kept
    assert all(str(path) in line for line in told)


def test_a_killed_process_loses_no_row_it_had_appended(tmp_path: Path) -> None:
    body = """
k = 0
while True:
    recorder.append("turns", ["r1", k])
    print(k, flush=True)
    k += 1
"""
    with run_script(tmp_path, body) as process:
        assert process.stdout is not None
        for _ in range(500):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        last = [int(line) for line in process.stdout.read().split("\n")[:-1]][-1:] or [499]
    found = values(tmp_path / "log.msgpack")[1:]
    assert [row[2] for row in found] == list(range(len(found)))
    assert len(found) > last[0]


def test_a_log_that_cannot_be_made_is_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Recorder(tmp_path / "file" / "log.msgpack", FACTS)


def test_full_is_said_in_words() -> None:
    assert issubclass(LogFull, OSError)
    assert LogFull(28, "No space left on device: /x").strerror == "No space left on device: /x"

"""Rows on their way to the master: whatever the way does to them, the copy is the log, byte for byte."""

import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from workers.samples import relay
from workers.samples.recorder import LogFull, Recorder
from workers.samples.relay import Inlet, Relay, copy_tail

WITHIN_S = 10.0
ROOT = Path(__file__).parents[1]


def facts(worker: str = "host_1", run: str = "r1") -> dict[str, Any]:
    return {"run": run, "worker": worker, "pid": 7, "wall_at": 1.5, "monotonic_at": 0.25}


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    made = Recorder(tmp_path / "spool" / "host_1.msgpack", facts())
    yield made
    made.close()


@pytest.fixture
def inlet(tmp_path: Path) -> Iterator[Inlet]:
    (tmp_path / "log").mkdir()
    made = Inlet(tmp_path / "log" / "host_1.msgpack")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol is the same at any speed."""
    monkeypatch.setattr(relay, "SHIP_EVERY_S", 0.005)
    monkeypatch.setattr(relay, "ASK_AGAIN_S", 0.01)
    monkeypatch.setattr(relay, "PIECE_BYTES", 300)


def append(recorder: Recorder, count: int) -> None:
    for k in range(count):
        recorder.append("turns", ["r1", "host_1", "s", recorder.rows, "x" * (k % 50)])


Message = dict[str, Any]


class Wire:
    """The way to the master and back. `fate` says when each message arrives, if it does, and how often."""

    def __init__(self, inlet: Inlet, fate: Callable[[], list[float]]) -> None:
        self.inlet, self.fate = inlet, fate
        self.relay: Relay | None = None
        self.sent: list[Message] = []

    def send(self, kind: str, message: Message) -> None:
        assert kind == "cicada_rows"
        assert set(message) == {"run", "worker", "offset", "data"}
        assert (message["run"], message["worker"]) == ("r1", "host_1")
        self.sent.append(message)
        for after_s in self.fate():
            gevent.spawn_later(after_s, self.take, message)

    def take(self, message: Message) -> None:
        here = self.inlet.take(message["offset"], message["data"])
        for after_s in self.fate():
            gevent.spawn_later(after_s, self.acknowledge, here)

    def acknowledge(self, offset: int) -> None:
        if self.relay is not None:
            self.relay.acknowledge(offset)


def on_time() -> list[float]:
    return [0.0]


def relayed(recorder: Recorder, wire: Wire) -> Relay:
    wire.relay = Relay("r1", "host_1", recorder.path, lambda: recorder.size, wire.send)
    return wire.relay


def assert_same(recorder: Recorder, inlet: Inlet) -> None:
    assert inlet.path.read_bytes() == recorder.path.read_bytes()
    assert inlet.size == recorder.size


def test_what_is_appended_arrives(recorder: Recorder, inlet: Inlet) -> None:
    wire = Wire(inlet, on_time)
    made = relayed(recorder, wire)
    for _ in range(5):
        append(recorder, 20)
        gevent.sleep(0.01)
    assert made.flush(WITHIN_S)
    assert made.acknowledged == recorder.size
    assert_same(recorder, inlet)
    made.close()


@pytest.mark.parametrize("seed", range(8))
def test_a_bad_way_changes_nothing(recorder: Recorder, inlet: Inlet, seed: int) -> None:
    """A third is lost, a fifth comes twice, all of it in any order, acknowledgements too."""
    rng = random.Random(seed)

    def fate() -> list[float]:
        if rng.random() < 0.33:
            return []
        return [rng.random() * 0.02 for _ in range(2 if rng.random() < 0.2 else 1)]

    wire = Wire(inlet, fate)
    made = relayed(recorder, wire)
    for _ in range(10):
        append(recorder, 10)
        gevent.sleep(0.003)
    assert made.flush(WITHIN_S)
    assert_same(recorder, inlet)
    made.close()
    wire.relay = None
    gevent.sleep(0.05)  # what is still on its way comes late, and changes nothing either
    assert_same(recorder, inlet)


def test_one_piece_of_bounded_size_is_under_way(recorder: Recorder, inlet: Inlet) -> None:
    """So that a heartbeat never waits behind rows, and none pile up while the master is away."""
    away = [True]
    wire = Wire(inlet, lambda: [] if away[0] else [0.0])
    append(recorder, 300)
    made = relayed(recorder, wire)
    gevent.sleep(0.1)
    assert sum(bool(message["data"]) for message in wire.sent) == 1
    assert len(wire.sent) > 2, "it asks, with empty ranges"
    away[0] = False
    assert made.flush(WITHIN_S)
    assert all(len(message["data"]) <= 300 for message in wire.sent)
    assert_same(recorder, inlet)
    made.close()


def test_pieces_are_256_kb_as_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert relay.PIECE_BYTES == 256 * 1024


def test_a_send_that_fails_is_a_message_lost(recorder: Recorder, inlet: Inlet) -> None:
    """Locust raises when its socket's queue is full or its network breaks: rows must flow again afterwards."""
    wire = Wire(inlet, on_time)
    calls = 0

    def send(kind: str, message: Message) -> None:
        nonlocal calls
        calls += 1
        if calls in (1, 2, 4):
            raise RuntimeError("ZMQ sent failure")
        wire.send(kind, message)

    append(recorder, 100)
    made = wire.relay = Relay("r1", "host_1", recorder.path, lambda: recorder.size, send)
    assert made.flush(WITHIN_S)
    assert_same(recorder, inlet)
    made.close()


def test_a_master_that_lost_its_copy_gets_all_of_it_again(recorder: Recorder, inlet: Inlet, tmp_path: Path) -> None:
    wire = Wire(inlet, on_time)
    made = relayed(recorder, wire)
    append(recorder, 50)
    assert made.flush(WITHIN_S)
    wire.inlet = Inlet(tmp_path / "log" / "anew.msgpack")
    append(recorder, 5)
    gevent.sleep(0.02)
    assert made.flush(WITHIN_S)
    until = gevent.Timeout(WITHIN_S)
    with until:
        while wire.inlet.size < recorder.size:
            gevent.sleep(0.005)
    assert_same(recorder, wire.inlet)
    wire.inlet.close()
    made.close()


def test_a_flush_in_vain_says_so(recorder: Recorder, inlet: Inlet) -> None:
    made = relayed(recorder, Wire(inlet, list))
    append(recorder, 5)
    assert not made.flush(0.05)
    made.close()


def test_nothing_to_send_sends_nothing(recorder: Recorder, inlet: Inlet) -> None:
    wire = Wire(inlet, on_time)
    made = relayed(recorder, wire)
    assert made.flush(WITHIN_S)
    before = len(wire.sent)
    gevent.sleep(0.05)
    assert len(wire.sent) == before
    made.close()


# ------------------------------------------------------------------------------------------------ the inlet

DATA = bytes(range(100))


@pytest.mark.parametrize(
    ("offset", "data", "expected"),
    [
        (40, DATA[40:60], 60),
        (0, DATA[:60], 60),  # all of it again and some more
        (20, DATA[20:50], 50),  # overlaps
        (10, DATA[10:30], 40),  # known already
        (40, b"", 40),  # a question
        (0, b"", 40),
        (41, DATA[41:60], 40),  # a gap: something before it is missing
        (90, b"", 40),
    ],
)
def test_a_range_is_taken_once_and_without_gaps(inlet: Inlet, offset: int, data: bytes, expected: int) -> None:
    assert inlet.take(0, DATA[:40]) == 40
    for _ in range(2):
        assert inlet.take(offset, data) == expected
    assert inlet.path.read_bytes() == DATA[:expected]
    assert inlet.size == expected


def test_an_inlet_goes_on_where_the_file_ends(tmp_path: Path) -> None:
    first = Inlet(tmp_path / "log.msgpack")
    first.take(0, DATA[:40])
    first.close()
    second = Inlet(tmp_path / "log.msgpack")
    assert second.size == 40
    assert second.take(30, DATA[30:]) == 100
    second.close()
    assert second.path.read_bytes() == DATA


def test_a_full_disk_is_said_and_changes_nothing() -> None:
    inlet = Inlet(Path("/dev/full"))
    with pytest.raises(LogFull, match="No space left on device: /dev/full"):
        inlet.take(0, DATA)
    assert inlet.size == 0
    inlet.close()


def test_a_disk_that_fills_up_in_the_middle_of_a_range(tmp_path: Path) -> None:
    path = tmp_path / "log.msgpack"
    script = f"""
import resource
from pathlib import Path
from workers.samples.recorder import LogFull
from workers.samples.relay import Inlet
inlet = Inlet(Path({str(path)!r}))
data = bytes(range(100))
inlet.take(0, data[:40])
resource.setrlimit(resource.RLIMIT_FSIZE, (70, resource.RLIM_INFINITY))
try:
    inlet.take(40, data[40:])
except LogFull as error:
    print(inlet.size, inlet.path.stat().st_size, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(inlet.take(40, data[40:]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["40", "40", "100"]
    assert path.read_bytes() == DATA


# ------------------------------------------------------------------------------------------------ recovery


def test_a_tail_is_copied(recorder: Recorder, tmp_path: Path) -> None:
    append(recorder, 50)
    log = tmp_path / "log.msgpack"
    log.write_bytes(recorder.path.read_bytes()[:2000])
    missing = recorder.size - 2000
    assert copy_tail(recorder.path, log) == missing
    assert log.read_bytes() == recorder.path.read_bytes()
    assert copy_tail(recorder.path, log) == 0
    assert log.read_bytes() == recorder.path.read_bytes()


def test_all_of_it_is_copied_where_nothing_is_there(recorder: Recorder, tmp_path: Path) -> None:
    append(recorder, 50)
    assert copy_tail(recorder.path, tmp_path / "new.msgpack") == recorder.size
    assert (tmp_path / "new.msgpack").read_bytes() == recorder.path.read_bytes()


def test_a_log_that_is_longer_than_the_spool_stays(recorder: Recorder, tmp_path: Path) -> None:
    log = tmp_path / "log.msgpack"
    log.write_bytes(recorder.path.read_bytes() + b"more")
    assert copy_tail(recorder.path, log) == 0
    assert log.read_bytes() == recorder.path.read_bytes() + b"more"


@pytest.mark.parametrize("other", [facts("host_2"), facts(run="r2")])
@pytest.mark.parametrize("rows", [0, 200])
def test_a_foreign_log_is_refused(recorder: Recorder, tmp_path: Path, other: dict[str, Any], rows: int) -> None:
    """Another worker's, or another run's: same columns, same beginning of the header, and not a byte gets mixed."""
    foreign = Recorder(tmp_path / "foreign.msgpack", other)
    append(foreign, rows)
    append(recorder, 300)
    before = foreign.path.read_bytes()
    with pytest.raises(ValueError, match=r"host_1\.msgpack is not the log that .*foreign\.msgpack is a part of"):
        copy_tail(recorder.path, foreign.path)
    assert foreign.path.read_bytes() == before
    foreign.close()


def test_a_large_log_is_not_read_to_be_compared(recorder: Recorder, tmp_path: Path) -> None:
    log = tmp_path / "log.msgpack"
    log.write_bytes(recorder.path.read_bytes())
    for path in (log, recorder.path):
        with path.open("r+b") as file:
            file.truncate(1 << 36)  # 64 GiB, without a block on disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert copy_tail(recorder.path, log) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_a_spool_that_is_not_there_makes_no_log(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        copy_tail(tmp_path / "nowhere.msgpack", tmp_path / "log.msgpack")
    assert not (tmp_path / "log.msgpack").exists()
